# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Columns that stand in the names of folders: `clicks/date=2024-03-01/part.parquet` has a column `date`."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from flip_ctr.data.readers.raw_files import LineLog, RawChunk

FOLDER = re.compile(r"([A-Za-z_][\w.-]*)=(.*)")
NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_values(path: Path) -> dict[str, str | None]:
    """The columns in the names of a file's folders, with their values as text."""
    matches = filter(None, map(FOLDER.fullmatch, Path(str(path)).absolute().parts[:-1]))
    return {match[1]: None if match[2] == NULL else unquote(match[2]) for match in matches}


class PartitionedFormat(ABC):
    """A format of files, with the columns in the names of their folders. A column of the file itself counts first."""

    @abstractmethod
    def file_columns(self, path) -> list[str]:
        """The names of the columns in the file."""

    @abstractmethod
    def file_types(self, path) -> dict[str, str | None]:
        """The columns of the file whose type it says itself."""

    @abstractmethod
    def file_chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        """Columns of the file."""

    def columns(self, path) -> list[str]:
        """The names of a file's columns in order. `ValueError` where it has no header."""
        own = self.file_columns(path)
        return own + [name for name in partition_values(path) if name not in own]

    def own_types(self, path) -> dict[str, str | None]:
        """The columns whose types a file says: None where it is none of the five."""
        own = self.file_types(path)
        return (dict.fromkeys(partition_values(path), "string") if own else {}) | own

    def chunks(self, name: str, path, sources: Sequence[str], log: LineLog) -> Iterator[RawChunk]:
        """The wanted columns of a file; lines that are no record of it go to the log."""
        return self.with_folders(path, sources, lambda own: self.file_chunks(name, path, own, log))

    def with_folders(
        self, path, sources: Sequence[str], read: Callable[[Sequence[str]], Iterator[RawChunk]]
    ) -> Iterator[RawChunk]:
        """The wanted columns; `read` reads those of the file."""
        values = partition_values(path)
        if not values:
            yield from read(sources)
            return
        own = self.file_columns(path)
        # a file is read by some column of its own, where none of them is asked for
        inner = [source for source in sources if source in own or source not in values] or own[:1]
        for chunk in read(inner):
            found = dict(zip(inner, chunk.columns))
            texts = {one: pa.repeat(pa.scalar(text, pa.string()), len(chunk.lines)) for one, text in values.items()}
            yield RawChunk(chunk.lines, [(texts | found)[source] for source in sources], chunk.text)
