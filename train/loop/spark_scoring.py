# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Scores on Spark, for tables beyond one machine: each worker loads the model once, and reads its rows as `predict`
does, so that the scores are the same."""

import dataclasses
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from accelerate import Accelerator
from torch import nn

from flip_ctr.data.outputs import new_folder
from flip_ctr.data.prepare.engines import Engine, engine_errors
from flip_ctr.data.readers.row_files import file_format
from flip_ctr.data.readers.row_reader import RowBatch
from flip_ctr.train.arguments import PredictArguments
from flip_ctr.train.loop.file_scoring import REASON, RowsToScore, added_columns, score_columns
from flip_ctr.train.loop.prompt_states import PromptReader
from flip_ctr.train.loop.scoring import prompt_reader, score_rows
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.custom_code import import_custom_code

CHECKED = "rows long, refused long, why string"  # of a batch: how many rows, how many without a score, why the first


def predict_on_spark(args: PredictArguments) -> dict[str, int]:
    """As `predict.run`, of Parquet; the output is a folder of Parquet files, a part for each of Spark's.

    Raises:
        ValueError: as of `predict.run`; or input or output is no Parquet.
    """
    for path in (*args.input, args.output):
        if file_format(path.rstrip("/*")) != ".parquet":
            raise ValueError(f"--engine pyspark reads and writes Parquet; {path} does not end in .parquet")
    added = added_columns(_load(_key(args))[0], args)  # here already: what cannot be loaded is said at once
    with tempfile.TemporaryDirectory() as work, Engine("pyspark", Path(work)) as engine, engine_errors("scoring"):
        from pyspark.sql.types import DoubleType, StringType, StructField, StructType

        table = engine.spark.read.parquet(*args.input)
        taken = next((name for name in added if name in table.columns), None)
        if taken is not None:
            raise ValueError(f"{', '.join(args.input)} already has a column '{taken}'; rename it")
        counts = table.mapInArrow(lambda batches: _check(args, batches), CHECKED).toPandas()
        total, refused = int(counts["rows"].sum()), int(counts["refused"].sum())
        if total == 0:
            raise ValueError(f"{', '.join(args.input)} has no rows")
        if refused and args.on_error == "stop":
            why = counts["why"].dropna().iloc[0]
            raise ValueError(f"{why}, and {refused:,} such rows in all; --on_error null scores the other rows")
        kinds = [StructField(name, StringType() if name == REASON else DoubleType()) for name in added]
        schema = StructType([*table.schema.fields, *kinds])
        with new_folder(Path(args.output), args.overwrite_output) as partial:
            table.mapInArrow(lambda batches: _score(args, batches), schema).write.parquet(str(partial))
    return {"rows": total, "scored": total - refused}


# --- in a worker of Spark


def _key(args: PredictArguments) -> tuple:
    """What a model and the tables beside the rows depend on, in a form that can be a key."""
    values = dataclasses.asdict(dataclasses.replace(args, input=[args.input[0]]))
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in values.items())


@lru_cache(maxsize=1)
def _load(key: tuple) -> tuple[nn.Module, RowsToScore, Accelerator, PromptReader | None]:
    """The model and what reads rows for it, once a worker."""
    args = PredictArguments(**{name: list(value) if isinstance(value, tuple) else value for name, value in key})
    import_custom_code(args.custom_code)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    reader = prompt_reader(accelerator, model, args.per_device_eval_batch_size)
    return model, RowsToScore(processor, args, files=[]), accelerator, reader


def _batches(args: PredictArguments, batches: Iterator[pa.RecordBatch]) -> Iterator[RowBatch]:
    rows = _load(_key(args))[1]
    for batch in batches:
        yield rows.of_table(pa.Table.from_batches([batch]), ", ".join(args.input))


def _check(args: PredictArguments, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in _batches(args, batches):
        why = None
        if batch.reasons:
            row = min(batch.reasons)
            why = f"{batch.file.path}: {batch.reasons[row]} in {str(batch.rows.slice(row, 1).to_pylist()[0])[:200]}"
        one = {"rows": len(batch), "refused": len(batch.reasons), "why": why}
        yield pa.RecordBatch.from_pylist([one], pa.schema({"rows": pa.int64(), "refused": pa.int64(), "why": "string"}))


def _score(args: PredictArguments, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    model, rows, accelerator, reader = _load(_key(args))
    for batch in _batches(args, batches):
        scores = {}
        if len(batch.known):
            size = args.per_device_eval_batch_size
            scores = score_rows(accelerator, model, rows.encode(batch), size, reader)
        table = batch.rows
        for name, values in score_columns(batch, scores, added_columns(model, args)).items():
            table = table.append_column(name, values)
        yield from table.combine_chunks().to_batches()
