"""Masks of pretraining: whole values, enough of them, and a pure function of (seed, epoch, row)."""

import dataclasses

import numpy as np
import pytest
import tiny

from flip_ctr import FlipField, FlipProcessor
from flip_ctr.data.batches.collators import FlipCollator, FlipPretrainingCollator, pick, row_uniform
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.modeling_flip.fields_flip import MASK_ID, UNK_ID

UNITS = ["field", "entity", "token"]
ROWS = tiny.toy_rows(200)


@pytest.fixture(scope="module")
def dataset(tokenizer):
    return EncodedDataset(FlipProcessor.from_dataset(ROWS, tiny.FIELDS, tokenizer, max_length=96), ROWS)


def collate(dataset, rows=range(len(ROWS)), epoch=0, seed=0, **masks) -> dict[str, np.ndarray]:
    """A batch as the collator makes it, with its rows and token fields."""
    collator = FlipPretrainingCollator(dataset.processor, seed, **masks)
    collator.set_epoch(epoch)
    raw = dataset.__getitems__(list(rows))
    token_fields = raw["token_fields"].copy()
    return {name: tensor.numpy() for name, tensor in collator(raw).items()} | {"token_fields": token_fields}


def entities_of(fields) -> list[int]:
    names = list(dict.fromkeys(field.entity for field in fields))
    return [names.index(field.entity) for field in fields]


# --- random numbers


def test_row_uniform_is_roughly_uniform():
    numbers = row_uniform(0, 0, 0, np.arange(5000), 8)
    assert numbers.shape == (5000, 8) and numbers.min() >= 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert (abs(counts / 2000 - 1) < 0.1).all()
    assert abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.06
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.06


def test_row_uniform_is_a_function_of_the_row_not_of_its_place():
    numbers = row_uniform(3, 1, 2, np.arange(100), 5)
    order = np.random.default_rng(0).permutation(100)[:30]
    assert (row_uniform(3, 1, 2, order, 5) == numbers[order]).all()
    assert (row_uniform(3, 1, 2, np.arange(100), 9)[:, :5] == numbers).all()  # wider batches draw the same


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_row_uniform_differs_by_seed_epoch_and_stream(other):
    one, two = row_uniform(0, 0, 0, np.arange(2000), 3), row_uniform(*other, np.arange(2000), 3)
    assert (one != two).all() and abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(("ratio", "wanted"), [(0.01, 1), (0.15, 1), (0.25, 2), (0.5, 3), (0.99, 6)])
def test_pick_takes_the_share_but_at_least_one(ratio, wanted):
    uniform = np.random.default_rng(0).random((4000, 8))
    eligible = np.arange(8) < 6
    picked = pick(uniform, np.broadcast_to(eligible, uniform.shape), ratio)
    assert (picked.sum(1) == wanted).all() and not picked[:, 6:].any()
    assert (abs(picked.mean(0)[:6] - wanted / 6) < 0.03).all()  # none is preferred
    assert not pick(uniform, np.zeros((4000, 8), bool), ratio).any()


# --- text masks


@pytest.mark.parametrize("unit", UNITS)
def test_text_masks_touch_values_only(dataset, tokenizer, unit):
    batch = collate(dataset, mask_unit=unit)
    masked = batch["mlm_labels"] != -100
    assert masked.any(1).all()  # at least one a row
    assert not masked[batch["token_fields"] == -1].any()  # template, special tokens and padding never
    assert (batch["masked_input_ids"][masked] == tokenizer.mask_token_id).all()
    assert (batch["masked_input_ids"][~masked] == batch["input_ids"][~masked]).all()
    assert (batch["mlm_labels"][masked] == batch["input_ids"][masked]).all()
    assert not np.isin(batch["mlm_labels"][masked], [tokenizer.cls_token_id, tokenizer.sep_token_id, 0]).any()


