# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""From the description of a table to what `prepare` runs: which column comes from which file, its type, and the plan.

A name outside `fields` is that of a field where one has it, and else of a column in the files.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import ibis
import pyarrow as pa

from flip_ctr.data.datasets.raw_dataset import Source
from flip_ctr.data.datasets.table_schema import TableSchema
from flip_ctr.data.prepare.histories import read_history
from flip_ctr.data.prepare.labelled_rows import LABEL, Join, Plan
from flip_ctr.data.prepare.markdown import plain
from flip_ctr.data.prepare.own_splits import OwnSplit
from flip_ctr.data.prepare.rules import Rule
from flip_ctr.data.prepare.same_items import ITEM, check_item_title
from flip_ctr.data.prepare.splits import NEEDS, RATIOS, SEED, check_split
from flip_ctr.data.prepare.statistics import INNER, read_past, read_statistics, statistic_fields
from flip_ctr.data.readers.described_tables import DUPLICATES, EVENTS, MISSING, SideTable, TableFiles
from flip_ctr.data.readers.raw_files import RawTable, listed
from flip_ctr.data.readers.table_files import ParquetFormat, TableFormat, find_files, read_table
from flip_ctr.data.readers.table_values import ColumnType, TableColumn

INNER_NAMES = {"_row", "_file", "_line", "_reason", "_text", "_drop", "_kept", "_split", "_rank", "_digest"}
INNER_NAMES |= {"_usable", "_absent", "_found", ITEM}
KEY_TYPES = ("string", "int", "bool")  # whose text is the same on every engine


@dataclass
class _Table:
    """A described table with its files, as they were found.

    Attributes:
        columns: names of the columns in the files, as often as they come.
        own_types: those of them whose type the files say.
        taken: the typed columns to read, by name.
    """

    files: TableFiles
    paths: dict[str, Path]
    reader: TableFormat
    columns: list[str]
    own_types: dict[str, str | None]
    taken: dict[str, TableColumn]

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def first(self) -> Path:
        return next(iter(self.paths.values()))

    @property
    def where(self) -> str:
        return (
            next(iter(self.paths)) if len(self.paths) == 1 else f"{self.name} ({', '.join(list(self.paths)[:3])}, ...)"
        )

    def raw(self) -> RawTable:
        columns = list(self.taken.values())
        return RawTable(
            name=self.name,
            columns={column.name: column.arrow_type for column in columns},
            files=self.paths,
            read=partial(read_table, self.paths, self.reader, columns),
            texts=self.reader.texts,
        )


