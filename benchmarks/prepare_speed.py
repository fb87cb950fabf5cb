# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of `flip-ctr prepare` beside a pandas script that does the least of the same.

    python benchmarks/prepare_speed.py --data_dir ml-1m

Both read the raw files of MovieLens-1M, join, label, split 8:1:1 and write Parquet, each in a process of its own, start
and imports included; they take turns. The script neither checks nor counts anything, splits by a random generator and
writes no card; its ratings are read by pandas' C parser, which a `::` between values lets it do only as if every second
column were empty.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass

from flip_ctr.benchmarks.children import answer, measure, peak_gb, print_numbers, write_rows
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments


@dataclass
class SpeedArguments(Options):
    data_dir: str = required("folder with the raw files of MovieLens-1M", path=True)
    engine: str = option("duckdb", "engine of prepare", choices=["duckdb", "pyspark"])
    turns: int = option(3, "how often each runs")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def prepare(data_dir: str, output_dir: str, engine: str) -> dict:
    from flip_ctr.train import prepare as recipe

    report = recipe.run(recipe.PrepareArguments("ml-1m", output_dir, data_dir, engine=engine))
    return {"rows": report["rows_kept"], "peak_gb": peak_gb()}


def pandas_script(data_dir: str, output_dir: str) -> dict:
    import numpy as np
    import pandas as pd

    def read(name, columns):
        width = range(0, 2 * len(columns), 2)
        table = pd.read_csv(
            f"{data_dir}/{name}.dat", sep=":", header=None, usecols=width, encoding="latin-1", quoting=3
        )
        return table.set_axis(columns, axis=1)

    ratings = read("ratings", ["user_id", "movie_id", "rating", "timestamp"])
    users = read("users", ["user_id", "gender", "age", "occupation", "zip_code"])
    with open(f"{data_dir}/movies.dat", encoding="latin-1") as file:  # titles hold single colons
        movies = pd.DataFrame([line.rstrip("\n").split("::") for line in file], columns=["movie_id", "title", "genre"])
    rows = ratings.merge(users, on="user_id").merge(movies.astype({"movie_id": "int64"}), on="movie_id")
    rows = rows[rows.rating != 3]
    rows["label"] = (rows.pop("rating") >= 4).astype("int8")
    part = np.random.default_rng(0).choice(3, len(rows), p=[0.8, 0.1, 0.1])
    for code, name in enumerate(("train", "validation", "test")):
        rows[part == code].to_parquet(f"{output_dir}/{name}.parquet")
    return {"rows": len(rows), "peak_gb": peak_gb()}


def child(kind: str, *arguments: str) -> dict:
    return {"prepare": prepare, "pandas": pandas_script}[kind](*arguments)


def run(args: SpeedArguments) -> dict:
    turns = []
    for _ in range(args.turns):
        turn = {}
        for kind in ("prepare", "pandas"):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                result = measure(kind, args.data_dir, f"{folder}", *([args.engine] if kind == "prepare" else []))
                turn[kind] = result | {"seconds": time.perf_counter() - started}
        turns.append(turn)
    results = {
        "engine": args.engine,
        "rows": turns[0]["prepare"]["rows"],
        "prepare_seconds": statistics.median(turn["prepare"]["seconds"] for turn in turns),
        "pandas_seconds": statistics.median(turn["pandas"]["seconds"] for turn in turns),
        "ratio": statistics.median(turn["prepare"]["seconds"] / turn["pandas"]["seconds"] for turn in turns),
        "prepare_peak_gb": max(turn["prepare"]["peak_gb"] for turn in turns),
        "pandas_peak_gb": max(turn["pandas"]["peak_gb"] for turn in turns),
    }
    print_numbers(results)
    write_rows(results, args.output_file)
    return results


if __name__ == "__main__":
    if not answer(child):
        run(parse_arguments(SpeedArguments, description=__doc__.split("\n")[0]))
