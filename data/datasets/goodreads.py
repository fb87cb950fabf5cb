# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""GoodReads, the UCSD Book Graph (Wan & McAuley): which raw files go together, and their tables of books and
interactions.

Interactions are one CSV with numbers of its own for users and books, which two maps translate, or JSON lines, of all
books or of the books of one genre. How lines are read is in `goodreads_lines`.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from flip_ctr.data.datasets.goodreads_lines import (
    AUTHOR_COLUMNS,
    AVERAGE_RATINGS,
    BOOK_COLUMNS,
    COUNTS,
    GENRE_COLUMNS,
    INTERACTION_COLUMNS,
    RATINGS,
    WORK_COLUMNS,
    YEARS,
    csv_table,
    json_object,
    parse_author,
    parse_book,
    parse_genres,
    parse_interaction,
    parse_work,
    plain_interactions,
)
from flip_ctr.data.datasets.raw_dataset import RawDataset
from flip_ctr.data.prepare.labelled_rows import Join
from flip_ctr.data.readers.csv_files import LinesFormat, text_table
from flip_ctr.data.readers.raw_files import RawTable
from flip_ctr.modeling_flip.fields_flip import FlipField

# --- which files belong together

NAME = re.compile(
    r"goodreads_(interactions|books|book_authors|book_works|book_genres_initial)(?:_(\w+))?\.(csv|json)(?:\.gz)?"
)
INTERACTIONS, BOOKS, BOOK_MAP, USER_MAP = (
    "goodreads_interactions",
    "goodreads_books",
    "book_id_map.csv",
    "user_id_map.csv",
)
OPTIONAL = {
    "genres": "goodreads_book_genres_initial",
    "author_name": "goodreads_book_authors",
    "media_type": "goodreads_book_works",
}
WHOLE = ("", "dedup")  # what follows `goodreads_interactions` in the name of a file of all interactions


@dataclass(frozen=True)
class GoodreadsFiles:
    """The raw files of a folder that go together.

    Attributes:
        interactions: one file of all interactions, or one a genre.
        books: one file, or one a genre.
        optional: of `OPTIONAL` those fields whose file is there.
        book_map, user_map: of a CSV's numbers to the ids of the other files.
    """

    interactions: list
    books: list
    optional: dict[str, Any]
    book_map: Any = None
    user_map: Any = None

    @property
    def is_csv(self) -> bool:
        return self.book_map is not None


def find_files(folder) -> GoodreadsFiles:
    """The files of a folder (`pathlib.Path` or `zipfile.Path`) that go together; those of other kinds (reviews, series)
    are left alone.

    Raises:
        FileNotFoundError: a file is missing; the message names it and the file that needs it.
        ValueError: files do not go together; the message lists them.
    """
    entries = {path.name: path for path in sorted(folder.iterdir(), key=lambda path: path.name) if path.is_file()}
    found: dict[str, dict[str, Any]] = {}  # kind of file -> what follows in its name -> path
    for name, path in entries.items():
        match = NAME.fullmatch(name)
        if match is None:
            continue
        kind, part = f"goodreads_{match[1]}", match[2] or ""
        if kind == INTERACTIONS:
            part = "csv" if match[3] == "csv" else "" if part in WHOLE else part
        same = found.setdefault(kind, {})
        if part in same:
            raise ValueError(
                f"{folder} has {same[part].name} and {name}, which hold the same; leave one of them in the folder."
            )
        same[part] = path
    interactions, books = found.get(INTERACTIONS, {}), found.get(BOOKS, {})
    if not interactions:
        raise FileNotFoundError(
            f"{folder} has no {INTERACTIONS}.csv and no {INTERACTIONS}*.json.gz; goodreads needs one of them."
        )
    if len(interactions) > 1 and ("csv" in interactions or "" in interactions):
        raise ValueError(
            f"{folder} has {', '.join(path.name for path in interactions.values())}, which do not go together, as they "
            "hold the same interactions; leave one kind in the folder: the CSV, the JSON file of all interactions, or "
            "JSON files of genres."
        )

    chosen = {}
    for part, path in interactions.items():
        genre = "" if part == "csv" else part
        book = books.get(genre, books.get(""))
        if book is None:
            names = f"{BOOKS}_{genre}.json.gz (or {BOOKS}.json.gz)" if genre else f"{BOOKS}.json.gz"
            raise FileNotFoundError(f"{folder} has no {names}, which {path.name} needs.")
        chosen[book.name] = book
    optional = {}
    for field, kind in OPTIONAL.items():
        paths = list(found.get(kind, {}).values())
        if len(paths) > 1:
            raise ValueError(f"{folder} has {', '.join(path.name for path in paths)}; leave one of them in the folder.")
        if paths:
            optional[field] = paths[0]

    maps = {}
    if "csv" in interactions:
        for key, name in (("book_map", BOOK_MAP), ("user_map", USER_MAP)):
            maps[key] = entries.get(name) or entries.get(f"{name}.gz")
        if maps["book_map"] is None:
            name = interactions["csv"].name
            raise FileNotFoundError(
                f"{folder} has no {BOOK_MAP}, which {name} needs, as its book ids are numbers of its own."
            )
    return GoodreadsFiles(list(interactions.values()), list(chosen.values()), optional, **maps)


