# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a person writes of their table, in YAML; `docs/datasets.md` explains every key.

Each thing that is wrong is one error that names the file, the key and what would be right.
"""

import datetime
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from flip_ctr.data.prepare.own_splits import OwnSplit, read_split, read_split_files
from flip_ctr.data.prepare.rules import Rule
from flip_ctr.data.prepare.splits import SPLIT_RULES
from flip_ctr.data.readers.csv_files import CsvFormat
from flip_ctr.data.readers.hive_partitions import with_partitions
from flip_ctr.data.readers.literal_lines import LiteralFormat
from flip_ctr.data.readers.raw_files import kind_of
from flip_ctr.data.readers.table_files import JsonFormat, ParquetFormat, TableFormat
from flip_ctr.data.readers.table_values import TYPES, read_time
from flip_ctr.modeling_flip.fields_flip import FlipField, read_fields

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
FACTS = ("title", "licence", "licence_link", "citation")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CSV_KEYS = ("delimiter", "quote", "escape", "column_names")
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
        types: of columns that are no fields, one of `TYPES`.
        time_formats: how timestamps among them are written, where that is not ISO 8601, see [`read_time`].
    """

    name: str
    files: tuple[str, ...]
    format: str | None = None
    csv: dict[str, Any] = field(default_factory=dict)
    encoding: str = "utf-8"
    null_values: frozenset[str] = frozenset()
    types: dict[str, str] = field(default_factory=dict)
    time_formats: dict[str, str] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """How the files are read, by the keys of a schema; what is so by default is left out."""
        types = self.types | {name: form for name, form in self.time_formats.items() if name in self.types}
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
            return with_partitions(CsvFormat(**usual | self.csv, encoding=self.encoding), path)
        if self.csv:
            raise ValueError(f"`{next(iter(self.csv))}` has no effect on {path}, which is {kind}: leave it out")
        if kind == "parquet":
            return with_partitions(ParquetFormat(), path)
        return with_partitions((LiteralFormat if kind == "python" else JsonFormat)(self.encoding), path)


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


@dataclass(frozen=True)
class TableSchema:
    """A table as its YAML describes it.

    Args:
        path: of the YAML file.
        name: of the dataset.
        events: the files with a row for each possible click.
        joins: side tables, in the order in which they are joined.
        label: a column of 0/1/true/false, or a rule.
        drop: name of each reason to drop a row, and its rule.
        fields: of a row, in order.
        sample_weight, user, item, time: columns, where there are such.
        row_key: columns that identify a row; found out when `None`.
        unique: whether of rows with the same key only the first counts.
        split, split_seed, ratios: see `splits`; `None` where the schema does not say.
        own_split: a split that the data brings, without the names of its files.
        split_files: where the files bring the split, the paths or patterns of each.
        statistics: what rows share, as `user_id` or `user_id+genre`, whose click rates are added.
        history: most entries of a row's history; no histories are added when `None`.
        support_rows: see `histories`.
        facts: what the card says of the raw data, of `FACTS`.
    """

    path: Path
    name: str
    events: TableFiles
    label: str
    fields: list[FlipField]
    joins: tuple[SideTable, ...] = ()
    drop: dict[str, str] = field(default_factory=dict)
    sample_weight: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    row_key: tuple[str, ...] | None = None
    unique: bool = False
    split: str | None = None
    split_seed: int | None = None
    ratios: tuple[int, ...] | None = None
    own_split: OwnSplit | None = None
    split_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    statistics: tuple[str, ...] = ()
    history: int | None = None
    support_rows: int = 0
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, str]:
        """Of each field the name of its column in the files."""
        return {one.name: one.column or one.name for one in self.fields}

    def error(self, message: str) -> ValueError:
        """An error of this schema."""
        return ValueError(f"{self.path}: {message}.")


class _Loader(yaml.SafeLoader):
    """YAML whose keys are the words that were written (`on` is not true), each once."""

    def construct_mapping(self, node, deep=False):
        values = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else str(key.value)
            if name in values:
                raise yaml.MarkedYAMLError(problem=f"`{name}` comes twice", problem_mark=key.start_mark)
            values[name] = self.construct_object(value, deep=True)
        return values


