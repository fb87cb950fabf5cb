# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rows in any form that people have them in -> columns of canonical values.

Every value has one canonical form, a string made by the schema's type, which training, evaluation, prediction and the
prompt share: else a zip code `02139` becomes 2139, an age 25.0, and every score is silently wrong. That of a
multi-valued field is a tuple of such strings.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from .fields_flip import FlipField

NULL_TYPES = ("NoneType", "NAType", "NaTType")  # by name: pandas must not be imported here
PLAIN_TYPES = (str, int, float)  # a union made anew for each row would take longer than the rest
LISTS_AT_ONCE = 65_536  # rows of an Arrow column of lists

# a canonical value; None for a null
Value = str | tuple[str, ...] | None


def canonical_value(value: Any, type_name: str) -> str | None:
    """The canonical form of a value of a field of that type; None for a null (None, NaN, NA, or empty text).

    Raises:
        ValueError: the value is not of that type.
    """
    if type(value).__name__ in NULL_TYPES or value != value:
        return None
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", " ".join(value.split()))
        if not value:
            return None
    if type_name == "string":
        if not isinstance(value, str):
            if isinstance(value, int | np.integer) and not -(2**63) <= value < 2**63:
                return str(value)  # which no column of whole numbers has made of text with leading zeros
            is_number = isinstance(value, int | float | np.integer | np.floating)
            hint = "; read the file with the schema's types, so that leading zeros survive" if is_number else ""
            raise ValueError(f"expected text, got {type(value).__name__} {value!r}{hint}")
        return value
    is_bool = isinstance(value, bool | np.bool_)
    if type_name == "bool":
        if is_bool or (isinstance(value, int | np.integer) and value in (0, 1)):
            return "true" if value else "false"
        if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
            return "true" if value.lower() in ("true", "1") else "false"
    elif isinstance(value, str | int | float | np.integer | np.floating) and not is_bool:
        try:
            if isinstance(value, str) and "_" in value:  # Python's own way to write numbers
                raise ValueError
            number = float(value)
            if type_name == "int":
                if isinstance(value, int | np.integer) or (isinstance(value, str) and "." not in value):
                    return str(int(value))  # not through a float, which loses digits above 2**53
                if isinstance(value, str):
                    exact = Decimal(value)
                    if np.isfinite(number) and exact == exact.to_integral_value():
                        return str(int(exact))
                elif number.is_integer():
                    return str(int(number))
            elif np.isfinite(number):
                shown = value if isinstance(value, np.floating) else np.float64(number)
                return np.format_float_positional(
                    shown, unique=True, trim="-"
                )  # shortest form that reads back the same
        except (ValueError, OverflowError, InvalidOperation):
            pass
    raise ValueError(f"expected {type_name}, got {type(value).__name__} {value!r}")


def canonical_label(value: Any, type_name: str) -> str | None:
    """As `canonical_value`, and a bool is 0 or 1."""
    return canonical_value(int(value) if isinstance(value, bool | np.bool_) else value, type_name)


def canonical_field_value(
    value: Any, field: FlipField, convert: Callable[[Any, str], str | None] = canonical_value
) -> Value:
    """The canonical form of what a row has for a field: a string, or of a multi-valued field a tuple of them; None for
    a null.

    A multi-valued field may be given a list, text with the field's separators, or a single value. The order of the
    values stays, and nulls and repetitions are dropped; where nothing is left, it is a null.

    Args:
        convert: makes the canonical form of a single value from the raw one and the field's type.

    Raises:
        ValueError: a value is not of the field's type.
    """
    if not field.is_multi_valued:
        return convert(value, field.type)
    values = (
        value.split(field.separator)
        if isinstance(value, str)
        else value
        if isinstance(value, list | tuple)
        else [value]
    )
    return _distinct(convert(one, field.type) for one in values)


def _distinct(values: Iterable[str | None]) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(value for value in values if value is not None)) or None


