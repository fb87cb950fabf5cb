# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Writing and reading a dataset folder: three splits in Parquet shards, `schema.json`, a dataset card and
`prepare_report.json`.

One that was made from raw files also has `rejected.parquet`: each line that became no row, with file, line, reason and
text; empty where there is none. One with histories has `items.parquet`: each item key with the fields of its item.
Both lie outside `data/`, so that nothing takes them for a split.

A folder is written under a temporary name beside its own and renamed at the end: it is there complete, or not at all.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flip_ctr.data.outputs import new_folder, sync
from flip_ctr.data.readers.dataset_schema import REPORT_NAME, SCHEMA_NAME, SPLITS, DatasetSchema
from flip_ctr.data.readers.raw_files import REJECTED_COLUMNS
from flip_ctr.data.readers.shards import ITEMS_NAME, shard_paths

CARD_NAME = "README.md"
REJECTED_NAME = "rejected.parquet"

PICTURE_NAME = "dataset.png"
SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.parquet")
ROWS_PER_SHARD, ROWS_PER_GROUP = 2**20, 2**14  # small groups: streaming puts them into a new order every epoch
# What a dataset folder may hold for `--overwrite_output_dir` to replace it; caches can be made again.
OWN_ENTRIES = {SCHEMA_NAME, REPORT_NAME, CARD_NAME, REJECTED_NAME, ITEMS_NAME, PICTURE_NAME, "data", ".cache"}


def shard_path(folder: Path, split: str, shard: int = 0, shards: int = 1) -> Path:
    return folder / "data" / f"{split}-{shard:05}-of-{shards:05}.parquet"


