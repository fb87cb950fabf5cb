"""What a feature tells of labels that follow from nothing."""

import numpy as np
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score


def rows_without_signal() -> pa.Table:
    """Rows with random labels. Users have different numbers of rows, so that counts tell who they are."""
    generator = np.random.default_rng(1)
    users = np.repeat(np.arange(120), np.arange(20, 140))
    size = len(users)
    return pa.table(
        {
            "_row": np.arange(size),
            "user": generator.permutation(users),
            "item": [f"i{i}" for i in generator.integers(0, 300, size)],
            "time": generator.integers(0, 10**6, size),
            "label": pa.array(generator.integers(0, 2, size), pa.int8()),
        }
    )


def without_the_row(table: pa.Table, labels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave-one-out: clicks and number of the training rows of each row's user, without the row itself."""
    clicks, number = (np.bincount(table["user"], of_rows * train)[table["user"]] for of_rows in (labels, 1))
    return clicks - labels * train, number - train


def tree_auc(features: np.ndarray, labels: np.ndarray, train: np.ndarray) -> tuple[float, float]:
    """AUC of a tree that is fitted on half of the training rows: on the other half, and on validation and test rows."""
    half = train & (np.arange(len(labels)) % 2 == 0)
    tree = HistGradientBoostingClassifier(max_iter=60, min_samples_leaf=5, random_state=0)
    scores = tree.fit(features[half], labels[half]).predict_proba(features)[:, 1]
    return tuple(roc_auc_score(labels[some], scores[some]) for some in (train & ~half, ~train))
