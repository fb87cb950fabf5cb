# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a run, and of methods side by side. Drawn where matplotlib is installed (`plot` extra)."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import expit

from flip_ctr.data.prepare.figures import COLORS, INK, MUTED, pyplot, save, titles_and_legends

CURVES_FILE, COMPARISON_FILE, RELIABILITY_FILE = "training.png", "comparison.png", "reliability.png"
CHANGES_FILE = "fields.png"
MOST_PARTS, MOST_ENTRIES = 15, 8  # of a row, that are drawn
SMALLEST_CHANGE = 5e-4  # that has a number
RELIABILITY_BINS = 15
SHOWN_SHARE = 0.99  # of the predictions, at least, that the reliability diagram shows

# group of methods -> what the legend calls it, and its colour: the same in every picture
GROUPS = {
    "ID-only": ("ID-only", "#6e6d69"),
    "PLM-only": ("PLM-only", "#56B4E9"),
    "ID+PLM": ("ID and PLM, not pretrained", "#CC79A7"),
    "control": ("control: MAP", "#D55E00"),
    "FLIP": ("FLIP", "#0072B2"),
    "": ("other", INK),
}
ROW, NAMES, PANEL = 0.29, 2.6, 1.95  # inches: height of a method, width of the names and of a panel
WRAP = 44  # letters of a line of a method's name; two lines of them fit into a row


def plot_history(history: list[dict], folder: str) -> str | None:
    """Draws the curves of a history (see `training_loop.train`) to `training.png`: losses, and each measured kind of
    number."""
    plt = pyplot()
    if plt is None:
        return None
    figure = history_figure(plt, history)
    return save(plt, figure, folder, CURVES_FILE)


