# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Lines that are no JSON but what Python prints of a dict: `{'user': 1, 'liked': True, 'price': None}`."""

import ast
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from flip_ctr.data.readers.csv_files import RawChunk
from flip_ctr.data.readers.raw_files import LineLog, MalformedLine, raw_blocks

PEEKED_LINES = 1_000  # for the columns and their types
KINDS = {bool: "bool", int: "int", float: "float", str: "string"}


@dataclass(frozen=True)
class LiteralFormat:
    """A dict of columns on each line, as Python writes it; a column that it lacks is null there. Nothing is executed.

    Args:
        encoding: of the text; one in which a line feed is a single byte.
    """

    encoding: str = "utf-8"
    has_lines = True
    sparse = True  # a column may come late, or never

    def columns(self, path) -> list[str]:
        """The columns of the first lines."""
        return list(self.own_types(path))

    def own_types(self, path) -> dict[str, str | None]:
        """The columns of the first lines and the types of their values, None where they are null or have none of the
        five."""
        found: dict[str, set] = {}
        for line in islice((line for block in raw_blocks(path) for line in block), PEEKED_LINES):
            try:
                row = self._row(line)
            except MalformedLine:
                continue
            for name, value in row.items():
                values = value if isinstance(value, list | tuple | set) else [value]
                found.setdefault(name, set()).update(KINDS.get(type(one), "") for one in values if one is not None)
        both = {"int", "float"}
        return {
            name: "null" if not kinds else "float" if kinds == both else kinds.pop() if len(kinds) == 1 else None
            for name, kinds in found.items()
        }

    def _row(self, line: bytes) -> dict:
        """The dict on a line; `MalformedLine` where there is none, or anything beside it."""
        try:
            text = line.decode(self.encoding).lstrip("\ufeff").strip()
        except UnicodeDecodeError:
            text = line.decode(self.encoding, "backslashreplace").rstrip("\r\n")
            raise MalformedLine(f"bytes that are not {self.encoding}", text) from None
        if not text:
            raise MalformedLine("blank line", "")
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd backslashes
                row = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                raise MalformedLine("not a Python dict of columns", text) from None
        if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
            raise MalformedLine("not a Python dict of columns", text)
        return row

    def chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        """The wanted columns of a file; lines that are no dict go to the log."""
        first, blank = 1, []
        for lines in raw_blocks(path):
            numbers, rows, texts = [], [], []
            for number, line in enumerate(lines, first):
                try:
                    row = self._row(line)
                except MalformedLine as error:
                    if not error.text:
                        blank.append((number, error))  # malformed where another line follows
                        continue
                    row = error
                for at, error in [*blank, *([(number, row)] if isinstance(row, MalformedLine) else [])]:
                    log.files[name]["lines"] += 1
                    log.reject(name, at, error, error.text)
                blank.clear()
                if isinstance(row, dict):
                    numbers.append(number)
                    rows.append(row)
                    texts.append(line)
            first += len(lines)
            log.files[name]["lines"] += len(rows)
            columns = [[_listed(row.get(source)) for row in rows] for source in sources]
            text = lambda at, texts=texts: texts[at].decode(self.encoding).rstrip("\r\n")  # noqa: E731
            yield RawChunk(numbers, columns, text)


def _listed(value):
    return list(value) if isinstance(value, set | frozenset) else value
