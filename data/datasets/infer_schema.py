# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A first description of a table, from a sample of its rows: YAML with comments, for a person to correct."""

import codecs
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flip_ctr.data.datasets.table import INNER_NAMES
from flip_ctr.data.datasets.table_schema import ENDINGS, EVENTS
from flip_ctr.data.readers.csv_files import CsvFormat
from flip_ctr.data.readers.raw_files import open_raw
from flip_ctr.data.readers.table_files import JsonFormat, ParquetFormat, TableFormat, find_files, sample
from flip_ctr.data.readers.table_values import read_time

SAMPLE_ROWS = 20_000
NULL_WORDS = ("NULL", "null", "\\N", "NA", "N/A", "n/a", "NaN", "nan", "None")
SEPARATORS = ("|", ";", ",", "^")
USER_WORDS = {
    "user",
    "uid",
    "member",
    "customer",
    "visitor",
    "account",
    "client",
    "reader",
    "gender",
    "sex",
    "age",
    "occupation",
    "zip",
    "location",
    "country",
    "city",
    "income",
}
ITEM_WORDS = {
    "item",
    "iid",
    "movie",
    "film",
    "book",
    "isbn",
    "product",
    "sku",
    "asin",
    "ad",
    "adgroup",
    "campaign",
    "article",
    "news",
    "song",
    "track",
    "video",
    "title",
    "genre",
    "genres",
    "author",
    "brand",
    "category",
    "price",
    "publisher",
    "year",
    "name",
    "tags",
    "description",
}
OBJECTS = {
    "user",
    "item",
    "movie",
    "book",
    "product",
    "ad",
    "article",
    "news",
    "video",
    "song",
}  # a column of this very name is an id
ID_WORDS = {"id", "uid", "iid", "uuid", "isbn", "sku", "asin", "key", "hash"}
LABEL_WORDS = {
    "label",
    "click",
    "clicked",
    "clk",
    "target",
    "y",
    "converted",
    "conversion",
    "purchased",
    "bought",
    "liked",
    "like",
}
RATING_WORDS = {"rating", "ratings", "stars", "star", "score"}
TIME_WORDS = {"time", "timestamp", "ts", "date", "datetime", "at", "when", "day"}
WEIGHT_WORDS = {"weight", "sampleweight"}
NESTED = "object"  # what no field can hold


@dataclass
class Profile:
    """What a sample says of a column.

    Attributes:
        type: of its single values: one of `TYPES`, or `NESTED`.
        separator: of text that holds several values; an empty text where the file has lists; `None` for single values.
        rows, nulls, distinct: numbers of rows, of nulls among them, and of distinct values.
        length: mean number of characters of a text.
        low, high: least and largest number.
        null_words: texts that seem to mean null.
        examples: some values.
    """

    name: str
    type: str
    separator: str | None
    rows: int
    nulls: int
    distinct: int
    length: float = 0.0
    low: float = 0.0
    high: float = 0.0
    null_words: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    @property
    def words(self) -> set[str]:
        """The words of the name, in lower case: `userId` has user and id."""
        return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", self.name)} | {
            self.name.lower()
        }

    @property
    def is_id(self) -> bool:
        return (
            bool(self.words & ID_WORDS)
            or self.name.lower() in OBJECTS
            or self.name.lower().endswith("id")
            and self.distinct > 20
        )

    @property
    def is_flag(self) -> bool:
        return self.type == "bool" and self.separator is None

    @property
    def entity(self) -> str:
        return "user" if self.words & USER_WORDS else "item" if self.words & ITEM_WORDS else "context"


@dataclass
class Group:
    """Files with the same columns, and how they are read."""

    name: str
    paths: list[Path]
    reader: TableFormat
    options: dict[str, Any]
    columns: dict[str, Profile] = field(default_factory=dict)
    on: dict[str, str] | None = None  # of a side table: columns of the rows to its own
    unique: bool = True


