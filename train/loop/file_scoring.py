# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Scores of the rows of files, which are read as the model's data was read, a part at a time; the parts are shared out
among the processes."""

import os
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import pyarrow as pa
from accelerate import Accelerator
from accelerate.utils import gather_object
from scipy.special import expit
from torch import nn
from tqdm.auto import tqdm

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.csv_files import clean_name
from flip_ctr.data.readers.row_reader import RowBatch, RowReader, whole_table
from flip_ctr.modeling_flip.columns_flip import RowError
from flip_ctr.modeling_flip.fields_flip import fields_of_items
from flip_ctr.modeling_flip.histories_flip import read_histories
from flip_ctr.modeling_flip.pipeline_flip import PROBABILITIES
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import RowFileOptions
from flip_ctr.train.loop.event_columns import EventColumns
from flip_ctr.train.loop.scoring import prompt_reader, score_rows

REASON = "reason"  # the column that says why a row has no score


def added_columns(model: nn.Module, args: RowFileOptions) -> list[str]:
    """The columns that scoring adds to the rows."""
    names = [column for name, column in PROBABILITIES.items() if name == "logits" or model.config.strategy == "joint"]
    return names + [REASON] * (args.on_error == "null")


def score_columns(batch: RowBatch, scores: Mapping[str, np.ndarray], added: list[str]) -> dict[str, pa.Array]:
    """The columns that are added to the rows of a batch: probabilities, null where a row was not scored, and reasons.

    Args:
        scores: log odds of the rows that were, by the names of the model's output.
        added: see [`added_columns`].
    """
    columns: dict[str, pa.Array] = {}
    for name, column in PROBABILITIES.items():
        if column in added:
            values = np.zeros(len(batch))
            values[batch.scored] = expit(np.float64(scores[name])) if scores else []
            columns[column] = pa.array(values, mask=~batch.scored)
    if REASON in added:
        columns[REASON] = pa.array([batch.reasons.get(row) for row in range(len(batch))], pa.string())
    return columns


def check_row_files(args: RowFileOptions) -> None:
    """`ValueError` where options about the tables beside the rows do not fit each other."""
    if args.time_column is not None and args.events is None:
        raise ValueError("--time_column says which of the --events count, and there are none")
    if args.label_delay and args.time_column is None:
        raise ValueError("--label_delay is between the times of events and rows; name their --time_column")
    for one in args.side or []:
        _named_side(one)


class RowsToScore:
    """The rows of a command that scores files, with the histories, click rates and items that belong to them.

    Args:
        processor: of the model.
        args: of the command.
        also: more columns of the rows that are needed, such as a label, and their types.
        files: instead of the command's `input`.

    Attributes:
        items: that histories name; None where they are not given.

    Raises:
        FileNotFoundError, ValueError: as of [`RowReader`], and of a table of items or events.
    """

    def __init__(
        self,
        processor: FlipProcessor,
        args: RowFileOptions,
        also: Mapping[str, str | None] = {},
        files: list[str] | None = None,
    ):
        self.processor, self.args = processor, args
        extractor = processor.feature_extractor
        self.fields, reading = extractor.all_fields, extractor.reading
        sides = dict(_named_side(one) for one in args.side or [])
        own, times = self.fields, []
        self.items = self._events = table = None
        if args.items is not None:
            reader = RowReader([args.items], fields_of_items(self.fields), reading, option="--items")
            table = whole_table(reader, "--items")
            try:
                self.items = processor.read_items(table)
            except ValueError as error:
                raise ValueError(f"{args.items}: {error}") from None
        if args.events is not None:
            times = [args.time_column] if args.time_column else []
            of_time = args.time_column, args.label_delay
            self._events = EventColumns(args.events, processor, None, *of_time, sides, table)
            own = [field for field in self.fields if field.name not in self._events.names]
        self._raw = RowReader(
            args.input if files is None else files, own, reading, sides, {**dict.fromkeys(times), **also}
        )
        for file in self._raw.files:
            self._check_absent(file.columns, str(file.path))

    def _check_absent(self, columns: list[str], name: str) -> None:
        """`ValueError` where rows have what events are to make."""
        given = [one for one in columns if self._events is not None and clean_name(one) in self._events.names]
        if given:
            raise ValueError(
                f"{name} has a column '{given[0]}' already, and --events is given, which makes "
                f"{', '.join(self._events.names)}; leave out the columns, or --events"
            )

    def __iter__(self) -> Iterator[RowBatch]:
        return map(self._with_past, self._raw)

    def of_table(self, table: pa.Table, name: str) -> RowBatch:
        """Rows that something else has read; `name` is what errors call them."""
        self._check_absent(table.column_names, name)
        return self._with_past(self._raw.of_table(table, name))

    def _with_past(self, batch: RowBatch) -> RowBatch:
        """The batch with the columns that events make, without the rows whose history cannot be read."""
        if self._events is not None:
            batch.known = self._events.with_histories(batch.known)
            batch.known = self._events.with_rates(batch.known, self._events.statistics)
        while self.processor.history_field is not None and len(batch.known):
            try:
                read_histories(batch.known, self.fields, self.items)
                break
            except RowError as error:
                batch.refuse(error.row, f"{error.column}: {error.reason}")
        return batch

    def first_error(self, batch: RowBatch) -> ValueError | None:
        """What is wrong with the first row of a batch that cannot be scored."""
        if not batch.reasons:
            return None
        row = min(batch.reasons)
        others = f" (and {len(batch.reasons) - 1:,} more of the rows around it)" if len(batch.reasons) > 1 else ""
        return ValueError(f"{batch.where(row)}: {batch.reasons[row]}{others}")

    def encode(self, batch: RowBatch, rows: int | None = None) -> EncodedDataset:
        """The rows that can be scored, or the first of them, encoded."""
        known = batch.known if rows is None else batch.known.slice(0, rows)
        known = known.select([field.name for field in self.fields])  # a label needs not be valid here
        return EncodedDataset(self.processor, known, not self.processor.id_only, self.items)


def scored_batches(
    accelerator: Accelerator, model: nn.Module, rows: RowsToScore, batch_size: int, total: int
) -> Iterator[tuple[RowBatch, dict[str, np.ndarray]]]:
    """The rows in their order, with the log odds of those of them that can be scored, by the names of the model's
    output. Each process scores a part of them, and all processes get all scores."""
    reader = prompt_reader(accelerator, model, batch_size)
    index, processes = accelerator.process_index, accelerator.num_processes
    batches = iter(rows)
    main = accelerator.is_main_process
    with tqdm(total=total, unit="row", unit_scale=True, dynamic_ncols=True, disable=not main) as bar:
        while several := list(islice(batches, processes)):  # one for each process
            mine: list[dict[str, np.ndarray]] = [{}]
            if index < len(several) and len(several[index].known):
                mine = [score_rows(accelerator, model, rows.encode(several[index]), batch_size, reader)]
            for batch, scores in zip(several, gather_object(mine) if processes > 1 else mine):
                yield batch, scores
                bar.update(len(batch))


def _named_side(text: str) -> tuple[str, list[str]]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise ValueError(f"--side {text}: expected NAME=FILE, such as items=items.parquet")
    return name, [os.path.expanduser(path)]
