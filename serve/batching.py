# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""One thread that computes what many ask for: what waits and fits each other is computed together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


class QueueFull(Exception):
    """As many wait as may wait."""


@dataclass(eq=False)
class Job:
    """What one request asks for.

    Args:
        compute: the contents of some jobs -> what each of them gets.
        content: this job's.
        together: jobs of the same may be computed together; None for one that is computed alone.
        users, width: so many rows as `users * width` go through the model, of jobs together the sum of the users times
            the largest width.
        future: who waits for it; once that is cancelled, it is not computed.
    """

    compute: Callable[[Sequence[Any]], Sequence[Any]]
    content: Any
    together: Hashable = None
    users: int = 1
    width: int = 1
    future: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class BatchingThread:
    """Computes jobs in the order in which they come, the first together with those behind it that fit it.

    Args:
        max_batch_size: rows that go through the model together; a larger job goes alone.
        max_wait: seconds that a job waits for others to join it.
        max_queue: jobs that may wait.
        on_batch: is told of each batch how many jobs it has.
    """

    def __init__(self, max_batch_size: int, max_wait: float, max_queue: int, on_batch: Callable[[int], Any]):
        self.max_batch_size, self.max_wait, self.max_queue, self.on_batch = (
            max_batch_size,
            max_wait,
            max_queue,
            on_batch,
        )
        self._waiting: deque[Job] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="flip-ctr-model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> Future:
        """`QueueFull` where too many wait."""
        with self._changed:
            if len(self._waiting) >= self.max_queue:
                self._forget_cancelled()
            if self._closed or len(self._waiting) >= self.max_queue:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Returns when all jobs are computed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            self.on_batch(len(batch))
            if not _compute(batch) and len(batch) > 1:  # the error of one is not that of the others
                for job in batch:
                    _compute([job])

    def _take(self) -> list[Job]:
        """The next batch; empty where none comes any more."""
        with self._changed:
            while True:
                self._forget_cancelled()
                if not self._waiting and self._closed:
                    return []
                if not self._waiting:
                    self._changed.wait()
                    continue
                left = self._waiting[0].since + self.max_wait - time.monotonic()
                batch, rows = self._first_batch()
                joinable = batch[0].together is not None and rows < self.max_batch_size
                if left > 0 and joinable and not self._closed:
                    self._changed.wait(left)
                    continue
                for job in batch:
                    self._waiting.remove(job)
                running = [job for job in batch if job.future.set_running_or_notify_cancel()]
                if running:
                    return running

    def _forget_cancelled(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.future.cancelled())

    def _first_batch(self) -> tuple[list[Job], int]:
        """The first job with those that fit it, and how many rows they are."""
        first, *others = self._waiting
        batch, users, width = [first], first.users, first.width
        for job in others:
            if first.together is None or job.together != first.together:
                continue
            if (users + job.users) * max(width, job.width) <= self.max_batch_size:
                batch.append(job)
                users, width = users + job.users, max(width, job.width)
        return batch, users * width


def _compute(batch: list[Job]) -> bool:
    """Gives all jobs of a batch what they get; of a single one its error too. False where several fail together."""
    try:
        found = batch[0].compute([job.content for job in batch])
    except Exception as error:  # whatever a model raises is the answer to the request
        if len(batch) == 1:
            batch[0].future.set_exception(error)
        return False
    for job, one in zip(batch, found, strict=True):
        job.future.set_result(one)
    return True
