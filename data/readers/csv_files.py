# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Tables in CSV files: a record is a row, or a rejected line with its number and a reason, and never shifted in
silence.

Blocks of lines that are a record each go through Arrow; records of several lines and broken ones are read record by
record. DuckDB's reader cannot take their place: it does not say on which line a row stands, skips blank lines, refuses
a whole file for mixed line ends, and gives the first part of a packed file that is cut off as if that were all.
"""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from flip_ctr.data.readers.hive_partitions import PartitionedFormat
from flip_ctr.data.readers.raw_files import (
    LineLog,
    MalformedLine,
    RawChunk,
    RawTable,
    byte_blocks,
    line_table,
    texts_at,
)
from flip_ctr.modeling_flip.values_flip import clean_name

BOM = codecs.BOM_UTF8
UNCLOSED = "a quote that does not end, or text behind a closing quote"


def is_separator_line(line: str) -> bool:
    """Whether a first line only tells a spreadsheet what separates values: `sep=;`."""
    return re.fullmatch(r'"?sep=(.|\\t)"?\s*', line) is not None


@dataclass(frozen=True)
class CsvFormat(PartitionedFormat):
    """Text of values between delimiters.

    Args:
        delimiter: between two values; of more than one character only where there are no quotes.
        quote: around a value that may hold delimiters, line ends and (doubled) quotes; `None` where a quote is a
            character like others.
        escape: before a character that means only itself; `None` where there is none.
        encoding: of the text; one in which a line feed is a single byte.
        column_names: of a file without a header; `None` where the first line holds the names.
    """

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    encoding: str = "utf-8"
    column_names: tuple[str, ...] | None = None
    sparse = False

    @cached_property
    def _is_utf8(self) -> bool:
        return codecs.lookup(self.encoding).name == "utf-8"

    def file_columns(self, path) -> list[str]:
        return list(self.column_names) if self.column_names is not None else self._header(path)[0]

    def file_types(self, path) -> dict[str, str | None]:
        return {}

    def texts(self, path, numbers: Iterable[int]) -> Iterator[str]:
        """The records that begin at the lines of these numbers, which rise."""
        log = LineLog.silent(path.name)
        return texts_of(self.file_chunks(path.name, path, self.file_columns(path)[:1], log), numbers)

    def _blocks(self, path) -> Iterator[tuple[int, bytes]]:
        for number, block in byte_blocks(path):
            yield number, block.removeprefix(BOM) if number == 1 and self._is_utf8 else block

    def _header(self, path) -> tuple[list[str], int]:
        """The names of the columns, and the number of lines before the first row."""
        first = next(self._blocks(path), (1, b""))[1]
        if not first and self.column_names is None:
            raise ValueError(f"{path} is empty; expected a first line with the names of the columns.")
        lines, broken = text_lines(first, self.encoding)
        skip = int(bool(lines) and is_separator_line(lines[0]))
        if self.column_names is not None:
            return list(self.column_names), skip
        records = self.records(lines, skip)
        try:
            names = next(records, None)
        except csv.Error:
            raise ValueError(
                f"{path}, line 1: {UNCLOSED}, or lines that end in carriage returns; expected the names of the columns."
            ) from None
        if names is None:
            raise ValueError(f"{path} is empty; expected a line with the names of the columns.")
        if broken and not all(map(is_text, names)) and "\0" not in "".join(names):
            raise ValueError(
                f"{path}, line {skip + 1} holds bytes that are not {self.encoding}: {shown(','.join(names))[:80]!r}"
            )
        if not names or "\0" in "".join(names):
            what = "is blank" if not names else f"holds NUL bytes (it is no text, or not in {self.encoding})"
            raise ValueError(f"{path}, line 1 {what}; expected the names of the columns between {self.delimiter!r}.")
        return [clean_name(name) for name in names], skip + records.line_num

    def records(self, lines: list[str], at: int = 0) -> "csv.reader | _SplitLines":
        """The records of lines of text, from that place on; `line_num` is how many lines they have taken."""
        lines = iter(lines)
        lines.__setstate__(at)  # no copy: where many records are broken, each begins anew
        if len(self.delimiter) > 1:
            return _SplitLines(lines, self.delimiter)
        quoting = csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE
        return csv.reader(
            lines, delimiter=self.delimiter, quotechar=self.quote, escapechar=self.escape, quoting=quoting, strict=True
        )

    def file_chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        names, skip = self._header(path)
        places = [names.index(source) for source in sources]
        careful = _CarefulReader(self, name, names, places, log)
        blocks = _with_last(self._blocks(path))
        for number, block, last in blocks:
            if number == 1 and skip:
                number, block = 1 + skip, (block.split(b"\n", skip) + [b""])[skip]
            chunk = None if careful.held or careful.suspect else self._plain_chunk(number, block, len(names), places)
            if chunk is None:
                chunk = careful.chunk(number, block, last)
            else:
                careful.blank.settle(number)
            if len(chunk.lines):
                log.files[name]["lines"] += len(chunk.lines)
                yield chunk

    def _plain_chunk(self, first: int, block: bytes, width: int, places: list[int]) -> RawChunk | None:
        """A block of which each line is a record, which Arrow takes apart just as it stands; else None."""
        if (self.escape and self.escape.encode() in block) or block.startswith((b"\n", b"\r", BOM)) or b"\n\n" in block:
            return None
        if b"\r" in block and (block.count(b"\r") != block.count(b"\r\n") or b"\n\r\n" in block):
            return None
        count = block.count(b"\n") + (not block.endswith(b"\n"))
        try:
            text = block if self._is_utf8 else block.decode(self.encoding).encode()
            quoted, delimiter = self.quote is not None and self.quote.encode() in text, self.delimiter
            if quoted:
                record = f"^{self._value}(?:{re.escape(delimiter)}{self._value})*$"
                if not pc.all(pc.match_substring_regex(_arrow_csv(text, 1, [0], SIGN)[0], record)).as_py():
                    return None
            if len(delimiter.encode()) > 1:  # Arrow takes a single byte
                if quoted or SIGN.encode() in text:
                    return None
                text, delimiter = text.replace(delimiter.encode(), SIGN.encode()), SIGN
            columns = _arrow_csv(text, width, places or [0], delimiter, self.quote if quoted else False)
        except (pa.ArrowInvalid, UnicodeDecodeError):  # too few or too many values, bytes of another encoding
            return None
        if len(columns[0]) != count:
            return None
        return RawChunk(range(first, first + count), columns[: len(places)], _LazyLines(block, self.encoding))

    @cached_property
    def _value(self) -> str:
        """Regular expression of a value."""
        quote, delimiter = re.escape(self.quote), re.escape(self.delimiter)
        return f"(?:{quote}(?:[^{quote}]|{quote}{quote})*{quote}|[^{quote}{delimiter}][^{delimiter}]*)?"

    def why(self, error: csv.Error, line: str, names: list[str]) -> str:
        """What is wrong with the first line of what is no record."""
        if "new-line character" in str(error):
            return "a carriage return inside a line"
        if self.quote is None or ("field limit" in str(error) and self.quote not in line):
            return (
                f"a value of more than {csv.field_size_limit():,} characters"
                if "field limit" in str(error)
                else "a value that does not end"
            )
        at = self._unclosed(line)
        return f"{names[at]}: {UNCLOSED}" if at < len(names) else UNCLOSED

    def _unclosed(self, line: str) -> int:
        """The number of the value whose quote is wrong, on the first line of a record."""
        value = re.compile(rf"{self._value}(?:{re.escape(self.delimiter)}|$)")
        at, start, text = 0, 0, line.rstrip("\r\n")
        while (match := value.match(text, start)) and match.end() > start:
            at, start = at + 1, match.end()
        return at


def texts_of(chunks: Iterable[RawChunk], numbers: Iterable[int]) -> Iterator[str]:
    """The texts of the rows of these numbers, which rise."""
    wanted = iter(numbers)
    number = next(wanted, None)
    for chunk in chunks:
        if number is None:
            return
        for row, line in enumerate(chunk.lines if number <= chunk.lines[-1] else ()):
            if line == number:
                yield chunk.text(row)
                number = next(wanted, None)


SIGN = "\x1f"  # which text does not hold; a block that does is read record by record


def _arrow_csv(text: bytes, width: int, places: list[int], delimiter: str, quote: str | bool = False) -> list[pa.Array]:
    """Columns of lines that Arrow takes apart; `ArrowInvalid` where one has another number of values."""
    numbers = list(map(str, range(width)))
    table = pyarrow.csv.read_csv(
        pa.py_buffer(text),
        pyarrow.csv.ReadOptions(column_names=numbers, use_threads=False, block_size=len(text) + 1),
        pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=quote),
        pyarrow.csv.ConvertOptions(
            include_columns=list(dict.fromkeys(numbers[place] for place in places)),
            column_types=dict.fromkeys(numbers, pa.string()),
            strings_can_be_null=False,
        ),
    )
    return [table.column(numbers[place]).combine_chunks() for place in places]


class _CarefulReader:
    """The blocks of a CSV file record by record: values in quotes, records of several lines, and lines that are no
    record.

    A line whose quote does not end is rejected alone, and the lines behind it are read as if it were not there. A
    record of the wrong number of values is rejected whole.

    Attributes:
        held: the first lines of a record that goes on in the next block.
        suspect: whether a quote did not end, so that the next lines may lie inside a value.
        blank: blank lines of which it is not yet known whether another line follows.
    """

    def __init__(self, csv_format: CsvFormat, name: str, names: list[str], places: list[int], log: LineLog):
        self._format, self._name, self._names, self._places, self._log = csv_format, name, names, places, log
        self.held: list[str] = []
        self.blank = BlankLines(name, log)
        self.suspect = False

    def chunk(self, number: int, block: bytes, last: bool) -> RawChunk:
        """The records that end in the block; `number` is that of its first line."""
        lines, broken = text_lines(block, self._format.encoding)
        first, lines = number - len(self.held), self.held + lines
        broken = broken or not all(map(is_text, self.held))
        self.held, at = [], 0
        width, values, starts, ends = len(self._names), [], [], []
        text = lambda start, end: shown("".join(lines[start:end]))  # noqa: E731
        while at < len(lines):
            records, end = self._format.records(lines, at), at
            try:
                for row in records:
                    end, start = at + records.line_num, end
                    if len(row) != width or broken or self.suspect:
                        reason = self._why_not(row, first + start, broken)
                        if reason is not None:
                            self._reject(first + start, reason, text(start, end))
                        if reason is not None or not row:
                            continue
                    values += row  # in one list: so many lists would keep Python's collector busy
                    starts.append(start)
                    ends.append(end)
                at = end
            except csv.Error as error:
                if "unexpected end" in str(error) and not last:
                    self.held, at = lines[end:], len(lines)
                else:
                    self.suspect, at = self._format.quote is not None, end + 1
                    self._reject(
                        first + end, self._format.why(error, lines[end].rstrip("\r\n"), self._names), text(end, at)
                    )
        if starts:
            self.blank.settle(first + starts[-1])
        columns = [values[place::width] for place in self._places]
        return RawChunk([first + start for start in starts], columns, lambda row: text(starts[row], ends[row]))

    def _why_not(self, row: list[str], number: int, broken: bool) -> str | None:
        """Why a record is none, if it is none; a blank line is noted and is none yet."""
        quote = self._format.quote
        if not row:
            self.blank.add(number)
            return None
        if len(row) != len(self._names):
            return f"values: {len(row)} for {len(self._names)} columns"
        if self.suspect and any(quote in value for value in row):
            return "a quote behind a line whose quote does not end"
        wrong = (self._names[at] for at in self._places if broken and not is_text(row[at]))
        reason = next((f"{column} holds bytes that are not {self._format.encoding}" for column in wrong), None)
        self.suspect = self.suspect and reason is not None
        return reason

    def _reject(self, number: int, reason: str, text: str) -> None:
        self.blank.settle(number)
        self._log.files[self._name]["lines"] += 1
        self._log.reject(self._name, number, MalformedLine(reason, text), text)


def is_text(text: str) -> bool:
    """Whether there are no half characters in it, which stand for bytes that could not be decoded."""
    return not re.search("[\ud800-\udfff]", text)


def shown(text: str) -> str:
    """Text as people read it, bytes that could not be decoded by their codes."""
    return re.sub("[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text).rstrip("\r\n")


def text_lines(block: bytes, encoding: str) -> tuple[list[str], bool]:
    """The lines of a block with their ends, and whether it could not be decoded; such bytes then stand in them as half
    characters."""
    try:
        text, broken = block.decode(encoding), False
    except UnicodeDecodeError:
        text, broken = block.decode(encoding, "surrogateescape"), True
    return list(io.StringIO(text, newline="\n")), broken


def _with_last(blocks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, bool]]:
    """Numbered blocks, each with whether it is the last."""
    before = next(blocks, None)
    while before is not None:
        following = next(blocks, None)
        yield *before, following is None
        before = following


class _SplitLines:
    """Lines split at a delimiter of several characters, as `csv.reader` gives them."""

    def __init__(self, lines: Iterator[str], delimiter: str):
        self._lines, self._delimiter, self.line_num = lines, delimiter, 0

    def __iter__(self) -> "_SplitLines":
        return self

    def __next__(self) -> list[str]:
        text = next(self._lines).rstrip("\r\n")
        self.line_num += 1
        return text.split(self._delimiter) if text else []


class _LazyLines:
    """The lines of a block as text, taken apart when the first is asked for."""

    def __init__(self, block: bytes, encoding: str):
        self._block, self._encoding, self._lines = block, encoding, None

    def __call__(self, row: int) -> str:
        self._lines = self._lines or self._block.split(b"\n")
        return self._lines[row].decode(self._encoding, "backslashreplace").rstrip("\r")


@dataclass(frozen=True)
class LinesFormat:
    """Lines as they stand: a table of one column.

    Args:
        encoding: of the text; one in which a line feed is a single byte.
        header_lines: lines that are neither read nor counted; the others keep their numbers.
    """

    encoding: str = "utf-8"
    header_lines: int = 0

    def texts(self, path, numbers: Iterable[int]) -> Iterator[str]:
        """The lines of these numbers, which rise."""
        return texts_at(path, numbers, self.encoding)

    def chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        """The lines without their ends, in one column; those with bytes of another encoding go to the log."""
        blank = BlankLines(name, log)
        for first, block in byte_blocks(path):
            lines, broken = text_lines(block.removeprefix(BOM) if first == 1 else block, self.encoding)
            numbers, texts = [], []
            for number, line in enumerate(lines, first):
                text = line.rstrip("\r\n")
                if number <= self.header_lines:
                    continue
                if not text or text.isspace():
                    blank.add(number)
                    continue
                log.files[name]["lines"] += 1
                if broken and not is_text(text):
                    blank.settle(number)
                    log.reject(
                        name, number, MalformedLine(f"bytes that are not {self.encoding}", shown(text)), shown(text)
                    )
                else:
                    numbers.append(number)
                    texts.append(text)
            if numbers:
                blank.settle(numbers[-1])
                yield RawChunk(numbers, [texts], texts.__getitem__)


def text_table(
    name: str,
    paths: Any,
    columns: dict[str, pa.DataType],
    split: Callable[[str], Any],
    parse: Callable[[Any, Callable[[str], None]], tuple],
    table_format: LinesFormat,
    plain: Callable[[list], list[pa.Array] | None] | None = None,
) -> RawTable:
    """A table of lines in a format of their own: `parse` gets the values into which `split` takes a line; see
    [`line_table`]."""
    return line_table(
        name, paths, columns, table_format, ("line",), lambda line, changed: parse(split(line[0]), changed), plain
    )


class BlankLines:
    """Blank lines: ignored at the end of a file, malformed where another line follows."""

    def __init__(self, name: str, log: LineLog):
        self._name, self._log, self._numbers = name, log, []  # ranges, as there may be very many

    def add(self, number: int) -> None:
        if self._numbers and self._numbers[-1].stop == number:
            self._numbers[-1] = range(self._numbers[-1].start, number + 1)
        else:
            self._numbers.append(range(number, number + 1))

    def settle(self, number: int) -> None:
        """There is a line of this number: the blank ones before it are malformed."""
        while self._numbers and self._numbers[0].start < number:
            for blank in self._numbers.pop(0):
                self._log.files[self._name]["lines"] += 1
                self._log.reject(self._name, blank, MalformedLine("blank line", ""), "")
