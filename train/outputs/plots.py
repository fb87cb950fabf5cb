# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a run: training curves, and a comparison of methods. Drawn where matplotlib is installed (`plot`
extra)."""

import numpy as np
from scipy.special import expit

from flip_ctr.data.prepare.figures import COLORS, GRID, MUTED, pyplot, save

CURVES_FILE, COMPARISON_FILE, RELIABILITY_FILE = "training.png", "comparison.png", "reliability.png"
RELIABILITY_BINS = 15


def plot_history(history: list[dict], folder: str) -> str | None:
    """Draws the curves of a history (see `engine.train`) to `training.png`: losses, and each measured kind of
    number."""
    plt = pyplot()
    if plt is None:
        return None
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
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 2.8), squeeze=False, layout="constrained")
    for axis, (title, shown) in zip(axes[0], panels):
        for color, name in zip(COLORS, shown):
            points = [(entry["epoch"], entry[name]) for entry in history if entry.get(name) is not None]
            label = "shuffled rows" if "shuffled" in name else name.removeprefix("eval_").replace("_", " ")
            label = "true rows" if len(shown) == 2 and "accuracy" in name and "shuffled" not in name else label
            axis.plot(*zip(*points), color=color, label=label, marker="o" if len(points) < 30 else None, markersize=3.5)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", nbins=5)
        if len(shown) > 1:
            axis.legend()
    return save(plt, figure, folder, CURVES_FILE)


def plot_reliability(logits: np.ndarray, labels: np.ndarray, folder: str) -> str | None:
    """Draws `reliability.png`: observed click rate against predicted probability, in bins of equal size, above their
    distribution.

    Args:
        logits: `(N,)` log odds.
        labels: `(N,)` clicks, 0 or 1.
    """
    plt = pyplot()
    if plt is None:
        return None
    probabilities = expit(logits.astype(np.float64))
    bins = [part for part in np.array_split(np.argsort(logits, kind="stable"), RELIABILITY_BINS) if len(part)]
    sizes = np.array([len(part) for part in bins])
    predicted = np.array([probabilities[part].mean() for part in bins])
    observed = np.array([labels[part].mean() for part in bins])
    # Wilson's interval: that of the normal approximation has no width where a bin is all clicks or none
    z = 1.96
    center = (observed + z**2 / (2 * sizes)) / (1 + z**2 / sizes)
    half = z * np.sqrt(observed * (1 - observed) / sizes + z**2 / (4 * sizes**2)) / (1 + z**2 / sizes)
    bounds = np.clip(np.stack([observed - (center - half), center + half - observed]), 0, None)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(4.2, 5.2), sharex=True, height_ratios=(3.6, 1), layout="constrained"
    )
    above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    above.errorbar(
        predicted,
        observed,
        yerr=bounds,
        fmt="o",
        color=COLORS[0],
        markersize=4.5,
        elinewidth=1.2,
        label="observed, 95 %",
    )
    above.set(title="Reliability", ylabel="observed click rate", xlim=(0, 1), ylim=(0, 1))
    above.legend(loc="upper left")
    below.hist(probabilities, bins=np.linspace(0, 1, 41), color=COLORS[0])
    below.set(xlabel="predicted click probability", ylabel="rows")
    below.grid(False, axis="x")
    return save(plt, figure, folder, RELIABILITY_FILE)


def plot_comparison(rows: list[dict], folder: str, columns: dict[str, str]) -> str | None:
    """Draws methods side by side to `comparison.png`, one panel a metric.

    Args:
        rows: one dict a method, with `method` and the metrics.
        columns: metric -> title of its panel.
    """
    plt = pyplot()
    if plt is None:
        return None
    figure, axes = plt.subplots(
        1,
        len(columns),
        figsize=(3.6 * len(columns), 0.42 * len(rows) + 1.1),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    labels = [row["method"] for row in rows][::-1]
    for axis, (name, title) in zip(axes[0], columns.items()):
        values = [row[name] for row in rows][::-1]
        low, high = min(values), max(values)
        # dots, not bars: the interesting differences are far from zero, and a cut bar would lie about ratios
        axis.hlines(labels, low - (high - low) * 0.15, values, color=GRID, linewidth=1.5)
        axis.plot(values, labels, "o", color=COLORS[0], markersize=7)
        for label, value in zip(labels, values):
            axis.annotate(f"{value:.4f}", (value, label), xytext=(7, 0), textcoords="offset points", va="center")
        axis.set_title(title)
        axis.margins(y=0.15)
        axis.set_xlim(low - (high - low) * 0.15 - 1e-6, high + (high - low) * 0.45 + 1e-6)
        axis.locator_params(axis="x", nbins=5)  # more labels would touch
        axis.grid(False)
        axis.tick_params(left=False)
    return save(plt, figure, folder, COMPARISON_FILE)
