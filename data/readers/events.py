# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What users did, as a table of its own: when it was known, and the histories of rows that it makes."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField, history_field


class EventTimes:
    """Which events are known before a row, as ranks: an event counts for the rows whose rank is above its own.

    Args:
        events: one a row.
        column: of the times, of both tables: an event counts for a row that is later. Without it all events count.
        label_delay: how long after an event it is known whether it was clicked, in the unit of the times (seconds, of
            dates): it counts for rows that are later than that.

    Attributes:
        ranks: `(events,)`; without times their numbers.

    Raises:
        ValueError: the column is missing, has nulls, or holds no times.
    """

    def __init__(self, events: pa.Table, column: str | None = None, label_delay: int = 0):
        self.column, self.label_delay = column, label_delay
        self.ranks = np.arange(len(events))
        if column is not None:
            self._times = _times(_column(events, column, "events"), column, "events")
            self._distinct, self.ranks = np.unique(self._times.to_numpy(), return_inverse=True)

    def of_rows(self, rows: pa.Table) -> np.ndarray:
        """The ranks of rows, `(rows,)`, at most the number of events.

        Raises:
            ValueError: the column is missing, has nulls, or holds no times, or those of both tables have other types.
        """
        if self.column is None:
            return np.full(len(rows), len(self.ranks))
        times = _times(_column(rows, self.column, "rows"), self.column, "rows")
        kinds = (self._times.type, times.type)
        if kinds[0] != kinds[1] and not all(pa.types.is_integer(one) or pa.types.is_floating(one) for one in kinds):
            raise ValueError(f"column '{self.column}' is {kinds[0]} in the events, and {kinds[1]} in the rows")
        values = times.to_numpy()
        if self.label_delay:
            values = values - (np.timedelta64(self.label_delay, "s") if values.dtype.kind == "M" else self.label_delay)
        return np.searchsorted(self._distinct, values)


class EventLog:
    """What users did, in memory, ordered by user and time.

    Args:
        events: one a row: the user's key, the item's key, and `clicked` (0 or 1).
        fields: of a row; one is a history.
        times: of the events; without a column all events count, in the order of the table.

    Raises:
        ValueError: a column is missing; no field is a history, or none is the key of a user.
    """

    def __init__(self, events: pa.Table, fields: Sequence[FlipField], times: EventTimes):
        self.history, self.user = event_fields(fields)
        self.times = times
        names = [self.history.history_of, CLICKED]
        parts = [pa.chunked_array(_column(events, name, "events").chunks).combine_chunks() for name in names]
        of_events = Column.read(_column(events, self.user.name, "events"), self.user)
        self._numbers = {value: number for number, value in enumerate(of_events.values) if value is not None}
        self._steps = len(events) + 1  # above every rank
        keys = of_events.map(self._numbers, -1) * self._steps + times.ranks
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._entries = pa.StructArray.from_arrays([part.take(pa.array(order)) for part in parts], names)

    def histories(self, rows: pa.Table) -> pa.ListArray:
        """The last events of each row's user that are known before it, `(rows,)`.

        Raises:
            ValueError: the column of the user is missing, or as of [`EventTimes.of_rows`].
        """
        users = Column.read(_column(rows, self.user.name, "rows"), self.user).map(self._numbers, -1)
        ends = np.searchsorted(self._keys, users * self._steps + self.times.of_rows(rows))
        starts = np.maximum(np.searchsorted(self._keys, users * self._steps), ends - self.history.max_values)
        lengths = np.where(users < 0, 0, ends - starts)
        offsets = np.concatenate([[0], lengths.cumsum()])
        taken = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), self._entries.take(pa.array(taken)))


def event_fields(fields: Sequence[FlipField]) -> tuple[FlipField, FlipField]:
    """The history, and the key of whose history it is. `ValueError` where the model reads none, or has no such key."""
    history = history_field(fields)
    if history is None:
        raise ValueError("--events: the model reads no histories")
    user = next((field for field in fields if field.key and field.entity == history.entity), None)
    if user is None:
        raise ValueError(f"--events: the model has no field that is the key of a {history.entity}")
    return history, user


def _column(table: pa.Table, name: str, what: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise ValueError(f"{what}: no column '{name}'; there are {', '.join(table.column_names)}")
    return table.column(name)


def _times(column: pa.ChunkedArray, name: str, what: str) -> pa.ChunkedArray:
    """A column of times, those in text as numbers or dates: text would be in the order of its letters."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
            with contextlib.suppress(pa.ArrowInvalid):
                column = column.cast(kind)
                break
        else:
            raise ValueError(
                f"column '{name}' of the {what} holds text that is neither a number nor an ISO date; another form is "
                "read where `types` of the dataset's schema says it"
            )
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if column.null_count:
        raise ValueError(f"column '{name}' of the {what} has {column.null_count:,} nulls; each needs a time")
    return column
