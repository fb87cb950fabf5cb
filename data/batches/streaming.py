# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The training split as a stream of batches: only a window of its rows is in memory, and nothing of it is kept on
disk."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
from torch.utils.data import IterableDataset, get_worker_info

from flip_ctr.data.batches.encoded import gather_batch
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.processing_flip import FlipProcessor

WINDOW_ROWS = 131_072


class StreamedDataset(IterableDataset):
    """Yields the batches of one process; each row of an epoch is in one batch of one process.

    The row groups of the split are put into a new order every epoch. Their rows, one group behind the other, are cut
    into equal ranges, one a process. A process reads its range window by window: a window's rows are encoded, shuffled,
        sorted by
    length within groups, and cut into batches. So rows mix within a window, and row groups between epochs: files that
    `prepare` has not written should have their rows in random order (see docs/training.md for what it costs where they
    have not). Fewer rows than there are processes are left out, others every epoch.

    Order, and with it the batches, are a pure function of (seed, epoch, number of processes), whatever the number of
    loader workers: each of W workers reads all windows and composes each W-th batch.

    Args:
        processor: encodes the rows.
        rows: the training split.
        batch_size: rows of one process's batch; its last one of an epoch's range is smaller.
        seed: of the order.
        prompts: whether to compose the textual view (not for an ID-only strategy).
        num_processes, process_index: how many processes share the rows, and which one this is.
        group: so many batches are sorted by length together; larger pads less, smaller mixes more.
        window_rows: rows of a window, at least; it holds whole groups.
    """

    def __init__(
        self,
        processor: FlipProcessor,
        rows: SplitRows,
        batch_size: int,
        seed: int = 0,
        prompts: bool = True,
        num_processes: int = 1,
        process_index: int = 0,
        group: int = 50,
        window_rows: int = WINDOW_ROWS,
    ):
        self.processor, self.rows, self.prompts = processor, rows, prompts
        self.items = rows.map_items(processor.read_items)
        self.batch_size, self.seed, self.group_rows = batch_size, seed, batch_size * group
        self.num_processes, self.process_index = num_processes, process_index
        self.window_rows = -(-window_rows // self.group_rows) * self.group_rows
        self.epoch = self.first_batch = 0

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def range_rows(self) -> int:
        """Rows of an epoch that each process sees."""
        return len(self.rows) // self.num_processes

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The epoch whose batches come next, and the first of them: windows before it are not read."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Batches of an epoch, as many on every process."""
        return -(-self.range_rows // self.batch_size)

    def feature_counts(self) -> np.ndarray:
        """How often each feature occurs, `(sum of field sizes,)`; reads all rows once."""
        return self.processor.count_features(self.rows)

    def segments(self, skip: int) -> list[tuple[int, int, int]]:
        """This process's range of the epoch without its first rows: (row group, first row, last row + 1) in order."""
        starts = self.rows.group_starts
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(starts) - 1)
        sizes = np.diff(starts)[order]
        ends = sizes.cumsum()
        begin = self.process_index * self.range_rows
        low, high = np.clip([begin + skip, begin + self.range_rows], (ends - sizes)[:, None], ends[:, None]).T
        offset = starts[order] - (ends - sizes)
        return [(int(g), int(a), int(b)) for g, a, b in zip(order, low + offset, high + offset) if a < b]

    def windows(self, first: int) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """The windows from number `first` on: the rows' numbers `(rows,)`, and the rows."""
        numbers, tables, have, left = [], [], 0, self.range_rows - first * self.window_rows
        for group, start, stop in self.segments(first * self.window_rows):
            for number, table in self.rows.read_group(group, start, stop):
                while len(table):
                    part = table.slice(0, self.window_rows - have)
                    numbers.append(np.arange(number, number + len(part)))
                    tables.append(part)
                    have, number, table = have + len(part), number + len(part), table.slice(len(part))
                    if have == min(self.window_rows, left):
                        yield np.concatenate(numbers), pa.concat_tables(tables)
                        numbers, tables, have, left = [], [], 0, left - have

    def plan(self, window: int, lengths: np.ndarray | None, size: int) -> list[np.ndarray]:
        """The batches of a window of `size` rows: positions in it."""
        order = np.random.default_rng([self.seed, self.epoch, window, self.process_index]).permutation(size)
        if lengths is not None:
            groups = [order[start : start + self.group_rows] for start in range(0, size, self.group_rows)]
            order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in groups])
        batches = [order[start : start + self.batch_size] for start in range(0, size, self.batch_size)]
        # the same on all processes, so that the smaller batch is one of the same step on all
        return [batches[i] for i in np.random.default_rng([self.seed, self.epoch, window]).permutation(len(batches))]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Batches as [`gather_batch`] makes them; of a loader worker its share of them."""
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first, skip = divmod(self.first_batch, self.window_rows // self.batch_size)
        turn = 0  # of the workers: the loader takes a batch of each in turn
        for window, (numbers, table) in enumerate(self.windows(first), first):
            with self.rows.naming_rows(numbers):
                encoded = self.processor.encode(table, self.prompts, cached=True, items=self.items)
                labels, weights = self.processor.read_targets(table)
            for picked in islice(self.plan(window, encoded.lengths, len(table)), skip, None):
                if turn % workers == index:
                    yield gather_batch(encoded, labels, weights, picked, numbers[picked])
                turn += 1
            skip = 0