def table_source(
    schema: TableSchema,
    data_dir: str | Path | None = None,
    data_files: Sequence[str] | None = None,
    split: str | None = None,
    seed: int | None = None,
    ratios: Sequence[int] | None = None,
    fold: int | None = None,
) -> Source:
    """What `prepare` runs for a described table. Of the files only headers and types are read.

    Args:
        data_dir: folder of the files; that of the YAML file when `None`.
        data_files: paths or patterns of the events, instead of the schema's; relative to `data_dir`, else to the
            current folder.
        split, seed, ratios, fold: instead of the schema's.

    Raises:
        FileNotFoundError: no file fits a pattern.
        ValueError: files of a table differ, a column is nowhere or in two tables, or a type does not fit.
    """
    if split is not None:  # which wins over the schema's
        schema = replace(schema, own_split=None, split_files={})
    tables = _open_tables(schema, data_dir, data_files)
    if schema.split_files:
        files = _split_of_files(schema, tables[0], data_dir, data_files)
        schema = replace(schema, own_split=OwnSplit(files=files, asked=tuple(schema.split_files)))
    label = f"`{schema.label}`" if any(schema.label in table.columns for table in tables) else schema.label
    schema = replace(schema, label=_plain(label))
    places = _place_columns(schema, tables)
    # which travel with a checkpoint, so that rows are read when they are scored as they are here
    nulls = {name: tuple(sorted(table.files.null_values)) for name, (table, _) in places.items()}
    schema = replace(schema, fields=[replace(one, null_values=nulls[one.name]) for one in schema.fields])
    types = _column_types(schema, tables, places)
    for name, (table, source) in places.items():
        described = next((one for one in schema.fields if one.name == name), None)
        separator = described.separator if described is not None and described.is_multi_valued else None
        hint, said = "", table.files.types.get(source)
        if described is not None:
            said = ColumnType(types[name], decimal=described.decimal)
        elif said is None:
            said, hint = ColumnType(types[name]), f" (or say another type than {types[name]} in `types`)"
            if types[name] == "bool" and name in Rule(schema.label).columns:
                quoted = _plain(f"`{source}`")
                hint = f" (or write a rule, such as {quoted} >= 4 or {quoted} == 'yes')"
        table.taken[name] = table.files.column(name, source, said, separator, hint)
    _check_rules(schema, tables)
    joins = [_join(schema, tables, join, types) for join in schema.joins]
    _check_names(schema, tables)
    plan = _plan(schema, joins, types, split, seed, ratios, fold)
    dropped = (
        f"; dropped are rows with {', '.join(f'`{rule}`' for rule in schema.drop.values())}" if schema.drop else ""
    )
    is_column = Rule(schema.label).columns == [schema.label.strip("`")]
    return Source(
        dataset=schema.name,
        tables=[table.raw() for table in [*tables[1:], tables[0]]],
        plan=plan,
        fields=schema.fields
        + statistic_fields(plan.statistics, schema.fields)
        + ([plan.history.field] if plan.history else []),
        label_rule=f"column `{schema.label.strip('`')}` says what a click is{dropped}"
        if is_column
        else f"a row with `{schema.label}` is a click{dropped}",
        card_facts=schema.facts | {"licence": plain(schema.facts["licence"])}
        if "licence" in schema.facts
        else schema.facts,
        reading=_reading(schema, tables),
        way_out=f"`label` and `drop` in {schema.path.name}",
        protocol={
            "label": schema.label,
            "drop": schema.drop,
            "unique": schema.unique,
            "sample_weight": schema.sample_weight,
            "joins": [
                {"table": one.name, "on": one.on, "missing": one.missing, "duplicates": one.duplicates}
                for one in schema.joins
            ],
        },
    )


def _reading(schema: TableSchema, tables: list[_Table]) -> dict:
    """How raw rows are read when they are scored, by the keys of a schema: what it says of its files and joins, without
    paths, and of columns those that fields and joins need, and its `types` of those that label, drops and time need."""
    fields = {one.name for one in schema.fields}
    keys = {name for join in schema.joins for name in join.on}
    said = {
        schema.time,
        *(name for rule in _rules(schema).values() for name in rule.columns),
    } & schema.events.types.keys()
    described = []
    for table in tables:
        types = {one.source: one.said for one in table.taken.values() if one.name not in fields}
        side = next((join for join in schema.joins if join.name == table.name), None)
        needed = types if side is not None else {name: types[name] for name in types if name in keys | said}
        described.append(replace(table.files, types=needed).described())
        if side is not None:
            taken = {one.name: one.source for one in table.taken.values() if one.name in fields | keys}
            rules = {"missing": side.missing, "duplicates": side.duplicates}
            described[-1] |= {"name": side.name, "on": side.on, "columns": taken} | rules
    events, *sides = described
    return events | ({"joins": sides} if sides else {})


def _split_of_files(schema: TableSchema, events: _Table, data_dir, data_files) -> dict[str, str]:
    """The files of the events, each with the split of its rows."""
    if data_files is not None:
        raise schema.error(
            "`files` names files of each split, and --data_files those of none; say the --split of those"
        )
    base = Path(data_dir).expanduser() if data_dir is not None else schema.path.parent
    found: dict[str, str] = {}
    for split, patterns in schema.split_files.items():
        paths = set(find_files(patterns, base, f"{schema.path}: `files`, {split}", inside=True))
        for name in (name for name, path in events.paths.items() if path in paths):
            if name in found:
                raise schema.error(f"`files`: {name} is of {found[name]} and of {split}; a row is of one split")
            found[name] = split
    return found


