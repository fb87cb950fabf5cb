# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Raw files to typed Parquet, as a stream: what the readers of all datasets share.

A line of a raw file becomes a row of a typed table, or a `LineLog` keeps it with its number and reason. Neither rows
nor rejected lines pile up in memory.
"""

import gzip
import html
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flip_ctr.data.readers.download import file_md5

MAX_LISTED_LINES = 100  # of a file, in the report; `rejected.parquet` has all
CHUNK_ROWS = 65_536
FILE_BUFFER = 2**20
BLOCK_BYTES, MAX_LINE_BYTES = 2**21, 2**24
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PACKED_NAME = re.compile(r"\.(gz|zst)$", re.IGNORECASE)
MAX_DIGITS = 18  # always fit 64 bits
ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|\w+);")
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
REJECTED_COLUMNS = {"file": pa.string(), "line": pa.int64(), "reason": pa.string(), "text": pa.string()}
SINK_COLUMNS = REJECTED_COLUMNS | {"_file": pa.int32()}  # and what they are ordered by in the end
# of each row of a typed table: its running number, the number of its file in the log, its line in that file
PLACE_COLUMNS = {"_row": pa.int64(), "_file": pa.int32(), "_line": pa.int64()}


class RejectedLine(ValueError):
    """A line that becomes no row: the reason, by which lines are counted, and the text that shows it."""

    def __init__(self, reason: str, text: str):
        super().__init__(reason, text)
        self.reason, self.text = reason, text


class MalformedLine(RejectedLine):
    """A line that cannot be read. A file with too many of them is refused."""


class UnusedLine(RejectedLine):
    """A line that can be read, and that a rule of the dataset leaves out, however many there are."""


@dataclass
class RawChunk:
    """Rows of one file as they stand there.

    Attributes:
        lines: `(rows,)` the number of the line where each begins (in Parquet: of the row).
        columns: of each wanted column the raw values, `(rows,)`.
        text: the number of a row in the chunk to the text that shows it.
    """

    lines: Sequence[int]
    columns: "list[pa.Array | list]"
    text: Callable[[int], str]


@dataclass
class RowChunk:
    """Rows of one file: where they stand, `(rows,)`, and their columns, in the order and with the types of the
    table."""

    file: str
    lines: Sequence[int]
    columns: list[pa.Array]


@dataclass(frozen=True)
class RawTable:
    """One table of a raw dataset.

    Args:
        name: what joins call it.
        columns: its columns and their types.
        files: its files in order, `pathlib.Path` or `zipfile.Path`, by the names under which the log knows them.
        read: reads them all as a stream of [`RowChunk`]s; each line that becomes no row goes to the log.
        texts: a file and rising numbers of lines to these lines as text; `None` where a file has none to show.
    """

    name: str
    columns: dict[str, pa.DataType]
    files: dict[str, Path]
    read: Callable[["LineLog"], Iterator[RowChunk]]
    texts: Callable[[Path, Iterable[int]], Iterator[str]] | None = None


@dataclass
class LineLog:
    """Lines read and rejected, by file.

    Args:
        max_share: share of malformed lines above which a file is refused.
        sink: Parquet file for the rejected lines; without one they are counted only.
    """

    max_share: float = 0.001
    sink: Path | None = None
    files: dict[str, dict] = field(default_factory=dict)
    _waiting: list[tuple] = field(default_factory=list)  # as SINK_COLUMNS
    _writer: pq.ParquetWriter | None = None

    @classmethod
    def silent(cls, name: str) -> "LineLog":
        """A log of one file that refuses nothing."""
        return cls(1.0, files={name: cls.entry()})

    def start(self, name: str, path) -> None:
        self.files[name] = self.entry() | {"md5": file_md5(path)}

    @staticmethod
    def entry() -> dict:
        """What is counted of a file; nothing yet."""
        return {
            "md5": None,
            "lines": 0,
            "malformed": 0,
            "malformed_by_reason": Counter(),
            "first_malformed": [],
            "unused_by_reason": Counter(),
            "values_changed": Counter(),
        }

    def number(self, name: str) -> int:
        return list(self.files).index(name)

    def reject(self, name: str, line: int, error: RejectedLine, text: str) -> None:
        entry = self.files[name]
        if self.sink is not None:
            self._waiting.append((name, line, error.reason, text, self.number(name)))
            if len(self._waiting) >= CHUNK_ROWS:
                self.flush()
        if isinstance(error, UnusedLine):
            entry["unused_by_reason"][error.reason] += 1
            return
        entry["malformed"] += 1
        entry["malformed_by_reason"][error.reason] += 1
        if len(entry["first_malformed"]) < MAX_LISTED_LINES:
            shown = error.text if len(error.text) <= 80 else error.text[:77] + "..."
            entry["first_malformed"].append({"line": line, "reason": error.reason, "text": shown})

    def count_change(self, name: str, kind: str, times: int = 1) -> None:
        """Counts a value that is not kept as it stands in the file."""
        self.files[name]["values_changed"][kind] += times

    def check_table(self, files: dict[str, Path]) -> None:
        """`ValueError` where all files of a table are empty, or one has too many malformed lines."""
        if not any(self.files[name]["lines"] for name in files):
            shown = [str(path) for path in files.values()]
            raise ValueError(
                f"{shown[0]} is empty." if len(shown) == 1 else f"{', '.join(shown[:5])}: all these files are empty."
            )
        for name, path in files.items():
            self._check_share(self.files[name], path)

    def _check_share(self, entry: dict, path) -> None:
        share = entry["malformed"] / max(1, entry["lines"])
        if share > self.max_share:
            entry["first_malformed"].sort(key=lambda one: one["line"])
            first = entry["first_malformed"][:5]
            shown = "; ".join(f"line {one['line']}: {one['reason']}: {one['text']!r}" for one in first)
            raise ValueError(
                f"{path}: {entry['malformed']:,} of {entry['lines']:,} lines are malformed, a share of {share:.4g}; "
                f"--max_malformed_share allows {self.max_share:g}. First: {shown}."
            )

    def flush(self) -> None:
        if self.sink is None:
            return
        schema = pa.schema(SINK_COLUMNS)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.sink, schema)
        if self._waiting:
            columns = [pa.array(column, kind) for column, kind in zip(zip(*self._waiting), SINK_COLUMNS.values())]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
            self._waiting.clear()

    def close(self) -> None:
        """Ends the file of rejected lines, which is there also where there are none; what the engine has found comes in
        its place."""
        for entry in self.files.values():
            entry["first_malformed"].sort(key=lambda one: one["line"])
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


# --- files


class _Unpacked(io.RawIOBase):
    """A packed file, read in pieces: all that can be unpacked comes before the error that it is cut off."""

    def __init__(self, path, file, read: Callable[[int], bytes]):
        self.path, self.file, self.read_some = path, file, read

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        try:
            data = self.read_some(len(target))
        except (EOFError, OSError, zlib.error) as error:  # Arrow's errors and gzip's are OSErrors
            raise DamagedFile(self.path, "", error) from error
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


class DamagedFile(ValueError):
    """A packed file ends too early, or holds what cannot be unpacked."""

    def __init__(self, path, where: str, error: Exception):
        self.path, self.error = path, error
        super().__init__(
            f"{path}: the packed file is cut off or damaged{where} ({error}); fetch it again, or unpack what can be "
            "unpacked and name that."
        )

    def after(self, line: int) -> "DamagedFile":
        """The same, behind so many whole lines."""
        return DamagedFile(self.path, f" after line {line:,}", self.error)


def open_raw(path) -> io.BufferedIOBase:
    """A raw file as bytes, unpacked where its name ends in `.gz` or `.zst`, or its first bytes are those of such a
    file."""
    file = io.BufferedReader(path.open("rb"))
    start = file.peek(4)
    if path.name.endswith(".gz") or start.startswith(GZIP_MAGIC):
        return io.BufferedReader(_Unpacked(path, file, gzip.open(file).read1), FILE_BUFFER)
    if path.name.endswith(".zst") or start.startswith(ZSTD_MAGIC):
        return io.BufferedReader(_Unpacked(path, file, pa.CompressedInputStream(file, "zstd").read), FILE_BUFFER)
    return file


def kind_of(path) -> str:
    """The ending of a file's name that says what it holds, in lower case: `.csv` of `clicks.CSV.gz`."""
    return Path(PACKED_NAME.sub("", path.name)).suffix.lower()


