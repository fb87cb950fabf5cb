# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rows in Parquet, CSV and JSON-lines files, read so that the same rows give the same values.

Parquet and JSON lines hold the values of a multi-valued field as a list, CSV as text with the field's separator.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from flip_ctr.modeling_flip.fields_flip import FlipField

FORMATS = (".parquet", ".csv", ".jsonl")
ARROW_TYPES = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


def file_format(path: str) -> str:
    """The file's ending; `ValueError` where it is none of Parquet, CSV and JSON lines."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(FORMATS)}")
    return suffix


def read_rows(path: str, fields: Sequence[FlipField]) -> pa.Table:
    """A file's rows; CSV columns that are fields are read as text, which their type then interprets (zip code `02139`,
    or values with a separator).

    Raises:
        ValueError: the file cannot be read; names the file, and the line of broken JSON.
        FileNotFoundError: there is no such file.
    """
    suffix = file_format(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    if suffix == ".jsonl":
        return _table_of_dicts(list(_json_objects(path)), path)
    try:
        if suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with pyarrow.csv.open_csv(path, parse_options=parsing) as reader:
            names = reader.schema.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{path}: its header names {', '.join(twice)} more than once")
        # all as text: what is no field goes to the output as it stands
        options = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        return _with_types(pyarrow.csv.read_csv(path, parse_options=parsing, convert_options=options), fields)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from None


def _json_objects(path: str) -> Iterator[dict]:
    """The objects of a JSON-lines file; `ValueError` names the line of what is none."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # broken JSON, and bytes that are no UTF-8
                raise ValueError(f"{path}, line {number}: {error}") from None
            if not isinstance(value, dict):
                raise ValueError(f"{path}, line {number}: expected an object of columns")
            yield value


def _with_types(table: pa.Table, fields: Sequence[FlipField]) -> pa.Table:
    """Columns of numbers as numbers; one that holds anything else stays text, whose reader then names the row, and so
    does one of several values a row, which its reader splits."""
    for field in fields:
        if field.name in table.column_names and field.type in ARROW_TYPES and not field.is_multi_valued:
            index = table.column_names.index(field.name)
            with contextlib.suppress(pa.ArrowInvalid):
                table = table.set_column(index, field.name, table[field.name].cast(ARROW_TYPES[field.type]))
    return table


def _table_of_dicts(rows: list[dict], path: str) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kinds = sorted({_kind(row[name]) for row in rows if row.get(name) is not None})
            raise ValueError(f"{path}: column '{name}' mixes {' and '.join(kinds)}; give it one type") from None
        except OverflowError:
            row = next(
                number
                for number, row in enumerate(rows)
                if isinstance(row.get(name), int) and not -(2**63) <= row[name] < 2**64
            )
            raise ValueError(
                f"{path}: column '{name}', row {row}: {rows[row][name]} does not fit into 64 bits; write it as text"
            ) from None
    return pa.table(columns)


def _kind(value) -> str:
    parts = sorted({_kind(one) for one in value}) if isinstance(value, list) else []
    return f"list of {' and '.join(parts)}" if parts else type(value).__name__


def lists_as_text(rows: pa.Table, fields: Sequence[FlipField]) -> pa.Table:
    """Columns of lists as text, values joined by their field's separator (by a comma where they are no field), for a
    CSV file.

    Raises:
        ValueError: a value contains the separator, and would be read as two, or a column holds objects; names column
            and row.
    """
    separators = {field.name: field.separator for field in fields}
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


def write_rows(rows: pa.Table, path: str, fields: Sequence[FlipField] = ()) -> None:
    """Writes rows in the format of the file's ending; for CSV see [`lists_as_text`]. Where that fails, what lay there
    stays."""
    suffix, target = file_format(path), Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.saving")
    try:
        if suffix == ".parquet":
            pyarrow.parquet.write_table(rows, partial)
        elif suffix == ".csv":
            pyarrow.csv.write_csv(lists_as_text(rows, fields), partial)
        else:
            with open(partial, "w", encoding="utf-8") as file:
                for row in rows.to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
