# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Fits what corrects a click model's log odds on rows at their natural click rate, and scores before and after it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torch import nn

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.modeling_flip.calibration_flip import HEADS, corrected
from flip_ctr.train.loop.folds import folds
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.models.lora import plain
from flip_ctr.train.outputs.metrics import score_metrics
from flip_ctr.train.outputs.run_log import logger

MIN_CLICKS = 10  # below which nothing is fitted, and which each knot of an isotonic calibration has; also of non-clicks
FEW_CLICKS = {"platt": 100, "isotonic": 1000}
TOLERANCE = 1e-10  # of the mean gradient, which is an error of the click rate: scikit-learn's 1e-4 is too much at 0.1 %
SURE = 30.0  # log odds beyond which probabilities are 0 or 1 in float64, or nearly

# what leaves log odds as they are
UNCHANGED: dict[str, dict[str, Any]] = {
    "platt": {"slope": 1.0, "intercept": 0.0},
    "isotonic": {"log_odds": [0.0], "calibrated": [0.0]},
}

Scores = dict[str, np.ndarray]  # log odds `(N,)` by the names of the model's output


class NotCalibrated(ValueError):
    """The rows do not tell a calibration."""


# --- before and after the correction


@contextmanager
def uncorrected(model: nn.Module) -> Iterator[Callable[[Scores], tuple[Scores, Scores | None]]]:
    """Inside, a click model gives its log odds as they were trained. What is yielded corrects them as the model does
    outside, and returns them after and before: None for the latter where the model has no correction."""
    config = plain(model).config
    settings = config.negative_sampling_rate, config.calibration

    def correct(scores: Scores) -> tuple[Scores, Scores | None]:
        if settings == (1, None):
            return scores, None
        heads = HEADS[config.strategy]
        after = {name: corrected(torch.from_numpy(scores[name]), name, *settings).numpy() for name in heads}
        return {"logits": after[heads[0]]} | after, scores

    config.negative_sampling_rate, config.calibration = 1.0, None
    try:
        yield correct
    finally:
        config.negative_sampling_rate, config.calibration = settings


def score_test(
    accelerator: Accelerator, model: nn.Module, dataset: EncodedDataset, batch_size: int
) -> tuple[dict[str, float], Scores, Scores | None]:
    """The metrics of the test split by a click model, its scores, and those before its correction, if it has one."""
    with uncorrected(model) as correct:
        found = score(accelerator, model, dataset, batch_size)
    scores, before = correct(found)
    return score_metrics(scores, dataset.labels, dataset.users, "test", before), scores, before


# --- fitting


def check_clicks_to_calibrate(kind: str, labels: np.ndarray) -> None:
    """Raises `NotCalibrated` where validation rows have too few clicks, or non-clicks, to fit a calibration; warns
    where they have few."""
    few = int(min(labels.sum(), len(labels) - labels.sum()))
    what = "clicks" if few == labels.sum() else "rows without a click"
    if few < MIN_CLICKS:
        raise NotCalibrated(
            f"--calibration {kind}: the {len(labels):,} validation rows that are used have {few} {what}, and at least "
            f"{MIN_CLICKS} are needed"
        )
    if few < FEW_CLICKS[kind]:
        logger.warning(
            f"--calibration {kind} is fitted on {few} {what} of validation, which tell the click rate to about "
            f"±{1.96 / few**0.5:.0%}; with {FEW_CLICKS[kind]:,} it is safer"
        )


def fit_calibration(
    kind: str, strategy: str, scores: Scores, labels: np.ndarray, fold: np.ndarray, weights: np.ndarray | None = None
) -> tuple[dict[str, Any], Scores]:
    """Fits a calibration of each head that a strategy has on all rows. Of `joint` a tower alone whose line falls stays
    as it is, with a warning: its probabilities are shown beside those of both, which predict.

    Args:
        kind: `platt` or `isotonic`.
        scores: log odds, corrected for negative sampling.
        labels, fold, weights: `(N,)` clicks, folds and, where rows have them, sample weights.

    Returns the calibration (see `FlipConfig`) and the cross-fitted log odds: each row's from a calibration that was
    fitted on the other folds.

    Raises:
        NotCalibrated: a fold is without clicks or all rows outside it are; or Platt's line of what predicts falls.
    """
    fit = {"platt": fit_platt, "isotonic": fit_isotonic}[kind]
    calibration: dict[str, Any] = {"kind": kind}
    cross_fitted = {}
    for head in HEADS[strategy]:
        try:
            calibration[head] = fit(scores[head], labels, weights)
            cross_fitted[head] = np.empty_like(scores[head])
            for number in np.unique(fold):
                out = fold == number
                of_others = fit(scores[head][~out], labels[~out], None if weights is None else weights[~out])
                logits = torch.from_numpy(scores[head][out])
                cross_fitted[head][out] = corrected(logits, head, 1.0, {"kind": kind, head: of_others}).numpy()
        except NotCalibrated as error:
            if head == HEADS[strategy][0]:
                raise NotCalibrated(f"--calibration {kind}: {head}: {error}") from None
            logger.warning(f"--calibration {kind}: {head}: {error}. What this tower alone says stays as it is")
            calibration[head], cross_fitted[head] = UNCHANGED[kind], scores[head]
    return calibration, {"logits": cross_fitted[HEADS[strategy][0]]} | cross_fitted