# --- tables


def goodreads_tables(files: GoodreadsFiles) -> list[RawTable]:
    """The tables of books, of what is known of them elsewhere, and of the interactions (0 to 5), which come last."""

    def json_table(
        name: str, paths, columns: dict[str, pa.DataType], parse: Callable, plain: Callable | None = None
    ) -> RawTable:
        return text_table(name, paths, columns, json_object, parse, LinesFormat(), plain)

    tables = [json_table("books", files.books, BOOK_COLUMNS, parse_book)]
    for field, (columns, parse) in OPTIONAL_TABLES.items():
        if field in files.optional:
            tables.append(json_table(field, files.optional[field], columns, parse))
    if not files.is_csv:
        return [
            *tables,
            json_table("ratings", files.interactions, INTERACTION_COLUMNS, parse_interaction, plain_interactions),
        ]
    user = {"user_id": pa.int64()}
    tables.append(
        csv_table(
            "book_map", files.book_map, ("book_id_csv", "book_id"), {"book_id_csv": pa.int64(), "book_id": pa.int64()}
        )
    )
    if files.user_map is not None:
        user = {"user_id_csv": pa.int64()}
        tables.append(
            csv_table("user_map", files.user_map, ("user_id_csv", "user_id"), user | {"user_id": pa.string()})
        )
    columns = user | {"book_id_csv": pa.int64(), "rating": pa.int64()}
    return [*tables, csv_table("ratings", files.interactions[0], ("user_id", "book_id", "rating"), columns)]


OPTIONAL_TABLES = {
    "genres": (GENRE_COLUMNS, parse_genres),
    "author_name": (AUTHOR_COLUMNS, parse_author),
    "media_type": (WORK_COLUMNS, parse_work),
}


def goodreads_joins(files: GoodreadsFiles) -> tuple[Join, ...]:
    """Interactions of unknown books or users, and repeated lines of side tables, are no errors of a file: they are
    unused."""
    books = ", ".join(path.name for path in files.books)
    joins = [Join("books", {"book_id": "book_id"}, "unused", "unused", f"book is not in {books}")]
    keys = {"genres": "book_id", "author_name": "author_id", "media_type": "work_id"}
    joins += [Join(field, {key: key}, "null", "unused") for field, key in keys.items() if field in files.optional]
    if files.user_map is not None:
        joins.insert(
            0,
            Join(
                "user_map", {"user_id_csv": "user_id_csv"}, "unused", "unused", f"user is not in {files.user_map.name}"
            ),
        )
    if files.is_csv:
        joins.insert(
            0,
            Join(
                "book_map", {"book_id_csv": "book_id_csv"}, "unused", "unused", f"book is not in {files.book_map.name}"
            ),
        )
    return tuple(joins)


def goodreads_fields(
    ids_in_prompt: bool = False, user_type: str = "string", absent: Sequence[str] = ()
) -> list[FlipField]:
    """The fifteen fields of the paper, in its order; the ids are on the ID side only unless `ids_in_prompt`.

    Of a user nothing is known but the id: no field of the prompt names a person. Author, work and title are no keys:
    books share them. Without ids a prompt fits into about 180 tokens, the paper's longest. Buckets of reviews are
    logarithmic, as a few books have most of them; those of pages are not, as a single wrong number would widen them
    all.

    Args:
        user_type: type of the user ids.
        absent: fields to leave out.
    """
    id_sides = ("id", "text") if ids_in_prompt else ("id",)
    fields = [
        FlipField("user_id", user_type, entity="user", key=True, sides=id_sides, max_tokens=24),
        FlipField("book_id", "int", entity="item", key=True, sides=id_sides, max_tokens=8),
        FlipField("title", entity="item", max_tokens=32),
        FlipField("genres", kind="multi-valued", max_values=10, entity="item", max_tokens=32),
        FlipField("average_rating", "float", kind="numeric", entity="item", max_tokens=6),
        FlipField(
            "text_reviews_count",
            "int",
            "number of reviews",
            kind="numeric",
            bucketing="log",
            entity="item",
            max_tokens=6,
        ),
        FlipField("author_id", "int", entity="item", sides=id_sides, max_tokens=8),
        FlipField("author_name", wording="author", entity="item", max_tokens=14),
        FlipField("num_pages", "int", "pages", kind="numeric", entity="item", max_tokens=4),
        FlipField("is_ebook", "bool", "e-book", entity="item", max_tokens=4),
        FlipField("format", entity="item", max_tokens=8),
        FlipField("publisher", entity="item", max_tokens=14),
        FlipField("publication_year", "int", entity="item", max_tokens=4),
        FlipField("work_id", "int", entity="item", sides=id_sides, max_tokens=8),
        FlipField("media_type", entity="item", max_tokens=6),
    ]
    return [field for field in fields if field.name not in absent]


