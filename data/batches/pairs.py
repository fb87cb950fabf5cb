# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Pairs of a user and an item that no row has, drawn from the rows of a split, and rows that a teacher has scored."""

from collections.abc import Collection
from functools import cached_property

import numpy as np

from flip_ctr.data.batches.collators import PARTNER, row_uniform
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.shards import PART_ROWS
from flip_ctr.modeling_flip.histories_flip import Histories
from flip_ctr.modeling_flip.prompt_tables_flip import EncodedRows, EntityPrompts, RowPrompts


class RowPairs(EncodedDataset):
    """The N rows of a split, and behind them P N pairs, without labels. Pair number k N + n has the fields of an item
    from a row that is drawn at random, and all others, such as the user's and the history, from row n.

    Which row is drawn is a pure function of (seed, number of the pair): uniform over the rows, an item as often as rows
    name it. Nothing is encoded again.

    Args:
        dataset: the rows, encoded for one model.
        item_fields: names of the fields of an item, the same for all models that read the pairs.
        pairs_per_row: P.
        seed: of what is drawn.
    """

    def __init__(self, dataset: EncodedDataset, item_fields: Collection[str], pairs_per_row: int, seed: int):
        self.__dict__ |= dataset.__dict__  # the same arrays
        self.labels = self.weights = self.users = None
        self.num_split_rows, self.pairs_per_row, self.seed = len(dataset), pairs_per_row, seed
        processor, extractor = dataset.processor, dataset.processor.feature_extractor
        of_fields = np.array([field.name in item_fields for field in extractor.id_fields], bool)
        self.item_slots = of_fields[np.array(extractor.slot_fields, np.int64)]  # (S,)
        # of row prompts the columns of their entries, of entity prompts the prompts of a row
        texts = [[field] for field in processor.text_fields] if processor.prompts == "row" else processor.prompt_fields
        self.item_texts = np.array([fields[0].name in item_fields for fields in texts], bool)

    def __len__(self) -> int:
        return self.num_split_rows * (1 + self.pairs_per_row)

    def partners(self, numbers: np.ndarray) -> np.ndarray:
        """The rows that rows and pairs of these numbers have their items from, `(n,)`; a row its own."""
        uniform = row_uniform(self.seed, 0, PARTNER, numbers, 1)[:, 0]
        drawn = (uniform * self.num_split_rows).astype(np.int64)
        return np.where(numbers < self.num_split_rows, numbers, drawn)

    def encode(self, numbers: np.ndarray) -> EncodedRows:
        """Rows and pairs of these numbers."""
        encoded, rows, partners = self.encoded, numbers % self.num_split_rows, self.partners(numbers)
        feature_ids = np.where(self.item_slots, encoded.feature_ids[partners], encoded.feature_ids[rows])
        prompts, histories = encoded.prompts, encoded.histories
        if isinstance(prompts, EntityPrompts):
            index = np.where(self.item_texts, prompts.index[partners], prompts.index[rows])
            parts = prompts.tokens, prompts.token_fields, prompts.offsets
            prompts = EntityPrompts(*parts, index, prompts.pad_token_id)
        elif prompts is not None:
            entries = np.where(self.item_texts, prompts.entries[partners], prompts.entries[rows])
            prompts = RowPrompts(prompts.table, entries)
        if histories is not None:
            of_rows = histories.items[rows], histories.outcomes[rows]
            histories = Histories(*of_rows, histories.item_ids, histories.item_prompts)
        return EncodedRows(feature_ids, prompts, histories)

    @cached_property
    def lengths(self) -> np.ndarray | None:  # type: ignore[override]
        """`(N + P N,)` int32 tokens of each prompt; None where rows have none or share them."""
        if self.encoded.lengths is None:
            return None
        starts = range(0, len(self), PART_ROWS)
        numbers = (np.arange(start, min(start + PART_ROWS, len(self))) for start in starts)
        return np.concatenate([self.encode(part).lengths for part in numbers])

    def __getitems__(self, rows: list[int] | np.ndarray) -> dict[str, np.ndarray]:
        numbers = np.asarray(rows, np.int64)
        return {"rows": numbers} | self.encode(numbers).batch(np.arange(len(numbers)))


class TaughtRows(EncodedDataset):
    """The training rows of a student. Each comes with one of its P pairs, where there are any, in each epoch another in
    turn; a batch of B rows has the pairs behind them.

    `soft_targets` of a row are its click and the teacher's probability, weighed; of a pair the teacher's alone. A pair
    counts as much in the loss as the teacher does in a row, times the weight of the row that has its user.

    Args:
        dataset: the rows, encoded for the student.
        pairs: these rows and their pairs.
        probabilities: `(N + P N,)` float32, the teacher's, of rows and pairs.
        teacher_weight: of the teacher in the loss, above 0 to 1; that of the clicks is the rest.
        teacher: tells the teacher from others.
    """

    def __init__(
        self, dataset: EncodedDataset, pairs: RowPairs, probabilities: np.ndarray, teacher_weight: float, teacher: str
    ):
        self.__dict__ |= dataset.__dict__
        self.pairs, self.probabilities, self.teacher_weight, self.teacher = (
            pairs,
            probabilities,
            teacher_weight,
            teacher,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The epoch whose pairs come next."""
        self.epoch = epoch

    def __getitems__(self, rows: list[int] | np.ndarray) -> dict[str, np.ndarray]:
        numbers, share = np.asarray(rows, np.int64), np.float32(self.teacher_weight)
        count, per_row = len(numbers), self.pairs.pairs_per_row
        if per_row:
            numbers = np.concatenate([numbers, numbers + (1 + self.epoch % per_row) * len(self)])
        batch = self.pairs.__getitems__(numbers)
        targets = self.probabilities[numbers]
        targets[:count] = (1 - share) * self.labels[numbers[:count]] + share * targets[:count]
        batch["soft_targets"] = targets
        if self.weights is not None or (per_row and share < 1):
            weights = np.ones(len(numbers), np.float32)
            weights[count:] = share
            if self.weights is not None:
                weights *= self.weights[numbers % len(self)]
            batch["sample_weight"] = weights
        return batch
