"""Prompts: composed pieces are the tokenizer's own ids, know their fields, and fit; the processor survives saving."""

import unicodedata

import numpy as np
import pytest
import tiny
from transformers import AutoProcessor

from flip_ctr import DatasetSchema, FlipField, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset

DIRTY = [
    "[MASK]",
    "a [SEP] b",
    "<s></s>",
    "<mask> [CLS] [PAD]",
    "\ttabs\tand\nnew\r\nlines ",
    "double  spaces   here",
    "emoji 😀👩‍👩‍👧 ok",
    "Cité des enfants",
    "Cite\u0301 des",
    "control \x07\x01 bell",
    "zero\u200bwidth",
    "\u200b",
    "it's \"quoted\" 'x'",
    "one ; age is 24 ; two",
    "; ;",
    ";",
    "日本語のタイトル",
    "ſtraße İstanbul",
    "a" * 300,
    "▁ under ▁",
    "Ġ",
    "(1997)",
    "…",
    "-",
    "##ing",
    "\u00a0nbsp\u00a0",
    "100% & <b>",
    "\\n",
    "\u2028line",
    "e\u0301\u0301",
    "",
    None,
]
FIELDS = [
    FlipField("first", wording="first name", max_tokens=24),
    FlipField("number", "int", max_tokens=6),
    FlipField("hidden", sides=("id",)),
    FlipField("last", max_tokens=30),
]
NAMES = ["first", "number", "last"]