def _plain(rule: str) -> str:
    """A column's name without backticks where it needs none."""
    name = rule.strip("`")
    return name if rule == f"`{name}`" and name.isidentifier() else rule


# --- files


def _open_tables(schema: TableSchema, data_dir, data_files) -> list[_Table]:
    """The events and the side tables, in this order."""
    base = Path(data_dir).expanduser() if data_dir is not None else schema.path.parent
    if not base.is_dir():
        raise FileNotFoundError(
            f"--data_dir {base}: no such folder (of a table the files are not read out of an archive)."
        )
    tables: list[_Table] = []
    for files in (schema.events, *schema.joins):
        patterns, folder, owner = files.files, base, f"{schema.path}: `files` of {files.name}"
        if files is schema.events and data_files is not None:
            patterns, folder, owner = data_files, base if data_dir is not None else Path(), "--data_files"
        paths = find_files(patterns, folder, owner, inside=patterns is not data_files)
        twice = next((path for path in paths for table in tables if path in table.paths.values()), None)
        if twice is not None:
            raise schema.error(f"`files` of {files.name}: {twice} belongs to another table already")
        named, taken = {}, {name for table in tables for name in table.paths}
        for path in paths:
            name = _name(path, folder)
            while name in taken or name in named:
                name = f"{files.name}/{name}"
            named[name] = path
        tables.append(_open(schema, files, named))
    return tables


def _name(path: Path, base: Path) -> str:
    """A file's name in the report: where it lies in the base folder, and nothing of where that lies."""
    relative = Path(os.path.relpath(path, base))
    return relative.as_posix() if ".." not in relative.parts else "/".join(path.absolute().parts[-2:])


def _open(schema: TableSchema, files: TableFiles, paths: dict[str, Path]) -> _Table:
    owner = "" if files.name == EVENTS else f"`joins`, {files.name}: "
    try:
        readers = {path: files.reader(path) for path in paths.values()}
    except ValueError as error:
        raise schema.error(f"{owner}{error}") from None
    first, reader = next(iter(readers.items()))
    other = next((path for path, one in readers.items() if one != reader), None)
    if other is not None:
        raise schema.error(f"{owner}{first} and {other} are of different formats; give each table one, or say `format`")
    columns, own = reader.columns(first), reader.own_types(first)
    if reader.sparse:
        columns += [column for column in files.types if column not in columns]  # which come late
    for path in list(paths.values())[1:]:
        _check_alike(reader, first, columns, own, path)
    return _Table(files, paths, reader, columns, own, {})


def _check_alike(reader: TableFormat, first: Path, columns: list[str], own: dict, path: Path) -> None:
    """`ValueError` where two files of a table have other columns, or Parquet files columns of other types."""
    if isinstance(reader, ParquetFormat):
        types = reader.own_types(path)
        different = [name for name in own if name in types and len({own[name], types[name]} - {"null"}) > 1]
        if different:
            name = different[0]
            raise ValueError(
                f"{path}: column '{name}' is {types[name]}, and {own[name]} in {first}; give all files of a table the "
                "same types."
            )
    if reader.sparse:
        return
    found = reader.columns(path)
    lacking, more = ([name for name in one if name not in other] for one, other in ((columns, found), (found, columns)))
    if lacking or more:
        said = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(more)} in addition"] * bool(more)
        raise ValueError(
            f"{path} {' and '.join(said)}, compared with {first}; all files of a table need the same columns, in any "
            "order."
        )


# --- columns


def _rules(schema: TableSchema) -> dict[str, Rule]:
    """What rules there are, by the key that has them."""
    try:
        label = Rule(schema.label)
    except ValueError as error:
        raise schema.error(f"`label`: {str(error).rstrip('.')}") from None
    return {"`label`": label} | {
        f"`drop`, {name}": Rule(rule) for name, rule in schema.drop.items()
    }  # these were read before


