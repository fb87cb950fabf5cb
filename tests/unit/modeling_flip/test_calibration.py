"""The correction of log odds: its arithmetic, where a model applies it, and what a checkpoint may hold of it."""

import copy
import json
import math

import numpy as np
import pytest
import tiny
import torch

from flip_ctr import FlipConfig, FlipForCTR
from flip_ctr.modeling_flip.calibration_flip import HEADS, corrected

KNOTS = {"log_odds": [-3.0, -1.0, 0.5, 0.75], "calibrated": [-4.0, -2.5, -2.0, 3.0]}
ONE_KNOT = {"log_odds": [-3.0], "calibrated": [-4.0]}
LINE = {"slope": 0.5, "intercept": -1.25}


def isotonic(logits: torch.Tensor, numbers: dict = KNOTS) -> torch.Tensor:
    return corrected(logits, "logits", 1.0, {"kind": "isotonic", "logits": numbers})


def calibration(kind: str, strategy: str = "joint") -> dict:
    """Another one for each head."""
    made: dict = {"kind": kind}
    for number, head in enumerate(HEADS[strategy]):
        numbers = copy.deepcopy(LINE if kind == "platt" else KNOTS)
        name = "intercept" if kind == "platt" else "calibrated"
        numbers[name] = numbers[name] + number if kind == "platt" else [one + number for one in numbers[name]]
        made[head] = numbers
    return made


def test_the_share_of_non_clicks_shifts_log_odds():
    """Odds of a click are 100 times as high where one of 100 non-clicks was kept."""
    probability = torch.tensor([[0.001], [0.3]])
    clicks, others = probability, (1 - probability) * 0.01
    found = corrected((clicks / others).log(), "logits", 0.01, None).sigmoid()
    torch.testing.assert_close(found, probability)
    logits = torch.randn(5, 1)
    assert corrected(logits, "logits", 1.0, None) is logits


def test_platts_line_comes_after_the_shift():
    logits = torch.tensor([[2.0]])
    found = corrected(logits, "id_logits", 0.1, {"kind": "platt", "id_logits": LINE})
    assert found.item() == pytest.approx(0.5 * (2 + math.log(0.1)) - 1.25, abs=1e-6)


def test_knots_are_joined_by_lines_and_end_in_shifts():
    x, y = KNOTS["log_odds"], KNOTS["calibrated"]
    inside = torch.linspace(-3, 0.75, 301)[:, None]
    np.testing.assert_allclose(isotonic(inside).numpy(), np.interp(inside.numpy(), x, y), atol=1e-5)
    outside = torch.tensor([-1e4, -20.0, -3.5, 0.9, 20.0, 1e4])
    shifts = torch.tensor([-1.0] * 3 + [2.25] * 3)
    torch.testing.assert_close(isotonic(outside), outside + shifts)
    assert torch.equal(isotonic(torch.tensor(x)), torch.tensor(y))
    torch.testing.assert_close(isotonic(outside, ONE_KNOT), outside - 1)  # one knot: a shift


