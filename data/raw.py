# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Raw files to typed Parquet, as a stream: what the readers of all datasets share.

A line of a raw file becomes a row of a typed table, or a `LineLog` keeps it with its number and reason. Neither rows nor
rejected lines pile up in memory.
"""

import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flip_ctr.data.download import file_md5

MAX_LISTED_LINES = 100  # of a file, in the report; `rejected.parquet` has all
CHUNK_ROWS = 65_536
BLOCK_BYTES = 2**21
MAX_LINE_BYTES = 2**24
GZIP_MAGIC = b"\x1f\x8b"
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
class RowChunk:
    """Rows of one file: where they stand, `(rows,)`, and their columns, in the order and with the types of the table."""

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
        has_lines: whether the files are text, whose lines can be shown.
        encoding: of that text.
    """

    name: str
    columns: dict[str, pa.DataType]
    files: dict[str, Path]
    read: Callable[["LineLog"], Iterator[RowChunk]]
    has_lines: bool = True
    encoding: str = "latin-1"


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

    def check(self, name: str, path) -> None:
        """`ValueError` where the file is empty or has too many malformed lines."""
        self.check_table({name: path})

    def check_table(self, files: dict[str, Path]) -> None:
        """`ValueError` where all files of a table are empty, or one has too many malformed lines."""
        if not any(self.files[name]["lines"] for name in files):
            shown = [str(path) for path in files.values()]
            raise ValueError(f"{shown[0]} is empty." if len(shown) == 1 else f"{', '.join(shown[:5])}: all these files are empty.")
        for name, path in files.items():
            self._check_share(self.files[name], path)

    def _check_share(self, entry: dict, path) -> None:
        entry["first_malformed"].sort(key=lambda one: one["line"])
        share = entry["malformed"] / max(1, entry["lines"])
        if share > self.max_share:
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
        """Ends the file of rejected lines, which is there also where there are none; what the engine has found comes in its place."""
        for entry in self.files.values():
            entry["first_malformed"].sort(key=lambda one: one["line"])
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


# --- files -------------------------------------------------------------------------------------------------------------


def open_raw(path) -> io.BufferedIOBase:
    """A raw file as bytes, unpacked where its name ends in `.gz` or its first bytes are gzip's."""
    file = io.BufferedReader(path.open("rb"))
    if path.name.endswith(".gz") or file.peek(2)[:2] == GZIP_MAGIC:
        return gzip.open(file)
    return file


def raw_blocks(path, size: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """A raw file in blocks of whole lines of about `size` bytes, each with the number of its first line. The last may lack its end.

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
                    raise ValueError(f"{path}, line {number:,}: no line feed in {len(rest):,} bytes; expected text in lines.")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, number - 1 + rest.count(b"\n"), error) from error
    if rest:
        yield number, bytes(rest)


def raw_lines(path) -> Iterator[bytes]:
    """The lines of a raw file with their ends. `ValueError` where a packed file is cut off or damaged."""
    number = 0
    try:
        with open_raw(path) as file:
            for number, line in enumerate(file, 1):
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, number, error) from error


def damaged(path, line: int, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: the packed file is cut off or damaged after line {line:,} ({error}); fetch it again, or unpack what can be "
        "unpacked and name that."
    )


def read_rows(
    name: str, path, split: Callable[[str], list], parse: Callable, log: LineLog, header_lines: int = 0, encoding: str = "latin-1"
) -> Iterator[tuple[int, tuple]]:
    """The number of each line and what `parse` makes of the values into which `split` takes it; a line that either refuses goes
    to the log.

    Lines end at line feeds only. Blank lines at the end are ignored, a blank line before that is malformed. Lines of the
    header are neither read nor counted; the others keep their numbers in the file.
    """
    log.start(name, path)
    entry, blank = log.files[name], []
    for number, line in enumerate(raw_lines(path), 1):
        if number <= header_lines:
            continue
        try:
            text = line.decode(encoding).rstrip("\r\n")
        except UnicodeDecodeError as error:
            text = line.decode(encoding, "backslashreplace").rstrip("\r\n")
            log.reject(name, number, MalformedLine(f"bytes that are not {encoding}", repr(line[error.start : error.end])), text)
            entry["lines"] = number - header_lines
            continue
        if not text:
            blank.append(number)
            continue
        for empty in blank:
            log.reject(name, empty, MalformedLine("blank line", ""), "")
        blank.clear()
        entry["lines"] = number - header_lines
        try:
            row = parse(split(text))
        except RejectedLine as error:
            log.reject(name, number, error, text)
        else:
            yield number, row
    log.check(name, path)


def in_chunks(name: str, rows: Iterable[tuple[int, tuple]], columns: dict[str, pa.DataType]) -> Iterator[RowChunk]:
    """Rows as [`read_rows`] gives them, in chunks of bounded size."""
    lines, values = [], []

    def chunk() -> RowChunk:
        arrays = [pa.array(column, kind) for column, kind in zip(zip(*values), columns.values())]
        return RowChunk(name, lines, arrays)

    for line, row in rows:
        lines.append(line)
        values.append(row)
        if len(values) == CHUNK_ROWS:
            yield chunk()
            lines, values = [], []
    if values:
        yield chunk()


def line_table(
    name: str, path, columns: dict[str, pa.DataType], split: Callable[[str], Any], parse: Callable[..., tuple],
    header_lines: int = 0, encoding: str = "latin-1",
) -> RawTable:  # fmt: skip
    """A table of one file with a row a line.

    Args:
        parse: the values of a line to those of the row; its second argument counts a kind of value that is not kept as it
            stands.
    """

    def read(log: LineLog) -> Iterator[RowChunk]:
        changed = partial(log.count_change, path.name)
        rows = read_rows(path.name, path, split, lambda values: parse(values, changed), log, header_lines, encoding)
        return in_chunks(path.name, rows, columns)

    return RawTable(name, columns, {path.name: path}, read, encoding=encoding)


def write_typed(table: RawTable, target: Path, log: LineLog) -> int:
    """Reads a raw table into one Parquet file, its columns and `PLACE_COLUMNS`; returns the number of rows."""
    rows = 0
    schema = pa.schema(PLACE_COLUMNS | table.columns)
    with pq.ParquetWriter(target, schema) as writer:
        for chunk in table.read(log):
            count = len(chunk.lines)
            places = [
                pa.array(range(rows, rows + count), PLACE_COLUMNS["_row"]),
                pa.repeat(pa.scalar(log.number(chunk.file), PLACE_COLUMNS["_file"]), count),
                pa.array(chunk.lines, PLACE_COLUMNS["_line"]),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays([*places, *chunk.columns], schema=schema))
            rows += count
    return rows


def texts_at(path, numbers: Iterable[int], encoding: str = "latin-1") -> Iterator[str]:
    """The lines of a raw file at these numbers, which rise."""
    wanted = iter(numbers)
    number = next(wanted, None)
    for at, line in enumerate(raw_lines(path), 1):
        if number is None:
            return
        if at == number:
            yield line.decode(encoding, "backslashreplace").rstrip("\r\n")
            number = next(wanted, None)


# --- values ------------------------------------------------------------------------------------------------------------


def check_width(values: list, width: int, separator: str, text: str) -> list:
    if len(values) != width:
        raise MalformedLine(f"{len(values)} fields, not {width} separated by {separator!r}", text)
    return values


def whole_number(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 18:  # 18 digits always fit 64 bits
        raise MalformedLine(f"{name} is not a whole number", text)
    return int(text)
