"""What must hold of a table that was read, found out without the readers: each line is in a row or in a rejected line,
and a row has the values that stand on its lines."""

import gzip
import json
import math
import re
import unicodedata
import zlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from broken_tables import COLUMNS, TYPES, BrokenTable, Dialect

UNKNOWN = object()  # a value of which these few rules do not say what becomes of it
PLAIN_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,9})?")


@dataclass
class Read:
    """What a reader made of a file.

    Attributes:
        rows: `{line: {column: typed value}}`.
        rejected: (line, reason, text).
        lines: how many rows and rejected lines it counted.
    """

    rows: dict[int, dict]
    rejected: list[tuple[int, str, str]]
    lines: int


def check_error(error: BaseException, *names: str) -> None:
    """`AssertionError` where an error is not one that people understand: it is a named one, of one line, and names one
    of the files."""
    shown = str(error)
    kind = type(error)
    ours = kind.__module__.startswith("flip_ctr") and issubclass(kind, ValueError)
    assert ours or kind in (ValueError, FileNotFoundError), f"{type(error).__name__} instead of a named error: {shown}"
    assert "\n" not in shown and "\r" not in shown, f"an error of several lines: {shown}"
    assert any(name in shown for name in names), f"an error that does not name the file: {shown}"
    assert len(shown) < 2_000, f"an error of {len(shown):,} characters: {shown[:200]}"
    assert is_printable(shown), f"an error that cannot be printed: {shown!r}"


def is_printable(text: str) -> bool:
    """Whether there are neither control characters nor halves of characters in it."""
    return not any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in text)


# --- text


def unpacked(data: bytes) -> bytes | None:
    """The bytes of a file, unpacked where they are packed; None where that fails."""
    try:
        return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (EOFError, OSError, zlib.error):
        return None


def check_text(table: BrokenTable, read: Read, separator: str) -> None:
    """`AssertionError` where a line of a text file is in no row and in no rejected line, or a row has other values."""
    data = unpacked(table.data)
    assert data is not None, "a damaged package was read as if it were whole"
    data = data.removeprefix(b"\xef\xbb\xbf") if table.dialect.encoding == "utf-8" else data
    lines = re.findall(rb"[^\n]*\n|[^\n]+$", data)
    dialect = table.dialect
    numbers = [*read.rows, *(line for line, _, _ in read.rejected)]
    starts = sorted(set(numbers))
    assert len(starts) == len(numbers), f"a line is in two records: {sorted(numbers)}"
    assert read.lines == len(numbers), f"{read.lines} lines are counted, {len(numbers)} were found"
    is_json = dialect.format == "jsonl"
    # what a first line `sep=;` says is for spreadsheets
    skipped = int(not is_json and bool(lines) and re.fullmatch(rb'"?sep=(.|\\t)"?\s*', lines[0]) is not None)
    taken = skipped
    if not is_json and dialect.header:
        taken += header_lines(lines[skipped:], dialect)
    last = len(lines)
    while last > taken and _is_blank(lines[last - 1], dialect):
        last -= 1
    assert bool(starts) == (last > taken), f"lines {taken + 1} to {last} hold something, records begin at {starts}"
    if not starts:
        return
    assert starts[0] == taken + 1, f"the first record begins at line {starts[0]}, the text at {taken + 1}"
    assert starts[-1] <= last, f"a record begins at line {starts[-1]} of {last}"
    names = columns_of(b"".join(lines[skipped:taken]), dialect) if taken > skipped else COLUMNS
    rejected = {line: (reason, text) for line, reason, text in read.rejected}
    for start, end in zip(starts, [*starts[1:], last + 1]):
        span = b"".join(lines[start - 1 : end - 1])
        if start in rejected:
            _check_rejected(start, span, *rejected[start], dialect)
        else:
            _check_row(start, span, read.rows[start], names, dialect, separator)
    _check_whole(table, read, rejected)


def _is_blank(line: bytes, dialect: Dialect) -> bool:
    """Whether a line behind the last record is none."""
    if dialect.format == "jsonl":
        return not line.decode(dialect.encoding, "surrogateescape").strip()
    return not line.strip(b"\r\n")


def _check_rejected(start: int, span: bytes, reason: str, text: str, dialect: Dialect) -> None:
    assert reason and is_printable(reason), f"line {start}: the reason {reason!r}"
    covered, wanted = text.rstrip("\r\n").count("\n"), span.rstrip(b"\r\n").count(b"\n")
    assert covered == wanted, f"line {start}: {covered + 1} of {wanted + 1} lines are shown of what was rejected"
    first = span.split(b"\n")[0].decode(dialect.encoding, "ignore").strip()
    assert bool(first) <= bool(text), f"line {start}: {text!r} is shown of what was rejected, and the line is {first!r}"


def _check_row(start: int, span: bytes, row: dict, names: list[str], dialect: Dialect, separator: str) -> None:
    if dialect.format == "jsonl":
        # spaces of any kind behind an object are none of it
        pairs = json.loads(span.decode(dialect.encoding).strip(), object_pairs_hook=list)
        values = dict(pairs)
        twice = [name for name in row if [key for key, _ in pairs].count(name) > 1]
        assert not twice, f"line {start}: '{twice[0]}' is twice in the object, and one value was taken"
    else:
        cells = record(span.decode(dialect.encoding, "surrogateescape"), dialect)
        assert cells is not None, f"line {start} is a row, and {span[:200]!r} is no record"
        assert len(cells) == len(names), f"line {start} is a row of {len(cells)} values for {len(names)} columns"
        values = dict(zip(names, cells))
    for name in row:
        check_value(f"line {start}", name, row[name], values.get(name), separator)


