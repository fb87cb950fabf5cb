# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rows in any form that people have them in -> raw columns by the names of fields."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from .containers_flip import arrow, is_single
from .fields_flip import FlipField
from .values_flip import clean_name

FORMS = (
    "rows must be a dict of columns, a dict, a list of dicts, a pandas, polars or Arrow table, a DuckDB relation, or a "
    "datasets dataset"
)


def _is_table(rows: Any) -> bool:
    """Whether this is an Arrow table or batch, or gives itself as one: polars, DuckDB, a reader of batches."""
    return hasattr(rows, "column_names") and hasattr(rows, "column") or hasattr(rows, "__arrow_c_stream__")


def _is_frame(rows: Any) -> bool:
    return hasattr(rows, "iloc") and hasattr(rows, "columns")


def _is_row(rows: Any) -> bool:
    """Whether this is a row of a pandas frame."""
    return hasattr(rows, "iloc") and not hasattr(rows, "columns")


def named_columns(names: Iterable) -> dict[str, list]:
    """Names in the form in which they are compared -> as they are."""
    named: dict[str, list] = {}
    for name in names:
        if isinstance(name, str):
            named.setdefault(clean_name(name), []).append(name)
    return named


def column_of(field: FlipField, named: Mapping[str, list]) -> str | None:
    """What some rows call a field: its name, or else its `column`; None where they have neither.

    Raises:
        ValueError: they have that name twice.
    """
    for name in map(clean_name, filter(None, (field.name, field.column))):
        found = named.get(name, [])
        if len(found) > 1:
            spelled = f" ({', '.join(map(repr, found))})" if len(set(found)) > 1 else ""
            raise ValueError(f"the rows have more than one column {name!r}{spelled}.")
        if found:
            return found[0]
    return None


def _wanted(field: FlipField) -> str:
    return f"'{field.name}'{f' (or {field.column!r})' if field.column else ''}"


def _is_raw(rows: Any) -> bool:
    """Whether rows are [`RawRows`], or of a copy of this class: transformers loads remote code once for each class of a
    checkpoint."""
    return getattr(type(rows), "is_raw_rows", False)


class RawRows:
    """Rows whose columns are asked for by fields. Rows that can be read once only are read here.

    Args:
        names: of their columns, as the rows have them; None where there is no row to tell.
        columns: gives the raw columns of some of these names.

    Attributes:
        is_one_row: whether they were given as one row, and not as one of many.
    """

    is_raw_rows = True

    def __init__(self, names: Sequence | None, columns: Callable[[list], list], is_one_row: bool = False):
        self.names, self._columns, self.is_one_row = names, columns, is_one_row
        self._named = named_columns(names or [])

    @classmethod
    def of(cls, rows: Any, fields: Sequence[FlipField] = ()) -> "RawRows":
        """
        Args:
            rows: a dict of columns; one row as a dict or a pandas Series; a list of such rows; a pandas frame; an Arrow
                table, batch or dataset, or anything that gives itself as an Arrow stream (polars, DuckDB); a `datasets`
                dataset or batch; or an iterator of rows or tables.
            fields: of a row, which tell whether a dict is one row (see [`is_one_row`]).

        Raises:
            TypeError: `rows` has another form.
        """
        if _is_raw(rows):
            return rows
        if hasattr(rows, "with_format"):  # of datasets
            if isinstance(rows, Mapping):
                raise TypeError(f"{FORMS}; got splits: give one of {', '.join(map(repr, rows))}.")
            if not hasattr(rows, "__len__"):
                is_typed = getattr(rows, "features", None) is not None
                return cls.of(list(row_batches(rows, 1_000) or []) if is_typed else list(rows), fields)
            return cls(rows.column_names, lambda names: _of_table(rows.select_columns(names).with_format("arrow")[:]))
        if hasattr(rows, "collect_schema") and hasattr(rows, "collect"):  # a lazy frame of polars
            rows = rows.collect()
        if _is_frame(rows):
            return cls(list(rows.columns), lambda names: [rows[name] for name in names])
        if _is_row(rows):
            return cls.of([rows], fields)._as_one()
        if hasattr(rows, "to_table") and hasattr(rows, "scanner"):  # a dataset of Arrow
            return cls(rows.schema.names, lambda names: _of_table(rows.to_table(columns=names)))
        if _is_table(rows):
            table = rows if hasattr(rows, "column_names") else arrow().table(rows)
            return cls(table.column_names, lambda names: [table.column(name) for name in names])
        if isinstance(rows, Mapping) or hasattr(rows, "keys"):
            if is_one_row(rows, fields):
                return cls(list(rows.keys()), lambda names: [[rows[name]] for name in names], True)
            return cls(list(rows.keys()), lambda names: [rows[name] for name in names])
        if isinstance(rows, Iterator):
            return cls.of(list(rows), fields)
        if isinstance(rows, list | tuple) and rows and all(map(_is_table, rows)) and not any(map(_is_row, rows)):
            return cls.of(_joined(rows), fields)
        if isinstance(rows, list | tuple) and not hasattr(rows, "_fields"):
            return _ListOfRows(rows)
        raise TypeError(f"{FORMS}; got {_kind(rows)}.")

    def _as_one(self) -> "RawRows":
        self.is_one_row = True
        return self

    def columns(self, fields: Sequence[FlipField], optional: Sequence[FlipField] = ()) -> dict[str, Any]:
        """The raw columns of fields, by the fields' names; other columns are ignored.

        Args:
            optional: fields whose columns are taken where they are there.

        Raises:
            ValueError: a column is missing (its name, and the row where only some rows lack it), or there twice; or
                columns differ in length.
        """
        if self.names is None:  # no rows: no column is missing
            return {field.name: [] for field in (*fields, *optional)}
        places = {field.name: column_of(field, self._named) for field in (*fields, *optional)}
        missing = [_wanted(field) for field in fields if places[field.name] is None]
        if missing:
            raise ValueError(
                f"column(s) {', '.join(missing)} missing; the rows have: {', '.join(map(repr, self.names))}."
            )
        found = {name: place for name, place in places.items() if place is not None}
        columns = dict(zip(found, self._columns(list(found.values())))) if found else {}
        for name, column in columns.items():
            if is_single(column):
                raise ValueError(
                    f"column '{name}' holds one value, {column!r}, where other columns hold one for each row."
                )
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}.")
        return columns