@pytest.mark.parametrize(("unit", "ratio"), [("field", 0.15), ("field", 0.5), ("entity", 0.15), ("entity", 0.9)])
def test_whole_fields_and_entities_are_masked(dataset, unit, ratio):
    batch = collate(dataset, mask_unit=unit, text_mask_ratio=ratio)
    groups = entities_of(dataset.processor.text_fields) if unit == "entity" else range(4)
    numbers = []
    for labels, fields in zip(batch["mlm_labels"], batch["token_fields"]):
        whole = {}
        for label, field in zip(labels, fields):
            if field >= 0:
                whole.setdefault(groups[field], set()).add(label != -100)
        assert all(len(seen) == 1 for seen in whole.values())
        numbers.append(sum(seen == {True} for seen in whole.values()))
    total = len(set(groups))
    assert set(numbers) == {max(1, int(ratio * total + 0.5))}


def test_token_masks_split_values(dataset):
    batch = collate(dataset, mask_unit="token", text_mask_ratio=0.3)
    values = (batch["token_fields"] >= 0).sum(1)
    assert ((batch["mlm_labels"] != -100).sum(1) == np.floor(0.3 * values + 0.5)).all()
    split = 0
    for labels, fields in zip(batch["mlm_labels"], batch["token_fields"]):
        split += any(len({label != -100 for label in labels[fields == field]}) > 1 for field in range(4))
    assert split > 100


def test_a_value_without_tokens_is_no_target(tokenizer):
    """A value of characters that the tokenizer drops leaves nothing to predict: another field is masked."""
    fields = [FlipField("a", max_tokens=4), FlipField("b", max_tokens=4)]
    rows = [{"a": "\u200b", "b": "drama"}] * 20
    processor = FlipProcessor.from_dataset(rows, fields, tokenizer)
    batch = collate(EncodedDataset(processor, rows), range(20))
    assert ((batch["mlm_labels"] != -100).sum(1) == 1).all() or "[UNK]" in tokenizer.tokenize("\u200b")


# --- ID masks


@pytest.mark.parametrize(("unit", "ratio"), [("field", 0.15), ("field", 0.5), ("entity", 0.15), ("token", 0.15)])
def test_id_masks(dataset, unit, ratio):
    batch = collate(dataset, mask_unit=unit, id_mask_ratio=ratio)
    masked = batch["mtm_labels"] != -100
    assert (batch["masked_feature_ids"][masked] == MASK_ID).all()
    assert (batch["masked_feature_ids"][~masked] == batch["feature_ids"][~masked]).all()
    assert (batch["mtm_labels"][masked] == batch["feature_ids"][masked]).all()
    assert (batch["mtm_labels"][masked] >= 4).all()  # reserved ids are never targets
    if unit == "entity":
        user, item = masked[:, :3], masked[:, 3:]
        real = batch["feature_ids"] >= 4
        assert ((user == real[:, :3]).all(1) & ~item.any(1) | (item == real[:, 3:]).all(1) & ~user.any(1)).all()
    else:
        real = (batch["feature_ids"] >= 4).sum(1)
        assert (masked.sum(1) == np.maximum(1, np.floor(ratio * real + 0.5))).all()


def test_rows_of_reserved_ids_have_no_target(dataset):
    rows = [{field.name: None for field in tiny.FIELDS} | {"title": "New"}] * 3
    batch = tiny.pretraining_batch(dataset.processor, rows)
    assert (batch["mtm_labels"] == -100).all() and (batch["masked_feature_ids"] == batch["feature_ids"]).all()


# --- fields of several values

KIND_ROWS = tiny.kind_rows(200)
SLOT_FIELDS = np.array([0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6, 7])


@pytest.fixture(scope="module")
def kinds(kind_processor):
    return EncodedDataset(kind_processor, KIND_ROWS)


