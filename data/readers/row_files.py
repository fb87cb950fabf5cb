# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Files that rows are written to part by part: Parquet, CSV and JSON lines.

Parquet and JSON lines hold the values of a multi-valued field as a list, CSV as text with the field's separator.
"""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from flip_ctr.data.outputs import new_file
from flip_ctr.modeling_flip.fields_flip import FlipField

FORMATS = (".parquet", ".csv", ".jsonl")

# text that a spreadsheet takes for a formula, and a number
FORMULA, NUMBER = r"^[=+\-@\t\r]", r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"

Rows = pa.Table | list[dict]


def file_format(path: str) -> str:
    """The file's ending; `ValueError` where it is none of Parquet, CSV and JSON lines."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")
    return suffix


def lists_as_text(rows: pa.Table, fields: Sequence[FlipField]) -> pa.Table:
    """Columns of lists as text, values joined by their field's separator (by a comma where they are no field), for a
    CSV file.

    Raises:
        ValueError: a value contains the separator, and would be read as two, or a column holds objects; names column
            and row.
    """
    separators = {name: field.separator for field in fields for name in (field.name, field.column) if name}
    for index, name in enumerate(rows.column_names):
        kind = rows.schema.types[index]
        if pa.types.is_struct(kind) or (hasattr(kind, "value_field") and pa.types.is_nested(kind.value_type)):
            raise ValueError(
                f"column '{name}' holds {kind}, which a CSV file cannot; leave it out, or write Parquet or JSON lines "
                "instead of CSV."
            )
        if not hasattr(kind, "value_field"):
            continue
        separator, texts = separators.get(name, FlipField(name).separator), []
        for row, values in enumerate(rows.column(name).to_pylist()):
            words = [str(value) for value in values or [] if value is not None]
            torn = next((word for word in words if separator in word), None)
            if torn is not None:
                raise ValueError(
                    f"column '{name}', row {row}: {torn!r} contains the separator {separator!r} and would be read as "
                    "two values; write Parquet or JSON lines instead of CSV."
                )
            texts.append(separator.join(words) if words else None)
        rows = rows.set_column(index, name, pa.array(texts, pa.string()))
    return rows


def without_formulas(rows: pa.Table) -> pa.Table:
    """The rows with `'` before each text, names of columns too, that a spreadsheet would take for a formula; numbers
    stay as they are."""
    for index, name in enumerate(rows.column_names):
        column = rows.column(index)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column = column.cast(kind) if kind != column.type else column
            risky = pc.and_(
                pc.match_substring_regex(column, FORMULA), pc.invert(pc.match_substring_regex(column, NUMBER))
            )
            column = pc.if_else(
                risky, pc.binary_join_element_wise(pa.scalar("'", kind), column, pa.scalar("", kind)), column
            )
        is_formula = re.search(FORMULA, name) and not re.search(NUMBER, name)
        rows = rows.set_column(index, f"'{name}" if is_formula else name, column)
    return rows


def table_of(rows: Rows, schema: pa.Schema | None = None) -> pa.Table:
    """Rows as a table, with the columns and types of a schema where one is given.

    Raises:
        ValueError: a column of JSON has values of several types, or whole numbers beyond 64 bits; names the column.
    """
    if isinstance(rows, pa.Table):
        names = rows.column_names if schema is None else schema.names
        columns = [rows[name] if name in rows.column_names else pa.nulls(len(rows)) for name in names]
        table = pa.table(columns, names=names)
        return table if schema is None else table.cast(schema)
    columns = {}
    names = dict.fromkeys(key for row in rows for key in row) if schema is None else schema.names
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values, None if schema is None else schema.field(name).type)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kinds = sorted({_kind(value) for value in values if value is not None})
            raise ValueError(f"column '{name}' mixes {' and '.join(kinds)}; write JSON lines") from None
        except OverflowError:
            raise ValueError(f"column '{name}' has a number beyond 64 bits; write JSON lines") from None
    return pa.table(columns)


def _kind(value) -> str:
    parts = sorted({_kind(one) for one in value}) if isinstance(value, list) else []
    return f"list of {' and '.join(parts)}" if parts else type(value).__name__


def check_output_file(path: str, overwrite: bool, escape_formulas: bool, may_be_folder: bool = False) -> None:
    """`ValueError` where `--output` has no ending of a format, is a folder, cannot be made, or is there already."""
    if Path(path).is_dir() and not may_be_folder:
        raise ValueError(f"--output {path} is a folder; name a file")
    if file_format(path) != ".csv" and escape_formulas:
        raise ValueError(f"--escape_formulas is for a .csv output; got --output {path}")
    folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"--output {path}: {folder} is a file, and no folder")
    if Path(path).exists() and not overwrite:
        raise ValueError(f"--output {path} is there already; choose another name or add --overwrite_output")


class RowWriter:
    """Writes rows part by part; the file appears when all are written, and where that fails, what lay there stays.

    Args:
        path: of the file, whose ending says the format.
        schema: the columns of the rows that come, and their types; JSON lines take rows as they are.
        fields: whose separators a CSV file has, see [`lists_as_text`].
        write: False where another process writes.
        overwrite: whether a file that appears at `path` meanwhile is replaced.
        escape_formulas: whether a CSV file has no formulas, see [`without_formulas`].

    Raises:
        FileExistsError: another run writes that file.
    """

    def __init__(
        self,
        path: str,
        schema: pa.Schema | None,
        fields: Sequence[FlipField] = (),
        write: bool = True,
        overwrite: bool = True,
        escape_formulas: bool = False,
    ):
        self.path, self.schema, self.fields, self._writes = Path(path), schema, fields, write
        self.suffix, self._escape_formulas = file_format(path), escape_formulas
        self._overwrite, self._stack = overwrite, contextlib.ExitStack()

    def __enter__(self) -> "RowWriter":
        self._writer = None
        if not self._writes:
            return self
        partial = self._stack.enter_context(new_file(self.path, self._overwrite))
        self._file = self._stack.enter_context(open(partial, "wb"))
        return self

    def write(self, rows: Rows, more: dict[str, pa.Array]) -> None:
        """Writes rows with more columns behind their own."""
        if not self._writes:
            return
        if self.suffix == ".jsonl":
            objects = rows.to_pylist() if isinstance(rows, pa.Table) else rows
            added = pa.table(more).to_pylist() if more else [{}] * len(objects)
            self._file.write(b"".join(_json_line(row | one) for row, one in zip(objects, added, strict=True)))
            return
        table = table_of(rows, self.schema)
        if table.num_columns == 0:  # of lines of which none is an object
            table = pa.table(more)
        else:
            for name, values in more.items():
                table = table.append_column(name, values)
        if self.suffix == ".csv":
            table = lists_as_text(table, self.fields)
            table = without_formulas(table) if self._escape_formulas else table
        if self._writer is None:
            kind = pyarrow.parquet.ParquetWriter if self.suffix == ".parquet" else pyarrow.csv.CSVWriter
            self._writer = kind(self._file, table.schema)
        self._writer.write_table(table)

    def __exit__(self, kind, error, trace) -> None:
        with self._stack:
            if kind is not None:
                raise error
            if self._writer is not None:
                self._writer.close()


def _json_line(row: dict) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a character, which JSON can say and UTF-8 cannot
        return json.dumps(row, default=str).encode() + b"\n"
