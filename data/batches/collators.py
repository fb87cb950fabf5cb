# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Collators: batches of [`EncodedDataset`], or a list of features, -> model inputs, with the masks of pretraining.

In the training loop of this package every random choice is a pure function of (seed, epoch, row), or of (seed, epoch,
prompt), so that resuming and many processes see the same ones. A list of features, as `transformers.Trainer` has it,
names no rows and no epoch: choices then follow from torch's random state, which a Trainer saves and restores.
"""

import copy
from typing import Any

import numpy as np
import torch

from flip_ctr.modeling_flip.fields_flip import MASK_ID, NUM_RESERVED_IDS, PAD_ID, UNK_ID
from flip_ctr.modeling_flip.histories_flip import NO_ENTRY
from flip_ctr.modeling_flip.losses_flip import IGNORE_INDEX
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.prompt_tables_flip import NO_FIELD
from flip_ctr.modeling_flip.prompts_flip import integer_keys, prompt_keys

MASK_UNITS = ("field", "entity", "token")
# independent streams of random numbers for one row
TEXT_MASK, ID_MASK, UNKNOWN, NOISE, PAIRS, COLD, HISTORY, PARTNER = range(8)
PROMPT_ARRAYS = ("input_ids", "attention_mask", "token_fields")
HISTORY_ARRAYS = ("history_ids", "history_outcomes")


def row_uniform(seed: int, epoch: int, stream: int, rows: np.ndarray, columns: int) -> np.ndarray:
    """Counter-based uniform numbers in [0, 1): `(len(rows), columns)`, a pure function of all arguments
    (SplitMix64)."""

    def mix(state):
        state = (state + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(0xFFFFFFFFFFFFFFFF)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        state = np.zeros((), np.uint64)
        for part in (seed, epoch, stream):
            state = mix(state ^ np.uint64(part))
        state = mix(state ^ rows.astype(np.uint64))[:, None]
        state = mix(state ^ np.arange(columns, dtype=np.uint64))
    return (state >> np.uint64(11)) * 2.0**-53


def pick(uniform: np.ndarray, eligible: np.ndarray, ratio: float) -> np.ndarray:
    """Picks about `ratio` of the eligible columns of each row, at least one where there is any: `(B, n)` bool."""
    order = np.where(eligible, uniform, 2.0).argsort(1).argsort(1)
    wanted = np.maximum(1, np.floor(ratio * eligible.sum(1) + 0.5))
    return (order < wanted[:, None]) & eligible


def first_of_each(numbers: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of all places with the same number the one of the lowest score: bool, of the shape of both."""
    order = np.lexsort((scores.ravel(), numbers.ravel()))
    _, first = np.unique(numbers.ravel()[order], return_index=True)
    chosen = np.zeros(numbers.size, bool)
    chosen[order[first]] = True
    return chosen.reshape(numbers.shape)


