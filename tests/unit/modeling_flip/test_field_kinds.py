"""Multi-valued, numeric and hashed fields: what they read, which ids they get, and what a schema may not say."""

import dataclasses
import hashlib
import json
import math

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
import torch
from transformers import AutoProcessor

from flip_ctr import FlipConfig, FlipFeatureExtractor, FlipField, FlipForCTR, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.modeling_flip.columns_flip import Column, read_columns
from flip_ctr.modeling_flip.feature_extraction_flip import add_counts, hash_bucket
from flip_ctr.modeling_flip.fields_flip import read_fields
from flip_ctr.modeling_flip.rows_flip import is_one_row

ROWS = tiny.kind_rows()
LISTS = FlipField("g", kind="multi-valued", max_values=3)


def ids_of(fields, train: dict, rows: dict, **options) -> list[list[int]]:
    return FlipProcessor.from_dataset(train, fields, **options)(rows)["feature_ids"].tolist()


# --- the schema


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (
            {"kind": "numerical"},
            "`kind` must be one of 'categorical', 'multi-valued', 'numeric', 'hashed', 'history'; got 'numerical'",
        ),
        ({"kind": "hashed"}, "`num_buckets` must say into how many buckets kind 'hashed' puts the values; got None"),
        ({"kind": "hashed", "num_buckets": 1}, "`num_buckets` must be a whole number of at least 2; got 1"),
        ({"kind": "hashed", "num_buckets": 2.5}, "`num_buckets` must be a whole number of at least 2; got 2.5"),
        ({"kind": "numeric"}, "`type` must be 'int' or 'float' for kind 'numeric'; got 'string'"),
        (
            {"kind": "numeric", "type": "int", "bucketing": "even"},
            "`bucketing` must be one of 'quantile', 'log'; got 'even'",
        ),
        (
            {"kind": "numeric", "type": "int", "key": True},
            "`key` must be False for kind 'numeric', as a bucket of numbers",
        ),
        ({"kind": "multi-valued", "key": True}, "`key` must be False for kind 'multi-valued', as several values"),
        ({"kind": "multi-valued", "max_values": 0}, "`max_values` must be a whole number of at least 1; got 0"),
        ({"kind": "multi-valued", "separator": ""}, "`separator` must be the text between two values.*got ''"),
        (
            {"kind": "multi-valued", "bucketing": "log"},
            "`bucketing` is of kind 'numeric' and has no effect on kind 'multi-valued'.*'log'",
        ),
        (
            {"num_buckets": 9},
            "`num_buckets` is of kind 'multi-valued' or 'numeric' or 'hashed' and has no effect on kind 'categorical'",
        ),
        ({"separator": ";"}, "`separator` is of kind 'multi-valued' and has no effect on kind 'categorical'"),
        (
            {"kind": "hashed", "num_buckets": 9, "max_values": 2},
            "`max_values` is of kind 'multi-valued' or 'history' and has no effect",
        ),
        ({"null_wording": " "}, "`null_wording` must be words for the prompt"),
        ({"max_tokens": 0}, "`max_tokens` must be a whole number of at least 1; got 0"),
    ],
)
def test_wrong_attributes_are_named(attributes, message):
    with pytest.raises(ValueError, match=f"field 'f': {message}"):
        FlipField("f", **attributes)


def test_a_schema_says_only_what_is_special_and_survives_saving(tmp_path):
    fields = [*tiny.KIND_FIELDS, FlipField("plain")]
    DatasetSchema("d", fields).save(tmp_path)
    assert DatasetSchema.load(tmp_path).fields == fields
    saved = {one["name"]: one for one in json.loads((tmp_path / "schema.json").read_text())["fields"]}
    assert not {"max_values", "separator", "num_buckets", "bucketing", "null_wording"} & set(saved["plain"])
    assert saved["genres"]["separator"] == "|" and "num_buckets" not in saved["genres"]
    assert saved["price"]["bucketing"] == "log" and saved["age"]["null_wording"] == "not given"


