# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The picture of a comparison: a row a method, with its test AUC, the differences to the reference with their
intervals, and the training time. Drawn where matplotlib is installed (`plot` extra)."""

from pathlib import Path

from flip_ctr.benchmarks.comparison.recipes import RECIPES
from flip_ctr.benchmarks.comparison.tables import main_reference, short, title
from flip_ctr.data.prepare.figures import pyplot, save
from flip_ctr.train.outputs.plots import Panel, methods_figure

TIMES = {
    0.01: "0.01 s",
    0.1: "0.1 s",
    1: "1 s",
    10: "10 s",
    60: "1 min",
    600: "10 min",
    3600: "1 h",
    36_000: "10 h",
    360_000: "100 h",
}
METRICS = {"auc": ("AUC", "right"), "logloss": ("LogLoss", "left")}


def draw(results: dict, folder: Path) -> list[str]:
    """Draws `<dataset>-<kind>.png` for each comparison; returns their names."""
    plt = pyplot()
    if plt is None:
        return []
    names = []
    for comparison in results["comparisons"]:
        methods = [one for one in comparison["methods"] if one["runs"]]
        if methods:
            name = f"{comparison['dataset']}-{comparison['kind']}.png"
            names.append(Path(save(plt, comparison_figure(plt, comparison, methods), folder, name)).name)
    return names


def comparison_figure(plt, comparison: dict, methods: list[dict]):
    """Differences to the reference, or where there is none the metrics themselves, and the time of all training that a
    method needs, search left out."""
    reference, panels = main_reference(comparison), []
    to_it = comparison["differences"].get(reference, {})
    for metric, (name, better) in METRICS.items():
        if reference is None:
            found = [one["test"][metric] for one in methods]
        else:  # the reference has no difference to itself: a dot at 0
            itself = {"mean": 0.0, "interval": None}
            found = [itself if one["method"] == reference else to_it[one["method"]].get(metric) for one in methods]
        panels.append(
            Panel(
                f"{name}, difference\n{better} is better" if reference else f"test {name}\n{better} is better",
                [one and one["mean"] for one in found],
                [one and one["interval"] for one in found],
                beside=[short(one["test"]["auc"]["mean"]) for one in methods] if metric == "auc" else (),
                beside_title="test\nAUC",
                zero=reference is not None,
                text=lambda value: "0" if abs(value) < 1e-9 else decimals(value, sign=reference is not None),
            )
        )
    seconds = [one["costs"]["train_seconds"] + one["costs"]["before_seconds"] for one in methods]
    panels.append(Panel("training time, with\nwhat it starts from", seconds, [None] * len(methods), ticks=TIMES))
    note = f"{title(comparison)}. Lines: 95 % over {comparison['clusters']:,} {comparison['clusters_are']}"
    note += f", mean of {len(comparison['splits'])} splits" if len(comparison["splits"]) > 1 else ", one split"
    note += f". Differences to {reference}." if reference else "."
    hollow = [RECIPES[one["recipe"]].library is not None for one in methods]
    names, groups = [one["method"] for one in methods], [one["group"] for one in methods]
    return methods_figure(plt, names, groups, panels, note, hollow)


def decimals(value: float, sign: bool = False) -> str:
    """A tick's number with as many digits as it has, four at most."""
    text = short(value, sign=sign).rstrip("0")
    return text + "0" if text.endswith(".") else text
