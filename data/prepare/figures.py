# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What all pictures share. They are drawn where matplotlib is installed (`plot` extra)."""

import logging
import os

logger = logging.getLogger("flip_ctr")

# Okabe and Ito's, which people with any kind of colour blindness tell apart; text stays in ink colours
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
INK, MUTED, GRID = "#0b0b0b", "#52514e", "#e4e3df"


def pyplot():
    """matplotlib's pyplot in the style of all pictures; None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        logger.info("matplotlib is not installed: no picture drawn (pip install 'flip-ctr[plot]')")
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "text.parse_math": False,  # names are text, whatever dollars are in them
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": MUTED,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "text.color": INK,
            "axes.titlecolor": INK,
            "axes.grid": True,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "figure.dpi": 150,
            "legend.frameon": False,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "lines.linewidth": 2,
        }
    )
    return plt


def titles_and_legends(axes, titles: list[str], columns: int = 2) -> None:
    """The panels' titles, level with each other, and below them the legends of the panels with labels, in rows of
    `columns`: above the axes, so that they cover no data."""
    labels = [axis.get_legend_handles_labels()[1] for axis in axes]
    rows = max(-(-len(one) // columns) for one in labels)
    for axis, title, shown in zip(axes, titles, labels):
        axis.set_title(title, pad=6 + 13 * rows)
        if shown:
            axis.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                borderpad=0.3,
                borderaxespad=0,
                ncols=columns,
                fontsize=8,
                handlelength=1.4,
                handletextpad=0.5,
                columnspacing=1.2,
                labelspacing=0.3,
            )


def save(plt, figure, folder: str | os.PathLike, name: str) -> str:
    """Writes the figure into the folder, closes it and returns the file's path."""
    path = os.path.join(folder, name)
    figure.savefig(path)
    plt.close(figure)
    return path