def read_split(dataset_dir: str | Path, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one split, with all columns or those named, in that order.

    Raises:
        FileNotFoundError: `dataset_dir` is not a dataset folder, or has no such split; the message names those it has.
        ValueError: the split lacks a file, or has no such column; the message names those it has.
    """
    dataset_dir = Path(dataset_dir)
    DatasetSchema.load(dataset_dir)  # its errors say what is wrong with the folder
    paths = shard_paths(dataset_dir, split)
    names = pq.read_schema(paths[0]).names
    unknown = [column for column in columns or [] if column not in names]
    if unknown:
        raise ValueError(f"{paths[0]} has no column {', '.join(unknown)}; it has {', '.join(names)}.")
    wanted = columns and list(columns)
    return pa.concat_tables([pq.read_table(path, columns=wanted, page_checksum_verification=True) for path in paths])


def check_output_dir(output_dir: str | Path, overwrite: bool = False) -> Path:
    """The resolved folder to write, if it may be written.

    Raises:
        FileExistsError: it is not empty, and either `overwrite` is off or it holds anything but a dataset folder.
    """
    # resolved: a link to a folder is replaced where it points to
    output_dir = Path(output_dir).expanduser().resolve()
    if not output_dir.exists():
        return output_dir
    if not output_dir.is_dir():
        raise FileExistsError(f"--output_dir {output_dir} is a file; name a folder.")
    entries = {path.name for path in output_dir.iterdir()}
    if not entries:
        return output_dir
    if not overwrite:
        raise FileExistsError(
            f"--output_dir {output_dir} is not empty; name another folder, or replace it with --overwrite_output_dir."
        )
    if SCHEMA_NAME not in entries:
        raise FileExistsError(
            f"--output_dir {output_dir} is not a dataset folder (it has no {SCHEMA_NAME}), so --overwrite_output_dir "
            "does not replace it; name another folder."
        )
    foreign = entries - OWN_ENTRIES
    foreign |= {f"data/{path.name}" for path in (output_dir / "data").glob("*") if not SHARD.fullmatch(path.name)}
    if foreign:
        raise FileExistsError(
            f"--output_dir {output_dir} also holds {', '.join(sorted(foreign)[:5])}, which --overwrite_output_dir "
            "would delete; move that away, or name another folder."
        )
    return output_dir


@contextlib.contextmanager
def new_dataset_folder(output_dir: str | Path, overwrite: bool = False) -> Iterator[tuple[Path, Path]]:
    """Yields a folder to fill, and one for work on the way; the first becomes `output_dir` when all is done.

    Where anything fails, what was there before stays as it was, and nothing else is left.

    Raises:
        FileExistsError: see [`check_output_dir`], also of what appeared meanwhile; or another run writes there.
    """
    output_dir = check_output_dir(output_dir, overwrite)
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output_dir {output_dir} cannot be made: {error.strerror}: {error.filename}") from error
    with new_folder(output_dir, overwrite) as partial, tempfile.TemporaryDirectory(dir=partial.parent) as work:
        (partial / "data").mkdir(parents=True)
        yield partial, Path(work)
        sync(partial)  # which may take long: then the check, then the new name at once
        check_output_dir(output_dir, overwrite)  # what appeared meanwhile stays


def write_split(folder: Path, split: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int) -> None:
    """Writes the rows of a split into shards of `ROWS_PER_SHARD`, of which there is at least one.

    Args:
        rows: how many there are. `ValueError` where it is another number.
    """
    shards, groups, written = max(1, -(-rows // ROWS_PER_SHARD)), _groups(batches, schema), 0
    for shard in range(shards):
        wanted = islice(groups, ROWS_PER_SHARD // ROWS_PER_GROUP)
        written += _write(shard_path(folder, split, shard, shards), wanted, schema)
    written += sum(map(len, groups))  # none
    if written != rows:
        raise ValueError(f"split '{split}': {written:,} rows were written, and there should be {rows:,}.")


def _groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """The same rows in tables of `ROWS_PER_GROUP`, the last of fewer, however the batches were cut. Each is of one
    chunk: pages of lists in Parquet would else end where the chunks do."""
    waiting, count = [], 0
    for batch in batches:
        while len(batch):
            part = batch.slice(0, ROWS_PER_GROUP - count)
            batch = batch.slice(len(part))
            waiting.append(part)
            count += len(part)
            if count == ROWS_PER_GROUP:
                yield pa.Table.from_batches(waiting, schema).combine_chunks()
                waiting, count = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()


def _write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Writes a file, and returns the number of its rows."""
    rows = 0
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            rows += len(table)
    return rows


def write_rejected(folder: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes the lines that became no row, in the order of files and lines; the file is there also where there are
    none."""
    schema = pa.schema(REJECTED_COLUMNS)
    _write(folder / REJECTED_NAME, _groups((one.select(schema.names).cast(schema) for one in batches), schema), schema)


def check_account(report: dict) -> None:
    """`ValueError` where a row that was read is neither in a split, nor support, nor dropped, nor rejected."""
    found = report["rows_kept"] + report["malformed"] + sum(report["dropped"].values())
    found += report.get("support", {"rows": 0})["rows"]
    if found != report["rows_read"]:
        raise ValueError(
            f"{report['rows_read']:,} rows were read, and {found:,} are accounted for: this is a fault of prepare."
        )


def write_items(folder: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Writes `items.parquet`, see `histories.items_of`."""
    _write(folder / ITEMS_NAME, _groups(batches, schema), schema)


def write_texts(folder: Path, schema: DatasetSchema, report: dict, card: str) -> None:
    """Writes `schema.json`, `prepare_report.json` and `README.md`."""
    schema.save(folder)
    (folder / REPORT_NAME).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD_NAME).write_text(card, encoding="utf-8")


def write_dataset_folder(
    output_dir: str | Path,
    splits: dict[str, pa.Table],
    schema: DatasetSchema,
    report: dict,
    card: str,
    overwrite: bool = False,
    items: pa.Table | None = None,
) -> Path:
    """Writes rows in memory as a dataset folder and returns its path; see [`new_dataset_folder`].

    Args:
        splits: the rows of `train`, `validation` and `test`.
        report: content of `prepare_report.json`.
        card: content of `README.md`.
        overwrite: whether a dataset folder of this name may be replaced.
        items: content of `items.parquet`, where there are histories.

    Raises:
        FileExistsError: see [`check_output_dir`].
    """
    with new_dataset_folder(output_dir, overwrite) as (folder, _):
        for name, table in splits.items():
            write_split(folder, name, table.to_batches(), table.schema, len(table))
        if items is not None:
            write_items(folder, items.to_batches(), items.schema)
        write_texts(folder, schema, report, card)
    return Path(output_dir).expanduser().resolve()
