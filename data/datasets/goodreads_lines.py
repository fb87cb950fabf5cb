# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The lines of GoodReads' raw files to the values of rows: JSON objects of books, authors, works, genres and
interactions, and CSV.

In the JSON files all values of books, authors and works are text, and what is not known is empty. Values that are
changed are counted by kind (`values_changed` of the report).
"""

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from flip_ctr.data.readers.csv_files import CsvFormat
from flip_ctr.data.readers.raw_files import (
    CONTROL_CHARACTER,
    MAX_DIGITS,
    MalformedLine,
    RawTable,
    line_table,
    tidy,
    whole_number,
    whole_numbers,
)

RATINGS = range(6)  # 1 to 5, and 0 for a book on a shelf without a rating
AVERAGE_RATINGS = (0.01, 5.0)  # 0.00 is the average of no rating
COUNTS = range(2**31)
PAGES = range(1, 2**31)
# from the first printed books to those of the year after the crawl, which were on sale or announced
YEARS = range(1450, 2019)

BOOK_COLUMNS = {
    "book_id": pa.int64(),
    "title": pa.string(),
    "average_rating": pa.float64(),
    "text_reviews_count": pa.int64(),
    "author_id": pa.int64(),
    "num_pages": pa.int64(),
    "is_ebook": pa.bool_(),
    "format": pa.string(),
    "publisher": pa.string(),
    "publication_year": pa.int64(),
    "work_id": pa.int64(),
}
GENRE_COLUMNS = {"book_id": pa.int64(), "genres": pa.list_(pa.string())}
AUTHOR_COLUMNS = {"author_id": pa.int64(), "author_name": pa.string()}
WORK_COLUMNS = {"work_id": pa.int64(), "media_type": pa.string()}
INTERACTION_COLUMNS = {"user_id": pa.string(), "book_id": pa.int64(), "rating": pa.int64(), "timestamp": pa.int64()}

# --- values

INTEGER = re.compile(r"-?[0-9]+")
DATE = re.compile(
    r"[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>\d\d) (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d) "
    r"(?P<sign>[+-])(?P<zone_hours>\d\d)(?P<zone_minutes>[0-5]\d) (?P<year>\d{4})",
    re.ASCII,
)
PLAIN_DATE = "^" + DATE.pattern.removesuffix(r"(?P<year>\d{4})") + "[1-9][0-9]{3}$"
MONTHS = {
    name: number
    for number, name in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 1
    )
}


def json_object(text: str) -> dict:
    """The object of a line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedLine("line is not JSON", str(error)) from None
    if not isinstance(value, dict):
        raise MalformedLine("line is not a JSON object", text)
    return value


def text_of(record: dict, name: str) -> str:
    """A value as text, empty where there is none. Files that were written anew have numbers where the original has
    text."""
    value = record.get(name)
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise MalformedLine(f"{name} is not a single value", json.dumps(value))


def identifier(record: dict, name: str) -> int:
    return whole_number(name, text_of(record, name))


def identifier_or_none(record: dict, name: str) -> int | None:
    text = text_of(record, name)
    return whole_number(name, text) if text else None


def tidy_text(record: dict, name: str, changed: Callable[[str], None]) -> str | None:
    value = record.get(name)
    return tidy(value if isinstance(value, str) else text_of(record, name), changed)


def number_in(record: dict, name: str, plausible: range, changed: Callable[[str], None]) -> int | None:
    """A whole number; `None` where there is none, or no plausible one."""
    text = text_of(record, name)
    if not text:
        return None
    if not INTEGER.fullmatch(text):
        raise MalformedLine(f"{name} is not a whole number", text)
    if len(text) <= MAX_DIGITS and int(text) in plausible:
        return int(text)
    changed(f"{name} outside {plausible[0]} to {plausible[-1]}")
    return None


def average_rating(record: dict, changed: Callable[[str], None]) -> float | None:
    text = text_of(record, "average_rating")
    if not text:
        return None
    try:
        average = float(text)
    except ValueError:
        raise MalformedLine("average_rating is not a number", text) from None
    lowest, highest = AVERAGE_RATINGS
    if lowest <= average <= highest:
        return average
    changed(f"average_rating outside {lowest} to {highest}")
    return None


def flag(record: dict, name: str) -> bool | None:
    text = text_of(record, name)
    if text not in ("true", "false", ""):
        raise MalformedLine(f"{name} is not true or false", text)
    return text == "true" if text else None


def first_author(record: dict) -> int | None:
    """The id of the first author without a role (`Illustrator`, `Translator`, ...), else of the first."""
    authors = record.get("authors") or []
    if not isinstance(authors, list) or not all(isinstance(author, dict) for author in authors):
        raise MalformedLine("authors is not a list of objects", json.dumps(authors))
    if not authors:
        return None
    return identifier_or_none(
        next((author for author in authors if not text_of(author, "role")), authors[0]), "author_id"
    )


def seconds(text: str) -> int | None:
    """Seconds since 1970 (UTC) of a date such as `Tue Oct 17 09:40:11 -0700 2017`; `None` where there is none."""
    if not text:
        return None
    match = DATE.fullmatch(text)
    try:
        part = {name: int(value) for name, value in match.groupdict().items() if value.isdigit()}
        day = part["year"], MONTHS[match["month"]], part["day"]
        time = datetime(*day, part["hour"], part["minute"], part["second"], tzinfo=UTC)
    except (AttributeError, KeyError, ValueError):  # no match, no such month, no such day or hour
        raise MalformedLine("date_added is not a date as 'Tue Oct 17 09:40:11 -0700 2017'", text) from None
    zone = timedelta(hours=part["zone_hours"], minutes=part["zone_minutes"])
    return int(time.timestamp() - (zone if match["sign"] == "+" else -zone).total_seconds())