class RowError(ValueError):
    """A value that cannot be read; whoever read only a part of a file knows the row's place in it.

    Args:
        column: name of the column.
        row: position in the rows that were read.
        reason: what is wrong with the value.
    """

    def __init__(self, column: str, row: int, reason: str):
        super().__init__(f"column '{column}', row {row}: {reason}.")
        self.column, self.row, self.reason = column, row, reason


class Column:
    """One column, each distinct value once: `values[codes[row]]` is the canonical value of a row.

    Attributes:
        values: distinct canonical values (None for null; tuples for a multi-valued field), in order of first
            appearance.
        codes: `(rows,)` positions in `values`.
    """

    def __init__(self, values: list[Value], codes: np.ndarray):
        self.values, self.codes = values, codes

    @classmethod
    def read(cls, raw, field: FlipField, convert=canonical_value) -> "Column":
        """Reads a sequence, or an Arrow (chunked) array. `ValueError` names column and row of a value of another type.

        `convert` makes the canonical value from a raw one and the field's type.
        """
        if field.type == "string" and str(getattr(raw, "type", "")) == "uint64":  # ids, half of them above 63 bits
            raw = raw.cast("string")
        column = cls._read_lists(raw, field, convert) if field.is_multi_valued and _holds_lists(raw) else None
        if column is None:
            column = cls._canonical(
                *cls._factorize(raw), field, lambda value: canonical_field_value(value, field, convert)
            )
        if not field.nullable and None in column.values:
            row = int((column.codes == column.values.index(None)).argmax())
            raise RowError(field.name, row, "null, and the schema forbids nulls here")
        return column

    @classmethod
    def _canonical(
        cls, distinct: list, codes: np.ndarray, field: FlipField, convert, rows: np.ndarray | None = None
    ) -> "Column":
        """The column of canonical values from raw distinct ones; `rows` are those of the codes, where one row has
        several."""
        canonical: dict[Value, int] = {}
        translate = np.empty(max(len(distinct), 1), np.int64)
        used = set(np.unique(codes).tolist())
        for code, value in enumerate(distinct):
            if code not in used:
                continue
            try:
                text = convert(value)
            except ValueError as error:
                row = int((codes == code).argmax())
                raise RowError(field.name, row if rows is None else int(rows[row]), str(error)) from None
            translate[code] = canonical.setdefault(text, len(canonical))
        return cls(list(canonical), translate[codes])

    @classmethod
    def _read_lists(cls, raw, field: FlipField, convert) -> "Column | None":
        """An Arrow column of lists, chunk by chunk: neither rows nor values become Python objects, only distinct ones
        do. None where the lists hold what is no single value."""
        canonical: dict[Value, int] = {}
        parts, done = [], 0
        for chunk in _chunks(raw, LISTS_AT_ONCE):
            flat = chunk.flatten()  # without what lies under a null
            if _holds_lists(flat) or getattr(flat.type, "num_fields", 0) > 0:
                return None
            lengths = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            rows = np.repeat(np.arange(len(lengths)), lengths)
            distinct, places = cls._factorize(flat)
            elements = cls._canonical(distinct, places, field, lambda value: convert(value, field.type), rows + done)
            if None in elements.values:
                kept = elements.codes != elements.values.index(None)
                lengths, elements.codes = np.bincount(rows[kept], minlength=len(lengths)), elements.codes[kept]
            starts = lengths.cumsum() - lengths
            codes = np.empty(len(lengths), np.int64)
            for length in np.unique(lengths).tolist():  # rows of one length are a matrix
                of_length = np.flatnonzero(lengths == length)
                if length == 0:
                    codes[of_length] = canonical.setdefault(None, len(canonical))
                    continue
                matrix = elements.codes[starts[of_length, None] + np.arange(length)]
                first, at = distinct_rows(matrix, len(elements.values))
                lists = [_distinct(elements.values[code] for code in row) for row in matrix[first].tolist()]
                codes[of_length] = np.array([canonical.setdefault(value, len(canonical)) for value in lists])[at]
            parts.append(codes)
            done += len(codes)
        # numbered in order of first appearance, as columns of any other form are
        codes = np.concatenate([np.empty(0, np.int64), *parts])
        used, first = np.unique(codes, return_index=True)
        order = used[np.argsort(first)]
        renumber = np.empty(max(len(canonical), 1), np.int64)
        renumber[order] = np.arange(len(order))
        values = list(canonical)
        return cls([values[code] for code in order], renumber[codes])

    @staticmethod
    def _factorize(raw) -> tuple[list, np.ndarray]:
        """The distinct raw values, and each row's position among them."""
        if hasattr(raw, "dictionary_encode") and not _holds_lists(
            raw
        ):  # Arrow: factorised without a Python loop over the rows
            raw = raw.combine_chunks() if hasattr(raw, "combine_chunks") else raw
            encoded = raw.dictionary_encode()
            distinct = [*encoded.dictionary.to_pylist(), None]
            return distinct, encoded.indices.fill_null(len(distinct) - 1).to_numpy(zero_copy_only=False).astype(
                np.int64
            )
        to_list = getattr(raw, "to_pylist", None) or getattr(raw, "tolist", None)
        raw = to_list() if to_list else raw
        seen: dict[Any, int] = {}
        distinct, codes = [], np.empty(len(raw), np.int64)
        for row, value in enumerate(raw):
            key = value
            if not isinstance(value, PLAIN_TYPES):
                if getattr(value, "ndim", 0):  # an array or tensor in the place of a list
                    value = value.tolist()
                key = (*map(type, value), *value) if isinstance(value, list | tuple) else value
            try:
                code = seen.setdefault((type(value), key), len(distinct))  # the type too: 1 == 1.0 == True
            except TypeError:  # unhashable: not a single value; named by canonical_value
                code = len(distinct)
            if code == len(distinct):
                distinct.append(value)
            codes[row] = code
        return distinct, codes

    def take(self, rows: np.ndarray | Sequence[int]) -> "Column":
        """Some rows, with the distinct values that they have."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        return Column([self.values[code] for code in used], codes)

    def map(self, table: Mapping[Value, int], default: int) -> np.ndarray:
        """`table[value]` of every row, `(rows,)`."""
        return np.array([table.get(value, default) for value in self.values], np.int64)[self.codes]


def distinct_rows(matrix: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a matrix of numbers below `size` the first of each distinct row, and which of them each row is (`np.unique` of
    whole rows is many times slower)."""
    key = np.zeros(len(matrix), np.int64)
    for column in matrix.T:  # rows that were equal so far have one key, below their number: no product overflows
        _, first, key = np.unique(key * size + column, return_index=True, return_inverse=True)
    return first, key


