"""`flip-ctr prepare --dataset bookcrossing`: each kind of dirt of the raw files, and an account of every line."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import tiny
from raw_bookcrossing import (
    BOOKS_FILE,
    HEADERS,
    RATINGS_FILE,
    USERS,
    USERS_FILE,
    book_line,
    isbn,
    rating_lines,
    user_line,
    write_raw,
)

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.raw_files import LineLog, write_typed
from flip_ctr.train import cli, prepare
from flip_ctr.train.prepare import PrepareArguments

COLUMNS = ["user_id", "location", "age", "isbn", "title", "author", "year", "publisher", "label"]


def run(data_dir, output_dir, **options) -> dict:
    return prepare.run(PrepareArguments("bookcrossing", str(output_dir), str(data_dir), **options))


def all_rows(folder: Path) -> list[dict]:
    return [row for split in ("train", "validation", "test") for row in read_split(folder, split).to_pylist()]


def read_first(raw: Path, file: str) -> tuple[dict, dict]:
    """The first row of a raw file as it is joined to the ratings, and which of its values were changed."""
    source = prepare.open_source(PrepareArguments("bookcrossing", "out", str(raw)))
    (table,) = (table for table in source.tables if file in table.files)
    log = LineLog()
    write_typed(table, raw / "typed.parquet", log)
    return pq.read_table(raw / "typed.parquet").to_pylist()[0], log.files[file]["values_changed"]


def read_user(tmp_path, line: str) -> tuple[dict, dict]:
    """What becomes of a line of the users' file."""
    return read_first(write_raw(tmp_path / "raw", users=[line]), USERS_FILE)


def read_book(tmp_path, line: str) -> tuple[dict, dict]:
    return read_first(write_raw(tmp_path / "raw", books=[line]), BOOKS_FILE)


def rejected_lines(folder: Path) -> list[list]:
    return [list(row.values()) for row in pq.read_table(folder / "rejected.parquet").to_pylist()]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> SimpleNamespace:
    """Clean files as `raw`, what they become as `out`, and the `report`; tests only read them."""
    folder = tmp_path_factory.mktemp("clean")
    raw, out = write_raw(folder / "raw"), folder / "out"
    return SimpleNamespace(raw=raw, out=out, report=run(raw, out))


# --- clean rows


def test_rows_are_typed_and_fields_are_the_papers(clean):
    rows = {(row["user_id"], row["isbn"]): row for row in all_rows(clean.out)}
    values = [1, "nyc, new york, usa", 21, isbn(3), "Novel 3", "Amy Tan", 1991, "Putnam Pub Group", 0]
    assert rows[1, isbn(3)] == dict(zip(COLUMNS, values))  # rated 2
    assert rows[1, isbn(1)]["label"] == 1  # rated 10
    schema = DatasetSchema.load(clean.out)
    assert [field.name for field in schema.fields] == COLUMNS[:-1] and schema.user_column == "user_id"
    assert [field.name for field in schema.fields if field.key] == ["user_id", "isbn"]
    assert {field.name for field in schema.fields if not field.on_text_side} == {"user_id", "location", "isbn"}
    assert [field.entity for field in schema.fields] == ["user"] * 3 + ["item"] * 5


@pytest.mark.parametrize("flags", [["--ids_in_prompt"], ["--preset", "paper"]])
def test_ids_are_in_the_prompt_when_asked(tmp_path, flags):
    raw = write_raw(tmp_path / "raw")
    files = ["--data_dir", str(raw), "--output_dir", str(tmp_path / "out")]
    assert cli.main(["prepare", "--dataset", "bookcrossing", *files, *flags]) == 0
    assert all(field.on_text_side for field in DatasetSchema.load(tmp_path / "out").fields)


def test_five_columns_any_order_and_a_zip_give_the_same_rows(tmp_path, clean):
    few = write_raw(tmp_path / "few", end="\n")
    lines = [line.split(";") for line in (few / BOOKS_FILE).read_text().splitlines()]
    (few / BOOKS_FILE).write_text(
        "\n".join(";".join([*line[1:5], line[0]]) for line in lines)
    )  # the last line has no end
    run(few, tmp_path / "out-few")
    with zipfile.ZipFile(tmp_path / "BX-CSV-Dump.zip", "w") as archive:
        for path in clean.raw.iterdir():
            archive.write(path, path.name)
    run(tmp_path / "BX-CSV-Dump.zip", tmp_path / "out-zip")
    assert all_rows(clean.out) == all_rows(tmp_path / "out-few") == all_rows(tmp_path / "out-zip")


# --- dirty values


