# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Intervals by resampling users, or items: AUC and LogLoss of many bootstrap samples at once.

A sample draws as many users as there are, with replacement; a user drawn twice counts twice, with all of his rows and
in all splits, so that rows of one user are not taken for independent ones. All methods are measured on the same
samples, which makes their differences paired.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import log_expit

AT_ONCE = 16  # samples at a time: their running sums stay in the processor's cache
LEVEL = 0.95


def draw_weights(clusters: int, samples: int, seed: int = 0) -> np.ndarray:
    """How often each cluster is in each sample, `(samples, clusters)` int32, a pure function of its arguments."""
    generator = np.random.default_rng([seed, clusters, samples])
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=samples).astype(np.int32)


def resampled_auc(logits: np.ndarray, labels: np.ndarray, clusters: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUC of every sample: the share of pairs of a click and a non-click in which the click is ahead, ties count
    half.

    The scores are sorted once. In their order a click's weight meets the sum of the weights of the non-clicks before
    it, for all samples together.

    Args:
        logits: `(N,)` scores.
        labels: `(N,)` clicks, 0 or 1.
        clusters: `(N,)` number of each row's cluster.
        weights: `(samples, clusters)` whole numbers.

    Returns:
        `(samples,)`; NaN for a sample without clicks or without non-clicks.
    """
    order = np.argsort(logits, kind="stable")
    others, clicks = order[labels[order] == 0], order[labels[order] == 1]
    # of each click: the number of non-clicks before it, and with those at its side
    before, beside = (np.searchsorted(logits[others], logits[clicks], side) for side in ("left", "right"))
    aucs = np.empty(len(weights))
    for first in range(0, len(weights), AT_ONCE):
        part = np.ascontiguousarray(
            weights[first : first + AT_ONCE].T, np.float64
        )  # (clusters, samples): a row's are together
        running = np.zeros((len(others) + 1, part.shape[1]))
        np.cumsum(part[clusters[others]], axis=0, out=running[1:])
        of_clicks = part[clusters[clicks]]
        ahead_of = (running[before] + running[beside]) / 2
        with np.errstate(invalid="ignore"):
            aucs[first : first + AT_ONCE] = (of_clicks * ahead_of).sum(0) / (of_clicks.sum(0) * running[-1])
    return aucs


def resampled_logloss(logits: np.ndarray, labels: np.ndarray, clusters: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The LogLoss of every sample, `(samples,)`; arguments as in [`resampled_auc`]."""
    logits = logits.astype(np.float64)
    losses = -np.where(labels == 1, log_expit(logits), log_expit(-logits))
    size = weights.shape[1]
    sums, rows = (np.bincount(clusters, weights=one, minlength=size) for one in (losses, np.ones(len(losses))))
    with np.errstate(invalid="ignore"):
        return (weights @ sums) / (weights @ rows)


def number_clusters(keys: Sequence[np.ndarray]) -> tuple[list[np.ndarray], int, bool]:
    """The users, or items, of several splits numbered alike.

    Args:
        keys: `(N,)` the user or item of each row, for each split; None or NaN where a row has none.

    Returns:
        For each split `(N,)` the number of each row's cluster; how many there are; and whether they are users or items.
        A row without one is a cluster of its own.
    """
    lengths = [len(one) for one in keys]
    codes, users = pd.factorize(np.concatenate([np.asarray(one, dtype=object) for one in keys]))
    nobody = codes < 0
    codes[nobody] = len(users) + np.arange(nobody.sum())
    return np.split(codes, np.cumsum(lengths)[:-1]), len(users) + int(nobody.sum()), len(users) > 0


def interval(samples: np.ndarray, level: float = LEVEL) -> list[float]:
    """The middle part of bootstrap samples, those that could not be measured (NaN) left out."""
    edge = (1 - level) / 2
    return [float(bound) for bound in np.nanquantile(samples, [edge, 1 - edge])]