# --- the dataset

PAGE = "https://mengtingwan.github.io/data/goodreads.html"

VALUES_NOTE = f"""\
Books have one author here, the first without a role (`Illustrator`, ...), and genres from the most to the least often
named.
Average ratings outside {AVERAGE_RATINGS[0]} to {AVERAGE_RATINGS[1]:g}, 0 pages, counts above {COUNTS[-1]:,} and
publication
years outside {YEARS[0]} to {YEARS[-1]} are null. HTML entities are resolved, control characters, broken characters and
superfluous spaces removed. Of several lines for a book, an author, a work or a user's rating of a book the first
counts. How
many values were changed is in `prepare_report.json`.

Average rating and number of reviews of a book are those at the time of the crawl, late 2017: they count the ratings
of this
dataset too, later ones included."""

LICENCE_NOTE = f"""\
The data were collected from the public shelves of goodreads.com in late 2017 by Mengting Wan and Julian McAuley,
University
of California San Diego. Their [page]({PAGE}) says: they are **for academic use only; do not redistribute them, or use
them
for commercial purposes**. This folder is therefore for your own use; do not push it to a public hub. Others get the
same
rows by running `flip-ctr prepare` on their own copy. Cite both papers below.

The rows hold the reading of pseudonymous people (user ids are anonymised by the authors of the data), and
`rejected.parquet`
may hold lines of interactions with the beginnings of reviews in them."""

CITATION = """\
@inproceedings{wan2018item,
  title     = {Item Recommendation on Monotonic Behavior Chains},
  author    = {Wan, Mengting and McAuley, Julian},
  booktitle = {Proceedings of the 12th ACM Conference on Recommender Systems (RecSys)},
  pages     = {86--94},
  year      = {2018},
  doi       = {10.1145/3240323.3240369}
}

@inproceedings{wan2019fine,
  title     = {Fine-Grained Spoiler Detection from Large-Scale Review Corpora},
  author    = {Wan, Mengting and Misra, Rishabh and Nakashole, Ndapa and McAuley, Julian},
  booktitle = {Proceedings of the 57th Annual Meeting of the Association for Computational Linguistics (ACL)},
  pages     = {2605--2610},
  year      = {2019},
  doi       = {10.18653/v1/P19-1248}
}"""

CARD_FACTS = {
    "title": "GoodReads for click-through rate prediction",
    "licence_link": PAGE,
    "licence": LICENCE_NOTE,
    "citation": CITATION,
    "values": VALUES_NOTE,
}


def goodreads_in_folder(folder) -> dict:
    """What of the dataset the files of a folder decide, see [`RawDataset`]. Errors are those of [`find_files`] and
    [`csv_table`]."""
    files = find_files(folder)
    absent = [field for field in OPTIONAL if field not in files.optional]
    notes = [f"There is no field {field}, as {OPTIONAL[field]}.json.gz was not in the folder." for field in absent]
    names = ", ".join(path.name for path in files.interactions)
    user_type = "string"
    if files.is_csv:
        notes.append(f"There are no times, as {names} has none.")
        if files.user_map is None:
            user_type = "int"
            notes.append(f"User ids are the numbers of {names}, as {USER_MAP} was not in the folder.")
    return {
        "files": tuple(path.name for path in (*files.interactions, *files.books)),
        "tables": lambda _: goodreads_tables(files),
        "joins": goodreads_joins(files),
        "fields": partial(goodreads_fields, user_type=user_type, absent=absent),
        "time": None if files.is_csv else "timestamp",
        "card_facts": CARD_FACTS | {"values": "\n\n".join([VALUES_NOTE, *([" ".join(notes)] if notes else [])])},
        "notes": tuple(notes),
    }


DATASETS = {
    "goodreads": RawDataset(
        name="goodreads",
        files=(f"{INTERACTIONS}*", f"{BOOKS}*"),
        in_folder=goodreads_in_folder,
        tables=lambda folder: goodreads_tables(find_files(folder)),
        joins=(),  # which tables there are to join, the folder says
        fields=goodreads_fields,
        card_facts=CARD_FACTS,
        ratings=RATINGS,
        drop_ratings=(0,),
        click_threshold=4,
        item="book_id",
        time="timestamp",
        unique=True,
        again_reason="user has this book on an earlier line",
        described_at=PAGE,
        later_counts=("average_rating", "text_reviews_count"),
    )
}