def _check_rules(schema: TableSchema, tables: list[_Table]) -> None:
    """`ValueError` where a rule does not fit the types of its columns, before anything is read."""
    rows = pa.schema(
        [(name, column.arrow_type) for table in tables for name, column in table.taken.items()]
    ).empty_table()
    for key, rule in _rules(schema).items():
        try:
            rule.of_rows(ibis.memtable(rows))
        except ValueError as error:
            others = [name for name in rule.columns if name not in schema.columns]
            hint = f" (`types` says the type of a column that is no field, such as '{others[0]}')" if others else ""
            raise schema.error(f"{key}: {str(error).rstrip('.')}{hint}") from None


def _needed(schema: TableSchema) -> dict[str, tuple[str, str]]:
    """Every name that a row must have: who names it, and the column of the files that it is."""
    needed = {one.name: (f"`fields`, '{one.name}'", schema.columns[one.name]) for one in schema.fields}
    named = [(f"`{key}`", getattr(schema, key)) for key in ("sample_weight", "user", "item", "time")]
    named += [("`row_key`", name) for name in schema.row_key or ()]
    named += [("`split`", schema.own_split.column)] if schema.own_split is not None else []
    named += [(key, name) for key, rule in _rules(schema).items() for name in rule.columns]
    named += [(f"`joins`, {join.name}, `on`", name) for join in schema.joins for name in join.on]
    for key, name in named:
        field = next((one for one, column in schema.columns.items() if column == name != one), None)
        if (
            field is not None
            and name not in needed
            and key in ("`sample_weight`", "`user`", "`item`", "`time`", "`row_key`")
        ):
            raise schema.error(f"{key}: '{name}' is the column of the field '{field}'; name the field")
        if name is not None:
            needed.setdefault(name, (key, name))
    return needed


def _place_columns(schema: TableSchema, tables: list[_Table]) -> dict[str, tuple[_Table, str]]:
    """For every name that a row must have its table and its column there."""
    events, *sides = tables
    offers: list[tuple[_Table, dict[str, str]]] = [(events, {column: column for column in events.columns})]
    for join, side in zip(schema.joins, sides):
        for key in ("on", "columns"):
            wanted = (getattr(join, key) or {}).values()
            unknown = [column for column in wanted if column not in side.columns]
            if unknown:
                have = listed(side.columns)
                raise schema.error(
                    f"`joins`, {join.name}, `{key}`: {side.where} has no column '{unknown[0]}'; it has {have}"
                )
            twice = [column for column in wanted if side.columns.count(column) > 1]
            if twice:
                raise schema.error(f"`joins`, {join.name}, `{key}`: {side.where} has more than one column '{twice[0]}'")
        given = join.columns or {column: column for column in side.columns if column not in join.on.values()}
        offers.append((side, given))
    places = {}
    for name, (key, source) in _needed(schema).items():
        found = [(table, given[source]) for table, given in offers if source in given]
        if not found:
            have = "; ".join(f"{table.where} has {listed(given)}" for table, given in offers)
            raise schema.error(f"{key}: no file has a column '{source}'. {have}")
        if len(found) > 1:
            raise schema.error(
                f"{key}: '{source}' is a column of {' and of '.join(table.where for table, _ in found)}; say in a "
                f"join's `columns` what to take, and how to call it: columns: {{{found[-1][0].name}_{source}: "
                f"{source}}}"
            )
        table, column = found[0]
        if table.columns.count(column) > 1:
            raise schema.error(f"{key}: {table.where} has more than one column '{column}'")
        places[name] = found[0]
    return places