class _ListOfRows(RawRows):
    """A list of dicts and rows of pandas frames, which may differ in what they call a column."""

    def __init__(self, rows: Sequence):
        self.rows = [row if isinstance(row, Mapping) else _as_dict(row) for row in rows]
        names = list(dict.fromkeys(key for row in self.rows for key in row)) if self.rows else None
        super().__init__(names, lambda names: [])

    def columns(self, fields: Sequence[FlipField], optional: Sequence[FlipField] = ()) -> dict[str, Any]:
        if self.names is None:
            return super().columns(fields, optional)
        found = {field.name: self._column(field, True) for field in fields}
        return found | {field.name: column for field in optional if (column := self._column(field, False)) is not None}

    def _column(self, field: FlipField, is_needed: bool) -> list | None:
        spelled = list(
            chain.from_iterable(self._named.get(clean_name(name), []) for name in (field.name, field.column) if name)
        )
        if not spelled and not is_needed:
            return None
        if len(spelled) == 1:
            name = spelled[0]
            with contextlib.suppress(KeyError):
                return [row[name] for row in self.rows]
            places: Iterable = (name if name in row else None for row in self.rows)
        else:
            known = {keys: column_of(field, named_columns(keys)) for keys in dict.fromkeys(map(tuple, self.rows))}
            places = (known[tuple(row)] for row in self.rows)
        column = []
        for number, (row, place) in enumerate(zip(self.rows, places)):
            if place is None and is_needed:
                raise ValueError(
                    f"column {_wanted(field)} is missing in row {number}; it has: {', '.join(map(repr, row))}."
                )
            column.append(None if place is None else row[place])
        return column


def _as_dict(row: Any) -> dict:
    """A row of a pandas frame as a dict. `TypeError` where it is none."""
    if not _is_row(row):
        raise TypeError(f"{FORMS}; got list of {_kind(row)}.")
    names = list(row.index)
    for name, found in named_columns(names).items():
        if len(found) > len(set(found)):
            raise ValueError(f"the rows have more than one column {name!r}.")
    return dict(zip(names, row.to_numpy()))  # float32 stays what it is


def _kind(rows: Any) -> str:
    if isinstance(rows, tuple) and hasattr(rows, "_asdict"):
        return f"the named tuple {type(rows).__name__}, whose names may not be those of the columns: give dicts"
    return type(rows).__name__


def _of_table(table: Any) -> list:
    """The columns of an Arrow table in order."""
    return [table.column(number) for number in range(table.num_columns)]


def _joined(tables: Sequence) -> Any:
    """Tables as one Arrow table."""
    module = arrow()
    if all(isinstance(table, module.RecordBatch) for table in tables):
        return module.Table.from_batches(tables)
    return module.concat_tables([module.table(table) for table in tables])


def is_one_row(rows: Any, fields: Sequence[FlipField]) -> bool:
    """Whether `rows` is one row and not a dict of columns.

    The first single-valued field that it has tells: in a row it is a scalar. Where it has only multi-valued ones, the
    first of them tells: in a row it is one value or a flat list of values, in a dict of columns a list of lists.
    """
    if _is_raw(rows):
        return rows.is_one_row
    if hasattr(rows, "iloc"):
        return _is_row(rows)
    if not (isinstance(rows, Mapping) or hasattr(rows, "keys")):
        return False
    named = named_columns(rows.keys())
    held = [(field, name) for field in fields if (name := column_of(field, named)) is not None]
    for field, name in held:
        if not (field.is_multi_valued or field.is_history):
            return is_single(rows[name]) or isinstance(rows[name], Mapping)
    lists = [name for field, name in held if field.is_multi_valued] + [name for field, name in held if field.is_history]
    first = next((rows[name] for name in lists), ())
    if is_single(first) or not lists:
        return bool(lists)
    if any(hasattr(first, name) for name in ("dictionary_encode", "iloc", "__arrow_c_stream__", "column_name")):
        return False  # a column whatever it holds
    return not any(isinstance(value, list | tuple) or getattr(value, "ndim", 0) for value in first)


def row_batches(rows: Any, size: int) -> Iterator | None:
    """A stream of rows in parts, each a list of rows or a table; None where the rows are in memory.

    A stream is an iterator of rows or tables, such as a generator or a reader of Arrow batches, or a streaming
    `datasets` dataset, whose types stay what they are.

    Args:
        size: rows of a part; tables come as they are.
    """
    if hasattr(rows, "with_format"):
        if isinstance(rows, Mapping) or hasattr(rows, "__len__"):
            return None
        if getattr(rows, "features", None) is not None:
            return iter(rows.with_format("arrow").iter(size))
    elif not isinstance(rows, Iterator):
        in_memory = hasattr(rows, "__len__") or not hasattr(rows, "__iter__")
        if in_memory or _is_table(rows) or _is_raw(rows) or hasattr(rows, "keys"):
            return None
    return _parts(iter(rows), size)


def _parts(rows: Iterator, size: int) -> Iterator:
    for first in rows:
        if _is_table(first) and not _is_row(first) or _is_frame(first):
            yield first
        else:
            yield [first, *islice(rows, size - 1)]
