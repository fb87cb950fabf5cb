"""Metrics against slow references: pairs, loops over users, formulas in float64."""

import math

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from flip_ctr.train.outputs.evaluate_metric import ClickMetrics
from flip_ctr.train.outputs.metrics import calibration_error, click_metrics, compute_metrics, group_auc


def sample(rows: int = 300, users: int = 25, seed: int = 0):
    """Log odds with ties, clicks that follow them, and users of very different sizes."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=rows).round(1).astype(np.float32)
    labels = (random.random(rows) < 1 / (1 + np.exp(-2 * logits))).astype(np.int64)
    return logits, labels, (users * random.random(rows) ** 2).astype(np.int64)


def slow_auc(logits, labels) -> float:
    """Share of pairs of a click and a non-click in the right order; ties count half."""
    pairs = [
        (a > b) + (a == b) / 2 for a, x in zip(logits, labels) for b, y in zip(logits, labels) if x == 1 and y == 0
    ]
    return sum(map(float, pairs)) / len(pairs)


def sigmoid(x) -> float:
    return 1 / (1 + math.exp(-float(x)))


def test_auc_counts_pairs():
    logits, labels, _ = sample()
    assert click_metrics(logits, labels)["auc"] == pytest.approx(slow_auc(logits, labels), abs=1e-12)
    assert click_metrics(-logits, labels)["auc"] == pytest.approx(1 - slow_auc(logits, labels), abs=1e-12)


def test_log_loss_is_the_formula():
    logits, labels, _ = sample()
    expected = -np.mean([math.log(sigmoid(x) if y else 1 - sigmoid(x)) for x, y in zip(logits, labels)])
    assert click_metrics(logits, labels)["logloss"] == pytest.approx(expected, rel=1e-9)


def test_log_loss_of_extreme_scores_is_exact():
    """Probabilities in float32 would be 0 and 1, and their logarithm an epsilon."""
    metrics = click_metrics(np.array([200.0, -300.0], np.float32), np.array([0, 1]))
    assert metrics["logloss"] == pytest.approx(250.0)


def slow_gauc(logits, labels, users) -> tuple[float, float]:
    total = weight = 0
    for user in set(users.tolist()):
        mine = users == user
        if len(set(labels[mine].tolist())) == 2:
            total += mine.sum() * slow_auc(logits[mine], labels[mine])
            weight += mine.sum()
    return total / weight, weight / len(users)


@pytest.mark.parametrize("seed", range(3))
def test_gauc_weighs_each_users_auc_by_rows(seed):
    logits, labels, users = sample(seed=seed)
    labels[users == 3] = 1  # a user of one class drops out
    expected = slow_gauc(logits, labels, users)
    assert group_auc(logits, labels, users) == pytest.approx(expected, abs=1e-12)
    metrics = click_metrics(logits, labels, users)
    assert (metrics["gauc"], metrics["gauc_coverage"]) == pytest.approx(expected, abs=1e-6)
    assert metrics["gauc_coverage"] < 1


def test_gauc_does_not_compare_users():
    """Users who click more, all scored higher, help AUC and not GAUC."""
    users = np.repeat([0, 1], 10)
    labels = np.array([1] * 8 + [0] * 2 + [1] * 2 + [0] * 8)
    metrics = click_metrics(users * -1.0, labels, users)
    assert metrics["auc"] == pytest.approx(0.8) and metrics["gauc"] == pytest.approx(0.5)


def test_gauc_without_a_user_of_both_classes():
    gauc, coverage = group_auc(np.array([0.1, 0.2]), np.array([0, 1]), np.array([1, 2]))
    assert math.isnan(gauc) and coverage == 0


def test_without_users_there_is_no_gauc():
    logits, labels, _ = sample()
    assert not {"gauc", "gauc_coverage"} & set(click_metrics(logits, labels))


def test_evaluate_has_them_as_a_metric():
    logits, labels, users = sample()
    metric = ClickMetrics(keep_in_memory=True)
    assert metric.compute(predictions=logits, references=labels, users=users) == click_metrics(logits, labels, users)
    nobody = np.full(len(labels), -1)
    assert metric.compute(predictions=logits, references=labels, users=nobody) == click_metrics(logits, labels)


def test_a_trainer_has_them():
    logits, labels, _ = sample()
    expected = click_metrics(logits, labels)
    tensors = torch.from_numpy(logits)[:, None], torch.from_numpy(labels)
    for prediction in (EvalPrediction(logits[:, None], labels, inputs=logits), (logits, labels.tolist()), tensors):
        assert compute_metrics(prediction) == expected


def test_of_each_row_there_must_be_one():
    logits, labels, _ = sample()
    with pytest.raises(ValueError, match="300 log odds and 299 labels"):
        compute_metrics((logits, labels[1:]))


def test_rows_of_no_user_are_not_one_user():
    """-1 stands for a null user: these rows belong to nobody."""
    logits, labels, users = sample()
    nobody = users < 5
    expected = slow_gauc(logits[~nobody], labels[~nobody], users[~nobody])[0]
    assert click_metrics(logits, labels, np.where(nobody, -1, users))["gauc"] == pytest.approx(expected, abs=1e-6)


def test_calibration_error_over_bins_of_equal_mass():
    logits, labels, _ = sample(rows=103)
    order = sorted(range(103), key=lambda row: logits[row])
    expected, start = 0.0, 0
    for bin_ in range(20):
        size = 103 // 20 + (bin_ < 103 % 20)
        rows = order[start : start + size]
        predicted = np.mean([sigmoid(logits[row]) for row in rows])
        expected += size / 103 * abs(predicted - np.mean(labels[rows]))
        start += size
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-9)


def test_calibration_error_is_0_for_true_probabilities_and_large_for_wrong_ones():
    random = np.random.default_rng(0)
    logits = random.normal(size=20000)
    labels = (random.random(20000) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    assert calibration_error(logits, labels) < 0.015
    assert calibration_error(logits + 2, labels) > 0.2


def test_fewer_rows_than_bins():
    assert calibration_error(np.array([0.0, 0.0]), np.array([0, 1])) == pytest.approx(0.5)


def test_ratio_of_predicted_to_actual_clicks():
    logits, labels, _ = sample()
    expected = sum(map(sigmoid, logits)) / labels.sum()
    assert click_metrics(logits, labels)["predicted_actual_ratio"] == pytest.approx(expected, rel=1e-6)
    assert click_metrics(logits, labels)["rows"] == 300


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_class_are_refused(label):
    with pytest.raises(ValueError, match=f"all 3 labels are {label}"):
        click_metrics(np.zeros(3, np.float32), np.full(3, label))
