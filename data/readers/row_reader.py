# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Files of rows to be scored, read as `prepare` reads the files of its events: the same formats, names of columns, null
words, types and side tables, and an account of every line.

How that is comes with a checkpoint (`FlipFeatureExtractor.reading`). Only a part of the rows is in memory at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.data.readers.click_rates import STATISTICS, ClickRates
from flip_ctr.data.readers.csv_files import CsvFormat, clean_name
from flip_ctr.data.readers.described_tables import ENDINGS, EVENTS, SideTable, TableFiles, read_files, read_joins
from flip_ctr.data.readers.raw_files import LineLog, RejectedLine, byte_blocks, listed
from flip_ctr.data.readers.table_files import JsonFormat, ParquetFormat, TableFormat, find_files
from flip_ctr.data.readers.table_values import ColumnType, TableColumn, typed_column
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.modeling_flip.rows_flip import column_of, named_columns

BATCH_ROWS = 65_536  # in memory at a time
KEY = "_key_"  # before the name of a side table's key
STRING = ColumnType("string")
MAX_SHOWN = 200  # characters of a line that cannot be read


@dataclass
class RowBatch:
    """Some rows of the files, in their order.

    Attributes:
        rows: all columns as they stand in the files, `(rows,)`; of JSON a list of objects. A line that is no row has
            nulls.
        known: the columns that a model reads, with their types, of the rows that can be scored.
        scored: `(rows,)` which rows these are.
        reasons: why the others cannot be, by their number in the batch.
        file: where the rows are from.
        places: `(rows,)` the number of the line (in Parquet of the row) where each stands.
    """

    rows: pa.Table | list[dict]
    known: pa.Table
    scored: np.ndarray
    reasons: dict[int, str]
    file: "RowFile"
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def refuse(self, known_row: int, reason: str) -> None:
        """Takes a row out of those that can be scored, by its number in `known`."""
        row = int(np.flatnonzero(self.scored)[known_row])
        self.scored[row], self.reasons[row] = False, reason
        self.known = pa.concat_tables([self.known.slice(0, known_row), self.known.slice(known_row + 1)])

    def where(self, row: int) -> str:
        return f"{self.file.path}, {_place_word(self.file.format)} {self.places[row]}"


@dataclass
class RowFile:
    """One file, and how it is read.

    Attributes:
        columns: the names of its columns, as they stand there; of JSON those of its first lines.
        sources: of each name that is read from it the column.
    """

    path: Path
    format: TableFormat
    columns: list[str]
    sources: dict[str, str]


@dataclass
class _Side:
    """A side table in memory."""

    table: SideTable
    index: pd.Index
    columns: dict[str, pa.Array]

    def lookup(self, keys: Sequence[pa.Array]) -> np.ndarray:
        """Of each row the number of its partner, -1 for none, `(rows,)`."""
        return self.index.get_indexer(_keys(keys))


class _Rejects(LineLog):
    """Keeps what is rejected of one file: lines, reasons and texts."""

    def __init__(self, name: str):
        super().__init__(1.0)
        self.files[name] = self.entry()
        self.lines: list[tuple[int, str]] = []

    def reject(self, name: str, line: int, error: RejectedLine, text: str) -> None:
        self.lines.append((line, _said(error)))


def columns_of_file(
    pattern: str, fields: Sequence[FlipField], reading: Mapping[str, Any] | None, option: str
) -> list[FlipField]:
    """The fields that the first file of a pattern has columns of, in the format in which it has the most of them.

    Args:
        fields, reading, option: as of [`RowReader`].

    Raises:
        FileNotFoundError, ValueError: as of [`RowReader`].
    """
    events, _ = _read_reading(reading or {})
    path = find_files([pattern], Path(), option)[0]
    found, failures = [], []
    for table_format in _formats(events, path):
        try:
            names = named_columns(table_format.columns(path))
        except (ValueError, UnicodeError) as error:
            failures.append(error)
            continue
        found.append([field for field in fields if column_of(field, names)])
    if not found:
        raise failures[0]
    return max(found, key=len)


