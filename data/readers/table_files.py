# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Tables in JSON-lines and Parquet files, and the way from files of any format to typed rows.

No file is ever whole in memory, and nothing is guessed: a line that cannot be read goes to the log with its number and
    a reason.
"""

import codecs
import contextlib
import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flip_ctr.data.readers.csv_files import BOM, CsvFormat, LinesFormat, shown, texts_of
from flip_ctr.data.readers.download import fetch_files, is_address
from flip_ctr.data.readers.hive_partitions import PartitionedFormat
from flip_ctr.data.readers.raw_files import (
    BLOCK_BYTES,
    MAX_LINE_BYTES,
    DamagedFile,
    LineLog,
    MalformedLine,
    RawChunk,
    RowChunk,
    one_line,
    open_raw,
)
from flip_ctr.data.readers.table_values import TableColumn, typed_column

PEEKED_LINES = 1_000  # of a JSON-lines file, for its columns and their types
PARQUET_ROWS = 65_536

LOCAL = re.compile(r"(^|::)(file|local):", re.IGNORECASE)  # an address of this machine


def find_files(patterns: Sequence[str], base: Path, owner: str, inside: bool = False) -> list[Path]:
    """The files of paths, addresses and patterns in order, each once; those of another machine as copies here.

    Args:
        inside: whether the files must lie in the base folder, links followed, or on another machine.

    Raises:
        FileNotFoundError: nothing fits a pattern.
        ValueError: what fits is a folder, or lies outside.
        ConnectionError, ImportError: see [`fetch_files`].
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if is_address(pattern) and not (inside and LOCAL.search(pattern)):
            found |= dict.fromkeys(fetch_files(pattern, owner))
            continue
        expanded = Path(pattern).expanduser()
        plain = base / expanded  # first of all: a name may hold the signs of a pattern
        paths = (
            [plain]
            if plain.exists()
            else [base / path for path in sorted(glob.glob(str(expanded), root_dir=base, recursive=True))]
        )
        if inside:  # of what lies elsewhere it is not even told whether it is there
            _require_inside([base / expanded, *paths], base, pattern, owner)
        if not paths:
            raise FileNotFoundError(f"{owner}: no file fits {pattern!r} in {base}.")
        files = [path for path in paths if path.is_file()]
        if not files:
            raise ValueError(
                f"{owner}: {pattern!r} is a folder; name its files, as in '{pattern.rstrip('/')}/*.parquet'."
            )
        found |= dict.fromkeys(Path(os.path.normpath(path)) for path in files)
    return list(found)


def _require_inside(paths: Sequence[Path], base: Path, pattern: str, owner: str) -> None:
    folder = base.resolve()
    if not all(path.resolve().is_relative_to(folder) for path in paths):
        raise ValueError(
            f"{owner}: {pattern!r} lies outside of {base}, and a schema names files in its folder or in --data_dir; "
            "name a folder that holds it with --data_dir, or the events with --data_files"
        )


# --- JSON


@dataclass(frozen=True)
class JsonFormat(PartitionedFormat):
    """A JSON object of columns on each line, or one array of such objects; a column that an object lacks is null there.

    A line that is no such object is rejected. An array that is broken is refused, as nobody can say where its next
    object begins. The objects of an array are numbered from 1.

    Args:
        encoding: of the text; one in which a line feed is a single byte.
    """

    encoding: str = "utf-8"
    sparse = True  # a column may come late, or never

    def file_columns(self, path) -> list[str]:
        return list(self.file_types(path))

    def file_types(self, path) -> dict[str, str | None]:
        """The columns of the first objects and the types of their values, None where they are null or have none of the
        five."""
        found: dict[str, set] = {}
        log = LineLog.silent(path.name)
        _, _, rows = next(self._blocks(path.name, path, log), ((), (), ()))
        for row in rows[:PEEKED_LINES]:
            for name, value in row.items() if isinstance(row, dict) else ():
                found.setdefault(name, set()).add(_json_type(value))
        return {name: _common_type(kinds) for name, kinds in found.items()}

    def texts(self, path, numbers: Iterable[int]) -> Iterator[str]:
        """The lines, or objects of an array, of these numbers, which rise."""
        log = LineLog.silent(path.name)
        read = self.file_chunks if self.is_array(path) else LinesFormat(self.encoding).chunks
        return texts_of(read(path.name, path, [""], log), numbers)

    def is_array(self, path) -> bool:
        """Whether a file is one array of objects."""
        with open_raw(path) as file, contextlib.suppress(DamagedFile):  # which is said, with its line, when it is read
            return file.read(4_096).removeprefix(BOM).lstrip()[:1] == b"["
        return False

    def _blocks(self, name: str, path, log: LineLog) -> Iterator[tuple[Sequence[int], list[str], list]]:
        """Numbers, texts and values of lines, or of the objects of an array; `MalformedLine` as the value of a line
        that has none."""
        if not self.is_array(path):
            for chunk in LinesFormat(self.encoding).chunks(name, path, (), log):
                yield chunk.lines, chunk.columns[0], [self.value(line) for line in chunk.columns[0]]
            return
        for numbers, texts, values in array_blocks(path, self.encoding):
            log.files[name]["lines"] += len(numbers)
            yield numbers, texts, values

    def value(self, line: str) -> Any:
        """The value on a line; `MalformedLine` where there is none, or anything beside it."""
        try:
            try:
                value, end = _JSON.scan_once(line, 0)
            except StopIteration:  # space before it, or broken: `decode` says where
                value, end = _JSON.decode(line), len(line)
        except json.JSONDecodeError as error:
            return MalformedLine(f"broken JSON: {error.msg}", line)
        except MalformedLine as error:
            return MalformedLine(error.reason, line)
        except (ValueError, RecursionError):  # a number of more than 4,300 digits
            return MalformedLine("JSON that is nested too deep, or holds too long a number", line)
        return MalformedLine("text behind a JSON object", line) if line[end:].strip() else value

    def file_chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        width = len(sources)
        pick = itemgetter(*sources) if width > 1 else lambda row: (row[sources[0]],)
        for numbers, texts, rows in self._blocks(name, path, log):
            values, kept = [], []
            for at, row in enumerate(rows):
                if not isinstance(row, dict):
                    reason = row.reason if isinstance(row, MalformedLine) else "not a JSON object of columns"
                    text = shown(texts[at])
                    log.reject(name, numbers[at], MalformedLine(reason, text.strip()), text)
                    continue
                try:
                    values += pick(row)
                except KeyError:  # a column that is not there is null
                    values += [row.get(source) for source in sources]
                kept.append(at)
            if kept:
                columns = [values[place::width] for place in range(width)]
                yield RawChunk([numbers[at] for at in kept], columns, lambda row: shown(texts[kept[row]]))


