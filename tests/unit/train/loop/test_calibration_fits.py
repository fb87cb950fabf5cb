"""Fitting what corrects log odds: on a million rows of which one in a thousand is a click, with folds and weights, and
where the rows do not tell it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from flip_ctr import FlipConfig
from flip_ctr.modeling_flip.calibration_flip import check_calibration, corrected
from flip_ctr.train.loop import calibration as fitting
from flip_ctr.train.loop.calibration import (
    UNCHANGED,
    NotCalibrated,
    calibrate,
    check_clicks_to_calibrate,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    uncorrected,
)
from flip_ctr.train.loop.folds import FOLDS, folds
from flip_ctr.train.outputs.metrics import score_metrics

RATE = 0.01
ROWS = 1_000_000


@pytest.fixture(scope="module")
def rare():
    """Validation and test rows of which one in a thousand is a click, with the probabilities that the clicks were drawn
    with, and the log odds of a model of 1 % of the non-clicks, which is too sure of itself and errs."""
    generator = np.random.default_rng(0)
    splits = []
    for _ in range(2):
        true = generator.normal(-7.4, 1.0, ROWS)
        learned = true - math.log(RATE)
        logits = (learned + 0.3 * (learned - learned.mean()) + generator.normal(0, 0.3, ROWS)).astype(np.float32)
        labels = (generator.random(ROWS) < expit(true)).astype(np.int64)
        splits.append(SimpleNamespace(probabilities=expit(true), logits=logits, labels=labels))
    return splits


def test_one_click_in_a_thousand_on_a_million_rows(rare):
    validation, test = rare
    config = FlipConfig(strategy="id", negative_sampling_rate=RATE)
    model = SimpleNamespace(config=config)
    assert 0.0009 < validation.labels.mean() < 0.0012
    with uncorrected(model) as correct:
        assert (config.negative_sampling_rate, config.calibration) == (1, None)
    assert config.negative_sampling_rate == RATE
    shifted, _ = correct({"id_logits": validation.logits})
    fold = folds(None, ROWS, seed=0)
    results = {}
    for kind in ("platt", "isotonic"):
        config.calibration, fitted = fit_calibration(kind, "id", shifted, validation.labels, fold)
        check_calibration(config.calibration, "id")
        with uncorrected(model) as correct:
            scores, before = correct({"logits": test.logits, "id_logits": test.logits})
        results[kind] = score_metrics(scores, test.labels, None, "test", before)
        # a thousand clicks tell the click rate to ±6 %: without what validation drew by chance there is no other error
        chance = validation.labels.mean() / validation.probabilities.mean()
        found = expit(scores["logits"]).mean() / test.probabilities.mean()
        assert found == pytest.approx(chance, abs=0.01) == pytest.approx(1, abs=0.08)
        own = score_metrics(fitted, validation.labels, None, "eval")
        assert own["eval_predicted_actual_ratio"] == pytest.approx(1, abs=0.02)
        assert np.abs(np.log(expit(scores["logits"]) / test.probabilities)).mean() < 0.5
    for one in results.values():
        assert one["test_predicted_actual_ratio"] == pytest.approx(1, abs=0.1)
        assert one["test_uncalibrated_predicted_actual_ratio"] > 50
        assert one["test_ece"] < 0.0003 < 0.05 < one["test_uncalibrated_ece"]
        assert one["test_logloss"] < 0.01 < one["test_uncalibrated_logloss"]
    auc = score_metrics({"logits": test.logits}, test.labels, None, "test")["test_auc"]
    for one in results.values():  # the order is kept, but for what float32 cannot tell apart
        assert one["test_auc"] == pytest.approx(auc, abs=1e-6)


def test_platts_line_is_the_one_of_the_clicks(rare):
    """The log odds were stretched by 1.3 and have noise of 0.3: the line that takes both back."""
    validation, _ = rare
    found = fit_platt(validation.logits + math.log(RATE), validation.labels)
    assert found["slope"] == pytest.approx(1.3 / (1.3**2 + 0.3**2), abs=0.06)
    fitted = expit(found["slope"] * (validation.logits + math.log(RATE)) + found["intercept"])
    assert fitted.sum() / validation.labels.sum() == pytest.approx(1, abs=1e-3)


def test_isotonic_knots_are_few_and_have_clicks():
    generator = np.random.default_rng(1)
    log_odds = generator.normal(-2, 1.5, 20_000).astype(np.float32)
    probabilities = 0.8 * expit(log_odds) ** 2  # no line in log odds
    labels = (generator.random(len(log_odds)) < probabilities).astype(int)
    found = fit_isotonic(log_odds, labels)
    assert 5 < len(found["log_odds"]) < 100 and np.diff(list(found.values())).min() > 0
    calibrated = corrected(torch.from_numpy(log_odds), "logits", 1.0, {"kind": "isotonic", "logits": found}).numpy()
    assert (np.diff(calibrated[np.argsort(log_odds)]) >= 0).all()
    error = np.abs(expit(calibrated) - probabilities)
    assert error.mean() < 0.01 and error.mean() < np.abs(expit(log_odds) - probabilities).mean() / 5
    line = fit_platt(log_odds, labels)
    assert error.mean() < np.abs(expit(line["slope"] * log_odds + line["intercept"]) - probabilities).mean()


def test_isotonic_of_rows_without_order_is_a_shift():
    """Where higher log odds mean fewer clicks, or all are the same, only the click rate is learned."""
    labels = np.arange(400) % 4 == 0
    for log_odds in (np.zeros(400), np.where(labels, -1.0, 1.0), np.full(400, 90.0), np.where(labels, -80.0, -90)):
        found = fit_isotonic(log_odds.astype(np.float32), labels.astype(int))
        assert found["calibrated"][-1] == pytest.approx(logit(0.25), abs=1e-6) or len(found["calibrated"]) == 2
        assert all(map(math.isfinite, sum(found.values(), [])))


def test_rows_that_are_told_apart_without_an_error_have_a_finite_line():
    labels = np.arange(100) % 2
    found = fit_platt((labels * 4.0 - 2).astype(np.float32), labels)
    assert 0 < found["slope"] < 10 and abs(found["intercept"]) < 1e-6


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_weights_count_as_rows(fit):
    """A row of weight 3 is three rows; one of weight 0 is none."""
    generator = np.random.default_rng(2)
    log_odds = generator.normal(-1, 1, 900).astype(np.float32)
    labels = (generator.random(900) < expit(1.5 * log_odds - 0.5)).astype(int)
    weights = generator.choice([0.0, 1.0, 3.0], 900).astype(np.float32)
    found = fit(log_odds, labels, weights)
    repeated = np.repeat(np.arange(900), weights.astype(int))
    expected = fit(log_odds[repeated], labels[repeated])
    grid = torch.linspace(-4, 3, 50)
    scores = [
        corrected(grid, "logits", 1.0, {"kind": fit.__name__[4:], "logits": one}).sigmoid() for one in (found, expected)
    ]
    # steps are joined by the number of rows that were drawn, of which repeated ones have more
    torch.testing.assert_close(*scores, atol=1e-6 if fit is fit_platt else 0.05, rtol=0)
    unweighted = fit(log_odds, labels)
    assert unweighted != found


def test_validation_is_scored_with_calibrations_of_other_users(monkeypatch):
    """Each row's calibrated log odds come from a fit without any row of its user."""
    users = np.repeat(np.arange(40), 25)
    fold = folds(users, len(users), seed=3)
    assert all(len(set(fold[users == user])) == 1 for user in range(40)) and set(fold) == set(range(FOLDS))
    log_odds = np.arange(1000, dtype=np.float32) / 100 - 5
    labels = (np.random.default_rng(0).random(1000) < expit(log_odds)).astype(int)
    seen = []
    fit = fitting.fit_platt
    monkeypatch.setattr(fitting, "fit_platt", lambda x, *rest: seen.append(x) or fit(x, *rest))
    calibration, fitted = fit_calibration("platt", "id", {"id_logits": log_odds}, labels, fold)
    whole, *parts = seen
    assert len(whole) == 1000 and calibration["id_logits"] == fit(log_odds, labels)
    for number, part in enumerate(parts):
        assert not set(part) & set(log_odds[fold == number]) and len(part) == (fold != number).sum()
        line = fit(part, labels[fold != number])
        expected = log_odds[fold == number] * line["slope"] + line["intercept"]
        np.testing.assert_allclose(fitted["logits"][fold == number], expected, rtol=1e-5)
    assert fitted["logits"] is fitted["id_logits"]


