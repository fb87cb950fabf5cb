# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Columns of canonical values: rows in any form, each distinct value of a column made once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .containers_flip import UnknownContainer, arrow_slices, factorize, holds_lists, plain_column
from .fields_flip import FlipField
from .rows_flip import RawRows
from .values_flip import Convert, Value, canonical_value, distinct_values, single_reader, value_reader

LISTS_AT_ONCE = 65_536  # rows of an Arrow column of lists


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
    def read(cls, raw: Any, field: FlipField, convert: Convert = canonical_value) -> "Column":
        """Reads a column in any container: a sequence, an array or tensor, or a column of pandas, polars or Arrow.

        Args:
            convert: makes the canonical value from a raw one, the field's type and its `decimal`.

        Raises:
            ValueError: a value is of another type; names column and row.
        """
        try:
            raw = plain_column(raw)
            column = cls._read_lists(raw, field, convert) if field.is_multi_valued and holds_lists(raw) else None
            if column is None:
                distinct, codes = factorize(raw)
                kind = str(getattr(raw, "dtype", getattr(raw, "type", "")))
                if field.type == "string" and kind.lower().endswith("uint64"):  # ids, half of them above 63 bits
                    distinct = [value if value is None else str(value) for value in distinct]
                column = cls._canonical(distinct, codes, field, value_reader(field, convert))
        except UnknownContainer as error:
            raise ValueError(f"column '{field.name}': {error}.") from None
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
        for code in np.flatnonzero(np.bincount(codes, minlength=len(distinct))).tolist():
            try:
                text = convert(distinct[code])
            except ValueError as error:
                row = int((codes == code).argmax())
                raise RowError(field.name, row if rows is None else int(rows[row]), str(error)) from None
            translate[code] = canonical.setdefault(text, len(canonical))
        return cls(list(canonical), translate[codes])

    @classmethod
    def _read_lists(cls, raw, field: FlipField, convert: Convert) -> "Column | None":
        """An Arrow column of lists, chunk by chunk: neither rows nor values become Python objects, only distinct ones
        do. None where the lists hold what is no single value."""
        canonical: dict[Value, int] = {}
        parts, done = [], 0
        single = single_reader(field, convert)
        for chunk in arrow_slices(raw, LISTS_AT_ONCE):
            flat = plain_column(chunk.flatten())  # without what lies under a null
            if holds_lists(flat) or getattr(flat.type, "num_fields", 0) > 0:
                return None
            lengths = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            rows = np.repeat(np.arange(len(lengths)), lengths)
            distinct, places = factorize(flat)
            elements = cls._canonical(distinct, places, field, single, rows + done)
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
                lists = [distinct_values(elements.values[code] for code in row) for row in matrix[first].tolist()]
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


def read_columns(rows: Any, fields: Sequence[FlipField]) -> dict[str, Column]:
    """The fields' columns of rows in any form of [`RawRows`], without a history (see [`read_histories`]); errors name
    column and row (`ValueError`)."""
    raw = RawRows.of(rows, fields)
    fields = [field for field in fields if not field.is_history]
    columns = raw.columns(fields)
    return {field.name: Column.read(columns[field.name], field) for field in fields}
