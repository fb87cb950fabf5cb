"""Pictures of a run: what their axes and legends promise."""

import numpy as np
import pytest
from scipy.special import expit

from flip_ctr.data.prepare.figures import pyplot
from flip_ctr.train.outputs.plots import (
    Panel,
    explanation_figure,
    history_figure,
    methods_figure,
    not_far_off,
    plot_reliability,
    reliability_figure,
)


@pytest.fixture
def plt(pictures):
    pytest.importorskip("matplotlib")
    plt = pyplot()
    yield plt
    plt.close("all")


def history(epochs: float, steps: int) -> list[dict]:
    """Of pretraining, with one evaluation at the end."""
    entries = [{"epoch": float(epoch), "mlm_loss": 1.0, "mtm_loss": 2.0} for epoch in np.linspace(0.1, epochs, steps)]
    entries[-1] |= {"eval_mtm_accuracy": 0.4, "eval_mtm_shuffled_accuracy": 0.1}
    return entries


@pytest.mark.parametrize(("epochs", "last"), [(0.5, 1), (1, 1), (3, 3), (30, 30)])
def test_curves_have_whole_epochs_on_their_axes(plt, epochs, last):
    figure = history_figure(plt, history(epochs, 12))
    figure.canvas.draw()
    for axis in figure.axes:
        ticks = axis.get_xticks()
        assert axis.get_xlim() == (0, last) and len(ticks) >= 2 and (ticks == ticks.round()).all()


def test_legends_stand_above_the_curves(plt):
    figure = history_figure(plt, history(3, 12))
    figure.canvas.draw()
    legends = [axis.get_legend() for axis in figure.axes]
    assert len(legends) == 2
    for axis, legend in zip(figure.axes, legends):
        assert legend.get_window_extent().y0 >= axis.get_window_extent().y1 - 1
    titles = [axis.title.get_window_extent().y0 for axis in figure.axes]
    assert titles[0] == pytest.approx(titles[1])


@pytest.mark.parametrize("center", [-5.0, 0.0, 3.0])
def test_reliability_shows_where_the_predictions_are(plt, center):
    generator = np.random.default_rng(0)
    logits = generator.normal(center, 0.5, size=6000).astype(np.float32)
    labels = (generator.random(6000) < expit(logits)).astype(int)
    figure = reliability_figure(plt, logits, labels)
    figure.canvas.draw()
    above, below = figure.axes
    low, high = above.get_xlim()
    assert above.get_ylim() == (low, high) == below.get_xlim() and 0 <= low < high <= 1
    probabilities = expit(logits)
    assert ((probabilities >= low) & (probabilities <= high)).mean() >= 0.98
    assert high - low < 2.5 * (np.quantile(probabilities, 0.995) - np.quantile(probabilities, 0.005))
    box, other = above.get_window_extent(), below.get_window_extent()
    assert box.width == pytest.approx(box.height, rel=0.01) and (box.x0, box.x1) == pytest.approx((other.x0, other.x1))
    assert above.get_legend().get_window_extent().y0 >= box.y1 - 1


def test_reliability_before_a_correction_is_drawn_beside(plt):
    """Both lie in the picture, whatever lies between them."""
    generator = np.random.default_rng(0)
    logits = generator.normal(-7, 0.8, size=40_000).astype(np.float32)
    labels = (generator.random(len(logits)) < expit(logits)).astype(int)
    figure = reliability_figure(plt, logits, labels, logits + 4.6)
    figure.canvas.draw()
    above, below = figure.axes
    low, high = above.get_xlim()
    assert above.get_xscale() == above.get_yscale() == "log" and above.get_ylim() == (low, high) == below.get_xlim()
    probabilities = expit(np.concatenate([logits, logits + 4.6]))
    assert ((probabilities >= low) & (probabilities <= high)).mean() >= 0.98
    shown = above.get_legend_handles_labels()[1]
    assert set(shown) == {"perfect", "observed, 95 %", "before the correction"}
    assert {"0.001", "0.01", "0.1"} <= {label.get_text() for label in above.get_yticklabels()}
    legend, box = above.get_legend().get_window_extent(), above.get_window_extent()
    assert legend.y0 >= box.y1 - 1 and legend.x1 <= figure.bbox.x1


