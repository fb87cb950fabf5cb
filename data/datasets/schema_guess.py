# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the columns of tables are, guessed from their names and profiles."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flip_ctr.data.datasets.column_profiles import NESTED, WIDE, Profile, is_digit_time
from flip_ctr.data.datasets.table import INNER_NAMES
from flip_ctr.data.readers.table_files import ParquetFormat, TableFormat
from flip_ctr.modeling_flip.fields_flip import FlipField, read_fields


def _words(text: str) -> set[str]:
    return set(text.split())


OBJECTS = _words(
    "item movie film book product ad article news video song track game hotel job listing offer recipe anime"
)
USERS = _words("user member customer visitor client reader reviewer buyer viewer person profile account")
USER_WORDS = USERS | _words("uid gender sex age occupation zip location country city income")
ITEM_WORDS = OBJECTS | _words(
    "isbn sku asin iid adgroup campaign creative business restaurant course app post title genre author brand "
    "category price publisher year name tag description"
)
ID_WORDS = _words("id uid iid uuid isbn sku asin key hash")
YES = _words("yes y true t click clicked 1 positive like liked buy purchase")
# the likeliest first
LABEL_WORDS = ("label", "click", "clicked", "clk", "target", "liked", "like", "purchased", "bought", "converted")
LABEL_WORDS += ("conversion", "purchase")
RATING_WORDS = ("rating", "star", "overall", "score", "grade", "point", "vote", "mark", "rate")
OF_MANY = _words("avg average mean count num number total sum std id")  # are no single rating
TIME_WORDS = _words("time timestamp ts date datetime at when day hour dt created updated")
WEIGHT_WORDS = {"weight", "sampleweight"}
OF_PANDAS = re.compile(r"__index_level_\d+__|Unnamed: \d+")
ROW_NUMBERS = {"", "index", "row", "id", "rownum", "unnamed", "level"}  # names of columns that count the rows
PROMPT_TOKENS = 480  # of the 512 that most PLMs take


@dataclass
class Group:
    """Files with the same columns, and how they are read.

    Attributes:
        files: as the schema says them.
        options: what it says of reading them, beside that.
        columns: in order.
        repeated: names that come more than once.
        complete: whether the sample is all that there is.
        on: of a side table: a column of the rows to its own.
    """

    name: str
    files: list[str]
    reader: TableFormat
    options: dict[str, Any]
    columns: dict[str, Profile]
    repeated: set[str] = field(default_factory=set)
    complete: bool = True
    on: dict[str, str] | None = None
    missing: str = "reject"

    @property
    def null_words(self) -> list[str]:
        """Texts that seem to mean null."""
        return sorted({word for one in self.columns.values() for word in one.null_words})


