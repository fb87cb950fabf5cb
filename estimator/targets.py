# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Labels and weights as people have them, and which rows are held out."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d


def read_labels(y: Any, rows: int, classes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels as 0 and 1 `(rows,)`, and the two classes.

    Args:
        rows: how many labels there must be.
        classes: of the model, where it has some.

    Raises:
        ValueError: a label is null or of no class, names the row; or there are more, or fewer, labels or classes.
    """
    if y is None:
        raise ValueError("FlipClassifier requires y to be passed, but the target y is None")
    y = column_or_1d(y, warn=True)
    null = pd.isna(y)
    if null.any():
        raise ValueError(f"y, row {null.argmax()}: null (Input y contains NaN); leave rows without a label out")
    if len(y) != rows:
        raise ValueError(f"X has {rows:,} rows, and y {len(y):,}")
    if y.dtype == object:  # of pandas' own types, say
        y = np.array(y.tolist())
    check_classification_targets(y)
    found, codes = np.unique(y, return_inverse=True)
    if classes is None:
        if len(found) > 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {type_of_target(y)}: y has "
                f"{len(found)} classes, such as {', '.join(map(repr, found[:3].tolist()))}"
            )
        if len(found) < 2:
            raise ValueError(f"y has one class only, {found.tolist()}; a click model needs rows of two classes")
        return codes, found
    strange = ~np.isin(y, classes)
    if strange.any():
        row = strange.argmax()
        raise ValueError(f"y, row {row}: {y[row].item()!r} is none of the classes {classes.tolist()}")
    codes = np.searchsorted(classes, y)
    if len(found) < 2:
        raise ValueError(f"y has one class only, {found.tolist()}; training and validation need rows of both")
    return codes, classes


def read_weights(sample_weight: Any, rows: int) -> np.ndarray:
    """Weights `(rows,)`. `ValueError` where one is no number of at least 0, names the row; or there are more, or
    fewer."""
    weights = np.asarray(sample_weight, np.float64)
    if weights.shape != (rows,):
        raise ValueError(f"sample_weight must have a number for each of {rows:,} rows; its shape is {weights.shape}")
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        row = wrong.argmax()
        raise ValueError(f"sample_weight, row {row}: a weight must be a number of at least 0; got {weights[row]}")
    if not weights.any():
        raise ValueError("sample_weight: all weights are zero, so that no row counts")
    return weights


def held_out_rows(codes: np.ndarray, fraction: float, seed: int) -> np.ndarray | None:
    """Which rows are held out `(n,)`: that share of each class, but at least one; None where a class has one row
    only."""
    generator, held_out = np.random.default_rng(seed), np.zeros(len(codes), bool)
    for label in (0, 1):
        rows = generator.permutation(np.flatnonzero(codes == label))
        if len(rows) < 2:
            return None
        held_out[rows[: min(len(rows) - 1, max(1, round(fraction * len(rows))))]] = True
    return held_out
