# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""One split in memory as integers: feature ids, prompt entries, labels. Batches are gathered, nothing is tokenised again."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from flip_ctr.processing_flip import FlipProcessor


class EncodedDataset(Dataset):
    """Rows encoded once by a processor; the `DataLoader` fetches whole batches as dicts of arrays.

    Args:
        processor: its vocabularies and tokenizer encode the rows.
        rows: in any form that [`FlipProcessor`] takes.
        prompts: whether to keep the textual view (not for an ID-only strategy).

    Attributes:
        feature_ids: `(N, ID-side fields)` int32.
        entries: `(N, text fields)` int32 entries of `prompt_table`, or None.
        lengths: `(N,)` tokens of each prompt, or None.
        labels, weights: `(N,)`, or None where the rows have no such column.
    """

    def __init__(self, processor: FlipProcessor, rows: Any, prompts: bool = True):
        columns = processor.feature_extractor.read(rows)
        self.processor = processor
        self.feature_ids = processor.feature_extractor.encode(columns).astype(np.int32)
        self.prompt_table = self.entries = self.lengths = None
        if prompts:
            self.prompt_table, entries = processor.prompt_table(columns)
            self.entries, self.lengths = entries.astype(np.int32), self.prompt_table.lengths(entries)
        self.labels, self.weights = processor.read_targets(rows)

    def __len__(self) -> int:
        return len(self.feature_ids)

    def __getitems__(self, rows: list[int]) -> dict[str, np.ndarray]:
        """A batch: `rows`, `feature_ids`, and where there are any `input_ids`, `attention_mask`, `token_fields`,
        `labels`, `sample_weight`."""
        rows = np.asarray(rows, np.int64)
        batch = {"rows": rows, "feature_ids": self.feature_ids[rows].astype(np.int64)}
        if self.entries is not None:
            batch |= self.prompt_table.compose(self.entries[rows])
        if self.labels is not None:
            batch["labels"] = self.labels[rows]
        if self.weights is not None:
            batch["sample_weight"] = self.weights[rows]
        return batch

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def feature_counts(self) -> np.ndarray:
        """How often each feature occurs, `(sum of field sizes,)`, in the order of the ID tower's table."""
        sizes = [field.vocab_size for field in self.processor.feature_extractor.all_fields if field.on_id_side]
        return np.concatenate([np.bincount(ids, minlength=size) for ids, size in zip(self.feature_ids.T, sizes)])
