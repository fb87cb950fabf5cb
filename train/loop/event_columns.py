# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The columns that `--events` makes for rows: histories, and click rates of what came before."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import pyarrow as pa

from flip_ctr.data.readers.click_rates import ClickRates, Statistic
from flip_ctr.data.readers.dataset_items import places_of
from flip_ctr.data.readers.events import EventLog, EventTimes, event_fields
from flip_ctr.data.readers.row_reader import RowReader, columns_of_file, whole_table
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField, history_field
from flip_ctr.modeling_flip.processing_flip import FlipProcessor

Result = TypeVar("Result")


def statistics_of(processor: FlipProcessor) -> tuple[Statistic, ...]:
    """The statistics that a model reads and that its checkpoint knows how to compute."""
    extractor = processor.feature_extractor
    rates, names = ClickRates.of_reading(extractor.reading), {field.name for field in extractor.all_fields}
    return tuple(one for one in rates.statistics if names & {*one.columns}) if rates else ()


class EventColumns:
    """A table of what users did, and the columns of rows that are made of it.

    Args:
        path: of its file or files.
        processor: of the model.
        statistics: those of [`statistics_of`] that are made; all when not given.
        time_column, label_delay: as of [`EventTimes`].
        sides: files of side tables by name, whose columns the events may lack.
        items: of histories, with the types of their fields, which the events may lack too.

    Attributes:
        history: the field of histories, where the model reads them.
        names: of all columns that are made.

    Raises:
        FileNotFoundError, ValueError: as of [`RowReader`], [`EventLog`] and [`EventTimes`]; or the model reads nothing
            that is made of events, or not the keys that it takes.
    """

    def __init__(
        self,
        path: str,
        processor: FlipProcessor,
        statistics: Sequence[Statistic] | None = None,
        time_column: str | None = None,
        label_delay: int = 0,
        sides: Mapping[str, Sequence[str]] | None = None,
        items: pa.Table | None = None,
    ):
        self.path = path
        extractor = processor.feature_extractor
        fields, rates = extractor.all_fields, ClickRates.of_reading(extractor.reading)
        self.statistics = statistics_of(processor) if statistics is None else tuple(statistics)
        self.history = history_field(fields)
        by_name = {field.name: field for field in fields}
        needed: list[FlipField] = []
        if self.history is None and not self.statistics:
            raise ValueError("--events: the model reads no histories, and no click rates that are to be made of events")
        if self.history is not None:
            history, user = self._read(lambda: event_fields(fields))
            needed += [user, by_name[history.history_of]]
        for key in dict.fromkeys(key for one in self.statistics for key in one.keys):
            if key not in by_name:
                raise ValueError(f"--events: click rates are of '{key}', which is no field of the model")
            needed += [by_name[key]] * (by_name[key] not in needed)
        self.names = [self.history.name] if self.history is not None else []
        self.names += [name for one in self.statistics for name in one.columns]
        joined = {name for join in extractor.reading.get("joins", ()) for name in join["columns"]}
        if not joined & {field.name for field in needed}:  # whose keys the events then need not have
            sides = None
        of_items: list[FlipField] = []
        if items is not None and self.history is not None:
            have = columns_of_file(path, needed, extractor.reading, "--events")
            of_items = [one for one in needed if one not in have and one.name in items.column_names]
            of_items = [one for one in of_items if one.name not in joined or not sides]
        also = dict.fromkeys([CLICKED, *([time_column] if time_column else [])])
        own = [field for field in needed if field not in of_items]
        events = whole_table(RowReader([path], own, extractor.reading, sides, also, "--events"), "--events")
        if of_items:
            events = self._with_items(events, items, [field.name for field in of_items])
        times = self._read(lambda: EventTimes(events, time_column, label_delay))
        if self.history is not None:
            self._log = self._read(lambda: EventLog(events, fields, times))
        if self.statistics:
            from flip_ctr.data.prepare.event_statistics import EventStatistics  # which imports an engine

            self._rates = self._read(lambda: EventStatistics(events, rates, self.statistics, times))

    def _read(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def _with_items(self, events: pa.Table, items: pa.Table, names: Sequence[str]) -> pa.Table:
        """The events with columns of their items. `ValueError` where an item is not among these."""
        key = self.history.history_of
        places = places_of(events[key], items[key])
        absent = (places < 0) & events[key].is_valid().to_numpy()
        if absent.any():
            raise ValueError(f"{self.path}: {key} {events[key][int(absent.argmax())].as_py()!r} is not in --items")
        for name in names:
            events = events.append_column(name, items[name].take(pa.array(places, mask=places < 0)))
        return events

    def with_histories(self, rows: pa.Table) -> pa.Table:
        """The rows with their histories, where the model reads them. Errors as of [`EventLog.histories`]."""
        if self.history is None:
            return rows
        return rows.append_column(self.history.name, self._read(lambda: self._log.histories(rows)))

    def with_rates(self, rows: pa.Table, statistics: Sequence[Statistic]) -> pa.Table:
        """The rows with the columns of some statistics. Errors as of [`EventStatistics.columns`]."""
        if statistics:
            for name, column in self._read(lambda: self._rates.columns(rows, statistics)).items():
                rows = rows.append_column(name, column)
        return rows
