"""`flip-ctr prepare --dataset goodreads`: both forms of interactions, the files around them, their dirt, and an account
of every line."""

import gzip
import json
import zipfile
from collections import Counter
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from flip_ctr.data.datasets import goodreads, goodreads_lines
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers import raw_files
from flip_ctr.data.readers.csv_files import LinesFormat, text_table
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.train import prepare
from flip_ctr.train.prepare import PrepareArguments

USERS, BOOKS = 20, 32
FIELDS = [
    "user_id",
    "book_id",
    "title",
    "genres",
    "average_rating",
    "text_reviews_count",
    "author_id",
    "author_name",
    "num_pages",
    "is_ebook",
    "format",
    "publisher",
    "publication_year",
    "work_id",
    "media_type",
]
BOOKS_FILE, GENRES_FILE = "goodreads_books_poetry.json.gz", "goodreads_book_genres_initial.json.gz"
AUTHORS_FILE, WORKS_FILE = "goodreads_book_authors.json.gz", "goodreads_book_works.json.gz"
JSON_FILE, CSV_FILE = "goodreads_interactions_poetry.json.gz", "goodreads_interactions.csv"
DATE = "Tue Oct 17 09:40:11 -0700 2017"
DATE_SECONDS = 1508258411


# --- raw files, as the originals are


def user(number: int) -> str:
    return f"{number:032x}"


