# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The results as people and spreadsheets read them: Markdown tables and CSV."""

import csv
from pathlib import Path

from flip_ctr.data.prepare.markdown import markdown_table

METRICS = ("auc", "logloss", "gauc", "gauc_coverage", "ece", "predicted_actual_ratio", "rows")
RUN_COSTS = (
    "train_seconds",
    "before_seconds",
    "total_seconds",
    "seconds_to_target",
    "rows_per_second",
    "threads",
    "parameters",
    "trained_parameters",
    "best_epoch",
)


def short(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """A number without the zero before its point; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{abs(value):.{digits}f}".removeprefix("0")
    negative = value < 0 and (sign or float(f"{value:.{digits}f}") != 0)  # a bound that is just below 0 is below 0
    return ("−" if negative else "+" if sign else "") + text


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def count(value: float) -> str:
    """A number of things in a few characters."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def with_sd(summary: dict) -> str:
    return short(summary["mean"]) + (f" ± {short(summary['sd'])}" if summary["sd"] is not None else "")


def difference(summary: dict | None) -> str:
    """`+.0012 [−.0004, +.0028]`, bold where the interval leaves out zero."""
    if summary is None:
        return "–"
    low, high = summary["interval"]
    text = f"{short(summary['mean'], sign=True)} [{short(low, sign=True)}, {short(high, sign=True)}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def title(comparison: dict) -> str:
    return f"{comparison['dataset']}, {comparison['kind'].replace('_', ' ')}"


def tables(results: dict) -> str:
    """All comparisons as Markdown."""
    parts = [
        part
        for one in results["comparisons"]
        for part in (f"## {title(one)}", described(one), quality(one), *other_differences(one), costs(one))
    ]
    if results["failures"]:
        parts += ["## Failed", "\n".join(f"* {failure}" for failure in results["failures"])]
    return "\n\n".join(parts) + "\n"


def described(comparison: dict) -> str:
    """What the numbers are of."""
    splits, finished = comparison["splits"], [one for one in comparison["methods"] if one["runs"]]

    def span(name: str) -> str:
        values = sorted(split[name] for split in splits if name in split)
        return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,}–{values[-1]:,}"

    of_test, several = [f"{span('rows')} rows"], len(splits) > 1
    for entity in ("user", "item"):
        if f"{entity}s" in splits[0]:
            unseen = f" ({span(f'new_{entity}s')} of them not in training, with {span(f'new_{entity}_rows')} rows)"
            of_test.append(
                f"{span(f'{entity}s')} {entity}s" + unseen * any(split[f"new_{entity}_rows"] for split in splits)
            )
    number = f"{len(splits)} splits" if several else "One split"
    number += f" ({', '.join(split['name'] for split in splits)})"
    seeds = f"{len(comparison['seeds'])} seeds" if len(comparison["seeds"]) > 1 else "one seed"
    lines = [f"{number}, {seeds} each. Test: {', '.join(of_test)}."]
    if finished:
        coverage = finished[0]["test"].get("gauc_coverage")
        lines += [f"GAUC covers {100 * coverage['mean']:.0f} % of the rows."] if coverage else []
    drawn = f"{comparison['clusters']:,} {comparison['clusters_are']}"
    lines.append(f"Intervals: 95 %, {comparison['bootstrap_samples']:,} bootstrap samples of {drawn}.")
    if reference := main_reference(comparison):
        best = ", the baseline that is best on validation" * (reference == comparison["best_baseline"])
        lines.append(f"Differences are to {reference}{best}; bold where the interval leaves out 0.")
    wanted = len(splits) * len(comparison["seeds"])
    incomplete = [
        f"{one['method']} ({len(one['runs'])} of {wanted})"
        for one in comparison["methods"]
        if len(one["runs"]) < wanted
    ]
    if incomplete:
        lines.append(f"Not all runs are finished, and means are over those that are: {', '.join(incomplete)}.")
    return " ".join(lines)


def main_reference(comparison: dict) -> str | None:
    """The first of the methods that differences are to."""
    return next(iter(comparison["differences"]), None)


