# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Batches planned for all processes together, a pure function of (seed, epoch)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# A block has at least so many prompts, and windows, in which each of them is read: see docs/entity-prompts.md
PROMPTS_OF_A_BLOCK, WINDOWS_OF_A_BLOCK = 200, 4


class GlobalBatchSampler(Sampler[list[int]]):
    """Shuffled batches of rows of similar length, planned globally and then split across processes.

    No row is repeated to fill up (a repeated row is a false negative of ICL). The last global batch is smaller; with
    several processes it loses the rows, fewer than processes, that would make their shares unequal; they change every
    epoch. A `complete` plan loses none: its batches are of nearly the same size, and so are the processes' shares.

    Args:
        num_rows: rows of the split.
        batch_size: rows of one process's batch.
        seed: of the order.
        lengths: `(num_rows,)` tokens of each row; rows of similar length are batched. `None`: no grouping.
        shuffle: False keeps the rows' order (evaluation); with `lengths`, longest first.
        num_processes, process_index: how many processes share a global batch, and which one this is.
        group: how many global batches are sorted by length together; larger pads less, smaller mixes more.
        complete: shuffled, but for evaluation: every row is in exactly one batch of one process.
        prompts: `(num_rows,)` the number of a prompt that each row shares with others. An epoch deals the prompts out
            to blocks of several windows, at random, so that the rows of a window have few. `None`: no blocks.
        window: how many global batches are read together.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        seed: int = 0,
        lengths: np.ndarray | None = None,
        shuffle: bool = True,
        num_processes: int = 1,
        process_index: int = 0,
        group: int = 50,
        complete: bool = False,
        prompts: np.ndarray | None = None,
        window: int = 1,
    ):
        self.num_rows, self.batch_size, self.seed, self.lengths = num_rows, batch_size, seed, lengths
        self.shuffle, self.num_processes, self.process_index, self.group = shuffle, num_processes, process_index, group
        self.prompts, self.window, self.complete = prompts, window, complete
        self.num_windows, self.blocks = -(-num_rows // (batch_size * num_processes * window)), 1
        if prompts is not None:
            distinct = np.count_nonzero(np.bincount(prompts))
            self.blocks = max(1, min(distinct // PROMPTS_OF_A_BLOCK, self.num_windows // WINDOWS_OF_A_BLOCK))
        self.epoch = self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The epoch whose batches come next, and the first of them: a run that goes on leaves out those it has had."""
        self.epoch, self.first_batch = epoch, first_batch

    def plan(self) -> list[np.ndarray]:
        """The epoch's global batches."""
        size = self.batch_size * self.num_processes
        if not self.shuffle:
            order = np.arange(self.num_rows) if self.lengths is None else np.argsort(-self.lengths, kind="stable")
            return [order[start : start + size] for start in range(0, self.num_rows, size)]
        generator = np.random.default_rng([self.seed, self.epoch])
        # half the memory of the 64-bit numbers of `permutation(num_rows)`, and the same order
        order = generator.permutation(np.arange(self.num_rows, dtype=np.int32 if self.num_rows < 2**31 else np.int64))
        if self.lengths is not None:
            chunks = [order[start : start + size * self.group] for start in range(0, self.num_rows, size * self.group)]
            order = np.concatenate([chunk[np.argsort(self.lengths[chunk], kind="stable")] for chunk in chunks])
        if self.complete:
            return np.array_split(order, len(self)) if len(self) else []
        if self.blocks > 1:
            order = self._by_windows(order, size * self.window, generator)
        batches = [order[start : start + size] for start in range(0, self.num_rows, size)]
        last = batches[-1]
        batches[-1] = last[: len(last) // self.num_processes * self.num_processes]
        # windows stay together, and were dealt out before
        places = range(len(batches)) if self.blocks > 1 else generator.permutation(len(batches))
        return [batches[i] for i in places if len(batches[i])]

    def _by_windows(self, order: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
        """Shuffled rows by windows of so many, in random order, whose rows share prompts; a smaller one comes last."""
        ranks = generator.permutation(int(self.prompts.max()) + 1)
        order = order[np.argsort(ranks[self.prompts[order]], kind="stable")]
        blocks = [part[[0, -1]] for part in np.array_split(np.arange(self.num_windows), self.blocks)]
        order = np.concatenate([generator.permutation(order[a * size : (b + 1) * size]) for a, b in blocks])
        whole = len(order) // size * size
        dealt = generator.permutation(order[:whole].reshape(-1, size))
        return np.concatenate([dealt.ravel(), order[whole:]])

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.plan()[self.first_batch :]:
            yield batch[self.process_index :: self.num_processes].tolist()

    def __len__(self) -> int:
        size = self.batch_size * self.num_processes
        full, rest = divmod(self.num_rows, size)
        if self.complete:  # in no batch fewer rows than processes, where there are so many
            return max(min(full + (rest > 0), self.num_rows // self.num_processes), min(1, self.num_rows))
        return full + (rest >= (self.num_processes if self.shuffle else 1))
