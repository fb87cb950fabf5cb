# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""One split as integers: feature ids, prompt entries, labels. Batches are gathered, nothing is tokenised again."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from flip_ctr.data.batches.cache import cached_split, read_cache
from flip_ctr.data.readers.shards import PART_ROWS, SplitRows
from flip_ctr.modeling_flip.histories_flip import Histories
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.prompt_tables_flip import EncodedRows, EntityPrompts, PromptTable, RowPrompts


def gather_batch(
    encoded: EncodedRows, labels: np.ndarray | None, weights: np.ndarray | None, picked: np.ndarray, numbers: np.ndarray
) -> dict[str, np.ndarray]:
    """A batch of the picked rows: `rows` (their numbers in the split, which masks and noise follow from),
    `feature_ids`, and where there are any the prompts (see [`EncodedRows.batch`]), `labels`, `sample_weight`."""
    batch = {"rows": numbers} | encoded.batch(picked)
    if labels is not None:
        batch["labels"] = labels[picked].astype(np.int64)
    if weights is not None:
        batch["sample_weight"] = weights[picked]
    return batch


class EncodedDataset(Dataset):
    """Rows encoded once by a processor; the `DataLoader` fetches whole batches as dicts of arrays.

    A split on disk is encoded part by part into files, which are then mapped: what is read again and again is in the
    memory of the system's file cache, once for all processes. See [`cached_split`].

    Args:
        processor: its vocabularies and tokenizer encode the rows.
        rows: a [`SplitRows`]; or rows in memory, in any form that [`FlipProcessor`] takes, or encoded already.
        prompts: whether to keep the textual view (not for an ID-only strategy).
        items: the items that the histories of rows in memory name, see [`FlipProcessor.encode`]; a folder has its own.

    Attributes:
        rows: the split on disk; None where the rows were in memory.
        encoded: feature ids and prompts, see [`EncodedRows`].
        labels, weights: `(N,)`, or None where the rows have no such column.
        users: `(N,)` each row's user as a number, -1 for a null; None where a split has no users, and of rows in
            memory.
    """

    def __init__(self, processor: FlipProcessor, rows: Any, prompts: bool = True, items: Any = None):
        self.processor, self.prompts, self.rows = processor, prompts, rows if isinstance(rows, SplitRows) else None
        self.users = None
        if self.rows is not None:
            self._folder = cached_split(processor, rows, prompts)
            self._map()
        elif type(rows).__name__ == EncodedRows.__name__:  # the class may be of a checkpoint's own code
            self.encoded, self.labels, self.weights = rows, None, None
        else:
            rows = processor.read_rows(rows)
            self.encoded = processor.encode(rows, prompts, items=items)
            self.labels, self.weights = processor.read_targets(rows)

    def _map(self) -> None:
        arrays = read_cache(self._folder)
        if arrays is None:
            raise OSError(f"{self._folder}: the encoded rows are no longer there, or damaged; start again")
        self.labels, self.weights, self.users = (arrays.get(name) for name in ("labels", "weights", "users"))
        prompts: RowPrompts | EntityPrompts | None = None
        if "index" in arrays:
            parts = (arrays[name] for name in ("tokens", "token_fields", "offsets", "index"))
            prompts = EntityPrompts(*parts, self.processor.pad_token_id)
        elif "entries" in arrays:
            fields = arrays["entries"].shape[1]
            table = PromptTable(arrays["tokens"], arrays["offsets"], fields, self.processor.pad_token_id)
            prompts = RowPrompts(table, arrays["entries"], arrays["lengths"])
        histories = None
        if "history_items" in arrays:
            of_rows = (arrays[name] for name in ("history_items", "history_outcomes", "item_ids"))
            histories = Histories(*of_rows, arrays.get("item_prompts"))
        self.encoded = EncodedRows(arrays["feature_ids"], prompts, histories)

    def __getstate__(self) -> dict[str, Any]:
        """For a loader worker, which maps the arrays itself: as they are they would be copied into its memory."""
        mapped = ("encoded", "labels", "weights", "users") if self.rows is not None else ()
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self.rows is not None:
            self._map()

    def __len__(self) -> int:
        return len(self.encoded)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The epoch whose batches come next: the rows are the same in each."""

    @property
    def num_rows(self) -> int:
        return len(self)

    @property
    def lengths(self) -> np.ndarray | None:
        return self.encoded.lengths

    @property
    def mean_tokens(self) -> float:
        """Tokens of a row's prompts, on average."""
        return float(self.encoded.prompts.row_tokens().mean())

    def __getitems__(self, rows: list[int]) -> dict[str, np.ndarray]:
        """A batch, see [`gather_batch`]."""
        rows = np.asarray(rows, np.int64)
        return gather_batch(self.encoded, self.labels, self.weights, rows, rows)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.__getitems__([row]).items()}

    def feature_counts(self) -> np.ndarray:
        """How often each feature occurs, `(sum of field sizes,)`, in the order of the ID tower's table."""
        ids = self.encoded.feature_ids
        parts = (ids[start : start + PART_ROWS] for start in range(0, len(ids), PART_ROWS))
        return self.processor.feature_extractor.count_features(parts)

    def token_ids(self) -> np.ndarray:
        """The tokens that the prompts have, ascending."""
        return np.unique(self.encoded.prompts.tokens)