def seconds_of_all(dates: pa.Array) -> pa.Array | None:
    """What [`seconds`] makes of each date; `None` where one is no plain date."""
    if dates.null_count or not pc.all(pc.match_substring_regex(dates, PLAIN_DATE)).as_py():
        return None
    written = pa.table({"date": dates})  # noqa: F841  DuckDB finds it by its name
    times = duckdb.sql("SELECT epoch_ms(try_strptime(date, '%a %b %d %H:%M:%S %z %Y')) // 1000 AS s FROM written")
    found = times.to_arrow_table()["s"].combine_chunks()
    return None if found.null_count else found


# --- lines


def parse_book(record: dict, changed: Callable[[str], None]) -> tuple:
    return (
        identifier(record, "book_id"),
        tidy_text(record, "title", changed),
        average_rating(record, changed),
        number_in(record, "text_reviews_count", COUNTS, changed),
        first_author(record),
        number_in(record, "num_pages", PAGES, changed),
        flag(record, "is_ebook"),
        tidy_text(record, "format", changed),
        tidy_text(record, "publisher", changed),
        number_in(record, "publication_year", YEARS, changed),
        identifier_or_none(record, "work_id"),
    )


def parse_author(record: dict, changed: Callable[[str], None]) -> tuple:
    return identifier(record, "author_id"), tidy_text(record, "name", changed)


def parse_work(record: dict, changed: Callable[[str], None]) -> tuple:
    return identifier(record, "work_id"), tidy_text(record, "media_type", changed)


def parse_genres(record: dict, changed: Callable[[str], None]) -> tuple:
    """The genres from the most to the least often named one, with equal counts in alphabetical order; `None` where
    there are none."""
    genres = record.get("genres")
    if not isinstance(genres, dict) or not all(type(count) is int for count in genres.values()):
        raise MalformedLine("genres is not an object of counts", json.dumps(genres))
    names = [tidy(name, changed) for name, _ in sorted(genres.items(), key=lambda genre: (-genre[1], genre[0]))]
    return identifier(record, "book_id"), [name for name in names if name] or None


def user_of(text: str) -> str:
    if not text or CONTROL_CHARACTER.search(text) or not text.isascii():
        raise MalformedLine("user_id is empty, or not of ASCII letters and digits", ascii(text))
    return text


def rating_of(rating: Any) -> int:
    if type(rating) is not int or rating not in RATINGS:  # True is an int
        raise MalformedLine(f"rating is not a whole number from {RATINGS[0]} to {RATINGS[-1]}", json.dumps(rating))
    return rating


def parse_interaction(record: dict, changed: Callable[[str], None]) -> tuple:
    return (
        user_of(text_of(record, "user_id")),
        identifier(record, "book_id"),
        rating_of(record.get("rating")),
        seconds(text_of(record, "date_added")),
    )


def plain_interactions(columns: list[list[str]]) -> list[pa.Array] | None:
    """What [`parse_interaction`] makes of many lines, several times as fast; `None` where it might be another
    result."""
    (lines,) = columns
    data = "\n".join(lines).encode()
    # one object a line: Arrow takes two of them, or one on two lines, too
    if not data.startswith(b"{") or data.count(b"}\n{") != len(lines) - 1 or not data.endswith(b"}"):
        return None
    schema = pa.schema(
        {"user_id": pa.string(), "book_id": pa.string(), "rating": pa.int64(), "date_added": pa.string()}
    )
    try:
        table = pa.json.read_json(
            pa.BufferReader(data),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data)),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        ).combine_chunks()
        users, books, ratings, dates = (table[name].chunk(0) for name in schema.names)
        if len(table) != len(lines) or any(column.null_count for column in (users, books, ratings, dates)):
            return None
        if not pc.all(pc.and_(pc.ascii_is_alnum(users), pc.ascii_is_decimal(books))).as_py():
            return None
        if pc.max(pc.binary_length(books)).as_py() > MAX_DIGITS:
            return None
        books, times = books.cast(pa.int64()), seconds_of_all(dates)
    except pa.ArrowInvalid:
        return None
    lowest, highest = pc.min_max(ratings).as_py().values()
    return (
        [users, books, ratings, times]
        if times is not None and lowest >= RATINGS[0] and highest <= RATINGS[-1]
        else None
    )


def parse_csv(values: list[str], changed: Callable[[str], None], columns: dict[str, pa.DataType]) -> tuple:
    return tuple(
        user_of(text)
        if kind == pa.string()
        else rating_of(whole_number(name, text))
        if name == "rating"
        else whole_number(name, text)
        for text, (name, kind) in zip(values, columns.items())
    )


def csv_table(name: str, path, header: Sequence[str], columns: dict[str, pa.DataType]) -> RawTable:
    """A table of a CSV: `columns` are those that its header calls `header`. `ValueError` where the header lacks one."""
    found = CsvFormat().columns(path)
    missing = [one for one in header if one not in found]
    if missing:
        raise ValueError(
            f"{path}, line 1: no column {', '.join(missing)} in {', '.join(found)[:200]!r}; expected the header of the "
            f"original file, with {','.join(header)} among its columns."
        )
    ranges = {at: RATINGS for at, column in enumerate(columns) if column == "rating"}
    plain = partial(whole_numbers, ranges=ranges) if set(columns.values()) == {pa.int64()} else None
    return line_table(name, path, columns, CsvFormat(), header, partial(parse_csv, columns=columns), plain)
