# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a person writes of their table, in YAML; `docs/datasets.md` explains every key.

Each thing that is wrong is one error that names the file, the key and what would be right.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from flip_ctr.data.prepare.own_splits import OwnSplit, read_split, read_split_files
from flip_ctr.data.prepare.rules import Rule
from flip_ctr.data.prepare.splits import SPLIT_RULES
from flip_ctr.data.prepare.statistics import MODES
from flip_ctr.data.readers.described_tables import (
    CSV_KEYS,
    EVENTS,
    NAME,
    SideTable,
    TableFiles,
    check_keys,
    read_choice,
    read_files,
    read_joins,
    read_text,
    read_texts,
)
from flip_ctr.modeling_flip.fields_flip import LEARNED, FlipField, read_fields

MOST = 2**31 - 1  # of a whole number
FACTS = ("title", "licence", "licence_link", "citation")


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
        split, split_seed, ratios, split_fold: see `splits`; `None` where the schema does not say.
        own_split: a split that the data brings, without the names of its files.
        split_files: where the files bring the split, the paths or patterns of each.
        statistics: what rows share, as `user_id` or `user_id+genre`, whose click rates are added.
        history: most entries of a row's history; no histories are added when `None`.
        support_rows: see `histories`.
        past, label_delay: which earlier rows statistics and histories hold, see `statistics.read_past`.
        item_title: field whose texts say which items are one, see `same_items`.
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
    split_fold: int | None = None
    own_split: OwnSplit | None = None
    split_files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    statistics: tuple[str, ...] = ()
    history: int | None = None
    support_rows: int = 0
    past: str = MODES[0]
    label_delay: int = 0
    item_title: str | None = None
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
    check_keys(values, own | files | set(FACTS), needed=("name", "files", "label", "fields"))
    name = read_text(values, "name")
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
        split_files = {split: read_texts(files_of, split, what, "`files`, ") for split in files_of}
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
        label=read_text(values, "label", "a column of 0, 1, true or false, or a rule such as `rating >= 4`"),
        fields=_fields(values["fields"]),
        joins=read_joins(values.get("joins")),
        drop=_drops(values.get("drop")),
        row_key=_row_key(values),
        unique=read_choice(values, "unique", (True, False), False),
        split=read_choice(values, "split", tuple(SPLIT_RULES), None),
        split_seed=_whole_number(values, "split_seed"),
        ratios=None if values.get("ratios") is None else check_ratios("`ratios`", values["ratios"]),
        split_fold=_whole_number(values, "split_fold", 0),
        statistics=_statistics(values),
        history=_whole_number(values, "history", 1),
        support_rows=_whole_number(values, "support_rows", 0) or 0,
        past=read_choice(values, "past", MODES, MODES[0]),
        label_delay=_whole_number(values, "label_delay", 0) or 0,
        facts={key: read_text(values, key) for key in FACTS if values.get(key) is not None},
        **{
            key: read_text(values, key)
            for key in ("sample_weight", "user", "item", "time", "item_title")
            if values.get(key) is not None
        },
    )


def check_ratios(owner: str, ratios: Any) -> tuple[int, ...]:
    """Three whole numbers of at least 0, the first above it; `ValueError` where they are not."""
    whole = isinstance(ratios, list | tuple) and all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < 2**31 for one in ratios
    )
    if not whole or len(ratios) != 3 or ratios[0] == 0:
        raise ValueError(
            f"{owner} must be three whole numbers for train, validation and test, such as 8 1 1, that of train above 0 "
            f"(a split of 0 is left out); got {ratios!r}"
        )
    return tuple(ratios)


def _whole_number(values: dict, key: str, least: int | None = None) -> int | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        raise ValueError(
            f"`{key}` must be a whole number{f' of at least {least}' * (least is not None)}; got {value!r}"
        )
    if not -MOST <= value <= MOST:
        raise ValueError(f"`{key}` must be at most {MOST:,}; got {value!r}")
    return value


def _row_key(values: dict) -> tuple[str, ...] | None:
    return None if values.get("row_key") is None else read_texts(values, "row_key", "a column or a list of columns")


def _statistics(values: dict) -> tuple[str, ...]:
    what = "columns whose click rates are added, such as user_id or user_id+genre, in a list"
    return () if values.get("statistics") is None else read_texts(values, "statistics", what)


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
    known = {one.name for one in fields(FlipField)} - {*LEARNED, "history_of", "null_values"}
    for number, value in enumerate(values, 1):
        value = {"name": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise ValueError(f"`fields`, number {number}: a field needs a `name`, which is text; got {value!r}")
        owner = f"`fields`, '{value['name']}': "
        check_keys(value, known, owner=owner)
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
