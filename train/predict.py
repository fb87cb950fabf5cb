# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Prediction: click probabilities for the rows of files, read as the model's data was read.

flip-ctr predict --model_name_or_path M --input rows.parquet --output scores.parquet
accelerate launch -m flip_ctr.train.cli predict --model_name_or_path M --input rows.csv --output scores.csv

The files are read twice: once to refuse what cannot be scored before any row is, once to score. Only a part of the rows
is in memory at a time.
"""

import os
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
from accelerate.utils import gather_object
from scipy.special import expit
from tqdm.auto import tqdm

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.datasets.raw_rows import RawRows, RowBatch
from flip_ctr.data.readers.events import EventLog, event_fields
from flip_ctr.data.readers.row_files import RowWriter, file_format, lists_as_text, table_of
from flip_ctr.modeling_flip.columns_flip import RowError
from flip_ctr.modeling_flip.fields_flip import CLICKED, fields_of_items
from flip_ctr.modeling_flip.histories_flip import read_histories
from flip_ctr.modeling_flip.pipeline_flip import PROBABILITIES
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import PredictArguments
from flip_ctr.train.loop.prompt_states import PromptReader
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score_rows
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.run_log import set_up_logging

REASON = "reason"  # the column that says why a row has no score


def run(args: PredictArguments) -> dict[str, int]:
    """Writes the rows with their probabilities: `click_probability`, and for `joint` both towers' own. Returns how many
    `rows` were read, and how many of them were `scored`.

    Raises:
        ValueError: the input has no rows, lacks a column, or holds a line or value that cannot be read (names file and
            line); or the output is there already. No row is scored before that is known.
    """
    check_output(args)
    import_custom_code(args.custom_code)
    accelerator = make_accelerator(args.mixed_precision)
    set_up_logging(accelerator)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    rows = RowsToScore(processor, args)
    names = [name for name in PROBABILITIES if name == "logits" or model.config.strategy == "joint"]
    added = [PROBABILITIES[name] for name in names] + [REASON] * (args.on_error == "null")
    total, schema = rows.check(args.output, added)

    model.to(accelerator.device).eval().requires_grad_(False)  # so that what the PLM says of a text is kept
    reader = PromptReader.of(accelerator, model, args.per_device_eval_batch_size)
    batches = iter(rows)
    index, processes = accelerator.process_index, accelerator.num_processes
    scored = 0
    bar = tqdm(total=total, unit="row", unit_scale=True, dynamic_ncols=True, disable=not accelerator.is_main_process)
    with bar, RowWriter(args.output, schema, rows.fields, write=accelerator.is_main_process) as writer:
        while several := list(islice(batches, processes)):  # one for each process
            mine = [{}]
            if index < len(several) and len(several[index].known):
                dataset = rows.encode(several[index])
                mine = [score_rows(accelerator, model, dataset, args.per_device_eval_batch_size, reader)]
            of_all = gather_object(mine) if processes > 1 else mine
            for batch, scores in zip(several, of_all):
                writer.write(
                    batch.rows,
                    {PROBABILITIES[name]: _spread(batch, scores.get(name)) for name in names}
                    | ({REASON: _reasons(batch)} if args.on_error == "null" else {}),
                )
                scored += len(batch.known)
                bar.update(len(batch))
    accelerator.wait_for_everyone()
    left = f", {total - scored:,} without a score (the column '{REASON}' says why)" if scored < total else ""
    accelerator.print(f"{total:,} rows written to {args.output}{left}")
    return {"rows": total, "scored": scored}


def check_output(args: PredictArguments) -> None:
    """`ValueError` where the output has no ending of a format, or is there already."""
    file_format(args.output)
    if os.path.isdir(args.output):
        raise ValueError(f"--output {args.output} is a folder; name a file")
    if os.path.exists(args.output) and not args.overwrite_output:
        raise ValueError(f"--output {args.output} is there already; choose another name or add --overwrite_output")
    if args.time_column is not None and args.events is None:
        raise ValueError("--time_column says which of the --events count, and there are none")


class RowsToScore:
    """The rows of a command that scores, with the histories and items that belong to them.

    Args:
        processor: of the model.
        args: the command's `input`, `side`, `items`, `events`, `time_column` and `on_error`.
        also: more columns of the rows that are needed, such as a label.

    Raises:
        FileNotFoundError, ValueError: as of [`RawRows`], and of a table of items or events.
    """

    def __init__(self, processor: FlipProcessor, args: PredictArguments):
        self.processor, self.args = processor, args
        extractor = processor.feature_extractor
        self.fields, reading = extractor.all_fields, extractor.reading
        own, times = self.fields, []
        self._items = self._events = None
        if args.items is not None:
            table = _whole(RawRows([args.items], fields_of_items(self.fields), reading), "--items")
            self._items = self._read("--items", lambda: processor.read_items(table))
        if args.events is not None:
            history, user = event_fields(self.fields)
            own = [field for field in self.fields if not field.is_history]
            times = [args.time_column] if args.time_column else []
            item = next(field for field in self.fields if field.name == history.history_of)
            events = RawRows([args.events], [user, item], reading, also=[CLICKED, *times])
            self._events = self._read("--events", lambda: EventLog(_whole(events, "--events"), self.fields, *times))
        sides = dict(_named_side(one) for one in args.side or [])
        self._raw = RawRows(args.input, own, reading, sides, also=times)
        for file in self._raw.files:
            if self._events is not None and history.name in file.columns:
                raise ValueError(f"{file.path} has a column '{history.name}' already, and --events is given")

    def _read(self, what: str, read):
        try:
            return read()
        except ValueError as error:
            path = self.args.items if what == "--items" else self.args.events
            raise ValueError(f"{path}: {error}") from None

    def __iter__(self) -> Iterator[RowBatch]:
        for batch in self._raw:
            if self._events is not None:
                history, _ = event_fields(self.fields)
                found = self._read("--events", lambda: self._events.histories(batch.known))
                batch.known = batch.known.append_column(history.name, found)
            self._check_histories(batch)
            yield batch

    def _check_histories(self, batch: RowBatch) -> None:
        """Takes rows out whose history cannot be read."""
        while self.processor.history_field is not None and len(batch.known):
            try:
                read_histories(batch.known, self.fields, self._items)
                return
            except RowError as error:
                batch.refuse(error.row, f"{error.column}: {error.reason}")

    def check(self, output: str, added: list[str]) -> tuple[int, pa.Schema | None]:
        """Reads all rows once; returns their number, and the columns and types that they have together (None where
        the output takes any).

        Raises:
            ValueError: there are none; a column of the output is there already; a row cannot be scored, and `on_error`
                is `stop`; or what the rows hold cannot be written.
        """
        suffix, total, schemas = file_format(output), 0, []
        for batch in self:
            if total == 0 and len(batch.known):
                self.encode(batch, 1)  # what does not depend on the rows, such as a key that is not at hand
            taken = [
                name
                for name in added
                if name in batch.file.columns
                or (isinstance(batch.rows, list) and any(name in row for row in batch.rows))
            ]
            if taken:
                raise ValueError(f"{batch.file.path} already has a column '{taken[0]}'; rename it")
            if batch.reasons and self.args.on_error == "stop":
                row = min(batch.reasons)
                more = len(batch.reasons) - 1
                others = f" (and {more:,} more of the rows around it)" if more else ""
                raise ValueError(
                    f"{batch.where(row)}: {batch.reasons[row]}{others}; --on_error null scores the other rows"
                )
            if suffix != ".jsonl":
                schemas.append(self._schema(batch, suffix))
                schemas = [_together(schemas, batch)]
            total += len(batch)
        if total == 0:
            raise ValueError(f"{', '.join(self.args.input)} has no rows")
        return total, schemas[0] if schemas else None

    def _schema(self, batch: RowBatch, suffix: str) -> pa.Schema:
        try:
            table = table_of(batch.rows)
            if suffix == ".csv":
                lists_as_text(table, self.fields)
        except ValueError as error:
            raise ValueError(f"{batch.file.path}: {error}") from None
        return table.schema

    def encode(self, batch: RowBatch, rows: int | None = None) -> EncodedDataset:
        """The rows that can be scored, or the first of them, encoded."""
        known = batch.known if rows is None else batch.known.slice(0, rows)
        known = known.select([field.name for field in self.fields])  # a label needs not be valid here
        return EncodedDataset(self.processor, known, not self.processor.id_only, self._items)


def _together(schemas: list[pa.Schema], batch: RowBatch) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{batch.file.path}: {error}; write JSON lines, or give each column one type") from None


def _whole(rows: RawRows, option: str) -> pa.Table:
    """All rows of a table that must be whole."""
    parts = []
    for batch in rows:
        for row in sorted(batch.reasons)[:1]:
            raise ValueError(f"{option}: {batch.where(row)}: {batch.reasons[row]}")
        parts.append(batch.known)
    if not parts:
        raise ValueError(f"{option}: {rows.files[0].path} has no rows")
    return pa.concat_tables(parts, promote_options="permissive")


def _named_side(text: str) -> tuple[str, list[str]]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise ValueError(f"--side {text}: expected NAME=FILE, such as items=items.parquet")
    return name, [os.path.expanduser(path)]


def _spread(batch: RowBatch, logits: np.ndarray | None) -> pa.Array:
    """Probabilities of all rows, null where a row was not scored."""
    values = np.zeros(len(batch))
    values[batch.scored] = expit(np.float64(logits)) if logits is not None else []
    return pa.array(values, mask=~batch.scored)


def _reasons(batch: RowBatch) -> pa.Array:
    return pa.array([batch.reasons.get(row) for row in range(len(batch))], pa.string())
