# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Columns that stand in the names of folders: `clicks/date=2024-03-01/part.parquet` has a column `date`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from flip_ctr.data.readers.csv_files import CsvFormat, RawChunk
from flip_ctr.data.readers.literal_lines import LiteralFormat
from flip_ctr.data.readers.raw_files import LineLog
from flip_ctr.data.readers.table_files import JsonFormat, ParquetFormat, TableFormat

FOLDER = re.compile(r"([A-Za-z_][\w.-]*)=(.*)")
NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_values(path: Path) -> dict[str, str | None]:
    """The columns in the names of a file's folders, with their values as text."""
    matches = filter(None, map(FOLDER.fullmatch, path.absolute().parts[:-1]))
    return {match[1]: None if match[2] == NULL else unquote(match[2]) for match in matches}


class _Partitioned:
    """A format whose files have columns in the names of their folders. A column of the file itself counts first."""

    @property
    def _inner(self) -> Any:
        """The plain format."""
        kind: Any = next(one for one in type(self).__mro__ if one in FORMATS)
        return kind(**{one.name: getattr(self, one.name) for one in fields(kind)})

    def columns(self, path) -> list[str]:
        own = self._inner.columns(path)
        return own + [name for name in partition_values(path) if name not in own]

    def own_types(self, path) -> dict[str, str | None]:
        own = self._inner.own_types(path)
        more = dict.fromkeys(partition_values(path), "string") if own else {}
        return more | own

    def chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        own, values = self._inner.columns(path), partition_values(path)
        # a file is read by some column of its own, where none of them is asked for
        inner = [source for source in sources if source in own or source not in values] or own[:1]
        for chunk in self._inner.chunks(name, path, inner, log):
            found = dict(zip(inner, chunk.columns))
            rows = len(chunk.lines)
            columns = [
                found[source] if source in found else pa.repeat(pa.scalar(values[source], pa.string()), rows)
                for source in sources
            ]
            yield RawChunk(chunk.lines, columns, chunk.text)


class _PartitionedCsv(_Partitioned, CsvFormat):
    pass


class _PartitionedJson(_Partitioned, JsonFormat):
    pass


class _PartitionedLiteral(_Partitioned, LiteralFormat):
    pass


class _PartitionedParquet(_Partitioned, ParquetFormat):
    def spread(self, path, columns: Sequence[str], rows: int) -> Iterator[list[pa.Array]]:
        own, values = set(self._inner.columns(path)), partition_values(path)
        inner = [column for column in columns if column in own]
        for arrays in self._inner.spread(path, inner, rows):
            found = dict(zip(inner, arrays))
            yield [
                found[column] if column in found else pa.repeat(pa.scalar(values[column], pa.string()), len(arrays[0]))
                for column in columns
            ]


FORMATS: dict[type, Any] = {
    CsvFormat: _PartitionedCsv,
    JsonFormat: _PartitionedJson,
    LiteralFormat: _PartitionedLiteral,
    ParquetFormat: _PartitionedParquet,
}


def with_partitions(table_format: TableFormat | LiteralFormat, path: Path) -> Any:
    """The format, and where the names of the file's folders hold columns, with these."""
    if not partition_values(path):
        return table_format
    return FORMATS[type(table_format)](
        **{one.name: getattr(table_format, one.name) for one in fields(type(table_format))}
    )