def words_of(name: str) -> set[str]:
    """The words of a name, in lower case and singular: `userIds` has user and id."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    words = {_singular(part.lower()) for part in (*parts, name)}
    return words | {word[:-2].rstrip("_-") for word in words if word.endswith("id") and len(word) > 3}  # userid


def _singular(word: str) -> str:
    plural = len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as"))
    return word[:-1] if plural and word != "news" else word


def is_id(column: Profile) -> bool:
    name, words = column.name.lower(), words_of(column.name)
    glued = name.endswith("id") and (column.distinct > 20 or bool(words & (USERS | OBJECTS)))  # userid, and not paid
    return bool(words & ID_WORDS) or _singular(name) in (USERS | OBJECTS) or glued


def entity_of(column: Profile) -> str:
    words = words_of(column.name)
    return "user" if words & USER_WORDS else "item" if words & ITEM_WORDS else "context"


def is_key(column: Profile) -> bool:
    return column.is_single and column.type in ("string", "int")


def is_row_id(column: Profile) -> bool:
    """Whether almost every row has another value."""
    return is_id(column) and column.distinct > 0.9 * column.rows and column.rows >= 1_000


def field_name(column: str) -> str:
    """What a field of a column is called, whose own name may be taken."""
    taken = column.lower() == "label" or column in INNER_NAMES or column.startswith(("_key_", "_found_"))
    return f"{column.strip('_')}_value" if taken else column


class SchemaGuess:
    """A first schema of some tables, of which the first are the events.

    Args:
        labelled: whether a column of the events is the label, and another may be the weight of a row.

    Attributes:
        notes: what a person should look at.
        label: as the schema says it; None where a person must name it.
    """

    def __init__(self, groups: list[Group], name: str, labelled: bool = True):
        self.groups, self.name, self.notes = groups, name, []
        for group in groups:
            for column in group.columns.values():
                self._settle_type(group, column)
            if "encoding" in group.options:
                self.notes.append(
                    f"encoding: {group.files[0]} is not all utf-8 and is taken for latin-1; if only some lines are "
                    "damaged, say utf-8, and these are rejected"
                )
            if "column_names" in group.options:
                self.notes.append(
                    f"column_names: {group.files[0]} has no header: its first line holds values. Name its columns, "
                    "and where they are fields"
                )
        for number, group in enumerate(groups[1:], 1):
            self._guess_join(group, groups[:number])
        events = [column for column in groups[0].columns.values() if column.name not in groups[0].repeated]
        self.label, label_column = self._guess_label([one for one in events if one.name]) if labelled else (None, None)
        named = [one for one in events if one.name and one.name != label_column]
        times = [one for one in named if self._is_time(one)]
        self.time = next(iter(times), None)
        weights = [one for one in named if one.name.replace("_", "").lower() in WEIGHT_WORDS and one.is_number]
        self.weight = next(iter(weights), None) if labelled else None
        self.left_out = {label_column, *(one.name for one in (self.time, self.weight) if one)}
        self.label_column = label_column
        self.keys: dict[str, str] = {}
        for entity, named_as in (("user", USERS), ("item", OBJECTS)):
            ids = [
                one for one in named if is_id(one) and self._entity(one) == entity and is_key(one) and one.distinct > 1
            ]
            # user_id before user_group_id
            ids.sort(key=lambda one: len(words_of(one.name) - ID_WORDS - named_as - {one.name.lower()}))
            if ids and ids[0].name not in self.left_out:
                self.keys[entity] = ids[0].name
        self.sides = self._sides()

    @staticmethod
    def _settle_type(group: Group, column: Profile) -> None:
        """What the reader of the files makes of a type, and ids that became 3.0."""
        if column.type == WIDE:
            column.type = "string" if isinstance(group.reader, ParquetFormat) else NESTED
            column.why_not = "numbers of more than 63 bits beside smaller ones: write them as text"
        plain = not any("e" in text.lower() for text in column.counts)
        if column.type == "float" and column.whole and column.is_single and plain and is_id(column):
            column.type, column.counts = (
                "int",
                type(column.counts)({text.split(".")[0]: count for text, count in column.counts.items()}),
            )

    # --- joins

    def _guess_join(self, group: Group, before: list[Group]) -> None:
        known = {}
        for one in (one for one in before if one is before[0] or one.on):
            known = {name: column for name, column in one.columns.items() if name not in one.repeated} | known
        pairs = []
        for own in group.columns.values():
            for name, theirs in known.items():
                same = own.name == name or (same_key(name, own.name, group.name) and (is_id(theirs) or is_id(own)))
                same = same and not any("column_names" in one.options for one in (group, before[0]))
                common = theirs.counts.keys() & own.counts.keys()
                if name and same and is_key(own) and is_key(theirs) and (common or not group.complete):
                    unsure = not own.is_unique, own.name != name, not is_id(theirs)
                    pairs.append((unsure, name, own, len(theirs.counts) - len(common), theirs))
        pairs = [pair for pair in pairs if pair[2].is_unique or is_id(pair[4])] or self._same_values(group, known)
        if not pairs:
            return
        _, name, own, lost, theirs = min(pairs, key=lambda pair: pair[0])
        group.on = {name: own.name}
        if group.complete and (lost or theirs.nulls):
            group.missing = "null"
            self.notes.append(
                f"joins: {lost:,} of {theirs.distinct:,} values of {name} are not in {group.files[0]}; their rows are "
                "kept, with nulls"
            )

    def _entity(self, one: Profile) -> str:
        """Whom a column describes: of a key of a side table, what that table calls it."""
        entity = entity_of(one)
        sides = [group for group in self.groups[1:] if group.on and self.groups[0].columns.get(one.name) is one]
        owns = (entity_of(group.columns[group.on[one.name]]) for group in sides if one.name in group.on)
        return next(owns, entity) if entity == "context" else entity

    @staticmethod
    def _same_values(group: Group, known: dict[str, Profile]) -> list[tuple]:
        """Pairs of columns of other names of which the values say that they are one key: text such as J00120."""
        return [
            ((False, True, True), name, own, len(theirs.counts) - common, theirs)
            for own in group.columns.values()
            for name, theirs in known.items()
            if own.type == theirs.type == "string" and own.is_unique and own.is_single and theirs.is_single and name
            if (common := len(theirs.counts.keys() & own.counts.keys())) > max(10, 0.9 * theirs.distinct)
        ]

    # --- the label

    def _guess_label(self, columns: list[Profile]) -> tuple[str | None, str | None]:
        """The label as the schema says it, and its column."""
        named = [one for word in LABEL_WORDS for one in columns if word in words_of(one.name)]
        named += [one for one in columns if one.name.lower() == "y"]
        named.sort(key=lambda one: not one.is_flag)
        for one in named:
            said = _label_rule(one)
            if said is not None:
                self.notes.append(
                    f"label: {one.name} holds {' and '.join(sorted(one.counts)[:2])}, and has the name of one"
                )
                return said, one.name
        for word in RATING_WORDS:
            for one in columns:
                words = words_of(one.name)
                if word in words and one.is_number and not words & OF_MANY and one.low < one.high:
                    self.notes.append(
                        f"label: {one.name} goes from {one.low:g} to {one.high:g}; which are clicks is yours to say"
                    )
                    return f"{column_in_rule(one.name)} >= {_threshold(one):g}", one.name
        flags = [one.name for one in columns if one.is_flag]
        if "column_names" in self.groups[0].options and flags == [columns[0].name]:
            self.notes.append(f"label: {flags[0]}, the first column, is the only one of 0 and 1")
            return _label_rule(columns[0]), flags[0]
        pairs = [
            one for one in columns if one.type == "string" and one.is_single and one.distinct == 2 and not one.nulls
        ]
        rules = [f"{column_in_rule(one.name)} == {one.examples[0]!r}" for one in pairs]
        said = f", of 0 and 1 are {', '.join(flags)}" if flags else ""
        said += f"; of two values one can be a click by a rule, as: {'; '.join(rules)}" if rules else ""
        self.notes.append(f"label: name it; no column looks like one{said}")
        return None, None

    def _is_time(self, one: Profile) -> bool:
        if one.type == "timestamp":
            return one.is_single
        named = bool(words_of(one.name) & TIME_WORDS)
        if "column_names" in self.groups[0].options:  # seconds since 1970, of the years from 1985 to 2035
            return one.is_number and one.low > 5e8 and one.high < 2.05e9 and one.distinct > 20
        return named and one.is_number and (one.low > 5e8 or is_digit_time(one))

    # --- what is written of it

    def said_types(self) -> dict[str, str | dict[str, str]]:
        """What `types` says: how times are written, and numbers with decimal commas."""
        said = {self.time.name: self.time.said.described()} if self.time and self.time.type != "int" else {}
        others = (self.weight, self.label_column and self.groups[0].columns[self.label_column])
        return said | {one.name: one.said.described() for one in others if one and one.decimal != "."}

    def settle_notes(self) -> None:
        """Adds the notes that belong to what is written."""
        if self.time is not None and self.time.other_format:
            self.notes.append(
                f"types: {self.time.name} is read as {self.time.time_format}; it may be {self.time.other_format}"
            )
        for group in self.groups:
            words = group.null_words
            if words:
                self.notes.append(f"null_values: {', '.join(words)} in {group.files[0]} seem to mean null")
            for one in group.columns.values():
                for word in one.counts.keys() & set(words):
                    self.notes.append(f"null_values: {word} of {one.name} is null then, too")
        for group in self.groups[1:]:
            if not group.on:
                self.notes.append(
                    f"joins: {group.files[0]} shares no key with the other files; add a join by hand, or leave it out"
                )
                continue
            on, own = next(iter(group.on.items()))
            self.notes.append(f"joins: {group.files[0]} is joined by {on}{'' if on == own else f' = {own}'}")
            if not group.columns[own].is_unique:
                self.notes.append(f"joins: {own} comes more than once in {group.files[0]}: the first line counts")
        if len(self.keys) < 2:
            lacking = [entity for entity in ("user", "item") if entity not in self.keys]
            self.notes.append(
                f"{' and '.join(lacking)}: no column looks like its key; say "
                f"{' and '.join(f'`{entity}: COLUMN`' for entity in lacking)}, and `entity` and `key: true` of the "
                "fields, or name in row_key what identifies a row"
            )
            if not self.row_key():
                self.notes.append("row_key: no column of text or whole numbers was found; name what identifies a row")
        for name in self.without_key():
            self.notes.append(f"drop: rows without {name}, of which the sample has {self._column_of(name).nulls:,}")
        for one, name, _ in self._fields():
            if one.separator:
                self.notes.append(f"{name}: text is taken for several values, separated by {one.separator!r}")
            if is_row_id(one):
                self.notes.append(
                    f"{name}: almost every row has another value; it may be of kind hashed, or no feature at all"
                )

    def without_key(self) -> list[str]:
        """Columns of which some rows lack a value, and without which a row is none."""
        needed = [*(field_name(one) for one in self.keys.values())] if len(self.keys) == 2 else self.row_key()
        needed += [one for one in (self.label_column, self.weight and self.weight.name) if one]
        return [name for name in dict.fromkeys(needed) if self._column_of(name).nulls]

    def _column_of(self, name: str) -> Profile:
        columns = self.groups[0].columns
        return (
            columns[name] if name in columns else next(one for one in columns.values() if field_name(one.name) == name)
        )

    def row_key(self) -> list[str]:
        fields = [one for one, *_ in self._fields(self.groups[0]) if is_key(one)]
        plain = [one for one in fields if not one.nulls]
        ids = [one for one in plain if is_id(one)] or [self.groups[0].columns[key] for key in self.keys.values()]
        names = [field_name(one.name) for one in (ids or plain or fields)[:4]]
        # rows of one key are told apart by their order
        return names or ([self.label] if self.label and self.label == self.label_column else [])

    def side_name(self, group: Group, name: str) -> str:
        """What a column of a side table is called in the rows: another name where one has it already."""
        others = {other.lower() for one in self.groups[: self.groups.index(group)] for other in one.columns}
        return f"{group.name}_{name}" if name.lower() in others else name

    def row_name(self, column: str) -> str:
        """What a column of the events, or of an earlier side table, is called in the rows."""
        if column in self.groups[0].columns:
            return field_name(column) if column not in self.left_out else column
        group = next(one for one in self.groups[1:] if column in one.columns)
        return self.side_name(group, column)

    # --- fields

    def _columns(self) -> Iterator[tuple[Group, Profile, str]]:
        """The columns that may be fields, with their names in the rows."""
        for group in self.groups:
            for one in group.columns.values() if group is self.groups[0] or group.on else ():
                if group is self.groups[0] and one.name not in self.left_out:
                    yield group, one, one.name
                elif group is not self.groups[0] and one.name not in group.on.values():
                    yield group, one, self.side_name(group, one.name)

    def _why_not(self, group: Group, one: Profile, name: str, seen: set[str]) -> str | None:
        """Why a column is no field, where it is none."""
        number = list(group.columns).index(one.name) + 1
        if not one.name:
            return f"column {number} has no name{', and counts the rows' * one.in_order}"
        if one.name in group.repeated:
            return "more than one column has this name"
        if one.in_order and words_of(one.name) & ROW_NUMBERS and one.rows > 2 and not group.on:
            return "counts the rows"
        if OF_PANDAS.fullmatch(one.name):
            return "pandas' name for an index or a column without a name"
        if one.rows == one.nulls:
            return "always null in the sample"
        if one.type == NESTED:
            return one.why_not
        if one.type == "timestamp":
            return "a time"
        if one.distinct == 1 and one.rows > 1 and not one.nulls:  # beside nulls one value says something
            return f"always {one.examples[0][:30]!r} in the sample"
        if name.lower() in seen:
            return "another column's name but for upper and lower case"
        return None

    def _fields(self, of: Group | None = None) -> list[tuple[Profile, str, str]]:
        """The columns that are fields, each with its name and its column."""
        result, seen = [], {(name or "").lower() for name in self.left_out}
        for group, one, column in self._columns():
            if self._why_not(group, one, field_name(column), seen) is None:
                seen.add(field_name(column).lower())
                if of in (None, group):
                    result.append((one, field_name(column), column))
        return result

    def described(self) -> Iterator[tuple[str, Profile, dict[str, Any] | str]]:
        """The columns, their profiles, and what the schema says of each: the keys of a field, or why it is none."""
        seen = {(name or "").lower() for name in self.left_out}
        for group, one, column in self._columns():
            name = field_name(column)
            reason = self._why_not(group, one, name, seen)
            if reason is not None:
                yield column, one, reason
                continue
            seen.add(name.lower())
            partner = self.groups[0].columns.get(next(iter(group.on))) if group.on else None
            entity = "context" if partner is None else self._entity(partner)
            yield (
                column,
                one,
                self._keys_of_field(one, name, column, self._entity(one) if entity == "context" else entity),
            )

    def fields(self) -> tuple[list[FlipField], dict[str, str]]:
        """The fields, and of each column that is none the reason."""
        fields, reasons = [], {} if self.time is None else {self.time.name: "a time"}
        for column, one, said in self.described():
            if isinstance(said, str):
                reasons[column] = said
            else:
                fields.append(FlipField(**said, null_values=one.null_words))
        return read_fields(fields), reasons

    def _sides(self) -> dict[str, list[str]]:
        """Which sides fields are on that are not on both: a prompt takes so many tokens only."""
        fields = self._fields()
        sides = {name: ["id"] for one, name, column in fields if column in self.keys.values() or is_id(one)}
        sides |= {name: ["text"] for one, name, _ in fields if name not in sides and one.is_single and one.length > 200}
        # in the order in which they leave the prompt: numbers and codes say least
        in_prompt = [(one, name) for one, name, _ in fields if sides.get(name) != ["id"]]
        order = sorted(enumerate(in_prompt), key=lambda pair: (_says_little(pair[1][0]), pair[0]), reverse=True)
        self.tight = sum(_prompt_tokens(one, name, False) for one, name in in_prompt) > PROMPT_TOKENS
        used = sum(_prompt_tokens(one, name, self.tight) for one, name in in_prompt)
        gone = 0
        for _, (one, name) in order:
            if used > PROMPT_TOKENS:
                used, gone, sides[name] = used - _prompt_tokens(one, name, True), gone + 1, ["id"]
        if gone:
            self.notes.append(
                f"sides: {gone} fields are not in the prompt, which would be longer than the 512 tokens that most PLMs "
                "take; `sides`, `max_tokens`, or --prompt_fields of the recipes choose others"
            )
        return sides

    def _keys_of_field(self, one: Profile, name: str, column: str, entity: str) -> dict[str, Any]:
        parts: dict[str, Any] = {"name": name} | ({"column": column} if column != name else {})
        parts |= {"type": one.type, "entity": entity}
        if one.separator is not None:
            parts["kind"] = "multi-valued"
            if one.separator:
                parts["separator"] = one.separator
        elif column in self.keys.values():
            parts["key"] = True
        elif not is_id(one) and (
            one.type == "float" or (one.type == "int" and one.distinct > 100 and "year" not in words_of(one.name))
        ):
            parts["kind"] = "numeric"
        if one.decimal != ".":
            parts["decimal"] = one.decimal
        if name in self.sides:
            parts["sides"] = self.sides[name]
        if parts.get("sides") != ["id"] and _budget(one, self.tight) != 32:
            parts["max_tokens"] = _budget(one, self.tight)
        return parts


def _budget(one: Profile, tight: bool) -> int:
    """`max_tokens` of a field of such values; where the prompt is `tight` not more than they need."""
    usual = 64 if one.length > 200 else 48 if one.length > 25 and one.is_single and one.type == "string" else 32
    return min(usual, max(4, *map(len, one.counts))) if tight and one.is_single else usual


def _prompt_tokens(one: Profile, name: str, tight: bool) -> int:
    """How long a field makes a prompt: its wording, `is`, the separator, and its budget."""
    return _budget(one, tight) + 3 + len(name) // 3


def _says_little(one: Profile) -> int:
    """How little a field's values say as text: codes least, then numbers."""
    codes = one.type == "string" and all(re.fullmatch(r"(?=.*\d)[\w-]{4,}", text) for text in one.examples)
    return 2 if codes else 1 if one.type != "string" else 0