def infer_schema(files: Sequence[str], target: str | Path, rows: int = SAMPLE_ROWS) -> str:
    """Writes a first schema, and returns what a person should look at.

    Args:
        files: paths or patterns; those with the columns of the first are the events, the others side tables.
        target: the YAML file to write.
        rows: so many rows of each table are looked at, most of them its first.

    Raises:
        FileExistsError: the target is there already.
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read.
    """
    target = Path(target).expanduser()
    if target.exists():
        raise FileExistsError(
            f"--schema {target} is there already, and is not overwritten; name another file, or move it away."
        )
    groups = _groups(find_files(files, Path(), "--infer_schema"), rows)
    guess = _Guess(groups)
    lines = guess.lines(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    notes = "\n".join(f"* {note}" for note in guess.notes)
    command = f"flip-ctr prepare --dataset table --schema {target} --output_dir D"
    return f"{target} written, from up to {rows:,} rows of each table. Look at:\n{notes}\nThen: {command}"


# --- the sample


def _groups(paths: list[Path], rows: int) -> list[Group]:
    groups: list[Group] = []
    for path in paths:
        reader, options = _reader(path)
        columns = reader.columns(path)
        same = next((one for one in groups if one.reader == reader and set(one.columns) == set(columns)), None)
        if same is not None:
            same.paths.append(path)
            continue
        values = sample(reader, path, list(dict.fromkeys(columns)), rows) if columns else {}
        if not any(values.values()):
            raise ValueError(f"{path} has no rows to look at.")
        profiles = {name: profile(name, column) for name, column in values.items()}
        taken = {one.name for one in groups}
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", path.name.split(".")[0]).strip("._-") or "table"
        name = stem if groups else EVENTS
        groups.append(Group(name if name not in taken else f"{stem}_{len(groups)}", [path], reader, options, profiles))
    return groups


def _reader(path: Path) -> tuple[TableFormat, dict[str, Any]]:
    """How a file is to be read, and what a schema must say of that."""
    options: dict[str, Any] = {}
    with open_raw(path) as file:
        start = file.read(65_536)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    kind = ENDINGS.get(suffix)
    if kind is None:
        kind = "parquet" if start.startswith(b"PAR1") else "jsonl" if start.lstrip().startswith(b"{") else "csv"
        options["format"] = kind
    if kind == "parquet":
        return ParquetFormat(), options
    try:
        if not start.startswith(codecs.BOM_UTF8):  # which says utf-8, whatever single bytes say
            start[: start.rfind(b"\n") + 1 or None].decode()
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = options["encoding"] = "latin-1"
    if kind == "jsonl":
        return JsonFormat(encoding), options
    header = start.split(b"\n", 1)[0].decode(encoding, "replace")
    delimiter = "\t" if kind == "tsv" else ","
    counts = {one: header.count(one) for one in (",", ";", "\t", "|")}
    if not counts.get(delimiter):
        best = max(counts, key=counts.get)
        if counts[best] and best != delimiter:
            delimiter = options["delimiter"] = best
    return CsvFormat(delimiter, encoding=encoding), options


def profile(name: str, values: Sequence) -> Profile:
    """What values of a column, as a file has them, say of it."""
    present = [
        value
        for value in values
        if value is not None and value == value and not (isinstance(value, str) and not value.strip())
    ]
    if any(isinstance(value, dict) for value in present):
        return Profile(name, NESTED, None, len(values), len(values) - len(present), len(present))
    if any(isinstance(value, list | tuple) for value in present):
        single = [
            one
            for value in present
            for one in (value if isinstance(value, list | tuple) else [value])
            if one is not None
        ]
        inner = profile(name, single)
        return Profile(
            name,
            inner.type,
            "",
            len(values),
            len(values) - len(present),
            inner.distinct,
            examples=tuple(map(str, present[:2])),
        )
    counts = Counter(" ".join(value.split()) if isinstance(value, str) else value for value in present)
    words = [word for word in NULL_WORDS if word in counts]
    others = [value for value in counts if value not in words]
    kind = _type(others) if others else "string"
    if (
        kind == "string"
        and _type(list(counts)) == "string"
        and len(words)
        and sum(counts[word] for word in words) < 0.001 * len(present)
    ):
        words = []  # a word like others
    nulls = len(values) - len(present) + sum(counts[word] for word in words)
    result = Profile(name, kind, None, len(values), nulls, len(others), null_words=tuple(words))
    texts = [str(value) for value in others]
    result.examples = tuple(texts[:3])
    result.length = sum(map(len, texts)) / max(1, len(texts))
    if kind in ("int", "float") and others:
        numbers = [float(value) for value in others if not isinstance(value, int) or abs(value) < 2**63] or [0.0]
        result.low, result.high = min(numbers), max(numbers)
    if kind == "string":
        result.separator = _separator(texts)
    return result


def _type(values: list) -> str:
    kinds = set(map(type, values))
    if (
        kinds <= {bool}
        or kinds <= {str, int}
        and {str(value).lower() for value in values} in ({"0", "1"}, {"true", "false"})
    ):
        return "bool"
    if kinds == {int}:
        return "int"
    if kinds <= {int, float}:
        return "float"
    if kinds != {str}:
        return "timestamp" if all(hasattr(value, "isoformat") for value in values) else "string"
    if all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", value) for value in values):
        return "int"
    if all(
        re.fullmatch(r"-?\d{1,15}(\.\d*)?([eE][-+]?\d+)?", value) and not re.match(r"-?0\d", value) for value in values
    ):
        return "float"
    try:
        for value in values[:1_000]:
            read_time(value)
    except ValueError:
        return "string"
    return "timestamp"


def _separator(texts: list[str]) -> str | None:
    """What separates several values in one text, where these come again in other combinations."""
    for separator in SEPARATORS if len(texts) > 2 else ():
        parts = [text.split(separator) for text in texts]
        single = {" ".join(part.split()) for several in parts for part in several}
        held = sum(len(several) > 1 for several in parts)
        if held >= 0.2 * len(texts) and len(single) <= 0.7 * len(texts) and sum(map(len, single)) <= 30 * len(single):
            return separator
    return None


# --- guesses


class _Guess:
    """What the columns of the groups are, as lines of YAML.

    Attributes:
        notes: what a person should look at.
    """

    def __init__(self, groups: list[Group]):
        self.groups, self.notes = groups, []
        for group in groups:
            if "encoding" in group.options:
                self.notes.append(
                    f"encoding: {group.paths[0].name} is not all utf-8 and is taken for latin-1; if only some lines "
                    "are damaged, say utf-8, and these are rejected"
                )
        for number, group in enumerate(groups[1:], 1):
            self._guess_join(group, groups[:number])
        events = list(groups[0].columns.values())
        self.label, label_column = self._guess_label(events)
        self.time = next((one for one in events if self._is_time(one) and one.name != label_column), None)
        self.weight = next(
            (
                one
                for one in events
                if one.name.replace("_", "").lower() in WEIGHT_WORDS and one.type in ("float", "int")
            ),
            None,
        )
        self.left_out = {label_column, *(one.name for one in (self.time, self.weight) if one)}
        self.keys = {}
        for entity in ("user", "item"):
            ids = [
                one
                for one in events
                if one.is_id and one.entity == entity and one.separator is None and one.type in ("string", "int")
            ]
            if ids and ids[0].name not in self.left_out:
                self.keys[entity] = ids[0].name

    def _guess_join(self, group: Group, before: list[Group]) -> None:
        known = {name for one in before if one is before[0] or one.on for name in one.columns}
        shared = [
            one
            for one in group.columns.values()
            if one.name in known and one.separator is None and one.type in ("string", "int")
        ]
        unique = [one for one in shared if one.nulls == 0 and one.distinct == one.rows]
        chosen = unique[:1] or [one for one in shared if one.is_id][:1]
        if chosen:
            group.on, group.unique = {chosen[0].name: chosen[0].name}, bool(unique)
            return
        own = next((one for one in group.columns.values() if one.name.lower() == "id"), None)
        for stem in (group.name, group.name.removesuffix("s")):
            names = (stem.lower().replace("_", ""), f"{stem.lower().replace('_', '')}id")
            partner = next((name for name in known if name.lower().replace("_", "") in names), None)
            if own is not None and partner is not None:
                group.on, group.unique = {partner: own.name}, own.distinct == own.rows
                return

    def _guess_label(self, events: list[Profile]) -> tuple[str | None, str | None]:
        """The label as the schema says it, and its column."""
        for one in events:
            if one.words & LABEL_WORDS and one.is_flag:
                self.notes.append(f"label: {one.name} holds 0 and 1, and has the name of one")
                return _word(one.name), one.name
        for one in events:
            if one.words & RATING_WORDS and one.type in ("int", "float") and one.separator is None:
                threshold = math.ceil(0.8 * one.high)
                self.notes.append(
                    f"label: {one.name} goes from {one.low:g} to {one.high:g}; which ratings are clicks is yours to say"
                )
                return f"{_column(one.name)} >= {threshold}", one.name
        flags = [one.name for one in events if one.is_flag]
        self.notes.append(
            f"label: name it; no column looks like one{', of 0 and 1 are ' + ', '.join(flags) if flags else ''}"
        )
        return None, None

    def _is_time(self, one: Profile) -> bool:
        epoch = one.type in ("int", "float") and one.separator is None and one.low > 5e8
        return one.separator is None and (one.type == "timestamp" or (bool(one.words & TIME_WORDS) and epoch))

    def lines(self, folder: Path) -> list[str]:
        """The YAML."""
        events = self.groups[0]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", events.paths[0].name.split(".")[0]).strip("._-") or "my-table"
        lines = [
            "# A guess from a sample of the rows: correct it. docs/datasets.md of flip-ctr explains every key.",
            f"name: {_word(name)}",
            *self._file_lines(events, folder, ""),
            "",
            "# a column of 0, 1, true or false, or a rule such as: rating >= 4",
            f"label: {_word(self.label)}" if self.label else "label:",
            "# drop: [rating == 3]     # rows that are no part of the dataset, by rules",
        ]
        lines += [f"sample_weight: {_word(self.weight.name)}"] if self.weight else []
        lines += [f"{entity}: {_word(self._field_name(column))}" for entity, column in self.keys.items()]
        lines += [f"time: {_word(self.time.name)}     # rows can be split by it: split: time"] if self.time else []
        if not self.keys.keys() >= {"user", "item"}:
            lines += self._row_key_lines()
        types = [
            one
            for one in events.columns.values()
            if one.type == "timestamp" and one is self.time and not isinstance(events.reader, ParquetFormat)
        ]
        lines += ["types:", *(f"  {_word(one.name)}: timestamp" for one in types)] if types else []
        joins = [line for group in self.groups[1:] if group.on for line in self._join_lines(group, folder)]
        lines += ["", "joins:", *joins] if joins else []
        for group in self.groups[1:]:
            if not group.on:
                self.notes.append(
                    f"joins: {group.paths[0].name} shares no key with the other files; add a join by hand, or leave it "
                    "out"
                )
        return [*lines, "", "fields:", *self._field_lines()]

    def _row_key_lines(self) -> list[str]:
        plain = [
            one
            for one in self._events_fields()
            if one.type in ("string", "int") and one.separator is None and not one.nulls
        ]
        ids = [one for one in plain if one.is_id] or plain
        self.notes.append("row_key: no columns of a user and an item were found; name what identifies a row")
        return [
            f"row_key: [{', '.join(_word(self._field_name(one.name)) for one in ids[:4])}]     # what identifies a "
            "row, for the split"
        ]

    def _events_fields(self) -> list[Profile]:
        return [
            one
            for one in self.groups[0].columns.values()
            if one.name not in self.left_out and self._why_not(one) is None
        ]

    def _file_lines(self, group: Group, folder: Path, indent: str) -> list[str]:
        files = [Path(os.path.relpath(path, folder)).as_posix() for path in group.paths]
        lines = [f"{indent}files: {_word(files[0]) if len(files) == 1 else '[' + ', '.join(map(_word, files)) + ']'}"]
        lines += [f"{indent}{key}: {_word(value)}" for key, value in group.options.items()]
        words = sorted({word for one in group.columns.values() for word in one.null_words})
        if words:
            lines.append(f"{indent}null_values: [{', '.join(json.dumps(word) for word in words)}]")
            self.notes.append(f"null_values: {', '.join(words)} in {group.paths[0].name} seem to mean null")
        return lines

    def _join_lines(self, group: Group, folder: Path) -> list[str]:
        on = next(iter(group.on.items()))
        self.notes.append(f"joins: {group.paths[0].name} is joined by {on[0]}{'' if on[0] == on[1] else f' = {on[1]}'}")
        first, *others = self._file_lines(group, folder, "    ")
        key = self._row_name(on[0])
        on_text = _word(on[0]) if on[0] == on[1] == key else f"{{{_word(key)}: {_word(on[1])}}}"
        lines = [
            f"  - name: {_word(group.name)}",
            first,
            *others,
            f"    on: {on_text}",
            "    missing: reject     # a row without partner; or: drop, null",
        ]
        if not group.unique:
            lines.append("    duplicates: first     # lines with a key that came before; or: reject")
            self.notes.append(f"joins: {on[1]} comes more than once in {group.paths[0].name}: the first line counts")
        columns = [one.name for one in group.columns.values() if one.name != on[1]]
        taken = ", ".join(f"{_word(self._side_name(group, name))}: {_word(name)}" for name in columns)
        return [*lines, *([f"    columns: {{{taken}}}"] if columns else [])]

    def _side_name(self, group: Group, name: str) -> str:
        """What a column of a side table is called in the rows: another name where one has it already."""
        others = {other.lower() for one in self.groups[: self.groups.index(group)] for other in one.columns}
        return f"{group.name}_{name}" if name.lower() in others else name

    def _row_name(self, column: str) -> str:
        """What a column of the events, or of an earlier side table, is called in the rows."""
        if column in self.groups[0].columns:
            return self._field_name(column) if column not in self.left_out else column
        group = next(one for one in self.groups[1:] if column in one.columns)
        return self._side_name(group, column)

    @staticmethod
    def _field_name(column: str) -> str:
        taken = column.lower() == "label" or column in INNER_NAMES or column.startswith(("_key_", "_found_"))
        return f"{column.strip('_')}_value" if taken else column

    def _why_not(self, one: Profile) -> str | None:
        """Why a column is no field, where it is none."""
        if one.rows == one.nulls:
            return "always null in the sample"
        if one.type == NESTED:
            return "objects, which no field can hold"
        if one.type == "timestamp":
            return "a time"
        if one.distinct == 1:
            return f"always {one.examples[0][:30]!r} in the sample" if one.examples else "always the same in the sample"
        return None

    def _field_lines(self) -> list[str]:
        lines, seen = [], set()
        for group in self.groups:
            if group is not self.groups[0] and not group.on:
                continue
            keyed = next(iter(group.on)) if group.on else None
            partner = self.groups[0].columns.get(keyed) if keyed else None
            for one in group.columns.values():
                if group.on and one.name in group.on.values():
                    continue
                column = one.name if group is self.groups[0] else self._side_name(group, one.name)
                if group is self.groups[0] and one.name in self.left_out:
                    continue
                reason = self._why_not(one)
                name = self._field_name(column)
                if reason is None and name.lower() in seen:
                    reason = "another column's name but for upper and lower case"
                if reason is not None:
                    lines.append(f"  # {column}: {reason}".replace("\n", " "))
                    continue
                seen.add(name.lower())
                entity = partner.entity if partner is not None and partner.entity != "context" else one.entity
                lines.append(self._field_line(one, name, column, entity))
        return lines

    def _field_line(self, one: Profile, name: str, column: str, entity: str) -> str:
        parts = {"name": _word(name)} | ({"column": _word(column)} if column != name else {})
        parts |= {"type": one.type, "entity": entity}
        note = f"{one.distinct:,} values, such as {', '.join(one.examples[:2])[:50]}"
        if one.separator is not None:
            parts["kind"] = "multi-valued"
            if one.separator:
                parts["separator"] = json.dumps(one.separator)
                self.notes.append(f"{name}: text is taken for several values, separated by {one.separator!r}")
        elif column in self.keys.values():
            parts |= {"key": "true", "sides": "[id]"}
        elif one.is_id:
            parts["sides"] = "[id]"
        elif one.type == "float" or (one.type == "int" and one.distinct > 100 and "year" not in one.words):
            parts["kind"] = "numeric"
        elif one.type == "string" and one.length > 200:
            parts |= {"sides": "[text]", "max_tokens": "64"}
        elif one.type == "string" and one.length > 25:
            parts["max_tokens"] = "48"
        if one.is_id and one.distinct > 0.9 * one.rows and one.rows >= 1_000:
            note += "; almost as many as rows: `kind: hashed, num_buckets: 100000` needs no vocabulary"
            self.notes.append(
                f"{name}: almost every row has another value; it may be of kind hashed, or no feature at all"
            )
        note = " ".join(note.split())
        return f"  - {{{', '.join(f'{key}: {value}' for key, value in parts.items())}}}     # {note}"


def _column(name: str) -> str:
    return name if name.isidentifier() else f"`{name}`"


def _word(text: str) -> str:
    """Text as YAML reads it back."""
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*( (>=|==) \d+)?", text)
    reserved = text.lower() in ("yes", "no", "on", "off", "true", "false", "null", "none", "y", "n")
    return text if plain and not reserved else json.dumps(text, ensure_ascii=False)
