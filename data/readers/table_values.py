# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Columns of raw values to typed columns, by the one canonical form of a value that training and prediction use too.

Each distinct value of a chunk is looked at once. Where Arrow alone gives what `canonical_value` gives (text in plain
ASCII, digits, columns that have the type already), it does the work; everything else goes through `canonical_value`
itself.
"""

import contextlib
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.data.readers.raw_files import MalformedLine, whole_numbers
from flip_ctr.modeling_flip.fields_flip import FIELD_TYPES
from flip_ctr.modeling_flip.values_flip import (
    UnfitValue,
    canonical_value,
    clean_name,
    decimal_hint,
    null_forms,
    split_values,
)

TYPES = (*FIELD_TYPES, "timestamp")  # a timestamp is no field, but orders rows, and rules compare it
ARROW_TYPES = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
}
WORDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true, false, 1 or 0",
    "timestamp": "a date or time such as 2024-03-01 12:00",
}
PYTHON_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
# Text of which Arrow's cast is what `canonical_value` gives: printable ASCII without a superfluous space (which NFC
# leaves as it is), and digits (not `+1`, `1_000`, or digits of other scripts, which Python reads and Arrow may not).
PLAIN = {"string": r"^[!-~]+( [!-~]+)*$", "int": r"^-?[0-9]{1,18}$", "float": r"^-?[0-9]{1,15}(\.[0-9]{1,15})?$"}


@dataclass(frozen=True)
class ColumnType:
    """What a schema's `types` says of a column; see [`TableColumn`]."""

    type: str
    time_format: str | None = None
    decimal: str = "."

    def described(self) -> str | dict[str, str]:
        """As `types` says it."""
        return {"type": self.type, "decimal": self.decimal} if self.decimal != "." else self.time_format or self.type


@dataclass(frozen=True)
class TableColumn:
    """A column of a typed table.

    Args:
        name: its name there.
        source: its name in the files.
        type: one of `TYPES`.
        separator: where text is split into the values of a multi-valued column, see [`split_values`]; `None` for a
            column of single values.
        nulls: texts that mean null, beside the empty one; one that is a number means it as a number too.
        hint: what to do where a value is not of the type, for people.
        time_format: how a timestamp is written, in the signs of `strptime` (`%d/%m/%Y`); ISO 8601 when `None`.
        decimal: what stands before the decimals of a number in text, `.` or `,`.
    """

    name: str
    source: str
    type: str
    separator: str | None = None
    nulls: frozenset[str] = frozenset()
    hint: str = ""
    time_format: str | None = None
    decimal: str = "."

    @property
    def said(self) -> ColumnType:
        return ColumnType(self.type, self.time_format, self.decimal)

    @property
    def words(self) -> str:
        """What a value of it is."""
        return f"a time as {self.time_format} writes it" if self.time_format else WORDS[self.type]

    @cached_property
    def null_forms(self) -> frozenset[str]:
        """What the `nulls` are as text and in their canonical form."""
        return null_forms(self.nulls, "string" if self.type == "timestamp" else self.type, self.decimal)

    @cached_property
    def null_values(self) -> pa.Array:
        """Those of them that are values of the type, and no text."""
        values = []
        for form in self.null_forms if self.type in ("int", "float", "bool") else ():
            with contextlib.suppress(ValueError):
                values.append(_of_canonical(canonical_value(form, self.type), self.type))
        return pa.array(values, ARROW_TYPES[self.type])

    @property
    def arrow_type(self) -> pa.DataType:
        kind = ARROW_TYPES[self.type]
        return kind if self.separator is None else pa.list_(kind)


def typed_column(raw: "pa.Array | Sequence", column: TableColumn) -> tuple[pa.Array, dict[int, MalformedLine]]:
    """The values of a column with its type, `(rows,)`, and what is wrong with the rows (by number) whose value is not
    of it.

    Args:
        raw: the values as a file has them: an Arrow array, or Python values of any types.
    """
    try:
        values, wrong = _typed(raw, column)
    except UnicodeDecodeError:  # Parquet whose text is no UTF-8
        values, wrong = _typed(_decoded(raw), column)
    if values.type == pa.float64():
        values = pc.add(values, 0.0)  # -0.0 is 0.0
    if len(column.null_values) and column.separator is None:
        values = pc.if_else(pc.is_in(values, column.null_values), pa.scalar(None, values.type), values)
    return values, wrong


def _decoded(raw: pa.Array) -> list:
    """Texts of which some are no UTF-8, or lists of them; these as bytes."""
    raw = raw.dictionary_decode() if pa.types.is_dictionary(raw.type) else raw
    kind = pa.list_(pa.binary()) if pa.types.is_nested(raw.type) else pa.binary()

    def text(value):
        try:
            if isinstance(value, list):
                return [text(one) for one in value]
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return value

    return [text(value) for value in raw.cast(kind).to_pylist()]