def same_key(theirs: str, own: str, table: str) -> bool:
    """Whether two names are of one key: in the plural, in another case, or `id` in a table of users."""
    stems = [frozenset(words_of(name) - ID_WORDS - {name.lower(), _singular(name.lower())}) for name in (theirs, own)]
    plain = [re.sub(r"[\W_]", "", _singular(name.lower())) for name in (theirs, own)]
    if (
        plain[0] == plain[1]
        or (stems[0] and stems[0] == stems[1])
        or frozenset(plain[1:]) == stems[0]
        or frozenset(plain[:1]) == stems[1]
    ):
        return True
    of_table = {_singular(table.lower()), re.sub(r"[\W_]", "", _singular(table.lower()))}
    return own.lower() in ID_WORDS and bool(of_table & (stems[0] | {plain[0]}))


def _label_rule(one: Profile) -> str | None:
    """What makes a label of a column of two values, or of numbers of clicks; None where it is none."""
    if one.is_single and (one.type == "bool" or one.counts.keys() <= {"0", "1"}):
        return one.name
    if one.is_flag or (one.is_number and one.low == 0 < one.high and one.whole):
        return f"{column_in_rule(one.name)} > 0"
    yes = [text for text in one.counts if text.lower() in YES]
    if one.type == "string" and one.distinct == 2 and len(yes) == 1:
        return f"{column_in_rule(one.name)} == {yes[0]!r}"
    return None


def _threshold(one: Profile) -> float:
    """From which number on a rating is a click: four fifths of the highest, where that leaves both."""
    threshold = 0.8 * one.high if one.high <= 2 else math.ceil(0.8 * one.high)
    return threshold if one.low < threshold else one.high


def column_in_rule(name: str) -> str:
    return name if name.isidentifier() else f"`{name}`"