@pytest.mark.parametrize(
    ("raw", "title", "kinds"),
    [
        (r"O\" Is for Outlaw", 'O" Is for Outlaw', ["escaped character"]),
        (r"Back\\Slash: \"J. Peterman\"", r'Back\Slash: "J. Peterman"', ["escaped character"]),
        (r"Ends in a backslash\\", "Ends in a backslash\\", ["escaped character"]),
        ('An "unescaped" quote', 'An "unescaped" quote', []),
        ("Angels &amp; Demons &lt;I&gt;", "Angels & Demons <I>", ["HTML entity"]),
        ("AT&T, R&Dcopy", "AT&T, R&Dcopy", []),
        ("Cats; Dogs &#38; Mice", "Cats; Dogs & Mice", ["HTML entity"]),
        ("Cats;Dogs", "Cats;Dogs", []),
        ("Denoël", "Denoël", []),
        ("NiccolÃ²", "Niccolò", ["broken accent"]),
        ("LÃ?Â¼bbe", "Lübbe", ["broken accent"]),
        ("LÃ\x83?Ã\x82Â¼bbe", "Lübbe", ["broken accent"]),  # the same in a file that was written anew in UTF-8
        ("StraÃ?Â?e", "Stra?e", ["broken accent"]),
        ("Don\x19t  go ", "Don t go", ["control character", "superfluous space"]),
        ("The\x85End", "The End", ["control character"]),
        (" ", None, ["superfluous space"]),
    ],
)
def test_titles_are_cleaned(tmp_path, raw, title, kinds):
    row, changed = read_book(tmp_path, book_line(1, raw))
    assert row["title"] == title and changed == dict.fromkeys(kinds, 1)


def test_publishers_and_authors_are_cleaned_too(tmp_path):
    lines = {
        "books": [book_line(1, author="Unknown", publisher="Little Brown &amp; Company")],
        "users": [user_line(1, "n/a, n/a, spain", age="4")],
    }
    report = run(write_raw(tmp_path / "raw", **lines), tmp_path / "out")
    row = next(row for row in all_rows(tmp_path / "out") if (row["user_id"], row["isbn"]) == (1, isbn(1)))
    assert row["author"] is None and row["publisher"] == "Little Brown & Company"
    assert (row["location"], row["age"]) == ("spain", None)
    changed = {"author that says nothing": 1, "HTML entity": 1}
    assert report["raw_files"][BOOKS_FILE]["values_changed"] == changed
    changed = {"part of a location that says nothing": 1, "age outside 5 to 100": 1}
    assert report["raw_files"][USERS_FILE]["values_changed"] == changed


@pytest.mark.parametrize(
    ("raw", "location"),
    [
        ("weston, , ", "weston"),
        (", , usa", "usa"),
        ("n/a, n/a, n/a", None),
        ("málaga, n/a, spain", "málaga, spain"),
        ("nyc, -, usa", "nyc, usa"),
        ("nyc , new york,usa", "nyc, new york, usa"),
        (r'zurich, \\"n/a\, switzerland', "zurich, switzerland"),
        (r'paris, \\"n/a\\"., france', "paris, france"),
        (r"lisbon, \"n/a\", portugal", "lisbon, portugal"),
        ("&#321;&#243;d&#378;, n/a, poland", "Łódź, poland"),
        ("nyc; bronx, usa", "nyc; bronx, usa"),
    ],
)
def test_locations_are_tidied(tmp_path, raw, location):
    assert read_user(tmp_path, user_line(1, raw))[0]["location"] == location


@pytest.mark.parametrize(
    ("raw", "age"),
    [
        ("NULL", None),
        ('"NULL"', None),
        ('""', None),
        ('"4"', None),
        ('"5"', 5),
        ('"100"', 100),
        ('"101"', None),
        ('"0"', None),
    ],
)
def test_wrong_ages_are_null(tmp_path, raw, age):
    row, changed = read_user(tmp_path, user_line(1, age=raw))
    assert row["age"] == age
    assert changed == ({"age outside 5 to 100": 1} if raw in ('"0"', '"4"', '"101"') else {})


@pytest.mark.parametrize(("raw", "year"), [("0", None), ("2037", None), ("2006", None), ("2005", 2005), ("1376", None)])
def test_wrong_years_are_null(tmp_path, raw, year):
    row, changed = read_book(tmp_path, book_line(1, year=raw))
    assert row["year"] == year and changed == ({} if year else {"year outside 1800 to 2005": 1})


