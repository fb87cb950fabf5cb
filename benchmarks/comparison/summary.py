# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""From finished runs to numbers: metrics of each run, means over splits, paired differences with intervals, costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flip_ctr.benchmarks.comparison.grid import Dataset, Grid, Method
from flip_ctr.benchmarks.comparison.intervals import (
    draw_weights,
    interval,
    number_clusters,
    resampled_auc,
    resampled_logloss,
)
from flip_ctr.benchmarks.comparison.predictions import SPLITS
from flip_ctr.benchmarks.comparison.runs import Data, Finished, RunFailed, Workshop, read_costs
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.modeling_flip.fields_flip import FlipField

RESAMPLED = {"auc": resampled_auc, "logloss": resampled_logloss}
COSTS = ("train_seconds", "before_seconds", "total_seconds", "rows_per_second", "parameters", "trained_parameters")


@dataclass(frozen=True)
class Rows:
    """What the test rows of a dataset folder say beside the predictions: `units`, the user and the item whose row each
    is, `(N,)` each, None where the dataset has no such column, and `counts` for the reader."""

    units: dict[str, np.ndarray]
    counts: dict[str, int]


def read_rows(data: Data) -> Rows:
    """Users and items of the test rows, and how many rows, users and items there are, and how many of them training has
    not seen."""
    schema = DatasetSchema.load(data.folder)
    columns = {
        entity: next((field.name for field in schema.fields if is_key(field, entity)), None)
        for entity in ("user", "item")
    }
    columns["user"] = schema.user_column or columns["user"]
    wanted = list(dict.fromkeys([schema.label, *filter(None, columns.values())]))
    train, test = (read_split(data.folder, split, wanted).to_pandas() for split in ("train", "test"))
    counts = {"rows": len(test), "clicks": int(test[schema.label].sum())}
    for entity, column in columns.items():
        if column is not None:
            unseen = test[column][~test[column].isin(train[column].unique())]
            counts |= {
                f"{entity}s": test[column].nunique(),
                f"new_{entity}s": unseen.nunique(),
                f"new_{entity}_rows": len(unseen),
            }
    units = {
        entity: np.full(len(test), None, object) if column is None else test[column].to_numpy(object)
        for entity, column in columns.items()
    }
    return Rows(units, counts)


def resampled_entity(splits: Sequence[Rows]) -> str:
    """Users are drawn, as they are what a model meets anew; where no item of a test split was in training the items
    are, whose rows share what is wrong with one."""
    return "item" if all(rows.counts.get("new_item_rows") == rows.counts["rows"] for rows in splits) else "user"


def is_key(field: FlipField, entity: str) -> bool:
    return field.entity == entity and field.key and not field.is_multi_valued


