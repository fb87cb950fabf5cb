"""The picture of `benchmarks/compare.py`: what its colours, dots and axes say."""

import pytest

from flip_ctr.benchmarks.comparison.pictures import comparison_figure
from flip_ctr.data.prepare.figures import pyplot
from flip_ctr.train.outputs.plots import GROUPS

METHODS = {"CatBoost": ("ID-only", "catboost"), "DCNv2": ("ID-only", "finetune"), "PLM-only": ("PLM-only", "finetune")}
METHODS |= {"MAP": ("control", "finetune"), "MAP, late fusion": ("control", "fuse"), "FLIP": ("FLIP", "fuse")}


@pytest.fixture
def comparison():
    """Numbers of a comparison as `Comparison.numbers` gives them, what the picture needs."""
    aucs = dict(zip(METHODS, (0.86, 0.87, 0.70, 0.874, 0.875, 0.876)))

    def numbers(value):
        return {"mean": value, "interval": [value - 0.002, value + 0.003]}

    return {
        "dataset": "made",
        "kind": "random",
        "splits": [{"name": "random-1"}],
        "clusters": 1200,
        "clusters_are": "users",
        "differences": {
            "DCNv2": {
                name: {"auc": numbers(auc - 0.87), "logloss": numbers(0.87 - auc)}
                for name, auc in aucs.items()
                if name != "DCNv2"
            }
        },
        "methods": [
            {
                "method": name,
                "group": group,
                "recipe": recipe,
                "runs": [{}],
                "test": {"auc": numbers(aucs[name]), "logloss": numbers(1 - aucs[name])},
                "costs": {"train_seconds": 30.0, "before_seconds": 100.0},
            }
            for name, (group, recipe) in METHODS.items()
        ],
    }


@pytest.fixture
def plt():
    pytest.importorskip("matplotlib")
    plt = pyplot()
    yield plt
    plt.close("all")


def dots(axis) -> dict[int, tuple]:
    """Row from above -> place, colour and face of its dot."""
    found = [line for line in axis.get_lines() if line.get_marker() == "o"]
    return {
        len(METHODS) - 1 - int(line.get_ydata()[0]): (
            line.get_xdata()[0],
            line.get_color(),
            line.get_markerfacecolor(),
        )
        for line in found
    }


def test_colours_tell_controls_from_flip_and_open_dots_are_other_libraries(plt, comparison):
    figure = comparison_figure(plt, comparison, comparison["methods"])
    time = dots(figure.axes[-1])
    for row, (group, _) in enumerate(METHODS.values()):
        assert time[row][1] == GROUPS[group][1]
    assert [time[row][2] == "white" for row in range(len(METHODS))] == [True] + [False] * 5
    assert len({color for _, color in GROUPS.values()}) == len(GROUPS)
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["ID-only", "PLM-only", "control: MAP", "FLIP", "another library"]
    assert time[0][0] == 130.0  # with what it starts from


def test_differences_have_intervals_and_no_stems_and_the_reference_is_at_zero(plt, comparison):
    figure = comparison_figure(plt, comparison, comparison["methods"])
    for axis, better in zip(figure.axes, (1, -1)):
        found = dots(axis)
        assert found[1][0] == 0 and better * found[5][0] == pytest.approx(0.006)
        lines = [line.get_segments()[0][:, 0].tolist() for line in axis.collections]  # of the dots but the reference's
        assert len(lines) == 4 and all(abs(high - low) == pytest.approx(0.005) for low, high in lines)
        assert 2 not in found, "far off: it would press the others together"
        assert any("17" in text.get_text() for text in axis.texts)
    assert [text.get_text() for text in figure.axes[0].texts].count(".8740") == 1


def test_without_a_reference_the_metrics_themselves_are_shown(plt, comparison):
    figure = comparison_figure(plt, comparison | {"differences": {}}, comparison["methods"])
    assert dots(figure.axes[0])[5][0] == 0.876 and figure.axes[0].get_title(loc="left").startswith("test AUC")


def test_labels_of_times_from_a_tenth_of_a_second_to_hours_do_not_touch(plt, comparison):
    for number, method in enumerate(comparison["methods"]):
        method["costs"] = {"train_seconds": 0.12 * 10**number, "before_seconds": 0.0}
    figure = comparison_figure(plt, comparison, comparison["methods"])
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[-1].get_xticklabels()]
    assert len(boxes) >= 3 and all(one.x1 < other.x0 for one, other in zip(boxes, boxes[1:]))


def test_the_legend_covers_nothing(plt, comparison):
    figure = comparison_figure(plt, comparison, comparison["methods"])
    figure.canvas.draw()
    (legend,) = figure.legends
    covered = legend.get_window_extent()
    assert not any(covered.overlaps(axis.get_tightbbox()) for axis in figure.axes)
