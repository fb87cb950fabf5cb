# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a sample says of a column: its type by the rules of canonical values, separators, nulls, and the forms of its
times and numbers."""

import ast
import datetime
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from flip_ctr.data.readers.table_values import ColumnType, read_time

NULL_WORDS = ("NULL", "null", "\\N", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NaT", "None")
NUMBER_NULLS = ("-", "?", ".")  # which mean null among numbers only
SEPARATORS = ("|", ";", ",", "^", " ")
NESTED = "object"  # what no field can hold
WIDE = "wide int"  # numbers of more than 63 bits beside smaller ones

INT = re.compile(r"-?(0|[1-9]\d{0,17})")  # 02139 is text
FLOAT = re.compile(r"-?((0|[1-9]\d{0,14})(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
DECIMAL_COMMA = re.compile(r"-?(0|[1-9]\d{0,14})(,\d+)?")
CODE = re.compile(r"\w*\d\w*")

DATES = ("%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%m-%d-%Y", "%d-%m-%Y", "%d.%m.%Y", "%Y.%m.%d", "%m/%d/%y", "%d/%m/%y")
DATES += ("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d/%b/%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%m %d, %Y", "%Y-%m-%d")
TIMES = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p", " %H:%M:%S.%f", " %H:%M:%S %z", ":%H:%M:%S %z")
WHOLE_FORMS = ("%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z", "%Y%m%d %H:%M:%S")
TIME_FORMATS = (*(date + time for date in DATES for time in TIMES), *WHOLE_FORMS)
TIME_SIGNS = re.compile(r"(?=(.*\d){4})(?=.*[ ,:/.-])[\w ,:/.+-]{6,40}")
DIGIT_TIMES = {8: ("%Y%m%d", "%y%m%d%H"), 10: ("%Y%m%d%H",), 12: ("%Y%m%d%H%M",), 14: ("%Y%m%d%H%M%S",)}


@dataclass
class Profile:
    """What a sample says of a column.

    Attributes:
        type: of its single values: one of `TYPES`, or `NESTED`.
        separator: of text that holds several values; an empty text where the file has lists, or text that writes them;
            `None` for single values.
        rows, nulls: numbers of rows, and of nulls among them.
        counts: the distinct values, as text, with how often each comes.
        whole: whether all numbers are whole.
        low, high: least and largest number.
        null_words: texts that seem to mean null.
        time_format: how its times are written where that is not ISO 8601; `other_format` fits too.
        decimal: what stands before the fraction of a number.
        in_order: whether its whole numbers count the rows, one each.
        why_not: why it can be no field, where its type is `NESTED`.
    """

    name: str
    type: str
    separator: str | None
    rows: int
    nulls: int
    counts: Counter = field(default_factory=Counter)
    whole: bool = False
    low: float = 0.0
    high: float = 0.0
    null_words: tuple[str, ...] = ()
    time_format: str | None = None
    other_format: str | None = None
    decimal: str = "."
    in_order: bool = False
    why_not: str = ""

    @property
    def said(self) -> ColumnType:
        """What `types` says of it."""
        return ColumnType(self.type, self.time_format, self.decimal)

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def examples(self) -> list[str]:
        return list(self.counts)[:3]

    @property
    def length(self) -> float:
        """Mean number of characters of a distinct value."""
        return sum(map(len, self.counts)) / max(1, self.distinct)

    @property
    def is_single(self) -> bool:
        return self.separator is None and self.type != NESTED

    @property
    def is_number(self) -> bool:
        return self.is_single and self.type in ("int", "float")

    @property
    def is_flag(self) -> bool:
        """Whether its values are two, of which one says yes."""
        return self.is_single and (
            self.type == "bool"
            or (self.is_number and self.distinct == 2 and (self.low, self.high) in ((0, 1), (-1, 1)))
        )

    @property
    def is_unique(self) -> bool:
        return self.nulls == 0 and self.distinct == self.rows


def profile(name: str, values: Sequence) -> Profile:
    """What values of a column, as a file has them, say of it."""
    present = [
        " ".join(one.split()) if isinstance(one, str) else one for one in values if one is not None and one == one
    ]
    present = [_plain(one) for one in present if one != ""]
    result = Profile(name, "string", None, len(values), len(values) - len(present))
    lists = _lists(present)
    if lists is not None:
        inner = profile(name, [one for some in lists for one in some if one is not None])
        result.type, result.separator, result.counts, result.why_not = inner.type, "", inner.counts, inner.why_not
        if inner.separator == "":
            result.type, result.why_not = NESTED, "lists of lists, which no field can hold"
        return result
    if any(isinstance(one, dict | list) for one in present) or _all_objects(present):
        result.type, result.why_not = NESTED, "objects, which no field can hold"
        return result
    counts = Counter(present)  # true is 1 there: of bools and numbers in one column `_type` makes text
    words = [word for word in (*NULL_WORDS, *NUMBER_NULLS) if word in counts]
    others = [one for one in counts if one not in words]
    result.type, result.decimal = _type(others)
    if result.type == "string" and (word := _word_among_numbers(others)):  # k.A. among ages
        words, others = [*words, word], [one for one in others if one != word]
        result.type, result.decimal = _type(others)
    if result.type == NESTED:
        result.why_not = "values of several types, such as text and numbers, which no type holds"
        return result
    if result.type == "string":
        _find_times(result, [one for one in present if one not in words])
    if result.type == "string" and words:
        words = [word for word in words if _means_null(word, counts, others, len(present))]
        others = [one for one in counts if one not in words]
        if not others:
            result.type = "string"
    result.null_words = tuple(words)
    result.nulls += sum(counts[word] for word in words)
    result.counts = Counter({str(one): counts[one] for one in others})
    if result.type in ("int", "float") and others:
        numbers = [float(str(one).replace(",", ".")) for one in others]
        result.low, result.high = min(numbers), max(numbers)
        result.whole = all(number.is_integer() for number in numbers)
        result.in_order = result.whole and not words and all(float(b) - float(a) == 1 for a, b in pairwise(present))
    elif result.type == "string":
        result.separator = _separator(list(result.counts))
    return result


def _plain(value):
    """A value as one of Python's own types."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() else float(value)
    return list(value) if isinstance(value, tuple | set) else value


