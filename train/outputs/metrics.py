# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Metrics of click prediction, as an `evaluate.Metric` that needs no network."""

import datasets
import evaluate
import numpy as np
import pandas as pd
from scipy.special import expit, log_expit
from sklearn.metrics import roc_auc_score

NUM_CALIBRATION_BINS = 20


def group_auc(logits: np.ndarray, labels: np.ndarray, users: np.ndarray) -> tuple[float, float]:
    """GAUC: the AUC within each user, weighted by the user's rows; users of one class drop out.

    Returns the GAUC and its coverage, the share of rows whose user counts. NaN and 0 where no user does.
    """
    frame = pd.DataFrame({"user": users, "click": labels.astype(float), "rank": logits})
    frame["rank"] = frame.groupby("user")["rank"].rank()
    frame["click_rank"] = frame["rank"] * frame["click"]
    by_user = frame.groupby("user").agg(rows=("click", "size"), clicks=("click", "sum"), ranks=("click_rank", "sum"))
    by_user = by_user[(by_user.clicks > 0) & (by_user.clicks < by_user.rows)]
    if by_user.empty:
        return float("nan"), 0.0
    # Mann-Whitney: the AUC from the sum of the clicks' ranks
    wins = by_user.ranks - by_user.clicks * (by_user.clicks + 1) / 2
    aucs = wins / (by_user.clicks * (by_user.rows - by_user.clicks))
    return float(np.average(aucs, weights=by_user.rows)), float(by_user.rows.sum() / len(frame))


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = NUM_CALIBRATION_BINS) -> float:
    """Expected calibration error over bins of equal mass: mean |predicted - observed| click rate, by rows."""
    order = np.argsort(logits, kind="stable")
    probabilities = expit(logits.astype(np.float64))
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(probabilities[part].sum() - labels[part].sum()) for part in parts) / len(order))


class ClickMetrics(evaluate.Metric):
    """AUC, LogLoss, GAUC with coverage, expected calibration error, and the ratio of predicted to actual clicks.

    `compute(predictions=logits, references=labels, users=...)`; predictions are log odds, from which LogLoss is
    computed exactly (probabilities would need an epsilon). `users` are integers; without them GAUC is left out by
    giving -1.

    Raises:
        ValueError: the labels are all of one class.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Metrics of click prediction.",
            citation="",
            inputs_description="Log odds, clicks (0 or 1) and user numbers.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float32"),
                    "references": datasets.Value("int8"),
                    "users": datasets.Value("int64"),
                }
            ),
            format="numpy",
        )

    def _compute(self, predictions, references, users):
        # evaluate before 0.4.6 gives a column of `datasets`, of which a slice is the array
        predictions, labels, users = predictions[:], references[:], users[:]
        logits = predictions.astype(np.float64)
        if labels.min() == labels.max():
            raise ValueError(f"all {len(labels)} labels are {labels[0]}; AUC needs rows with and without a click.")
        results = {
            "auc": float(roc_auc_score(labels, logits)),
            "logloss": float(-np.where(labels == 1, log_expit(logits), log_expit(-logits)).mean()),
        }
        if (users >= 0).any():
            known = users >= 0  # rows of no user are not one user
            results["gauc"], coverage = group_auc(logits[known], labels[known], users[known])
            results["gauc_coverage"] = float(coverage * known.mean())
        results["ece"] = calibration_error(logits, labels)
        results["predicted_actual_ratio"] = float(expit(logits).mean() / labels.mean())
        results["rows"] = len(labels)
        return results


def click_metrics(logits: np.ndarray, labels: np.ndarray, users: np.ndarray | None = None) -> dict[str, float]:
    """[`ClickMetrics`] of log odds `(N,)`, clicks `(N,)` and, optional, user numbers `(N,)`."""
    users = np.full(len(labels), -1) if users is None else users
    return ClickMetrics(keep_in_memory=True).compute(predictions=logits, references=labels, users=users)


def score_metrics(
    scores: dict[str, np.ndarray], labels: np.ndarray, users: np.ndarray | None, prefix: str
) -> dict[str, float]:
    """Metrics of what `engine.score` returns, with names that start with the prefix: of the prediction, and where both
    towers take part AUC and LogLoss of each tower alone (`…_id_auc`, `…_text_logloss`, …)."""
    results = {f"{prefix}_{name}": value for name, value in click_metrics(scores["logits"], labels, users).items()}
    if "id_logits" in scores and "text_logits" in scores:
        for tower in ("id", "text"):
            alone = click_metrics(scores[f"{tower}_logits"], labels)
            results |= {f"{prefix}_{tower}_{name}": alone[name] for name in ("auc", "logloss")}
    return results