def test_a_field_says_what_files_call_it_and_its_nulls():
    field = FlipField("item", column="Item ID", null_values=["NULL", "n/a"])
    assert FlipField.from_dict(json.loads(json.dumps(field.to_dict()))) == field
    assert not {"column", "null_values"} & FlipField("item", column="item").to_dict().keys()
    with pytest.raises(ValueError, match="'item': `null_values` must be a list of texts"):
        FlipField("item", null_values="NULL")
    with pytest.raises(ValueError, match="'a': its `column` 'b' is the name of another field"):
        read_fields([FlipField("a", column="b"), FlipField("b", column="c")])


def test_fields_of_before_there_were_kinds_still_load():
    old = {
        "name": "f",
        "type": "string",
        "wording": "f",
        "kind": "categorical",
        "entity": "context",
        "key": False,
        "sides": ["id", "text"],
        "max_tokens": 32,
        "nullable": True,
        "vocab_size": 9,
    }
    assert FlipField.from_dict(old) == FlipField("f", vocab_size=9)
    assert FlipField("f", vocab_size=9).to_dict() == old  # and what has no new kind still loads there


def test_slots():
    config = FlipConfig(fields=[dataclasses.replace(field, vocab_size=20).to_dict() for field in tiny.KIND_FIELDS])
    assert config.slot_fields == [0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6, 7] and config.num_slots == 13
    assert FlipConfig(fields=tiny.sized_fields(5, 6)).slot_fields == [0, 1]


# --- values


@pytest.mark.parametrize(
    ("raw", "field", "expected"),
    [
        (["b", "a"], {}, ("b", "a")),  # the order stays
        (("b", "a", "b"), {}, ("b", "a")),
        (np.array(["b", "a"]), {}, ("b", "a")),
        (["b, a"], {}, ("b, a",)),  # a list is never split
        ("b, a ,,  b ", {}, ("b", "a")),
        ("b|a, c", {"separator": "|"}, ("b", "a, c")),
        ("3 1", {"separator": " ", "type": "int"}, ("3", "1")),
        ("3\t1", {"separator": "\t", "type": "float"}, ("3", "1")),
        ([None, " ", "x", float("nan")], {}, ("x",)),
        ([1, 1.0, "1", np.int64(2)], {"type": "int"}, ("1", "2")),
        ([0.5, "2.0"], {"type": "float"}, ("0.5", "2")),
        ([True, "0"], {"type": "bool"}, ("true", "false")),
        (7, {"type": "int"}, ("7",)),
        ("x", {}, ("x",)),
        ([], {}, None),
        ("", {}, None),
        (" , ", {}, None),
        (None, {}, None),
        ([None], {}, None),
        (float("nan"), {}, None),
    ],
)
def test_canonical_tuples(raw, field, expected):
    assert Column.read([raw], FlipField("g", kind="multi-valued", **field)).values == [expected]


FORMS = {
    "list of dicts": lambda rows: rows,
    "dict of columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "dict of object arrays": lambda rows: {
        name: np.array([*(row[name] for row in rows), object()], dtype=object)[:-1] for name in rows[0]
    },
    "tuples": lambda rows: [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows],
    "text": lambda rows: [as_text(row) for row in rows],
    "pandas": pd.DataFrame,
    "pandas of text": lambda rows: pd.DataFrame([as_text(row) for row in rows]),
    "pandas with array cells": lambda rows: pa.Table.from_pylist(rows).to_pandas(),
    "arrow": pa.Table.from_pylist,
    "arrow in chunks": lambda rows: pa.concat_tables([pa.Table.from_pylist(rows[:5]), pa.Table.from_pylist(rows[5:])]),
    "arrow of large lists": lambda rows: pa.Table.from_pylist(rows).cast(large(pa.Table.from_pylist(rows).schema)),
    "arrow of text": lambda rows: pa.Table.from_pylist([as_text(row) for row in rows]),
    "datasets": datasets.Dataset.from_list,
    "datasets batch": lambda rows: datasets.Dataset.from_list(rows)[:],
}


