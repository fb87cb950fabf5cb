# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a schema says of the files of a table, and of the side tables that are joined to it.

`prepare` reads by it, and it travels with a checkpoint, so that `predict` does too."""

import datetime
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flip_ctr.data.readers.csv_files import CsvFormat
from flip_ctr.data.readers.literal_lines import LiteralFormat
from flip_ctr.data.readers.raw_files import kind_of
from flip_ctr.data.readers.table_files import JsonFormat, ParquetFormat, TableFormat
from flip_ctr.data.readers.table_values import TYPES, ColumnType, TableColumn, read_time

FORMATS = ("csv", "tsv", "jsonl", "json", "python", "parquet")
ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
MISSING = {"reject": "malformed", "drop": "unused", "null": "null"}  # what a schema says to what a plan says
DUPLICATES = {"reject": "malformed", "first": "unused"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CSV_KEYS = ("delimiter", "quote", "escape", "column_names")
FILES = "a path or pattern such as clicks/*.csv, or a list of them"
EVENTS = "events"
EXAMPLE_TIME = datetime.datetime(2024, 3, 21, 14, 30, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class TableFiles:
    """The files of one table, and how to read them.

    Args:
        name: what errors and the report call the table.
        files: paths or patterns (`*`, `**`), relative to a base folder.
        format: one of `FORMATS`; by the files' ending when `None`.
        csv: what a CSV file's format says other than by default, see [`CsvFormat`].
        encoding: of text.
        null_values: texts that mean null.
        types: of columns that are no fields.
    """

    name: str
    files: tuple[str, ...]
    format: str | None = None
    csv: dict[str, Any] = field(default_factory=dict)
    encoding: str = "utf-8"
    null_values: frozenset[str] = frozenset()
    types: dict[str, ColumnType] = field(default_factory=dict)

    def column(
        self, name: str, source: str, said: ColumnType, separator: str | None = None, hint: str = ""
    ) -> TableColumn:
        """A column of the files, called `name` in the typed table."""
        return TableColumn(name, source, said.type, separator, self.null_values, hint, said.time_format, said.decimal)

    def described(self) -> dict[str, Any]:
        """How the files are read, by the keys of a schema; what is so by default is left out."""
        types = {name: said.described() for name, said in self.types.items()}
        said = {"format": self.format, "null_values": sorted(self.null_values), "types": types}
        encoding = {"encoding": self.encoding} if self.encoding != "utf-8" else {}
        return {key: value for key, value in said.items() if value} | self.csv | encoding

    def reader(self, path: Path) -> TableFormat:
        """The format of a file. `ValueError` where its ending tells none, or it has none of the options given."""
        suffix = kind_of(path)
        kind = self.format or ENDINGS.get(suffix)
        if kind is None:
            raise ValueError(
                f"`format` must say which of {', '.join(FORMATS)} {path} is: its ending {suffix!r} does not tell"
            )
        if kind in ("csv", "tsv"):
            usual = {"delimiter": "\t"} if kind == "tsv" else {}
            table_format = CsvFormat(**usual | self.csv, encoding=self.encoding)
            _check_signs(table_format)
            return table_format
        if self.csv:
            raise ValueError(f"`{next(iter(self.csv))}` has no effect on {path}, which is {kind}: leave it out")
        if kind == "parquet":
            return ParquetFormat()
        return (LiteralFormat if kind == "python" else JsonFormat)(self.encoding)


@dataclass(frozen=True)
class SideTable(TableFiles):
    """A table whose columns are added to each row by a key.

    Args:
        on: columns of the rows to those of the side table.
        missing: what becomes of a row without partner, one of `MISSING`.
        duplicates: what becomes of a line whose key came before, one of `DUPLICATES`.
        columns: the columns to take, by their names in the rows; all that something names when `None`.
    """

    on: dict[str, str] = field(default_factory=dict)
    missing: str = "reject"
    duplicates: str = "reject"
    columns: dict[str, str] | None = None


# --- reading


def read_files(values: dict, name: str, owner: str) -> TableFiles:
    """What a schema says of the files of one table."""
    csv: dict[str, Any] = {}
    if values.get("delimiter") is not None:
        if not isinstance(values["delimiter"], str) or not values["delimiter"]:
            raise ValueError(f"{owner}`delimiter` must be the text between two values; got {values['delimiter']!r}")
        csv["delimiter"] = {r"\t": "\t", "tab": "\t"}.get(values["delimiter"], values["delimiter"])
    for key in ("quote", "escape"):
        if key in values:
            csv[key] = values[key]
            if values[key] is not None and (not isinstance(values[key], str) or len(values[key]) != 1):
                raise ValueError(f"{owner}`{key}` must be one character, or null for none; got {values[key]!r}")
    if values.get("column_names") is not None:
        csv["column_names"] = read_texts(
            values, "column_names", "the columns of files that have no header, in order", owner
        )
    if len(csv.get("delimiter", ",")) > 1:
        if csv.get("quote") is not None:
            raise ValueError(f"{owner}`quote` must be null with a `delimiter` of more than one character")
        csv["quote"] = None
    encoding = read_text(values, "encoding", owner=owner) if values.get("encoding") is not None else "utf-8"
    try:
        encoding = {"utf-8-sig": "utf-8", "utf_8_sig": "utf-8"}.get(encoding.lower(), encoding)
        plain = 'a,"\n'.encode(encoding) == b'a,"\n'
    except LookupError:
        raise ValueError(
            f"{owner}`encoding` must be one that Python knows, such as utf-8 or latin-1; got {encoding!r}"
        ) from None
    if not plain:
        raise ValueError(
            f"{owner}`encoding` {encoding} is not read, as its line feeds are no single bytes; write the files anew in "
            "utf-8"
        )
    return TableFiles(
        name=name,
        files=read_texts(values, "files", FILES, owner),
        format=read_choice(values, "format", FORMATS, None, owner),
        csv=csv,
        encoding=encoding,
        null_values=_null_values(values.get("null_values"), owner),
        types=_types(values.get("types"), owner),
    )


def _check_signs(table_format: CsvFormat) -> None:
    """`ValueError` where two of delimiter, quote and escape are the same, or one ends a line."""
    taken: dict[str, str] = {}
    for key in ("delimiter", "quote", "escape"):
        sign = getattr(table_format, key)
        if sign is None:
            continue
        if any(end in sign for end in "\r\n\0"):
            raise ValueError(f"`{key}` must not hold the end of a line, or a NUL byte; got {sign!r}")
        if sign in taken:
            raise ValueError(f"`{key}` and `{taken[sign]}` must not be the same; both are {sign!r}")
        taken[sign] = key


def _null_values(value: Any, owner: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or any(isinstance(one, list | dict) for one in value):
        raise ValueError(f"{owner}`null_values` must be a list of texts, such as ['NULL', 'n/a']; got {value!r}")
    texts = [
        word for one in value for word in (("null", "Null", "NULL") if one is None else (str(one),))
    ]  # YAML's NULL is one
    return frozenset(" ".join(text.split()) for text in texts)


def _types(value: Any, owner: str) -> dict[str, ColumnType]:
    if value is None:
        return {}
    found = {column: _type(kind) for column, kind in value.items()} if isinstance(value, dict) else {None: None}
    if None in found.values():
        raise ValueError(
            f"{owner}`types` must be `column: type` with types of {', '.join(TYPES)}, a number with its decimal sign "
            f"such as {{type: float, decimal: ','}}, or the form of a time such as '%d/%m/%Y %H:%M'; got {value!r}"
        )
    return found


def _type(kind: Any) -> ColumnType | None:
    match kind:
        case str() if kind in TYPES:
            return ColumnType(kind)
        case str() if _is_time_format(kind):
            return ColumnType("timestamp", time_format=kind)
        case {"type": "int" | "float" as number, "decimal": "." | "," as sign, **rest} if not rest:
            return ColumnType(number, decimal=sign)
    return None


def _is_time_format(text: str) -> bool:
    try:
        return "%" in text and read_time(EXAMPLE_TIME.strftime(text), text) is not None
    except (ValueError, re.error):  # a sign that comes twice
        return False


def read_joins(values: Any) -> tuple[SideTable, ...]:
    """The side tables of a schema's `joins`."""
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError(f"`joins` must be a list of side tables, each with `files` and `on`; got {values!r}")
    result: list[SideTable] = []
    own = {"name", "on", "missing", "duplicates", "columns"}
    for number, value in enumerate(values, 1):
        owner = f"`joins`, number {number}: "
        check_keys(
            value, own | {"files", "format", "encoding", "null_values", "types", *CSV_KEYS}, ("files", "on"), owner
        )
        if "missing" in value and value["missing"] is None:  # as YAML reads `missing: null`
            value["missing"] = "null"
        first = read_texts(value, "files", FILES, owner)[0]
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(str(first)).name.split(".")[0]).strip("_") or f"side_{number}"
        name = read_text(value, "name", owner=owner) if value.get("name") is not None else stem
        if not NAME.fullmatch(name) or name in (EVENTS, *(one.name for one in result)):
            raise ValueError(f"{owner}`name` must be a word that no other table has, and not {EVENTS!r}; got {name!r}")
        files = read_files(value, name, owner)
        result.append(
            SideTable(
                **{one.name: getattr(files, one.name) for one in fields(TableFiles)},
                on=_mapping(
                    value["on"],
                    f"{owner}`on`",
                    "a column, a list of columns, or {column of the rows: column of the side table}",
                ),
                missing=read_choice(value, "missing", tuple(MISSING), "reject", owner),
                duplicates=read_choice(value, "duplicates", tuple(DUPLICATES), "reject", owner),
                columns=None
                if value.get("columns") is None
                else _mapping(
                    value["columns"],
                    f"{owner}`columns`",
                    "columns to take, or {name in the rows: column of the side table}",
                ),
            )
        )
    return tuple(result)