def test_order_is_kept_at_every_float32():
    """Also around the knots, where two lines that are rounded meet."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = (np.sort(generator.normal(-6, 2, 50).astype(np.float32)) for _ in range(2))
        numbers = {"log_odds": np.unique(x).tolist(), "calibrated": np.unique(y).tolist()}
        near = np.concatenate([np.float32(x), np.nextafter(x, -np.inf), np.nextafter(x, np.inf)])
        logits = torch.from_numpy(np.sort(np.concatenate([near, generator.normal(-6, 3, 2000).astype(np.float32)])))
        found = isotonic(logits, numbers)
        assert found.isfinite().all() and (found.diff() >= 0).all() and found.dtype == torch.float32


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
@pytest.mark.parametrize("strategy", HEADS)
def test_a_model_corrects_what_it_scores_and_not_what_it_learns(kind, strategy, text_config):
    config = tiny.flip_config(tiny.sized_fields(9, 7), None if strategy == "id" else text_config, strategy=strategy)
    torch.manual_seed(0)
    model = tiny.shake(FlipForCTR(config)).eval()
    inputs = {"feature_ids": torch.tensor([[4, 5], [6, 3], [2, 2]]), "labels": torch.tensor([1, 0, 0])}
    if strategy != "id":
        inputs["input_ids"] = torch.tensor([[2, 5, 9], [2, 8, 3], [2, 7, 7]])
    plain = model(**inputs)
    model.config.negative_sampling_rate, model.config.calibration = 0.1, calibration(kind, strategy)
    found = model(**inputs)
    assert found.keys() == plain.keys() and torch.equal(found.loss, plain.loss)
    for head in HEADS[strategy]:
        expected = corrected(plain[head], head, 0.1, model.config.calibration)
        assert torch.equal(found[head], expected) and not torch.equal(expected, plain[head])
    assert torch.equal(found.logits, found[HEADS[strategy][0]])
    if strategy == "joint":
        assert torch.equal(found.id_weight, plain.id_weight)
    model.train()  # without dropout in `id`: what is learned is what the rows say
    if strategy == "id":
        assert torch.equal(model(**inputs).logits, plain.logits)


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_a_checkpoint_carries_it(tmp_path, kind, text_config):
    config = tiny.flip_config(tiny.sized_fields(9, 7), text_config, strategy="joint")
    config.negative_sampling_rate, config.calibration = 0.25, calibration(kind)
    model = tiny.shake(FlipForCTR(config)).eval()
    model.save_pretrained(tmp_path)
    loaded = FlipForCTR.from_pretrained(tmp_path)
    assert (loaded.config.negative_sampling_rate, loaded.config.calibration) == (0.25, calibration(kind))
    inputs = {"feature_ids": torch.tensor([[4, 5], [6, 3]]), "input_ids": torch.tensor([[2, 5, 9], [2, 8, 3]])}
    expected = model(**inputs)
    for head in HEADS["joint"]:
        assert torch.equal(loaded(**inputs)[head], expected[head])
    alone = FlipForCTR.from_pretrained(tmp_path, strategy="id")  # its tower has a calibration of its own
    assert torch.equal(alone(**inputs).logits, expected.id_logits)
    again = FlipForCTR.from_pretrained(tmp_path, calibration=None)
    assert again.config.calibration is None and again.config.negative_sampling_rate == 0.25


def test_a_checkpoint_of_before_loads_as_before(tmp_path):
    model = FlipForCTR(tiny.flip_config(tiny.sized_fields(9, 7), strategy="id")).eval()
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("negative_sampling_rate", "calibration"):
        values.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    tiny.changed_on_purpose(tmp_path, "config.json")
    config = FlipForCTR.from_pretrained(tmp_path).config
    assert config.negative_sampling_rate == 1 and config.calibration is None


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_it_is_part_of_an_exported_graph(kind):
    """Without a branch on the log odds: the graph that one batch makes is right for others."""
    model = tiny.shake(FlipForCTR(tiny.flip_config(tiny.sized_fields(9, 7), strategy="id")), 1.0).eval()
    model.config.negative_sampling_rate, model.config.calibration = 0.1, calibration(kind, "id")

    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, feature_ids):
            return self.model(feature_ids=feature_ids).logits

    rows = torch.export.Dim("rows", min=2)
    one, other = (torch.randint(3, 7, (count, 2)) for count in (4, 33))
    with torch.no_grad():
        graph = torch.export.export(Scores(), (one,), dynamic_shapes=({0: rows},), strict=False).module()
        torch.testing.assert_close(graph(other), model(feature_ids=other).logits)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "`kind`, one of 'platt', 'isotonic'"),
        ({"kind": "beta"}, "`kind`, one of 'platt', 'isotonic'"),
        ({"kind": 3, "id_logits": LINE}, "`kind`, one of"),
        ({"kind": "platt"}, "with id_logits, which strategy 'id' has"),
        ({"kind": "platt", "logits": LINE}, "with id_logits, which strategy 'id' has"),
        ({"kind": "platt", "id_logits": LINE, "plm_logits": LINE}, "with id_logits, which"),
        ({"kind": "platt", "id_logits": KNOTS}, "whose id_logits holds `slope`, a number above 0"),
        ({"kind": "platt", "id_logits": LINE | {"slope": 0}}, "whose id_logits holds `slope`, a number above 0"),
        ({"kind": "platt", "id_logits": LINE | {"intercept": math.nan}}, "whose id_logits holds"),
        ({"kind": "platt", "id_logits": LINE | {"intercept": True}}, "whose id_logits holds"),
        ({"kind": "isotonic", "id_logits": LINE}, "holds `log_odds` and `calibrated`, lists of as many numbers"),
        ({"kind": "isotonic", "id_logits": KNOTS | {"log_odds": [1.0]}}, "lists of as many numbers"),
        ({"kind": "isotonic", "id_logits": KNOTS | {"calibrated": [-4.0, -2.5, -2.5, 3.0]}}, "each rising in float32"),
        ({"kind": "isotonic", "id_logits": KNOTS | {"log_odds": [1, 1 + 1e-12, 2, 3]}}, "each rising in float32"),
        ({"kind": "isotonic", "id_logits": {"log_odds": [], "calibrated": []}}, "lists of as many numbers"),
        ({"kind": "isotonic", "id_logits": KNOTS | {"log_odds": ["a", "b", "c", "d"]}}, "lists of as many numbers"),
    ],
)
def test_a_wrong_calibration_is_named(wrong, said):
    with pytest.raises(ValueError, match="FlipConfig: `calibration` must be a mapping") as caught:
        FlipConfig(fields=tiny.sized_fields(9), strategy="id", calibration=wrong)
    assert said in str(caught.value)


def test_the_heads_of_the_strategy_must_have_one():
    both = calibration("platt")
    assert FlipConfig(strategy="joint", calibration=both).calibration == both
    assert FlipConfig(strategy="plm", calibration=both).calibration == both
    with pytest.raises(ValueError, match="with logits, id_logits, text_logits, which strategy 'joint' has"):
        FlipConfig(strategy="joint", calibration=calibration("platt", "id"))
    numbers = {"kind": "isotonic", "id_logits": {name: np.array(one) for name, one in KNOTS.items()}}
    assert FlipConfig(strategy="id", calibration=numbers).calibration["id_logits"] == KNOTS
