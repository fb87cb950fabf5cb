"""Histories: read from any form of rows, encoded once an item, and seen by both sides as a plain loop sees them."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from past import FIELDS, OF_ITEM, items_of, past_rows

from flip_ctr import FlipCollator, FlipField, FlipForCTR, FlipForPretraining, FlipPretrainingCollator, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.modeling_flip.fields_flip import read_fields
from flip_ctr.modeling_flip.histories_flip import read_histories
from flip_ctr.modeling_flip.id_tower import BUILT_IN_TOWERS, ID_TOWERS, IdTower, register_id_tower
from flip_ctr.modeling_flip.target_attention_flip import FlipTargetAttention

ITEM_SLOTS = 3  # each of the fields of an item has one id


@pytest.fixture(scope="module")
def items() -> list[dict]:
    return items_of(tiny.toy_rows())


@pytest.fixture(scope="module")
def past(tokenizer):
    return FlipProcessor.from_dataset(past_rows(), FIELDS, tokenizer, max_length=96, prompts="entity")


@pytest.fixture(scope="module")
def calm(text_config):
    config = type(text_config).from_dict(text_config.to_dict())
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return config


def compact(processor, rows, items) -> dict[str, torch.Tensor]:
    return FlipCollator(processor)(EncodedDataset(processor, rows, items=items).__getitems__(range(len(rows))))


def click_model(processor, text_config, **settings) -> FlipForCTR:
    settings = {"prompts": "entity", **settings}
    return tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, **settings))).eval()


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- reading


def test_all_forms_of_rows_say_the_same(past, items):
    rows, whole = past_rows(), past_rows(whole=True)
    known = past(rows, items=items)
    assert known["history_ids"].shape == (24, 3, ITEM_SLOTS) and known["history_outcomes"].shape == (24, 3)
    assert known["input_ids"].shape[:2] == (24, 2 + 3)
    arrow = pa.Table.from_pylist(rows)
    for given, of_items in (
        (arrow, pa.Table.from_pylist(items)),
        (arrow.to_pandas(), items),
        ({name: [row[name] for row in rows] for name in rows[0]}, items),
        (whole, None),
        (pa.Table.from_pylist(whole), None),
    ):
        other = past(given, items=of_items)
        for name in known:
            torch.testing.assert_close(other[name], known[name])


def test_the_last_entries_are_kept_in_their_order(past, items):
    rows = past_rows()
    batch = past(rows, items=items)
    ids = {row["movie_id"]: ids[3] for row, ids in zip(rows, batch["feature_ids"].tolist())}
    for row, of_row, outcomes in zip(rows, batch["history_ids"].tolist(), batch["history_outcomes"].tolist()):
        kept = row["history"][-3:]
        assert [entry[0] for entry in of_row] == [ids[entry["movie_id"]] for entry in kept] + [0] * (3 - len(kept))
        assert outcomes == [1 + entry["clicked"] for entry in kept] + [0] * (3 - len(kept))


def test_an_entry_has_the_prompt_of_its_item(past, items):
    rows = past_rows()
    batch = compact(past, rows, items)
    prompt_of = {row["movie_id"]: index[1] for row, index in zip(rows, batch["prompt_index"].tolist())}
    for row, index in zip(rows, batch["prompt_index"].tolist()):
        kept = row["history"][-3:]
        assert index[2 : 2 + len(kept)] == [prompt_of[entry["movie_id"]] for entry in kept]
    assert len(batch["input_ids"]) == 7 + 9  # users and items: no prompt comes twice


def test_one_row_is_a_row(past, items):
    row = past_rows()[-3]
    one, many = past(row, items=items), past([row], items=items)
    assert one["history_outcomes"].shape == (1, 3)
    torch.testing.assert_close(one["history_ids"], many["history_ids"])


@pytest.mark.parametrize(
    "history, message",
    [
        ("101", r"column 'history', row 2: a history is a list of entries, got '101'"),
        ([101], r"column 'history', row 2: an entry is a dict with movie_id and clicked, got 101"),
        ([{"movie_id": 101}], r"column 'history', row 2: an entry needs movie_id, clicked; one has no 'clicked'"),
        (None, r"column 'history', row 2: null, and the schema forbids nulls here; \[\] where nothing was before"),
        (float("nan"), r"column 'history', row 2: null"),
        ([{"movie_id": 101, "clicked": 2}], r"column 'history.clicked', row 2: expected 0 or 1"),
        ([{"movie_id": 101, "clicked": None}], r"column 'history.clicked', row 2: null"),
        ([{"movie_id": "x", "clicked": 1}], r"column 'history.movie_id', row 2: expected int"),
        ([{"movie_id": 7, "clicked": 1}], r"column 'history', row 2: movie_id '7' is no known item"),
    ],
)
def test_errors_name_the_row(past, items, history, message):
    rows = [row | {"history": []} for row in past_rows(4)]
    rows[2]["history"] = history
    with pytest.raises(ValueError, match=message):
        past(rows, items=items)


def test_what_is_missing_is_named(past, items):
    rows = [{name: value for name, value in row.items() if name != "history"} for row in past_rows(2)]
    with pytest.raises(ValueError, match="column 'history' is missing in row 0"):
        past(rows, items=items)
    with pytest.raises(
        ValueError,
        match="row 1?[0-9]: an entry needs movie_id, clicked and, as no items are given \\(items=, --items\\), title, "
        "genre; one has no 'title'",
    ):
        past(past_rows())
    with pytest.raises(ValueError, match="items: movie_id '100' has 2 rows"):
        past(past_rows(), items=[*items, items[0]])


def test_tables_say_what_entries_lack(past, items):
    rows = [row | {"history": row["history"][:1]} for row in past_rows()]
    for history, message in (
        (pa.array([[None]] * 24, pa.list_(pa.struct({"movie_id": pa.int64(), "clicked": pa.int8()}))), "row 0: null"),
        (pa.array([[{"movie_id": 100}]] * 24), "an entry needs movie_id, clicked; the entries have movie_id"),
        (pa.array([[100]] * 24), "row 0: an entry is a dict with movie_id and clicked, got 100"),
        (pa.nulls(24), "row 0: null"),
        (pa.array(["100"] * 24), "row 0: a history is a list of entries, got '100'"),
    ):
        table = pa.Table.from_pylist(rows).drop_columns("history").append_column("history", history)
        with pytest.raises(ValueError, match=message):
            past(table, items=items)


def test_what_is_beyond_the_last_entries_is_not_read(past, items):
    rows = past_rows()
    known = past(rows, items=items)
    for given in (
        [
            row | {"history": [{"movie_id": 7, "clicked": 5}] * (len(row["history"]) > 2) + row["history"][-3:]}
            for row in rows
        ],
    ):
        for form in (given, pa.Table.from_pylist(given)):
            torch.testing.assert_close(past(form, items=items)["history_ids"], known["history_ids"])


def test_only_items_that_are_named_are_encoded(past, items):
    row = past_rows()[-3]
    more = items + [{"movie_id": 1000 + n, "title": f"Other {n}", "genre": None} for n in range(50)]
    encoded = past.encode([row], items=more)
    assert len(encoded.histories.item_ids) == len({entry["movie_id"] for entry in row["history"][-3:]})
    kept = past.read_items(more)
    assert past.read_items(kept) is kept
    torch.testing.assert_close(past([row], items=kept)["history_ids"], past([row], items=items)["history_ids"])


def test_a_history_is_of_one_key():
    with pytest.raises(ValueError, match="'history_of' must name|`history_of` must name"):
        FlipField("history", "int", kind="history")
    with pytest.raises(
        ValueError, match=r"must name a field that is a `key` \(user_id, movie_id, title\); got 'genre'"
    ):
        read_fields([*tiny.FIELDS, FlipField("history", kind="history", history_of="genre")])
    with pytest.raises(ValueError, match="history, later: a row has one history at most"):
        read_fields([*FIELDS, FlipField("later", "int", kind="history", history_of="movie_id")])
    with pytest.raises(ValueError, match="`type` must be that of 'movie_id', 'int'; got 'string'"):
        read_fields([*tiny.FIELDS, FlipField("history", kind="history", history_of="movie_id")])
    with pytest.raises(ValueError, match="field 'clicked': an entry of 'history' has 'clicked' beside its item"):
        read_fields([*FIELDS, FlipField("clicked", entity="item")])
    with pytest.raises(ValueError, match="`history_of` is of kind 'history'"):
        FlipField("title", history_of="movie_id")


def test_numbers_on_the_id_side_alone_are_of_the_row(items):
    rate = FlipField("movie_id_click_rate", "float", kind="numeric", entity="item", sides=("id",))
    _, _, columns = read_histories(past_rows(whole=True), [*FIELDS, rate])
    assert set(columns) == set(OF_ITEM)


# --- the model


def test_target_attention_equals_a_loop():
    attention = tiny.shake(FlipTargetAttention(5, 6, 7))
    target, vectors = torch.randn(4, 5), torch.randn(4, 3, 6)
    outcomes = torch.tensor([[1, 2, 2], [2, 0, 0], [0, 0, 0], [1, 1, 0]])
    result = attention(target, attention.entry(vectors), outcomes)
    for row in range(4):
        query = attention.target(target[row]).view(4, 16)
        entries = [attention.entry(vector).view(2, 4, 16) for vector in vectors[row]]
        known = [n for n in range(3) if outcomes[row, n] > 0]
        said, ratios = [], []
        for head in range(4):
            scores = torch.stack(
                [query[head] @ entries[n][0, head] / 4 for n in known] + [attention.nothing[head]]
            ).softmax(0)
            shares = []
            for outcome in (2, 1):
                of_outcome = [(scores[at], n) for at, n in enumerate(known) if outcomes[row, n] == outcome]
                said.append(sum((weight * entries[n][1, head] for weight, n in of_outcome), torch.zeros(16)))
                shares.append(sum((weight for weight, _ in of_outcome), torch.tensor(0.0)) + 0.05)
            ratios.append((shares[0] / shares[1]).log())
        clicked, others = ((outcomes[row] == outcome).sum().float() for outcome in (2, 1))
        facts = [((clicked + 2) / (others + 2)).log(), (clicked + others + 1).log()]
        expected = attention.output(torch.cat([*said, torch.stack([*ratios, *facts])]))
        torch.testing.assert_close(result[row], expected)


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_items_of_histories_that_stand_once_are_looked_up(rows):
    """Of rows with a history each, and of rows that share one: the same values and gradients as of entries written
    out."""
    attention = tiny.shake(FlipTargetAttention(5, 6, 7)).double()
    shape = (4, 64) if rows is None else (4, rows, 64)
    query, items = torch.randn(shape, dtype=torch.double), torch.randn(9, 128, dtype=torch.double)
    places, outcomes = torch.randint(9, (4, 8)), torch.randint(3, (4, 8))
    found = []
    for entries_of in (lambda table: (table, outcomes, places), lambda table: (table[places], outcomes)):
        attention.zero_grad()
        leaves = [query.clone().requires_grad_(), items.clone().requires_grad_()]
        said = attention.attend(leaves[0], *entries_of(leaves[1]))
        said.square().sum().backward()
        gradients = [one.grad for one in (*leaves, *attention.parameters()) if one.grad is not None]
        assert len(gradients) == 5 and all(one.abs().sum() > 0 for one in gradients)
        found.append([said.detach(), *gradients])
    for value, expected in zip(*found):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("strategy", ["id", "plm", "joint", "frozen"])
def test_both_forms_are_the_same(past, calm, items, strategy):
    rows = past_rows()
    labels = torch.tensor([row["label"] for row in rows])
    model = click_model(past, calm, strategy=strategy).train()
    outputs, found = [], []
    for batch in (compact(past, rows, items), past(rows, items=items)):
        model.zero_grad()
        output = model(**{name: value for name, value in batch.items() if name != "labels"}, labels=labels)
        output.loss.backward()
        outputs.append(output)
        found.append(gradients(model))
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)
    assert found[0].keys() == found[1].keys() and any("history" in name for name in found[0])
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("strategy", ["id", "plm", "joint"])
def test_what_came_before_counts_and_what_is_not_there_does_not(past, calm, items, strategy):
    model, rows = click_model(past, calm, strategy=strategy), past_rows()
    scores = model(**past(rows, items=items)).logits
    alone = torch.cat([model(**past([row], items=items)).logits for row in rows])
    torch.testing.assert_close(scores, alone)  # the padding behind a shorter history is not read
    none = [row | {"history": []} for row in rows]
    empty = model(**past(none, items=items)).logits
    batch = past(none, items=items)
    without = {name: value for name, value in batch.items() if not name.startswith("history")}
    if strategy != "id":
        without |= {name: batch[name][:, :2] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**without).logits, empty)
    has = torch.tensor([bool(row["history"]) for row in rows])
    assert ((scores - empty).abs() > 1e-4)[has].all() and torch.allclose(scores[~has], empty[~has])
    turned = [row | {"history": [e | {"clicked": 1 - e["clicked"]} for e in row["history"]]} for row in rows]
    assert ((model(**past(turned, items=items)).logits - scores).abs() > 1e-4)[has].any()


@pytest.mark.parametrize("tower", BUILT_IN_TOWERS)
def test_each_tower_sees_a_history_as_one_more_field(past, items, tower, tmp_path):
    id_only, rows = past.without_tokenizer(), past_rows()
    batch = compact(id_only, rows, items)
    model = tiny.shake(FlipForCTR(tiny.flip_config(id_only.fields, id_tower=tower, strategy="id")), 0.1)
    assert model.flip.id_tower.num_fields == 6 + 1
    model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.flip.id_tower.history.entry.weight.grad.abs().sum() > 0
    model.eval().save_pretrained(tmp_path)
    torch.testing.assert_close(FlipForCTR.from_pretrained(tmp_path).eval()(**batch).logits, model(**batch).logits)


def test_row_prompts_leave_histories_to_the_id_side(tokenizer, calm, items):
    processor = FlipProcessor.from_dataset(past_rows(), FIELDS, tokenizer, max_length=96)
    batch = processor(past_rows(), items=items)
    assert batch["input_ids"].ndim == 2 and batch["history_ids"].shape == (24, 3, ITEM_SLOTS)
    model = click_model(processor, calm, prompts="row", strategy="joint")
    empty = processor([row | {"history": []} for row in past_rows()], items=items)
    with_past, without = model(**batch), model(**empty)
    torch.testing.assert_close(with_past.text_logits, without.text_logits)
    assert not torch.allclose(with_past.id_logits, without.id_logits)


def test_as_many_outcomes_as_prompts(past, calm, items):
    batch = dict(past(past_rows(), items=items))
    batch["history_outcomes"] = batch["history_outcomes"][:, :2]
    with pytest.raises(ValueError, match="prompts of 3 entries of its history.*`history_outcomes` of 2"):
        click_model(past, calm, strategy="plm")(**batch)


def test_a_grown_model_scores_as_before(past, calm, items, tmp_path):
    past.save_pretrained(tmp_path)
    processor = FlipProcessor.from_pretrained(tmp_path)
    model, rows = click_model(processor, calm, strategy="joint"), past_rows()
    before = model(**processor(rows, items=items)).logits
    new = [row | {"user_id": 99, "movie_id": 999} for row in rows[:2]]
    assert processor.grow(new)["movie_id"] == 1
    model.grow(processor.fields)
    torch.testing.assert_close(model(**processor(rows, items=items)).logits, before, rtol=0, atol=0)


class Plain(IdTower):
    """A tower of one's own that knows no histories."""

    def forward(self, feature_ids, text_embeds=None):
        return self.encode(self.embed(self.embeddings, feature_ids, []))