def byte_blocks(path, size: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """A raw file in blocks of whole lines of about `size` bytes, each with the number of its first line. The last may
    lack its end.

    Raises:
        ValueError: a packed file is cut off or damaged, or what should be lines has none.
    """
    number, rest = 1, bytearray()
    try:
        with open_raw(path) as file:
            while data := file.read1(size):
                rest += data
                end = rest.rfind(b"\n") + 1 if len(rest) >= size else 0
                if end:
                    block = bytes(rest[:end])
                    del rest[:end]
                    yield number, block
                    number += block.count(b"\n")
                elif len(rest) > MAX_LINE_BYTES:
                    raise ValueError(
                        f"{path}, line {number:,}: no line feed in {len(rest):,} bytes; expected text in lines."
                    )
    except DamagedFile as error:
        raise error.after(number - 1 + rest.count(b"\n")) from error
    if rest:
        yield number, bytes(rest)


def line_table(
    name: str,
    paths: Any,
    columns: dict[str, pa.DataType],
    table_format: Any,
    sources: Sequence[str],
    parse: Callable[[tuple, Callable[[str], None]], tuple],
    plain: Callable[[list], list[pa.Array] | None] | None = None,
) -> RawTable:
    """A table with a row a line, of one file or of a list of files.

    Args:
        table_format: a `TableFormat`, or [`LinesFormat`].
        sources: the columns of the files that are read.
        parse: their values on a line to those of the row, or a `RejectedLine`; its second argument counts a kind of
            value that is not kept as it stands.
        plain: takes the columns of many lines to those of the rows at once, with the same result, or to `None` where
            that might be another.
    """
    paths = paths if isinstance(paths, list) else [paths]

    def read(log: LineLog) -> Iterator[RowChunk]:
        for path in paths:
            log.start(path.name, path)
            changed = partial(log.count_change, path.name)
            for chunk in table_format.chunks(path.name, path, sources, log):
                lines, arrays = chunk.lines, plain(chunk.columns) if plain is not None else None
                if arrays is None:
                    lines, rows = [], []
                    for at, values in enumerate(zip(*map(as_list, chunk.columns))):
                        try:
                            rows.append(parse(values, changed))
                            lines.append(chunk.lines[at])
                        except RejectedLine as error:
                            log.reject(path.name, chunk.lines[at], error, chunk.text(at))
                    arrays = [pa.array(values, kind) for values, kind in zip(zip(*rows), columns.values())]
                if len(lines):
                    yield RowChunk(path.name, lines, arrays)
            log.check_table({path.name: path})

    return RawTable(name, columns, {path.name: path for path in paths}, read, table_format.texts)


LONGEST_NAME, MOST_NAMES = 60, 60  # of what is listed in an error


def listed(names: Iterable[str]) -> str:
    """The columns of a file for people: where a file has no header, or a damaged one, they may be anything."""
    shown = [name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "..." for name in names]
    more = [f"and {len(shown) - MOST_NAMES:,} more"] if len(shown) > MOST_NAMES else []
    return _printable(", ".join([*shown[:MOST_NAMES], *more]))


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def one_line(error: Exception) -> str:
    """What an error of a library says, without line ends and signs that cannot be printed."""
    return _printable(" ".join(str(error).split()))


def as_list(values: Sequence) -> Sequence:
    return values.to_pylist() if isinstance(values, pa.Array) else values


def write_typed(table: RawTable, target: Path, log: LineLog) -> int:
    """Reads a raw table into one Parquet file, its columns and `PLACE_COLUMNS`; returns the number of rows."""
    rows = 0
    schema = pa.schema(PLACE_COLUMNS | table.columns)
    texts = [
        name for name, kind in table.columns.items() if not pa.types.is_primitive(kind)
    ]  # a dictionary is for them
    with pq.ParquetWriter(target, schema, use_dictionary=texts) as writer:
        for chunk in table.read(log):
            count, lines = len(chunk.lines), chunk.lines
            places = [
                pa.array(np.arange(rows, rows + count), PLACE_COLUMNS["_row"]),
                pa.repeat(pa.scalar(log.number(chunk.file), PLACE_COLUMNS["_file"]), count),
                pa.array(np.arange(lines.start, lines.stop) if isinstance(lines, range) else lines, pa.int64()),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays([*places, *chunk.columns], schema=schema))
            rows += count
    return rows


def texts_at(path, numbers: Iterable[int], encoding: str) -> Iterator[str]:
    """The lines of a raw file at these numbers, which rise."""
    wanted = iter(numbers)
    number = next(wanted, None)
    for first, block in byte_blocks(path):
        end, lines = first + block.count(b"\n") + (not block.endswith(b"\n")), None
        while number is not None and number < end:
            lines = lines or block.split(b"\n")
            yield lines[number - first].decode(encoding, "backslashreplace").rstrip("\r\n")
            number = next(wanted, None)


# --- values


def check_width(values: list, width: int, separator: str, text: str) -> list:
    if len(values) != width:
        raise MalformedLine(f"{len(values)} fields, not {width} separated by {separator!r}", text)
    return values


def whole_number(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise MalformedLine(f"{name} is not a whole number", text)
    return int(text)


def whole_numbers(columns: Sequence, ranges: Mapping[int, range] = {}) -> list[pa.Array] | None:
    """Columns of text as [`whole_number`] reads each value; `None` where one is no plain number.

    Args:
        ranges: where the values of some columns, by number, must lie.
    """
    found = []
    for at, column in enumerate(columns):
        column = column if isinstance(column, pa.Array) else pa.array(column, pa.string())
        if not pc.all(pc.ascii_is_decimal(column)).as_py() or pc.max(pc.binary_length(column)).as_py() > MAX_DIGITS:
            return None
        found.append(column.cast(pa.int64()))
        extremes = pc.min_max(found[-1]).as_py()
        if at in ranges and not {extremes["min"], extremes["max"]} <= set(ranges[at]):
            return None
    return found


TIDY = {
    "HTML entity": lambda text: ENTITY.sub(lambda match: html.unescape(match[0]), text),
    # half a character, which JSON can say and UTF-8 cannot
    "broken character": lambda text: text.encode("utf-8", "replace").decode("utf-8"),
    "control character": lambda text: CONTROL_CHARACTER.sub(" ", text),
    "superfluous space": lambda text: " ".join(text.split()),
}


def tidy(text: str | None, changed: Callable[[str], None], steps: dict[str, Callable[[str], str]] = TIDY) -> str | None:
    """A value as people would write it; `None` if empty.

    Args:
        changed: gets the name of each step that has changed the value.
        steps: names and functions in order; by default HTML entities, broken characters, control characters and
            superfluous spaces are dealt with.
    """
    for kind, step in steps.items() if text else ():
        before, text = text, step(text)
        if text != before:
            changed(kind)
    return text or None
