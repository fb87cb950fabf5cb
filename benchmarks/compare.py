# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Compares methods on the same rows: a grid of datasets, splits, methods and seeds -> runs -> table, CSV and pictures.

    python benchmarks/compare.py --grid benchmarks/grids/smoke.yaml --output_dir RUNS
    OMP_NUM_THREADS=1 python benchmarks/compare.py --grid benchmarks/grids/ml-100k.yaml --set raw=RAW plm=PLM \\
        --output_dir RUNS --results_dir benchmarks/results/ml-100k

Each run is made in a process of its own, those of one split one after the other; what is finished in RUNS is not made
again, so that a comparison that was stopped goes on. docs/comparing.md says how the grid is written and how the numbers
are made.
"""

import shutil
import signal
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import yaml

from flip_ctr.benchmarks.comparison.grid import Dataset, GridError, Split, load_grid
from flip_ctr.benchmarks.comparison.pictures import draw
from flip_ctr.benchmarks.comparison.runs import Data, RunFailed, Workshop
from flip_ctr.benchmarks.comparison.summary import Comparison
from flip_ctr.benchmarks.comparison.tables import tables, write_csv
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments


@dataclass
class CompareArguments(Options):
    grid: str = required("YAML file that says what is compared", path=True)
    output_dir: str = required("folder for dataset folders and runs", path=True)
    results_dir: str | None = option(
        None, "folder for table.md, results.csv and a picture a comparison; `results` in the output folder", path=True
    )
    set: list[str] = option([], "NAME=VALUE: values of the grid's settings")
    only: list[str] = option([], "labels of the methods to compare; all when not given")
    splits: list[str] = option([], "splits to compare on, e.g. random-42 cold_items-42; all when not given")
    reference: list[str] = option(
        [],
        "labels of the methods that differences are to, the picture's first; the best baseline on validation when not "
        "given",
    )
    jobs: int = option(
        1, "splits to work on at a time; each run gets its share of the cores, where OMP_NUM_THREADS says nothing else"
    )
    peer_python: str = option(
        sys.executable, "Python interpreter that has the other libraries; this one when not given", path=True
    )
    bootstrap_samples: int = option(2000, "samples of users for the intervals")
    delete_weights: bool = option(False, "delete the weights of finished runs that no other run needs")
    stop_on_error: bool = option(False, "stop at the first run that fails; the others are made otherwise")
    report_only: bool = option(False, "make no run: report what is finished")


def read_settings(given: list[str]) -> dict:
    """`NAME=VALUE`s as a dict; a value is read as YAML, and a folder that is there made absolute."""
    settings = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise GridError(f"--set {one}: expected NAME=VALUE")
        settings[name] = str(Path(value).resolve()) if Path(value).exists() else yaml.safe_load(value)
    return settings


def run(args: CompareArguments) -> dict:
    """Makes the runs and writes the results, which it returns.

    Raises:
        GridError: the grid, or an option of a run, is wrong.
        RunFailed: a run failed, and `--stop_on_error` was given.
        ValueError: the output folder is in use.
    """
    # 1. The grid, checked as a whole
    if args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1; got {args.jobs}")
    if args.bootstrap_samples < 1:
        raise ValueError(f"--bootstrap_samples must be at least 1; got {args.bootstrap_samples}")
    if shutil.which(args.peer_python) is None:
        raise ValueError(f"--peer_python {args.peer_python}: there is no such program")
    grid = load_grid(args.grid, read_settings(args.set), args.only, args.splits)
    labels = [method.label for method in grid.methods]
    for one in args.reference:
        if one not in labels:
            raise GridError(f"--reference {one}: the methods compared are {', '.join(labels)}")
    workshop = Workshop(grid, Path(args.output_dir), args.peer_python, not args.report_only, args.jobs)
    results_dir = Path(args.results_dir) if args.results_dir else Path(args.output_dir) / "results"

    # 2. Dataset folders and runs
    def make(dataset: Dataset, split: Split) -> Data | None:
        """All runs on a split; None where it cannot be had."""
        try:
            data = workshop.data(dataset, split)
        except RunFailed as failure:
            workshop.failures.append(failure)
            if args.stop_on_error:
                raise
            return None
        for seed in grid.seeds:
            for number, method in enumerate(grid.methods):
                try:
                    workshop.produce(method.run, data, seed)
                except RunFailed:
                    if args.stop_on_error:
                        raise
                if args.delete_weights:
                    workshop.delete_weights(data, seed, kept=grid.needed(grid.methods[number + 1 :]))
        return data

    with workshop.locked():
        datas: dict[tuple[str, str], list[Data]] = {}
        with ThreadPoolExecutor(args.jobs) as pool:
            try:
                tasks = [
                    (dataset, split, pool.submit(make, dataset, split))
                    for dataset in grid.datasets
                    for split in dataset.splits
                ]
                wait([task for *_, task in tasks], return_when=FIRST_EXCEPTION)
                for dataset, split, task in tasks:
                    if task.done() and (data := task.result()) is not None:
                        datas.setdefault((dataset.name, split.kind), []).append(data)
            except BaseException:
                workshop.end()  # the threads end with their runs
                pool.shutdown(cancel_futures=True)
                raise

        # 3. Numbers, from the predictions alone
        by_name = {dataset.name: dataset for dataset in grid.datasets}
        comparisons = [
            Comparison(workshop, grid, by_name[name], group, args.bootstrap_samples, args.reference).numbers()
            for (name, _), group in datas.items()
        ]
    if args.report_only and not any(one["runs"] for comparison in comparisons for one in comparison["methods"]):
        raise ValueError(
            f"--report_only: no run of {args.grid} is finished in --output_dir {args.output_dir}; nothing was written"
        )
    results = {
        "grid": Path(args.grid).name,
        "comparisons": comparisons,
        "failures": [str(one).splitlines()[0] for one in workshop.failures],
    }

    # 4. Table, CSV and pictures
    results_dir.mkdir(parents=True, exist_ok=True)
    text = tables(results)
    (results_dir / "table.md").write_text(text, encoding="utf-8")
    write_csv(results, results_dir / "results.csv")
    pictures = draw(results, results_dir)
    print(f"\n{text}\nwritten to {results_dir}: {', '.join(['table.md', 'results.csv', *pictures])}")
    for failure in workshop.failures:
        print(f"\nfailed: {failure}", file=sys.stderr)
    return results


def main() -> int:
    args = parse_arguments(CompareArguments, description=__doc__.split("\n")[0])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the runs in progress are ended too
    try:
        results = run(args)
    except (GridError, RunFailed, ValueError, OSError) as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    except KeyboardInterrupt:
        print("\ncompare: stopped; finished runs are kept, and the same command goes on", file=sys.stderr)
        return 130
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
