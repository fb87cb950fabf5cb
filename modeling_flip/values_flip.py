# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A raw value -> its canonical form.

Every value has one canonical form, a string made by the schema's type, which training, evaluation, prediction and the
prompt share: else a zip code `02139` becomes 2139, an age 25.0, and every score is silently wrong. That of a
multi-valued field is a tuple of such strings.
"""

import ast
import contextlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from .fields_flip import FlipField

NULL_TYPES = ("NoneType", "NAType", "NaTType")  # by name: pandas must not be imported here
NUMBERS = (int, float, Decimal, np.integer, np.floating)
INT64 = range(-(2**63), 2**63)  # what a prepared column holds

# a canonical value; None for a null
Value = str | tuple[str, ...] | None
Convert = Callable[[Any, str, str], str | None]


def clean_name(name: str) -> str:
    """Text in the form in which texts are compared, names of columns too: NFC, without superfluous spaces."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


class UnfitValue(ValueError):
    """A value of the right type that cannot be kept.

    Args:
        value: the value.
        reason: what is wrong with it, without the value itself.
    """

    def __init__(self, value: Any, reason: str):
        super().__init__(f"{value!r} {reason}")
        self.reason = reason


def canonical_value(value: Any, type_name: str, decimal: str = ".") -> str | None:
    """The canonical form of a value of a field of that type; None for a null (None, NaN, NA, or empty text).

    Args:
        decimal: what stands before the decimals of a number in text, `.` or `,`.

    Raises:
        ValueError: the value is not of that type; an [`UnfitValue`] where it is, and cannot be kept: an integer beyond
            64 bits, text with a NUL byte or half of a character.
    """
    if type(value).__name__ in NULL_TYPES or (value.is_nan() if isinstance(value, Decimal) else value != value):
        return None
    if isinstance(value, str):
        value = clean_name(value)
        if not value:
            return None
    result = None
    if type_name == "string":
        if isinstance(value, str):
            return _whole_text(value)
        if isinstance(value, int | np.integer) and int(value) not in INT64:  # of numpy's, a range tries all its numbers
            return str(value)  # which no column of whole numbers has made of text with leading zeros
    elif type_name == "bool":
        result = _bool(value)
    elif isinstance(value, (str, *NUMBERS)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError, InvalidOperation):
            result = _number(value, type_name, decimal)
    if result is None:
        wanted = "text" if type_name == "string" else type_name
        hint = decimal_hint(value, type_name, decimal)
        if type_name == "string" and isinstance(value, NUMBERS):
            hint = "; read the file with the schema's types, or give text: a number has lost leading zeros"
        raise ValueError(f"expected {wanted}, got {type(value).__name__} {value!r}{hint}")
    return result


def decimal_hint(value: Any, type_name: str, decimal: str) -> str:
    """What to do about text that is no number, but may be one with another decimal sign; empty for another value."""
    if type_name in ("int", "float") and isinstance(value, str) and re.fullmatch(r"[+-]?\d*[.,]\d+", value):
        if decimal == "." and "," in value:
            return '; `decimal: ","` says that a comma stands before the decimals'
        if decimal == ",":
            return '; its schema says `decimal: ","`'
    return ""


def _whole_text(text: str) -> str:
    if "\0" in text:
        raise UnfitValue(text, "holds a NUL byte")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UnfitValue(text, "holds half of a character") from None
    return text


def _bool(value: Any) -> str | None:
    if isinstance(value, bool | np.bool_) or (isinstance(value, int | np.integer) and value in (0, 1)):
        return "true" if value else "false"
    if isinstance(value, str):
        return {"true": "true", "1": "true", "false": "false", "0": "false"}.get(value.lower())
    return None


def _number(value: Any, type_name: str, decimal: str) -> str | None:
    """An `int` or `float`; None where it is none."""
    if isinstance(value, Decimal):
        value, decimal = format(value, "f"), "."
    if isinstance(value, str):
        if "_" in value or (decimal == "," and "." in value):  # `_` is Python's own way to write numbers
            return None
        value = value.replace(",", ".") if decimal == "," else value
    try:
        number = float(value)
        if type_name == "float":
            if not np.isfinite(number):
                return None
            # a short float by its own digits: the shortest form that reads back the same
            shown = value if isinstance(value, np.floating) and value.itemsize < 8 else np.float64(number)
            return np.format_float_positional(shown if shown else abs(shown), unique=True, trim="-")
        whole = _whole_number(value, number)
    except ValueError:
        return None
    if whole is not None and whole not in INT64:
        raise UnfitValue(value, "does not fit into 64 bits; with `type: string`, and as text, it keeps all digits")
    return None if whole is None else str(whole)


