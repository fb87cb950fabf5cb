# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""How a text of values between delimiters is to be read: DuckDB's sniffer, checked with the reader of `prepare`."""

import re
from pathlib import Path
from typing import Any

import duckdb

from flip_ctr.data.datasets.schema_guess import LABEL_WORDS, RATING_WORDS, TIME_WORDS, words_of
from flip_ctr.data.readers.csv_files import CsvFormat, is_separator_line
from flip_ctr.data.readers.raw_files import LineLog
from flip_ctr.data.readers.table_files import sample

MORE_DELIMITERS = ("::", "\x01", "^", "~", " ")  # which DuckDB does not try
SNIFF = "SELECT Delimiter, Quote, Escape, Comment, SkipRows, HasHeader FROM sniff_csv(?, sample_size = 20480)"
NUMBER = re.compile(r"-?\d+([.,]\d+)?")


def sniff_csv(path: Path, cut: Path, text: str, kind: str, encoding: str) -> dict[str, Any]:
    """What a schema must say of a text: `delimiter`, `quote`, `escape` and `column_names`, where they are not what it
    takes without a word.

    Args:
        path: the file, for errors.
        cut: its first lines as a file, and `text`, the same decoded.
        kind: `csv` or `tsv`.

    Raises:
        ValueError: lines before the header are no rows.
    """
    if not text:
        return {}
    lines = [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]
    lines = lines[is_separator_line(lines[0]) :]
    usual = "\t" if kind == "tsv" else ","
    delimiter, quoting, skipped, has_header = _sniffed(lines, cut, usual)
    if skipped and lines[0].count(delimiter) != lines[-1].count(delimiter):
        raise ValueError(
            f"{path}: the first {skipped} line(s), such as {lines[0].strip()[:60]!r}, are no rows of the table; remove "
            "them."
        )
    if lines and delimiter not in lines[0]:
        widths = {one: {line.count(one) for line in lines[:1_000]} for one in MORE_DELIMITERS}
        delimiter = next((one for one, counts in widths.items() if len(counts) == 1 and counts != {0}), usual)

    def reader(said: dict[str, Any]) -> CsvFormat:
        quote = {"quote": None} if len(delimiter) > 1 else {}
        names = {"column_names": tuple(said["column_names"])} if "column_names" in said else {}
        return CsvFormat(**{"delimiter": delimiter} | quote | said | names, encoding=encoding)

    # as usual, as DuckDB has found it, without quotes: what makes the least lines malformed
    ways = [{}] if len(delimiter) > 1 else [{}, quoting, {"quote": None}]
    said = min(ways, key=lambda way: _malformed(reader(way), cut))
    said = {key: value for key, value in said.items() if value != {"quote": '"', "escape": None}[key]}
    said = ({} if delimiter == usual else {"delimiter": delimiter}) | said
    names = reader(said).columns(cut)
    places = [f"c{number}" for number in range(len(names))]
    if not _is_header(reader(said | {"column_names": places}), cut, names, has_header):
        said["column_names"] = places
    return said


def _sniffed(lines: list[str], cut: Path, usual: str) -> tuple[str, dict[str, Any], int, bool]:
    """What DuckDB says of lines: delimiter, quote and escape, lines to skip, and whether the first is a header."""
    copy = cut.with_name("sniffed.csv")
    copy.write_text("\n".join([*lines, ""]), encoding="utf-8", newline="")
    try:
        with duckdb.connect() as connection:
            found = connection.execute(SNIFF, [str(copy)]).fetchone()
    except duckdb.Error:  # one line, or of many shapes
        return usual, {}, 0, True
    finally:
        copy.unlink()
    delimiter, quote, escape, comment = (None if one in ("(empty)", "") else one for one in found[:4])
    skipped = found[4]
    while comment and skipped < len(lines) and lines[skipped].startswith(comment):
        skipped += 1
    quoting = {"quote": quote, "escape": None if escape == quote else escape} if quote else {}
    return delimiter or usual, quoting, skipped, found[5]


def _malformed(reader: CsvFormat, path: Path) -> int:
    """How many lines cannot be read so."""
    log = LineLog.silent(path.name)
    try:
        for _ in reader.chunks(path.name, path, reader.columns(path)[:1], log):
            pass
    except ValueError:  # no header
        return 2**62
    return log.files[path.name]["malformed"]


def _is_header(reader: CsvFormat, path: Path, names: list[str], sniffed: bool) -> bool:
    """Whether the first line holds names: DuckDB goes by types, which say nothing where all is text.

    Args:
        reader: that takes the first line for values, of columns with the names that it has.
    """
    values = sample(reader, path, list(reader.column_names or ()), 1_000)
    columns = [[" ".join(value.split()) for value in column[1:]] for column in values.values()]
    if not any(columns) or names == [str(number) for number in range(len(names))]:
        return True
    again = sum(name in column for name, column in zip(names, columns) if name)
    if 2 * again >= len(names):
        return False
    if any(NUMBER.fullmatch(name) and any(map(NUMBER.fullmatch, column)) for name, column in zip(names, columns)):
        return False
    known = {*LABEL_WORDS, *RATING_WORDS, *TIME_WORDS, "id", "user", "item", "name", "title"}
    return sniffed or (len(set(names)) == len(names) and any(words_of(name) & known for name in names))