@pytest.mark.parametrize(("unit", "ratio"), [("field", 0.15), ("field", 0.6), ("entity", 0.15), ("token", 0.15)])
def test_the_values_of_a_field_are_masked_together(kinds, unit, ratio):
    unseen = [row | {"genres": ["New", *(row["genres"] or [])]} for row in KIND_ROWS]
    dataset = EncodedDataset(kinds.processor, unseen)
    batch = collate(dataset, mask_unit=unit, id_mask_ratio=ratio)
    ids, masked, labels = (batch[name] for name in ("feature_ids", "masked_feature_ids", "mtm_labels"))
    assert ids.shape == masked.shape == labels.shape == (200, 13) and batch["noise_uniform"].shape == (200, 13, 25)
    several = 0
    for b in range(200):
        chosen = []
        for field in range(8):
            own, seen, wanted = (array[b, field == SLOT_FIELDS].tolist() for array in (ids, masked, labels))
            chosen.append(seen != own)
            if not chosen[-1]:
                assert wanted == [-100] * len(own)
                continue
            assert any(one >= 4 for one in own)  # a null, or unknown values alone, are not masked
            assert seen == [0 if one == 0 else MASK_ID for one in own]  # pad stays, `[UNK]` is masked with the others
            assert wanted == [one if one >= 4 else -100 for one in own]  # each value is a target, `[UNK]` never
            several += sum(one >= 4 for one in own) > 1
        real = [any(one >= 4 for one in ids[b, field == SLOT_FIELDS]) for field in range(8)]
        groups = entities_of(tiny.KIND_FIELDS) if unit == "entity" else list(range(8))
        number = len({group for group, has in zip(groups, real) if has})
        assert len({group for group, is_chosen in zip(groups, chosen) if is_chosen}) == max(
            1, int(ratio * number + 0.5)
        )
    assert several > 20


def test_a_list_is_one_field_of_the_text(kinds):
    batch = collate(kinds)
    for labels, fields in zip(batch["mlm_labels"], batch["token_fields"]):
        assert all(len(set(labels[fields == field] != -100)) <= 1 for field in range(5))


def test_masks_of_lists_do_not_depend_on_the_batch(kinds):
    whole, part = collate(kinds), collate(kinds, [150, 3])
    for name in ("mtm_labels", "masked_feature_ids", "noise_uniform"):
        assert (part[name] == whole[name][[150, 3]]).all()


def test_keys_are_dropped_at_their_slots(kinds):
    batch = collate(kinds, unk_rate=0.5)
    before = kinds.encoded.feature_ids
    changed = batch["feature_ids"] != before
    assert changed[:, [0, 5]].any(0).all() and not np.delete(changed, [0, 5], axis=1).any()  # user_id and movie_id


# --- purity and independence


@pytest.mark.parametrize("unit", UNITS)
def test_masks_do_not_depend_on_the_batch(dataset, unit):
    whole = collate(dataset, mask_unit=unit, epoch=3)
    order = np.random.default_rng(0).permutation(len(ROWS))
    for rows in (order[:7], order[7:8], order[100:]):
        part = collate(dataset, rows, mask_unit=unit, epoch=3)
        width = part["input_ids"].shape[1]
        for name in ("mlm_labels", "masked_input_ids"):
            assert (part[name] == whole[name][rows, :width]).all()
        for name in ("mtm_labels", "masked_feature_ids"):
            assert (part[name] == whole[name][rows]).all()


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 1}])
def test_masks_change_with_epoch_and_seed(dataset, change):
    one, two = collate(dataset), collate(dataset, **change)
    for name in ("mlm_labels", "mtm_labels"):
        assert 0.3 < (one[name] != two[name]).any(1).mean() < 1


def test_text_and_id_masks_are_independent(dataset):
    """Which field is masked in the text says nothing of which is masked among the ids."""
    rows = np.arange(len(ROWS))
    table = np.zeros((2, 2))
    for epoch in range(30):
        batch = collate(dataset, rows, epoch=epoch, mask_unit="entity")
        text = (batch["mlm_labels"] != -100) & (batch["token_fields"] < 2)
        ids = batch["mtm_labels"][:, :3] != -100
        np.add.at(table, (text.any(1).astype(int), ids.any(1).astype(int)), 1)
    share = table / table.sum()
    assert abs(share - np.outer(share.sum(1), share.sum(0))).max() < 0.02


# --- unknown keys