class Comparison:
    """All runs of the grid's methods on the splits of one kind of one dataset.

    Args:
        workshop: knows the finished runs.
        datas: the dataset folders, one a split.
        samples: bootstrap samples.
        references: labels of the methods that differences are to; the best baseline when there are none.
    """

    def __init__(
        self,
        workshop: Workshop,
        grid: Grid,
        dataset: Dataset,
        datas: Sequence[Data],
        samples: int,
        references: Sequence[str] = (),
    ):
        self.references = references
        self.workshop, self.grid, self.dataset, self.datas, self.samples = workshop, grid, dataset, datas, samples
        self.rows = [read_rows(data) for data in datas]
        self.target = dataset.target(datas[0].split.kind)
        self.entity = resampled_entity(self.rows)
        self.clusters, self.num_clusters, self.by_unit = number_clusters(
            [rows.units[self.entity] for rows in self.rows]
        )
        self.resampled: dict[str, dict[int, dict[str, np.ndarray]]] = {}  # method -> split -> metric -> (samples,)

    def numbers(self) -> dict:
        """What tables, CSV and pictures show."""
        weights = draw_weights(self.num_clusters, self.samples)
        methods = [self.method(method, weights) for method in self.grid.methods]
        best = self.best_baseline(methods)
        labels = self.references or [best]
        finished = {one["method"]: one for one in methods if one["runs"]}
        return {
            "dataset": self.dataset.name,
            "kind": self.datas[0].split.kind,
            "target_auc": self.target,
            "splits": [{"name": data.split.name, **rows.counts} for data, rows in zip(self.datas, self.rows)],
            "seeds": list(self.grid.seeds),
            "bootstrap_samples": self.samples,
            "clusters": self.num_clusters,
            "clusters_are": f"{self.entity}s" if self.by_unit else "rows",
            "best_baseline": best,
            "differences": {
                label: {name: self.difference(one, finished[label]) for name, one in finished.items() if name != label}
                for label in labels
                if label in finished
            },
            "methods": methods,
        }

    def method(self, method: Method, weights: np.ndarray) -> dict:
        runs, resampled = [], {}
        for number, data in enumerate(self.datas):
            of_seeds = []
            for seed in self.grid.seeds:
                try:
                    run = self.workshop.produce(method.run, data, seed)
                except RunFailed:
                    continue
                runs.append({"split": data.split.name, "seed": seed} | self.run(run))
                test = run.predictions("test")
                given = test.logits, test.labels, self.clusters[number], weights
                of_seeds.append({metric: function(*given) for metric, function in RESAMPLED.items()})
            if of_seeds:
                resampled[number] = {metric: np.mean([one[metric] for one in of_seeds], axis=0) for metric in RESAMPLED}
        self.resampled[method.label] = resampled
        plan = self.grid.runs[method.run]
        result = {
            "method": method.label,
            "group": method.group,
            "baseline": method.baseline,
            "recipe": plan.recipe,
            "trials": self.grid.num_trials(method),
            "search": plan.search,
            "runs": runs,
        }
        if not runs:
            return result
        result |= {split: self.summary(runs, split) for split in SPLITS}
        for metric in RESAMPLED:
            result["test"][metric]["interval"] = interval(np.mean([one[metric] for one in resampled.values()], axis=0))
        return result | {"costs": self.costs(runs)}

    def run(self, run: Finished) -> dict:
        """The numbers of one run."""
        costs, before = run.costs, list(run.before().values())
        costs_before = [one.costs for one in before]
        all_trials = {folder for one in (run, *before) for folder in one.trials}
        before_seconds = sum(one["train_seconds"] for one in costs_before)
        reached = [
            before_seconds + entry["seconds"]
            for entry in costs["history"]
            if self.target is not None and entry["auc"] >= self.target
        ]
        return {
            "options": run.options,
            **{split: finite(run.predictions(split).metrics()) for split in SPLITS},
            "train_seconds": costs["train_seconds"],
            "before_seconds": before_seconds,
            "total_seconds": sum(read_costs(folder)["train_seconds"] for folder in all_trials),
            "seconds_to_target": reached[0] if reached else None,
            "evaluations": len(costs["history"]),
            "best_epoch": costs.get("best_epoch"),
            "rows_per_second": costs["rows_per_second"],
            "threads": costs["threads"],
            "device": costs["device"],
            "parameters": costs["parameters"],
            "trained_parameters": max([costs["parameters"], *(one["parameters"] for one in costs_before)]),
            "libraries": costs["libraries"],
        }

    def summary(self, runs: list[dict], split: str) -> dict:
        """Of each metric the mean over splits, in which that over seeds is taken first, and the standard deviation
        between splits."""
        return {metric: mean_over_splits(runs, lambda run: run[split].get(metric)) for metric in runs[0][split]}

    def costs(self, runs: list[dict]) -> dict:
        means = {name: float(np.mean([run[name] for run in runs])) for name in COSTS}
        measured = [run for run in runs if run["evaluations"]]  # an average has none
        reached = [run["seconds_to_target"] for run in measured if run["seconds_to_target"] is not None]
        return means | {
            "measured_target": len(measured),
            "reached_target": len(reached),
            "seconds_to_target": float(np.mean(reached)) if reached else None,
        }

    def best_baseline(self, methods: list[dict]) -> str | None:
        """Label of the baseline with the best mean of AUC - LogLoss on validation."""
        most = max(
            (len(one["runs"]) for one in methods if one["baseline"]), default=0
        )  # of those that are finished: means of the same splits
        baselines = [one for one in methods if one["baseline"] and one["runs"] and len(one["runs"]) == most]
        value = {
            one["method"]: one["validation"]["auc"]["mean"] - one["validation"]["logloss"]["mean"] for one in baselines
        }
        return max(value, key=value.__getitem__, default=None)

    def difference(self, one: dict, reference: dict) -> dict:
        """Of AUC and LogLoss on test: method minus reference on the splits that both have."""
        mine, theirs = self.resampled[one["method"]], self.resampled[reference["method"]]
        common = [number for number in mine if number in theirs]
        names = [self.datas[number].split.name for number in common]
        result = {}
        for metric in RESAMPLED if common else ():
            by_split = [mean_of(one["runs"], name, metric) - mean_of(reference["runs"], name, metric) for name in names]
            samples = np.mean([mine[number][metric] - theirs[number][metric] for number in common], axis=0)
            result[metric] = {"mean": float(np.mean(by_split)), "interval": interval(samples)}
        return result


def finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """None for what could not be measured (a GAUC without users): JSON has no NaN."""
    return {name: value if np.isfinite(value) else None for name, value in metrics.items()}


def mean_of(runs: list[dict], split: str, metric: str) -> float:
    """A test metric on one split, mean over seeds."""
    return float(np.mean([run["test"][metric] for run in runs if run["split"] == split]))


def mean_over_splits(runs: list[dict], value) -> dict:
    """Mean over splits of the mean over seeds, and the standard deviation between splits; what could not be measured is
    left out."""
    by_split: dict[str, list[float]] = {}
    for run in runs:
        number = value(run)
        if number is not None:
            by_split.setdefault(run["split"], []).append(number)
    return spread([float(np.mean(numbers)) for numbers in by_split.values()])


def spread(values: list[float]) -> dict:
    """Mean, and standard deviation where there are several values."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    }