def _lists(present: list) -> list[list] | None:
    """The lists of a column where all of its values are lists, or text that writes one; else None."""
    if any(isinstance(one, list) for one in present):
        return [one if isinstance(one, list) else [one] for one in present]
    if not present or not all(isinstance(one, str) and one[0] + one[-1] in ("[]", "{}") for one in present):
        return None
    found = list(map(_written_list, present))
    return None if None in found else found


def _written_list(text: str) -> list | None:
    """`["a", "b"]`, `['a', 'b']`, `{a,b}` and numpy's `[1 2]` as a list."""
    value = _read(text)
    if text[0] == "[" and value is None and all(map(FLOAT.fullmatch, text[1:-1].split())):
        value = text[1:-1].split()
    if text[0] == "{" and value is None and ":" not in text:
        value = [one.strip().strip('"') for one in text[1:-1].split(",") if one.strip()]
    return list(value) if isinstance(value, list | set) else None


def _read(text: str):
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def _all_objects(present: list) -> bool:
    texts = [one for one in present[:100] if isinstance(one, str) and one[0] + one[-1] == "{}"]
    return bool(present) and len(texts) == len(present[:100]) and all(isinstance(_read(one), dict) for one in texts)


def _means_null(word: str, counts: Counter, others: list, rows: int) -> bool:
    """Whether a word among texts means null, and is not one of them (NA is Namibia among countries)."""
    codes = all(isinstance(one, str) and len(one) <= 3 and one.isupper() for one in others)
    return word not in NUMBER_NULLS and counts[word] >= 0.001 * rows and not (word.isupper() and codes and others)