_SPACE = re.compile(r"[ \t\r\n]*")


def array_blocks(path, encoding: str) -> Iterator[tuple[Sequence[int], list[str], list]]:
    """Numbers from 1, texts and values of the elements of a file that is one JSON array, some at a time.

    Raises:
        ValueError: it is broken, or ends too early; names the line.
    """
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    decode, scan = codecs.getincrementaldecoder(encoding)("surrogateescape").decode, _JSON.raw_decode
    text, at, line, number = "", 0, 1, 0
    signs, value_next = "[", False  # which signs may come next, and whether a value may

    def broken(what: str) -> ValueError:
        return ValueError(
            f"{path}, line {line + text.count(chr(10), 0, at):,}: {what}; correct the array, or write JSON lines, of "
            "which broken ones are left out."
        )

    with open_raw(path) as file:
        while True:
            data, texts, values = file.read(BLOCK_BYTES), [], []
            line += text.count("\n", 0, at)
            text, at = text[at:] + decode(data, not data), 0
            while (at := _SPACE.match(text, at).end()) < len(text):
                if text[at] in signs:
                    signs, value_next = {"[": ("]", True), ",": ("", True), "]": ("", False)}[text[at]]
                    at += 1
                    continue
                if not value_next:
                    raise broken(f"{text[at]!r} where {' or '.join(signs) or 'the end of the file'} is expected")
                try:
                    value, end = scan(text, at)
                except (ValueError, RecursionError) as error:  # broken, or not read to its end yet
                    if data and len(text) - at <= MAX_LINE_BYTES:
                        break
                    raise broken(f"no JSON value ({getattr(error, 'msg', error)})") from None
                if end == len(text) and data:  # a number may go on
                    break
                texts.append(text[at:end])
                values.append(value)
                at, signs, value_next = end, ",]", False
            if values:
                number += len(values)
                yield range(number + 1 - len(values), number + 1), texts, values
            if not data:
                break
    if signs or value_next:
        raise broken("the array does not end")


