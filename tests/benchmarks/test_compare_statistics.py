"""Intervals of `benchmarks/compare.py` against slow loops and against known truths."""

import numpy as np
import pytest
from scipy.special import expit, log_expit
from sklearn.metrics import roc_auc_score

from flip_ctr.benchmarks.comparison.intervals import (
    draw_weights,
    interval,
    number_clusters,
    resampled_auc,
    resampled_logloss,
)


def sample(generator, users=30, rows=10, decimals=1):
    """Scores with ties, clicks that follow them, and each row's user."""
    clusters = np.repeat(np.arange(users), rows)
    taste = generator.normal(size=users)[clusters]
    logits = np.round(taste + generator.normal(size=len(clusters)), decimals).astype(np.float32)
    return logits, (generator.random(len(clusters)) < expit(logits + taste)).astype(np.int8), clusters


def test_metrics_of_samples_are_those_of_repeated_rows():
    logits, labels, clusters = sample(np.random.default_rng(0))
    shuffled = np.random.default_rng(1).permutation(len(logits))
    logits, labels, clusters = logits[shuffled], labels[shuffled], clusters[shuffled]
    weights = draw_weights(30, 130)
    aucs, losses = (measure(logits, labels, clusters, weights) for measure in (resampled_auc, resampled_logloss))
    for number in (0, 1, 15, 16, 129):
        rows = np.repeat(np.arange(len(logits)), weights[number][clusters])
        assert aucs[number] == pytest.approx(roc_auc_score(labels[rows], logits[rows]), abs=1e-12)
        loss = -np.where(
            labels[rows] == 1, log_expit(logits[rows].astype(float)), log_expit(-logits[rows].astype(float))
        ).mean()
        assert losses[number] == pytest.approx(loss, abs=1e-12)
    everyone = np.ones((1, 30), np.int32)
    assert resampled_auc(logits, labels, clusters, everyone)[0] == pytest.approx(
        roc_auc_score(labels, logits), abs=1e-12
    )


def test_a_sample_without_clicks_is_left_out_of_an_interval():
    logits, labels, clusters = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1])
    aucs = resampled_auc(logits, labels, clusters, np.array([[1, 1], [0, 2], [2, 0]]))
    assert aucs[0] == pytest.approx(1 / 3) and np.isnan(aucs[1]) and aucs[2] == 1.0
    assert interval(aucs) == pytest.approx([1 / 3 + 0.025 * 2 / 3, 1 - 0.025 * 2 / 3])


def test_weights_are_users_drawn_with_replacement_and_the_same_each_time():
    weights = draw_weights(50, 200)
    assert (weights.sum(1) == 50).all() and weights.min() == 0 and weights.max() > 1
    assert (weights == draw_weights(50, 200)).all()


def test_a_user_has_one_number_in_all_splits_and_rows_of_nobody_stand_alone():
    (first, second), count, by_user = number_clusters(
        [np.array(["a", "b", None], object), np.array([None, "b", "c"], object)]
    )
    assert count == 5 and by_user
    assert second[1] == first[1] and len({*first, *second}) == 5
    rows, count, by_user = number_clusters([np.array([None, None], object)])
    assert count == 2 and not by_user and len(set(rows[0])) == 2


def test_rows_of_a_user_are_not_taken_for_independent():
    logits, labels, clusters = sample(np.random.default_rng(2))
    copies = 9

    def width(*given):
        low, high = interval(resampled_auc(*given))
        return high - low

    by_user = width(*(np.tile(one, copies) for one in (logits, labels, clusters)), draw_weights(30, 500))
    assert by_user == pytest.approx(width(logits, labels, clusters, draw_weights(30, 500)))
    rows = np.arange(len(logits) * copies)
    by_row = width(np.tile(logits, copies), np.tile(labels, copies), rows, draw_weights(len(rows), 500))
    assert by_row < by_user / 2


def test_intervals_cover_the_truth():
    generator = np.random.default_rng(3)
    logits, labels, _ = sample(generator, users=20_000)
    truth, covered = roc_auc_score(labels, logits), 0
    for _ in range(100):
        low, high = interval(resampled_auc(*sample(generator, users=60), draw_weights(60, 300)))
        covered += low <= truth <= high
    assert 87 <= covered <= 100  # 95 expected; below 87 once in a thousand times
