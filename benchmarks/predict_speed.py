# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Speed and memory of `flip-ctr predict`, by the number of rows.

    python benchmarks/predict_speed.py --model_name_or_path M --dataset_dir D --rows 10000 10000000

The rows are those of the test split, again and again. Each number of rows is scored in a process of its own, start and
imports included; what the larger one takes more than the smaller one is what rows take, and not the model.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from flip_ctr.benchmarks.children import answer, measure, peak_gb, print_numbers, write_rows
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.row_files import lists_as_text
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments


@dataclass
class SpeedArguments(Options):
    model_name_or_path: str = required("click model", model=True)
    dataset_dir: str = required("dataset folder whose test rows are scored", path=True)
    rows: list[int] = option([10_000, 1_000_000], "numbers of rows", at_least=1)
    format: str = option("csv", "of input and output", choices=("csv", "parquet"))
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def child(model: str, source: str, target: str) -> dict:
    from flip_ctr.train import predict

    started = time.perf_counter()
    counts = predict.run(predict.PredictArguments(model, [source], target))
    return counts | {"seconds_in_run": time.perf_counter() - started, "peak_gb": peak_gb()}


def write(table: pa.Table, rows: int, path: Path) -> None:
    """Writes so many rows: the table again and again."""
    kind = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter
    with kind(str(path), table.schema) as writer:
        while rows > 0:
            writer.write_table(table.slice(0, rows))
            rows -= min(rows, len(table))


def run(args: SpeedArguments) -> list[dict]:
    parts = sorted((Path(args.dataset_dir) / "data").glob("test-*.parquet"))
    table = pa.concat_tables([pq.read_table(part) for part in parts])
    if args.format == "csv":
        table = lists_as_text(table, DatasetSchema.load(args.dataset_dir).fields)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            source, target = Path(folder, f"rows.{args.format}"), Path(folder, f"scores.{args.format}")
            write(table, rows, source)
            started = time.perf_counter()
            result = measure(args.model_name_or_path, str(source), str(target))
            target.unlink()
            result |= {"seconds": time.perf_counter() - started, "input_mb": source.stat().st_size / 2**20}
            results.append({"rows": rows, **result, "rows_per_second": rows / result["seconds"]})
            print_numbers(results[-1])
    write_rows(results, args.output_file)
    return results


if __name__ == "__main__" and not answer(child):
    run(parse_arguments(SpeedArguments, description=__doc__))
