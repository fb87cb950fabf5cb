# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the modules of the raw datasets share: what `prepare` asks of one, and lines read so that none is lost silently.

A line of a raw file either becomes a row, or a `LineLog` keeps it with its number and reason.
"""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from flip_ctr.configuration_flip import FlipField
from flip_ctr.data.download import file_md5

MAX_LISTED_LINES = 100  # of a file, in the report; `rejected.parquet` has all
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
REJECTED_COLUMNS = {"file": pa.string(), "line": pa.int64(), "reason": pa.string(), "text": pa.string()}


@dataclass(frozen=True)
class RawDataset:
    """One raw dataset, as `prepare` sees it.

    Args:
        name: its name for `--dataset`.
        files: the raw files; the first holds the ratings.
        read: `(folder, log)` to the table of all usable ratings, in file order, with the column `rating`.
        fields: `ids_in_prompt` to the fields of a row.
        card_facts: what the dataset card says of the raw data: `title`, `licence`, `licence_link`, `citation`, and
            `values` where values are changed on the way.
        ratings: the ratings that the raw file may hold.
        drop_ratings: ratings that are no part of the dataset, unless `--drop_ratings` says otherwise.
        click_threshold: a rating of at least this is a click, unless `--click_threshold` says otherwise.
        item_column: column that names the item; `user_id` names the user.
        time_column: column of the time of a rating; `None` where the raw files have none.
        described_at: where the files are described, for a dataset that is not downloaded; `None` where it is.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[..., pa.Table]
    fields: Callable[[bool], list[FlipField]]
    card_facts: dict[str, str]
    ratings: range
    drop_ratings: tuple[int, ...]
    click_threshold: int
    item_column: str
    user_column: str = "user_id"
    time_column: str | None = None
    described_at: str | None = None

    @property
    def row_key(self) -> tuple[str, str]:
        return self.user_column, self.item_column


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
class LineLog:
    """Lines read and rejected, by file, and the share of malformed lines above which a file is refused."""

    max_share: float = 0.001
    files: dict[str, dict] = field(default_factory=dict)
    rejected: list[tuple[str, int, str, str]] = field(default_factory=list)  # as REJECTED_COLUMNS

    def start(self, path) -> None:
        self.files[path.name] = {
            "md5": file_md5(path),
            "lines": 0,
            "malformed": 0,
            "malformed_by_reason": Counter(),
            "first_malformed": [],
            "unused_by_reason": Counter(),
            "values_changed": Counter(),
        }

    def reject(self, path, number: int, error: RejectedLine, line: str) -> None:
        entry = self.files[path.name]
        self.rejected.append((path.name, number, error.reason, line))
        if isinstance(error, UnusedLine):
            entry["unused_by_reason"][error.reason] += 1
            return
        entry["malformed"] += 1
        entry["malformed_by_reason"][error.reason] += 1
        if len(entry["first_malformed"]) < MAX_LISTED_LINES:
            text = error.text if len(error.text) <= 80 else error.text[:77] + "..."
            entry["first_malformed"].append({"line": number, "reason": error.reason, "text": text})

    def count_change(self, path, kind: str) -> None:
        """Counts a value that is not kept as it stands in the file."""
        self.files[path.name]["values_changed"][kind] += 1

    def finish(self, path) -> None:
        """`ValueError` where the file is empty or has too many malformed lines."""
        entry = self.files[path.name]
        if not entry["lines"]:
            raise ValueError(f"{path} is empty.")
        share = entry["malformed"] / entry["lines"]
        if share > self.max_share:
            first = entry["first_malformed"][:5]
            shown = "; ".join(f"line {one['line']}: {one['reason']}: {one['text']!r}" for one in first)
            raise ValueError(
                f"{path}: {entry['malformed']:,} of {entry['lines']:,} lines are malformed, a share of {share:.4g}; "
                f"--max_malformed_share allows {self.max_share:g}. First: {shown}."
            )

    def rejected_table(self) -> pa.Table:
        """Every rejected line: its file, number, reason and whole text."""
        columns = zip(*self.rejected) if self.rejected else [[]] * len(REJECTED_COLUMNS)
        arrays = [pa.array(column, type=kind) for column, kind in zip(columns, REJECTED_COLUMNS.values())]
        return pa.table(arrays, names=list(REJECTED_COLUMNS))


def read_rows(path, split: Callable[[str], list], parse: Callable, log: LineLog, header_lines: int = 0) -> Iterator:
    """What `parse` makes of the values into which `split` takes each line; a line that either refuses goes to the log.

    Lines are latin-1 and end at line feeds only. Blank lines at the end are ignored, a blank line before that is
    malformed. Lines of the header are neither read nor counted; the others keep their numbers in the file.
    """
    log.start(path)
    entry, blank = log.files[path.name], []
    with io.BufferedReader(path.open("rb")) as lines:
        for number, line in enumerate(lines, 1):
            if number <= header_lines:
                continue
            text = line.decode("latin-1").rstrip("\r\n")
            if not text:
                blank.append(number)
                continue
            for empty in blank:
                log.reject(path, empty, MalformedLine("blank line", ""), "")
            blank.clear()
            entry["lines"] = number - header_lines
            try:
                row = parse(split(text))
            except RejectedLine as error:
                log.reject(path, number, error, text)
            else:
                yield row
    log.finish(path)


def check_width(values: list, width: int, separator: str, text: str) -> list:
    if len(values) != width:
        raise MalformedLine(f"{len(values)} fields, not {width} separated by {separator!r}", text)
    return values


def read_entities(
    path,
    split: Callable[[str], list],
    parse: Callable[[list], tuple],
    columns: dict[str, pa.DataType],
    log: LineLog,
    header_lines: int = 0,
    again: type[RejectedLine] = MalformedLine,
) -> tuple[pa.Table, dict]:
    """The table of a side file, and the row of each id in it.

    The first column is the id; a line whose id came before is rejected as `again`.
    """
    rows, name = {}, next(iter(columns))

    def parse_new(values: list) -> tuple:
        row = parse(values)
        if row[0] in rows:
            raise again(f"{name} comes a second time", str(row[0]))
        rows[row[0]] = len(rows)
        return row

    values = list(read_rows(path, split, parse_new, log, header_lines))
    arrays = [pa.array(column, type=kind) for column, kind in zip(zip(*values), columns.values())]
    return pa.table(arrays, names=list(columns)) if values else pa.schema(columns).empty_table(), rows


def whole_number(name: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 18:  # 18 digits always fit 64 bits
        raise MalformedLine(f"{name} is not a whole number", text)
    return int(text)


def join_entities(users: pa.Table, user_rows: Sequence[int], items: pa.Table, item_rows: Sequence[int]) -> pa.Table:
    """For each rating the columns of its user, then those of its item."""
    table = users.take(pa.array(user_rows))
    for name, column in zip(items.column_names, items.take(pa.array(item_rows)).columns):
        table = table.append_column(name, column)
    return table
