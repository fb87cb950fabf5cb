# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Metrics of click prediction; `evaluate_metric` has them as an `evaluate.Metric`."""

from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from flip_ctr.train.outputs.ranking_metrics import RankedLists

NUM_CALIBRATION_BINS = 20
CALIBRATION_METRICS = ("logloss", "ece", "predicted_actual_ratio")


def group_auc(logits: np.ndarray, labels: np.ndarray, users: np.ndarray) -> tuple[float, float]:
    """GAUC: the AUC within each user, weighted by the user's rows; users of one class drop out.

    Returns the GAUC and its coverage, the share of rows whose user counts. NaN and 0 where no user does.
    """
    lists = RankedLists(logits, labels, users)
    aucs, rows = lists.auc(), lists.sizes
    both = ~np.isnan(aucs)
    if not both.any():
        return float("nan"), 0.0
    return float(np.average(aucs[both], weights=rows[both])), float(rows[both].sum() / len(labels))


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = NUM_CALIBRATION_BINS) -> float:
    """Expected calibration error over bins of equal mass: mean |predicted - observed| click rate, by rows."""
    order = np.argsort(logits, kind="stable")
    probabilities = expit(logits.astype(np.float64))
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(probabilities[part].sum() - labels[part].sum()) for part in parts) / len(order))


def click_metrics(logits: np.ndarray, labels: np.ndarray, users: np.ndarray | None = None) -> dict[str, float]:
    """AUC, LogLoss, GAUC with coverage, expected calibration error, and the ratio of predicted to actual clicks.

    Args:
        logits: log odds `(N,)`, from which LogLoss is computed exactly (probabilities would need an epsilon).
        labels: clicks `(N,)`, 0 or 1.
        users: user numbers `(N,)`, below 0 for none; without any there is no GAUC.

    Raises:
        ValueError: the labels are all of one class.
    """
    logits = np.asarray(logits, np.float32).astype(np.float64)
    if labels.min() == labels.max():
        raise ValueError(f"all {len(labels)} labels are {labels[0]}; AUC needs rows with and without a click.")
    results = {
        "auc": float(roc_auc_score(labels, logits)),
        "logloss": float(-np.where(labels == 1, log_expit(logits), log_expit(-logits)).mean()),
    }
    if users is not None and (users >= 0).any():
        known = users >= 0  # rows of no user are not one user
        results["gauc"], coverage = group_auc(logits[known], labels[known], users[known])
        results["gauc_coverage"] = float(coverage * known.mean())
    results["ece"] = calibration_error(logits, labels)
    results["predicted_actual_ratio"] = float(expit(logits).mean() / labels.mean())
    results["rows"] = len(labels)
    return results


def compute_metrics(prediction) -> dict[str, float]:
    """Metrics of a [`FlipForCTR`] as `flip-ctr evaluate` computes them (rows count alike, whatever their weights in the
    loss; there is no GAUC, which needs users), for `compute_metrics` of a `Trainer`, and for loops of one's own.

    Args:
        prediction: an `EvalPrediction`, or the tuple of log odds `(N, 1)` or `(N,)` and clicks `(N,)`, 0 or 1, as numpy
            arrays or as tensors on the CPU.

    Returns: `auc`, `logloss`, `ece`, `predicted_actual_ratio` and `rows`, see [`click_metrics`].

    Raises:
        ValueError: the labels are all of one class, or there are more log odds than labels.
    """
    logits, labels, *_ = prediction
    logits, labels = np.asarray(logits).ravel(), np.asarray(labels).ravel()
    if logits.shape != labels.shape:
        raise ValueError(
            f"there are {len(logits)} log odds and {len(labels)} labels; give one of each a row, of a Trainer with "
            "a FlipForCTR"
        )
    return click_metrics(logits, labels)


def score_metrics(
    scores: dict[str, np.ndarray],
    labels: np.ndarray,
    users: np.ndarray | None,
    prefix: str,
    uncalibrated: dict[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Metrics of what `scoring.score` returns, with names that start with the prefix: of the prediction, and where both
    towers take part AUC and LogLoss of each tower alone (`…_id_auc`, `…_text_logloss`, …).

    Args:
        uncalibrated: log odds before the correction for negative sampling and the calibration, where there is one:
            `…_uncalibrated_ece` and others are of them.
    """
    results = {f"{prefix}_{name}": value for name, value in click_metrics(scores["logits"], labels, users).items()}
    if "id_logits" in scores and "text_logits" in scores:
        for tower in ("id", "text"):
            alone = click_metrics(scores[f"{tower}_logits"], labels)
            results |= {f"{prefix}_{tower}_{name}": alone[name] for name in ("auc", "logloss")}
    if uncalibrated is not None:
        before = click_metrics(uncalibrated["logits"], labels)
        results |= {f"{prefix}_uncalibrated_{name}": before[name] for name in CALIBRATION_METRICS}
    return results


def auc_difference(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """How much higher the AUC of the first of two scores of the same rows is, and the standard error of that (DeLong et
    al., Biometrics 1988)."""
    lost = roc_auc_score(labels, first) - roc_auc_score(labels, second)
    placed = [_placements(scores, labels) for scores in (first, second)]
    variance = sum(np.var(one - other, ddof=1) / len(one) if len(one) > 1 else np.nan for one, other in zip(*placed))
    return float(lost), float(variance**0.5)


def _placements(scores: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Of each click the share of the other rows that it is above, and of each of these the share of the clicks that are
    above it."""
    found = []
    for label in (1, 0):
        own = labels == label
        above = rankdata(scores)[own] - rankdata(scores[own])
        found.append(above / (~own).sum() if label else 1 - above / (~own).sum())
    return found


class PartEffect(NamedTuple):
    """What a part does over N rows.

    Attributes:
        part: name of the field, or of the history.
        change: mean of the absolute change in log odds without it.
        auc_lost: how much lower AUC is without it; NaN where the rows have one class.
        error: standard error of that; NaN also of a single row of a class.
    """

    part: str
    change: float
    auc_lost: float
    error: float


class Effects(NamedTuple):
    """The effects of all parts of a model's rows, and of how many rows they are."""

    parts: list[PartEffect]
    rows: int
