# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a comparison: quality with intervals and paired differences, and quality against training time. Drawn
where matplotlib is installed (`plot` extra)."""

import textwrap
from pathlib import Path

import numpy as np

from flip_ctr.benchmarks.comparison.tables import duration, short, title
from flip_ctr.data.prepare.figures import COLORS, GRID, INK, MUTED, pyplot, save

ROW = 0.34  # inches of a method
TIMES = [
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    20,
    30,
    60,
    *(60 * n for n in (2, 5, 10, 20, 30)),
    *(3600 * n for n in (1, 2, 5, 10, 20, 50, 100)),
]
WRAP = 40  # letters of a line of a method's name; two lines of them fit into a row
LABEL, LETTER = 0.165, 0.065  # inches that a label beside a plot takes: its height, and each of its letters


def draw(results: dict, folder: Path) -> list[str]:
    """Draws `<dataset>-<kind>.png` and `<dataset>-<kind>-time.png` for each comparison; returns their names."""
    plt = pyplot()
    if plt is None:
        return []
    names = []
    for comparison in results["comparisons"]:
        methods = [one for one in comparison["methods"] if one["runs"]]
        if methods:
            name = f"{comparison['dataset']}-{comparison['kind']}"
            names += [
                Path(save(plt, figure(plt, comparison, methods), folder, f"{name}{suffix}.png")).name
                for suffix, figure in (("", quality), ("-time", quality_by_time))
            ]
    return names


def as_text(name: str) -> str:
    """A name of the grid as matplotlib draws it letter by letter: what stands between two dollars would be a
    formula."""
    return name.replace("$", r"\$")


def group_colors(methods: list[dict]) -> dict[str, str]:
    groups = dict.fromkeys(one["group"] for one in methods)
    return dict(zip(groups, COLORS * (1 + len(groups) // len(COLORS))))


def quality(plt, comparison: dict, methods: list[dict]):
    """A row a method: test AUC of each split with the mean and its interval, and the differences to the best baseline
    with theirs."""
    colors, reference = group_colors(methods), comparison["reference"]
    panels = ["auc"] if reference is None else ["auc", "difference of auc", "difference of logloss"]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.2 + 3.0 * len(panels), ROW * len(methods) + 1.25),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    heights = np.arange(len(methods))[::-1]
    for axis, panel in zip(axes[0], panels):
        shown = [(height, *measured(one, panel), colors[one["group"]]) for height, one in zip(heights, methods)]
        shown = [row for row in shown if row[1] is not None]
        near = set(not_far_off([summary["mean"] for _, summary, *_ in shown]))
        for number in near:
            draw_row(axis, *shown[number])
        left, right = axis.get_xlim()
        axis.set_xlim(left, right)
        for height, summary, points, color in [row for number, row in enumerate(shown) if number not in near]:
            if left <= summary["mean"] <= right:  # the others' intervals made room
                draw_row(axis, height, summary, points, color)
                continue
            value, below = (
                decimals(summary["mean"], sign=panel != "auc"),
                summary["mean"] < left,
            )  # its number, where the axis ends
            axis.text(
                0.015 if below else 0.985,
                height,
                f"◂ {value}" if below else f"{value} ▸",
                color=color,
                fontsize=9,
                va="center",
                ha="left" if below else "right",
                transform=axis.get_yaxis_transform(),
            )
        if panel != "auc":
            axis.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axis.xaxis.set_major_formatter(lambda value, _: "0" if abs(value) < 1e-9 else decimals(value, sign=True))
        else:
            axis.xaxis.set_major_formatter(lambda value, _: decimals(value))
        axis.locator_params(axis="x", nbins=5)
        axis.grid(False, axis="y")
        axis.tick_params(left=False)
        axis.set_ylim(-0.7, len(methods) - 0.4)
    axes[0, 0].set_yticks(heights, [textwrap.fill(as_text(one["method"]), WRAP) for one in methods], color=INK)
    titles = {
        "auc": "Test AUC",
        "difference of auc": "AUC, difference:\nright is better",
        "difference of logloss": "LogLoss, difference:\nleft is better",
    }
    for axis, panel in zip(axes[0], panels):
        axis.set_title(titles[panel])
    lines = f"Lines: 95 % over {comparison['clusters']:,} {comparison['clusters_are']}"
    lines += f"; ticks: {len(comparison['splits'])} splits" if len(comparison["splits"]) > 1 else "; one split"
    figure.supxlabel(
        as_text(f"{title(comparison)}. {lines}") + (f"; differences to {as_text(reference)}" if reference else ""),
        fontsize=8,
        color=MUTED,
    )
    legend_of_groups(plt, figure, colors)
    return figure


def draw_row(axis, height: float, summary: dict, points: list[float], color: str) -> None:
    """A method's mean, its interval, and below them the splits where there are several."""
    axis.hlines(height, *summary["interval"], color=color, linewidth=2)
    if len(points) > 1:
        axis.plot(
            points, np.full(len(points), height - 0.22), "|", color=color, markersize=5, markeredgewidth=0.9, alpha=0.75
        )
    axis.plot(summary["mean"], height, "o", color=color, markersize=5.5)


