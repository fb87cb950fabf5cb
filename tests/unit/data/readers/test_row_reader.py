"""Rows to be scored are read as `prepare` read those of the data: every form of the same rows gives the rows of the
dataset folder."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_table import event_rows, run, without, write_csv, write_joined, write_jsonl

from flip_ctr import FlipField
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.row_reader import RowReader


def prepared(folder: Path, schema: DatasetSchema) -> dict[tuple, dict]:
    """The rows of a dataset folder by their keys, without what is no field."""
    names = [field.name for field in schema.fields]
    rows = [row for split in ("train", "validation", "test") for row in read_split(folder, split).to_pylist()]
    return {(row["user_id"], row["item_id"]): {name: row[name] for name in names} for row in rows}


def known(rows: RowReader) -> list[dict]:
    return [row for batch in rows for row in batch.known.to_pylist()]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A dataset of one odd CSV file: other names, separators, encoding and words for null."""
    folder = tmp_path_factory.mktemp("table")
    rows = [row | {"title": row["title"] if row["at"] % 2 else "n/a"} for row in event_rows()]
    write_csv(folder / "utf8.csv", rows, ";")
    (folder / "clicks.csv").write_bytes((folder / "utf8.csv").read_text(encoding="utf-8").encode("latin-1"))
    run(folder, delimiter=";", encoding="latin-1", null_values=["n/a"], drop=...)
    schema = DatasetSchema.load(folder / "out")
    return folder, schema, prepared(folder / "out", schema)


def test_the_schema_keeps_how_files_are_read(table):
    _, schema, rows = table
    assert schema.reading == {"null_values": ["n/a"], "delimiter": ";", "encoding": "latin-1"}
    assert {field.null_values for field in schema.fields} == {("n/a",)}
    assert None in {row["title"] for row in rows.values()} and "clicks" not in json.dumps(schema.reading)


