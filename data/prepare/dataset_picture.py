# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The picture on a dataset's card: clicks by split, values that training rows do not have, and lengths of prompts."""

from pathlib import Path

import numpy as np

from flip_ctr.data.prepare.dataset_folder import PICTURE_NAME
from flip_ctr.data.prepare.figures import COLORS, GRID, INK, MUTED, pyplot, save, titles_and_legends
from flip_ctr.data.readers.dataset_schema import DatasetSchema


def plot_dataset(report: dict, schema: DatasetSchema, folder: Path) -> str | None:
    """Draws `dataset.png` into the folder from the report of `prepare`; None where matplotlib is not installed."""
    plt = pyplot()
    if plt is None:
        return None
    histogram = report["prompt_lengths"].get("histogram")
    fields = [field.name for field in schema.fields if not field.is_history]
    panels = 3 if histogram else 2
    figure, axes = plt.subplots(
        1,
        panels,
        figsize=(3.7 * panels, max(2.9, 0.27 * len(fields) + 1)),
        layout="constrained",
        width_ratios=(1, 1.25, 1)[:panels],
    )
    _rows(axes[0], report["splits"])
    _unseen(axes[1], report["splits"], fields)
    if histogram:
        _lengths(axes[2], report["prompt_lengths"])
    titles = ["Rows and clicks", "Values no training row has, % of rows", "Prompt lengths, train"]
    titles_and_legends(axes, titles[:panels])
    return save(plt, figure, folder, PICTURE_NAME)


def _rows(axis, splits: dict) -> None:
    rows, clicks = ([splits[name][what] for name in splits] for what in ("rows", "clicks"))
    places = np.arange(len(splits))
    axis.bar(places, rows, color=GRID, width=0.62, label="no click")
    axis.bar(places, clicks, color=COLORS[0], width=0.62, label="click")
    for place, count, clicked in zip(places, rows, clicks):
        axis.annotate(
            f"{count:,}\n{clicked / count:.1%} clicks",
            (place, count),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=8,
        )
    axis.set_xticks(places, list(splits))
    axis.margins(y=0.22)
    axis.yaxis.set_major_formatter(
        lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
    )
    axis.grid(False, axis="x")
    axis.tick_params(axis="x", length=0)


def _unseen(axis, splits: dict, fields: list[str]) -> None:
    places = np.arange(len(fields))[::-1]
    for number, name in enumerate(name for name in splits if name != "train"):
        shares = [100 * splits[name]["fields"][field]["unseen_share"] for field in fields]
        axis.barh(places + 0.18 - 0.36 * number, shares, height=0.34, color=COLORS[number], label=name)
        for place, share in zip(places, shares):
            axis.annotate(
                f"{share:.3g}" if share else "0",
                (share, place + 0.18 - 0.36 * number),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                color=MUTED,
                fontsize=7,
            )
    axis.set_yticks(places, fields)
    axis.margins(x=0.14)
    axis.set_xlim(0, max(1, axis.get_xlim()[1]))  # a share far below a hundredth must look like that
    axis.grid(False, axis="y")
    axis.tick_params(axis="y", length=0)


def _lengths(axis, lengths: dict) -> None:
    edges, counts = np.array(lengths["histogram"]["edges"]), np.array(lengths["histogram"]["rows"])
    # shares a unit of length, as bins of whole numbers may differ in width
    axis.bar(
        edges[:-1], counts / np.diff(edges) / counts.sum() * 100, width=np.diff(edges), align="edge", color=COLORS[0]
    )
    axis.margins(y=0.3)  # room for what the lines say, above the bars
    train, left = lengths["splits"]["train"], True
    for value, name in ((train["median"], "median"), (train["p95"], "95 %")):
        axis.axvline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axis.annotate(
            f"{name} {value:g}",
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if left else 3, -3),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            color=INK,
            fontsize=8,
        )
        left = False
    axis.set_xlabel(lengths["unit"])
    axis.set_ylabel("% of rows")