def _check_whole(table: BrokenTable, read: Read, rejected: dict[int, tuple[str, str]]) -> None:
    """Rows that nothing was done to are there as they were."""
    if unpacked(table.data) != table.text() or not table.is_headed:
        return
    for line, clean in table.whole().items():
        if line in read.rows:
            for name, value in read.rows[line].items():
                check_value(f"line {line}, which is as it was,", name, value, clean[name], "\0")
        elif line in rejected:
            reason = rejected[line][0]  # a quote before it may make its own a doubtful one
            assert "quote" in reason, f"line {line}, which is as it was, is rejected: {reason}"


def header_lines(lines: list[bytes], dialect: Dialect) -> int:
    """How many lines the header takes."""
    for count in range(1, len(lines) + 1):
        text = b"".join(lines[:count]).decode(dialect.encoding, "surrogateescape")
        if record(text, dialect) is not None:
            return count
    raise AssertionError("rows were read below a header that does not end")


def columns_of(data: bytes, dialect: Dialect) -> list[str]:
    names = record(data.decode(dialect.encoding, "surrogateescape"), dialect)
    return [tidied(name) or "" for name in names]


def record(text: str, dialect: Dialect) -> list[str] | None:
    """The values of a text that is one CSV record and nothing else; None where it is none."""
    delimiter, quote, escape = dialect.delimiter, dialect.quote, dialect.escape
    values, at, size = [], 0, len(text)
    while True:
        value = []
        if quote and text.startswith(quote, at):
            at += 1
            while True:
                if at >= size:
                    return None
                one = text[at]
                if escape and one == escape and at + 1 < size:
                    value.append(text[at + 1])
                    at += 2
                elif one == quote and text.startswith(quote, at + 1):
                    value.append(quote)
                    at += 2
                elif one == quote:
                    at += 1
                    break
                else:
                    value.append(one)
                    at += 1
        else:
            ends = "\n" if len(delimiter) > 1 else "\r\n"  # where text is only split, a carriage return is a character
            while at < size and not text.startswith(delimiter, at) and text[at] not in ends:
                if escape and text[at] == escape:
                    at += 1
                    if at >= size:
                        return None
                value.append(text[at])
                at += 1
        values.append("".join(value))
        if text.startswith(delimiter, at):
            at += len(delimiter)
        elif not text[at:].strip("\r\n"):  # blank lines behind the last record belong to none
            return values
        else:
            return None


# --- values


def tidied(text: str) -> str | None:
    return unicodedata.normalize("NFC", " ".join(text.split())) or None


def check_value(where: str, name: str, found: Any, raw: Any, separator: str, tolerance: float = 1e-12) -> None:
    wanted = expected(raw, TYPES[name], separator)
    if wanted is UNKNOWN:
        return
    same = found == wanted
    if isinstance(found, float) and isinstance(wanted, float):
        same = math.isclose(found, wanted, rel_tol=tolerance)
    assert same, f"{where} '{name}' was read as {found!r} and is {raw!r}"


def expected(raw: Any, kind: str, separator: str) -> Any:
    """What a value is read as: `UNKNOWN` where it may be more than one thing."""
    if raw is None or (isinstance(raw, float | Decimal) and raw != raw):
        return None
    if isinstance(raw, str) and tidied(raw) is None:
        return None
    if kind == "list":
        parts = raw.split(separator) if isinstance(raw, str) else raw if isinstance(raw, list) else [raw]
        values = [expected(part, "string", separator) for part in parts]
        return UNKNOWN if UNKNOWN in values else [one for one in dict.fromkeys(values) if one is not None] or None
    if kind == "string":
        return tidied(raw) if isinstance(raw, str) else UNKNOWN
    if kind == "bool":
        known = {"true": True, "1": True, "false": False, "0": False}
        return raw if isinstance(raw, bool) else known.get(str(raw).strip().lower(), UNKNOWN)
    if kind == "timestamp":
        return _time(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | float | Decimal | str):
        return UNKNOWN
    if isinstance(raw, str):
        if not PLAIN_NUMBER.fullmatch(raw.strip()):
            return UNKNOWN
        raw = Decimal(raw.strip())
    if kind == "float":
        return float(raw) if math.isfinite(raw) else UNKNOWN
    return int(raw) if math.isfinite(raw) and int(raw) == raw else UNKNOWN


def _time(raw: Any) -> Any:
    if isinstance(raw, str):
        try:
            raw = datetime.fromisoformat(raw.strip()) if not raw.strip().isdecimal() else None
        except ValueError:
            return UNKNOWN
    if isinstance(raw, datetime):
        raw = raw.to_pydatetime(warn=False) if hasattr(raw, "to_pydatetime") else raw
        return raw.astimezone(UTC).replace(tzinfo=None) if raw.tzinfo else raw
    return datetime.combine(raw, time()) if isinstance(raw, date) else UNKNOWN