def dirty_rows(tokenizer) -> dict[str, list]:
    """Without the texts that a Unigram model takes for special tokens: see the test of these."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    own = tokenizer([value or "" for value in DIRTY], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    values = [value for value, ids in zip(DIRTY, own) if not special & set(ids)]
    assert len(values) >= len(DIRTY) - 3
    random = np.random.default_rng(0)
    first = values + [values[i] for i in random.integers(len(values), size=60)]
    last = [values[i] for i in random.permutation(len(first)) % len(values)]
    return {"first": first, "number": list(range(len(first))), "hidden": first, "last": last}


@pytest.fixture(scope="module", params=list(tiny.TOKENIZERS))
def any_tokenizer(request):
    return tiny.TOKENIZERS[request.param]()


def clean(value) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return unicodedata.normalize("NFC", text) or "unknown"


def prompts(rows) -> list[str]:
    """The prompts as a person would write them."""
    words = zip(*(rows[name] for name in NAMES))
    return [f"first name is {clean(a)} ; number is {clean(b)} ; last is {clean(c)}" for a, b, c in words]


def unpadded(batch) -> list[list[int]]:
    return [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]


# --- composition


def test_composed_ids_are_the_tokenizers_own_on_the_whole_prompt(any_tokenizer, monkeypatch):
    rows = dirty_rows(any_tokenizer)
    fields = [FlipField(field.name, field.type, field.wording, sides=field.sides, max_tokens=999) for field in FIELDS]
    monkeypatch.setattr(any_tokenizer, "model_max_length", 10**30)
    processor = FlipProcessor.from_dataset(rows, fields, any_tokenizer)
    expected = any_tokenizer(prompts(rows), split_special_tokens=True, truncation=False)["input_ids"]
    assert unpadded(processor(rows)) == [list(ids) for ids in expected]


def test_a_value_never_becomes_a_special_token(any_tokenizer):
    """A title may contain "[SEP]" or "[MASK]": it is text, and must not end or mask the prompt."""
    fields = [FlipField("title", max_tokens=40)]
    values = ["[MASK]", "[CLS] x", "a [SEP] b", "[PAD]", "<s>", "</s> y", "<mask>", "<pad>"]
    processor = FlipProcessor.from_dataset({"title": values}, fields, any_tokenizer)
    prompts = processor.encode_prompts(processor.feature_extractor.read({"title": values}))
    table, entries = prompts.table, prompts.entries
    composed = table.compose(entries)
    special = set(any_tokenizer.all_special_ids) - {any_tokenizer.unk_token_id}
    of_values = composed["input_ids"][composed["token_fields"] >= 0]
    assert not special & set(of_values.tolist())


def test_the_prompt_reads_as_documented(processor, rows):
    columns = processor.feature_extractor.read(rows[:1])
    values = [columns[field.name].values[0] for field in processor.text_fields]
    expected = "age is 20 ; zip code is 00139 ; title is Titanic (1997) 0 ; genre is Drama, Romance"
    assert processor.prompt_texts(values) == [expected]
    assert processor.prompt_texts([None, *values[1:]])[0].startswith("age is unknown ;")


def test_each_value_token_knows_its_field(any_tokenizer):
    rows = dirty_rows(any_tokenizer)
    processor = FlipProcessor.from_dataset(rows, FIELDS, any_tokenizer)
    prompts = processor.encode_prompts(processor.feature_extractor.read(rows))
    table, entries = prompts.table, prompts.entries
    composed = table.compose(entries)
    assert (table.lengths(entries) == composed["attention_mask"].sum(1)).all()
    templates = set()
    for row in range(len(rows["first"])):
        ids, fields = composed["input_ids"][row], composed["token_fields"][row]
        for number, name in enumerate(NAMES):
            budget = [field for field in FIELDS if field.name == name][0].max_tokens
            texts = ["is", "is " + clean(rows[name][row])]
            word, whole = any_tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            assert ids[fields == number].tolist() == list(whole)[len(word) :][:budget]
        # what belongs to no field is the same in every row: template and special tokens
        templates.add(tuple(ids[(fields == -1) & (composed["attention_mask"][row] == 1)].tolist()))
    assert len(templates) == 1
    padding = composed["attention_mask"] == 0
    assert (composed["input_ids"][padding] == (any_tokenizer.pad_token_id or 0)).all()
    assert (composed["token_fields"][padding] == -1).all()


def test_a_long_value_is_cut_and_later_fields_survive(any_tokenizer):
    fields = [FlipField("title", max_tokens=5), FlipField("genre", max_tokens=3), FlipField("age", "int")]
    rows = {"title": ["film and crime " * 50], "genre": ["Drama, Romance, Comedy"], "age": [24]}
    processor = FlipProcessor.from_dataset(rows, fields, any_tokenizer)
    prompts = processor.encode_prompts(processor.feature_extractor.read(rows))
    table, entries = prompts.table, prompts.entries
    token_fields = table.compose(entries)["token_fields"][0]
    assert [(token_fields == number).sum() for number in (0, 1)] == [5, 3]
    end = any_tokenizer("age is 24")["input_ids"][-2:]  # with the tokenizer's last special token, where it has one
    assert processor(rows)["input_ids"][0].tolist()[-2:] == end


def test_nulls_read_unknown(any_tokenizer):
    fields = [FlipField("title"), FlipField("genre")]
    rows = {"title": ["unknown", None, ""], "genre": ["Drama", "Drama", "Drama"]}
    batch = FlipProcessor.from_dataset(rows, fields, any_tokenizer)(rows)
    assert (batch["input_ids"] == batch["input_ids"][0]).all()
    assert batch["feature_ids"][:, 0].tolist() == [4, 3, 3]


def test_the_cache_changes_nothing(processor, rows, monkeypatch):
    expected = processor(rows)
    monkeypatch.setattr("flip_ctr.modeling_flip.processing_flip.MAX_CACHED_VALUES", 5)
    small = FlipProcessor(processor.feature_extractor, processor.tokenizer, processor.max_length)
    for part in (slice(0, 24), slice(3, 9), slice(5, 6), slice(0, 24)):
        got = small(rows[part])
        assert unpadded(got) == unpadded(expected)[part] and len(small._cache) <= 5


def test_an_encoded_dataset_composes_what_the_processor_does(processor, rows):
    dataset = EncodedDataset(processor, rows)
    picked = [5, 2, 11]
    batch, expected = dataset.__getitems__(picked), processor([rows[row] for row in picked], return_tensors=None)
    assert all((batch[name] == expected[name]).all() for name in expected)
    assert dataset.lengths[picked].tolist() == batch["attention_mask"].sum(1).tolist()
    sizes = [field.vocab_size for field in processor.feature_extractor.id_fields]
    assert sizes == [None] * 6  # the schema's own; counts come from the vocabularies
    counts = np.split(dataset.feature_counts(), np.cumsum([f["vocab_size"] for f in processor.fields])[:-1])
    assert all(
        (part == np.bincount(dataset.encoded.feature_ids[:, f], minlength=len(part))).all()
        for f, part in enumerate(counts)
    )


def test_an_empty_batch_is_empty(processor, id_processor):
    """A process may have no row of the last batch of an evaluation."""
    empty = {field.name: [] for field in tiny.FIELDS}
    assert id_processor(empty)["feature_ids"].shape == (0, 6)
    assert EncodedDataset(processor, tiny.toy_rows(3)).__getitems__([])["feature_ids"].shape == (0, 6)
    assert processor(empty)["feature_ids"].shape == (0, 6)


# --- refusals


def test_a_tokenizer_that_joins_across_spaces_is_refused(rows):
    with pytest.raises(
        ValueError, match="prompts do not compose with BertTokenizer: row 0, token .*joins text across spaces"
    ):
        FlipProcessor.from_dataset(rows, tiny.FIELDS, tiny.joining())


@pytest.mark.parametrize(("max_length", "model_max_length", "limit"), [(40, 512, 40), (None, 30, 30), (64, 50, 50)])
def test_template_and_budgets_must_fit(rows, max_length, model_max_length, limit):
    tokenizer = tiny.wordpiece()
    tokenizer.model_max_length = model_max_length
    with pytest.raises(
        ValueError, match=f"of its 4 fields .age 4, zip_code 8, title 12, genre 12.*maximum of {limit} tokens; lower"
    ):
        FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer, max_length=max_length)


def test_a_template_alone_may_be_too_long(rows):
    with pytest.raises(
        ValueError, match="tokens; take fields out of the prompt, by --prompt_fields or by `sides: .id.`"
    ):
        FlipProcessor.from_dataset(rows, tiny.FIELDS, tiny.wordpiece(), max_length=20)


def test_a_plm_needs_a_text_field(tokenizer):
    with pytest.raises(ValueError, match="no field is on the text side"):
        FlipProcessor.from_dataset({"a": ["x"]}, [FlipField("a", sides=("id",))], tokenizer)


def test_prompts_never_exceed_the_maximum(processor):
    rows = {field.name: ["film and crime " * 90] if field.type == "string" else [10**15] for field in tiny.FIELDS}
    assert processor(rows)["input_ids"].shape[1] <= processor.max_length == 96


# --- saving


def test_processors_survive_saving(tmp_path, any_tokenizer):
    rows = dirty_rows(any_tokenizer)
    processor = FlipProcessor.from_dataset(rows, FIELDS, any_tokenizer, label="click", weight="w", min_frequency=2)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, FlipProcessor)
    assert (again.label, again.weight, again.max_length) == ("click", "w", any_tokenizer.model_max_length)
    assert [field["name"] for field in again.fields] == ["first", "number", "hidden", "last"]  # in the schema's order
    assert again.fields == processor.fields
    targets = {"click": [0] * len(rows["first"]), "w": [0.5] * len(rows["first"])}
    expected, got = processor(rows | targets), again(rows | targets)
    assert expected.keys() == got.keys() and all((expected[name] == got[name]).all() for name in expected)


def test_a_schema_brings_label_weight_and_reading(rows, tokenizer):
    schema = DatasetSchema("d", tiny.FIELDS, label="click", weight_column="w", reading={"format": "csv"})
    one = FlipProcessor.from_dataset(rows, schema, tokenizer)
    assert one.fields == FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer).fields
    assert (one.label, one.weight, one.feature_extractor.reading) == ("click", "w", {"format": "csv"})
    other = FlipProcessor.from_dataset(rows, schema, label="bought", reading={})
    assert (other.label, other.weight, other.feature_extractor.reading) == ("bought", "w", {})


def test_id_only_processors_survive_saving(tmp_path, id_processor, rows):
    id_processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.id_only and again.model_input_names == ["feature_ids"]
    assert (again(rows)["feature_ids"] == id_processor(rows)["feature_ids"]).all()


def test_token_tables_never_enter_a_checkpoint(tmp_path, processor, rows):
    processor(rows)
    processor.save_pretrained(tmp_path)
    assert "_cache" not in (tmp_path / "processor_config.json").read_text()
