# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What users did, as a table of its own -> the click rates of new rows, counted by the expressions of `statistics`."""

import contextlib
from collections.abc import Iterator, Sequence

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from flip_ctr.data.prepare.engines import connect_duckdb, engine_errors
from flip_ctr.data.prepare.statistics import counts_before, one_value_a_row, with_columns
from flip_ctr.data.readers.click_rates import ClickRates, Statistic
from flip_ctr.data.readers.events import EventTimes
from flip_ctr.modeling_flip.columns_flip import Column, RowError
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField
from flip_ctr.modeling_flip.values_flip import canonical_label

ASKED = "asked"  # DuckDB's name of the rows that are read


class EventStatistics:
    """What users did, in DuckDB.

    Args:
        events: one a row: the keys of the statistics with the types of their fields, and `clicked` (0 or 1).
        rates: of which some may be asked for.
        statistics: those that are.
        times: of the events.

    Raises:
        ValueError: `clicked` is neither 0 nor 1; names the row.
    """

    def __init__(self, events: pa.Table, rates: ClickRates, statistics: Sequence[Statistic], times: EventTimes):
        self.rates, self.times = rates, times
        said = Column.read(events.column(CLICKED), FlipField(CLICKED, "float", nullable=False), canonical_label)
        clicks = said.map({"0": 0, "1": 1}, -1)
        if (clicks < 0).any():
            raise RowError(CLICKED, int((clicks < 0).argmax()), "expected 0 or 1")
        # without times one line stands for all events of a key
        at = times.ranks if times.column is not None else np.zeros(len(events), np.int64)
        self._known: dict[Statistic, ir.Table] = {}
        with engine_errors("counting the events"):
            self._connection = connect_duckdb()
            with self._table(events, statistics, at, _past_c=clicks) as whole:
                for number, statistic in enumerate(statistics):
                    keys = list(statistic.keys)
                    single = one_value_a_row(whole, keys, ["_past_at", "_past_c"])
                    numbers = {"_past_n": single.count().cast("int64"), "_past_c": single._past_c.sum().cast("int64")}
                    known = single.group_by([*keys, "_past_at"]).agg(**numbers)
                    known = known.select(ibis.literal(-1, "int64").name("_row"), *keys, "_past_at", *numbers)
                    self._known[statistic] = self._connection.create_table(f"known_{number}", known)

    @contextlib.contextmanager
    def _table(
        self, table: pa.Table, statistics: Sequence[Statistic], at: np.ndarray, **others: np.ndarray
    ) -> Iterator[ir.Table]:
        """The keys of the statistics, with the rows' numbers and times. (DuckDB would keep a memtable of Ibis.)"""
        keys = {key: table.column(key) for key in dict.fromkeys(key for one in statistics for key in one.keys)}
        placed = {"_row": np.arange(len(table)), **keys, "_past_at": at.astype(np.int64)}
        self._connection.con.register(ASKED, pa.table(placed | others))
        try:
            yield self._connection.table(ASKED)
        finally:
            self._connection.con.unregister(ASKED)

    def columns(self, rows: pa.Table, statistics: Sequence[Statistic]) -> dict[str, pa.ChunkedArray]:
        """The two columns of each statistic, `(rows,)`: rates and numbers of events that are known before a row.

        Args:
            rows: with the keys, with the types of their fields.
            statistics: some of those that were asked for.

        Raises:
            ValueError: as of [`EventTimes.of_rows`].
        """
        at = self.times.of_rows(rows)
        with engine_errors("computing click rates"), self._table(rows, statistics, at) as asked:
            found = asked.select("_row")
            for statistic in statistics:
                single = one_value_a_row(asked, statistic.keys, ["_past_at"])
                counted = counts_before(single, self._known[statistic], statistic.keys)
                found = with_columns(found, counted, statistic, self.rates)
            table = self._connection.to_pyarrow(found.order_by("_row"))
        return {name: table.column(name) for one in statistics for name in one.columns}
