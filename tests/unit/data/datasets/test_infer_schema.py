"""`flip-ctr prepare --infer_schema`: a first schema that prepares as it stands, once the label is named."""

import csv
import io
import json
import os
import random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flip_ctr.data.datasets import infer_schema as infer
from flip_ctr.data.datasets.column_profiles import is_digit_time, profile
from flip_ctr.data.datasets.infer_schema import write_schema
from flip_ctr.data.datasets.schema_guess import Group, SchemaGuess, same_key
from flip_ctr.data.datasets.table_schema import read_schema
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.csv_files import CsvFormat
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.train import cli, prepare
from flip_ctr.train.prepare import PrepareArguments

LONG = "a long description of the thing " * 10


def clicks(count=1500) -> list[dict]:
    generator = random.Random(0)
    return [
        {
            "user_id": generator.randrange(60),
            "movieId": generator.randrange(40),
            "clicked": generator.randrange(2),
            "device": generator.choice(["phone", "tv"]),
            "dwell": round(generator.random() * 100, 2),
            "timestamp": 1_700_000_000 + row,
            "zip": f"0{generator.randrange(60):04}",
            "tags": "|".join(generator.sample(["a", "b", "c", "d", "e"], generator.randrange(1, 4))),
            "session_id": f"s{row}",
            "empty": "",
            "same": "x",
        }
        for row in range(count)
    ]


def movies() -> list[dict]:
    return [
        {
            "movieId": movie,
            "title": f"Film {movie}",
            "genres": ["Drama", "War"][: 1 + movie % 2],
            "about": f"{movie} {LONG}",
            "device": "any",
            "year": 1990 + movie % 10,
        }
        for movie in range(40)
    ]


def write_csv(path, rows, **options):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def fields_of(path) -> dict[str, dict]:
    return {field["name"]: field for field in yaml.safe_load(path.read_text())["fields"]}