def _holds_lists(raw) -> bool:
    """Whether this is an Arrow (chunked) array of lists (by what it has: Arrow must not be imported here)."""
    kind = getattr(raw, "type", None)
    return hasattr(raw, "dictionary_encode") and hasattr(kind, "value_field")


def _chunks(raw, size: int) -> Iterator:
    """An Arrow (chunked) array in slices of at most so many rows."""
    for chunk in raw.chunks if hasattr(raw, "chunks") else [raw]:
        for start in range(0, len(chunk), size):
            yield chunk.slice(start, size)


def is_one_row(rows: Any, names: Sequence[str], multi_valued: Sequence[str] = ()) -> bool:
    """Whether `rows` is one row and not a dict of columns.

    The first single-valued column that it has tells: in a row it is a scalar. Where it has only multi-valued ones, the
    first of them tells: in a row it is one value or a flat list of values, in a dict of columns a list of lists.

    Args:
        names: columns of single-valued fields.
        multi_valued: columns of multi-valued fields.
    """
    if hasattr(rows, "iloc"):  # pandas: a Series is a row, a frame is not
        return not hasattr(rows, "columns")
    if not (isinstance(rows, Mapping) or hasattr(rows, "keys")):
        return False
    for name in names:
        if name in rows:
            return isinstance(rows[name], str | bytes) or np.ndim(rows[name]) == 0
    first = next((rows[name] for name in multi_valued if name in rows), None)
    if first is None:
        return any(name in rows for name in multi_valued)  # one null
    if isinstance(first, str | bytes) or not hasattr(first, "__len__"):
        return True
    if hasattr(first, "dictionary_encode") or hasattr(first, "iloc"):  # Arrow, pandas: a column whatever it holds
        return False
    return not any(isinstance(value, list | tuple) or getattr(value, "ndim", 0) for value in first)