def test_key_ids_of_an_entity_are_dropped_together(dataset):
    dropped = []
    for epoch in range(20):
        collator = FlipCollator(dataset.processor, seed=0, unk_rate=0.2)
        collator.set_epoch(epoch)
        ids = collator(dataset.__getitems__(list(range(len(ROWS)))))["feature_ids"].numpy()
        changed = ids != dataset.encoded.feature_ids
        assert (ids[changed] == UNK_ID).all()
        user, movie, title = changed[:, 0], changed[:, 3], changed[:, 4]
        assert (movie == title).all() and not changed[:, [1, 2, 5]].any()  # keys only
        dropped += [user, movie]
    rates = np.array(dropped).mean(1)
    assert abs(rates.mean() - 0.2) < 0.02
    assert abs(np.corrcoef(np.concatenate(dropped[::2]), np.concatenate(dropped[1::2]))[0, 1]) < 0.06


def test_cold_users_and_items_are_new_in_all_their_rows_for_an_epoch(dataset):
    """Another share of the users and of the items each epoch, and who is new says nothing of what is."""
    rows, known = list(range(len(ROWS))), dataset.encoded.feature_ids
    shares, drawn = [], []
    for epoch in range(20):
        collator = FlipCollator(dataset.processor, seed=0, cold_rate=0.2)
        collator.set_epoch(epoch)
        ids = collator(dataset.__getitems__(rows))["feature_ids"].numpy()
        changed = ids != known
        assert (ids[changed] == UNK_ID).all() and not changed[:, [1, 2, 5]].any()  # keys only
        assert (changed[:, 3] == changed[:, 4]).all()  # the item's two keys
        for slots in ([0], [3, 4]):
            keys, of_row = np.unique(known[:, slots], axis=0, return_inverse=True)
            cold = np.bincount(of_row.ravel(), changed[:, slots[0]]) / np.bincount(of_row.ravel())
            assert set(cold) <= {0.0, 1.0}  # all rows of a key, or none
            shares.append(cold.mean())
            drawn.append(tuple(cold))
        shuffled = collator(dataset.__getitems__(rows[::-1]))["feature_ids"].numpy()[::-1]
        assert (shuffled == ids).all()
    assert 0.15 < np.mean(shares) < 0.25
    assert len(set(drawn)) > 20


def test_dropped_keys_are_no_targets_and_the_dataset_stays_as_it_is(dataset):
    before = dataset.encoded.feature_ids.copy()
    batch = collate(dataset, unk_rate=0.9, id_mask_ratio=0.5)
    assert (batch["feature_ids"] == UNK_ID).sum() > 300
    assert not (batch["mtm_labels"] == UNK_ID).any() and (dataset.encoded.feature_ids == before).all()


def test_without_a_rate_nothing_is_dropped(dataset):
    batch = FlipCollator(dataset.processor)(dataset.__getitems__([5, 3]))
    assert (batch["feature_ids"].numpy() == dataset.encoded.feature_ids[[5, 3]]).all()
    assert set(batch) == {"feature_ids", "input_ids", "attention_mask", "labels"}


def test_labels_never_reach_pretraining(dataset):
    assert not {"labels", "sample_weight"} & set(collate(dataset))


# --- refusals


def test_a_tokenizer_without_a_mask_token_is_refused():
    processor = FlipProcessor.from_dataset(ROWS[:5], tiny.FIELDS, tiny.gpt2())
    with pytest.raises(ValueError, match="no mask token.*or fine-tune this PLM directly"):
        FlipPretrainingCollator(processor)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"mask_unit": "word"}, "mask_unit must be one of field, entity, token; got 'word'"),
        ({"text_mask_ratio": 0.0}, "text_mask_ratio must lie between 0 and 1; got 0.0"),
        ({"id_mask_ratio": 15}, "id_mask_ratio must lie between 0 and 1; got 15"),
    ],
)
def test_wrong_settings_are_refused(processor, masks, message):
    with pytest.raises(ValueError, match=message):
        FlipPretrainingCollator(processor, **masks)


def test_a_view_of_one_entity_is_masked_by_field(tokenizer):
    """Else all of it would be masked, and nothing to recover it from."""
    fields = [dataclasses.replace(field, entity="context") for field in tiny.FIELDS]
    rows = tiny.toy_rows()
    processor = FlipProcessor.from_dataset(rows, fields, tokenizer, max_length=96)
    for unit in ("entity", "field"):
        batch = tiny.pretraining_batch(processor, rows, mask_unit=unit)
        assert ((batch["mtm_labels"] != -100).sum(1) == 1).all()  # .15 of six fields
