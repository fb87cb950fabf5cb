# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Folds of users: what is fitted on validation is measured there on rows of users that it was not fitted on."""

import numpy as np

FOLDS = 5


def folds(users: np.ndarray | None, rows: int, seed: int) -> np.ndarray:
    """A fold of each row `(N,)`, the same for all rows of a user."""
    generator = np.random.default_rng(seed)
    if users is None:
        return generator.permutation(rows) % FOLDS
    numbers = np.where(
        users >= 0, users, users.max(initial=0) + 1 + np.arange(rows)
    )  # a row of no user is one of its own
    distinct, where = np.unique(numbers, return_inverse=True)
    return (generator.permutation(len(distinct)) % FOLDS)[where]