def fit_platt(log_odds: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Logistic regression on the log odds, without a penalty, on Platt's targets: `(n + 1) / (n + 2)` for the n clicks
    and `1 / (m + 2)` for the m others. They keep the number of clicks, and the slope finite where rows are told apart
    without an error."""
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    clicks, others = (float(weights[labels == label].sum()) for label in (1, 0))
    if min(clicks, others) == 0:
        raise NotCalibrated("the rows outside a fold of users have clicks only, or none")
    targets = np.where(labels == 1, (clicks + 1) / (clicks + 2), 1 / (others + 2))
    both = np.concatenate([weights * targets, weights * (1 - targets)])
    inputs, classes = np.tile(log_odds.astype(np.float64), 2)[:, None], np.repeat([1, 0], len(labels))
    line = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=TOLERANCE).fit(inputs, classes, both)
    slope, intercept = line.coef_.item(), line.intercept_.item()
    if slope <= 0:
        raise NotCalibrated(f"Platt's slope is {slope:.3g}: the higher the log odds, the fewer clicks there are")
    return {"slope": slope, "intercept": intercept}


def fit_isotonic(log_odds: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> dict[str, list[float]]:
    """Isotonic regression of the clicks on the log odds. Its steps become knots, which lines join: the log odds of a
    step's mean probability before, and of its click rate. Neighbouring steps of fewer than `MIN_CLICKS` clicks, or
    other rows, are one."""
    weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    log_odds = log_odds.astype(np.float64)
    rates = IsotonicRegression().fit(log_odds, labels, weights).predict(log_odds)
    probabilities = expit(np.clip(log_odds, -SURE, SURE))
    weighed = (weights, weights * probabilities, weights * labels, (weights > 0) & (labels == 1), weights > 0)
    step = np.unique(rates, return_inverse=True)[1]
    sums = np.stack([np.bincount(step, one) for one in weighed], axis=1)  # of a step: weight, predicted, clicks, counts

    def is_small(one: np.ndarray) -> bool:
        clicks, rows = one[3:]
        return min(clicks, rows - clicks) < MIN_CLICKS

    steps = [sums[0]]
    for one in sums[1:]:
        if is_small(steps[-1]):
            steps[-1] = steps[-1] + one
        else:
            steps.append(one)
    if len(steps) > 1 and is_small(steps[-1]):
        steps[-2:] = [steps[-2] + steps[-1]]
    weight, predicted, clicks = np.stack(steps)[:, :3].T
    if not 0 < clicks[0] < weight[0]:
        raise NotCalibrated("the rows outside a fold of users have clicks only, or none")
    knots = np.stack([logit(predicted / weight), logit(clicks / weight)])
    kept = np.append(True, (np.diff(np.float32(knots)) > 0).all(0))  # what float32 tells apart
    return dict(zip(("log_odds", "calibrated"), knots[:, kept].tolist()))


def calibrate(
    accelerator: Accelerator, model: nn.Module, dataset: EncodedDataset, kind: str, seed: int, batch_size: int
) -> dict[str, float]:
    """Fits a calibration on the rows of validation and gives it to the model, in the place of one that it had.

    Returns the metrics of validation, `eval_…`, cross-fitted by users, and `eval_uncalibrated_…` before any correction.

    Raises:
        NotCalibrated: see [`fit_calibration`].
    """
    config = plain(model).config
    config.calibration = None
    with uncorrected(model) as correct:
        before = score(accelerator, model, dataset, batch_size)
    scores, _ = correct(before)
    fold = folds(dataset.users, len(dataset), seed)
    calibration, fitted = fit_calibration(kind, config.strategy, scores, dataset.labels, fold, dataset.weights)
    config.calibration = calibration
    return score_metrics(fitted, dataset.labels, dataset.users, "eval", before)