def test_a_tower_that_knows_no_histories_is_refused(past):
    register_id_tower("plain")(Plain)
    try:
        with pytest.raises(ValueError, match="Plain: its `forward` takes no `history_ids`.*leave `id` out"):
            FlipForCTR(tiny.flip_config(past.fields, id_tower="plain", strategy="id"))
        fields = [field | {"sides": ["text"]} if field["kind"] == "history" else field for field in past.fields]
        assert FlipForCTR(tiny.flip_config(fields, id_tower="plain", strategy="id")).flip.id_tower.history is None
    finally:
        ID_TOWERS.pop("plain")


# --- batches


@pytest.mark.parametrize("size", [1, 5, 24])
def test_a_mapped_dataset_trains_whatever_its_batches(past, calm, items, size):
    """Tables lose the shape of an empty array."""
    rows, kept = past_rows(), past.read_items(items)
    mapped = datasets.Dataset.from_list(rows).map(
        lambda batch: dict(past(batch, items=kept)), batched=True, batch_size=size, remove_columns=list(rows[0])
    )
    batch = FlipCollator(past)([mapped[number] for number in range(24)])
    model = click_model(past, calm, strategy="joint")
    torch.testing.assert_close(model(**batch).logits, model(**past(rows, items=items)).logits)


def test_a_list_of_rows_is_padded(past, calm, items):
    rows = past_rows()
    features = [{name: value[0] for name, value in past([row], items=items).items()} for row in rows]
    together, model = FlipCollator(past)(features), click_model(past, calm, strategy="joint")
    torch.testing.assert_close(model(**together).logits, model(**past(rows, items=items)).logits)