def _mapping(value: Any, key: str, what: str) -> dict[str, str]:
    value = [value] if isinstance(value, str) else value
    if isinstance(value, list):
        value = {one: one for one in value} if all(isinstance(one, str) for one in value) else None
    if not isinstance(value, dict) or not value or not all(isinstance(one, str) for one in value.values()):
        raise ValueError(f"{key} must be {what}")
    return value


# --- values of keys


def check_keys(values: dict, known: set[str], needed: tuple[str, ...] = (), owner: str = "") -> None:
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ValueError(f"{owner}unknown key(s) {', '.join(map(repr, unknown))}; there are {', '.join(sorted(known))}")
    missing = [key for key in needed if values.get(key) is None]
    if missing:
        raise ValueError(f"{owner}`{missing[0]}` is missing; {NEEDED.get(missing[0], 'give it a value')}")


NEEDED = {
    "name": "give the dataset a name, such as my-clicks",
    "files": "name the file(s) with a row for each possible click, such as clicks.csv or clicks/*.parquet",
    "label": "name a column of 0, 1, true or false, or write a rule such as `rating >= 4`",
    "fields": "list the columns that are features, each with `name` and `type`",
    "on": "name the column(s) by which the tables are joined, such as user_id, or {user_id: id}",
}


def read_text(values: dict, key: str, what: str = "text", owner: str = "") -> str:
    value = values[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{owner}`{key}` must be {what}; got {value!r}")
    return value.strip()


def read_texts(values: dict, key: str, what: str, owner: str = "") -> tuple[str, ...]:
    """One text or a list of them."""
    value = values[key]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError(f"{owner}`{key}` must be {what}; got {value!r}")
    return tuple(items)


def read_choice(values: dict, key: str, choices: tuple, default: Any, owner: str = "") -> Any:
    value = values.get(key, default)
    if value is None and None not in choices:
        value = default
    if value is not default and not (value in choices and isinstance(value, type(choices[0]))):
        shown = ", ".join("true" if one is True else "false" if one is False else str(one) for one in choices)
        raise ValueError(f"{owner}`{key}` must be one of {shown}; got {value!r}")
    return value