def test_a_run_fits_with_the_weights_and_users_of_its_rows(monkeypatch):
    class Rows:
        labels = (np.arange(600) % 5 == 0).astype(int)
        weights = np.where(np.arange(600) % 2, 3.0, 0.5).astype(np.float32)
        users = np.repeat(np.arange(30), 20)

        def __len__(self):
            return 600

    logits = np.random.default_rng(0).normal(Rows.labels, 1).astype(np.float32)
    monkeypatch.setattr(fitting, "score", lambda *_: {"logits": logits, "id_logits": logits})
    model = SimpleNamespace(config=FlipConfig(strategy="id", negative_sampling_rate=0.5))
    metrics = calibrate(None, model, Rows(), "platt", seed=7, batch_size=8)
    shifted = logits + np.float32(math.log(0.5))
    assert model.config.calibration["id_logits"] == pytest.approx(fit_platt(shifted, Rows.labels, Rows.weights))
    _, fitted = fit_calibration(
        "platt", "id", {"id_logits": shifted}, Rows.labels, folds(Rows.users, 600, 7), Rows.weights
    )
    expected = score_metrics(fitted, Rows.labels, Rows.users, "eval", {"logits": logits})
    assert metrics == pytest.approx(expected) and "eval_uncalibrated_ece" in metrics