def _column_types(schema: TableSchema, tables: list[_Table], places: dict[str, tuple[_Table, str]]) -> dict[str, str]:
    """The type of every column of a row: that of the field; what `types` says; the file's own; what it is needed as."""
    fields = {one.name: ColumnType(one.type, decimal=one.decimal) for one in schema.fields}
    rules = _rules(schema)
    compared: dict[str, dict[str, str]] = {}  # column -> what a rule takes it for -> the key of that rule
    for key, rule in rules.items():
        for name, kinds in rule.kinds().items():
            for kind in kinds:
                compared.setdefault(name, {}).setdefault(kind, key)
    for table in tables:
        unknown = [column for column in table.files.types if column not in table.columns]
        if unknown:
            raise schema.error(f"`types`: {table.where} has no column '{unknown[0]}'; it has {listed(table.columns)}")
    types: dict[str, str] = {}
    for name, (table, source) in places.items():
        said, own = table.files.types.get(source), table.own_types.get(source)
        if name in fields:
            if said is not None and said != fields[name]:
                raise schema.error(
                    f"`types`: '{source}' is a field of type {fields[name].type}; say its type there only"
                )
            types[name] = fields[name].type
        elif said is not None:
            types[name] = said.type
        elif name == schema.sample_weight:
            types[name] = "float"
        elif rules["`label`"].columns == [name] and schema.label.strip("`") == name:
            types[name] = "bool"
        elif own not in (None, "null"):
            types[name] = own
        else:
            types[name] = _needed_as(schema, name, compared.get(name, {}))
        if isinstance(table.reader, ParquetFormat):
            _check_own_type(schema, table, name, source, types[name], own)
    return types


def _needed_as(schema: TableSchema, name: str, compared: dict[str, str]) -> str:
    """The type of a column of text of which nothing is said, by what it is compared with; of a time a whole number."""
    if len(compared) > 1:
        shown = " and ".join(f"{kind} in {key}" for kind, key in compared.items())
        raise schema.error(f"'{name}' is taken for {shown}; say its type, as in `types: {{{name}: float}}`")
    kind = next(iter(compared), None)
    if name == schema.time:
        return "timestamp" if kind == "text" else "int"
    return {"number": "float", "bool": "bool", "text": "string", None: "string"}[kind]


def _check_own_type(schema: TableSchema, table: _Table, name: str, source: str, wanted: str, own: str | None) -> None:
    """`ValueError` where a Parquet column can have no value of the type that is wanted."""
    said = table.files.types.get(source)
    fits = {
        "string": ("string",),
        "int": ("int", "float", "string"),
        "float": ("int", "float", "string"),
        "bool": ("bool", "int", "string"),
        "timestamp": ("timestamp", "string", "int") if said and said.time_format else ("timestamp", "string"),
    }
    if own == "null":
        return
    if wanted == "string" and own == "int" and table.reader.schema(table.first).field(source).type == pa.uint64():
        return  # ids, which text holds where no other type does
    if own is not None and own not in fits[wanted]:
        is_label = wanted == "bool" and name in Rule(schema.label).columns
        way_out = f"write a rule such as `{source} == 1`" if is_label else f"say type {own}, or write the file anew"
        raise schema.error(f"'{source}' is {own} in {table.where}, and cannot be read as {wanted}: {way_out}")
    if own is None:
        raise schema.error(
            f"'{source}' in {table.where} is of a Parquet type that is not read: write it as one of string, int, "
            "float, bool"
        )


def _join(schema: TableSchema, tables: list[_Table], join: SideTable, types: dict[str, str]) -> Join:
    """The join; its key columns are read with the types that the rows have."""
    side = next(table for table in tables if table.name == join.name)
    on = {}
    for name, source in join.on.items():
        key = source
        while key in side.taken or any(other.lower() == key.lower() for other in types if other != name):
            key += "_key"  # engines do not tell names apart by upper and lower case
        if key != name and key.lower() == name.lower():
            key += "_key"
        side.taken[key] = side.files.column(key, source, ColumnType(types[name]))
        if isinstance(side.reader, ParquetFormat):
            _check_own_type(schema, side, name, source, types[name], side.own_types.get(source))
        on[name] = key
    return Join(
        join.name, on, MISSING[join.missing], DUPLICATES[join.duplicates], f"{', '.join(on)} is not in {side.where}"
    )