def read_schema(path: str | Path) -> TableSchema:
    """Reads the YAML description of a table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, a key is unknown or missing, or a value is not what the key takes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"--schema {path}: no such file; `flip-ctr prepare --infer_schema FILE` writes a first one."
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        hint = (
            "; text that begins with such a character stands in quotes" if "cannot start any token" in problem else ""
        )
        raise ValueError(f"{path}{where}: no YAML in UTF-8: {problem}{hint}.") from None
    try:
        if not isinstance(values, dict):
            raise ValueError("expected `key: value` lines, with `name`, `files`, `label` and `fields` among them")
        return _schema(path, values)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).rstrip('.')}.") from None


def _schema(path: Path, values: dict) -> TableSchema:
    own = {one.name for one in fields(TableSchema)} - {"path", "events", "facts", "own_split", "split_files"}
    files = {"files", "format", "encoding", "null_values", "types", *CSV_KEYS}
    _check_keys(values, own | files | set(FACTS), needed=("name", "files", "label", "fields"))
    name = _text(values, "name")
    if not NAME.fullmatch(name):
        raise ValueError(f"`name` must be a word of letters, digits, '-', '_' and '.'; got {name!r}")
    if isinstance(values["label"], bool | int | float | list | dict):
        raise ValueError(
            f"`label` must be a column of 0, 1, true or false, or a rule such as `rating >= 4`; got {values['label']!r}"
        )
    own_split, split_files = None, {}
    if isinstance(values["files"], dict):
        what = "a path or pattern such as train/*.csv, or a list of them"
        files_of = read_split_files(values["files"])
        split_files = {split: _texts(files_of, split, what, "`files`, ") for split in files_of}
        values = values | {"files": [one for some in split_files.values() for one in some]}
        own_split = OwnSplit()
        if values.get("split") is not None:
            raise ValueError(
                f"`files` names the files of each split, so that `split` must be left out; got {values['split']!r}"
            )
    elif isinstance(values.get("split"), dict):
        own_split = read_split(values["split"])
        values = values | {"split": None}
    return TableSchema(
        path=path,
        name=name,
        own_split=own_split,
        split_files=split_files,
        events=read_files(values, EVENTS, ""),
        label=_text(values, "label", "a column of 0, 1, true or false, or a rule such as `rating >= 4`"),
        fields=_fields(values["fields"]),
        joins=read_joins(values.get("joins")),
        drop=_drops(values.get("drop")),
        row_key=_row_key(values),
        unique=_one_of(values, "unique", (True, False), False),
        split=_one_of(values, "split", tuple(SPLIT_RULES), None),
        split_seed=_whole_number(values, "split_seed"),
        ratios=None if values.get("ratios") is None else check_ratios("`ratios`", values["ratios"]),
        statistics=_statistics(values),
        history=_whole_number(values, "history", 1),
        support_rows=_whole_number(values, "support_rows", 0) or 0,
        facts={key: _text(values, key) for key in FACTS if values.get(key) is not None},
        **{key: _text(values, key) for key in ("sample_weight", "user", "item", "time") if values.get(key) is not None},
    )


def check_ratios(owner: str, ratios: Any) -> tuple[int, ...]:
    """Three whole numbers of at least 0, the first above it; `ValueError` where they are not."""
    whole = isinstance(ratios, list | tuple) and all(
        isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in ratios
    )
    if not whole or len(ratios) != 3 or ratios[0] == 0:
        raise ValueError(
            f"{owner} must be three whole numbers for train, validation and test, such as 8 1 1, that of train above 0 "
            f"(a split of 0 is left out); got {ratios!r}"
        )
    return tuple(ratios)


def _check_keys(values: dict, known: set[str], needed: tuple[str, ...] = (), owner: str = "") -> None:
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


def _text(values: dict, key: str, what: str = "text", owner: str = "") -> str:
    value = values[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{owner}`{key}` must be {what}; got {value!r}")
    return value.strip()


def _texts(values: dict, key: str, what: str, owner: str = "") -> tuple[str, ...]:
    """One text or a list of them."""
    value = values[key]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise ValueError(f"{owner}`{key}` must be {what}; got {value!r}")
    return tuple(items)


def _one_of(values: dict, key: str, choices: tuple, default: Any, owner: str = "") -> Any:
    value = values.get(key, default)
    if value is None and None not in choices:
        value = default
    if value is not default and not (value in choices and isinstance(value, type(choices[0]))):
        shown = ", ".join("true" if one is True else "false" if one is False else str(one) for one in choices)
        raise ValueError(f"{owner}`{key}` must be one of {shown}; got {value!r}")
    return value


def _whole_number(values: dict, key: str, least: int | None = None) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise ValueError(
            f"`{key}` must be a whole number{f' of at least {least}' * (least is not None)}; got {value!r}"
        )
    return value


def _row_key(values: dict) -> tuple[str, ...] | None:
    return None if values.get("row_key") is None else _texts(values, "row_key", "a column or a list of columns")


def _statistics(values: dict) -> tuple[str, ...]:
    what = "columns whose click rates are added, such as user_id or user_id+genre, in a list"
    return () if values.get("statistics") is None else _texts(values, "statistics", what)


def _drops(value: Any) -> dict[str, str]:
    """Rules by their names; a rule without a name is its own."""
    if value is None or value == []:
        return {}
    rules = [value] if isinstance(value, str) else value
    if isinstance(rules, list):
        value = {str(rule): rule for rule in rules}
    if not isinstance(value, dict) or not all(isinstance(rule, str) and rule.strip() for rule in value.values()):
        raise ValueError(f"`drop` must be rules such as `rating == 3`, in a list or as `name: rule`; got {rules!r}")
    for rule in value.values():
        try:
            Rule(rule)
        except ValueError as error:
            raise ValueError(f"`drop`: {error}") from None
    return {" ".join(name.split()): rule for name, rule in value.items()}


def _fields(values: Any) -> list[FlipField]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"`fields` must be a list of fields, each with `name` and `type`; got {values!r}")
    result: list[FlipField] = []
    columns: dict[str, str] = {}
    known = {one.name for one in fields(FlipField)} - {"vocab_size", "history_of", "null_values"}
    for number, value in enumerate(values, 1):
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError(f"`fields`, number {number}: a field needs a `name`, which is text; got {value!r}")
        owner = f"`fields`, '{value['name']}': "
        _check_keys(value, known, owner=owner)
        if value.get("kind") == "history":
            raise ValueError(f"{owner}a column of kind 'history' is made by `history: 50`, beside `fields`")
        column = value.get("column", value["name"])
        if not isinstance(column, str):
            raise ValueError(f"{owner}`column` must be the name of a column in the files; got {column!r}")
        try:
            described = FlipField.from_dict(value)
        except TypeError as error:
            raise ValueError(f"{owner}a value is of a wrong kind ({error})") from None
        except ValueError as error:
            raise ValueError(f"`fields`: {error}") from None
        if described.name in columns:
            raise ValueError(
                f"`fields`: two fields are named '{described.name}'; give one another `name`, and say its `column`"
            )
        before = next((name for name, other in columns.items() if other == column), None)
        if before is not None:
            raise ValueError(
                f"`fields`: '{before}' and '{described.name}' both have the column '{column}'; leave one out"
            )
        result.append(described)
        columns[described.name] = column
    return read_fields(result)


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
        csv["column_names"] = _texts(
            values, "column_names", "the columns of files that have no header, in order", owner
        )
    if len(csv.get("delimiter", ",")) > 1:
        if csv.get("quote") is not None:
            raise ValueError(f"{owner}`quote` must be null with a `delimiter` of more than one character")
        csv["quote"] = None
    encoding = _text(values, "encoding", owner=owner) if values.get("encoding") is not None else "utf-8"
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
    types = _types(values.get("types"), owner)
    return TableFiles(
        name=name,
        files=_texts(values, "files", "a path or pattern such as clicks/*.csv, or a list of them", owner),
        format=_one_of(values, "format", FORMATS, None, owner),
        csv=csv,
        encoding=encoding,
        null_values=_null_values(values.get("null_values"), owner),
        types={column: "timestamp" if "%" in kind else kind for column, kind in types.items()},
        time_formats={column: kind for column, kind in types.items() if "%" in kind},
    )


def _null_values(value: Any, owner: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or any(isinstance(one, list | dict) for one in value):
        raise ValueError(f"{owner}`null_values` must be a list of texts, such as ['NULL', 'n/a']; got {value!r}")
    texts = [
        word for one in value for word in (("null", "Null", "NULL") if one is None else (str(one),))
    ]  # YAML's NULL is one
    return frozenset(" ".join(text.split()) for text in texts)


def _types(value: Any, owner: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        isinstance(kind, str) and (kind in TYPES or _is_time_format(kind)) for kind in value.values()
    ):
        raise ValueError(
            f"{owner}`types` must be `column: type` with types of {', '.join(TYPES)}, or the form of a time such as "
            f"'%d/%m/%Y %H:%M'; got {value!r}"
        )
    return value


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
        _check_keys(
            value, own | {"files", "format", "encoding", "null_values", "types", *CSV_KEYS}, ("files", "on"), owner
        )
        if "missing" in value and value["missing"] is None:  # as YAML reads `missing: null`
            value["missing"] = "null"
        first = value["files"] if isinstance(value["files"], str) else (value["files"] or [""])[0]
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(str(first)).name.split(".")[0]).strip("_") or f"side_{number}"
        name = _text(value, "name", owner=owner) if value.get("name") is not None else stem
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
                missing=_one_of(value, "missing", tuple(MISSING), "reject", owner),
                duplicates=_one_of(value, "duplicates", tuple(DUPLICATES), "reject", owner),
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
