# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What all pictures share. They are drawn where matplotlib is installed (`plot` extra)."""

import logging
import os

logger = logging.getLogger("flip_ctr")

# validated categorical order; text stays in ink colours
COLORS = ["#2a78d6", "#1baf7a", "#eda100", "#008300", "#4a3aa7", "#e34948"]
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


def save(plt, figure, folder: str | os.PathLike, name: str) -> str:
    """Writes the figure into the folder, closes it and returns the file's path."""
    path = os.path.join(folder, name)
    figure.savefig(path)
    plt.close(figure)
    return path