def test_a_schema_of_two_tables_is_guessed_and_prepares(tmp_path):
    write_csv(tmp_path / "clicks.csv", clicks())
    (tmp_path / "movies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in movies()))
    target = tmp_path / "schema.yaml"
    notes = write_schema([str(tmp_path / "clicks.csv"), str(tmp_path / "movies.jsonl")], target)
    schema = read_schema(target)
    assert (schema.name, schema.label, schema.user, schema.item, schema.time) == (
        "clicks",
        "clicked",
        "user_id",
        "movieId",
        "timestamp",
    )
    assert schema.events.files == ("clicks.csv",) and "#" in target.read_text()
    (join,) = schema.joins
    assert (join.on, join.duplicates) == ({"movieId": "movieId"}, "reject")
    fields = {field.name: field for field in schema.fields}
    assert [name for name, field in fields.items() if field.key] == ["user_id", "movieId"]
    assert all(fields[name].sides == ("id",) for name in ("user_id", "movieId", "session_id"))
    assert {name: field.entity for name, field in fields.items()} == {
        "user_id": "user",
        "movieId": "item",
        "device": "context",
        "dwell": "context",
        "zip": "user",
        "tags": "item",
        "session_id": "context",
        "title": "item",
        "genres": "item",
        "about": "item",
        "year": "item",
    }
    assert (fields["zip"].type, fields["dwell"].kind, fields["year"].kind) == ("string", "numeric", "categorical")
    assert (fields["tags"].kind, fields["tags"].separator, fields["genres"].kind) == (
        "multi-valued",
        "|",
        "multi-valued",
    )
    assert fields["about"].sides == ("text",)
    for name in ("timestamp", "clicked", "empty", "same", "movies_device"):
        assert name not in fields
    for said in (
        "label: clicked",
        "tags: text is taken for several values, separated by '|'",
        "session_id: almost every row",
        "movies.jsonl is joined by movieId",
    ):
        assert said in notes
    report = prepare.run(PrepareArguments("table", str(tmp_path / "out"), schema=str(target), split="time"))
    assert report["rows_kept"] == 1500 and DatasetSchema.load(tmp_path / "out").user_column == "user_id"


def test_every_format_gives_the_same_fields(tmp_path):
    rows = [row | {"tags": row["tags"].split("|"), "empty": None} for row in clicks()]
    (tmp_path / "clicks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clicks.parquet", row_group_size=100)
    write_csv(tmp_path / "clicks.csv", clicks())
    found = {}
    for ending in ("csv", "jsonl", "parquet"):
        write_schema([str(tmp_path / f"clicks.{ending}")], tmp_path / f"{ending}.yaml")
        found[ending] = fields_of(tmp_path / f"{ending}.yaml")
        prepare.run(PrepareArguments("table", str(tmp_path / f"out-{ending}"), schema=str(tmp_path / f"{ending}.yaml")))
    assert found["csv"].pop("tags") | {"separator": "?"} == found["jsonl"]["tags"] | {"separator": "?"}
    found["jsonl"].pop("tags"), found["parquet"].pop("tags")
    assert found["csv"] == found["jsonl"] == found["parquet"]


def test_a_table_without_ids_label_or_plain_names_prepares_once_the_label_is_named(tmp_path):
    generator = random.Random(1)
    rows = [
        {
            "Weird Name!": generator.choice(["x", "y"]),
            "yes": generator.randrange(9),
            "Label": "kept",
            "_row": generator.randrange(50),
            "flag": generator.choice(["true", "false"]),
        }
        for _ in range(600)
    ]
    rows[0]["Label"] = "other"
    path = write_csv(tmp_path / "odd.dat", rows, delimiter=";")
    target = tmp_path / "new" / "odd.yaml"
    notes = write_schema([str(path)], target)
    assert (
        "label: name it; no column looks like one, of 0 and 1 are flag" in notes
        and "of two values one can be a click by a rule, as: `Weird Name!` == " in notes
        and "user and item: no column looks like its key; say `user: COLUMN` and `item: COLUMN`" in notes
    )
    args = PrepareArguments("table", str(tmp_path / "out"), schema=str(target), data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="odd.yaml: `label` is missing; name a column"):
        prepare.run(args)
    text = target.read_text().replace("label:\n", "label: flag\n")  # which then is no field
    target.write_text(
        "".join(line for line in text.splitlines(keepends=True) if not line.startswith("  - {name: flag,"))
    )
    report = prepare.run(args)
    assert report["rows_kept"] == 600
    assert {field.name for field in DatasetSchema.load(tmp_path / "out").fields} == {
        "Weird Name!",
        "yes",
        "Label_value",
        "row_value",
    }


def test_ratings_null_words_dates_and_weights(tmp_path):
    generator = random.Random(2)
    rows = [
        {
            "reader": user,
            "book": f"b{generator.randrange(30)}",
            "rating": 1 + generator.randrange(10),
            "age": generator.choice(["NULL", "20", "31"]),
            "when": f"2024-01-{1 + generator.randrange(28):02}",
            "weight": generator.choice([0.5, 1]),
        }
        for user in range(30)
        for _ in range(20)
    ]
    path = write_csv(tmp_path / "r.tsv", rows, delimiter="\t")
    notes = write_schema([str(path)], tmp_path / "s.yaml")
    schema = read_schema(tmp_path / "s.yaml")
    assert (schema.label, schema.time, schema.sample_weight) == ("rating >= 8", "when", "weight")
    assert schema.events.null_values == {"NULL"} and schema.events.described()["types"] == {"when": "timestamp"}
    assert next(field.type for field in schema.fields if field.name == "age") == "int" and "NULL" in notes
    assert (
        prepare.run(PrepareArguments("table", str(tmp_path / "out"), schema=str(tmp_path / "s.yaml"), split="time"))[
            "rows_kept"
        ]
        == 600
    )


def test_nothing_is_overwritten(tmp_path):
    path = write_csv(tmp_path / "clicks.csv", clicks(10))
    (tmp_path / "schema.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match="schema.yaml is there already, and is not overwritten"):
        write_schema([str(path)], tmp_path / "schema.yaml")
    assert (tmp_path / "schema.yaml").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="--infer_schema: no file fits 'nothing.csv'"):
        write_schema(["nothing.csv"], tmp_path / "new.yaml")


def test_files_without_rows_are_refused(tmp_path):
    for name, text in (("a.csv", "a,b\n"), ("b.jsonl", ""), ("c.csv", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} (has no rows to look at|is empty)"):
            write_schema([str(tmp_path / name)], tmp_path / "s.yaml")
    assert not (tmp_path / "s.yaml").exists()
    (tmp_path / "big.jsonl").write_text('{"rating": 1' + "0" * 400 + "}\n" + '{"rating": 2}\n')
    write_schema([str(tmp_path / "big.jsonl")], tmp_path / "s.yaml")


def test_only_a_sample_is_read_and_of_parquet_from_later_groups_too(tmp_path):
    pq.write_table(
        pa.table({"user_id": list(range(1000)), "late": [None] * 900 + ["x", "y"] * 50}),
        tmp_path / "t.parquet",
        row_group_size=100,
    )
    (tmp_path / "t.csv").write_text("a\n" + "1\n" * 1000 + "broken")
    write_schema([str(tmp_path / "t.parquet")], tmp_path / "p.yaml", rows=100)
    assert "late" in fields_of(tmp_path / "p.yaml")
    write_schema([str(tmp_path / "t.csv")], tmp_path / "c.yaml", rows=100)  # the broken value lies behind the sample
    assert "# a: always '1' in the sample" in (tmp_path / "c.yaml").read_text()


@pytest.mark.parametrize(
    ("values", "kind", "separator"),
    [
        (["02139", "12345"], "string", None),
        (["1", "2", ""], "int", None),
        (["1.5", "2"], "float", None),
        (["0", "1", "1"], "bool", None),
        (["True", "false"], "bool", None),
        (["2024-01-01", "2024-01-02 12:00"], "timestamp", None),
        (["12345678901234567890"], "string", None),
        ([1, 2.5, None], "float", None),
        ([["a"], None], "string", ""),
        (["Paris, La", "Rome, Il", "Oslo", "Bern"], "string", None),
        (["a,b", "b,c", "a,c", "c,b,a", "b,a"], "string", ","),
        ([None, ""], "string", None),
    ],
)
def test_types_of_columns(values, kind, separator):
    found = profile("c", values)
    assert (found.type, found.separator, found.rows) == (kind, separator, len(values))


def test_the_command_writes_and_says_what_to_look_at(tmp_path, capsys, monkeypatch):
    write_csv(tmp_path / "clicks.csv", clicks(50))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", "--infer_schema", "clicks.csv"]) == 0
    assert "schema.yaml written" in capsys.readouterr().out and (tmp_path / "schema.yaml").is_file()
    assert infer.SAMPLE_ROWS >= 10_000


# --- what a sample may hold besides


@pytest.mark.parametrize("inside", [False, True])
def test_objects_are_left_out_and_said_so(tmp_path, inside):
    value = {"a": 1}
    rows = [
        {"user_id": n % 7, "item_id": n % 5, "d": [value] if inside else value, "clicked": n % 2} for n in range(50)
    ]
    (tmp_path / "clicks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_schema([str(tmp_path / "clicks.jsonl")], str(tmp_path / "s.yaml"))
    assert "# d: objects, which no field can hold" in (tmp_path / "s.yaml").read_text()
    # (nor is the label a field, though the name of another column is part of its name)
    assert [field["name"] for field in yaml.safe_load((tmp_path / "s.yaml").read_text())["fields"]] == [
        "user_id",
        "item_id",
    ]


@pytest.mark.parametrize(("start", "encoding"), [(b"\xef\xbb\xbf", None), (b"", "latin-1")])
def test_a_byte_order_mark_says_utf_8_and_a_guess_of_latin_1_is_said(tmp_path, start, encoding):
    lines = b"".join(b"%d,%d,caf\xc3\xa9,%d\n" % (n % 7, n % 5, n % 2) for n in range(50))
    (tmp_path / "clicks.csv").write_bytes(start + b"user_id,item_id,name,clicked\n" + lines + b"1,2,\xff,1\n")
    said = write_schema([str(tmp_path / "clicks.csv")], str(tmp_path / "s.yaml"))
    schema = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert schema.get("encoding") == encoding and schema["user"] == "user_id"
    assert ("is taken for latin-1" in said) == (encoding is not None)


# --- kinds of files, columns and frames


def rows(count=200, **columns) -> list[dict]:
    """Rows of a user, an item and a click, with more columns: functions of a generator and the row's number."""
    generator = random.Random(0)
    return [
        {"user_id": generator.randrange(20), "item_id": f"i{generator.randrange(30)}"}
        | {name: value(generator, number) for name, value in columns.items()}
        | {"clicked": generator.randrange(2)}
        for number in range(count)
    ]


def inferred(folder, text: str | bytes, name="clicks.csv") -> tuple[str, dict]:
    """The schema of a file as text and as its values."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = infer.infer_schema(path)
    return found, yaml.safe_load(found)


def csv_text(rows: list[dict], delimiter=",", header=True) -> str:
    lines = [list(rows[0])] * header + [["" if one is None else one for one in row.values()] for row in rows]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return text.getvalue()


def test_a_column_without_a_name_is_left_out(tmp_path):
    pd.DataFrame(rows()).to_csv(tmp_path / "a.csv")
    pd.read_csv(tmp_path / "a.csv").to_csv(tmp_path / "clicks.csv")
    text, schema = inferred(tmp_path, (tmp_path / "clicks.csv").read_text())
    assert "  # (no name): column 1 has no name, and counts the rows\n" in text and "refuses" not in text
    assert "  # Unnamed: 0: counts the rows\n" in text
    assert [one["name"] for one in schema["fields"]] == ["user_id", "item_id"]


@pytest.mark.parametrize("write", [pd.DataFrame.to_csv, pd.DataFrame.to_parquet])
def test_the_index_of_a_shuffled_frame_is_left_out(tmp_path, write):
    write(pd.DataFrame(rows()).sample(frac=1, random_state=0), path := tmp_path / "clicks")
    if write is pd.DataFrame.to_csv:
        pd.read_csv(path).to_csv(path, index=False)
    found = infer.infer_schema(path.rename(tmp_path / f"clicks.{write.__name__.removeprefix('to_')}"))
    assert ": pandas' name for an index or a column without a name\n" in found
    assert [one["name"] for one in yaml.safe_load(found)["fields"]] == ["user_id", "item_id"]


def test_ids_that_became_floats_are_whole_numbers(tmp_path):
    text, schema = inferred(
        tmp_path,
        csv_text([row | {"user_id": f"{row['user_id']}.0" if row["item_id"] != "i3" else None} for row in rows()]),
    )
    assert schema["user"] == "user_id" and schema["fields"][0] == {
        "name": "user_id",
        "type": "int",
        "entity": "user",
        "key": True,
        "sides": ["id"],
    }
    assert (
        schema["drop"] == {"no user_id": "user_id is null"} and "refuses" not in text and "drop: rows without" in text
    )
    many = rows()
    frame = pd.DataFrame(many).astype({"user_id": "float64"})
    frame.loc[1, "user_id"] = None
    assert yaml.safe_load(infer.infer_schema(frame))["fields"][0]["type"] == "int"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "".join(f"{n % 2}\t{n % 5}\t{n % 7:08x}\n" for n in range(60)),
            {"column_names": ["c0", "c1", "c2"], "delimiter": "\t", "label": "c0"},
        ),
        (
            "".join(f"{n % 9}::{n % 7}::{n % 5}::{978300760 + n}\n" for n in range(60)),
            {"column_names": ["c0", "c1", "c2", "c3"], "delimiter": "::", "label": None, "time": "c3"},
        ),
        ("".join(f"u{n % 9},i{n % 7},{'xyz'[n % 3]}\n" for n in range(60)), {"column_names": ["c0", "c1", "c2"]}),
        (csv_text(rows(60)), {"label": "clicked", "column_names": None, "delimiter": None}),
        (csv_text([{"user": f"u{n % 9}", "color": "xyz"[n % 3]} for n in range(60)]), {"column_names": None}),
    ],
)
def test_a_file_without_header(tmp_path, text, expected):
    written, schema = inferred(tmp_path, text, "clicks.txt")
    assert {key: schema.get(key) for key in expected} == expected and "refuses" not in written
    assert ("has no header" in written) == (expected["column_names"] is not None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sep=;\n" + csv_text(rows(60), ";"), {"delimiter": ";"}),
        (csv_text(rows(60), " "), {"delimiter": " "}),
        (csv_text(rows(60)).replace("i3,", "'i3, a',"), {"quote": "'"}),
        (csv_text(rows(60)).replace("i3,", '"i3" a,'), {"quote": None}),
        (csv_text(rows(60)).replace("i3,", '"i3, \\"a\\"",'), {"escape": "\\"}),
        ("".join(f"{row | {'tags': ['a', 'b']}!r}\n" for row in rows(60)), {"format": "python"}),
    ],
)
def test_how_a_file_is_to_be_read(tmp_path, text, expected):
    written, schema = inferred(tmp_path, text, "clicks.json" if "format" in expected else "clicks.csv")
    assert (
        {key: schema.get(key, "missing") for key in expected} == expected
        and "refuses" not in written
        and schema["label"] == "clicked"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# mine\n# really\n" + csv_text(rows(60)).encode(), "the first 2 line.s., such as '# mine', are no rows"),
        (csv_text(rows(9)).encode("utf-16"), "clicks.csv is in UTF-16; write it anew in UTF-8"),
        (b"PK\x03\x04\0\0", "clicks.csv holds NUL bytes: it is no text, and no Parquet file"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        inferred(tmp_path, content)


LABELS = {
    "overall": (["1.0", "2.0", "5.0"], "overall >= 4"),
    "Book-Rating": (range(11), "`Book-Rating` >= 8"),
    "review_score": (range(1, 6), "review_score >= 4"),
    "Stars": (range(1, 6), "Stars >= 4"),
    "grade": ([0.1, 0.5, 0.9], "grade >= 0.72"),
    "isClicked": (["0.0", "1.0"], "isClicked > 0"),
    "clicks": ([0, 1, 4], "clicks > 0"),
    "bought": (["yes", "no"], "bought == 'yes'"),
    "y": ([-1, 1], "y > 0"),
    "Label": ([0, 1], "Label"),
    "avg_rating": (range(1, 6), None),
    "points_id": (range(1, 6), None),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_other_names(name):
    values, rule = LABELS[name]
    columns = {one: profile(one, found) for one, found in [("user_id", range(9)), (name, list(values) * 3)]}
    assert SchemaGuess([Group("events", ["a.csv"], CsvFormat(), {}, columns)], "a").label == rule


@pytest.mark.parametrize(
    ("theirs", "own", "table", "same"),
    [
        ("user_id", "user_ids", "x", True),
        ("movieId", "movie_id", "x", True),
        ("user", "users", "x", True),
        ("user", "user_id", "x", True),
        ("user_id", "id", "users", True),
        ("movie", "Id", "Movies", True),
        ("userid", "user_id", "x", True),
        ("user_id", "id", "movies", False),
        ("user_id", "item_id", "x", False),
    ],
)
def test_keys_of_other_names(theirs, own, table, same):
    assert same_key(theirs, own, table) == same


def test_tables_are_joined_by_keys_that_differ_in_case(tmp_path):
    events = [{"userId": row["user_id"], "shape": row["item_id"], "clicked": row["clicked"]} for row in rows()]
    write_csv(tmp_path / "clicks.csv", events)
    write_csv(tmp_path / "people.csv", [{"USERID": number, "kind": f"k{number % 3}"} for number in range(19)])
    text = infer.infer_schema([tmp_path / "clicks.csv", str(tmp_path / "people.csv")])
    (join,) = yaml.safe_load(text)["joins"]
    assert join[True] == {"userId": "USERID"} and join["missing"] == "null"  # `on` is true to YAML
    assert "1 of 20 values" in text and "refuses" not in text


def test_tables_are_joined_by_codes_of_other_names_and_a_word_among_numbers_is_null(tmp_path):
    events = [
        {"Bewerber": row["user_id"], "Stelle-ID": f"J0{row['item_id']}", "Alter": "k.A." if n % 9 == 0 else n % 40}
        for n, row in enumerate(rows())
    ]
    write_csv(tmp_path / "clicks.csv", events)
    write_csv(tmp_path / "jobs.csv", [{"Job-ID": f"J0i{number}", "Titel": f"t{number % 3}"} for number in range(300)])
    text = infer.infer_schema([tmp_path / "clicks.csv", str(tmp_path / "jobs.csv")])
    schema = yaml.safe_load(text)
    assert schema["joins"][0][True] == {"Stelle-ID": "Job-ID"} and schema["item"] == "Stelle-ID"
    fields = {field["name"]: field for field in schema["fields"]}
    assert fields["Stelle-ID"]["entity"] == fields["Titel"]["entity"] == "item"
    assert schema["null_values"] == ["k.A."] and fields["Alter"]["type"] == "int"
    assert "user: no column looks like its key; say `user: COLUMN`, and" in text


@pytest.mark.parametrize("values", [[*range(9), "k.A."], [*range(30), "30+"], [*range(30), "a", "b"]])
def test_what_is_no_null_among_numbers(values):
    assert profile("x", list(map(str, values))).type == "string"


TIMES = {
    "03/21/2024": "%m/%d/%Y",
    "21.03.2024 14:30": "%d.%m.%Y %H:%M",
    "2024/03/21 14:30:00": "%Y/%m/%d %H:%M:%S",
    "Thu Mar 21 14:30:00 +0000 2024": "%a %b %d %H:%M:%S %z %Y",
    "03 21, 2024": "%m %d, %Y",
    "2024-03-21 14:30:00 UTC": None,
    "2024-03-21T14:30:00.5Z": None,
}


def test_times_in_the_usual_forms():
    for text, form in TIMES.items():
        found = profile("seen", [text, text, None])
        assert (found.type, found.time_format) == ("timestamp", form)
    days = [f"{day:02}/0{month}/2024" for month in (3, 4) for day in range(1, 10)]
    assert profile("seen", days).time_format == "%d/%m/%Y"  # by the order of the rows
    digits = {"20240301": True, "14102100": True, "2024030112": True, "20241301": False, "123": False}
    assert {text: is_digit_time(profile("day", [text])) for text in digits} == digits
    for text in ("1.2.3", "v 1", "1fbe01fe", "12-34", "Film 1999, 2"):
        assert profile("c", [text]).type == "string"


def test_times_are_written_so_that_prepare_reads_them(tmp_path):
    text, schema = inferred(
        tmp_path, csv_text(rows(seen=lambda _, number: f"{1 + number // 28:02}/{1 + number % 28:02}/2024"))
    )
    assert (schema["time"], schema["types"]) == ("seen", {"seen": "%m/%d/%Y"}) and "refuses" not in text
    text, schema = inferred(tmp_path, csv_text(rows(hour=lambda _, number: 14102100 + number // 9)))
    assert schema["time"] == "hour" and "types" not in schema and "refuses" not in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["['a', 'b']", '["a"]', "{a,b}"], ("string", "", ".")),
        (["[1, 2]", "[3]"], ("int", "", ".")),
        (["[0.1 2]", "[3 4]"], ("float", "", ".")),
        (["3,5", "12,25", "7"], ("float", None, ",")),
        (["1,234", "12,500"], ("string", None, ".")),
        (["[{'a': 1}]"], ("object", "", ".")),
        (['{"a": 1}'], ("object", None, ".")),
        ([2**64, 2**65], ("string", None, ".")),
        ([2**64, 3], ("wide int", None, ".")),
        ([1, "a"], ("object", None, ".")),
        ([1, "2"], ("int", None, ".")),
        ([[["a"]], [["b"]]], ("object", "", ".")),
        (["NA", "BE", "NL"], ("string", None, ".")),
        (["-", "1", "?"], ("int", None, ".")),
        (["1e5", "2.5"], ("float", None, ".")),
        (["1_000", "+5"], ("string", None, ".")),
        (["n1 n2", "n2 n3", "n1 n3", "n3 n2 n1", "n2 n1"], ("string", " ", ".")),
        (["1e999", "1"], ("string", None, ".")),
    ],
)
def test_forms_of_values(values, expected):
    found = profile("c", values)
    assert (found.type, found.separator, found.decimal) == expected


def test_lists_and_decimal_commas_in_text_prepare(tmp_path):
    some = rows(
        tags=lambda _, n: str(["a", "b"][: 1 + n % 2]),
        price=lambda _, n: f"{n % 9},5",
        ids=lambda _, n: f"[{n % 4}, 7]",
    )
    text, schema = inferred(tmp_path, "sep=;\n" + csv_text(some, ";"))
    fields = {one["name"]: one for one in schema["fields"]}
    assert fields["price"]["decimal"] == "," and "refuses" not in text
    assert (fields["tags"]["kind"], fields["ids"]["type"]) == ("multi-valued", "int")
    (tmp_path / "s.yaml").write_text(text.replace(relative(tmp_path / "clicks.csv"), "clicks.csv"))
    prepare.run(PrepareArguments("table", str(tmp_path / "out"), schema=str(tmp_path / "s.yaml")))
    found = read_split(tmp_path / "out", "train").to_pydict()
    assert set(map(tuple, found["tags"])) == {("a",), ("a", "b")} and 0.5 in found["price"]
    assert {one[-1] for one in found["ids"]} == {7}


def test_a_rating_with_decimal_commas_is_a_label(tmp_path):
    some = [{"stars": f"{1 + number % 5},5", "user_id": number % 20, "item_id": number % 30} for number in range(300)]
    text, schema = inferred(tmp_path, "sep=;\n" + csv_text(some, ";"))
    assert (schema["label"], schema["types"]) == ("stars >= 5", {"stars": {"type": "float", "decimal": ","}})
    assert "refuses" not in text


def test_frames_of_any_kind(tmp_path):
    some = rows(country=lambda generator, _: generator.choice(["be", "nl"]))
    frame = pd.DataFrame(some)
    expected = infer.infer_schema(frame)
    assert yaml.safe_load(expected)["files"] == "table.parquet" and "refuses" not in expected
    table = pa.Table.from_pylist(some)
    others = [table, pa.RecordBatchReader.from_batches(table.schema, table.to_batches()), frame.set_index("user_id")]
    for other in (*others, frame.to_dict("list")):
        found, wanted = (yaml.safe_load(text)["fields"] for text in (infer.infer_schema(other), expected))
        assert sorted(found, key=str) == sorted(wanted, key=str)
    (tmp_path / "schema.yaml").write_text(expected)
    frame.to_parquet(tmp_path / "table.parquet")
    assert read_schema(tmp_path / "schema.yaml").user == "user_id"
    with pytest.raises(ValueError, match="column 'm' of the frame holds values of several types"):
        infer.infer_schema(frame.assign(m=[1, "a"] * 100))
    with pytest.raises(TypeError, match="takes a frame of pandas or polars, an Arrow table, or the path.* got int"):
        infer.infer_schema(7)


def test_json_arrays_and_folders_that_hold_columns(tmp_path):
    some = rows()
    for count in (200, 20):  # the whole file, and its first objects
        (tmp_path / "clicks.json").write_text(json.dumps(some, indent=1))
        schema = yaml.safe_load(infer.infer_schema(tmp_path / "clicks.json", count))
        assert (schema["label"], schema["user"], schema["files"]) == (
            "clicked",
            "user_id",
            relative(tmp_path / "clicks.json"),
        )
    for day in range(4):
        (tmp_path / f"c/date=2024-03-0{day + 1}").mkdir(parents=True)
        write_csv(tmp_path / f"c/date=2024-03-0{day + 1}/part.csv", some[day::4])
    text = infer.infer_schema(f"{tmp_path}/c/*/*.csv")
    schema = yaml.safe_load(text)
    assert (schema["name"], schema["time"], schema["types"]) == ("c", "date", {"date": "timestamp"})
    assert schema["files"] == relative(tmp_path / "c/*/*.csv") and "refuses" not in text


def relative(path) -> str:
    return os.path.relpath(path).replace(os.sep, "/")


def test_what_prepare_refuses_is_said(tmp_path):
    text, _ = inferred(tmp_path, csv_text([row | {"clicked": 1} for row in rows()]))
    assert "# * prepare refuses this as it stands: what is left (column `clicked` says what a click is) has 200" in text
    text, _ = inferred(tmp_path, csv_text(rows()) + "broken\n" * 3)
    assert "prepare refuses this as it stands: clicks.csv: 3 of 203 lines are malformed" in text


def test_very_many_fields_are_not_all_in_the_prompt(tmp_path):
    more = {f"f{number}": lambda generator, _: generator.choice(["red", "green"]) for number in range(70)}
    text, schema = inferred(tmp_path, csv_text(rows(60, **more)))
    fields = {one["name"]: one for one in schema["fields"]}
    assert fields["f0"]["max_tokens"] == 5 and fields["f69"]["sides"] == ["id"]
    assert "fields are not in the prompt" in text and "--prompt_fields" in text
    text, schema = inferred(tmp_path, csv_text(rows(60, **dict(list(more.items())[:8]))))
    assert "prompt" not in text and all("max_tokens" not in one for one in schema["fields"])


def test_the_fields_of_a_frame_without_a_label():
    """What `infer_schema` would take for label, weight and time are columns like others, but for a time."""
    rows = range(120)
    frame = pd.DataFrame(
        {
            "user_id": [row % 7 for row in rows],
            "rating": [row % 5 for row in rows],
            "weight": [row / 7 for row in rows],
            "tags": [["a", "b"][: row % 3] for row in rows],
            "city": ["NULL" if row % 4 == 0 else f"City {row % 6}" for row in rows],
            "timestamp": [1_600_000_000 + row for row in rows],
            "parts": [{"a": 1} for _ in rows],
        }
    )
    fields, unread = infer.infer_fields(frame)
    assert [(field.name, field.kind, field.entity) for field in fields] == [
        ("user_id", "categorical", "user"),
        ("rating", "categorical", "context"),
        ("weight", "numeric", "context"),
        ("tags", "multi-valued", "item"),
        ("city", "categorical", "user"),
    ]
    assert fields[0].key and fields[-1].null_values == ("NULL",)
    assert unread == {"timestamp": "a time", "parts": "of a type that is not read"}
