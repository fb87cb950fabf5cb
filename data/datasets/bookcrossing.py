# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""BookCrossing: the raw CSV files, with their dirt, to typed tables of users, books and ratings.

The files are `;`-separated with a header, by whose names the columns are found. Inside a quoted value a quote is `\\"`
and a backslash `\\\\`. Not every quote was escaped, so that one inside a value counts as text unless a `;` or the end
of the line follows. Values that are changed are counted by kind (`values_changed` of the report).
"""

import re
from collections.abc import Callable

import pyarrow as pa

from flip_ctr.data.datasets.raw_dataset import RawDataset
from flip_ctr.data.prepare.labelled_rows import Join
from flip_ctr.data.readers.csv_files import LinesFormat, text_table
from flip_ctr.data.readers.raw_files import (
    CONTROL_CHARACTER,
    TIDY,
    MalformedLine,
    RawTable,
    check_width,
    open_raw,
    tidy,
    whole_number,
)
from flip_ctr.modeling_flip.fields_flip import FlipField

RAW_FILES = ("BX-Book-Ratings.csv", "BX-Books.csv", "BX-Users.csv")
RATINGS = range(11)  # 1 to 10, and 0 for a book that was entered without a rating
RATINGS_BY_TEXT = {str(rating): rating for rating in RATINGS}
AGES = range(5, 101)
# the crawl was in August and September 2004, when books of the next year were on sale already
YEARS = range(1800, 2006)

USER_COLUMNS = {"user_id": pa.int64(), "location": pa.string(), "age": pa.int64()}
BOOK_COLUMNS = {
    "isbn": pa.string(),
    "title": pa.string(),
    "author": pa.string(),
    "year": pa.int64(),
    "publisher": pa.string(),
}
RATING_COLUMNS = {"user_id": pa.int64(), "isbn": pa.string(), "rating": pa.int64()}

SEPARATOR = ";"
# no possessive quantifiers: Python before 3.11.4 gets them wrong; each way on is told by its first character, so that
# none is tried twice
QUOTED = re.compile(r'"([^"\\]*(?:(?:\\.|"(?!;|\Z))[^"\\]*)*)"(?:;|\Z)')
UNQUOTED = re.compile(r'([^";]*)(?:;|\Z)')
ESCAPED = re.compile(r"""\\(["'\\])""")
# UTF-8 that was read as latin-1: the two bytes of a letter with an accent, the three of a typographic quote or dash.
# Other lead bytes are left out, as they are capital letters that a symbol may follow in true latin-1.
UTF8_AS_LATIN1 = re.compile("[\xc2-\xc5][\x80-\xbf]|\xe2[\x80-\xbf]{2}")
# The same happened twice to most accents of BX-Books.csv, and between the two `?` took the place of what latin-1 does
# not print: `ü` became `Ã?Â¼`, of which `Ã?¼` is left when `Â¼` is repaired. Of a capital letter and of `ß` no more is
# left than `Ã?Â?` or `Ã?`.
ACCENT_BROKEN_TWICE = re.compile("Ã\\?(?:Â?([\xa0-\xbf])|Â\\?)?")
NO_AUTHOR = ("n/a", "not applicable (na )", "unknown")


def split_values(text: str) -> list[str | None]:
    """The values of a line; `None` for an unquoted `NULL`. Escapes are still in them."""
    values, start = [], 0
    while True:
        match = QUOTED.match(text, start)
        if match is not None:
            values.append(match[1])
        else:
            match = UNQUOTED.match(text, start)
            if match is None:
                raise MalformedLine(f"value {len(values) + 1} has a quote that does not end", text)
            values.append(None if match[1] == "NULL" else match[1])
        if not match[0].endswith(SEPARATOR):
            return values
        start = match.end()


def columns_of(path, names: tuple[str, ...]) -> Callable[[str], list[str | None]]:
    """Takes a line of the file apart and returns the values of the named columns, wherever they stand.

    Raises:
        ValueError: the header lacks one of the columns.
    """
    with open_raw(path) as file:
        text = file.readline().decode("latin-1").rstrip("\r\n")
    try:
        header = split_values(text.removeprefix("ï»¿"))  # a byte order mark, where an editor has left one
    except MalformedLine:
        header = []
    missing = [name for name in names if name not in header]
    if missing:
        raise ValueError(
            f"{path}, line 1: no column {', '.join(missing)} in {text[:200]!r}; expected the header of the original "
            f"file, with {SEPARATOR.join(names)} among its columns, separated by {SEPARATOR!r}."
        )
    places = [header.index(name) for name in names]

    def split(text: str) -> list[str | None]:
        values = check_width(split_values(text), len(header), SEPARATOR, text)
        return [values[place] for place in places]

    return split


def repair_encoding(text: str) -> str:
    """Text whose UTF-8 was read as latin-1, once or more often, as it was written."""
    for _ in range(3):
        text = UTF8_AS_LATIN1.sub(lambda match: match[0].encode("latin-1").decode("utf-8", "replace"), text)
    # the last byte says which letter it was: in UTF-8 `ü` ends in that of `¼`, in latin-1 it stands 64 further up
    return ACCENT_BROKEN_TWICE.sub(lambda match: chr(ord(match[1]) + 64) if match[1] else "?", text)


STEPS = {
    "escaped character": lambda text: ESCAPED.sub(r"\1", text),
    "HTML entity": TIDY["HTML entity"],
    "broken accent": repair_encoding,
    "control character": TIDY["control character"],
    "superfluous space": TIDY["superfluous space"],
}


def tidy_location(text: str | None, changed: Callable[[str], None]) -> str | None:
    """`city, state, country` without the parts that say nothing: empty, `n/a`, or without a letter or digit."""
    text = tidy(text, changed, STEPS)
    parts = [part.strip(" \\\"'`") for part in text.split(",")] if text else []
    said = [part for part in parts if re.search(r"[^\W_]", part) and part.rstrip(" \\\"'`.").lower() != "n/a"]
    if len(said) < len(parts):
        changed("part of a location that says nothing")
    return ", ".join(said) or None


def number_in(name: str, text: str | None, plausible: range, changed: Callable[[str], None]) -> int | None:
    if not text or text == "NULL":
        return None
    number = whole_number(name, text)
    if number in plausible:
        return number
    changed(f"{name} outside {plausible[0]} to {plausible[-1]}")
    return None


def tidy_isbn(text: str | None) -> str:
    """Upper case, as some lines have a check digit `x` and others `X` for the same book."""
    isbn = (text or "").strip().upper()
    if not isbn or CONTROL_CHARACTER.search(isbn):
        raise MalformedLine("isbn is empty or holds a control character", text or "")
    return isbn


def parse_user(values: list, changed: Callable[[str], None]) -> tuple:
    user, location, age = values
    return whole_number("user id", user or ""), tidy_location(location, changed), number_in("age", age, AGES, changed)


def parse_book(values: list, changed: Callable[[str], None]) -> tuple:
    isbn, title, author, year, publisher = values
    author = tidy(author, changed, STEPS)
    if author is not None and author.lower() in NO_AUTHOR:
        changed("author that says nothing")
        author = None
    year = number_in("year", year, YEARS, changed)
    return tidy_isbn(isbn), tidy(title, changed, STEPS), author, year, tidy(publisher, changed, STEPS)


def parse_rating(values: list, changed: Callable[[str], None]) -> tuple:
    user, isbn, rating = values
    if rating not in RATINGS_BY_TEXT:
        raise MalformedLine(f"rating is not a whole number from {RATINGS[0]} to {RATINGS[-1]}", rating or "")
    return whole_number("user id", user or ""), tidy_isbn(isbn), RATINGS_BY_TEXT[rating]


def bookcrossing_tables(folder) -> list[RawTable]:
    """The tables of users, books and ratings (0 to 10).

    Args:
        folder: a `pathlib.Path` or `zipfile.Path` that holds `RAW_FILES`.

    Raises:
        ValueError: a file's header lacks a column.
    """
    ratings, books, users = (folder / name for name in RAW_FILES)
    user_split = columns_of(users, ("User-ID", "Location", "Age"))
    book_split = columns_of(books, ("ISBN", "Book-Title", "Book-Author", "Year-Of-Publication", "Publisher"))
    rating_split = columns_of(ratings, ("User-ID", "ISBN", "Book-Rating"))
    lines = LinesFormat("latin-1", header_lines=1)
    return [
        text_table("users", users, USER_COLUMNS, user_split, parse_user, lines),
        text_table("books", books, BOOK_COLUMNS, book_split, parse_book, lines),
        text_table("ratings", ratings, RATING_COLUMNS, rating_split, parse_rating, lines),
    ]


def bookcrossing_fields(ids_in_prompt: bool = False) -> list[FlipField]:
    """The eight fields of the paper, in its order; the ids and the location are on the ID side only unless
    `ids_in_prompt`.

    With the location a prompt names its user: 22,827 of 42,261 users, who have 56 % of the rows, are the only one with
    their location and age; of the age alone there are 89 prompts. What a location says of clicks is who the user is,
    too: its click rate ranks rows of the same users with an AUC of .615 to .620, and those of other users of the place
    with .509 to .521 (age: .510 to .527).

    A title is no key: editions of a book share it.
    """
    id_sides = ("id", "text") if ids_in_prompt else ("id",)
    return [
        FlipField("user_id", "int", entity="user", key=True, sides=id_sides),
        FlipField("location", entity="user", sides=id_sides),
        FlipField("age", "int", entity="user"),
        FlipField("isbn", wording="ISBN", entity="item", key=True, sides=id_sides),
        FlipField("title", entity="item", max_tokens=48),
        FlipField("author", entity="item"),
        FlipField("year", "int", wording="publication year", entity="item"),
        FlipField("publisher", entity="item"),
    ]


PAPER = "https://doi.org/10.1145/1060745.1060754"
PAGE = "http://www2.informatik.uni-freiburg.de/~cziegler/BX/"  # that of the files' author; not online any more

VALUES_NOTE = f"""\
Ages outside {AGES[0]} to {AGES[-1]}, years outside {YEARS[0]} to {YEARS[-1]} and authors that say nothing
(`Unknown`) are null. Escapes and HTML entities are resolved, accents of a wrong encoding repaired where that is
possible,
control characters and superfluous spaces removed, ISBNs in upper case, and parts of a location that say nothing (empty,
`n/a`) left out. Of several lines for an ISBN, a user or a user's rating of a book the first counts. How many values
were
changed is in `prepare_report.json`."""

LICENCE_NOTE = f"""\
The data were collected from bookcrossing.com by Cai-Nicolas Ziegler in August and September 2004 and are described in
the
[paper]({PAPER}) below. The files themselves carry no licence, and the
[page]({PAGE}) that distributed them is not online any more: find out what the terms of your
copy are, acknowledge the paper in publications, and do not push this folder to a public hub without the right to do
so. Others
get the same rows by running `flip-ctr prepare` on their own copy.

The rows hold demographics (location, age) of pseudonymous users, and `rejected.parquet` may hold some as well."""

CITATION = """\
@inproceedings{ziegler2005improving,
  title     = {Improving Recommendation Lists Through Topic Diversification},
  author    = {Ziegler, Cai-Nicolas and McNee, Sean M. and Konstan, Joseph A. and Lausen, Georg},
  booktitle = {Proceedings of the 14th International Conference on World Wide Web (WWW)},
  pages     = {22--32},
  year      = {2005},
  doi       = {10.1145/1060745.1060754}
}"""

DATASETS = {
    "bookcrossing": RawDataset(
        name="bookcrossing",
        files=RAW_FILES,
        tables=bookcrossing_tables,
        # of the original ratings a tenth are of books that BX-Books.csv lacks: they are unused, not malformed
        joins=(
            Join("users", {"user_id": "user_id"}, "unused", "unused", f"user is not in {RAW_FILES[2]}"),
            Join("books", {"isbn": "isbn"}, "unused", "unused", f"book is not in {RAW_FILES[1]}"),
        ),
        unique=True,
        again_reason="user has rated this book on an earlier line",
        fields=bookcrossing_fields,
        card_facts={
            "title": "BookCrossing for click-through rate prediction",
            "licence_link": PAGE,
            "licence": LICENCE_NOTE,
            "citation": CITATION,
            "values": VALUES_NOTE,
        },
        ratings=RATINGS,
        drop_ratings=(0,),
        click_threshold=8,
        item="isbn",
        described_at=f'Ziegler et al., "Improving Recommendation Lists Through Topic Diversification", {PAPER}',
    )
}