def book(number: int, **values) -> dict:
    """A line of the books' file: all values are text."""
    plain = {
        "isbn": "0151686564",
        "text_reviews_count": str(3 * number),
        "series": ["834955"],
        "country_code": "US",
        "language_code": "en-US",
        "popular_shelves": [{"count": "15419", "name": "to-read"}],
        "asin": "",
        "is_ebook": "false",
        "average_rating": "4.09",
        "kindle_asin": "",
        "similar_books": ["884306"],
        "description": 'T. S. Eliot\'s "cats"',
        "format": "Hardcover",
        "link": "https://www.goodreads.com/book/show/402128",
        "authors": [{"author_id": str(100 + number % 7), "role": ""}],
        "publisher": "Harcourt Brace & Company",
        "num_pages": str(50 + number),
        "publication_day": "30",
        "isbn13": "9780151686568",
        "publication_month": "8",
        "edition_information": "",
        "publication_year": "1982",
        "url": "",
        "image_url": "",
        "book_id": str(1000 + number),
        "ratings_count": "15716",
        "work_id": str(5000 + number // 2),
        "title": f"Novel {number}",
        "title_without_series": f"Novel {number}",
    }
    return plain | values


def stars(person: int, number: int) -> int:
    return (3 * person + 7 * number) % 6


def interaction(person: int, number: int, **values) -> dict:
    minutes = (31 * person + number) % 997
    plain = {
        "user_id": user(person),
        "book_id": str(1000 + number),
        "review_id": f"{person * 1000 + number:032x}",
        "is_read": True,
        "rating": stars(person, number),
        "review_text_incomplete": "J\u00f3 k\u00f6nyv \ud83d\ude00",
        "date_added": f"Fri Apr {1 + minutes % 28:02} {minutes % 24:02}:{minutes % 60:02}:15 -0700 2013",
        "date_updated": DATE,
        "read_at": "",
        "started_at": "",
    }
    return plain | values


def interactions() -> list[dict]:
    return [interaction(person, number) for person in range(1, USERS + 1) for number in range(1, BOOKS + 1)]


def csv_lines() -> list[str]:
    """The same ratings; the CSV has numbers of its own for users and books, which start at 0."""
    rows = [
        [person - 1, number - 1, 1, stars(person, number), 0]
        for person in range(1, USERS + 1)
        for number in range(1, BOOKS + 1)
    ]
    return ["user_id,book_id,is_read,rating,is_reviewed", *(",".join(map(str, row)) for row in rows)]


GENRES = {"history, historical fiction, biography": 3, "fiction": 12, "poetry": 3}
AROUND = {
    GENRES_FILE: [
        {"book_id": str(1000 + number), "genres": GENRES if number > 1 else {}} for number in range(1, BOOKS + 1)
    ],
    AUTHORS_FILE: [
        {
            "average_rating": "3.51",
            "author_id": str(100 + number),
            "text_reviews_count": "634",
            "name": f"Author {number}",
        }
        for number in range(7)
    ],
    WORKS_FILE: [
        {
            "books_count": "2",
            "original_title": "",
            "media_type": "book" if number else "",
            "work_id": str(5000 + number),
        }
        for number in range(BOOKS // 2 + 1)
    ],
}
MAPS = {
    "book_id_map.csv": ["book_id_csv,book_id", *(f"{number - 1},{1000 + number}" for number in range(1, BOOKS + 1))],
    "user_id_map.csv": ["user_id_csv,user_id", *(f"{person - 1},{user(person)}" for person in range(1, USERS + 1))],
}


def write(folder: Path, files: dict[str, list]) -> Path:
    """Files of lines; what is no text is JSON. Packed where the name says so."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        data = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def write_json(folder: Path, rows=None, books=(), **other) -> Path:
    """All files around the interactions of a genre; `books` take the place of the first plain ones."""
    lines = [*books, *(book(number) for number in range(len(books) + 1, BOOKS + 1))]
    return write(folder, AROUND | {BOOKS_FILE: lines, JSON_FILE: rows or interactions()} | other)


def write_csv(folder: Path, rows=None, **other) -> Path:
    books = {"goodreads_books.json.gz": [book(number) for number in range(1, BOOKS + 1)]}
    return write(folder, AROUND | MAPS | books | {CSV_FILE: rows or csv_lines()} | other)


def run(data_dir, output_dir, **options) -> dict:
    options = {"later_counts": True} | options
    return prepare.run(PrepareArguments("goodreads", str(output_dir), str(data_dir), **options))


def all_rows(folder: Path) -> list[dict]:
    return [row for split in ("train", "validation", "test") for row in read_split(folder, split).to_pylist()]


def by_pair(folder: Path) -> dict[tuple, dict]:
    return {(row["user_id"], row["book_id"]): row for row in all_rows(folder)}


def rejected_lines(folder: Path) -> list[list]:
    return [list(row.values()) for row in pq.read_table(folder / "rejected.parquet").to_pylist()]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> SimpleNamespace:
    """Clean files of JSON as `raw`, what they become as `out`, and the `report`; tests only read them."""
    folder = tmp_path_factory.mktemp("clean")
    raw, out = write_json(folder / "raw"), folder / "out"
    return SimpleNamespace(raw=raw, out=out, report=run(raw, out))


# --- clean rows


def test_rows_are_typed_and_fields_are_the_papers(clean):
    values = [
        user(2),
        1010,
        "Novel 10",
        ["fiction", "history, historical fiction, biography", "poetry"],
        4.09,
        30,
        103,
        "Author 3",
        60,
        False,
        "Hardcover",
        "Harcourt Brace & Company",
        1982,
        5005,
        "book",
    ]
    rows = by_pair(clean.out)
    assert {name: rows[user(2), 1010][name] for name in FIELDS} == dict(zip(FIELDS, values))
    assert list(rows[user(2), 1010]) == [*FIELDS, "timestamp", "label"]
    assert rows[user(2), 1010]["label"] == (stars(2, 10) >= 4) and rows[user(1), 1002]["label"] == (stars(1, 2) >= 4)
    schema = DatasetSchema.load(clean.out)
    assert [field.name for field in schema.fields] == FIELDS and schema.user_column == "user_id"
    assert [field.name for field in schema.fields if field.key] == ["user_id", "book_id"]
    assert [field.name for field in schema.fields if not field.on_text_side] == [
        "user_id",
        "book_id",
        "author_id",
        "work_id",
    ]
    assert {field.name: field.kind for field in schema.fields if field.kind != "categorical"} == {
        "genres": "multi-valued",
        "average_rating": "numeric",
        "text_reviews_count": "numeric",
        "num_pages": "numeric",
    }


def test_what_counts_later_ratings_is_kept_only_when_asked(clean):
    def fields(**options) -> list[str]:
        return [
            one.name
            for one in prepare.open_source(PrepareArguments("goodreads", "o", str(clean.raw), **options)).fields
        ]

    later = ["average_rating", "text_reviews_count"]
    assert fields() == [name for name in FIELDS if name not in later]
    assert fields(later_counts=True) == fields(preset="paper") == FIELDS


def test_csv_and_json_give_the_same_rows_but_for_the_time(tmp_path, clean):
    report = run(write_csv(tmp_path / "raw-csv"), tmp_path / "out-csv")
    of_json = {
        pair: {name: value for name, value in row.items() if name != "timestamp"}
        for pair, row in by_pair(clean.out).items()
    }
    assert by_pair(tmp_path / "out-csv") == of_json
    assert report["notes"] == [f"There are no times, as {CSV_FILE} has none."]
    splits = [read_split(folder, "test").select(["user_id", "book_id"]) for folder in (clean.out, tmp_path / "out-csv")]
    assert splits[0] == splits[1]


@pytest.mark.parametrize("quoted", [False, True])
def test_the_csv_alone_has_its_own_user_ids(tmp_path, quoted):
    folder = write_csv(
        tmp_path / "raw", csv_lines() if not quoted else ['"' + line.replace(",", '","') + '"' for line in csv_lines()]
    )
    (folder / "user_id_map.csv").unlink()
    report = run(folder, tmp_path / "out")
    assert {row["user_id"] for row in all_rows(tmp_path / "out")} == set(range(USERS))
    assert DatasetSchema.load(tmp_path / "out").fields[0].type == "int"
    note = f"User ids are the numbers of {CSV_FILE}, as user_id_map.csv was not in the folder."
    assert note in report["notes"] and note in prepare.summary(report)
    assert note in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_fields_of_files_that_are_not_there_are_left_out(tmp_path):
    folder = write_json(tmp_path / "raw")
    for name in (GENRES_FILE, AUTHORS_FILE, WORKS_FILE):
        (folder / name).unlink()
    report = run(folder, tmp_path / "out")
    absent = ["genres", "author_name", "media_type"]
    assert [field.name for field in DatasetSchema.load(tmp_path / "out").fields] == [
        name for name in FIELDS if name not in absent
    ]
    assert not set(absent) & set(all_rows(tmp_path / "out")[0])
    assert "There is no field media_type, as goodreads_book_works.json.gz was not in the folder." in report["notes"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "There is no field genres, as goodreads_book_genres_initial.json.gz was not in the folder." in card


def test_unpacked_files_windows_lines_and_a_zip_give_the_same_rows(tmp_path, clean):
    (tmp_path / "plain").mkdir()
    for path in clean.raw.iterdir():
        (tmp_path / "plain" / path.name.removesuffix(".gz")).write_bytes(
            gzip.decompress(path.read_bytes()).replace(b"\n", b"\r\n")
        )
    run(tmp_path / "plain", tmp_path / "out-plain")
    with zipfile.ZipFile(tmp_path / "raw.zip", "w") as archive:
        for path in clean.raw.iterdir():
            archive.write(path, f"goodreads/{path.name}")
    run(tmp_path / "raw.zip", tmp_path / "out-zip")
    assert all_rows(clean.out) == all_rows(tmp_path / "out-plain") == all_rows(tmp_path / "out-zip")


def test_genres_are_read_together_and_what_they_share_counts_once(tmp_path):
    children = {
        "goodreads_books_children.json.gz": [book(1, title="Another"), book(40)],
        "goodreads_interactions_children.json.gz": [interaction(1, 1, rating=5), interaction(1, 40, rating=5)],
    }
    report = run(write_json(tmp_path / "raw", **children), tmp_path / "out")
    rows = by_pair(tmp_path / "out")
    assert (
        rows[user(1), 1001]["title"] == "Another" and rows[user(1), 1040]["title"] == "Novel 40"
    )  # files are read by name
    assert report["events_files"] == ["goodreads_interactions_children.json.gz", JSON_FILE]
    assert report["raw_files"][BOOKS_FILE]["unused_by_reason"] == {"book_id comes a second time": 1}
    assert report["dropped"]["user has this book on an earlier line"] == 1
    assert (
        report["rows_read"]
        == USERS * BOOKS + 2
        == report["rows_kept"] + report["malformed"] + sum(report["dropped"].values())
    )


# --- values


# values of a book, and what becomes of one of them, and how it was changed; book 1 has no genres
VALUES = [
    ({}, "genres", None, []),
    ({"title": "Cats &amp; Dogs"}, "title", "Cats & Dogs", ["HTML entity"]),
    ({"title": " The\tEnd  of\x85it "}, "title", "The End of it", ["control character", "superfluous space"]),
    ({"title": "half \ud83d character"}, "title", "half ? character", ["broken character"]),
    ({"title": "Denoël 😀"}, "title", "Denoël 😀", []),
    ({"title": ""}, "title", None, []),
    ({"title": None}, "title", None, []),
    ({"publisher": ""}, "publisher", None, []),
    ({"publication_year": "0"}, "publication_year", None, ["publication_year outside 1450 to 2018"]),
    ({"publication_year": "2037"}, "publication_year", None, ["publication_year outside 1450 to 2018"]),
    ({"publication_year": "65535"}, "publication_year", None, ["publication_year outside 1450 to 2018"]),
    ({"publication_year": "-44"}, "publication_year", None, ["publication_year outside 1450 to 2018"]),
    ({"publication_year": "1605"}, "publication_year", 1605, []),
    ({"publication_year": ""}, "publication_year", None, []),
    ({"num_pages": "0"}, "num_pages", None, ["num_pages outside 1 to 2147483647"]),
    ({"num_pages": "9" * 5000}, "num_pages", None, ["num_pages outside 1 to 2147483647"]),
    ({"num_pages": 56}, "num_pages", 56, []),
    ({"text_reviews_count": "3000000000"}, "text_reviews_count", None, ["text_reviews_count outside 0 to 2147483647"]),
    ({"text_reviews_count": "0"}, "text_reviews_count", 0, []),
    ({"average_rating": "0.00"}, "average_rating", None, ["average_rating outside 0.01 to 5.0"]),
    ({"average_rating": "5.00"}, "average_rating", 5.0, []),
    ({"is_ebook": "true"}, "is_ebook", True, []),
    ({"is_ebook": ""}, "is_ebook", None, []),
    ({"work_id": ""}, "work_id", None, []),
    ({"work_id": ""}, "media_type", None, []),
    ({"work_id": "77"}, "media_type", None, []),
    ({"authors": []}, "author_id", None, []),
    ({"authors": []}, "author_name", None, []),
    ({"authors": [{"author_id": "999", "role": ""}]}, "author_name", None, []),
    (
        {"authors": [{"author_id": "1", "role": "Illustrator"}, {"author_id": "102", "role": ""}]},
        "author_name",
        "Author 2",
        [],
    ),
    (
        {"authors": [{"author_id": "103", "role": "Editor"}, {"author_id": "1", "role": "Translator"}]},
        "author_name",
        "Author 3",
        [],
    ),
]


@pytest.fixture(scope="module")
def dirty_books(tmp_path_factory) -> tuple[dict, dict]:
    """Rows of the books that have these values, by book id, and how often values were changed."""
    folder = tmp_path_factory.mktemp("books")
    books = [book(number, **case[0]) for number, case in enumerate(VALUES, 1)]
    report = run(write_json(folder / "raw", books=books), folder / "out")
    return {row["book_id"]: row for row in all_rows(folder / "out")}, report["raw_files"][BOOKS_FILE]["values_changed"]


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_values_of_books(dirty_books, number):
    _, name, value, _ = VALUES[number]
    assert dirty_books[0][1001 + number][name] == value


def test_changed_values_are_counted(dirty_books):
    assert dirty_books[1] == Counter(kind for *_, kinds in VALUES for kind in kinds)


def test_times_are_seconds_since_1970_with_their_zone(tmp_path):
    rows = [interaction(1, 1, date_added=DATE), *interactions()[1:]]
    rows[1] |= {"date_added": "Tue Oct 17 16:40:11 +0000 2017"}
    rows[2] |= {"date_added": "", "rating": 5}
    rows[0] |= {"rating": 5}
    rows[1] |= {"rating": 5}
    run(write_json(tmp_path / "raw", rows), tmp_path / "out")
    found = by_pair(tmp_path / "out")
    assert [found[user(1), 1000 + number]["timestamp"] for number in (1, 2, 3)] == [DATE_SECONDS, DATE_SECONDS, None]


def test_many_dates_at_once_are_what_each_is():
    random = np.random.default_rng(0)
    dates = [
        datetime.strptime(f"{2000 + year} {day} {second}", "%Y %j %S").strftime(
            f"%a %b %d %H:%M:%S {'+-'[sign]}{zone:02}30 %Y"
        )
        for year, day, second, sign, zone in zip(
            random.integers(-400, 400, 500),
            random.integers(1, 366, 500),
            random.integers(0, 60, 500),
            random.integers(0, 2, 500),
            random.integers(0, 14, 500),
        )
    ]
    dates += ["Thu Feb 29 23:59:59 +0000 2024", "Wed Dec 31 23:59:59 -1200 1969", DATE]
    expected = [int(datetime.strptime(date, "%a %b %d %H:%M:%S %z %Y").timestamp()) for date in dates]
    assert (
        goodreads_lines.seconds_of_all(pa.array(dates)).to_pylist()
        == expected
        == [goodreads_lines.seconds(date) for date in dates]
    )
    assert goodreads_lines.seconds_of_all(pa.array(["", *dates]).slice(1)).to_pylist() == expected


WRONG_DATES = [
    "Tue Oct 32 09:40:11 -0700 2017",
    "Wed Feb 29 09:40:11 -0700 2017",
    "Tue Okt 17 09:40:11 -0700 2017",
    "Tue Oct 17 24:40:11 -0700 2017",
    "Tue Oct 17 09:60:11 -0700 2017",
    "Tue Oct 17 09:40:61 -0700 2017",
    "Tue Oct 17 09:40:11 *0700 2017",
    "Tue Oct 17 09:40:11 -0760 2017",
    "Tue Oct 17 09:40:11 -0700 0000",
    "tue Oct 17 09:40:11 -0700 2017",
    "Tue Oct 17 09-40-11 -0700 2017",
    "Tue Oct 00 09:40:11 -0700 2017",
    "2017-10-17 09:40:11",
    "Tue Oct 7 09:40:11 -0700 2017",
    "Tue Oct 17 09:40:11 -0700 2017 ",
    "Tue Oct \u0661\u0667 09:40:11 -0700 2017",
]


@pytest.mark.parametrize("date", WRONG_DATES)
def test_wrong_dates_are_refused_by_both_ways(date):
    assert goodreads_lines.seconds_of_all(pa.array([DATE, date])) is None
    with pytest.raises(raw_files.MalformedLine, match="date_added is not a date as 'Tue Oct 17 09:40:11 -0700 2017'"):
        goodreads_lines.seconds(date)


# --- lines that become no row

BAD = {
    3: ('{"user_id": "0', "line is not JSON"),
    5: ("[1, 2]", "line is not a JSON object"),
    6: (interaction(1, 6, rating=6), "rating is not a whole number from 0 to 5"),
    8: (interaction(1, 8, rating="4"), "rating is not a whole number from 0 to 5"),
    9: (interaction(1, 9, rating=True), "rating is not a whole number from 0 to 5"),
    11: (interaction(1, 11, rating=None), "rating is not a whole number from 0 to 5"),
    12: (interaction(1, 12, rating=4.5), "rating is not a whole number from 0 to 5"),
    14: (interaction(1, 14, user_id=""), "user_id is empty, or not of ASCII letters and digits"),
    15: (interaction(1, 15, user_id="a\nb"), "user_id is empty, or not of ASCII letters and digits"),
    17: (interaction(1, 17, book_id="x7"), "book_id is not a whole number"),
    18: (interaction(1, 18, book_id="0x1F"), "book_id is not a whole number"),
    20: (interaction(1, 20, book_id="-5"), "book_id is not a whole number"),
    21: (interaction(1, 21, book_id="9" * 19), "book_id is not a whole number"),
    23: (interaction(1, 23, book_id=["1"]), "book_id is not a single value"),
    24: ({"user_id": user(1), "rating": 4}, "book_id is not a whole number"),
    26: (interaction(1, 26, date_added="yesterday"), "date_added is not a date as 'Tue Oct 17 09:40:11 -0700 2017'"),
    27: ("", "blank line"),
    29: (json.dumps(interaction(1, 29)) * 2, "line is not JSON"),
    30: ("[" * 100_000, "line is not JSON"),
}
UNUSED = {
    40: (interaction(1, 500), f"book is not in {BOOKS_FILE}"),
    41: (interaction(1, 501, rating=0), f"book is not in {BOOKS_FILE}"),
    400: (interaction(3, 31 - 3, rating=5), "user has this book on an earlier line"),
}


def test_every_line_is_kept_dropped_or_rejected(tmp_path):
    rows = interactions()
    for number, (line, _) in (BAD | UNUSED).items():
        rows[number - 1] = line
    report = run(write_json(tmp_path / "raw", rows), tmp_path / "out", max_malformed_share=0.05)
    left = [row for number, row in enumerate(rows, 1) if number not in BAD | UNUSED]
    unrated = sum(row["rating"] == 0 for row in left)
    assert report["rows_read"] == len(rows) and report["malformed"] == len(BAD)
    assert report["dropped"] == {
        f"book is not in {BOOKS_FILE}": 2,
        "user has this book on an earlier line": 1,
        "rating 0": unrated,
    }
    assert report["rows_kept"] == sum(one["rows"] for one in report["splits"].values()) == len(left) - unrated
    assert report["rows_read"] == report["rows_kept"] + report["malformed"] + sum(report["dropped"].values())
    expected = [
        [JSON_FILE, number, reason, line if isinstance(line, str) else json.dumps(line)]
        for number, (line, reason) in sorted((BAD | UNUSED).items())
    ]
    assert rejected_lines(tmp_path / "out") == expected
    assert report == json.loads((tmp_path / "out" / "prepare_report.json").read_text(encoding="utf-8"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "ratings of 0 are dropped" in card and "academic use only" in card
    assert "wan2018item" in card and "wan2019fine" in card and "late 2017" in card


@pytest.mark.parametrize("size", [1, 5_000, 10**6])
def test_lines_read_at_once_are_what_each_of_them_is(tmp_path, monkeypatch, size):
    """Blocks of every size, with and without dirt, give the same rows, line numbers and reasons."""
    rows = interactions()[:300]
    for number, (line, _) in BAD.items():
        rows[number + 99] = line
    folder = write(tmp_path, {JSON_FILE: rows})

    def read(plain: bool) -> tuple:
        log = raw_files.LineLog(max_share=1.0)
        how = goodreads_lines.plain_interactions if plain else None
        table = text_table(
            "ratings",
            folder / JSON_FILE,
            goodreads_lines.INTERACTION_COLUMNS,
            goodreads_lines.json_object,
            goodreads_lines.parse_interaction,
            LinesFormat(),
            how,
        )
        lines, columns = [], []
        for chunk in table.read(log):
            lines += chunk.lines
            columns.append(pa.table(chunk.columns, names=list(goodreads_lines.INTERACTION_COLUMNS)))
        return lines, pa.concat_tables(columns).to_pylist(), log.files

    monkeypatch.setattr(raw_files.byte_blocks, "__defaults__", (size,))
    expected = read(plain=False)
    assert len(expected[0]) == 300 - len(BAD)
    assert read(plain=True) == expected


def test_csv_lines_are_kept_dropped_or_rejected(tmp_path):
    rows = csv_lines()
    bad = {
        4: ("1,2,1", "values: 3 for 5 columns"),
        7: ("1,2,1,6,0", "rating is not a whole number from 0 to 5"),
        8: ("1,2,1,,0", "rating is not a whole number"),
        9: ("1, 2,1,4,0", "book_id_csv is not a whole number"),
        11: (f"{'9' * 19},2,1,4,0", "user_id_csv is not a whole number"),
        12: ("", "blank line"),
    }
    unused = {
        14: ("7,999,1,4,0", "book is not in book_id_map.csv"),
        15: ("999,7,1,4,0", "user is not in user_id_map.csv"),
        300: (rows[99], "user has this book on an earlier line"),
        301: ("7,77,1,4,0", "book is not in goodreads_books.json.gz"),
    }
    for number, (line, _) in (bad | unused).items():
        rows[number - 1] = line
    maps = {"book_id_map.csv": [*MAPS["book_id_map.csv"], "77,4711"]}
    report = run(write_csv(tmp_path / "raw", rows, **maps), tmp_path / "out", max_malformed_share=0.02)
    assert rejected_lines(tmp_path / "out") == [
        [CSV_FILE, number, why, line] for number, (line, why) in sorted((bad | unused).items())
    ]
    assert report["malformed"] == len(bad) and report["rows_read"] == len(rows) - 1
    assert report["rows_read"] == report["rows_kept"] + report["malformed"] + sum(report["dropped"].values())


def test_lines_of_side_files_are_rejected_with_their_reason(tmp_path):
    books = [book(1), book(1, title="Another"), '{"book_id": "3', book(4, num_pages="many")]
    books += [book(5, authors="me"), book(6, is_ebook="maybe")]
    folder = write_json(tmp_path / "raw", books=books)
    with (folder / GENRES_FILE).open("ab") as file:  # a second gzip member
        file.write(gzip.compress(b'{"book_id": "1", "genres": ["poetry"]}\n{"book_id": "2", "genres": {"a": "1"}}\n'))
    report = run(folder, tmp_path / "out", max_malformed_share=0.2)
    found = {(file, line): reason for file, line, reason, _ in rejected_lines(tmp_path / "out") if file != JSON_FILE}
    assert found == {
        (BOOKS_FILE, 2): "book_id comes a second time",
        (BOOKS_FILE, 3): "line is not JSON",
        (BOOKS_FILE, 4): "num_pages is not a whole number",
        (BOOKS_FILE, 5): "authors is not a list of objects",
        (BOOKS_FILE, 6): "is_ebook is not true or false",
        (GENRES_FILE, BOOKS + 1): "genres is not an object of counts",
        (GENRES_FILE, BOOKS + 2): "genres is not an object of counts",
    }
    assert {row["title"] for row in all_rows(tmp_path / "out") if row["book_id"] == 1001} == {
        "Novel 1"
    }  # the first line counts
    assert report["dropped"][f"book is not in {BOOKS_FILE}"] == 5 * USERS


def test_text_of_rejected_lines_is_as_in_the_file(tmp_path):
    rows = [
        json.dumps(interaction(1, 500, review_text_incomplete="Jó könyv 😀"), ensure_ascii=False),
        *interactions()[1:],
    ]
    folder = write_json(tmp_path / "raw", rows)
    (folder / JSON_FILE).write_bytes(
        gzip.compress(gzip.decompress((folder / JSON_FILE).read_bytes()) + b'{"user_id": "\xff"}\n')
    )
    run(folder, tmp_path / "out", max_malformed_share=0.01)
    last = [JSON_FILE, USERS * BOOKS + 1, "bytes that are not utf-8", '{"user_id": "\\xff"}']
    assert rejected_lines(tmp_path / "out") == [[JSON_FILE, 1, f"book is not in {BOOKS_FILE}", rows[0]], last]


def test_a_file_that_is_cut_off_is_named_with_its_last_line(tmp_path):
    folder = write_json(tmp_path / "raw")
    data = (folder / JSON_FILE).read_bytes()
    (folder / JSON_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(
        ValueError, match=f"{JSON_FILE}: the packed file is cut off or damaged after line [1-9]\\d+ .*fetch it again"
    ):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- which files


@pytest.mark.parametrize(("name", "missing"), [(JSON_FILE, "goodreads_interactions"), (BOOKS_FILE, "goodreads_books")])
def test_missing_files_are_named(tmp_path, name, missing):
    folder = write_json(tmp_path / "raw")
    (folder / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"no {missing}\*; goodreads needs goodreads_interactions\*, goodreads_books\*"
    ):
        run(folder, tmp_path / "out")


def test_files_that_need_others_say_so(tmp_path):
    folder = write_json(tmp_path / "genre", **{"goodreads_interactions_comics_graphic.json.gz": interactions()})
    with pytest.raises(
        FileNotFoundError,
        match=r"no goodreads_books_comics_graphic.json.gz \(or goodreads_books.json.gz\), which goodr",
    ):
        run(folder, tmp_path / "out")
    folder = write_csv(tmp_path / "csv")
    (folder / "book_id_map.csv").unlink()
    with pytest.raises(FileNotFoundError, match=f"no book_id_map.csv, which {CSV_FILE} needs"):
        run(folder, tmp_path / "out")
    folder = write_csv(tmp_path / "all")
    (folder / "goodreads_books.json.gz").rename(folder / BOOKS_FILE)
    with pytest.raises(FileNotFoundError, match=f"no goodreads_books.json.gz, which {CSV_FILE} needs"):
        run(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (CSV_FILE, f"{CSV_FILE}, {JSON_FILE}, which do not go together.*leave one kind"),
        (
            "goodreads_interactions_dedup.json.gz",
            f"goodreads_interactions_dedup.json.gz, {JSON_FILE}, which do not go together",
        ),
        (
            "goodreads_interactions_poetry.json",
            f"goodreads_interactions_poetry.json and {JSON_FILE}, which hold the same",
        ),
        ("goodreads_book_works_small.json.gz", f"{WORKS_FILE}, goodreads_book_works_small.json.gz; leave one of them"),
    ],
)
def test_files_that_do_not_go_together_are_listed(tmp_path, name, message):
    folder = write_json(tmp_path / "raw", **{name: ["x"]})
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "out")


def test_a_csv_without_its_header_is_refused(tmp_path):
    folder = write_csv(tmp_path / "raw", csv_lines()[1:])
    with pytest.raises(
        ValueError, match=f"{CSV_FILE}, line 1: no column user_id, book_id, rating in '0, 0, 1, .*original file"
    ):
        run(folder, tmp_path / "out")


# --- options


def test_label_rule_and_its_defaults(tmp_path, clean):
    report, ratings = clean.report, [row["rating"] for row in interactions()]
    assert report["dropped"] == {"rating 0": ratings.count(0)}
    assert sum(one["clicks"] for one in report["splits"].values()) == sum(rating >= 4 for rating in ratings)
    other = run(clean.raw, tmp_path / "other", drop_ratings="", click_threshold=1)
    assert other["dropped"] == {} and other["rows_kept"] == len(ratings)
    assert sum(one["clicks"] for one in other["splits"].values()) == sum(rating >= 1 for rating in ratings)
    with pytest.raises(ValueError, match="--click_threshold must be from 1 to 5 for goodreads"):
        PrepareArguments("goodreads", "out", "raw", click_threshold=6)
    with pytest.raises(ValueError, match="--data_dir is needed for goodreads.*goodreads_interactions.*goodreads_books"):
        PrepareArguments("goodreads", "out")


def test_splits_by_time_need_json(tmp_path, clean):
    run(clean.raw, tmp_path / "out", split="time")
    train, _, test = (
        read_split(tmp_path / "out", name)["timestamp"].to_numpy() for name in ("train", "validation", "test")
    )
    assert train.max() <= test.min() and len(test)
    run(clean.raw, tmp_path / "last", split="leave_last_out")
    assert sorted(read_split(tmp_path / "last", "test")["user_id"].to_pylist()) == [
        user(person) for person in range(1, USERS + 1)
    ]
    with pytest.raises(
        ValueError, match=f"--split time: {CSV_FILE} has no column of times; use --split random, by_user"
    ):
        run(write_csv(tmp_path / "csv"), tmp_path / "out-csv", split="time")


# --- what comes after


def test_load_dataset_reads_the_folder(tmp_path, clean):
    from datasets import load_dataset

    dataset = load_dataset(str(clean.out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in dataset.items()} == {
        name: one["rows"] for name, one in clean.report["splits"].items()
    }
    assert dataset["train"].column_names == [*FIELDS, "timestamp", "label"]
    assert dataset["train"].features["genres"].feature.dtype == "string"


@pytest.fixture(scope="module")
def with_nulls(tmp_path_factory) -> Path:
    """A dataset folder in which a book lacks most values."""
    folder = tmp_path_factory.mktemp("nulls")
    empty = book(1, title="", num_pages="", average_rating="", is_ebook="", authors=[], work_id="")
    run(write_json(folder / "raw", books=[empty]), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("model", [None, "plm"])
def test_finetuning_runs_on_all_fifteen_fields(tmp_path, with_nulls, model, request):
    plm = model and request.getfixturevalue("plm")
    results = tiny.finetune(with_nulls, plm, tmp_path / "model", **({"strategy": "joint"} if model else {}))
    assert 0 <= results["test_auc"] <= 1 and results["test_rows"] > 0
    assert "goodreads" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_prompts_fit_the_papers_length():
    """Every value as long as its budget: about 180 tokens with a vocabulary that has the template's words."""
    fields = goodreads.goodreads_fields()
    words = " ; ".join(f"{field.wording} is" for field in fields if field.on_text_side)
    template = len(words.replace("-", " - ").split()) + 2
    assert template + sum(field.max_tokens for field in fields if field.on_text_side) <= 180