def test_a_check_digit_in_lower_case_is_the_same_book(tmp_path):
    books = [book_line(1), book_line(1, "Another").replace(isbn(1), isbn(1).lower()), book_line(2)]
    ratings = [line.replace(isbn(3), isbn(3).lower()) for line in rating_lines()]
    report = run(write_raw(tmp_path / "raw", ratings, books), tmp_path / "out")
    rows = all_rows(tmp_path / "out")
    assert {row["title"] for row in rows if row["isbn"] == isbn(1)} == {"Novel 1"}  # the first line counts
    # book 3 lost its line to the two of book 1
    assert rejected_lines(tmp_path / "out")[0] == [BOOKS_FILE, 3, "isbn comes a second time", books[1]]
    assert report["raw_files"][BOOKS_FILE]["unused_by_reason"] == {"isbn comes a second time": 1}
    assert f"{BOOKS_FILE}: 1 line dropped: isbn comes a second time" in prepare.summary(report)


# --- lines that become no row


def test_every_line_is_kept_dropped_or_rejected(tmp_path):
    ratings = rating_lines()
    bad = {
        3: ('"1";"x";"5', "value 3 has a quote that does not end"),
        5: ('"1";"0001"', "2 fields, not 3 separated by ';'"),
        6: (f'"1";"{isbn(2)}";"11"', "rating is not a whole number from 0 to 10"),
        8: (f'"1";"{isbn(2)}";NULL', "rating is not a whole number from 0 to 10"),
        9: (f'"one";"{isbn(2)}";"5"', "user id is not a whole number"),
        11: ('"1";"";"5"', "isbn is empty or holds a control character"),
        12: ("", "blank line"),
    }
    unused = {
        14: (f'"999";"{isbn(2)}";"5"', f"user is not in {USERS_FILE}"),
        15: ('"1";"0330299891";"5"', f"book is not in {BOOKS_FILE}"),
        16: ('"1";"0330299891";"0"', f"book is not in {BOOKS_FILE}"),
        400: (ratings[100], "user has rated this book on an earlier line"),
        401: (ratings[100][:-3] + '"3"', "user has rated this book on an earlier line"),
    }
    for number, (line, _) in (bad | unused).items():
        ratings[number - 2] = line  # line 1 is the header
    report = run(write_raw(tmp_path / "raw", ratings), tmp_path / "out", max_malformed_share=0.02)
    left = [line for number, line in enumerate(ratings, 2) if number not in bad | unused]
    implicit = sum(line.endswith('"0"') for line in left)
    assert (tmp_path / "raw" / RATINGS_FILE).read_bytes().count(b"\n") == report["rows_read"] + 1  # and the header
    assert report["rows_read"] == len(ratings) and report["malformed"] == len(bad)
    assert report["dropped"] == {
        f"user is not in {USERS_FILE}": 1,
        f"book is not in {BOOKS_FILE}": 2,
        "user has rated this book on an earlier line": 2,
        "rating 0": implicit,
    }
    assert report["rows_kept"] == sum(one["rows"] for one in report["splits"].values()) == len(left) - implicit
    assert report["rows_read"] == report["rows_kept"] + report["malformed"] + sum(report["dropped"].values())
    expected = [[RATINGS_FILE, number, reason, line] for number, (line, reason) in sorted((bad | unused).items())]
    assert rejected_lines(tmp_path / "out") == expected
    assert report == json.loads((tmp_path / "out" / "prepare_report.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| dropped: book is not in BX-Books.csv | 2 |" in card and "ratings of 0 are dropped" in card
    assert "rejected.parquet" in card and "Ages outside 5 to 100" in card and "ziegler2005improving" in card


def test_books_with_a_shifted_line_and_their_ratings_are_rejected(tmp_path):
    # as in the original: the title's closing quote is escaped, and takes the author in
    line = book_line(1, title="DK Readers: Creating the X-Men)\\").replace('";"Amy', '";Amy')
    report = run(write_raw(tmp_path / "raw", books=[line]), tmp_path / "out", max_malformed_share=0.05)
    assert rejected_lines(tmp_path / "out")[0] == [BOOKS_FILE, 2, "7 fields, not 8 separated by ';'", line]
    assert report["dropped"][f"book is not in {BOOKS_FILE}"] == USERS and report["malformed"] == 0


def test_many_orphans_are_no_reason_to_refuse_but_malformed_lines_are(tmp_path):
    orphans = [f'"{1000 + number}";"{isbn(1)}";"5"' for number in range(200)]
    report = run(write_raw(tmp_path / "raw", rating_lines() + orphans), tmp_path / "out")
    assert report["dropped"][f"user is not in {USERS_FILE}"] == len(rejected_lines(tmp_path / "out")) == 200
    raw = write_raw(tmp_path / "torn", [*rating_lines(), "torn"])
    with pytest.raises(ValueError, match=f"{RATINGS_FILE}: 1 of 601 lines .*--max_malformed_share.*line 602: 1 fields"):
        run(raw, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_year_or_age_that_is_no_number_is_malformed(tmp_path):
    raw = write_raw(tmp_path / "raw", books=[book_line(1, year="DK Publishing Inc")])
    with pytest.raises(ValueError, match=f"{BOOKS_FILE}.*line 2: year is not a whole number: 'DK Publishing Inc'"):
        run(raw, tmp_path / "out")
    with pytest.raises(ValueError, match=f"{USERS_FILE}.*line 2: age is not a whole number: 'old'"):
        run(write_raw(tmp_path / "users", users=[user_line(1, age='"old"')]), tmp_path / "out")


def test_a_file_without_its_header_or_lines_is_refused(tmp_path):
    raw = write_raw(tmp_path / "raw", headers=HEADERS | {USERS_FILE: '"User-ID";"Place"'})
    with pytest.raises(ValueError, match=f"{USERS_FILE}, line 1: no column Location, Age in .*User-ID;Location;Age"):
        run(raw, tmp_path / "out")
    (raw / USERS_FILE).write_text(HEADERS[USERS_FILE])
    with pytest.raises(ValueError, match=f"{USERS_FILE} is empty"):
        run(raw, tmp_path / "out")
    bom = write_raw(tmp_path / "bom", headers=HEADERS | {USERS_FILE: "ï»¿" + HEADERS[USERS_FILE]})
    assert run(bom, tmp_path / "out")["malformed"] == 0


# --- options


def test_label_rule_and_its_defaults(tmp_path, clean):
    report, stars = clean.report, [int(line.split('"')[-2]) for line in rating_lines()]
    assert report["dropped"] == {"rating 0": stars.count(0)}
    assert sum(one["clicks"] for one in report["splits"].values()) == sum(star >= 8 for star in stars)
    assert DatasetSchema.load(clean.out).protocol["drop_ratings"] == [0]
    other = run(clean.raw, tmp_path / "other", drop_ratings="0, 10", click_threshold=6)
    assert other["dropped"] == {"rating 0": stars.count(0), "rating 10": stars.count(10)}
    assert sum(one["clicks"] for one in other["splits"].values()) == sum(6 <= star <= 9 for star in stars)
    implicit = run(clean.raw, tmp_path / "implicit", drop_ratings="", click_threshold=1)
    assert implicit["dropped"] == {} and implicit["rows_kept"] == len(stars)


WRONG_OPTIONS = [
    ({"data_dir": None}, "--data_dir is needed for bookcrossing.*BX-Book-Ratings.csv.*described in Ziegler"),
    (
        {"split": "time"},
        "--split time: this dataset has no column of times; use --split random, by_user, cold_items, cold_users",
    ),
    ({"drop_ratings": "11"}, "--drop_ratings takes ratings from 0 to 10 for bookcrossing.*'11'"),
    ({"click_threshold": 0}, "--click_threshold must be from 1 to 10 for bookcrossing.*got 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareArguments(**{"dataset": "bookcrossing", "output_dir": "out", "data_dir": "raw"} | options)


@pytest.mark.parametrize(("split", "column"), [("cold_items", "isbn"), ("cold_users", "user_id")])
def test_cold_splits_share_no_item_or_user(tmp_path, split, column):
    run(write_raw(tmp_path / "raw"), tmp_path / "out", split=split, split_seed=1)
    parts = [set(read_split(tmp_path / "out", name)[column].to_pylist()) for name in ("train", "validation", "test")]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts))


# --- what comes after


def test_load_dataset_takes_no_rejected_line_for_a_row(tmp_path):
    from datasets import load_dataset

    report = run(write_raw(tmp_path / "raw", [*rating_lines(), f'"999";"{isbn(1)}";"5"']), tmp_path / "out")
    rows = {name: one["rows"] for name, one in report["splits"].items()}
    for card in (True, False):  # neither with the card nor without
        if not card:
            (tmp_path / "out" / "README.md").unlink()
        dataset = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / f"cache-{card}"))
        assert {name: len(part) for name, part in dataset.items()} == rows
        assert dataset["train"].column_names == COLUMNS


@pytest.fixture(scope="module")
def with_nulls(tmp_path_factory) -> Path:
    """A dataset folder in which a user lacks all values."""
    folder = tmp_path_factory.mktemp("nulls")
    run(write_raw(folder / "raw", users=[user_line(1, "n/a, , ", age="NULL")]), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("model", [None, "plm"])
def test_finetuning_runs_on_the_folder(tmp_path, with_nulls, model, request):
    plm = model and request.getfixturevalue("plm")
    results = tiny.finetune(with_nulls, plm, tmp_path / "model", **({"strategy": "joint"} if model else {}))
    assert 0 <= results["test_auc"] <= 1 and results["test_rows"] > 0
    assert "bookcrossing" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