def as_text(row: dict) -> dict:
    separators = {field.name: field.separator for field in tiny.KIND_FIELDS}
    return {k: separators[k].join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}


def large(schema: pa.Schema) -> pa.Schema:
    types = [pa.large_list(kind.value_type) if hasattr(kind, "value_field") else kind for kind in schema.types]
    return pa.schema(list(zip(schema.names, types)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lists_at_once", [3, 16_384])
def test_all_forms_of_rows_are_equal(kind_processor, form, lists_at_once, monkeypatch):
    monkeypatch.setattr("flip_ctr.modeling_flip.columns_flip.LISTS_AT_ONCE", lists_at_once)
    expected, got = kind_processor(ROWS), kind_processor(FORMS[form](ROWS))
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("form", ["arrow", "arrow in chunks", "arrow of large lists", "pandas with array cells"])
def test_columns_are_the_same_whatever_the_form(form, monkeypatch):
    """Values in order of first appearance too."""
    monkeypatch.setattr("flip_ctr.modeling_flip.columns_flip.LISTS_AT_ONCE", 4)
    expected, got = read_columns(ROWS, tiny.KIND_FIELDS), read_columns(FORMS[form](ROWS), tiny.KIND_FIELDS)
    for name in ("history", "genres", "tags"):
        column = expected[name]
        assert got[name].values == column.values and got[name].codes.tolist() == column.codes.tolist()


@pytest.mark.parametrize("form", ["list of dicts", "dict of columns", "pandas", "arrow", "datasets"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("genres", [["nested"]], "expected text, got list \\['nested'\\]"),
        ("history", ["old"], "expected int, got str 'old'"),
    ],
)
def test_errors_name_column_and_row(kind_processor, form, column, value, message, monkeypatch):
    monkeypatch.setattr("flip_ctr.modeling_flip.columns_flip.LISTS_AT_ONCE", 3)
    rows = [dict(row) for row in ROWS]
    for number, row in enumerate(rows):  # Arrow has one type a column
        row[column] = value if number == 7 else None if column == "genres" else [str(one) for one in row[column]]
    with pytest.raises(ValueError, match=f"column '{column}', row 7: {message}"):
        kind_processor(FORMS[form](rows))


@pytest.mark.parametrize("raw", [[["a"], []], pa.array([["a"], []]), ["a", " , "]])
def test_forbidden_nulls_are_named(raw):
    with pytest.raises(ValueError, match="column 'g', row 1: null, and the schema forbids nulls"):
        Column.read(raw, FlipField("g", kind="multi-valued", nullable=False))


def test_a_list_in_a_single_valued_field_is_refused():
    for raw in ([["a"]], pa.array([["a"]]), np.array([["a", "b"]]), [np.array(["a", "b"])]):
        with pytest.raises(ValueError, match="column 'f', row 0: expected text, got list"):
            Column.read(raw, FlipField("f"))


# --- one row


@pytest.mark.parametrize(
    ("rows", "one"),
    [
        ({"f": 1, "g": ["a", "b"]}, True),
        ({"g": ["a", "b"], "f": "x"}, True),
        ({"f": [1, 2], "g": [["a"], ["b"]]}, False),
        ({"f": [1, 2], "g": ["a,b", "c"]}, False),
        ({"f": None, "g": None}, True),
        # only multi-valued fields: by nesting
        ({"g": ["a", "b"]}, True),
        ({"g": "a,b"}, True),
        ({"g": None}, True),
        ({"g": []}, True),
        ({"g": [["a"], None]}, False),
        ({"g": [None, ["a"]]}, False),
        ({"g": [np.array(["a"])]}, False),
        ({"g": np.array([["a", "b"]])}, False),
        ({"g": pa.array(["a,b"])}, False),
        ({"g": pd.Series(["a,b"])}, False),
        ({"other": [1]}, False),
    ],
)
def test_what_one_row_is(rows, one):
    assert is_one_row(rows, [FlipField("f"), FlipField("g", kind="multi-valued")]) == one


def test_one_row_may_hold_lists(kind_processor):
    for number in (0, 3, 5):
        single, batch = kind_processor(ROWS[number]), kind_processor([ROWS[number]])
        assert all(torch.equal(single[name], batch[name]) for name in batch)
    lists = FlipProcessor.from_dataset({"g": [["a"], ["b"]]}, [LISTS])
    assert lists({"g": ["b", "a"]})["feature_ids"].tolist() == [[5, 4, 0]]


# --- ids


def test_multi_valued_ids_fill_slots_from_the_left():
    train = {"g": [["a", "b"], ["b"], ["c", "b", "a", "z"], None]}
    rows = {"g": [["b"], ["a", "new", "c"], [], ["c", "b", "a", "b", "z"], "b,a"]}
    # z is beyond the slots of its only row, and has no id
    assert ids_of([LISTS], train, rows) == [[4, 0, 0], [5, 2, 6], [3, 0, 0], [6, 4, 5], [4, 5, 0]]
    assert FlipProcessor.from_dataset(train, [LISTS]).fields[0]["vocab_size"] == 7
    assert ids_of([LISTS], train, rows, min_frequency=2) == [[4, 0, 0], [5, 2, 2], [3, 0, 0], [2, 4, 5], [4, 5, 0]]


def test_hashed_ids_are_the_formula_and_need_no_vocabulary():
    field = FlipField("u", "int", kind="hashed", num_buckets=1000)
    expected = [4 + int(hashlib.md5(str(value).encode()).hexdigest()[:16], 16) % 1000 for value in (12, 999)]
    assert ids_of([field], {"u": [1]}, {"u": [12, 999, None]}) == [[expected[0]], [expected[1]], [3]]
    assert hash_bucket("12", 1000) == 713  # pinned: the same on every machine
    processor = FlipProcessor.from_dataset({"u": [1]}, [field])
    assert processor.feature_extractor.vocabularies == [[]] and processor.fields[0]["vocab_size"] == 1004


def test_values_of_a_multi_valued_field_may_be_hashed():
    field = FlipField("g", kind="multi-valued", num_buckets=50, max_values=2)
    ids = ids_of([field], {"g": [["a"]]}, {"g": [["x", "a", "y"], None]})
    assert ids == [[4 + hash_bucket("x", 50), 4 + hash_bucket("a", 50)], [3, 0]]


def slow_quantiles(rows: list[float], buckets: int) -> list[float]:
    ordered = sorted(rows)
    cut = {ordered[len(rows) * i // buckets] for i in range(1, buckets)}
    return sorted(cut - {ordered[0]})


@pytest.mark.parametrize("buckets", [2, 4, 32])
def test_quantile_buckets_hold_equal_shares(buckets):
    rows = np.random.default_rng(0).lognormal(size=1000).round(3)
    field = FlipField("x", "float", kind="numeric", num_buckets=buckets)
    processor = FlipProcessor.from_dataset({"x": [*rows, None]}, [field])
    assert processor.feature_extractor.boundaries == [slow_quantiles(rows.tolist(), buckets)]
    counts = np.bincount(processor({"x": rows})["feature_ids"][:, 0])[4:]
    assert len(counts) == buckets and abs(counts / (1000 / buckets) - 1).max() < 0.1
    assert processor.fields[0]["vocab_size"] == 4 + buckets


def test_a_frequent_number_has_a_bucket_of_its_own():
    field = FlipField("x", "int", kind="numeric", num_buckets=4)
    train = [0] * 60 + [5] * 20 + list(range(10, 30))
    assert FlipProcessor.from_dataset({"x": train}, [field]).feature_extractor.boundaries == [[5.0]]
    # no bucket is without training rows, also the first, where smaller numbers fall
    assert ids_of([field], {"x": train}, {"x": [-7, 0, 4, 5, 29, 999, None]}) == [[4], [4], [4], [5], [5], [5], [3]]


def test_log_buckets_are_even_steps():
    field = FlipField("x", "float", kind="numeric", num_buckets=8, bucketing="log")
    train = [-50.0, 0.0, 3.0, 1e6]
    low, high = -math.log1p(50), math.log1p(1e6)
    steps = [low + (high - low) * i / 8 for i in range(1, 8)]
    expected = [math.copysign(math.expm1(abs(step)), step) for step in steps]
    assert FlipProcessor.from_dataset({"x": train}, [field]).feature_extractor.boundaries[0] == pytest.approx(expected)
    rows = [-1e9, -50, 0, 3, 1e6, 1e12]
    buckets = [
        min(7, max(0, math.floor((math.copysign(math.log1p(abs(x)), x) - low) / (high - low) * 8))) for x in rows
    ]
    assert ids_of([field], {"x": train}, {"x": rows}) == [[4 + bucket] for bucket in buckets]


@pytest.mark.parametrize("bucketing", ["quantile", "log"])
def test_numbers_without_a_spread_share_a_bucket(bucketing):
    field = FlipField("x", "int", kind="numeric", bucketing=bucketing)
    for train in ([5, 5, 5], [None, None]):
        assert ids_of([field], {"x": train}, {"x": [1, 5, 9, None]}) == [[4], [4], [4], [3]]


def test_integers_beyond_64_bits_are_refused_as_prepare_refuses_them():
    field = FlipField("x", "int", kind="numeric", num_buckets=2)
    assert ids_of([field], {"x": [1, 2, 2**63 - 1]}, {"x": [0, -(2**63)]}) == [[4], [4]]
    with pytest.raises(ValueError, match="column 'x', row 1: 9223372036854775808 does not fit into 64 bits"):
        ids_of([field], {"x": [1, 2]}, {"x": [0, 2**63]})


def test_what_is_learned_comes_from_the_training_rows_alone(kind_processor):
    before = json.dumps(kind_processor.feature_extractor.to_dict())
    ids = kind_processor([row | {"age": 999, "price": 1e9, "genres": ["New"], "history": [1, 2]} for row in ROWS])[
        "feature_ids"
    ]
    assert json.dumps(kind_processor.feature_extractor.to_dict()) == before
    sizes = [field["vocab_size"] for field in kind_processor.fields]
    assert ids[0, 4] == sizes[2] - 1 and ids[0, -1] == sizes[7] - 1  # the last buckets
    assert ids[0].tolist()[1:4] == [2, 2, 0] and ids[0].tolist()[7:10] == [2, 0, 0]


@pytest.mark.parametrize("size", [1, 5, 24])
def test_counts_of_chunks_give_what_the_whole_split_gives(size):
    counts = {}
    for start in range(0, len(ROWS), size):
        add_counts(counts, read_columns(ROWS[start : start + size], tiny.KIND_FIELDS), tiny.KIND_FIELDS)
    whole = FlipProcessor.from_dataset(ROWS, tiny.KIND_FIELDS, min_frequency=2).feature_extractor
    streamed = FlipFeatureExtractor.from_counts(counts, tiny.KIND_FIELDS, min_frequency=2)
    assert json.dumps(streamed.to_dict()) == json.dumps(whole.to_dict())
    assert counts["genres"][None] == sum(not row["genres"] for row in ROWS) and counts["genres"]["Drama"] == 11
    assert not {"user_id", "tags"} & set(counts)  # hashed: nothing to learn, however many values there are
    assert set(counts["price"]) == {"-2", "100", None}  # of even steps the extremes are enough


def test_a_field_that_was_not_counted_is_named():
    with pytest.raises(ValueError, match="field 'b' has no counts; there are those of a"):
        FlipFeatureExtractor.from_counts({"a": {"x": 1}}, [FlipField("a"), FlipField("b")])


def test_boundaries_and_fields_must_match():
    for fields, boundaries in ((["a"], [[1.0]]), (["n"], [None]), (["n"], [])):
        kinds = [FlipField(name, "int", kind="numeric" if name == "n" else "categorical") for name in fields]
        if boundaries == []:
            assert FlipFeatureExtractor(kinds, boundaries=boundaries).boundaries == [[]]
            continue
        with pytest.raises(ValueError, match="`boundaries` must hold a list for each numeric ID-side field"):
            FlipFeatureExtractor(kinds, boundaries=boundaries)


def test_feature_counts_add_up_the_slots_of_a_field(kind_processor):
    dataset = EncodedDataset(kind_processor, ROWS)
    sizes = [field["vocab_size"] for field in kind_processor.fields]
    parts = np.split(dataset.feature_counts(), np.cumsum(sizes)[:-1])
    columns = np.array(kind_processor.feature_extractor.slot_fields)
    for field, part in enumerate(parts):
        ids = dataset.encoded.feature_ids[:, columns == field].ravel().tolist()
        assert part.tolist() == [ids.count(one) for one in range(sizes[field])]


# --- prompts, saving, privacy


def test_prompts_list_the_values(kind_processor):
    columns = kind_processor.feature_extractor.read(ROWS)

    def prompt(row: int) -> str:
        (text,) = kind_processor.prompt_texts(
            [columns[f.name].values[columns[f.name].codes[row]] for f in kind_processor.text_fields]
        )
        return text

    assert prompt(0) == "age is 20 ; title is Film 0 ; genres is Drama, Romance ; tags is night, city ; price is 0.5"
    # all values, also those that have no slot
    assert (
        prompt(3)
        == "age is not given ; title is Film 3 ; genres is Comedy, Drama, Crime, Horror ; tags is night, city ; price "
        "is unknown"
    )
    # and the tokens are those of the prompt as one text
    expected = kind_processor.tokenizer(prompt(0))["input_ids"]
    assert kind_processor(ROWS[:1])["input_ids"][0].tolist() == expected


def test_lists_read_as_the_same_text_does(tokenizer):
    lists, text = ["Drama", "Romance"], "Drama, Romance"
    one = FlipProcessor.from_dataset({"genre": [lists]}, [FlipField("genre", kind="multi-valued")], tokenizer)
    two = FlipProcessor.from_dataset({"genre": [text]}, [FlipField("genre")], tokenizer)
    assert torch.equal(one({"genre": [lists]})["input_ids"], two({"genre": [text]})["input_ids"])


def test_processors_survive_saving(kind_processor, tmp_path):
    kind_processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert (
        again.fields == kind_processor.fields
        and again.feature_extractor.boundaries == kind_processor.feature_extractor.boundaries
    )
    expected, got = kind_processor(ROWS), again(ROWS)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_values_of_multi_valued_user_fields_are_hashed(tmp_path):
    plain, hashed = (FlipProcessor.from_dataset(ROWS, tiny.KIND_FIELDS, hash_user_values=on) for on in (False, True))
    assert hashed.feature_extractor.hashed_fields == ["history"]  # the buckets of user_id and age hold no value
    words = hashed.feature_extractor.vocabularies[1]
    assert words == sorted(words) and all(len(word) == 32 for word in words)
    unseen = [ROWS[1] | {"history": [1, 101, 2]}]
    one, two = plain(ROWS + unseen)["feature_ids"], hashed(ROWS + unseen)["feature_ids"]
    pairs = set(zip(one[:, 1:4].flatten().tolist(), two[:, 1:4].flatten().tolist()))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})  # relabelled, one to one
    assert all(a == b for a, b in pairs if a < 4) and {0, 2, 3} <= {a for a, _ in pairs}
    others = [slot for slot in range(13) if slot not in (1, 2, 3)]
    assert torch.equal(one[:, others], two[:, others])


def test_buckets_alone_are_nothing_to_hash():
    with pytest.raises(ValueError, match="entity 'user' and a vocabulary: there is nothing to hash"):
        FlipProcessor.from_dataset(ROWS, [tiny.KIND_FIELDS[0]], hash_user_values=True)


# --- the numbers of buckets, which the ID tower reads


def test_a_number_stands_for_each_bucket():
    """By hand: the logarithms of 1 plus the lower bounds 1, 2 and 4, and a first bucket as wide as the second."""
    field = FlipField("n", "int", kind="numeric", sides=("id",))
    fields = FlipProcessor.from_dataset({"n": [0, 1, 2, 4]}, [field]).fields
    logs = np.log([2, 2, 3, 5])
    logs[0] -= logs[2] - logs[1]
    assert fields[0]["bucket_numbers"] == pytest.approx(((logs - logs.mean()) / logs.std()).tolist(), abs=1e-5)
    for rows, numbers in (([3, 3], [0]), ([3, 9], [-1, 1])):
        assert FlipProcessor.from_dataset({"n": rows}, [field]).fields[0]["bucket_numbers"] == numbers
    assert "bucket_numbers" not in FlipProcessor.from_dataset({"a": ["x"]}, [FlipField("a")]).fields[0]


@pytest.mark.parametrize("tower", ["dcnv2", "afn", "deepfm"])
def test_the_id_tower_reads_numbers_beside_the_ids_of_their_buckets(tower, tmp_path):
    fields = [FlipField("g", kind="multi-valued", max_values=2, sides=("id",)), FlipField("a", sides=("id",))]
    fields += [FlipField(name, "float", kind="numeric", sides=("id",)) for name in ("x", "y")]
    rows = {"g": [["r", "s"], ["s"]], "a": ["u", "v"], "x": [0.5, 2.5], "y": [1.0, None]}
    processor = FlipProcessor.from_dataset(rows, fields)
    size = {"id_tower": tower, "id_embedding_size": 4, "id_hidden_dims": [8], "strategy": "id"}
    model = FlipForCTR(FlipConfig(fields=processor.fields, **size)).eval()
    ids = processor(rows, return_tensors="pt")["feature_ids"]
    without = [{k: v for k, v in field.items() if k != "bucket_numbers"} for field in processor.fields]
    blind = FlipForCTR(FlipConfig(fields=without, **size)).eval()
    assert blind.flip.id_tower.numbers is None
    assert blind.load_state_dict(model.state_dict(), strict=False).unexpected_keys == ["flip.id_tower.numbers.weight"]
    assert torch.equal(model(feature_ids=ids).logits, blind(feature_ids=ids).logits)  # vectors start at zero
    tower = model.flip.id_tower
    with torch.no_grad():
        tower.numbers.weight[0] = torch.arange(4.0)
        tower.numbers.weight[1] = 1.0
        embeds, of_buckets = tower.embed(tower.embeddings, ids, []), tower.embeddings(ids)  # (2, fields, 4)
    expected = torch.zeros(2, 4, 4)
    expected[:, 2] = torch.tensor([[-1.0], [1.0]]) * torch.arange(4)  # the numbers of x
    assert torch.equal(embeds, of_buckets + expected)  # y has one number, and a null: 0
    model.save_pretrained(tmp_path)
    again = FlipForCTR.from_pretrained(tmp_path).eval()
    assert torch.equal(again(feature_ids=ids).logits, model(feature_ids=ids).logits)
    wrong = [
        field | {"bucket_numbers": [0.0, 1.0, 2.0]} if field["name"] == "x" else field for field in processor.fields
    ]
    with pytest.raises(ValueError, match="field 'x' has 2 buckets .* and 3 `bucket_numbers`"):
        FlipForCTR(FlipConfig(fields=wrong, **size))