def history_figure(plt, history: list[dict]):
    names = list(dict.fromkeys(name for entry in history for name in entry))
    parts = [name for name in names if name.endswith("_loss") and not name.startswith("eval_")]
    panels = [("Training loss", parts or ["loss"])]
    if "eval_auc" in names:
        panels += [("Validation AUC", ["eval_auc"]), ("Validation LogLoss (lower is better)", ["eval_logloss"])]
    for kind, title in (("mlm", "MLM accuracy"), ("mtm", "MTM accuracy")):
        pair = [name for name in (f"eval_{kind}_accuracy", f"eval_{kind}_shuffled_accuracy") if name in names]
        if pair:
            panels.append((f"{title}: the gap is alignment", pair))
    if "eval_icl_accuracy" in names:
        panels.append(("ICL accuracy", ["eval_icl_accuracy"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.9), squeeze=False, layout="constrained")
    last = math.ceil(max(entry["epoch"] for entry in history))
    for axis, (_, shown) in zip(axes[0], panels):
        for color, name in zip(COLORS, shown):
            points = [(entry["epoch"], entry[name]) for entry in history if entry.get(name) is not None]
            label = "shuffled rows" if "shuffled" in name else name.removeprefix("eval_").replace("_", " ")
            label = "true rows" if len(shown) == 2 and "accuracy" in name and "shuffled" not in name else label
            axis.plot(
                *zip(*points),
                color=color,
                label=label if len(shown) > 1 else None,
                marker="o" if len(points) < 30 else None,
                markersize=3.5,
                clip_on=False,
            )
        axis.set(xlabel="epoch", xlim=(0, last))
        axis.locator_params(axis="x", nbins=6, integer=True, min_n_ticks=1)
    titles_and_legends(axes[0], [title for title, _ in panels], columns=3)
    return figure


def plot_reliability(
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray,
    folder: str,
    uncalibrated: Mapping[str, np.ndarray] | None = None,
) -> str | None:
    """Draws `reliability.png`: observed click rate against predicted probability, in bins of equal size, above their
    distribution.

    Args:
        scores: `logits` `(N,)`, log odds.
        labels: `(N,)` clicks, 0 or 1.
        uncalibrated: the same before a correction, drawn beside: both axes are then logarithmic, as negative sampling
            alone changes probabilities by orders of magnitude.
    """
    plt = pyplot()
    if plt is None:
        return None
    before = None if uncalibrated is None else uncalibrated["logits"]
    return save(plt, reliability_figure(plt, scores["logits"], labels, before), folder, RELIABILITY_FILE)


def reliability_bins(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, click rate, and how far its 95 % interval reaches below and above it, of bins of equal size."""
    probabilities = expit(logits.astype(np.float64))
    bins = [part for part in np.array_split(np.argsort(logits, kind="stable"), RELIABILITY_BINS) if len(part)]
    sizes = np.array([len(part) for part in bins])
    predicted = np.array([probabilities[part].mean() for part in bins])
    observed = np.array([labels[part].mean() for part in bins])
    # Wilson's interval: that of the normal approximation has no width where a bin is all clicks or none
    z = 1.96
    center = (observed + z**2 / (2 * sizes)) / (1 + z**2 / sizes)
    half = z * np.sqrt(observed * (1 - observed) / sizes + z**2 / (4 * sizes**2)) / (1 + z**2 / sizes)
    return predicted, observed, np.clip(np.stack([observed - (center - half), center + half - observed]), 0, None)


def reliability_figure(plt, logits: np.ndarray, labels: np.ndarray, before: np.ndarray | None = None):
    """See [`plot_reliability`]; both axes have the limits of the bins, their intervals and 99 % of the predictions."""
    edge, shown = (1 - SHOWN_SHARE) / 2, []
    series = [("observed, 95 %", COLORS[0], logits)]
    series += [] if before is None else [("before the correction", COLORS[1], before)]
    drawn = [
        (label, color, expit(one.astype(np.float64)), *reliability_bins(one, labels)) for label, color, one in series
    ]
    for _, _, probabilities, predicted, observed, bounds in drawn:
        ends = (
            [] if before is not None else [observed - bounds[0]]
        )  # of no click: it has no place on a logarithmic axis
        shown += [predicted, observed + bounds[1], np.quantile(probabilities, [edge, 1 - edge]), *ends]
    shown = np.concatenate(shown)
    if before is None:
        room = 0.04 * (shown.max() - shown.min()) + 1e-6
        limits = max(0.0, shown.min() - room), min(1.0, shown.max() + room)
        steps = np.linspace(*limits, 41)
    else:
        limits = max(1e-12, shown.min()) / 1.2, min(1.0, shown.max() * 1.2)
        steps = np.geomspace(*limits, 41)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(4.2, 5.4), sharex=True, height_ratios=(4, 1), layout="constrained"
    )
    above.plot(limits, limits, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    for label, color, _, predicted, observed, bounds in drawn[::-1]:  # what the model says lies on top
        above.errorbar(
            predicted, observed, yerr=bounds, fmt="o", color=color, markersize=4.5, elinewidth=1.2, label=label
        )
    titles_and_legends([above], ["Reliability"], columns=2 if before is None else 1)
    above.set(ylabel="observed click rate", xlim=limits, ylim=limits, box_aspect=1)
    for _, color, probabilities, *_ in drawn:
        below.hist(probabilities, bins=steps, color=color, histtype="stepfilled", alpha=1 / len(drawn))
    below.set(xlabel="predicted click probability", ylabel="rows", box_aspect=0.25)
    below.grid(False, axis="x")
    if before is not None:
        above.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    ticks = (1,) if limits[1] > 50 * limits[0] else (1, 2, 5)  # of a decade
    for axis in (above.xaxis, above.yaxis):
        axis.set_major_locator(plt.MaxNLocator(6) if before is None else plt.LogLocator(subs=ticks))
        if before is not None:
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(plt.NullFormatter())
    return figure


# --- explanations of scores


def plot_explanation(answer: dict[str, Any], folder: str, file: str, title: str = "") -> str | None:
    """Draws what [`explain`] says of a row: the changes of its fields and history, and of the entries that change most,
    as bars.

    Args:
        answer: of one row.
        file: name of the picture.
        title: what the row is called.
    """
    plt = pyplot()
    if plt is None:
        return None
    return save(plt, explanation_figure(plt, answer, title), folder, file)


def explanation_figure(plt, answer: dict[str, Any], title: str):
    """See [`plot_explanation`]; the most telling parts stand above, and what is not drawn is said."""
    panels, hidden = [], []
    for most, name, is_entry in ((MOST_PARTS, "the fields", False), (MOST_ENTRIES, "the history's entries", True)):
        parts = [part for part in answer["parts"] if (part["kind"] == "entry") == is_entry]
        shown = sorted(parts, key=lambda part: -abs(part["change"]))[:most]
        if shown:
            panels.append(shown)
        if len(parts) > most:
            hidden.append(f"{len(parts) - most} of {name}")
    sizes = [len(panel) for panel in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(6.4, 1.35 + 0.26 * sum(sizes) + 0.4 * (len(panels) - 1)),
        height_ratios=sizes,
        squeeze=False,
        layout="constrained",
    )
    for axis, parts in zip(axes[:, 0], panels):
        draw_changes(axis, [part_name(part) for part in parts], [part["change"] for part in parts], signed=True)
    figure.suptitle("\n".join(filter(None, [title, *score_words(answer)])), x=0.01, ha="left", fontsize=9)
    if len(panels) > 1:
        axes[1, 0].set_title("Entries of the history, on a scale of their own", fontsize=9)
    note = ["change in log odds that the part makes"] + (
        [f"not shown, as they change less: {', '.join(hidden)}"] if hidden else []
    )
    axes[-1, 0].set_xlabel("\n".join(note), fontsize=8)
    return figure


def score_words(answer: dict[str, Any]) -> list[str]:
    """The score of a row in words, and that of each side of a joint model."""
    base = expit(answer["base_log_odds"])
    words = [f"click probability {answer['click_probability']:.1%}, with all parts left out {base:.1%}"]
    if "id_weight" in answer:
        ids, text = (expit(answer[f"{side}_log_odds"]) for side in ("id", "text"))
        weight = answer["id_weight"]
        words.append(
            f"by the ids alone {ids:.1%} (weight {weight:.2f}), by the text alone {text:.1%} ({1 - weight:.2f})"
        )
    return words


def part_name(part: dict[str, Any]) -> str:
    """A part as a picture names it."""
    value = "unknown" if part["value"] is None else part["value"]
    name = value if part["kind"] == "entry" else f"{part['part']}: {value}"
    return textwrap.shorten(name, WRAP, placeholder=" …") if len(name) > WRAP else name


def draw_changes(axis, names: Sequence[str], changes: Sequence[float], signed: bool) -> None:
    """Bars with their numbers, the first above; `signed`: what raises the score has another colour than what lowers
    it."""
    heights = np.arange(len(names))[::-1]
    colors = [COLORS[int(signed and change < 0)] for change in changes]
    axis.barh(heights, changes, color=colors, height=0.66)
    for height, change in zip(heights, changes):
        text = "0" if abs(change) < SMALLEST_CHANGE else f"{change:+.3f}" if signed else f"{change:.3f}"
        axis.annotate(
            text,
            (change, height),
            xytext=(-3 if change < 0 else 3, 0),
            textcoords="offset points",
            va="center",
            ha="right" if change < 0 else "left",
            fontsize=8,
            color=MUTED,
        )
    axis.set_yticks(heights, names, color=INK, fontsize=8.5)
    axis.tick_params(axis="y", left=False)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.margins(x=0.16)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.axvline(0, color=MUTED, linewidth=0.8)


def plot_changes(changes: Mapping[str, float], rows: int, folder: str) -> str | None:
    """Draws the mean absolute change in log odds that each field makes over so many rows to `fields.png`."""
    plt = pyplot()
    if plt is None:
        return None
    ordered = sorted(changes.items(), key=lambda one: -one[1])
    figure, axis = plt.subplots(figsize=(5.2, 0.9 + 0.26 * len(ordered)), layout="constrained")
    draw_changes(axis, [name for name, _ in ordered], [change for _, change in ordered], signed=False)
    axis.set_title("What the score changes by without a field", fontsize=9)
    axis.set_xlabel(f"mean absolute change in log odds over {rows:,} row{'s' * (rows > 1)}", fontsize=8)
    return save(plt, figure, folder, CHANGES_FILE)


# --- methods side by side


@dataclass(frozen=True)
class Panel:
    """A number of every method, as dots beside each other.

    Attributes:
        values: None where a method has none.
        intervals: of each value, None where it is not known.
        beside: texts to the left of the panel, a method each.
        beside_title: what they are.
        zero: whether a line marks 0.
        ticks: where given, the axis is logarithmic and has these ticks, value -> label.
        text: a value as text, for ticks and for values that are too far off the others.
    """

    title: str
    values: Sequence[float | None]
    intervals: Sequence[Sequence[float] | None]
    beside: Sequence[str] = ()
    beside_title: str = ""
    zero: bool = False
    ticks: dict[float, str] = field(default_factory=dict)
    text: Callable[[float], str] = "{:g}".format


def methods_figure(plt, names: list[str], groups: list[str], panels: list[Panel], note: str, hollow: Sequence[bool]):
    """A row a method, with a dot and its interval in each panel. Dots stand alone: what differs is far from zero, and
    a stem or bar that starts elsewhere would lie about ratios.

    Args:
        groups: of each method, a key of `GROUPS`.
        note: what stands below the panels.
        hollow: which methods have open dots: other libraries'.
    """
    heights = np.arange(len(names))[::-1]
    size = NAMES + PANEL * len(panels), ROW * len(names) + 1.25
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    colors = [GROUPS[group][1] for group in groups]
    for axis, panel in zip(axes[0], panels):
        shown = [number for number, value in enumerate(panel.values) if value is not None]
        near = [shown[number] for number in not_far_off([panel.values[number] for number in shown])]
        if panel.ticks:
            near = shown
            axis.set_xscale("log")
        for number in near:
            draw_method(axis, heights[number], panel, number, colors[number], hollow[number])
        axis.margins(x=0.06)
        left, right = axis.get_xlim()
        for number in shown:
            value, below = panel.values[number], panel.values[number] < left
            if number in near:
                continue
            if left <= value <= right:  # the others' intervals made room
                draw_method(axis, heights[number], panel, number, colors[number], hollow[number])
                continue
            axis.text(  # its number, where the axis ends
                0.01 if below else 0.99,
                heights[number],
                f"◂ {panel.text(value)}" if below else f"{panel.text(value)} ▸",
                color=colors[number],
                fontsize=8,
                va="center",
                ha="left" if below else "right",
                transform=axis.get_yaxis_transform(),
            )
        axis.set_xlim(left, right)
        if panel.zero:
            axis.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if panel.ticks:
            ticks = [tick for tick in panel.ticks if left <= tick <= right]
            if len(ticks) < 2:  # one to each side
                ticks = [*[tick for tick in panel.ticks if tick < left][-1:], *ticks]
                ticks += [tick for tick in panel.ticks if tick > right][:1]
            ticks = ticks[:: 1 + len(ticks) // 5]  # labels of more would touch
            axis.set_xticks(ticks, [panel.ticks[tick] for tick in ticks])
            axis.set_xlim(min(left, *ticks), max(right, *ticks))
            axis.minorticks_off()
        else:
            axis.locator_params(axis="x", nbins=4)
            axis.xaxis.set_major_formatter(lambda value, _, text=panel.text: text(value))
        for height, text in zip(heights, panel.beside):
            axis.text(-0.03, height, text, transform=axis.get_yaxis_transform(), va="center", ha="right", fontsize=8)
        if panel.beside:
            place = {"xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points"}
            axis.annotate(panel.beside_title, (-0.03, 1), **place, va="bottom", ha="right", fontsize=8)
        axis.set_title(panel.title)
        axis.tick_params(left=False, labelsize=8)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.spines["left"].set_visible(False)
    axes[0, 0].set_yticks(heights, [in_lines(name) for name in names], color=INK)
    axes[0, 0].tick_params(axis="y", pad=34 if panels[0].beside else 3, labelsize=8.5)
    figure.supxlabel(textwrap.fill(as_text(note), round(15 * size[0])), fontsize=8, color=MUTED)
    legend = [
        plt.Line2D([], [], color=color, marker="o", linestyle="", markersize=5, label=title)
        for group, (title, color) in GROUPS.items()
        if group in groups
    ]
    if any(hollow):
        dot = {"markerfacecolor": "white", "color": MUTED, "marker": "o", "linestyle": "", "markersize": 5}
        legend.append(plt.Line2D([], [], label="another library", **dot))
    if len(legend) > 1:
        figure.legend(
            handles=legend,
            loc="outside upper left",
            ncols=len(legend),
            fontsize=8.5,
            handletextpad=0.1,
            columnspacing=1.2,
        )
    return figure


def draw_method(axis, height: float, panel: Panel, number: int, color: str, hollow: bool) -> None:
    """A method's dot, and its interval where it is known."""
    if panel.intervals[number] is not None:
        axis.hlines(height, *panel.intervals[number], color=color, linewidth=1.8)
    face: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.4} if hollow else {}
    axis.plot(panel.values[number], height, "o", color=color, markersize=5, **face)


def not_far_off(values: list[float]) -> list[int]:
    """Which of the values can share an axis: all, or those not far from most where a few would press the others
    together."""
    if not values:
        return []
    far = np.abs(values - np.median(values))
    near = far <= 8 * np.median(far)
    return [number for number in range(len(values)) if near[number] or 3 * (~near).sum() > len(values)]


def in_lines(name: str) -> str:
    """A method's name, a long one in two lines of about the same length."""
    return textwrap.fill(as_text(name), WRAP if len(name) <= WRAP else len(name) // 2 + 6, break_on_hyphens=False)


def as_text(name: str) -> str:
    """A name as matplotlib draws it letter by letter: what stands between two dollars would be a formula."""
    return name.replace("$", r"\$")


def plot_comparison(rows: list[dict], folder: str, columns: dict[str, str], note: str = "") -> str | None:
    """Draws methods side by side to `comparison.png`, one panel a metric.

    Args:
        rows: one dict a method, with `method`, `group` (a key of `GROUPS`), the metrics, and `<metric>_interval` where
            it is known.
        columns: metric -> title of its panel.
        note: what stands below.
    """
    plt = pyplot()
    if plt is None:
        return None
    panels = [
        Panel(
            title,
            [row[name] for row in rows],
            [row.get(f"{name}_interval") for row in rows],
            beside=[f"{row[name]:.4f}" for row in rows],
        )
        for name, title in columns.items()
    ]
    names, groups = [row["method"] for row in rows], [row["group"] for row in rows]
    figure = methods_figure(plt, names, groups, panels, note, [False] * len(rows))
    return save(plt, figure, folder, COMPARISON_FILE)
