# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a run predicts: the one thing that metrics, intervals and ensembles are computed from."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flip_ctr.train.outputs.metrics import click_metrics, score_metrics

SPLITS = ("validation", "test")
PASSES, ENOUGH_SECONDS = 3, 60.0  # scoring passes over the test split, and when no further one is started


@dataclass(frozen=True)
class Predictions:
    """Of all rows of a split, in the order of the dataset folder.

    Attributes:
        labels: `(N,)` clicks, 0 or 1.
        users: `(N,)` user numbers, -1 where a row has no user.
        logits: `(N,)` log odds.
        towers: `id_logits` and `text_logits`, `(N,)` each, of a joint model.
    """

    labels: np.ndarray
    users: np.ndarray
    logits: np.ndarray
    towers: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: dict[str, np.ndarray], labels: np.ndarray, users: np.ndarray | None) -> "Predictions":
        """From what `engine.score` returns, and the labels and users of the encoded split."""
        towers = {name: logits for name, logits in scores.items() if name != "logits"}
        users = np.full(len(labels), -1) if users is None else users
        return cls(np.asarray(labels, np.int8), np.asarray(users, np.int64), scores["logits"], towers)

    @classmethod
    def load(cls, folder: Path, split: str) -> "Predictions":
        with np.load(folder / f"{split}.npz") as arrays:
            own = {name: arrays[name] for name in arrays.files}
        return cls(own.pop("labels"), own.pop("users"), own.pop("logits"), own)

    def save(self, folder: Path, split: str) -> None:
        np.savez_compressed(
            folder / f"{split}.npz", labels=self.labels, users=self.users, logits=self.logits, **self.towers
        )

    def metrics(self) -> dict[str, float]:
        """`auc`, `logloss`, `gauc`, `gauc_coverage`, `ece`, `predicted_actual_ratio`, `rows`; of joint models `id_auc`,
        `text_auc`, …"""
        named = score_metrics({"logits": self.logits, **self.towers}, self.labels, self.users, "_")
        return {name.removeprefix("__"): value for name, value in named.items()}

    def criterion(self) -> float:
        """What trials and baselines are chosen by, on validation: AUC - LogLoss."""
        metrics = click_metrics(self.logits, self.labels)
        return metrics["auc"] - metrics["logloss"]


def timed_passes(predict: Callable[[], Any], rows: int, split: str) -> tuple[Any, dict]:
    """What `predict` returns, and its rows a second, the median of some passes; of the test split only, else one pass
    is made."""
    seconds: list[float] = []
    for _ in range(PASSES if split == "test" else 1):
        started = time.perf_counter()
        result = predict()
        seconds.append(time.perf_counter() - started)
        if sum(seconds) > ENOUGH_SECONDS:
            break
    return result, {"rows_per_second": rows / float(np.median(seconds)), "threads": torch.get_num_threads()}
