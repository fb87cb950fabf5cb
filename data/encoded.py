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
        encoded: feature ids and prompts, see [`EncodedRows`].
        labels, weights: `(N,)`, or None where the rows have no such column.
    """

    def __init__(self, processor: FlipProcessor, rows: Any, prompts: bool = True):
        self.processor = processor
        self.encoded = processor.encode(rows, prompts)
        self.labels, self.weights = processor.read_targets(rows)

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def lengths(self) -> np.ndarray | None:
        return self.encoded.lengths

    def __getitems__(self, rows: list[int]) -> dict[str, np.ndarray]:
        """A batch: `rows`, `feature_ids`, and where there are any `input_ids`, `attention_mask`, `token_fields`,
        `labels`, `sample_weight`."""
        rows = np.asarray(rows, np.int64)
        batch = {"rows": rows} | self.encoded.batch(rows)
        if self.labels is not None:
            batch["labels"] = self.labels[rows]
        if self.weights is not None:
            batch["sample_weight"] = self.weights[rows]
        return batch

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def feature_counts(self) -> np.ndarray:
        """How often each feature occurs, `(sum of field sizes,)`, in the order of the ID tower's table."""
        extractor = self.processor.feature_extractor
        slot_fields, sizes = np.array(extractor.slot_fields), [field.vocab_size for field in extractor.all_fields if field.on_id_side]
        ids = (self.encoded.feature_ids[:, slot_fields == field] for field in range(len(sizes)))
        return np.concatenate([np.bincount(of_field.ravel(), minlength=size) for of_field, size in zip(ids, sizes)])