def _typed(raw: "pa.Array | Sequence", column: TableColumn) -> tuple[pa.Array, dict[int, MalformedLine]]:
    """As [`typed_column`], where a number that means null is a number."""
    if not isinstance(raw, pa.Array):
        raw = _as_array(raw)
    if isinstance(raw, pa.Array):
        raw = _plain_array(raw, column)
        done = _cast(raw, column)
        if done is not None:
            return done, {}
    if isinstance(raw, pa.Array) and not pa.types.is_nested(raw.type):
        encoded = raw.dictionary_encode()
        codes = encoded.indices
        values, wrong = _typed_dictionary(encoded.dictionary, column)
        rows = np.flatnonzero(np.isin(codes.fill_null(-1).to_numpy(), list(wrong))) if wrong else []
        return values.take(codes), {int(row): wrong[codes[row].as_py()] for row in rows}
    return _typed_values(raw.to_pylist() if isinstance(raw, pa.Array) else raw, column)


def _as_array(values: Sequence) -> "pa.Array | Sequence":
    """Python values of one type as an Arrow array that holds just them; else as they are."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) > 1 or not kinds <= PYTHON_TYPES.keys():
        return values
    try:
        return pa.array(values, PYTHON_TYPES[kinds.pop()] if kinds else pa.null())
    except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid):  # more than 64 bits, half of a character
        return values


def _plain_array(raw: pa.Array, column: TableColumn) -> pa.Array:
    """The same values without an encoding of theirs; decimals where numbers are wanted, and numbers of 64 bits
    without a sign, as text, which has all their digits."""
    kind = raw.type
    if pa.types.is_dictionary(kind):
        return _plain_array(raw.dictionary_decode(), column)
    if kind == pa.uint64() or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return raw.cast(pa.string())
    if pa.types.is_decimal(kind) and column.type in ("int", "float") and column.decimal == ".":
        return raw.cast(pa.string())
    return raw


def _cast(raw: pa.Array, column: TableColumn) -> pa.Array | None:
    """The typed column where the raw one has the type already, or none of its values; else None."""
    kind = raw.type
    if pa.types.is_null(kind):
        return pa.nulls(len(raw), column.arrow_type)
    if column.separator is not None:
        return None
    if column.type == "int" and pa.types.is_integer(kind):
        return raw.cast(pa.int64())
    if column.type == "int" and pa.types.is_string(kind) and not column.nulls and len(raw):
        done = whole_numbers([raw])
        return done and done[0]
    if column.type == "bool" and pa.types.is_boolean(kind):
        return raw
    if column.type == "float" and kind == pa.float64():
        missing = pc.is_nan(raw)
        finite = pc.is_finite(raw)
        if pc.all(pc.or_kleene(missing, finite)).as_py() is not False:
            return pc.if_else(missing, pa.scalar(None, pa.float64()), raw)
    if column.type == "timestamp" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        zoned = pa.timestamp("us", "UTC") if pa.types.is_timestamp(kind) and kind.tz else pa.timestamp("us")
        return raw.cast(zoned, safe=False).cast(pa.timestamp("us"))
    return None


def _typed_dictionary(distinct: pa.Array, column: TableColumn) -> tuple[pa.Array, dict[int, MalformedLine]]:
    """Distinct values typed, and what is wrong with those that are not of the type."""
    kind = column.arrow_type
    if not pa.types.is_string(distinct.type) or column.separator is not None:
        # numpy keeps that a number has 32 bits: 0.1 must not become 0.10000000149011612
        short = pa.types.is_float32(distinct.type) or pa.types.is_float16(distinct.type)
        return _typed_values(list(distinct.to_numpy(zero_copy_only=False)) if short else distinct.to_pylist(), column)
    distinct = pc.if_else(
        pc.is_in(distinct, pa.array([*column.null_forms, ""], pa.string())), pa.scalar(None, pa.string()), distinct
    )
    plain = (
        pc.match_substring_regex(distinct, PLAIN[column.type])
        if column.type in PLAIN and column.decimal == "."
        else pa.array([None] * len(distinct), pa.bool_())
    )
    plain = pc.or_kleene(plain, distinct.is_null()).fill_null(False)
    typed = pc.if_else(plain, distinct, pa.scalar(None, pa.string())).cast(kind)
    if pc.all(plain).as_py() is not False:
        return typed, {}
    others = np.flatnonzero(~plain.to_numpy(zero_copy_only=False))
    values, wrong = _typed_values(distinct.take(pa.array(others)).to_pylist(), column)
    return pc.replace_with_mask(typed, pc.invert(plain), values), {
        int(others[at]): error for at, error in wrong.items()
    }


def _typed_values(values: Sequence, column: TableColumn) -> tuple[pa.Array, dict[int, MalformedLine]]:
    """As [`typed_column`], value by value."""
    known: dict[tuple, Any] = {}  # what became of a value, by itself and its type: 1 == 1.0 == True
    result, wrong = [], {}
    convert = _typed_value if column.separator is None else _typed_list
    for at, value in enumerate(values):
        try:
            result.append(convert(value, column, known))
        except MalformedLine as error:
            result.append(None)
            wrong[at] = error
    return pa.array(result, column.arrow_type), wrong


def _typed_value(value: Any, column: TableColumn, known: dict) -> Any:
    """A single value as a Python value of the column's type; `MalformedLine` where it is not of it."""
    if isinstance(value, list | dict | tuple | bytes | np.ndarray):
        raise _of_another_type(value, column)
    key = (type(value), value)
    if key not in known:
        known[key] = _convert(value, column)
    if isinstance(known[key], MalformedLine):
        raise known[key]
    return known[key]


