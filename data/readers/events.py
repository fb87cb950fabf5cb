# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What users did, as a table of its own -> the histories of rows."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField, history_field


def with_histories(
    rows: pa.Table, events: pa.Table, fields: Sequence[FlipField], time_column: str | None = None
) -> pa.Table:
    """The rows with a column of histories: the last events of each row's user.

    Args:
        rows: with the user's key.
        events: one a row: the user's key, the item's key, and `clicked` (0 or 1).
        fields: of a row; one is a history.
        time_column: of both tables: an event counts for a row that is later. Without it all events count, in the order
            of the table.

    Raises:
        ValueError: a column is missing, is there already, has nulls, or the times of both tables have other types; no
            field is a history, or none is the key of a user.
    """
    history = history_field(fields)
    if history is None:
        raise ValueError("events: the model reads no histories")
    user = next((field for field in fields if field.key and field.entity == history.entity), None)
    if user is None:
        raise ValueError(f"events: the model has no field that is the key of a {history.entity}")
    if history.name in rows.column_names:
        raise ValueError(f"events: the rows have a column '{history.name}' already")
    times = [] if time_column is None else [time_column]
    for what, table, names in (
        ("events", events, [user.name, history.history_of, CLICKED, *times]),
        ("rows", rows, [user.name, *times]),
    ):
        lacking = [name for name in names if name not in table.column_names]
        if lacking:
            raise ValueError(f"{what}: no column '{lacking[0]}'; there are {', '.join(table.column_names)}")
    of_events, of_rows = (Column.read(table.column(user.name), user) for table in (events, rows))
    numbers = {value: number for number, value in enumerate(of_events.values) if value is not None}
    event_users, row_users = of_events.map(numbers, -1), of_rows.map(numbers, -1)
    if time_column is None:
        event_times, row_times, steps = np.arange(len(events)), np.full(len(rows), len(events)), len(events) + 1
    else:
        event_times, row_times, steps = _ranks(events, rows, time_column)
    keys = event_users * steps + event_times
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    ends = np.searchsorted(keys, row_users * steps + row_times)
    starts = np.maximum(np.searchsorted(keys, row_users * steps), ends - history.max_values)
    lengths = np.where(row_users < 0, 0, ends - starts)
    offsets = np.concatenate([[0], lengths.cumsum()])
    taken = order[np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])]
    parts = [events.column(name).combine_chunks().take(pa.array(taken)) for name in (history.history_of, CLICKED)]
    entries = pa.StructArray.from_arrays(parts, [history.history_of, CLICKED])
    return rows.append_column(history.name, pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), entries))


def _times(column: pa.ChunkedArray, name: str, what: str) -> pa.ChunkedArray:
    """A column of times, those in text as numbers or dates: text would be in the order of its letters."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
            with contextlib.suppress(pa.ArrowInvalid):
                return column.cast(kind)
        raise ValueError(f"column '{name}' of the {what} holds text that is neither a number nor an ISO date")
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column


def _ranks(events: pa.Table, rows: pa.Table, time_column: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The times of events and rows as whole numbers from 0 in the same order, and how many there are."""
    columns = [
        _times(table.column(time_column), time_column, what) for what, table in (("events", events), ("rows", rows))
    ]
    numbers = [pa.types.is_integer(column.type) or pa.types.is_floating(column.type) for column in columns]
    if columns[0].type != columns[1].type and all(numbers):
        columns = [column.cast(pa.float64()) for column in columns]
    if columns[0].type != columns[1].type:
        raise ValueError(
            f"column '{time_column}' is {columns[0].type} in the events, and {columns[1].type} in the rows"
        )
    for what, column in zip(("events", "rows"), columns):
        if column.null_count:
            raise ValueError(f"column '{time_column}' of the {what} has {column.null_count:,} nulls; each needs a time")
    together = np.concatenate([column.to_numpy() for column in columns])
    distinct, ranks = np.unique(together, return_inverse=True)
    return ranks[: len(events)], ranks[len(events) :], len(distinct)