def _check_names(schema: TableSchema, tables: list[_Table]) -> None:
    names = list(dict.fromkeys(name for table in tables for name in table.taken))
    for name in names:
        other = next((one for one in names if one != name and one.lower() == name.lower()), None)
        if other is not None:
            raise schema.error(
                f"'{name}' and '{other}' differ in upper and lower case only, which engines do not tell apart; give a "
                "field another `name`"
            )
        if name in INNER_NAMES or name.startswith(("_key_", "_found_", INNER)):
            raise schema.error(
                f"'{name}' is a name that is needed inside; give the field another `name`, and say `column: {name}`"
            )
    for one in schema.fields:
        if one.name.lower() == LABEL:
            raise schema.error(
                f"`fields`, '{one.name}': '{LABEL}' is the column of the clicks; give the field another `name`, and "
                "say its `column`"
            )
        if Rule(schema.label).columns in ([one.name], [schema.columns[one.name]]):
            raise schema.error(
                f"`fields`, '{one.name}': the label is made of it alone, so that a model would read the answer; leave "
                "it out"
            )


# --- the plan


def _plan(schema: TableSchema, joins: list[Join], types: dict[str, str], split, seed, ratios, fold) -> Plan:
    user, item, time = schema.user, schema.item, schema.time
    keys = [one.name for one in schema.fields if one.key]
    row_key = schema.row_key or ((user, item) if user and item else tuple(keys))
    if not row_key:
        raise schema.error(
            "`row_key` must name the column(s) that identify a row, as there is neither `user` and `item` nor a field "
            "with `key: true`"
        )
    split = split or schema.split or "random"
    own = schema.own_split
    if own is None:
        check_split(split, owner=schema.path.name, user=user, item=item, time=time)
    else:
        split = own.name
    extra = [name for name in (user, item, time, schema.sample_weight) if name is not None]
    columns = tuple(dict.fromkeys([*(one.name for one in schema.fields), *extra]))
    history = read_history(
        schema.history,
        schema.support_rows,
        schema.fields,
        split=split,
        user=user,
        item=item,
        columns=columns,
        names=(f"{schema.path}: `history`", f"{schema.path}: `support_rows`"),
    )
    hashed = {*row_key, *(getattr(schema, need) for need in NEEDS.get(split, ()) if need != "time")}
    hashed |= {user, item} if history else set()
    hashed |= {own.column} if own is not None and own.column is not None else set()
    lists = {one.name for one in schema.fields if one.is_multi_valued}
    for name in hashed:
        if types[name] not in KEY_TYPES or name in lists:
            kind = "a list" if name in lists else f"of type {types[name]}"
            raise schema.error(
                f"'{name}' is {kind} and cannot identify a row, user, item or split; `row_key` and keys must be string "
                "or int"
            )
    if time is not None and (types[time] in ("string", "bool") or time in lists):
        raise schema.error(
            f"`time`: '{time}' is {types[time]}; it must be a number or a time: `types: {{{time}: timestamp}}`"
        )
    statistics = read_statistics(schema.statistics, schema.fields, f"{schema.path}: `statistics`")
    check_item_title(schema.item_title, schema.fields, split=split, item=item, name=f"{schema.path}: `item_title`")
    plan = Plan(
        events=EVENTS,
        joins=tuple(joins),
        label=schema.label,
        drops=schema.drop,
        columns=columns,
        row_key=tuple(row_key),
        unique=schema.unique,
        user=user,
        item=item,
        time=time,
        weight=schema.sample_weight,
        required=tuple(one.name for one in schema.fields if not one.nullable),
        split=split,
        seed=seed if seed is not None else SEED if schema.split_seed is None else schema.split_seed,
        ratios=tuple(ratios or schema.ratios or RATIOS),
        fold=fold if fold is not None else schema.split_fold or 0,
        own_split=own,
        statistics=statistics,
        history=history,
        item_title=schema.item_title,
    )
    counts, names = bool(statistics or history), (f"{schema.path}: `past`", f"{schema.path}: `label_delay`")
    return replace(plan, past=read_past(schema.past, schema.label_delay, plan.order, counts, names))