def _typed_list(value: Any, column: TableColumn, known: dict) -> list | None:
    """The values of a multi-valued column in order, without nulls and repetitions; None where there are none."""
    if isinstance(value, str):
        value = [] if clean_name(value) in column.null_forms else split_values(value, column.separator)
    values = value if isinstance(value, list | tuple | np.ndarray) else [value]
    kept = dict.fromkeys(_typed_value(one, column, known) for one in values)
    return [one for one in kept if one is not None] or None


def _convert(value: Any, column: TableColumn) -> Any:
    if isinstance(value, str) and column.nulls and clean_name(value) in column.null_forms:
        return None
    if column.type == "timestamp":
        return _time(value, column)
    try:
        text = canonical_value(value, column.type, column.decimal)
    except UnfitValue as error:
        return MalformedLine(f"{column.source} {error.reason}", _shown(value))
    except ValueError:
        return _of_another_type(value, column)
    return None if text is None or text in column.null_forms else _of_canonical(text, column.type)


def _of_canonical(text: str, type_name: str) -> Any:
    """The Python value of a canonical form."""
    kinds = {"int": int, "float": float, "bool": lambda word: word == "true"}
    return kinds.get(type_name, str)(text)


def _shown(value: Any) -> str:
    """A value as text; JSON may hold half characters, which no file takes."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _time(value: Any, column: TableColumn) -> datetime.datetime | None | MalformedLine:
    if column.time_format and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # 20240301
    try:
        text = canonical_value(value, "string") if value is None or isinstance(value, str) or value != value else ""
        return read_time(text, column.time_format) if text is not None else None
    except (ValueError, OverflowError):
        return _of_another_type(value, column)


def read_time(text: str, time_format: str | None = None) -> datetime.datetime:
    """A date or time in UTC, which is also meant where no zone is given.

    Args:
        text: as ISO 8601 writes it, with or without `UTC` at its end.
        time_format: how it is written instead, in the signs of `strptime`.

    Raises:
        ValueError: it is not one; digits alone are not in ISO 8601, as they may count seconds.
    """
    if time_format is not None:
        time = datetime.datetime.strptime(text, time_format)
    elif text.isdecimal():
        raise ValueError(f"{text!r} is not a date or time")
    else:
        time = datetime.datetime.fromisoformat(re.sub(r" ?(UTC|GMT)$", "Z", text))
    return time.astimezone(datetime.UTC).replace(tzinfo=None) if time.tzinfo else time


def _of_another_type(value: Any, column: TableColumn) -> MalformedLine:
    """What is said of a value that is not of the column's type. The value is not part of the reason, by which lines are
    counted."""
    shown = _shown(value)
    if isinstance(value, str) or (isinstance(value, float) and column.type == "int"):
        hint = decimal_hint(clean_name(str(value)), column.type, column.decimal) + column.hint
        return MalformedLine(f"{column.source} is not {column.words}{hint}", shown)
    kind = (
        "a list"
        if isinstance(value, list | tuple | np.ndarray)
        else "an object"
        if isinstance(value, dict)
        else type(value).__name__
    )
    kind = {"int": "a number", "float": "a number", "bool": "true or false", "bytes": "bytes"}.get(kind, kind)
    if kind == "a number" and column.type in ("float", "int"):
        return MalformedLine(f"{column.source} is not finite", shown)
    hint = "; `kind: multi-valued` takes lists" if kind == "a list" and column.separator is None else column.hint
    return MalformedLine(f"{column.source} is {kind}, not {column.words}{hint}", shown)
