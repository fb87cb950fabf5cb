# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Reading a split of a dataset folder: its Parquet shards, checked by their footers and read part by part, never as a
whole."""

import copy
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b, file_digest, sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flip_ctr.data.readers.dataset_schema import REPORT_NAME, SCHEMA_NAME, DatasetSchema
from flip_ctr.data.readers.raw_files import one_line
from flip_ctr.modeling_flip.columns_flip import RowError
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField, history_field

ITEMS_NAME = "items.parquet"  # a row an item, where the rows have histories
PART_ROWS = 65_536  # rows in memory at a time
REPLACED = "{} was replaced by another dataset while it was read; start again."
SHARD_NAME = re.compile(r"(.+)-\d{5}-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split, as its footer describes it.

    Attributes:
        group_rows: rows of each of its row groups.
    """

    path: Path
    schema: pa.Schema
    group_rows: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> "Shard":
        """`ValueError` where the file is not a whole Parquet file."""
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                groups = tuple(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
                schema = file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a whole Parquet file: {one_line(error)}") from error
        return cls(path, schema, groups)


def shard_paths(dataset_dir: Path, split: str) -> list[Path]:
    """The files of a split, in order.

    Raises:
        FileNotFoundError: there is no such split; the message names those there are.
        ValueError: a file is missing, or one too many is there.
    """
    found = {path.name: path for path in sorted((dataset_dir / "data").glob("*-*.parquet"))}
    names = {name for name in found if name.startswith(f"{split}-")}
    if not names:
        available = ", ".join(sorted({name.split("-")[0] for name in found})) or "none"
        raise FileNotFoundError(f"{dataset_dir} has no split '{split}'; it has {available}.")
    totals = {int(match[2]) for name in names if (match := SHARD_NAME.fullmatch(name)) and match[1] == split}
    total = max(totals, default=1)
    expected = [f"{split}-{number:05}-of-{total:05}.parquet" for number in range(total)]
    for kind, some in (("lacks", set(expected) - names), ("also has", names - set(expected))):
        if some:
            raise ValueError(
                f"split '{split}': {dataset_dir / 'data'} {kind} "
                f"{', '.join(sorted(some)[:3])}{', ...' * (len(some) > 3)}; its {total} file(s) are named "
                f"{expected[0]} and so on. Prepare the dataset again."
            )
    return [found[name] for name in expected]


def fits(arrow: pa.DataType, field: FlipField) -> bool:
    """Whether an Arrow column can hold a field's values; single values may still not be of its type (text that is no
    number)."""
    kinds = pa.types
    if field.is_history:  # a list of entries, of the item's key and whether it was clicked at least
        entry = getattr(arrow, "value_type", None)
        if (
            entry is None
            or not kinds.is_struct(entry)
            or not {field.history_of, CLICKED} <= {one.name for one in entry}
        ):
            return False
        arrow = entry.field(field.history_of).type
    if field.is_multi_valued and hasattr(arrow, "value_field"):  # a list
        arrow = arrow.value_type
    if kinds.is_dictionary(arrow):
        arrow = arrow.value_type
    text = kinds.is_string(arrow) or kinds.is_large_string(arrow) or kinds.is_string_view(arrow)
    allowed = {
        "string": text,
        "int": text or kinds.is_integer(arrow) or kinds.is_floating(arrow),
        "float": text or kinds.is_integer(arrow) or kinds.is_floating(arrow),
        "bool": text or kinds.is_integer(arrow) or kinds.is_boolean(arrow),
    }
    return kinds.is_null(arrow) or allowed[field.type]


def has_split(dataset_dir: str | Path, split: str) -> bool:
    """Whether a dataset folder has a split, by its report where it has one; what is no folder has all, so that reading
    it says what is wrong."""
    folder = Path(dataset_dir)
    if (folder / REPORT_NAME).is_file():
        splits = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))["splits"]
        return splits.get(split, {}).get("rows", 0) > 0
    return not (folder / "data").is_dir() or any((folder / "data").glob(f"{split}-*.parquet"))


def open_splits(dataset_dir: str | Path, max_samples: dict[str, int | None], seed: int = 0) -> dict[str, "SplitRows"]:
    """Splits of one dataset folder, by name; all of the same dataset, also while another takes its place.

    Args:
        max_samples: of each split that is wanted, how many rows at most, see [`SplitRows`].

    Raises:
        ValueError: another dataset took the folder's place meanwhile; or see [`SplitRows`].
    """
    splits = {split: SplitRows(dataset_dir, split, count, seed) for split, count in max_samples.items()}
    for rows in splits.values():
        rows.check_same()
    if len({rows.version for rows in splits.values()}) > 1:
        raise ValueError(REPLACED.format(dataset_dir))
    return splits


