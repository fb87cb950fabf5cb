"""Pairs that are drawn from rows, and rows that a teacher has scored."""

import numpy as np
import pyarrow as pa
import pytest
import tiny

from flip_ctr import FlipField, FlipProcessor
from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.pairs import RowPairs, TaughtRows

ITEM = {"movie_id", "title", "genre"}
PER_ROW = 3
HISTORY = FlipField(
    "seen", "int", kind="history", history_of="movie_id", max_values=4, entity="user", sides=("id", "text")
)


def rows_with_histories() -> tuple[list[dict], list[dict]]:
    """Rows of different histories, and the items that they name."""
    rows = tiny.toy_rows(24)
    items = list({row["movie_id"]: {name: row[name] for name in ITEM} for row in rows}.values())
    for number, row in enumerate(rows):
        row["seen"] = [{"movie_id": 100 + (number + n) % 9, "clicked": n % 2} for n in range(number % 5)]
    return rows, items


@pytest.fixture(params=["ids", "row prompts", "entity prompts", "histories"])
def made(request, tokenizer):
    """A dataset, its rows, and the items of histories."""
    rows, items = rows_with_histories()
    fields = [*tiny.FIELDS, HISTORY] if request.param == "histories" else tiny.FIELDS
    settings = {} if request.param == "ids" else {"prompts": "row" if request.param == "row prompts" else "entity"}
    processor = FlipProcessor.from_dataset(rows, fields, None if request.param == "ids" else tokenizer, **settings)
    items = items if request.param == "histories" else None
    return EncodedDataset(processor, rows, items=items), rows, items


def test_a_pair_has_the_item_of_another_row_and_all_else_of_its_own(made):
    dataset, rows, items = made
    pairs = RowPairs(dataset, ITEM, PER_ROW, seed=1)
    assert len(pairs) == 4 * len(rows)
    numbers = np.arange(len(pairs))
    partners = pairs.partners(numbers)
    assert partners[: len(rows)].tolist() == list(range(len(rows)))  # first come the rows themselves
    crossed = [
        rows[number % len(rows)] | {name: rows[partner][name] for name in ITEM}
        for number, partner in zip(numbers, partners)
    ]
    expected = EncodedDataset(dataset.processor, crossed, items=items)
    picked = [90, 3, 24, 41]
    found, wanted = pairs.__getitems__(picked), expected.__getitems__(picked)
    assert "labels" not in found  # a pair has none
    wanted.pop("labels")
    if "prompt_index" in wanted:  # the same prompts, numbered otherwise
        for batch in (found, wanted):
            index = batch.pop("prompt_index")
            batch |= {name: batch[name][index] for name in ("input_ids", "attention_mask", "token_fields")}
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    if dataset.lengths is None:
        assert pairs.lengths is None
    else:
        assert pairs.lengths.tolist() == expected.lengths.tolist()


def test_partners_are_uniform_over_the_rows_and_of_the_seed(id_processor, rows):
    dataset = EncodedDataset(id_processor, rows)
    first, again, other = (RowPairs(dataset, ITEM, 400, seed).partners(np.arange(24, 9600)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).mean() > 0.9
    counts = np.bincount(first, minlength=len(rows))
    assert len(counts) == len(rows) and abs(counts - 399).max() < 100  # five standard deviations


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_has_rows_and_behind_them_the_pairs_of_the_epoch(rows, weight, weighted):
    rows = [row | {"weight": 1.0 + number} for number, row in enumerate(rows)]
    processor = FlipProcessor.from_dataset(rows, tiny.FIELDS, None, weight="weight" if weighted else None)
    dataset = EncodedDataset(processor, pa.Table.from_pylist(rows))
    pairs = RowPairs(dataset, ITEM, PER_ROW, seed=1)
    said = np.random.default_rng(0).random(len(pairs)).astype(np.float32)
    taught = TaughtRows(dataset, pairs, said, weight, "T")
    assert len(taught) == taught.num_rows == len(rows)
    picked = np.array([5, 0, 7])
    for epoch, turn in ((0, 1), (2, 3), (3, 1)):
        taught.set_epoch(epoch)
        batch = taught.__getitems__(picked.tolist())
        numbers = np.concatenate([picked, picked + turn * len(rows)])
        np.testing.assert_array_equal(batch["feature_ids"], pairs.encode(numbers).feature_ids)
        labels = np.array([rows[number]["label"] for number in picked])
        mixed = (1 - weight) * labels + weight * said[picked]
        np.testing.assert_allclose(batch["soft_targets"], np.concatenate([mixed, said[numbers[3:]]]), rtol=1e-6)
        wanted = np.repeat([1.0, weight], 3) * (np.tile(1.0 + picked, 2) if weighted else 1)
        assert ("sample_weight" in batch) == (weighted or weight < 1)
        np.testing.assert_allclose(batch.get("sample_weight", np.ones(6)), wanted)
        inputs = FlipCollator(processor, unk_rate=0.5)(batch)
        assert "labels" not in inputs and inputs["soft_targets"].shape == (6,)
    alone = TaughtRows(dataset, RowPairs(dataset, ITEM, 0, seed=1), said[: len(rows)], weight, "T")
    assert len(alone.__getitems__([5, 0, 7])["feature_ids"]) == 3