def as_field_names(folder: Path) -> Path:
    text = (folder / "utf8.csv").read_text(encoding="utf-8").replace("uid;", "user_id;").replace("Zip Code", " zip ")
    with open(folder / "names.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(csv.reader(text.splitlines(keepends=True), delimiter=";"))
    return folder / "names.csv"


def packed(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(gzip.compress((folder / "clicks.csv").read_bytes()))
    return folder / name


def as_jsonl(folder: Path) -> Path:
    rows = [row | {"title": row["title"] if row["at"] % 2 else "n/a"} for row in event_rows()]
    return write_jsonl(folder / "rows.jsonl", rows)


FORMS = {
    "the very file": lambda folder: folder / "clicks.csv",
    "a pattern": lambda folder: folder / "cl*.csv",
    "commas, UTF-8 and the fields' names": as_field_names,
    "packed": lambda folder: packed(folder, "packed.csv.gz"),
    "packed under another name": lambda folder: packed(folder, "other.csv"),
    "JSON lines": as_jsonl,
    "the shards of the splits": lambda folder: folder / "out" / "data" / "*.parquet",
}


def test_lines_of_python_come_back_as_objects(tmp_path):
    """What the data was in, which no ending tells."""
    (tmp_path / "r.txt").write_text("{'n': 1, 't': ('a', None), 'more': {'x': True}}\n{'n': 'x'}\n")
    (batch,) = RowReader([str(tmp_path / "r.txt")], [FlipField("n", "int")], {"format": "python"})
    assert batch.rows == [{"n": 1, "t": ["a", None], "more": {"x": True}}, {"n": "x"}]
    assert batch.known.to_pylist() == [{"n": 1}] and batch.reasons == {1: "n is not a whole number: 'x'"}


@pytest.mark.parametrize("form", FORMS)
def test_what_was_prepared_can_be_scored(table, form):
    folder, schema, expected = table
    rows = known(RowReader([str(FORMS[form](folder))], schema.fields, schema.reading))
    assert {(row["user_id"], row["item_id"]): row for row in rows} == expected and len(rows) == len(expected)


def test_text_that_is_surely_utf_8_is_not_taken_for_something_else(table):
    folder, schema, _ = table
    with pytest.raises(ValueError, match="utf8.csv is text in UTF-8, and the model's data was in latin-1"):
        RowReader([str(folder / "utf8.csv")], schema.fields, schema.reading)


def test_a_file_with_or_without_the_header_that_the_data_lacked(tmp_path):
    rows = without(event_rows(), "weight")
    names = list(rows[0])
    write_csv(tmp_path / "named.csv", rows)
    lines = (tmp_path / "named.csv").read_text(encoding="utf-8").split("\n", 1)
    (tmp_path / "clicks.csv").write_text(lines[1], encoding="utf-8")
    run(tmp_path, column_names=names, sample_weight=..., drop=...)
    schema = DatasetSchema.load(tmp_path / "out")
    expected = prepared(tmp_path / "out", schema)
    for name in ("clicks.csv", "named.csv"):
        found = known(RowReader([str(tmp_path / name)], schema.fields, schema.reading))
        assert {(row["user_id"], row["item_id"]): row for row in found} == expected, name


# --- side tables


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    changes = write_joined(folder)
    changes["joins"][1]["missing"] = "null"
    run(folder, **changes, drop=...)
    schema = DatasetSchema.load(folder / "out")
    return folder, schema, prepared(folder / "out", schema)


def test_side_tables_are_joined_or_are_already(joined):
    folder, schema, expected = joined
    sides = {"items": [str(folder / "items.jsonl")], "makers": [str(folder / "brands.parquet")]}
    rows = known(RowReader([str(folder / "clicks.csv")], schema.fields, schema.reading, sides))
    names = [field.name for field in schema.fields]
    found = {(row["user_id"], row["item_id"]): {name: row[name] for name in names} for row in rows}
    assert found == expected
    pq.write_table(pa.Table.from_pylist(list(expected.values())), folder / "together.parquet")
    rows = known(RowReader([str(folder / "together.parquet")], schema.fields, schema.reading))
    assert {(row["user_id"], row["item_id"]): row for row in rows} == expected


def test_a_row_without_partner_is_named(joined, tmp_path):
    folder, schema, _ = joined
    items = (folder / "items.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "items.jsonl").write_text("".join(items[1:]))
    sides = {"items": [str(tmp_path / "items.jsonl")], "makers": [str(folder / "brands.parquet")]}
    rows = RowReader([str(folder / "clicks.csv")], schema.fields, schema.reading, sides)
    (batch,) = rows
    assert batch.reasons[0] == "item_id is not in items: 'i0'" and not batch.scored[0] and batch.scored[1]
    assert batch.where(0) == f"{folder}/clicks.csv, line 2"


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({}, r"column\(s\) 'title', .* missing; .* \('title' came from the table items: --side items=FILE\)"),
        ({"users": ["x"]}, "--side users: the model knows no side table of that name; it has items, makers"),
        ({"items": ["nowhere.jsonl"]}, "--side items: no file fits 'nowhere.jsonl'"),
        ({"items": ["{folder}/clicks.csv"]}, "clicks.csv: column 'title' missing; the rows have: 'uid', "),
        ({"items": ["{folder}/twice.jsonl"]}, "--side items: id 'i0' comes twice"),
        ({"items": ["{folder}/broken.jsonl"]}, "broken.jsonl, line 2: broken JSON"),
    ],
)
def test_errors_of_side_tables(joined, sides, message):
    folder, schema, _ = joined
    items = (folder / "items.jsonl").read_text().splitlines(keepends=True)
    (folder / "twice.jsonl").write_text("".join(items + items[:1]))
    (folder / "broken.jsonl").write_text("".join(items[:1] + ["{\n"] + items[1:]))
    sides = {"makers": ["{folder}/brands.parquet"]} | sides
    sides = {name: [path.format(folder=folder) for path in paths] for name, paths in sides.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        RowReader([str(folder / "clicks.csv")], schema.fields, schema.reading, sides)


# --- every line has its place


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_no_line_is_lost_and_none_moves(tmp_path, suffix):
    rng = np.random.default_rng(0)
    good = {".csv": lambda n: f"{n},x{n}\n", ".jsonl": lambda n: json.dumps({"n": n, "t": f"x{n}"}) + "\n"}[suffix]
    lines = [good(n) if rng.random() > 0.3 else f"broken {n}\n" for n in range(500)]
    start = "n,t\n" if suffix == ".csv" else ""
    path = tmp_path / f"r{suffix}"
    path.write_text(start + "".join(lines))
    batches = list(RowReader([str(path)], [FlipField("n", "int"), FlipField("t")]))
    assert sum(map(len, batches)) == 500
    (batch,) = batches
    assert batch.places.tolist() == list(range(1 + bool(start), 501 + bool(start)))
    assert [not line.startswith("broken") for line in lines] == batch.scored.tolist()
    assert batch.known["n"].to_pylist() == np.flatnonzero(batch.scored).tolist()
    assert all(lines[row].strip() in reason for row, reason in batch.reasons.items())
    texts = [row["t"] for row in (batch.rows if suffix == ".jsonl" else batch.rows.to_pylist()) if row.get("t")]
    assert texts == batch.known["t"].to_pylist()