def test_histories_are_cut_by_seed_and_epoch(past, items):
    dataset = EncodedDataset(past, past_rows(), items=items)
    whole = compact(past, past_rows(), items)["history_outcomes"]
    collator, seen = FlipCollator(past, short_history_rate=1.0), set()
    for epoch in range(8):
        collator.set_epoch(epoch)
        outcomes = collator(dataset.__getitems__(range(24)))["history_outcomes"]
        again = collator(dataset.__getitems__([5, 23]))["history_outcomes"]
        longest = again.shape[1]
        torch.testing.assert_close(again, outcomes[[5, 23], :longest])
        for cut, full in zip(outcomes.tolist(), whole.tolist()):
            kept = [outcome for outcome in cut if outcome]
            entries = [outcome for outcome in full if outcome]
            assert kept == entries[len(entries) - len(kept) :] and cut[: len(entries)][-len(kept) or len(cut) :] == kept
            seen.add((len(entries), len(kept)))
    assert {kept for entries, kept in seen if entries == 3} == {0, 1, 2, 3}
    half = FlipCollator(past, short_history_rate=0.0)(dataset.__getitems__(range(24)))
    assert torch.equal(half["history_outcomes"], whole)


@pytest.mark.parametrize("prompts", ["row", "entity"])
def test_pretraining_reads_no_history(tokenizer, calm, items, prompts):
    processor = FlipProcessor.from_dataset(past_rows(), FIELDS, tokenizer, max_length=96, prompts=prompts)
    config = tiny.flip_config(processor.fields, calm, prompts=prompts)
    model = tiny.shake(FlipForPretraining(config), 0.1).train()
    model.set_feature_counts(torch.from_numpy(processor.count_features(past_rows())))
    reader = processor.without_history()
    batch = FlipPretrainingCollator(reader)(EncodedDataset(reader, past_rows()).__getitems__(range(24)))
    assert not any(name.startswith("history") for name in batch)
    output = model(**batch)
    output.loss.backward()
    # what a click model goes on with is there, and has a gradient, so that many processes can exchange it
    assert model.flip.id_tower.history.entry.weight.grad is not None
    listed = [{name: value[0] for name, value in processor([row], items=items).items()} for row in past_rows()]
    seeds = []
    for features in (listed, [{k: v for k, v in one.items() if "history" not in k} for one in listed]):
        torch.manual_seed(3)
        seeds.append(FlipPretrainingCollator(processor)(features))
    assert seeds[0].keys() == seeds[1].keys()
    assert all(torch.equal(seeds[0][name], seeds[1][name]) for name in seeds[0])


def test_hashed_users_change_nothing_of_histories(tokenizer, items):
    open_, hashed = (
        FlipProcessor.from_dataset(past_rows(), FIELDS, tokenizer, max_length=96, hash_user_values=flag)
        for flag in (False, True)
    )
    one, other = open_(past_rows(), items=items), hashed(past_rows(), items=items)
    assert torch.equal(one["history_ids"], other["history_ids"]) and np.array_equal(
        one["history_outcomes"], other["history_outcomes"]
    )