def measured(method: dict, panel: str) -> tuple[dict | None, list[float]]:
    """What a panel shows of a method, None where it has no difference, and the same of each split."""
    if panel == "auc":
        return method["test"]["auc"], by_split(method)
    summary = method.get("difference", {}).get(panel.split()[-1])
    return summary, list(summary["by_split"].values()) if summary else []


def not_far_off(means: list[float]) -> list[int]:
    """Which of the means can share an axis: all, or those not far from most where a few would press the others
    together."""
    if not means:
        return []
    far = np.abs(means - np.median(means))
    near = far <= 8 * np.median(far)
    return [number for number in range(len(means)) if near[number] or 3 * (~near).sum() > len(means)]


def legend_of_groups(plt, figure, colors: dict[str, str]) -> None:
    """Says which colour a group of methods has, where there are several."""
    if len(colors) > 1:
        points = [
            plt.Line2D([], [], color=color, marker="o", linestyle="", markersize=5, label=as_text(group) or "other")
            for group, color in colors.items()
        ]
        figure.legend(
            handles=points,
            loc="outside upper right",
            ncols=len(points),
            fontsize=8,
            handletextpad=0.1,
            columnspacing=1.2,
        )


def quality_by_time(plt, comparison: dict, methods: list[dict]):
    """Test AUC against all training that the method needs, of the runs that it starts from too, search left out. What
    is far off the others stands at the edge, with its number."""
    colors = group_colors(methods)
    width = 4.2 + LETTER * max(len(one["method"]) for one in methods)
    figure, axis = plt.subplots(figsize=(width, max(3.0, 0.26 * len(methods) + 1.0)), layout="constrained")
    means = [one["test"]["auc"]["mean"] for one in methods]
    near, points = set(not_far_off(means)), []
    shown = [means[number] for number in near]
    room = 0.1 * (max(shown) - min(shown)) or 0.01
    low, high = min(shown) - room, max(shown) + room
    for number, (one, mean) in enumerate(zip(methods, means)):
        seconds, auc = one["costs"]["train_seconds"] + one["costs"]["before_seconds"], min(max(mean, low), high)
        marker, label = (
            ("o", one["method"])
            if number in near
            else ("v" if mean < low else "^", f"{one['method']} ({decimals(mean)})")
        )
        axis.plot(seconds, auc, marker, color=colors[one["group"]], markersize=6, clip_on=False, zorder=3)
        points.append((seconds, auc, label, colors[one["group"]]))
    axis.set_xscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: decimals(value))
    axis.margins(x=0.12)
    axis.set_ylim(low, high)
    ticks = [seconds for seconds in TIMES if axis.get_xlim()[0] <= seconds <= axis.get_xlim()[1]]
    ticks = ticks[:: 1 + len(ticks) // 7]
    axis.set_xticks(ticks, [duration(seconds) for seconds in ticks])
    axis.minorticks_off()
    axis.set(xlabel="training, with what it starts from", ylabel="test AUC", title=as_text(title(comparison)))
    heights = spread_out([(auc - low) / (high - low) for _, auc, *_ in points], LABEL / (figure.get_figheight() - 0.9))
    for (seconds, auc, label, color), height in zip(points, heights):
        line = {"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
        axis.annotate(
            "",
            (seconds, auc),
            xytext=(1.018, height),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops=line,
        )
        axis.plot(1.018, height, "o", color=color, markersize=3.5, transform=axis.transAxes, clip_on=False)
        axis.text(1.03, height, as_text(label), transform=axis.transAxes, va="center", fontsize=8)
    legend_of_groups(plt, figure, colors)
    return figure


def by_split(method: dict) -> list[float]:
    """Test AUC of each split, mean over seeds."""
    found: dict[str, list[float]] = {}
    for run in method["runs"]:
        found.setdefault(run["split"], []).append(run["test"]["auc"])
    return [float(np.mean(values)) for values in found.values()]


def decimals(value: float, sign: bool = False) -> str:
    """A tick's number with as many digits as it has, four at most."""
    text = short(value, sign=sign).rstrip("0")
    return text + "0" if text.endswith(".") else text


def spread_out(heights: list[float], step: float) -> list[float]:
    """The heights moved as little as is simple so that any two are at least `step` apart, in the same order."""
    order = np.argsort(heights)
    placed = np.asarray(heights, float)[order]
    for number in range(1, len(placed)):
        placed[number] = max(placed[number], placed[number - 1] + step)
    overflow = max(0.0, placed[-1] - 1)  # back down, where the top is passed
    for number in range(len(placed) - 1, -1, -1):
        limit = placed[number + 1] - step if number + 1 < len(placed) else placed[-1] - overflow
        placed[number] = min(placed[number], limit)
    result = np.empty(len(placed))
    result[order] = placed
    return result.tolist()
