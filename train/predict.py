# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Prediction: click probabilities for the rows of files, read as the model's data was read.

flip-ctr predict --model_name_or_path M --input rows.parquet --output scores.parquet
accelerate launch -m flip_ctr.train.cli predict --model_name_or_path M --input rows.csv --output scores.csv

The files are read twice: once to refuse what cannot be scored before any row is, once to score. Only a part of the rows
is in memory at a time.
"""

import pyarrow as pa

from flip_ctr.data.readers.row_files import RowWriter, check_output_file, file_format, lists_as_text, table_of
from flip_ctr.data.readers.row_reader import RowBatch
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.train.arguments import PredictArguments
from flip_ctr.train.loop.file_scoring import (
    REASON,
    RowsToScore,
    added_columns,
    check_row_files,
    score_columns,
    scored_batches,
)
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.run_log import set_up_logging


def run(args: PredictArguments) -> dict[str, int]:
    """Writes the rows with their probabilities: `click_probability`, and for `joint` both towers' own. Returns how many
    `rows` were read, and how many of them were `scored`.

    Raises:
        ValueError: the input has no rows, lacks a column, or holds a line or value that cannot be read (names file and
            line); or the output is there already. No row is scored before that is known.
    """
    check_output(args)
    check_row_files(args)
    if args.engine == "pyspark":
        from flip_ctr.train.loop.spark_scoring import predict_on_spark  # which imports an engine

        return report(predict_on_spark(args), args.output)
    import_custom_code(args.custom_code)
    accelerator = make_accelerator(args.mixed_precision)
    set_up_logging(accelerator)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    rows = RowsToScore(processor, args)
    added = added_columns(model, args)
    total, schema = check_rows(rows, args, added)
    scored, main = 0, accelerator.is_main_process
    with RowWriter(args.output, schema, rows.fields, main, args.overwrite_output, args.escape_formulas) as writer:
        for batch, scores in scored_batches(accelerator, model, rows, args.per_device_eval_batch_size, total):
            writer.write(batch.rows, score_columns(batch, scores, added))
            scored += len(batch.known)
    accelerator.wait_for_everyone()  # for the output, which one process writes
    counts = {"rows": total, "scored": scored}
    return report(counts, args.output) if main else counts


def report(counts: dict[str, int], output: str) -> dict[str, int]:
    """Says what was written."""
    lacking = counts["rows"] - counts["scored"]
    left = f", {lacking:,} without a score (the column '{REASON}' says why)" if lacking else ""
    print(f"{counts['rows']:,} rows written to {output}{left}")
    return counts


def check_output(args: PredictArguments) -> None:
    """`ValueError` where the output has no ending of a format, or is there already."""
    check_output_file(args.output, args.overwrite_output, args.escape_formulas, args.engine == "pyspark")


def check_rows(rows: RowsToScore, args: PredictArguments, added: list[str]) -> tuple[int, pa.Schema | None]:
    """Reads all rows once; returns their number, and the columns and types that they have together (None where the
    output takes any).

    Args:
        added: the columns that the output has beside theirs.

    Raises:
        ValueError: there are none; a column of the output is there already; a row cannot be scored, and `--on_error` is
            `stop`; or what the rows hold cannot be written.
    """
    suffix, total, schema = file_format(args.output), 0, None
    for batch in rows:
        have = batch.rows if isinstance(batch.rows, list) else [dict.fromkeys(batch.rows.column_names)]
        taken = next((name for name in added if any(name in row for row in have)), None)
        if taken is not None:
            raise ValueError(f"{batch.file.path} already has a column '{taken}'; rename it")
        error = rows.first_error(batch)
        if error is not None and args.on_error == "stop":
            raise ValueError(f"{error}; --on_error null scores the other rows")
        if total == 0 and len(batch.known):
            rows.encode(batch, 1)  # what does not depend on the rows, such as a key that is not at hand
        if suffix != ".jsonl":
            of_batch = _written(batch, rows.fields, suffix)
            try:
                schema = (
                    of_batch if schema is None else pa.unify_schemas([schema, of_batch], promote_options="permissive")
                )
            except pa.ArrowException as other:
                raise ValueError(
                    f"{batch.file.path}: {other}; write JSON lines, or give each column one type"
                ) from None
        total += len(batch)
    if total == 0:
        raise ValueError(f"{', '.join(args.input)} has no rows")
    return total, schema


def _written(batch: RowBatch, fields: list[FlipField], suffix: str) -> pa.Schema:
    """The columns and types of rows as they are written. `ValueError` where they cannot be."""
    try:
        table = table_of(batch.rows)
        if suffix == ".csv":
            lists_as_text(table, fields)
    except ValueError as error:
        raise ValueError(f"{batch.file.path}: {error}") from None
    return table.schema