class FlipCollator:
    """Batches of [`EncodedDataset`], or lists of what [`FlipProcessor`] makes of rows -> `feature_ids`, and where there
    are any `input_ids`, `attention_mask`, `labels`, `soft_targets`, `sample_weight`, as tensors.

    Entity prompts are in the compact form (`prompt_index`) in batches of an `EncodedDataset`, and in the row form in a
    list's, which a `Trainer` may cut along the rows. Prompts are padded to the longest of the batch.

    Args:
        processor: names the fields.
        seed: of all random choices.
        unk_rate: share of (row, entity) pairs whose key ids are dropped to `[UNK]`, so that this id is trained. 0
            outside training.
        cold_rate: share of the users, and of the items, that an epoch treats as new: their key ids are dropped to
            `[UNK]` in all rows (but not in the histories of others, which hold no new items when scoring either). In
            batches of a list each batch draws others. 0 outside training.
        short_history_rate: share of the rows whose history is cut to a random number of its last entries, 0 included,
            so that users with few are learned too. 0 outside training.
    """

    def __init__(
        self,
        processor: FlipProcessor,
        seed: int = 0,
        unk_rate: float = 0.0,
        cold_rate: float = 0.0,
        short_history_rate: float = 0.0,
    ):
        if not hasattr(processor, "feature_extractor"):
            raise TypeError(f"`processor` must be a FlipProcessor; got {processor!r}.")
        self.seed, self.epoch, self.processor = seed, 0, processor
        self.unk_rate, self.cold_rate, self.short_history_rate = unk_rate, cold_rate, short_history_rate
        self.id_fields = [field for field in processor.feature_extractor.all_fields if field.on_id_side]
        self.slot_fields = np.array(processor.feature_extractor.slot_fields)  # (S,)
        keys = [
            (slot, self.id_fields[field].entity)
            for slot, field in enumerate(self.slot_fields)
            if self.id_fields[field].key
        ]
        self.key_slots = [
            [slot for slot, entity in keys if entity == one] for one in dict.fromkeys(entity for _, entity in keys)
        ]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def for_evaluation(self) -> "FlipCollator":
        """The same collator, which drops no ids and cuts no histories."""
        collator = copy.copy(self)
        collator.unk_rate = collator.cold_rate = collator.short_history_rate = 0.0
        return collator

    def drop_keys(self, batch: dict[str, np.ndarray]) -> None:
        """Some rows, and some users and items in all their rows, lose the ids that name them."""
        ids = batch["feature_ids"]
        dropped = row_uniform(self.seed, self.epoch, UNKNOWN, batch["rows"], len(self.key_slots)) < self.unk_rate
        for entity, slots in enumerate(self.key_slots):
            if self.cold_rate > 0:
                keys = integer_keys(torch.from_numpy(ids[:, slots])).numpy()
                uniform = row_uniform(self.seed, self.epoch, COLD, keys, entity + 1)[:, entity]
                dropped[:, entity] |= uniform < self.cold_rate
            for slot in slots:
                ids[dropped[:, entity], slot] = UNK_ID

    def shorten_histories(self, batch: dict[str, np.ndarray]) -> None:
        """Some rows lose all but the last entries of their history."""
        outcomes = batch["history_outcomes"]  # (B, n)
        chosen, share = row_uniform(self.seed, self.epoch, HISTORY, batch["rows"], 2).T
        lengths = (outcomes != NO_ENTRY).sum(1)
        kept = np.where(chosen < self.short_history_rate, (share * (lengths + 1)).astype(np.int64), lengths)
        outcomes[np.arange(outcomes.shape[1]) < (lengths - kept)[:, None]] = NO_ENTRY

    def arrays(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.unk_rate > 0 or self.cold_rate > 0:
            self.drop_keys(batch)
        if self.short_history_rate > 0 and "history_outcomes" in batch:
            self.shorten_histories(batch)
        return {name: values for name, values in batch.items() if name not in ("rows", "token_fields")}

    def read_features(self, features: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """A list of features as a batch: prompts padded to the longest, and labels and weights as the model's."""
        batch: dict[str, np.ndarray] = {"rows": np.arange(len(features))}
        for name in features[0]:
            values = [np.asarray(feature[name]) for feature in features]
            if name in PROMPT_ARRAYS:
                batch[name] = self._padded(name, values)
            elif name in HISTORY_ARRAYS:
                batch[name] = self._padded(name, values, along=0)
            elif name in ("feature_ids", "labels"):
                batch[name] = np.stack(values).astype(np.int64)
            elif name in ("soft_targets", "sample_weight"):
                batch[name] = np.stack(values).astype(np.float32)
        if "attention_mask" in batch:
            longest = batch["attention_mask"].sum(-1).max(initial=0)
            batch |= {name: batch[name][..., :longest] for name in PROMPT_ARRAYS if name in batch}
        return batch

    def _padded(self, name: str, values: list[np.ndarray], along: int = -1) -> np.ndarray:
        """The values of all rows in one array, the shorter ones padded along one of their dimensions. Rows with shorter
        histories have fewer prompts; behind theirs stands the first one, which is read anyway."""
        fillers = {"input_ids": self.processor.pad_token_id, "token_fields": NO_FIELD}
        prompts = max(len(value) for value in values)
        if along == -1 and values[0].ndim == 2:
            values = [np.concatenate([value, np.repeat(value[:1], prompts - len(value), axis=0)]) for value in values]
        longest = max(value.shape[along] for value in values)
        shape = list(values[0].shape)
        shape[along] = longest
        padded = np.full((len(values), *shape), fillers.get(name, PAD_ID), np.int64)
        for row, value in zip(padded, values):
            row[tuple(slice(size) for size in value.shape)] = value
        return padded

    def __call__(self, batch: dict[str, np.ndarray] | list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if isinstance(batch, list):
            self.epoch = int(torch.randint(2**62, ()))  # another one each time, as of (seed, epoch)
            batch = self.read_features(batch)
        return {name: torch.from_numpy(values) for name, values in self.arrays(batch).items()}


class FlipPretrainingCollator(FlipCollator):
    """Adds the masked views: `masked_input_ids`, `mlm_labels`, `masked_feature_ids`, `mtm_labels`, and `noise_uniform`,
    the random numbers of MTM's noise. Labels are left out.

    Of entity prompts each distinct one of a batch is masked once, by field, and paired with one of its rows, from whose
    ids MLM predicts: `mlm_pairs` and the numbers that it was drawn by, `mlm_scores`, `(B, E)`, in the compact form; in
    the row form all other places have no `mlm_labels`.

    Args:
        text_mask_ratio, id_mask_ratio: share of the units to mask in each view, at least one a row; None leaves the
            masked view out.
        num_noise: noise features per masked feature.
        mask_unit: what is masked together: a `field` (every token of its value), an `entity` (all fields of the user,
            of the item), or a single `token` (the ablation; a field on the ID side). A view with fields of one entity
            only is masked by field, as nothing else would be left of it. The values of a multi-valued field are masked
            together, and each is a target.

    Raises:
        ValueError: the tokenizer has no mask token, `mask_unit` is unknown, or a ratio is not between 0 and 1.
    """

    def __init__(
        self,
        processor: FlipProcessor,
        seed: int = 0,
        unk_rate: float = 0.0,
        cold_rate: float = 0.0,
        text_mask_ratio: float | None = 0.15,
        id_mask_ratio: float | None = 0.15,
        mask_unit: str = "entity",
        num_noise: int = 25,
    ):
        super().__init__(processor, seed, unk_rate, cold_rate)
        self.mask_token_id = None if text_mask_ratio is None else require_mask_token(processor)
        if mask_unit not in MASK_UNITS:
            raise ValueError(f"mask_unit must be one of {', '.join(MASK_UNITS)}; got {mask_unit!r}.")
        for name, ratio in (("text_mask_ratio", text_mask_ratio), ("id_mask_ratio", id_mask_ratio)):
            if ratio is not None and not (isinstance(ratio, float | int) and 0 < ratio < 1):
                raise ValueError(f"{name} must lie between 0 and 1; got {ratio!r}.")
        self.text_mask_ratio, self.id_mask_ratio, self.mask_unit = text_mask_ratio, id_mask_ratio, mask_unit
        self.num_noise = num_noise
        self.by_entity = processor.prompts == "entity" and not processor.id_only
        # of a prompt of one entity an entity mask would leave nothing
        text_fields = processor.text_fields
        self.text_groups = np.arange(len(text_fields)) if self.by_entity else self._groups(text_fields)
        self.id_groups = self._groups(self.id_fields)

    def _groups(self, fields) -> np.ndarray:
        """Each field's group `(fields,)`: fields of one group are masked together."""
        entities = list(dict.fromkeys(field.entity for field in fields))
        if self.mask_unit != "entity" or len(entities) < 2:
            return np.arange(len(fields))
        return np.array([entities.index(field.entity) for field in fields])

    def pick_fields(self, stream: int, rows, eligible: np.ndarray, groups: np.ndarray, ratio: float) -> np.ndarray:
        """Which fields of each row are masked, `(B, F)` bool, among the eligible ones."""
        members = groups[None, :] == np.arange(groups.max() + 1)[:, None]  # (groups, F)
        group_eligible = eligible @ members.T
        uniform = row_uniform(self.seed, self.epoch, stream, rows, len(members))
        return (pick(uniform, group_eligible, ratio) @ members) & eligible

    def read_features(self, features: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        # no objective reads what came before
        features = [{k: v for k, v in feature.items() if k not in HISTORY_ARRAYS} for feature in features]
        if self.by_entity:
            entities = len(self.processor.prompt_fields)
            of_prompts = [name for name in PROMPT_ARRAYS if name in features[0]]
            features = [one | {name: one[name][:entities] for name in of_prompts} for one in features]
        batch = super().read_features(features)
        if self.text_mask_ratio is not None and "token_fields" not in batch:
            raise ValueError(
                "the features have no `token_fields`, which say what to mask; take rows as FlipProcessor gives them "
                f"({', '.join(self.processor.model_input_names)})"
            )
        return batch

    def mask_text(self, batch: dict[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The masked view of prompts `(n, L)` and its labels; choices follow from `rows` `(n,)`."""
        token_fields, input_ids = (batch[name].reshape(len(rows), -1) for name in ("token_fields", "input_ids"))
        is_value = token_fields != NO_FIELD
        if self.mask_unit == "token":
            uniform = row_uniform(self.seed, self.epoch, TEXT_MASK, rows, token_fields.shape[1])
            masked = pick(uniform, is_value, self.text_mask_ratio)
        else:
            has_tokens = (token_fields[:, :, None] == np.arange(len(self.text_groups))).any(1)  # (n, T)
            picked = self.pick_fields(TEXT_MASK, rows, has_tokens, self.text_groups, self.text_mask_ratio)
            masked = np.take_along_axis(picked, np.where(is_value, token_fields, 0), 1) & is_value
        return np.where(masked, self.mask_token_id, input_ids), np.where(masked, input_ids, IGNORE_INDEX)

    def mask_entity_prompts(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The masked view of entity prompts in either form, and which row each is predicted from."""
        shape, tensors = batch["input_ids"].shape, (batch["input_ids"], batch["attention_mask"])
        keys = prompt_keys(*map(torch.from_numpy, tensors)).numpy()
        numbers = batch.get("prompt_index", keys)
        scores = row_uniform(self.seed, self.epoch, PAIRS, batch["rows"], numbers.shape[1])
        pairs = first_of_each(numbers, scores)
        masked, labels = (part.reshape(shape) for part in self.mask_text(batch, keys.ravel()))
        if "prompt_index" in batch:
            pairing = {"mlm_pairs": pairs, "mlm_scores": scores}
        else:
            pairing, labels = {}, np.where(pairs[..., None], labels, IGNORE_INDEX)
        return {"masked_input_ids": masked, "mlm_labels": labels} | pairing

    def mask_ids(self, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        feature_ids = batch["feature_ids"]  # (B, S)
        real = feature_ids >= NUM_RESERVED_IDS  # a reserved id is never a target
        first_slots = np.searchsorted(self.slot_fields, np.arange(len(self.id_fields)))
        has_target = np.logical_or.reduceat(real, first_slots, axis=1)  # (B, F)
        picked = self.pick_fields(ID_MASK, batch["rows"], has_target, self.id_groups, self.id_mask_ratio)
        masked = picked[:, self.slot_fields] & (
            feature_ids != PAD_ID
        )  # a field's values are masked together, `[UNK]` too
        return np.where(masked, MASK_ID, feature_ids), np.where(masked & real, feature_ids, IGNORE_INDEX)

    def arrays(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = super().arrays(batch)
        for name in ("labels", "soft_targets", "sample_weight"):
            arrays.pop(name, None)
        if self.text_mask_ratio is not None:
            if self.by_entity:
                arrays |= self.mask_entity_prompts(batch)
            else:
                arrays["masked_input_ids"], arrays["mlm_labels"] = self.mask_text(batch, batch["rows"])
        if self.id_mask_ratio is not None:
            arrays["masked_feature_ids"], arrays["mtm_labels"] = self.mask_ids(batch)
            columns = len(self.slot_fields) * self.num_noise
            uniform = row_uniform(self.seed, self.epoch, NOISE, batch["rows"], columns)
            arrays["noise_uniform"] = uniform.reshape(len(uniform), len(self.slot_fields), self.num_noise)
        return arrays


def require_mask_token(processor: FlipProcessor) -> int:
    """The tokenizer's mask token id; `ValueError` where it has none."""
    tokenizer = processor.tokenizer
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no mask token; pretraining masks tokens and needs a masked language model "
            "(BERT, RoBERTa, DeBERTa, ModernBERT, ELECTRA, ...). Leave masked language modelling out (--mlm_weight 0), "
            "or fine-tune this PLM directly with `finetune`."
        )
    return tokenizer.mask_token_id
