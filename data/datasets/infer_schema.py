# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A first description of tables, from a sample of their rows: YAML with comments, for a person to correct.

What is written has gone through `prepare` itself, with the rows of the sample: where that refuses it, the text says so.
"""

import codecs
import io
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flip_ctr.data.datasets.column_profiles import NESTED, Profile, profile
from flip_ctr.data.datasets.schema_guess import Group, SchemaGuess
from flip_ctr.data.datasets.schema_text import schema_text
from flip_ctr.data.datasets.sniff_csv import sniff_csv
from flip_ctr.data.datasets.table import table_source
from flip_ctr.data.datasets.table_schema import read_schema
from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.labelled_rows import prepare_rows
from flip_ctr.data.prepare.split_statistics import check_splits, split_statistics
from flip_ctr.data.readers.described_tables import ENDINGS, EVENTS, TableFiles
from flip_ctr.data.readers.hive_partitions import FOLDER
from flip_ctr.data.readers.raw_files import PACKED_NAME, LineLog, byte_blocks, kind_of, open_raw
from flip_ctr.data.readers.table_files import (
    ParquetFormat,
    TableFormat,
    array_blocks,
    find_files,
    own_types,
    sample,
)
from flip_ctr.modeling_flip.fields_flip import FlipField

SAMPLE_ROWS, SAMPLE_FILES = 20_000, 8
FRAME_FILE = "table.parquet"
MOST_NAMED = 3  # files that a schema names one by one


def infer_schema(data: Any, rows: int = SAMPLE_ROWS) -> str:
    """A first schema of a table, as YAML text with comments: what a person should look at stands at its top.

    Args:
        data: a frame of pandas or polars, an Arrow table, or anything else with an Arrow stream; or a path or pattern,
            or several of them: files with the columns of the first are the events, the others side tables. A schema
            of a frame names the file `table.parquet`, as which the frame is to be written.
        rows: so many rows of each table are looked at, most of them its first.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: this is no frame.
        ValueError: a file cannot be read, or a column of a frame holds values of several types.
    """
    return _guess(data, rows, Path()).text


def infer_fields(frame: Any, rows: int = SAMPLE_ROWS) -> tuple[list[FlipField], dict[str, str]]:
    """The fields of a frame that has no label, by the rules of [`infer_schema`], and of each column that is none the
    reason.

    Args:
        frame, rows: as of [`infer_schema`].

    Raises:
        TypeError, ValueError: see [`infer_schema`].
    """
    table = _some_rows(_arrow_table(frame), rows)
    columns = {name: profile(name, table[name].to_pylist()) for name in table.column_names}
    _settle_nested(columns, own_types(table.schema))
    return SchemaGuess([Group(EVENTS, [FRAME_FILE], ParquetFormat(), {}, columns)], EVENTS, labelled=False).fields()


def write_schema(files: Sequence[str], target: str | Path, rows: int = SAMPLE_ROWS) -> str:
    """Writes what [`infer_schema`] finds, and returns what a person should look at.

    Args:
        target: the YAML file to write; it names the files relative to its folder, or where they lie elsewhere to the
            folder that holds them all, which is then said.

    Raises:
        FileExistsError: the target is there already.
        FileNotFoundError, ValueError: see [`infer_schema`].
    """
    target = Path(target).expanduser()
    if target.exists():
        raise FileExistsError(
            f"--schema {target} is there already, and is not overwritten; name another file, or move it away."
        )
    base = _folder_of(files, target.parent)
    found = _guess(list(files), rows, base)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(found.text, encoding="utf-8")
    notes = "\n".join(f"* {note}" for note in found.notes)
    elsewhere = f" --data_dir {base}" * (base != target.parent)
    command = f"flip-ctr prepare --dataset table --schema {target}{elsewhere} --output_dir D"
    return f"{target} written, from up to {rows:,} rows of each table. Look at:\n{notes}\nThen: {command}"


def _guess(data: Any, rows: int, folder: Path) -> "_Checked":
    with tempfile.TemporaryDirectory(prefix="flip-ctr-") as work:
        if isinstance(data, str | Path | list | tuple):
            patterns = [str(one) for one in ([data] if isinstance(data, str | Path) else data)]
            paths = find_files(patterns, Path(), "--infer_schema")
            samples = _Samples(Path(work), rows)
            for path in paths:
                samples.add(path, _relative(path, folder))
            for group in samples.groups if len(paths) > MOST_NAMED else ():
                for pattern in patterns:  # in the place of very many files
                    if group.files == [_relative(path, folder) for path in find_files([pattern], Path(), "")]:
                        group.files = [_relative(Path(pattern).expanduser(), folder)]
        else:
            samples = _Samples(Path(work), rows)
            samples.add_frame(data)
        return _Checked(samples)


def _folder_of(files: Sequence[str], folder: Path) -> Path:
    """The folder that a schema of these files is of: its own, or that which holds them all, as a schema names no files
    outside."""
    paths = [path.resolve() for path in find_files(list(files), Path(), "--infer_schema")]
    if all(path.is_relative_to(folder.resolve()) for path in paths):
        return folder
    return Path(os.path.commonpath([path.parent for path in paths]))


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


# --- samples


class _Samples:
    """The first rows of files, and some later ones of Parquet, as files in a folder of their own.

    Attributes:
        groups: tables, of which the first are the events.
        paths: of each of them the files of its sample.
    """

    def __init__(self, work: Path, rows: int):
        self.work, self.rows = work, rows
        self.groups: list[Group] = []
        self.paths: list[list[Path]] = []

    def add_frame(self, frame: Any) -> None:
        """Adds the rows of a frame."""
        table = _arrow_table(frame)
        folder = self.work / "0"
        folder.mkdir()
        path = folder / FRAME_FILE
        pq.write_table(_some_rows(table, self.rows), path)
        self._add_group(path, FRAME_FILE, ParquetFormat(), {}, len(table) <= self.rows)

    def add(self, path: Path, shown: str) -> None:
        """Adds the rows of a file, which the schema calls as `shown`."""
        number = sum(map(len, self.paths))
        hive = [folder for folder in path.absolute().parts[:-1] if FOLDER.fullmatch(folder)]
        cut = self.work.joinpath(str(number), *hive, PACKED_NAME.sub("", path.name))
        cut.parent.mkdir(parents=True)
        with open_raw(path) as file:
            start = file.read(4_096)
        kind, said = ENDINGS.get(kind_of(path)), {}
        if kind == "parquet" or (kind is None and start.startswith(b"PAR1")):
            said = {} if kind else {"format": "parquet"}
            complete = _cut_parquet(path, cut, self.rows)
            reader: TableFormat = ParquetFormat()
        else:
            is_array = start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[" and kind not in ("csv", "tsv")
            complete = (_cut_array if is_array else _cut_lines)(path, cut, self.rows)
            try:
                reader, said = _text_format(path, cut, kind)
            except ValueError as error:
                raise ValueError(str(error).replace(str(cut), str(path))) from None
        columns = reader.columns(cut)
        for group, paths in zip(self.groups, self.paths):
            if group.reader == reader and set(group.columns) == set(columns):
                group.files.append(shown)
                if len(paths) < SAMPLE_FILES:
                    paths.append(cut)
                group.complete = group.complete and complete and len(paths) < SAMPLE_FILES
                return
        self._add_group(cut, shown, reader, said, complete)

    def _add_group(self, cut: Path, shown: str, reader: TableFormat, said: dict[str, Any], complete: bool) -> None:
        columns = reader.columns(cut)
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(shown).name.split(".")[0]).strip("._-") or "table"
        name = EVENTS if not self.groups else stem
        if name in {one.name for one in self.groups}:
            name = f"{stem}_{len(self.groups)}"
        repeated = {column for column in columns if columns.count(column) > 1}
        self.groups.append(Group(name, [shown], reader, said, dict.fromkeys(columns), repeated, complete))
        self.paths.append([cut])

    def profile(self) -> None:
        """Looks at the rows."""
        for group, paths in zip(self.groups, self.paths):
            names, share = list(group.columns), max(1, self.rows // len(paths))
            values: dict[str, list] = {name: [] for name in names}
            for path in paths:
                for name, column in (sample(group.reader, path, names, share) if names else {}).items():
                    values[name] += column
            if not any(values.values()):
                raise ValueError(f"{group.files[0]} has no rows to look at.")
            own = group.reader.own_types(paths[0]) if isinstance(group.reader, ParquetFormat) else {}
            group.columns |= {name: profile(name, values[name]) for name in names}
            _settle_nested(group.columns, own)


def _settle_nested(columns: dict[str, Profile], own: dict[str, str | None]) -> None:
    """Says of columns which are of an Arrow type that is not read (`own`: None) that they are no fields."""
    for name, column in columns.items():
        if own.get(name, "") is None:
            column.type, column.separator, column.why_not = NESTED, None, "of a type that is not read"


def _some_rows(table: pa.Table, rows: int) -> pa.Table:
    """At most so many rows: the first half of them, and the others evenly from what follows."""
    if len(table) <= rows:
        return table
    half = table.slice(0, rows // 2)
    step = max(1, (len(table) - len(half)) // max(1, rows // 2))
    later = table.take(pa.array(range(len(half), len(table), step), pa.int64())[: rows - len(half)])
    return pa.concat_tables([half, later])


def _arrow_table(frame: Any) -> pa.Table:
    if isinstance(frame, dict):
        frame = pa.table(frame)
    if hasattr(frame, "iloc"):
        try:
            table = pa.Table.from_pandas(frame)  # an index of row numbers is no column
        except (pa.ArrowException, OverflowError, TypeError):
            _check_columns(frame, range(len(frame.columns)))
            raise
        # Arrow makes lists of sets
        _check_columns(frame, [number for number, kind in enumerate(table.schema.types) if pa.types.is_list(kind)])
        return table
    if hasattr(frame, "collect") and not hasattr(frame, "__arrow_c_stream__"):
        frame = frame.collect()  # a lazy frame of polars
    if not hasattr(frame, "__arrow_c_stream__"):
        raise TypeError(
            "infer_schema takes a frame of pandas or polars, an Arrow table, or the path of a file; got "
            f"{type(frame).__name__}."
        )
    return pa.table(frame)


def _check_columns(frame: Any, numbers: Iterable[int]) -> None:
    """Raises `ValueError` where some columns of a pandas frame hold values that no column of Arrow does."""
    for number in numbers:
        if wrong := _wrong_values(frame.iloc[:, number]):
            raise ValueError(f"column {frame.columns[number]!r} of the frame {wrong}.")


def _wrong_values(column: Any) -> str | None:
    """What is wrong with a column of a pandas frame that has no type of Arrow, or none with an order; None where
    nothing is."""
    first: dict[type, int] = {}  # what its objects are, each with the first row
    for row, value in enumerate(column if column.dtype == object else ()):
        if type(value) not in first and not (pd.api.types.is_scalar(value) and pd.isna(value)):
            first[type(value)] = row
    if found := {set, frozenset} & {*first}:
        return f"holds {found.pop().__name__}s, which have no order; make them lists"
    if hasattr(column, "sparse"):
        return "is sparse; make it dense, with .sparse.to_dense()"
    try:
        pa.Array.from_pandas(column)
    except OverflowError:
        return "holds integers of more than 64 bits; make them text"
    except pa.ArrowNotImplementedError:
        return "is of a type that is not read; leave it out"
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if len(first) == 1:
            return f"holds objects of the type {next(iter(first)).__name__}, which is not read; leave it out"
        several = ", ".join(f"{kind.__name__} in row {row}" for kind, row in first.items())
        return f"holds values of several types ({several}); give it one"
    return None


def _cut_parquet(path: Path, target: Path, rows: int) -> bool:
    """Writes some rows of a Parquet file, and says whether these are all."""
    reader = ParquetFormat()
    schema = reader.schema(path)
    chunks = reader.spread(path, schema.names, rows)
    parts = [pa.RecordBatch.from_arrays(chunk.columns, schema=schema) for chunk in chunks]
    table = pa.Table.from_batches(parts, schema)
    pq.write_table(table, target)
    return pq.read_metadata(path).num_rows == len(table)


def _cut_array(path: Path, target: Path, rows: int) -> bool:
    """Writes the first objects of a JSON array, and says whether these are all."""
    objects: list[str] = []
    for _, texts, _ in array_blocks(path, "utf-8"):
        objects += texts
        if len(objects) > rows:
            break
    text = "[" + ",\n".join(objects[:rows]) + "]"
    target.write_bytes(text.encode("utf-8", "surrogateescape"))
    return len(objects) <= rows


def _cut_lines(path: Path, target: Path, rows: int) -> bool:
    """Writes the first lines of a text, and says whether these are all."""
    lines: list[bytes] = []
    for _, block in byte_blocks(path):
        lines += io.BytesIO(block)
        if len(lines) >= rows + 2:
            break
    lines = lines[: rows + 2]
    complete = len(lines) < rows + 2
    text = b"".join(lines)
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} is in UTF-16; write it anew in UTF-8.")
    if b"\0" in text:
        raise ValueError(f"{path} holds NUL bytes: it is no text, and no Parquet file; write it as CSV or Parquet.")
    if not complete:  # a value of several lines may have been cut
        while text.count(b'"') % 2 and len(lines) > rows - 200:
            text = text[: -len(lines.pop())]
    target.write_bytes(text)
    return complete


def _text_format(path: Path, cut: Path, kind: str | None) -> tuple[TableFormat, dict[str, Any]]:
    """How a text is to be read, and what a schema must say of that."""
    text, said = cut.read_bytes(), {}
    if kind is None:
        kind = said["format"] = "jsonl" if text.lstrip()[:1] in (b"{", b"[") else "csv"
    if kind == "jsonl" and re.match(rb"\s*\{\s*'", text):  # what Python prints of a dict
        kind = said["format"] = "python"
    encoding = "utf-8"
    try:
        text.decode()
    except UnicodeDecodeError:
        if not text.startswith(codecs.BOM_UTF8):  # which says utf-8, whatever single bytes say
            encoding = said["encoding"] = "latin-1"
    csv: dict[str, Any] = {}
    if kind in ("csv", "tsv"):
        csv = sniff_csv(path, cut, text.decode(encoding, "replace").removeprefix("\ufeff"), kind, encoding)
        said |= csv
    csv = {key: tuple(value) if isinstance(value, list) else value for key, value in csv.items()}
    reader = TableFiles("", (), kind, csv, encoding).reader(cut)
    reader.columns(cut)  # its errors say what is wrong with the file
    return reader, said


# --- what prepare says


class _Checked:
    """The guess of a schema, and what `prepare` says of it.

    Attributes:
        text: the schema.
        notes: what a person should look at.
    """

    def __init__(self, samples: _Samples):
        samples.profile()
        self._samples = samples
        # of many files the folder, or what it lies in: neither a pattern nor a partition
        parts = [part for part in Path(samples.groups[0].files[0]).parts if not re.search(r"[*?=]", part)]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1].split(".")[0] if parts else "").strip("._-")
        guess = SchemaGuess(samples.groups, name or "my-table")
        guess.settle_notes()
        refused = self._refusal(guess)
        self.notes = [*guess.notes, *([f"prepare refuses this as it stands: {refused}"] if refused else [])]
        self.text = schema_text(guess, notes=tuple(self.notes[len(guess.notes) :]))

    def _refusal(self, guess: SchemaGuess) -> str | None:
        """What `prepare` says against the schema and the rows of the sample, if anything; a label that is not known is
        left to the person."""
        work, columns = self._samples.work, guess.groups[0].columns
        path = work / "schema.yaml"
        names = [name for name in columns if name and "`" not in name]
        if guess.label is None and len(names) < 2:
            return None
        stand_in = " or ".join(f"`{name}` is null" for name in names[:2])  # of one column alone no field can be
        try:
            path.write_text(schema_text(guess, stand_in), encoding="utf-8")
            schema = read_schema(path)
            files = {group.name: paths for group, paths in zip(self._samples.groups, self._samples.paths)}
            patterns = {name: tuple(one.relative_to(work).as_posix() for one in paths) for name, paths in files.items()}
            incomplete = {group.name for group in guess.groups if not group.complete}
            schema = replace(
                schema,
                events=replace(schema.events, files=patterns[EVENTS]),
                joins=tuple(
                    replace(one, files=patterns[one.name], missing="null" if one.name in incomplete else one.missing)
                    for one in schema.joins
                ),
            )
            source = table_source(schema, work)
            with Engine("duckdb", work) as engine:
                prepared = prepare_rows(engine, source.tables, source.plan, LineLog())
                if guess.label is not None:
                    statistics = split_statistics(prepared.rows, [], engine.fetch)
                    check_splits(statistics, [], source.plan.split, source.label_rule, source.way_out)
        except (ValueError, FileNotFoundError) as error:
            text = str(error).replace(f"{path}: ", "")
            return re.sub(rf"{re.escape(str(work))}/\d+/", "", text).replace(f"{work}/", "")
        return None