def _word_among_numbers(distinct: list) -> str | None:
    """The one value of a column that is no number, where there are numbers enough to say that it means null."""
    if len(distinct) <= 10 or not all(isinstance(one, str) for one in distinct):
        return None
    words = [one for one in distinct if _type([one])[0] == "string"]
    numbers = [one for one in distinct if one not in words]
    plain = len(words) == 1 and not any(map(str.isdigit, words[0]))
    return words[0] if plain and _type(numbers)[0] in ("int", "float") else None


def _type(values: list) -> tuple[str, str]:
    """The type of distinct values, and what stands before the fraction of a number."""
    kinds = set(map(type, values))
    if not values:
        return "string", "."
    if kinds == {bool} or (
        kinds in ({str}, {int}) and {str(one).lower() for one in values} in ({"0", "1"}, {"true", "false"})
    ):
        return "bool", "."
    if kinds <= {int, float}:
        wide = [isinstance(one, int) and not -(2**63) <= one < 2**63 for one in values]
        if any(wide):
            return "string" if all(wide) else WIDE, "."
        return "int" if kinds == {int} else "float", "."
    if all(isinstance(one, datetime.date) for one in values):
        return "timestamp", "."
    if kinds <= {str, int, float} and len(kinds) > 1:
        kind, decimal = _type(list(map(str, values)))
        return (kind if kind in ("int", "float") else NESTED), decimal
    if kinds != {str}:
        return NESTED, "."
    if all(map(INT.fullmatch, values)):
        return "int", "."
    if all(FLOAT.fullmatch(one) and math.isfinite(float(one)) for one in values):
        return "float", "."
    fractions = [one.rpartition(",")[2] for one in values if "," in one]
    if all(map(DECIMAL_COMMA.fullmatch, values)) and {len(one) for one in fractions} != {3}:  # 1,234 is 1234
        return "float", ","
    return "string", "."


def _find_times(result: Profile, present: list) -> None:
    """Makes a column of text one of times where all its values are of one form."""
    distinct = list(dict.fromkeys(present))
    if not distinct or not all(isinstance(one, str) and TIME_SIGNS.fullmatch(one) for one in distinct):
        return
    fitting: list[str | None] = [None, *TIME_FORMATS]
    for texts in (distinct[:1], distinct[:100], distinct):  # few forms are left after the first
        fitting = [form for form in fitting if _all_times(texts, form)]
    fitting = fitting[:1] if fitting[:1] == [None] else fitting
    if fitting:
        # 03/04/2024: the day first or the month first, by which the rows are more in order
        fitting.sort(key=lambda form: _descents(present, form)) if len(fitting) > 1 else None
        result.type, result.time_format = "timestamp", fitting[0]
        result.other_format = fitting[1] if len(fitting) > 1 else None


def _all_times(texts: Sequence[str], form: str | None) -> bool:
    try:
        return all(read_time(text, form) for text in texts)
    except (ValueError, OverflowError):
        return False


def _descents(present: list[str], form: str | None) -> int:
    return sum(a > b for a, b in pairwise(read_time(text, form) for text in present[:2_000]))


def is_digit_time(column: Profile) -> bool:
    """Whether whole numbers are dates or times in digits, such as 20240301 or the hours 14102100."""
    lengths = set(map(len, column.counts))
    if not column.is_number or len(lengths) != 1 or (length := lengths.pop()) not in DIGIT_TIMES:
        return False
    return any(_all_times(list(column.counts), form) for form in DIGIT_TIMES[length])


def _separator(texts: list[str]) -> str | None:
    """What separates several values in one text, where these come again in other combinations."""
    for separator in SEPARATORS if len(texts) > 2 else ():
        parts = [text.split(separator) for text in texts]
        single = {" ".join(part.split()) for several in parts for part in several}
        if separator == " " and not all(map(CODE.fullmatch, single)):  # words of a title come again too
            continue
        held = sum(len(several) > 1 for several in parts)
        if held >= 0.2 * len(texts) and len(single) <= 0.7 * len(texts) and sum(map(len, single)) <= 30 * len(single):
            return separator
    return None