def test_too_few_clicks_are_named(caplog):
    labels = np.zeros(5000, int)
    labels[:9] = 1
    with pytest.raises(NotCalibrated, match="--calibration platt: the 5,000 validation rows .* have 9 clicks, and at"):
        check_clicks_to_calibrate("platt", labels)
    with pytest.raises(NotCalibrated, match="have 9 rows without a click, and at least 10 are needed"):
        check_clicks_to_calibrate("isotonic", 1 - labels)
    labels[:64] = 1
    check_clicks_to_calibrate("platt", labels)
    assert "--calibration platt is fitted on 64 clicks of validation, which tell the click rate to about ±24%" in (
        caplog.text
    )
    labels[:200] = 1
    caplog.clear()
    check_clicks_to_calibrate("platt", labels)
    assert caplog.text == ""
    check_clicks_to_calibrate("isotonic", labels)
    assert "with 1,000 it is safer" in caplog.text


def test_a_line_that_falls_is_refused():
    log_odds = np.linspace(-2, 2, 1000).astype(np.float32)
    labels = (np.random.default_rng(0).random(1000) < expit(-log_odds)).astype(int)
    with pytest.raises(NotCalibrated, match="id_logits: Platt's slope is -.*: the higher the log odds, the fewer"):
        fit_calibration("platt", "id", {"id_logits": log_odds}, labels, folds(None, 1000, 0))


def test_a_tower_alone_whose_line_falls_stays_as_it_is(caplog):
    """Of a joint model it is shown beside what predicts, and its line need not rise for that to be calibrated."""
    log_odds = np.linspace(-2, 2, 1000).astype(np.float32)
    labels = (np.random.default_rng(0).random(1000) < expit(log_odds - 1)).astype(int)
    scores = {"logits": log_odds, "id_logits": log_odds / 2, "text_logits": -log_odds}
    calibration, fitted = fit_calibration("platt", "joint", scores, labels, folds(None, 1000, 0))
    check_calibration(calibration, "joint")
    assert calibration["logits"]["slope"] > 0.5 and calibration["id_logits"]["slope"] > 1
    kept = corrected(torch.from_numpy(scores["text_logits"]), "text_logits", 1.0, calibration).numpy()
    assert np.array_equal(kept, scores["text_logits"]) and np.array_equal(fitted["text_logits"], scores["text_logits"])
    assert "text_logits: Platt's slope is -" in caplog.text and "this tower alone says stays as it is" in caplog.text
    logits = torch.tensor([-3.0, 0.0, 2.0])
    for kind, numbers in UNCHANGED.items():
        assert torch.equal(corrected(logits, "id_logits", 1.0, {"kind": kind, "id_logits": numbers}), logits)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_clicks_of_one_user_cannot_be_cross_fitted(kind):
    log_odds, users = np.linspace(-2, 2, 400).astype(np.float32), np.repeat(np.arange(20), 20)
    labels = (users == 19).astype(int)
    with pytest.raises(NotCalibrated, match="the rows outside a fold of users have clicks only, or none"):
        fit_calibration(kind, "id", {"id_logits": log_odds}, labels, folds(users, 400, 0))


def test_a_model_without_a_correction_has_one_kind_of_scores():
    scores = {"logits": np.zeros(3, np.float32)}
    with uncorrected(SimpleNamespace(config=FlipConfig(strategy="id"))) as correct:
        assert correct(scores) == (scores, None)
