# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Explanations: how much of a row's score is each of its fields, its history, and each entry of that.

flip-ctr explain --model_name_or_path M --input rows.csv --num_rows 20 --output parts.csv --plots_dir plots

Every row is scored again without each part, see [`explain`]; the file has a line for each row and part.
"""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from scipy.special import expit

from flip_ctr.data.readers.row_files import RowWriter, check_output_file
from flip_ctr.train.arguments import ExplainArguments
from flip_ctr.train.loop.file_scoring import RowsToScore, check_row_files
from flip_ctr.train.loop.leave_out import ENTRY, SIDES, WEIGHT, RowParts, scorer
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.plots import plot_changes, plot_explanation
from flip_ctr.train.outputs.run_log import set_up_logging

COLUMNS = {
    "row": pa.int64(),
    "kind": pa.string(),
    "part": pa.string(),
    "value": pa.string(),
    "click_probability": pa.float64(),
    "log_odds": pa.float64(),
    "change": pa.float64(),
}
LINES_AT_ONCE = 10_000


def run(args: ExplainArguments) -> dict[str, float]:
    """Writes the parts of the rows. Returns the mean absolute change in log odds that each field, and the history,
    makes, by its name.

    Raises:
        ValueError: the input has no rows, lacks a column, or holds a line or value that cannot be read (names file and
            line); the output is there already; or the command was started in several processes.
    """
    check_output_file(args.output, args.overwrite_output, args.escape_formulas)
    check_row_files(args)
    import_custom_code(args.custom_code)
    accelerator = make_accelerator(args.mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError(f"explain works in one process; it was started in {accelerator.num_processes}")
    set_up_logging(accelerator)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    rows = RowsToScore(processor, args)
    model.to(accelerator.device).eval().requires_grad_(False)
    score = scorer(model, processor, args.per_device_eval_batch_size, accelerator)
    sums: dict[str, float] = {}
    done, lines = 0, []
    names = list(COLUMNS) + [f"{side}_change" for side in SIDES] * (model.fusion is not None)
    schema = pa.schema([(name, COLUMNS.get(name, pa.float64())) for name in names])
    with RowWriter(
        args.output, schema, overwrite=args.overwrite_output, escape_formulas=args.escape_formulas
    ) as writer:
        for table in _tables(rows, args.num_rows):
            for answer in RowParts.read(model, processor, table, rows.items).explain(score):
                if args.plots_dir is not None and done < args.num_plots:
                    os.makedirs(args.plots_dir, exist_ok=True)
                    plot_explanation(answer, args.plots_dir, f"row-{done}.png", f"Row {done}")
                for part in answer["parts"]:
                    if part["kind"] != ENTRY:
                        sums[part["part"]] = sums.get(part["part"], 0.0) + abs(part["change"])
                lines += [{"row": done} | line for line in part_lines(answer)]
                done += 1
                if len(lines) >= LINES_AT_ONCE:
                    writer.write(pa.Table.from_pylist(lines, schema), {})
                    lines = []
        if not done:
            raise ValueError(f"{', '.join(args.input)} has no rows")
        writer.write(pa.Table.from_pylist(lines, schema), {})
    changes = {name: total / done for name, total in sorted(sums.items(), key=lambda one: -one[1])}
    if args.plots_dir is not None:
        plot_changes(changes, done, args.plots_dir)
    print(f"{done:,} rows: mean absolute change in log odds without")
    for name, change in changes.items():
        print(f"  {name:<{max(map(len, changes))}}  {change:.4f}")
    print(f"parts written to {args.output}" + (f", pictures to {args.plots_dir}" if args.plots_dir else ""))
    return changes


def _tables(rows: RowsToScore, most: int | None) -> Iterator[pa.Table]:
    """The columns that the model reads, of the first rows. `ValueError` where one of them cannot be read."""
    left = most
    for batch in rows:
        wanted = len(batch) if left is None else min(left, len(batch))
        if any(row < wanted for row in batch.reasons):
            error = rows.first_error(batch)
            assert error is not None
            raise error
        known = batch.known.select([field.name for field in rows.fields])
        yield known.slice(0, wanted)
        if left is not None:
            left -= wanted
            if left == 0:
                return


def part_lines(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the file for a row, from what [`explain`] says of it: the score as it is (`score`), without either
    side of a joint model (`side`, with the side's weight as its value), without each part, and without anything
    (`everything`)."""

    def line(kind: str, part: str | None, value: str | None, log_odds: float) -> dict[str, Any]:
        one = {"kind": kind, "part": part, "value": value, "log_odds": log_odds}
        return one | {"click_probability": float(expit(log_odds)), "change": answer["log_odds"] - log_odds}

    yield line("score", None, None, answer["log_odds"]) | {"change": None}
    if WEIGHT in answer:
        weight = answer[WEIGHT]
        yield line("side", "ids", f"weight {weight:.3f}", answer["text_log_odds"])
        yield line("side", "text", f"weight {1 - weight:.3f}", answer["id_log_odds"])
    for part in answer["parts"]:
        yield part | {"click_probability": float(expit(part["log_odds"]))}
    yield line("everything", None, None, answer["base_log_odds"])