def quality(comparison: dict) -> str:
    of_main = comparison["differences"].get(main_reference(comparison), {})
    header = [
        "method",
        "trials",
        "validation AUC / LogLoss",
        "test AUC",
        "test LogLoss",
        "GAUC",
        "ECE",
        "predicted / actual",
        "AUC, difference",
        "LogLoss, difference",
    ]
    rows = []
    for one in comparison["methods"]:
        if not one["runs"]:
            rows.append([one["method"], one["trials"], *["–"] * 8])
            continue
        validation, test, differences = one["validation"], one["test"], of_main.get(one["method"], {})
        gauc = short(test["gauc"]["mean"]) if "gauc" in test else "–"
        rows.append(
            [
                one["method"],
                one["trials"],
                f"{short(validation['auc']['mean'])} / {short(validation['logloss']['mean'])}",
                with_sd(test["auc"]),
                with_sd(test["logloss"]),
                gauc,
                short(test["ece"]["mean"]),
                f"{test['predicted_actual_ratio']['mean']:.3f}",
                difference(differences.get("auc")),
                difference(differences.get("logloss")),
            ]
        )
    return markdown_table(header, rows)


def other_differences(comparison: dict) -> list[str]:
    """A heading and a table for each further method that differences are to."""
    parts = []
    for label in list(comparison["differences"])[1:]:
        found = comparison["differences"][label]
        rows = [[name, difference(one.get("auc")), difference(one.get("logloss"))] for name, one in found.items()]
        parts += [f"### Differences to {label}", markdown_table(["method", "AUC", "LogLoss"], rows)]
    return parts


def costs(comparison: dict) -> str:
    target = comparison["target_auc"]
    header = [
        "method",
        "training",
        "before it",
        "all of it",
        *([f"to validation AUC {short(target)}"] if target else []),
        "test rows/s",
        "parameters",
        "trained with",
    ]
    rows = []
    for one in comparison["methods"]:
        if not one["runs"]:
            continue
        spent = one["costs"]
        reached, measured = spent["reached_target"], spent["measured_target"]
        to_target = "not reached" if measured and not reached else duration(spent["seconds_to_target"])
        to_target += f" ({reached} of {measured})" * (0 < reached < measured)
        rows.append(
            [
                one["method"],
                *(duration(spent[name] or None) for name in ("train_seconds", "before_seconds", "total_seconds")),
                *([to_target] if target else []),
                *(count(spent[name]) for name in ("rows_per_second", "parameters", "trained_parameters")),
            ]
        )
    runs = [run for one in comparison["methods"] for run in one["runs"]]
    threads, devices = (sorted({run[name] for run in runs}) for name in ("threads", "device"))
    libraries = sorted({f"{name} {version}" for run in runs for name, version in run["libraries"].items()})
    note = (
        f"Costs: means of the runs on {', '.join(devices)}, {', '.join(map(str, threads))} thread(s) each. “Before "
        "it”: training of the runs that this one starts from, which time to an AUC has too. “All of it”: both, and all "
        f"trials. “Trained with”: parameters of the largest model on the way. Libraries: {', '.join(libraries)}."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def write_csv(results: dict, path: Path) -> None:
    """One line for each dataset, split, method and seed; `chosen` are the values that validation chose of a search."""
    names = [f"{split}_{metric}" for split in ("validation", "test") for metric in METRICS]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["dataset", "kind", "split", "method", "group", "seed", "trials", "chosen", *names, *RUN_COSTS])
        for comparison in results["comparisons"]:
            for method in comparison["methods"]:
                for run in method["runs"]:
                    chosen = " ".join(f"{name}={run['options'][name]}" for name in method["search"])
                    measured = [run[split].get(metric) for split in ("validation", "test") for metric in METRICS]
                    writer.writerow(
                        [
                            comparison["dataset"],
                            comparison["kind"],
                            run["split"],
                            method["method"],
                            method["group"],
                            run["seed"],
                            method["trials"],
                            chosen,
                            *measured,
                            *(run[name] for name in RUN_COSTS),
                        ]
                    )
