"""`flip-ctr prepare --infer_schema`: a first schema that prepares as it stands, once the label is named."""

import csv
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flip_ctr.data.datasets import infer_schema as infer
from flip_ctr.data.datasets.column_profiles import profile
from flip_ctr.data.datasets.infer_schema import write_schema as infer_schema
from flip_ctr.data.datasets.table_schema import read_schema
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
    notes = infer_schema([str(tmp_path / "clicks.csv"), str(tmp_path / "movies.jsonl")], target)
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
        infer_schema([str(tmp_path / f"clicks.{ending}")], tmp_path / f"{ending}.yaml")
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
    notes = infer_schema([str(path)], target)
    assert (
        "label: name it; no column looks like one, of 0 and 1 are flag" in notes
        and "row_key: no columns of a user and an item" in notes
    )
    args = PrepareArguments("table", str(tmp_path / "out"), schema=str(target))
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
    notes = infer_schema([str(path)], tmp_path / "s.yaml")
    schema = read_schema(tmp_path / "s.yaml")
    assert (schema.label, schema.time, schema.sample_weight) == ("rating >= 8", "when", "weight")
    assert schema.events.null_values == {"NULL"} and schema.events.types == {"when": "timestamp"}
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
        infer_schema([str(path)], tmp_path / "schema.yaml")
    assert (tmp_path / "schema.yaml").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="--infer_schema: no file fits 'nothing.csv'"):
        infer_schema(["nothing.csv"], tmp_path / "new.yaml")


def test_files_without_rows_are_refused(tmp_path):
    for name, text in (("a.csv", "a,b\n"), ("b.jsonl", ""), ("c.csv", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} (has no rows to look at|is empty)"):
            infer_schema([str(tmp_path / name)], tmp_path / "s.yaml")
    assert not (tmp_path / "s.yaml").exists()
    (tmp_path / "big.jsonl").write_text('{"rating": 1' + "0" * 400 + "}\n" + '{"rating": 2}\n')
    infer_schema([str(tmp_path / "big.jsonl")], tmp_path / "s.yaml")


def test_only_a_sample_is_read_and_of_parquet_from_later_groups_too(tmp_path):
    pq.write_table(
        pa.table({"user_id": list(range(1000)), "late": [None] * 900 + ["x", "y"] * 50}),
        tmp_path / "t.parquet",
        row_group_size=100,
    )
    (tmp_path / "t.csv").write_text("a\n" + "1\n" * 1000 + "broken")
    infer_schema([str(tmp_path / "t.parquet")], tmp_path / "p.yaml", rows=100)
    assert "late" in fields_of(tmp_path / "p.yaml")
    infer_schema([str(tmp_path / "t.csv")], tmp_path / "c.yaml", rows=100)  # the broken value lies behind the sample
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
    infer_schema([str(tmp_path / "clicks.jsonl")], str(tmp_path / "s.yaml"))
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
    said = infer_schema([str(tmp_path / "clicks.csv")], str(tmp_path / "s.yaml"))
    schema = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert schema.get("encoding") == encoding and schema["user"] == "user_id"
    assert ("is taken for latin-1" in said) == (encoding is not None)