class RowReader:
    """Rows to be scored, in files of any format.

    Args:
        patterns: paths or patterns of the files, in order.
        fields: the fields that the model reads.
        reading: how raw files are read, see [`FlipFeatureExtractor`]; a file whose columns do not fit it is read as a
            plain one of its ending.
        sides: paths or patterns of side tables by name, such as `items`; the columns of a side table that is not given
            stand in the rows themselves.
        also: more columns that must be there, such as a label or a time, and the types of those of which `reading`
            says none; None for one that `known` then has as it stands.
        option: what names the files, for messages.

    Raises:
        FileNotFoundError: no file fits a pattern.
        ValueError: a file cannot be read, a column is missing or comes twice, or there is no such side table.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        fields: Sequence[FlipField],
        reading: Mapping[str, Any] | None = None,
        sides: Mapping[str, Sequence[str]] | None = None,
        also: Mapping[str, str | None] = {},
        option: str = "--input",
    ):
        self.fields, sides = list(fields), dict(sides or {})
        self._events, joins = _read_reading(reading or {})
        rates = ClickRates.of_reading(reading or {})
        self._rates = {name for one in rates.statistics for name in one.columns} if rates else set()
        self._of_events = option == "--events"
        by_name = {join.name: join for join in joins}
        for name in sides:
            if name not in by_name:
                there = f"it has {', '.join(by_name)}" if by_name else "it has none"
                raise ValueError(f"--side {name}: the model knows no side table of that name; {there}")
        self._joins = [join for join in joins if join.name in sides]
        self._from_sides = {name for join in self._joins for name in join.columns}
        self._absent = {name: join for join in joins if join.name not in sides for name in join.columns}
        self._columns = {one.name: _column_of(one) for one in self.fields if not one.is_history}
        for join in self._joins:  # keys that are no fields
            for name in join.on:
                if name not in self._columns:
                    said = self._events.types.get(name) or next(
                        (other.types[other.columns[name]] for other in joins if name in (other.columns or {})), STRING
                    )
                    self._columns[name] = self._events.column(name, name, said)
        # what has no single value of a type, by what files call it
        self._raw = {one.name: one.column or one.name for one in self.fields if one.is_history}
        for name, kind in also.items():
            said = self._events.types.get(name) or (kind and ColumnType(kind))
            if said:
                self._columns.setdefault(name, self._events.column(name, name, said))
            elif name not in self._columns:
                self._raw[name] = name
        self.files = [self._open(path) for path in find_files(list(patterns), Path(), option)]
        self._sides = {join.name: self._read_side(join, sides[join.name]) for join in self._joins}

    # --- files and columns

    def _open(self, path: Path) -> RowFile:
        """A file in the format that the data of the model had, or in the plain one of its ending: the first in which
        it has all columns."""
        tried: list[tuple[int, TableFormat, list[str]]] = []
        failures = []
        for table_format in _formats(self._events, path):
            try:
                columns = table_format.columns(path)
            except (ValueError, UnicodeError) as error:
                failures.append(error)
                continue
            missing = self._missing(columns)
            if not missing:
                _check_encoding(table_format, path)
                return RowFile(path, table_format, columns, self._places(path, columns))
            tried.append((len(missing), table_format, columns))
        if not tried:
            raise failures[0]
        _, table_format, columns = min(tried, key=lambda one: one[0])
        if table_format.sparse and not columns:  # no line is an object, which is said of the lines
            return RowFile(path, table_format, [], {name: names[-1] for name, names in self._wanted().items()})
        raise self._lacks(path, self._missing(columns), columns)

    def _lacks(self, path: Path, missing: list[str], columns: list[str]) -> ValueError:
        side = self._absent.get(missing[0])
        hint = f" ({missing[0]!r} came from the table {side.name}: --side {side.name}=FILE)" if side else ""
        made = {"histories": self._raw.keys(), "click rates": self._rates}
        of_events = [what for what, names in made.items() if names & set(missing)]
        hint += f" (--events FILE makes the {' and the '.join(of_events)})" if of_events else ""
        hint += " (events have `clicked`, and the keys of histories and click rates)" if self._of_events else ""
        return ValueError(
            f"{path}: column(s) {', '.join(map(repr, missing))} missing; the rows have: "
            f"{listed(map(repr, columns))}{hint}."
        )

    def _wanted(self) -> dict[str, tuple[str, ...]]:
        """The names that are read from the rows themselves, each with what files may call it."""
        wanted = {name: (name, column.source) for name, column in self._columns.items() if name not in self._from_sides}
        return wanted | {name: (name, source) for name, source in self._raw.items()}

    def _missing(self, columns: list[str]) -> list[str]:
        have = set(map(clean_name, columns))
        return [name for name, names in self._wanted().items() if not have & set(map(clean_name, names))]

    def _places(self, path: Path, columns: list[str]) -> dict[str, str]:
        places = {}
        for name, names in self._wanted().items():
            called = next(one for one in map(clean_name, names) if one in map(clean_name, columns))
            found = [column for column in columns if clean_name(column) == called]
            if len(found) > 1:
                raise ValueError(f"{path} has more than one column {called!r}")
            places[name] = found[0]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"{path}: its header names {listed(map(repr, twice))} more than once")
        return places

    def _read_side(self, join: SideTable, patterns: Sequence[str]) -> _Side:
        """A side table as a whole. A line that cannot be read is an error: which rows it is of cannot be known."""
        on = {name: f"{KEY}{name}" for name in join.on}
        columns = [
            join.column(on[name], source, ColumnType(self._columns[name].type)) for name, source in join.on.items()
        ]
        for name, source in join.columns.items():
            if name in self._columns:
                own = self._columns[name]
                columns.append(replace(own, source=source, nulls=join.null_values))
        parts: dict[str, list[pa.Array]] = {column.name: [] for column in columns}
        for path in find_files(list(patterns), Path(), f"--side {join.name}"):
            for values in self._side_parts(join, path, columns):
                for name, array in values.items():
                    parts[name].append(array)
        arrays = {
            column.name: pa.concat_arrays([pa.array([], column.arrow_type), *parts[column.name]]) for column in columns
        }
        keys = pd.Index(_keys([arrays[name] for name in on.values()]))
        first = ~keys.duplicated()
        if not first.all() and join.duplicates == "reject":
            raise ValueError(f"--side {join.name}: {', '.join(join.on.values())} {keys[~first][0]!r} comes twice")
        rows = pa.array(np.flatnonzero(first))
        taken = {name: array.take(rows) for name, array in arrays.items() if name not in on.values()}
        return _Side(join, keys[first], taken)

    def _side_parts(self, join: SideTable, path: Path, columns: list[TableColumn]) -> Iterator[dict[str, pa.Array]]:
        failure: Exception | None = None
        for table_format in _formats(join, path):
            try:
                have = {clean_name(name): name for name in table_format.columns(path)}
            except (ValueError, UnicodeError) as error:
                failure = failure or error
                continue
            # under the file's own names, or under those of the fields
            sources = [
                have.get(clean_name(column.source), have.get(clean_name(column.name.removeprefix(KEY))))
                for column in columns
            ]
            if None not in sources:
                break
            missing = repr(columns[sources.index(None)].source)
            failure = ValueError(f"{path}: column {missing} missing; the rows have: {listed(map(repr, have))}.")
        else:
            raise failure
        log = _Rejects(path.name)
        for chunk in table_format.chunks(path.name, path, sources, log):
            values = {}
            for raw, column in zip(chunk.columns, columns):
                values[column.name], wrong = typed_column(raw, column)
                log.lines += [(chunk.lines[row], _said(error)) for row, error in wrong.items()]
            yield values
        if log.lines:
            line, reason = min(log.lines)
            raise ValueError(f"{path}, {_place_word(table_format)} {line}: {reason}")

    # --- rows

    def of_table(self, table: pa.Table, name: str) -> RowBatch:
        """Rows that something else has read, such as Spark; `name` is what errors call them."""
        missing = self._missing(table.column_names)
        if missing:
            raise self._lacks(Path(name), missing, table.column_names)
        sources = self._places(Path(name), table.column_names)
        file = RowFile(Path(name), ParquetFormat(), table.column_names, sources)
        columns = table.combine_chunks()
        raw = {one: _one_array(columns[source]) for one, source in sources.items()}
        return self._batch(file, table, raw, np.arange(1, len(table) + 1))

    def __iter__(self) -> Iterator[RowBatch]:
        for file in self.files:
            waiting: list[RowBatch] = []
            for batch in self._batches(file):
                waiting.append(batch)
                if sum(map(len, waiting)) >= BATCH_ROWS:
                    yield _joined(waiting)
                    waiting = []
            if waiting:
                yield _joined(waiting)

    def _batches(self, file: RowFile) -> Iterator[RowBatch]:
        log, name = _Rejects(file.path.name), file.path.name
        is_json = isinstance(file.format, JsonFormat)
        sources = list(file.sources.values()) if is_json else file.columns
        for chunk in file.format.chunks(name, file.path, sources, log):
            columns = dict(zip(sources, chunk.columns))
            rows = (
                [file.format.value(chunk.text(row)) for row in range(len(chunk.lines))]
                if is_json
                else pa.table([_as_array(columns[one], one, file) for one in file.columns], names=file.columns)
            )
            raw = {name: columns[source] for name, source in file.sources.items()}
            batch = self._batch(file, rows, raw, np.asarray(chunk.lines, np.int64))
            yield _with_rejects(batch, _pop_until(log, int(chunk.lines[-1])))
        if log.lines:
            none = [] if is_json else pa.table([pa.nulls(0, pa.string())] * len(file.columns), names=file.columns)
            yield _with_rejects(self._batch(file, none, {}, np.empty(0, np.int64)), _pop_until(log, None))

    def _batch(self, file: RowFile, rows: Any, raw: Mapping[str, Any], places: np.ndarray) -> RowBatch:
        reasons: dict[int, str] = {}
        columns: dict[str, pa.Array] = {}

        def note(row: int, reason: str) -> None:
            reasons.setdefault(row, reason)

        count = len(places)
        for name, column in self._columns.items():
            if name not in self._from_sides:
                column = replace(column, source=file.sources[name])  # what the file calls it
                columns[name], wrong = typed_column(raw.get(name, pa.nulls(count)), column)
                for row, error in wrong.items():
                    note(row, _said(error))
        for join in self._joins:
            self._add_side(self._sides[join.name], columns, note)
        for name in self._raw:
            columns[name] = _as_array(raw.get(name, pa.nulls(count)), name, file)
        for one in self.fields:
            if not one.nullable and not one.is_history and columns[one.name].null_count:
                for row in np.flatnonzero(columns[one.name].is_null().to_numpy(zero_copy_only=False)):
                    note(int(row), f"{one.name} is null, and the schema forbids nulls there")
        scored = np.ones(count, bool)
        scored[list(reasons)] = False
        known = pa.table(columns)
        return RowBatch(rows, known.filter(pa.array(scored)) if reasons else known, scored, reasons, file, places)

    def _add_side(self, side: _Side, columns: dict[str, pa.Array], note) -> None:
        keys = [columns[name] for name in side.table.on]
        partners = side.lookup(keys)
        if side.table.missing != "null":
            for row in np.flatnonzero(partners < 0):
                shown = ", ".join(str(key[int(row)].as_py()) for key in keys)
                note(int(row), f"{', '.join(side.table.on)} is not in {side.table.name}: {shown!r}")
        at = pa.array(partners, mask=partners < 0)
        for name, values in side.columns.items():
            columns[name] = values.take(at)


def whole_table(rows: RowReader, option: str) -> pa.Table:
    """All rows of a table that must be whole."""
    parts = []
    for batch in rows:
        for row in sorted(batch.reasons)[:1]:
            raise ValueError(f"{option}: {batch.where(row)}: {batch.reasons[row]}")
        parts.append(batch.known)
    if not parts:
        raise ValueError(f"{option}: {rows.files[0].path} has no rows")
    return pa.concat_tables(parts, promote_options="permissive")


# --- parts


def _read_reading(reading: Mapping[str, Any]) -> tuple[TableFiles, tuple[SideTable, ...]]:
    """The files of the events, and the side tables, as a checkpoint says how they are read."""
    events = {key: value for key, value in reading.items() if key not in ("joins", STATISTICS)}
    joins = [join | {"files": join["name"]} for join in reading.get("joins", ())]
    return read_files(events | {"files": EVENTS}, EVENTS, ""), read_joins(joins or None)


def _formats(files: TableFiles, path: Path) -> list[TableFormat]:
    """The formats in which a file may be, the likeliest first: as the schema says, and the plain one of its ending."""
    plain = TableFiles(files.name, (), null_values=files.null_values)
    found: list[TableFormat] = []
    failure = None
    for one in (files, plain):
        try:
            table_format = one.reader(path)
        except ValueError as error:
            failure = error
            continue
        if isinstance(table_format, CsvFormat) and table_format.column_names is not None:
            # a file of a data set without headers may have one where it comes from elsewhere
            found.append(replace(table_format, column_names=None))
        found.append(table_format)
    if not found:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(ENDINGS)}, packed or not") from failure
    return list(dict.fromkeys(found))


def _said(error: RejectedLine) -> str:
    """What is wrong, and with which text."""
    text = error.text if len(error.text) <= MAX_SHOWN else error.text[: MAX_SHOWN - 3] + "..."
    return f"{error.reason}: {text!r}" if text else error.reason


def _place_word(table_format: TableFormat) -> str:
    return "row" if isinstance(table_format, ParquetFormat) else "line"


def _check_encoding(table_format: TableFormat, path: Path) -> None:
    """`ValueError` where text that is surely UTF-8 would be read in another encoding: every character would do."""
    if not isinstance(table_format, CsvFormat) or table_format.encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        return
    block = next(byte_blocks(path), (1, b""))[1]
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError:
        return
    if not text.isascii():
        raise ValueError(
            f"{path} is text in UTF-8, and the model's data was in {table_format.encoding}; write the file anew in "
            f"{table_format.encoding}, or as .jsonl or .parquet"
        )


def _column_of(one: FlipField) -> TableColumn:
    separator = one.separator if one.is_multi_valued else None
    return TableColumn(
        one.name, one.column or one.name, one.type, separator, frozenset(one.null_values), decimal=one.decimal
    )


def _keys(arrays: Sequence[pa.Array]) -> np.ndarray:
    """The keys of rows as texts, None where a part is null."""
    texts = [array.cast(pa.string()) for array in arrays]
    return pc.binary_join_element_wise(*texts, "\x1f").to_numpy(zero_copy_only=False)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _as_array(values: Any, name: str, file: RowFile) -> pa.Array:
    """The values of a column as an Arrow array. `ValueError` where they have no common type."""
    try:
        return values if isinstance(values, pa.Array) else pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"{file.path}: column '{name}': {error}") from None


def _pop_until(log: _Rejects, line: int | None) -> list[tuple[int, str]]:
    """The rejected lines up to one (all for None), which the log forgets."""
    taken = sorted(one for one in log.lines if line is None or one[0] <= line)
    log.lines = [] if line is None else [one for one in log.lines if one[0] > line]
    return taken


def _with_rejects(batch: RowBatch, rejects: list[tuple[int, str]]) -> RowBatch:
    """The batch with a row for each line that is none, in the order of the file."""
    if not rejects:
        return batch
    places = np.concatenate([batch.places, [line for line, _ in rejects]]).astype(np.int64)
    order = np.argsort(places, kind="stable")
    if isinstance(batch.rows, list):
        whole = batch.rows + [{}] * len(rejects)
        rows: Any = [whole[row] for row in order]
    else:
        taken = np.where(order < len(batch), order, -1)
        rows = batch.rows.take(pa.array(taken, mask=taken < 0))
    numbers = np.argsort(order)  # where each row has come to
    reasons = {int(numbers[row]): reason for row, reason in batch.reasons.items()}
    reasons |= {int(numbers[len(batch) + at]): reason for at, (_, reason) in enumerate(rejects)}
    scored = np.ones(len(order), bool)
    scored[list(reasons)] = False
    return RowBatch(rows, batch.known, scored, reasons, batch.file, places[order])


def _joined(batches: list[RowBatch]) -> RowBatch:
    """Batches of one file as one."""
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum([0] + [len(batch) for batch in batches])
    rows: Any = [batch.rows for batch in batches]
    if isinstance(rows[0], list):
        rows = list(chain.from_iterable(rows))
    else:
        rows = pa.concat_tables(rows, promote_options="permissive")
    return RowBatch(
        rows,
        pa.concat_tables([batch.known for batch in batches], promote_options="permissive"),
        np.concatenate([batch.scored for batch in batches]),
        {int(start) + row: reason for start, batch in zip(starts, batches) for row, reason in batch.reasons.items()},
        batches[0].file,
        np.concatenate([batch.places for batch in batches]),
    )
