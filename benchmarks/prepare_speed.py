# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of `flip-ctr prepare` beside a pandas script that does the least of the same.

    python benchmarks/prepare_speed.py --data_dir ml-1m

Both read the raw files of MovieLens-1M, join, label, split 8:1:1 and write Parquet, each in a process of its own, start
and imports included; they take turns. `prepare_in_pandas.py` says what the script leaves out.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from flip_ctr.benchmarks.children import print_numbers, write_rows
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments

COMMAND = [sys.executable, "-c", "import sys; from flip_ctr_command import main; sys.exit(main())", "prepare"]
SCRIPT = [sys.executable, str(Path(__file__).with_name("prepare_in_pandas.py"))]


@dataclass
class SpeedArguments(Options):
    data_dir: str = required("folder with the raw files of MovieLens-1M", path=True)
    engine: str = option("duckdb", "engine of prepare", choices=["duckdb", "pyspark"])
    turns: int = option(3, "how often each runs")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def measure(command: list[str]) -> dict[str, float]:
    """Seconds that a command takes, those of the processors, and the most memory that it has."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "peak_gb": usage.ru_maxrss / 2**20}


def run(args: SpeedArguments) -> dict:
    turns: dict[str, list[dict[str, float]]] = {"prepare": [], "pandas": []}
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as folder:
            where = ["--data_dir", args.data_dir, "--output_dir", folder, "--engine", args.engine]
            turns["prepare"].append(measure([*COMMAND, "--dataset", "ml-1m", *where]))
        with tempfile.TemporaryDirectory() as folder:
            turns["pandas"].append(measure([*SCRIPT, args.data_dir, folder]))
    results: dict = {"engine": args.engine}
    for name, found in turns.items():
        for what, of_all in (("seconds", statistics.median), ("cpu", statistics.median), ("peak_gb", max)):
            results[f"{name}_{what}"] = of_all(one[what] for one in found)
    for what in ("seconds", "cpu"):
        results[f"ratio_{what}"] = statistics.median(
            one[what] / other[what] for one, other in zip(turns["prepare"], turns["pandas"])
        )
    print_numbers(results)
    write_rows(results, args.output_file)
    return results


if __name__ == "__main__":
    run(parse_arguments(SpeedArguments, description=__doc__.split("\n")[0]))