def raw_columns(
    rows: Any, names: Sequence[str], optional: Sequence[str] = (), multi_valued: Sequence[str] = ()
) -> dict[str, Any]:
    """The named columns of rows in any of the forms that people have them in; other columns are ignored.

    Args:
        rows: a dict of columns, one row as a dict (see [`is_one_row`]), a list of dicts, a pandas or Arrow table, or a
            `datasets` dataset or batch.
        names: columns that must be there.
        optional: columns to take where they are there.
        multi_valued: those of them that hold several values a row.

    Raises:
        ValueError: a column is missing (its name, and the row where only some rows lack it), or columns differ in
            length.
        TypeError: `rows` has another form.
    """
    if hasattr(rows, "with_format"):  # a datasets.Dataset: its Arrow table
        wanted = [name for name in (*names, *optional) if name in rows.column_names]
        rows = rows.select_columns(wanted).with_format("arrow")[:]
    if hasattr(rows, "column_names") and hasattr(rows, "column"):  # Arrow
        have, get = list(rows.column_names), rows.column
    elif hasattr(rows, "columns") and hasattr(rows, "iloc"):  # pandas
        have, get = list(rows.columns), lambda name: rows[name].tolist()
    elif isinstance(rows, Mapping) or hasattr(rows, "keys"):
        have = list(rows.keys())
        single = is_one_row(rows, [name for name in (*names, *optional) if name not in multi_valued], multi_valued)
        get = (lambda name: [rows[name]]) if single else rows.__getitem__
    elif isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows):
        have = (
            list(dict.fromkeys(key for row in rows for key in row)) if rows else list(names)
        )  # no rows: no column is missing
        for name in names:
            lacking = next((i for i, row in enumerate(rows) if name not in row), None)
            if lacking is not None:
                raise ValueError(
                    f"column '{name}' is missing in row {lacking}; it has: {', '.join(map(str, rows[lacking]))}."
                )
        get = lambda name: [row.get(name) for row in rows]  # noqa: E731
    else:
        raise TypeError(
            "rows must be a dict of columns, a dict, a list of dicts, a pandas or Arrow table or a datasets dataset; "
            f"got {type(rows).__name__}."
        )
    missing = [name for name in names if name not in have]
    if missing:
        raise ValueError(
            f"column(s) {', '.join(map(repr, missing))} missing; the rows have: {', '.join(map(str, have))}."
        )
    columns = {name: get(name) for name in (*names, *optional) if name in have}
    for name, column in columns.items():
        if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
            raise ValueError(f"column '{name}' holds one value, {column!r}, where other columns hold one for each row.")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}.")
    return columns


def names_by_kind(fields: Sequence[FlipField]) -> tuple[list[str], list[str]]:
    """The columns of the single-valued fields, and those of the multi-valued ones; a history is neither."""
    return [field.name for field in fields if not (field.is_multi_valued or field.is_history)], [
        field.name for field in fields if field.is_multi_valued
    ]


def read_columns(rows: Any, fields: Sequence[FlipField]) -> dict[str, Column]:
    """The fields' columns of rows in any form of [`raw_columns`], without a history (see [`read_histories`]); errors
    name column and row (`ValueError`)."""
    fields = [field for field in fields if not field.is_history]
    raw = raw_columns(rows, [field.name for field in fields], multi_valued=names_by_kind(fields)[1])
    return {field.name: Column.read(raw[field.name], field) for field in fields}