def test_reliability_of_extreme_scores_is_drawn(plt, tmp_path):
    logits, labels = np.array([-50.0, -50.0, 50.0, 50.0, 0.0]), np.array([0, 0, 1, 1, 1])
    assert (
        plot_reliability({"logits": logits}, labels, str(tmp_path))
        and (tmp_path / "reliability.png").stat().st_size > 1000
    )


def test_parts_of_a_score_are_bars_the_most_telling_first(plt):
    parts = [{"kind": "field", "part": f"f{n}", "value": f"$v{n}$", "change": 0.1 * n - 0.9} for n in range(18)]
    parts[3]["value"] = None
    parts += [{"kind": "entry", "part": f"history[-{9 - n}]", "value": f"Film {n}", "change": 1e-5} for n in range(9)]
    answer = {"click_probability": 0.75, "base_log_odds": 0.0, "parts": parts}
    joint = {"id_log_odds": 0.0, "text_log_odds": 2.0, "id_weight": 0.25}
    figure = explanation_figure(plt, answer | joint, "Row 3")
    figure.canvas.draw()
    fields, entries = figure.axes
    names = [label.get_text() for label in fields.get_yticklabels()]
    assert names[0] == "f0: $v0$" and "f3: unknown" in names and len(names) == len(fields.patches) == 15
    widths = [bar.get_width() for bar in fields.patches]
    assert [abs(width) for width in widths] == sorted(map(abs, widths), reverse=True)
    colors = {bar.get_facecolor() for bar in fields.patches if bar.get_width() > 0}
    assert len(colors) == 1 and not colors & {bar.get_facecolor() for bar in fields.patches if bar.get_width() < 0}
    assert {text.get_text() for text in entries.texts} == {"0"} and len(entries.patches) == 8
    assert "change less: 3 of the fields, 1 of the history's entries" in entries.get_xlabel()
    said = figure.get_suptitle()
    assert "75.0%" in said and "left out 50.0%" in said and "by the ids alone 50.0% (weight 0.25)" in said
    for text in [*fields.get_yticklabels(), *fields.texts, *entries.texts]:
        assert figure.bbox.containsx(text.get_window_extent().x0) and figure.bbox.containsx(text.get_window_extent().x1)
    assert len(explanation_figure(plt, answer | {"parts": parts[:2]}, "").axes) == 1


def test_methods_are_dots_without_stems_and_intervals_where_they_are_known(plt):
    panels = [Panel("AUC", [0.7, 0.8], [None, None]), Panel("new items", [0.6, 0.65], [(0.5, 0.7), None])]
    figure = methods_figure(plt, ["ID-only", "FLIP"], ["ID-only", "FLIP"], panels, "", [False, False])
    assert [len(axis.collections) for axis in figure.axes] == [0, 1]
    assert figure.axes[1].collections[0].get_segments()[0][:, 0].tolist() == [0.5, 0.7]
    colors = [line.get_color() for line in figure.axes[0].get_lines()]
    assert len(colors) == 2 and colors[0] != colors[1]


@pytest.mark.parametrize(
    ("values", "near"),
    [
        ([0.871, 0.868, 0.731, 0.875, 0.743, 0.87, 0.869], [0, 1, 3, 5, 6]),
        ([0.871, 0.868, 0.731, 0.875, 0.743], [0, 1, 2, 3, 4]),  # not a few
        ([0.87, 0.87, 0.87, 0.86], [0, 1, 2]),
        ([0.5, 0.6, 0.7], [0, 1, 2]),
        ([0.87], [0]),
        ([], []),
    ],
)
def test_a_few_values_far_off_do_not_share_the_axis(values, near):
    assert not_far_off(values) == near