def _whole_number(value: Any, number: float) -> int | None:
    """Not through a float where there is another way, as it loses digits above 2**53."""
    if isinstance(value, int | np.integer) or (isinstance(value, str) and "." not in value):
        return int(value)
    if isinstance(value, str):
        exact = Decimal(value)
        return int(exact) if np.isfinite(number) and exact == exact.to_integral_value() else None
    return int(number) if number.is_integer() else None


def canonical_label(value: Any, type_name: str, decimal: str = ".") -> str | None:
    """As `canonical_value`, and a bool is 0 or 1."""
    return canonical_value(int(value) if isinstance(value, bool | np.bool_) else value, type_name, decimal)


def null_forms(words: Iterable[str], type_name: str, decimal: str = ".") -> frozenset[str]:
    """Words that mean null as texts are compared, and the canonical forms of those that are values of the type: a -1
    that means null in a CSV file means it as a number too."""
    forms = set(map(clean_name, words))
    for word in list(forms):
        with contextlib.suppress(ValueError):
            forms.add(canonical_value(word, type_name, decimal) or "")
    return frozenset(forms)


def value_reader(field: FlipField, convert: Convert = canonical_value) -> Callable[[Any], Value]:
    """A function that makes the canonical form of what a row has for a field: a string, or of a multi-valued field a
    tuple of them; None for a null. It raises `ValueError` where a value is not of the field's type.

    A multi-valued field may be given a list, text (see [`split_values`]), or a single value. The order of the values
    stays, and nulls and repetitions are dropped; where nothing is left, it is a null.

    Args:
        convert: makes the canonical form of a single value from the raw one, the field's type and its `decimal`.
    """
    single = single_reader(field, convert)
    if not field.is_multi_valued:
        return single
    words = frozenset(map(clean_name, field.null_values))

    def read(value: Any) -> Value:
        if isinstance(value, str):
            value = [] if clean_name(value) in words else split_values(value, field.separator)
        values = value if isinstance(value, list | tuple) else [value]
        return distinct_values(map(single, values))

    return read


def single_reader(field: FlipField, convert: Convert = canonical_value) -> Callable[[Any], str | None]:
    """As [`value_reader`], of a single value of a multi-valued field too."""
    if not field.null_values:
        return lambda value: convert(value, field.type, field.decimal)
    nulls = null_forms(field.null_values, field.type, field.decimal)

    def read(value: Any) -> str | None:
        if isinstance(value, str) and clean_name(value) in nulls:
            return None
        text = convert(value, field.type, field.decimal)
        return None if text in nulls else text

    return read


def distinct_values(values: Iterable[str | None]) -> tuple[str, ...] | None:
    return tuple(dict.fromkeys(value for value in values if value is not None)) or None


# --- lists in text

QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
# a value and what stands behind it: a comma, or (as numpy prints arrays) space alone
LIST_ITEM = re.compile(rf"\s*({QUOTED}|[+-]?[\d.][\w.+-]*|\w+)\s*(?:,|(?<=\s)|$)", re.DOTALL)
SET_ITEM = re.compile(rf"\s*({QUOTED}|[^,'\"{{}}\[\]]*)\s*(?:,|$)", re.DOTALL)
CONSTANTS = {"None": None, "null": None, "nan": None, "NaN": None, "NULL": None}
BARE = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|true|false|True|False")


def split_values(text: str, separator: str) -> list:
    """The values in the text of a multi-valued field.

    Text that is a list as JSON, Python or numpy print it (`["a", "b"]`, `['a', 'b']`, `[1, 2]`), or a set as Python or
    Postgres do (`{a,"b, c"}`), has its values; other text is split at the separator. What merely begins with a bracket
    (`[REC] 2`) is such other text. A value without quotes is read as text: `[007]` keeps its zeros.
    """
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("[]", "{}") and len(inner) > 1:
        values = _literal(inner[1:-1].strip(), LIST_ITEM if inner[0] == "[" else SET_ITEM, inner[0] == "[")
        if values is not None:
            return values
    return text.split(separator)


def _literal(inner: str, item: re.Pattern, is_list: bool) -> list | None:
    """The values between brackets; None where these hold something else."""
    values, at = [], 0
    while at < len(inner):
        match = item.match(inner, at)
        if match is None or match.end() == at:
            return None
        word, at = match[1].strip(), match.end()
        if word[:1] in ("'", '"'):
            try:
                values.append(_unquoted(word))
            except (ValueError, SyntaxError):
                return None
        elif word in CONSTANTS:
            values.append(CONSTANTS[word])
        elif is_list and not BARE.fullmatch(word):
            return None
        else:
            values.append(word)
    return values


def _unquoted(word: str) -> str:
    if word[0] == '"':
        with contextlib.suppress(ValueError):
            return json.loads(word, strict=False)
    return ast.literal_eval(word)
