# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What users did, as a table of its own -> the histories of rows."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField, history_field


class EventLog:
    """What users did, in memory, ordered by user and time.

    Args:
        events: one a row: the user's key, the item's key, and `clicked` (0 or 1).
        fields: of a row; one is a history.
        time_column: of both tables: an event counts for a row that is later. Without it all events count, in the order
            of the table.
        label_delay: how long after an event it is known whether it was clicked, in the unit of the times (seconds, of
            dates): it counts for rows that are later than that.

    Raises:
        ValueError: a column is missing or has nulls; no field is a history, or none is the key of a user.
    """

    def __init__(
        self, events: pa.Table, fields: Sequence[FlipField], time_column: str | None = None, label_delay: int = 0
    ):
        self.history, self.user = event_fields(fields)
        self.time_column, self.label_delay = time_column, label_delay
        needed = [self.user.name, self.history.history_of, CLICKED, *([time_column] if time_column else [])]
        lacking = [name for name in needed if name not in events.column_names]
        if lacking:
            raise ValueError(f"events: no column '{lacking[0]}'; there are {', '.join(events.column_names)}")
        of_events = Column.read(events.column(self.user.name), self.user)
        self._numbers = {value: number for number, value in enumerate(of_events.values) if value is not None}
        ranks = np.arange(len(events))
        self._steps = len(events) + 1  # above every rank
        if time_column is not None:
            self._times = _times(events.column(time_column), time_column, "events")
            self._distinct, ranks = np.unique(self._times.to_numpy(), return_inverse=True)
        keys = of_events.map(self._numbers, -1) * self._steps + ranks
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        names = [self.history.history_of, CLICKED]
        parts = [pa.chunked_array(events.column(name).chunks).combine_chunks() for name in names]
        self._entries = pa.StructArray.from_arrays([part.take(pa.array(order)) for part in parts], names)

    def histories(self, rows: pa.Table) -> pa.ListArray:
        """The last events of each row's user that are known before it, `(rows,)`.

        Raises:
            ValueError: a column is missing or has nulls, or the times of both tables have other types.
        """
        for name in [self.user.name, *([self.time_column] if self.time_column else [])]:
            if name not in rows.column_names:
                raise ValueError(f"rows: no column '{name}'; there are {', '.join(rows.column_names)}")
        users = Column.read(rows.column(self.user.name), self.user).map(self._numbers, -1)
        ranks = np.full(len(rows), self._steps - 1)
        if self.time_column is not None:
            ranks = np.searchsorted(self._distinct, self._row_times(rows))  # of events before the row's time
        ends = np.searchsorted(self._keys, users * self._steps + ranks)
        starts = np.maximum(np.searchsorted(self._keys, users * self._steps), ends - self.history.max_values)
        lengths = np.where(users < 0, 0, ends - starts)
        offsets = np.concatenate([[0], lengths.cumsum()])
        taken = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), self._entries.take(pa.array(taken)))

    def _row_times(self, rows: pa.Table) -> np.ndarray:
        times = _times(rows.column(self.time_column), self.time_column, "rows")
        kinds = (self._times.type, times.type)
        if kinds[0] != kinds[1] and not all(pa.types.is_integer(one) or pa.types.is_floating(one) for one in kinds):
            raise ValueError(f"column '{self.time_column}' is {kinds[0]} in the events, and {kinds[1]} in the rows")
        values = times.to_numpy()
        delay = np.timedelta64(self.label_delay, "s") if values.dtype.kind == "M" else self.label_delay
        return values - delay if self.label_delay else values


def event_fields(fields: Sequence[FlipField]) -> tuple[FlipField, FlipField]:
    """The history, and the key of whose history it is. `ValueError` where the model reads none, or has no such key."""
    history = history_field(fields)
    if history is None:
        raise ValueError("--events: the model reads no histories")
    user = next((field for field in fields if field.key and field.entity == history.entity), None)
    if user is None:
        raise ValueError(f"--events: the model has no field that is the key of a {history.entity}")
    return history, user


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