class SplitRows:
    """The rows of one split, or a seeded sample of them in their order, on disk. All that is read at once is a part.
    They are rows of the dataset that lay there first: where another takes its place, reading ends in an error.

    Rows are numbered from 0 to `len(rows) - 1` in the order of the files; with a sample, among those of the sample.

    Args:
        dataset_dir: dataset folder.
        split: `train`, `validation` or `test`.
        max_samples: take a random sample of so many rows, where there are more.
        seed: of the sample.

    Attributes:
        schema: the folder's [`DatasetSchema`].
        version: tells this dataset from another in the same place.
        shards: the split's files.
        group_starts: `(row groups + 1,)` number of the first row of each row group, and `len(rows)`.

    Raises:
        FileNotFoundError: `dataset_dir` is not a dataset folder, or has no such split.
        ValueError: the split has no rows, a file of it is missing or damaged, or a column is missing or of a type that
            does not fit; names split, file and column. Or another dataset took the folder's place meanwhile.
    """

    def __init__(self, dataset_dir: str | Path, split: str, max_samples: int | None = None, seed: int = 0):
        self.dataset_dir, self.split = Path(dataset_dir), split
        self.version = self._version()
        self.schema = DatasetSchema.load(dataset_dir)
        paths = shard_paths(self.dataset_dir, split)
        try:
            self.shards = [Shard.read(path) for path in paths]
        except ValueError as error:
            self.check_same()
            raise ValueError(f"split '{split}': {error}") from error
        self._open: tuple[Shard, pq.ParquetFile] | None = None
        self._check_columns()
        self._groups = [(shard, group) for shard in self.shards for group in range(len(shard.group_rows))]
        self._row_starts = np.cumsum([0, *(rows for shard in self.shards for rows in shard.group_rows)])
        self.group_starts, self._sample = self._row_starts, None
        total = int(self._row_starts[-1])
        if total == 0:
            raise ValueError(f"{dataset_dir}: the split '{split}' has no rows")
        if max_samples is not None and max_samples < total:
            self._sample = np.sort(np.random.default_rng(seed).choice(total, max_samples, replace=False))
            self.group_starts = np.searchsorted(self._sample, self._row_starts)

        self.check_same()

    def _version(self) -> tuple[int, int] | None:
        try:
            status = (self.dataset_dir / SCHEMA_NAME).stat()
        except OSError:  # the schema's own error says more
            return None
        return status.st_ino, status.st_mtime_ns

    def check_same(self) -> None:
        """`ValueError` where another dataset took the place of the one that was opened. Called after a file was
        opened: folders are replaced in one step, so the file was of that dataset where this finds nothing."""
        if self._version() != self.version:
            raise ValueError(REPLACED.format(self.dataset_dir))

    def _check_columns(self) -> None:
        schema, first = self.schema, self.shards[0]
        # not the label, which pretraining does without
        required = [*(field.name for field in schema.fields), *filter(None, (schema.user_column, schema.weight_column))]
        for shard in self.shards:
            where, have = f"split '{self.split}', {shard.path}", shard.schema.names
            for name in required:
                if name not in have:
                    raise ValueError(
                        f"{where}: no column '{name}', which {SCHEMA_NAME} names; it has {', '.join(have)}."
                    )
            targets = [name for name in (schema.label, schema.weight_column) if name in have]
            targets = [name for name in targets if not pa.types.is_boolean(shard.schema.field(name).type)]
            for field in [*schema.fields, *(FlipField(name, "float") for name in targets)]:
                arrow = shard.schema.field(field.name).type
                if not fits(arrow, field):
                    kind = f"{field.type}, {field.kind}" if field.is_multi_valued else field.type
                    if field.is_history:
                        kind = f"a history, a list of structs of {field.history_of} ({field.type}) and {CLICKED},"
                    raise ValueError(
                        f"{where}: column '{field.name}' is of type {arrow}, which does not fit {kind} of "
                        f"{SCHEMA_NAME}."
                    )
            if not shard.schema.equals(first.schema):
                differing = next(
                    (
                        name
                        for name in [*have, *first.schema.names]
                        if name not in have
                        or name not in first.schema.names
                        or shard.schema.field(name).type != first.schema.field(name).type
                    ),
                    "their order",
                )
                raise ValueError(f"{where}: its columns are not those of {first.path.name} (see {differing}).")

    def __len__(self) -> int:
        return int(self.group_starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}  # a loader worker opens files of its own

    @property
    def column_names(self) -> list[str]:
        return self.shards[0].schema.names

    @property
    def used_columns(self) -> list[str]:
        """The columns that the schema names and the split has."""
        schema = self.schema
        named = [*(field.name for field in schema.fields), schema.label, schema.weight_column, schema.user_column]
        return [name for name in dict.fromkeys(named) if name in self.column_names]

    def whole(self) -> "SplitRows":
        """All rows of the split, where these are a sample."""
        rows = copy.copy(self)
        rows._sample, rows.group_starts = None, self._row_starts
        return rows

    @property
    def _items_path(self) -> Path | None:
        """The file of the items that the rows' histories name; None where the rows have no histories."""
        if history_field(self.schema.fields) is None:
            return None
        path = self.dataset_dir / ITEMS_NAME
        if not path.is_file():
            raise ValueError(f"{self.dataset_dir} has no {ITEMS_NAME}, which says what items the histories name")
        return path

    def map_items(self, function: Callable[[pa.Table], Any]) -> Any:
        """`function(items)` of the items that the rows' histories name, one a row; None where the rows have no
        histories.

        Raises:
            ValueError: there is no such file beside the splits, it is damaged, or holds a value that the function
                cannot read; names the file.
        """
        path = self._items_path
        if path is None:
            return None
        try:
            items = pq.read_table(path, page_checksum_verification=True)
            self.check_same()
            return function(items)
        except RowError as error:
            raise ValueError(f"{path}: {error}") from None
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a whole Parquet file: {one_line(error)}") from error

    # --- what the rows are known by

    def content_digest(self) -> str:
        """Of the files' bytes and the sample: the same wherever the files lie. Reads them."""
        digest = sha256(repr(self._sample_digest()).encode())
        for path in filter(None, [*(shard.path for shard in self.shards), self._items_path]):
            try:
                with open(path, "rb") as file:
                    digest.update(file_digest(file, "sha256").digest())
            finally:
                self.check_same()
        return digest.hexdigest()

    def _sample_digest(self) -> str | None:
        return None if self._sample is None else blake2b(self._sample.tobytes(), digest_size=16).hexdigest()

    # --- reading

    def read_group(
        self, group: int, start: int, stop: int, columns: Sequence[str] | None = None, size: int = PART_ROWS
    ) -> Iterator[tuple[int, pa.Table]]:
        """The rows `start` to `stop - 1` of a row group, which they must lie in: yields (number of the first row,
        part).

        Args:
            columns: those to read; all that the schema names when None.
            size: rows of a part, at most.

        Raises:
            ValueError: the file is damaged; names split and file.
        """
        shard, index = self._groups[group]
        first = int(self._row_starts[group])
        wanted = None if self._sample is None else self._sample[start:stop] - first  # places in the row group
        last = stop - first if wanted is None else int(wanted[-1]) + 1 if len(wanted) else 0
        done = 0
        columns = self.used_columns if columns is None else list(columns)
        try:
            if (
                self._open is None or self._open[0] is not shard
            ):  # the footer of a file with many row groups is read once
                self._open = shard, pq.ParquetFile(shard.path, memory_map=True, page_checksum_verification=True)
                self.check_same()
            for batch in self._open[1].iter_batches(size, [index], columns, use_threads=False):
                begin, done = done, done + len(batch)
                part = pa.Table.from_batches([batch])
                if wanted is None:
                    low, high = max(start - first, begin), min(last, done)
                    if low < high:
                        yield first + low, part.slice(low - begin, high - low)
                else:
                    low, high = np.searchsorted(wanted, [begin, done])
                    if low < high:
                        yield start + int(low), part.take(wanted[low:high] - begin)
                if done >= last:
                    return
        except (pa.ArrowException, OSError) as error:
            self.check_same()
            raise ValueError(
                f"split '{self.split}', {shard.path}: damaged: {one_line(error).rstrip('.')}. Prepare the dataset again"
            ) from error

    def parts(self, columns: Sequence[str] | None = None, size: int = PART_ROWS) -> Iterator[tuple[int, pa.Table]]:
        """All rows in order: yields (number of the first row, part)."""
        for group, (start, stop) in enumerate(pairwise(self.group_starts.tolist())):
            yield from self.read_group(group, start, stop, columns, size)

    def map_parts(
        self, function: Callable[[pa.Table], Any], columns: Sequence[str] | None = None, size: int = PART_ROWS
    ) -> Iterator[Any]:
        """Yields `function(part)` for all rows in order. A value that it cannot read is an error that names file and
        row."""
        for first, part in self.parts(columns, size):
            with self.naming_rows(range(first, first + len(part))):
                result = function(part)
            yield result

    def take(self, rows: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Some rows, at least one, by their rising numbers."""
        rows = np.asarray(rows, np.int64)
        groups = np.searchsorted(self.group_starts, rows, side="right") - 1
        found = []
        for group in np.unique(groups).tolist():
            mine = rows[groups == group]
            for first, part in self.read_group(group, int(mine[0]), int(mine[-1]) + 1, columns):
                low, high = np.searchsorted(mine, [first, first + len(part)])
                if low < high:
                    found.append(part.take(mine[low:high] - first))
        return pa.concat_tables(found)

    @contextmanager
    def naming_rows(self, numbers: Sequence[int]) -> Iterator[None]:
        """Inside, a value that cannot be read is a `ValueError` that names split, file and row. `numbers` are those of
        the rows that are being read."""
        try:
            yield
        except RowError as error:
            row = int(numbers[error.row])
            row = row if self._sample is None else int(self._sample[row])
            group = int(np.searchsorted(self._row_starts, row, side="right")) - 1
            shard, index = self._groups[group]
            row -= int(self._row_starts[group - index])  # in its file
            raise ValueError(
                f"split '{self.split}', {shard.path}: column '{error.column}', row {row}: {error.reason}."
            ) from None