def _json_object(pairs: list[tuple[str, Any]]) -> dict:
    """A JSON object; `MalformedLine` where a key comes twice, of whose values one would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedLine(f"{twice!r} comes twice in an object", "")
    return row


_JSON = json.JSONDecoder(object_pairs_hook=_json_object)


def _json_type(value) -> str | None:
    kinds = {bool: "bool", int: "int", float: "float", str: "string", type(None): "null"}
    if isinstance(value, list):
        return _common_type(set(map(_json_type, value))) or "null"
    return kinds.get(type(value))


def _common_type(kinds: set) -> str | None:
    kinds = kinds - {"null"}
    if kinds == {"int", "float"}:
        return "float"
    return kinds.pop() if len(kinds) == 1 else None


# --- Parquet


@dataclass(frozen=True)
class ParquetFormat(PartitionedFormat):
    """Parquet, whose columns have types. Rows are numbered from 1."""

    sparse = False
    texts = None

    def file_columns(self, path) -> list[str]:
        return list(self.schema(path).names)

    def schema(self, path) -> pa.Schema:
        with _parquet(path) as file:
            return file.schema_arrow

    def file_types(self, path) -> dict[str, str | None]:
        """The columns and their types: `null` for one without values, None for one of another type than the five."""
        return own_types(self.schema(path))

    def file_chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        with _parquet(path) as file:
            first, metadata = 1, file.metadata
            size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
            rows = min(
                PARQUET_ROWS, max(1, 16 * BLOCK_BYTES * metadata.num_rows // max(1, size))
            )  # long texts: fewer at once
            batches = iter(file.iter_batches(rows, columns=list(dict.fromkeys(sources))))
            while (batch := _next_batch(batches, path)) is not None:
                log.files[name]["lines"] += len(batch)
                yield _chunk(first, batch, sources)
                first += len(batch)

    def spread(self, path, columns: Sequence[str], rows: int) -> Iterator[RawChunk]:
        """The first half of so many rows, and the other half from row groups that lie further back, where there are
        any. Their numbers of lines mean nothing."""
        return self.with_folders(path, columns, lambda own: self._spread(path, own, rows))

    def _spread(self, path, columns: Sequence[str], rows: int) -> Iterator[RawChunk]:
        with _parquet(path) as file:
            groups = file.metadata.num_row_groups
            later = sorted({groups * part // 4 for part in (1, 2, 3)} | {groups - 1}) if groups > 1 else []
            later = [group for group in later if group > 0]
            share = rows // 2 // len(later) if later else 0
            for wanted, left in (
                (range(groups) if not later else [0], rows - share * len(later)),
                *(([group], share) for group in later),
            ):
                for batch in file.iter_batches(
                    max(1, min(left, 4_096)), row_groups=list(wanted), columns=list(columns)
                ):
                    yield _chunk(1, batch.slice(0, left), columns)
                    left -= len(batch)
                    if left <= 0:
                        break


def _chunk(first: int, batch: pa.RecordBatch, sources: Sequence[str]) -> RawChunk:
    columns = [batch.column(source) for source in sources]
    return RawChunk(range(first, first + len(batch)), columns, lambda row: _row_text(batch.slice(row, 1)))


def _row_text(row: pa.RecordBatch) -> str:
    """A batch of one row as text."""
    try:
        values = row.to_pylist()[0]
    except UnicodeDecodeError:  # text that is no UTF-8
        kinds = [pa.binary() if pa.types.is_string(field.type) else field.type for field in row.schema]
        values = row.cast(pa.schema(list(zip(row.schema.names, kinds)))).to_pylist()[0]
    return json.dumps(values, ensure_ascii=False, default=str)


def _parquet(path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no Parquet file, or a damaged one ({one_line(error)}).") from error


def _next_batch(batches: Iterator[pa.RecordBatch], path) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: damaged Parquet ({one_line(error)}).") from error


def own_types(schema: pa.Schema) -> dict[str, str | None]:
    """As [`ParquetFormat.own_types`], of the columns of an Arrow table."""
    return {field.name: _arrow_type(field.type) for field in schema}


def _arrow_type(kind: pa.DataType) -> str | None:
    if (
        pa.types.is_dictionary(kind)
        or pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
    ):
        return _arrow_type(kind.value_type)
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return "int"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "float"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "timestamp"
    return "null" if pa.types.is_null(kind) else None


# --- any of them

TableFormat = CsvFormat | JsonFormat | ParquetFormat


def read_table(
    files: dict[str, Path], table_format: TableFormat, columns: Sequence[TableColumn], log: LineLog
) -> Iterator[RowChunk]:
    """The files of a table as typed rows; a row with a value of another type goes to the log, by its first such column.

    Raises:
        ValueError: a file is damaged, or lacks what its format needs.
    """
    for name, path in files.items():
        log.start(name, path)
        for chunk in table_format.chunks(name, path, [column.source for column in columns], log):
            typed = [typed_column(raw, column) for raw, column in zip(chunk.columns, columns)]
            arrays, wrong = [array for array, _ in typed], {}
            for _, errors in typed:
                wrong = errors | wrong
            for row in sorted(wrong):
                log.reject(name, chunk.lines[row], wrong[row], chunk.text(row))
            lines = chunk.lines
            if wrong:
                kept = [row for row in range(len(lines)) if row not in wrong]
                arrays, lines = (
                    [array.take(pa.array(kept, pa.int64())) for array in arrays],
                    [lines[row] for row in kept],
                )
            if len(lines):
                yield RowChunk(name, lines, arrays)


def sample(table_format: TableFormat, path: Path, columns: Sequence[str], rows: int) -> dict[str, list]:
    """Some rows of a file as Python values, by column: the first ones, in Parquet a part of them from later row
    groups."""
    log, found = LineLog.silent(path.name), {column: [] for column in columns}
    if isinstance(table_format, ParquetFormat):
        chunks = table_format.spread(path, columns, rows)
    else:
        chunks = table_format.chunks(path.name, path, columns, log)
    for chunk in chunks:
        for column, values in zip(columns, chunk.columns):
            left = rows - len(found[column])
            found[column] += values[:left].to_pylist() if isinstance(values, pa.Array) else list(values[:left])
        if len(found[columns[0]]) >= rows:
            break
    return found
