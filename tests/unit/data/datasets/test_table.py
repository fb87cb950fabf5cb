"""`flip-ctr prepare --dataset table`: a table of one's own, described in YAML, to a dataset folder that accounts for
every row."""

import datetime
import gzip
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import yaml
from raw_table import ITEMS, SCHEMA, USERS, event_rows, run, without, write_csv, write_joined, write_jsonl, write_schema

from flip_ctr import FlipProcessor
from flip_ctr.data.datasets.infer_schema import write_schema as write_first_schema
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.train import cli, prepare
from flip_ctr.train.prepare import PrepareArguments


def all_rows(folder: Path) -> list[dict]:
    return [row for split in ("train", "validation", "test") for row in read_split(folder, split).to_pylist()]


def rejected(folder: Path) -> list[list]:
    return [list(row.values()) for row in pq.read_table(folder / "rejected.parquet").to_pylist()]


def adds_up(report: dict) -> bool:
    return report["rows_read"] == report["rows_kept"] + report["malformed"] + sum(report["dropped"].values())


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> SimpleNamespace:
    """What the plain clicks become: the `folder` in which `out` lies, and the `report`; tests only read them."""
    folder = tmp_path_factory.mktemp("clean")
    write_csv(folder / "clicks.csv", event_rows())
    return SimpleNamespace(folder=folder, out=folder / "out", report=run(folder))


@pytest.fixture
def folder(tmp_path):
    """A folder with clicks.csv."""
    write_csv(tmp_path / "clicks.csv", event_rows())
    return tmp_path


# --- what becomes of rows

DIRT = {
    "csv": [b'1,i2,4,"1', b"1,i2", b"", b'1,i2,"x" y,1', b"1,i2,4,1,2,3,4,5,6,7,8,9", b"x,i2,4,1,5,z,\xff,a,1,true"],
    "tsv": [b'1\ti2\t4\t"1', b"1\ti2", b"", b"1,i2,4,1", b"x\ti2\t4\t1\t5\tz\ty\ta\t1\ttrue\r"],
    "jsonl": [b'{"uid": 1', b"[1]", b"", b"{}}", b'{"uid": 1, "title": "\xff"}', b'{"uid": "x"}', b'{"uid": 1e999}'],
}


@pytest.mark.parametrize("kind", DIRT)
def test_every_line_of_a_dirty_file_is_in_a_split_dropped_or_rejected(tmp_path, kind):
    path = tmp_path / f"clicks.{kind}"
    if kind == "jsonl":
        write_jsonl(path, event_rows())
    else:
        write_csv(path, event_rows(), delimiter="\t" if kind == "tsv" else ",")
    # dirt between records, and behind the last one
    records = path.read_bytes().replace(b"enfants\n", b"enfants~").split(b"\n")
    for number, line in enumerate(DIRT[kind] * 3):
        records.insert(7 + number * 31, line)
    path.write_bytes(b"\n".join([*records[:-1], DIRT[kind][0]]).replace(b"enfants~", b"enfants\n"))
    lines = path.read_bytes().count(b"\n") + (kind == "jsonl")  # the last line has no end; the header is none of them
    changes = {"files": path.name, "drop": {"i1": "item_id == 'i1'"}, "sample_weight": ...}
    report = run(tmp_path, options={"max_malformed_share": 0.1}, **changes)
    rows, dropped = all_rows(tmp_path / "out"), report["dropped"]["i1"]
    of_two_lines = sum("\u00e9" in row["title"] for row in rows) + dropped  # i1 has such a title
    of_two_lines *= kind != "jsonl"
    rejected_lines = sum(text.count("\n") + 1 for *_, text in rejected(tmp_path / "out"))
    assert len(rows) + dropped + of_two_lines + rejected_lines == lines
    assert adds_up(report) and report["malformed"] > 3 * len(DIRT[kind]) and 0 < dropped <= USERS


def test_a_table_becomes_a_dataset_folder(clean):
    folder, report = clean.folder, clean.report
    stars = [row["stars"] for row in event_rows()]
    assert (
        report["rows_read"] == len(stars) and report["dropped"] == {"three stars": stars.count(3)} and adds_up(report)
    )
    rows = all_rows(folder / "out")
    assert sum(row["label"] for row in rows) == stars.count(4) + stars.count(5)
    row = next(row for row in rows if row["user_id"] == 2 and row["item_id"] == "i1")
    assert row == {
        "user_id": 2,
        "zip": "00002",
        "item_id": "i1",
        "title": "Cité des enfants perdus, La",
        "tags": ["b"],
        "price": 25.0,
        "new": False,
        "at": 1_700_000_063,
        "weight": 1.0,
        "label": 1,
    }
    schema = DatasetSchema.load(folder / "out")
    assert (schema.dataset, schema.user_column, schema.weight_column) == ("clicks", "user_id", "weight")
    assert {field.name: field.column for field in schema.fields if field.column} == {
        "user_id": "uid",
        "zip": "Zip Code",
    }
    assert [field.kind for field in schema.fields] == ["categorical"] * 4 + ["multi-valued", "numeric", "categorical"]
    assert schema.protocol["row_key"] == ["user_id", "item_id"] and schema.protocol["label"] == "stars >= 4"
    assert read_split(folder / "out", "train").schema.field("tags").type == pa.list_(pa.string())
    card = (folder / "out" / "README.md").read_text(encoding="utf-8")
    assert "`stars >= 4` is a click; dropped are rows with `stars == 3`" in card and "Licence" not in card
    texts = card + (folder / "out" / "schema.json").read_text() + (folder / "out" / "prepare_report.json").read_text()
    assert str(folder) not in texts


def test_facts_stand_on_the_card(folder):
    run(folder, title="My clicks", licence="Mine.", licence_link="https://example.org/licence", citation="@misc{mine}")
    card = (folder / "out" / "README.md").read_text(encoding="utf-8")
    assert "# My clicks\n" in card and "## Licence\n\nMine." in card and "@misc{mine}" in card
    assert yaml.safe_load(card.split("---\n")[1])["license_link"] == "https://example.org/licence"


def test_all_formats_give_the_same_folder(folder, clean):
    rows = event_rows()
    write_jsonl(folder / "clicks.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "clicks.parquet", row_group_size=100)
    nan = [
        row | {"price": float("nan") if row["price"] is None else row["price"], "uid": float(row["uid"])}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(nan), folder / "nan.parquet")
    write_jsonl(folder / "nan.jsonl", nan)
    write_csv(folder / "clicks.tsv", nan, "\t", columns=sorted(rows[0]))
    (folder / "clicks.csv.gz").write_bytes(gzip.compress((folder / "clicks.csv").read_bytes()))
    (folder / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (folder / "clicks.csv").read_bytes().replace(b"\r\n", b"\n"))
    expected = {path.name: path.read_bytes() for path in (clean.out / "data").iterdir()}
    for name in (
        "clicks.jsonl",
        "clicks.parquet",
        "nan.parquet",
        "nan.jsonl",
        "clicks.csv.gz",
        "bom.csv",
        "clicks.tsv",
    ):
        changes = {"null_values": ["nan"]} if name == "clicks.tsv" else {}  # Python's text for a missing number
        run(folder, f"out-{name}", files=name, **changes)
        assert {path.name: path.read_bytes() for path in (folder / f"out-{name}" / "data").iterdir()} == expected, name


def test_several_files_in_any_order_of_columns(folder, clean):
    rows = event_rows()
    (folder / "part" / "2").mkdir(parents=True)
    write_csv(folder / "part" / "1.csv", rows[:200])
    write_csv(folder / "part" / "2" / "3.csv", rows[200:], columns=sorted(rows[0]))
    report = run(folder, files=["part/*.csv", "part/**/*.csv"])
    assert report["events_files"] == ["part/1.csv", "part/2/3.csv"] and report["rows_read"] == len(rows)
    key = lambda row: (row["user_id"], row["item_id"])  # noqa: E731
    assert sorted(all_rows(folder / "out"), key=key) == sorted(all_rows(clean.out), key=key)


def test_data_files_and_data_dir(folder, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(folder / "clicks.csv", elsewhere / "mine.csv")
    assert run(folder, "a", {"data_dir": str(elsewhere), "data_files": ["m*.csv"]})["events_files"] == ["mine.csv"]
    assert run(folder, "b", {"data_dir": str(elsewhere)}, files="mine.csv")["events_files"] == ["mine.csv"]
    monkeypatch.chdir(elsewhere)
    assert run(folder, "c", {"data_files": ["mine.csv"]})["events_files"] == ["mine.csv"]
    report = run(folder, "d", {"data_dir": str(folder), "data_files": [str(elsewhere / "mine.csv")]})
    assert report["events_files"] == [f"{elsewhere.name}/mine.csv"]


def test_a_label_column_of_zeros_and_ones(folder):
    rows = [row | {"clicked?": ["0", "1", "true", "False"][row["stars"] % 4]} for row in event_rows()]
    write_csv(folder / "clicks.csv", rows)
    report = run(folder, label="clicked?", drop=...)
    assert sum(one["clicks"] for one in report["splits"].values()) == sum(row["stars"] % 4 in (1, 2) for row in rows)
    assert DatasetSchema.load(folder / "out").protocol["label_rule"] == "column `clicked?` says what a click is"
    write_csv(folder / "clicks.csv", [row | {"label": int(row["stars"] > 3)} for row in event_rows()])
    assert run(folder, "b", label="label")["rows_kept"] == 480
    write_csv(folder / "clicks.csv", [row | {"label": [1.0, 0.0, 0.5][row["stars"] % 3]} for row in event_rows()])
    with pytest.raises(
        ValueError,
        match=r"label is not true, false, 1 or 0 \(or write a rule, such as label >= 4 or label == 'yes'\): '1.0'",
    ):
        run(folder, "c", label="label")


def test_rows_are_rejected_with_file_line_reason_and_text(folder):
    lines = (folder / "clicks.csv").read_bytes().split(b"\r\n")
    head = "uid,item_id,stars,weight,at,Zip Code,title,tags,price,new"
    assert lines[0].decode() == head
    bad = {
        "x,i1,1,1,5,00001,t,a,1,true": "uid is not a whole number",
        ",i1,1,1,5,00001,t,a,1,true": "user_id is null",
        "1,,1,1,5,00001,t,a,1,true": "item_id is null",
        "1,i1,five,1,5,00001,t,a,1,true": "stars is not a number (or say another type than float in `types`)",
        "1,i1,,1,5,00001,t,a,1,true": "label rule 'stars >= 4' is null",
        "1,i1,1,,5,00001,t,a,1,true": "weight is null",
        "1,i1,1,-0.5,5,00001,t,a,1,true": "weight is below 0",
        "1,i1,1,1,today,00001,t,a,1,true": "at is not a whole number (or say another type than int in `types`)",
        "1,i1,1,1,5,,t,a,1,true": "zip is null",
        "1,i1,1,1,5,00001,t,a,cheap,true": "price is not a number",
        "1,i1,1,1,5,00001,t,a,1,maybe": "new is not true, false, 1 or 0",
        "1,i1,1,1,5,00001,t,a,1": "values: 9 for 10 columns",
        '1,"i1,1,1,5,00001,t,a,1,true': "item_id: a quote that does not end, or text behind a closing quote",
    }
    (folder / "clicks.csv").write_bytes(b"\r\n".join([*lines[:-1], *(line.encode() for line in bad), b""]))
    fields = [field | ({"nullable": False} if field["name"] == "zip" else {}) for field in SCHEMA["fields"]]
    report = run(folder, options={"max_malformed_share": 0.05}, fields=fields)
    first = len(b"\r\n".join(lines[:-1]).split(b"\n")) + 1
    expected = [["clicks.csv", first + number, reason, line] for number, (line, reason) in enumerate(bad.items())]
    assert rejected(folder / "out") == expected
    assert report["malformed"] == len(bad) and adds_up(report)
    with pytest.raises(
        ValueError,
        match="clicks.csv: 13 of 613 lines are malformed.*--max_malformed_share allows 0.001. First: line 762: uid is "
        "not a whole number: 'x'",
    ):
        run(folder, "nothing", fields=fields)
    assert not (folder / "nothing").exists() and not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_what_is_no_text_can_be_reported(folder):
    good = (folder / "clicks.csv").read_bytes()
    (folder / "clicks.csv").write_bytes(good + b"\xff,i1,1,1,5,1,\xfe,a,1,true\r\n")
    run(folder, options={"max_malformed_share": 0.1})
    lines = write_jsonl(folder / "clicks.jsonl", event_rows()).read_bytes()
    (folder / "clicks.jsonl").write_bytes(
        lines + b'{"uid": "\\ud800"}\n{"uid": "\xff"}\n{"uid": 1, "title": "\\udfff"}\n"\xff'
    )
    report = run(folder, "json", options={"max_malformed_share": 0.1}, files="clicks.jsonl")
    assert report["malformed"] == 4 and [one[3] for one in rejected(folder / "json")] == [
        '{"uid": "\\ud800"}',
        '{"uid": "\\xff"}',
        '{"uid": 1, "title": "\\udfff"}',
        '"\\xff',
    ]
    assert json.loads((folder / "json" / "prepare_report.json").read_text(encoding="utf-8")) == report


def test_rows_with_the_same_key(folder):
    rows = event_rows()
    again = [rows[0] | {"stars": 5}, rows[0] | {"stars": 1}]
    write_csv(folder / "clicks.csv", rows + again)
    assert run(folder, drop=...)["rows_kept"] == len(rows) + 2
    report = run(folder, "unique", unique=True, drop=...)
    reason = "user_id, item_id came on an earlier line"
    assert report["dropped"] == {reason: 2} and report["rows_kept"] == len(rows) and adds_up(report)
    assert [one[2] for one in rejected(folder / "unique")] == [reason] * 2
    assert DatasetSchema.load(folder / "unique").protocol["unique"] is True


def test_split_seed_and_ratios_of_the_schema_and_of_flags(folder):
    run(folder, split="time", split_seed=7, ratios=[6, 2, 2])
    protocol = DatasetSchema.load(folder / "out").protocol
    assert (protocol["split"], protocol["split_seed"], protocol["ratios"]) == ("time", 7, [6, 2, 2])
    times = [read_split(folder / "out", name)["at"].to_pylist() for name in ("train", "validation", "test")]
    assert max(times[0]) <= min(times[1]) and max(times[1]) <= min(times[2]) and len(times[1]) == 96
    run(
        folder,
        "flags",
        {"split": "by_user", "split_seed": 3, "ratios": [8, 1, 1]},
        split="time",
        split_seed=7,
        ratios=[6, 2, 2],
    )
    protocol = DatasetSchema.load(folder / "flags").protocol
    assert (protocol["split"], protocol["split_seed"], protocol["ratios"]) == ("by_user", 3, [8, 1, 1])


def test_times_may_be_dates(folder):
    day = lambda row: f"2024-0{1 + int(row['item_id'][1:]) % 4}-{1 + row['uid']:02}"  # noqa: E731
    rows = [row | {"at": day(row)} for row in event_rows()]
    write_csv(folder / "clicks.csv", rows)
    changes = {"split": "leave_last_out", "drop": ["at < '2024-03-01'"]}  # compared with text: it is a time
    report = run(folder, **changes)
    assert report["dropped"]["at < '2024-03-01'"] == sum(row["at"] < "2024-03" for row in rows)
    table = read_split(folder / "out", "train")
    assert table.schema.field("at").type == pa.timestamp("us")
    instant = lambda row: datetime.datetime.fromisoformat(row["at"])  # noqa: E731
    pq.write_table(pa.Table.from_pylist([row | {"at": instant(row)} for row in rows]), folder / "clicks.parquet")
    run(folder, "parquet", files="clicks.parquet", **changes)
    assert read_split(folder / "parquet", "train").equals(table)


def test_backticks_and_renamed_columns_in_rules(folder):
    report = run(folder, drop={"no zip": "`Zip Code` == '00001'", "cheap": "price < 0.05"})
    assert report["dropped"] == {"no zip": ITEMS, "cheap": (USERS - 1) * ITEMS // 5}


# --- joins


@pytest.fixture
def joined(tmp_path):
    return tmp_path, write_joined(tmp_path)


def test_joins_of_two_levels_give_the_rows_of_one_table(joined):
    folder, changes = joined
    report = run(folder, **changes)
    write_csv(folder / "whole.csv", [row | {"brand_name": "wxyz"[int(row["item_id"][1:]) % 4]} for row in event_rows()])
    run(folder, "whole", files="whole.csv", fields=changes["fields"])
    assert all_rows(folder / "out") == all_rows(folder / "whole") and adds_up(report)
    assert report["events_files"] == ["clicks.csv"] and set(report["raw_files"]) == {
        "clicks.csv",
        "items.jsonl",
        "brands.parquet",
    }


@pytest.mark.parametrize(("missing", "where"), [("reject", "malformed"), ("drop", "dropped"), ("null", "kept")])
def test_rows_without_partner(joined, missing, where):
    folder, changes = joined
    lines = (folder / "items.jsonl").read_text().splitlines()
    (folder / "items.jsonl").write_text("\n".join(lines[1:]))  # i0 is gone
    changes["joins"][0]["missing"] = missing
    changes["joins"][1]["missing"] = missing
    report = run(folder, options={"max_malformed_share": 0.1}, drop=..., **changes)
    reason = "item_id is not in items.jsonl"
    assert adds_up(report) and report["rows_read"] == USERS * ITEMS
    if where == "kept":
        assert report["rows_kept"] == USERS * ITEMS
        alone = [row for row in all_rows(folder / "out") if row["item_id"] == "i0"]
        assert len(alone) == USERS and all(row["title"] is row["tags"] is row["brand_name"] is None for row in alone)
        return
    assert report["rows_kept"] == USERS * (ITEMS - 1)
    assert (report["dropped"].get(reason, 0), report["malformed"]) == ((USERS, 0) if where == "dropped" else (0, USERS))
    found = rejected(folder / "out")
    text = (folder / "clicks.csv").read_text().splitlines()
    assert len(found) == USERS and all(one[2] == reason and one[3] == text[one[1] - 1] for one in found)


def test_a_null_of_a_join_is_rejected_where_the_field_allows_none(joined):
    folder, changes = joined
    lines = (folder / "items.jsonl").read_text().splitlines()
    (folder / "items.jsonl").write_text("\n".join(lines[1:]))
    changes["joins"] = [one | {"missing": "null"} for one in changes["joins"]]
    changes["fields"] = [one | ({"nullable": False} if one["name"] == "title" else {}) for one in changes["fields"]]
    report = run(folder, options={"max_malformed_share": 0.1}, **changes)
    assert (
        report["malformed"] == USERS
        and {one[2] for one in rejected(folder / "out")} == {"title is null"}
        and adds_up(report)
    )


def test_keys_that_come_twice_in_a_side_table(joined):
    folder, changes = joined
    first = '{"id": "i0", "title": "Another"}\n{"id": null}\n'
    (folder / "items.jsonl").write_text((folder / "items.jsonl").read_text() + first)
    with pytest.raises(
        ValueError,
        match="items.jsonl: 2 of 32 lines are malformed.*line 31: id comes a second time: 'i0'; line 32: id is null",
    ):
        run(folder, **changes)
    changes["joins"][0]["duplicates"] = "first"
    report = run(folder, options={"max_malformed_share": 0.05}, **changes)
    assert {row["title"] for row in all_rows(folder / "out") if row["item_id"] == "i0"} == {"Titanic (1997)"}
    assert (
        report["raw_files"]["items.jsonl"]["unused_by_reason"] == {"id comes a second time": 1}
        and report["rows_kept"] == 480
    )
    assert [one[:3] for one in rejected(folder / "out")] == [
        ["items.jsonl", 31, "id comes a second time"],
        ["items.jsonl", 32, "id is null"],
    ]


def test_a_column_that_comes_late_in_json_lines(joined):
    folder, changes = joined
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    padding = [{"id": f"unused{number}"} for number in range(1_000)]  # more than is looked at for the columns
    write_jsonl(folder / "items.jsonl", [without([row], "brand")[0] for row in padding] + lines)
    with pytest.raises(ValueError, match="no file has a column '(title|brand)'.*items.jsonl"):
        run(folder, **changes)
    types = {"title": "string", "tags": "string", "price": "float", "new": "bool", "brand": "int"}
    changes["joins"][0]["types"] = types
    assert adds_up(run(folder, **changes))


# --- what is refused


def field_with(**changes) -> list[dict]:
    return [SCHEMA["fields"][0] | changes, *SCHEMA["fields"][1:]]


def field_too(**changes) -> list[dict]:
    return [*SCHEMA["fields"], changes]


WRONG = [
    ({"colour": "red"}, "unknown key\\(s\\) 'colour'; there are citation, column_names"),
    ({"label": ...}, "`label` is missing; name a column of 0, 1, true or false"),
    ({"label": None}, "`label` is missing"),
    ({"label": 4}, "`label` must be a column .* got 4"),
    ({"label": "stars >="}, "rule 'stars >=' cannot be read"),
    ({"label": "rating >= 4"}, "`label`: no file has a column 'rating'. clicks.csv has uid, item_id, stars"),
    ({"label": "clicked"}, "`label`: no file has a column 'clicked'"),
    ({"label": "stars", "drop": ...}, "stars is not true, false, 1 or 0"),
    (
        {"label": "title >= 4 and stars > 1"},
        "`label`: rule 'title >= 4 and stars > 1': 'title' is text and cannot be compared with 4, which is a number",
    ),
    ({"label": "price > 1", "drop": ...}, "`fields`, 'price': the label is made of it alone"),
    ({"fields": field_too(name="rated", column="stars")}, "`fields`, 'rated': the label is made of it alone"),
    ({"drop": [3]}, "`drop` must be rules such as `rating == 3`"),
    ({"drop": ["stars = 3"]}, "`drop`: rule 'stars = 3' cannot be read \\(equality is written `==`\\)"),
    (
        {"drop": ["stars == 3", "stars == 'x'"]},
        "'stars' is taken for (number|text) in `.*say its type, as in `types: {stars: float}`",
    ),
    ({"files": "nothing*.csv"}, "`files` of events: no file fits 'nothing\\*.csv'"),
    ({"files": 3}, "`files` must be a path or pattern"),
    ({"format": "xlsx"}, "`format` must be one of csv, tsv, jsonl, json, python, parquet; got 'xlsx'"),
    ({"delimiter": ""}, "`delimiter` must be the text between"),
    ({"quote": "''"}, "`quote` must be one character"),
    ({"encoding": "utf-9"}, "`encoding` must be one that Python knows"),
    ({"encoding": "utf-16"}, "`encoding` utf-16 is not read"),
    (
        {"types": {"stars": "number"}},
        "`types` must be `column: type` with types of string, int, float, bool, timestamp",
    ),
    ({"types": {"star": "int"}}, "`types`: clicks.csv has no column 'star'; it has uid"),
    ({"types": {"uid": "string"}}, "`types`: 'uid' is a field of type int"),
    ({"types": {"price": {"type": "float", "decimal": ","}}}, "`types`: 'price' is a field of type float; say its"),
    ({"types": {"stars": {"type": "string", "decimal": ","}}}, "decimal sign such as {type: float, decimal: ','}"),
    ({"types": {"stars": {"type": "float", "decimal": ",", "nulls": 1}}}, "`types` must be `column: type`"),
    ({"null_values": "NULL"}, "`null_values` must be a list of texts"),
    ({"split": "weekly"}, "`split` must be one of random, time"),
    ({"split": "time", "time": ...}, "--split time: schema.yaml has no column of times; use --split random"),
    ({"split_seed": "x"}, "`split_seed` must be a whole number"),
    ({"ratios": [8, 1]}, "`ratios` must be three whole numbers for train, validation and test"),
    ({"unique": "yes"}, "`unique` must be one of true, false; got 'yes'"),
    ({"row_key": "price"}, "'price' is of type float and cannot identify a row"),
    ({"row_key": ["tags"]}, "'tags' is a list and cannot identify a row"),
    ({"row_key": "nothing"}, "`row_key`: no file has a column 'nothing'"),
    ({"time": "title"}, "`time`: 'title' is string; it must be a number or a time"),
    ({"name": "my clicks"}, "`name` must be a word of letters"),
    ({"user": 3}, "`user` must be text; got 3"),
    ({"user": "uid"}, "`user`: 'uid' is the column of the field 'user_id'; name the field"),
    ({"fields": []}, "`fields` must be a list of fields"),
    ({"fields": [{"type": "int"}]}, "`fields`, number 1: a field needs a `name`"),
    ({"fields": field_with(colour="red")}, "`fields`, 'user_id': unknown key\\(s\\) 'colour'"),
    ({"fields": field_with(type="integer")}, "`fields`: field 'user_id': `type` must be one of 'string', 'int'"),
    ({"fields": field_with(separator="|")}, "`separator` is of kind 'multi-valued' and has no effect"),
    ({"fields": field_with(max_tokens="many")}, "`fields`: field 'user_id': `max_tokens` must be a whole number"),
    ({"fields": field_with(column="uuid")}, "`fields`, 'user_id': no file has a column 'uuid'"),
    ({"fields": field_with(column="title")}, "'user_id' and 'title' both have the column 'title'"),
    ({"fields": field_with(name="title")}, "two fields are named 'title'"),
    (
        {"fields": field_too(name="Title", column="stars"), "label": "stars >= 4 and at > 0"},
        "'title' and 'Title' differ in upper and lower case only",
    ),
    (
        {"fields": field_too(name="_row", column="stars"), "label": "stars >= 4 and at > 0"},
        "schema.yaml: '_row' is a name that is needed inside",
    ),
    (
        {"fields": field_too(name="Label", column="stars"), "label": "stars >= 4 and at > 0"},
        "'Label': 'label' is the column of the clicks",
    ),
    ({"joins": {"files": "x"}}, "`joins` must be a list of side tables"),
    ({"joins": [{"files": "clicks.csv"}]}, "`joins`, number 1: `on` is missing"),
    ({"joins": [{"files": "clicks.csv", "on": "uid"}]}, "clicks.csv belongs to another table already"),
    (
        {"joins": [{"files": "side.csv", "on": "uid", "missing": "skip"}]},
        "`joins`, number 1: `missing` must be one of reject, drop, null",
    ),
    (
        {"joins": [{"files": "side.csv", "on": {"uid": "id"}}]},
        "`joins`, side, `on`: side.csv has no column 'id'; it has uid, title, x",
    ),
    (
        {"joins": [{"files": "side.csv", "on": {"user": "uid"}, "columns": ["x"]}]},
        "`joins`, side, `on`: no file has a column 'user'",
    ),
    (
        {"joins": [{"files": "side.csv", "on": "uid", "columns": ["y"]}]},
        "`joins`, side, `columns`: side.csv has no column 'y'",
    ),
    (
        {"joins": [{"files": "side.csv", "on": "uid"}]},
        "'title' is a column of clicks.csv and of side.csv.*columns: {side_title: title}",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_a_schema_cannot_mean_is_one_clear_error(folder, changes, message):
    (folder / "side.csv").write_text("uid,title,x\n1,a,b\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run(folder, **changes)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    assert not (folder / "out").exists()


def test_yaml_itself(folder):
    path = folder / "schema.yaml"
    for text, message in (
        ("name: a\nname: b\n", "schema.yaml, line 2: no YAML in UTF-8: `name` comes twice"),
        ("name: [a\n", "schema.yaml, line 2: no YAML"),
        (
            "name: a\nlabel: `x y` > 1\n",
            "schema.yaml, line 2: .*cannot start any token; text that begins with such a character stands in quotes",
        ),
        ("- a\n", "expected `key: value` lines"),
        ("", "expected `key: value` lines"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            prepare.run(PrepareArguments("table", str(folder / "out"), schema=str(path)))
    with pytest.raises(
        FileNotFoundError, match="nowhere.yaml: no such file; `flip-ctr prepare --infer_schema FILE` writes"
    ):
        prepare.run(PrepareArguments("table", str(folder / "out"), schema=str(folder / "nowhere.yaml")))


def test_files_of_one_table_that_differ_are_named(folder):
    rows = event_rows()
    (folder / "part").mkdir()
    write_csv(folder / "part" / "1.csv", rows)
    write_csv(folder / "part" / "2.csv", [row | {"extra": 1} for row in without(rows, "tags")])
    with pytest.raises(ValueError, match="2.csv lacks tags and has extra in addition, compared with .*1.csv"):
        run(folder, files="part/*.csv")
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "part" / "1.parquet")
    pq.write_table(table.set_column(0, "uid", table["uid"].cast(pa.string())), folder / "part" / "2.parquet")
    with pytest.raises(ValueError, match="2.parquet: column 'uid' is string, and int in .*1.parquet"):
        run(folder, files="part/*.parquet")
    with pytest.raises(ValueError, match="1.csv and .*1.parquet are of different formats"):
        run(folder, files=["part/1.csv", "part/1.parquet"])
    pq.write_table(table.set_column(5, "Zip Code", table["uid"]), folder / "zip.parquet")
    with pytest.raises(
        ValueError, match="schema.yaml: 'Zip Code' is int in zip.parquet, and cannot be read as string: say type int"
    ):
        run(folder, files="zip.parquet")


def test_the_processor_reads_raw_text_as_prepare_did(folder):
    """Decimal commas, lists in text, words that mean null, and the files' own names of columns."""

    def written(row: dict) -> dict:
        price = -1 if row["price"] is None else str(row["price"]).replace(".", ",")
        return row | {"price": price, "tags": json.dumps(row["tags"]) if row["tags"] else "n/a"}

    raw = [written(row) for row in event_rows()]
    write_csv(folder / "clicks.csv", raw)
    fields = [one | ({"decimal": ","} if one["name"] == "price" else {}) for one in SCHEMA["fields"]]
    report = run(folder, fields=fields, null_values=["-1", "n/a"])
    assert report["malformed"] == 0 and {row["price"] for row in all_rows(folder / "out")} == {0.1, 25, None, 0.001, 7}
    schema = DatasetSchema.load(folder / "out")
    prepared = read_split(folder / "out", "train")
    processor = FlipProcessor.from_dataset(prepared, schema.fields)
    numbers = {(row["uid"], row["item_id"]): row for row in raw}
    same = [numbers[row["user_id"], row["item_id"]] for row in prepared.to_pylist()]
    expected = processor(prepared)["feature_ids"]
    assert (processor(same)["feature_ids"] == expected).all()
    assert (expected != 2).all()  # no [UNK]
    with pytest.raises(ValueError, match='price is not a number; `decimal: ","` says that a comma'):
        run(folder, "other", null_values=["-1", "n/a"])


def test_numbers_with_decimal_commas_make_labels_drops_and_weights(folder):
    expected = run(folder)["splits"]
    raw = [row | {name: str(row[name] + 0.0).replace(".", ",") for name in ("stars", "weight")} for row in event_rows()]
    write_csv(folder / "clicks.csv", raw)
    types = dict.fromkeys(("stars", "weight"), {"type": "float", "decimal": ","})
    report = run(folder, "commas", types=types)
    assert report["splits"] == expected and report["malformed"] == 0
    weights = read_split(folder / "commas", "train")["weight"].to_pylist()
    assert weights == read_split(folder / "out", "train")["weight"].to_pylist()
    assert DatasetSchema.load(folder / "commas").reading == {"types": {"stars": types["stars"]}}
    hint = r'weight is not a number; `decimal: ","` says that a comma .* \(or say another type than float in `types`\)'
    with pytest.raises(ValueError, match=hint):
        run(folder, "other")


def test_what_stands_in_place_of_names_is_shown_in_one_line(folder):
    """Of a file without a header, or a damaged one, the columns may be anything."""
    (folder / "clicks.csv").write_text(f"uid,{'x' * 100_000},a\x1b[31m," + ",".join(map(str, range(500))) + "\n1\n")
    with pytest.raises(
        ValueError, match=r"clicks.csv has uid, x{60}\.\.\., a\\x1b\[31m, 0, .*, and 443 more\.$"
    ) as found:
        run(folder)
    assert len(str(found.value)) < 600


def test_labels_of_one_class_and_null_columns_are_refused(folder):
    with pytest.raises(ValueError, match="600 rows, 600 of them clicks.*`label` and `drop` in schema.yaml"):
        run(folder, label="stars >= 1", drop=...)
    write_csv(folder / "clicks.csv", [row | {"title": None} for row in event_rows()])
    with pytest.raises(ValueError, match=r"column\(s\) title: all .* training rows are null"):
        run(folder)
    write_csv(folder / "clicks.csv", event_rows()[:0] or [], columns=list(event_rows()[0]))
    with pytest.raises(ValueError, match="clicks.csv is empty"):
        run(folder)


def test_options_without_effect_are_refused(folder):
    for options, message in (
        (
            {"dataset": "table", "schema": "s.yaml", "click_threshold": 4},
            "--click_threshold has no effect with --dataset table; `label` of the schema",
        ),
        (
            {"dataset": "table", "schema": "s.yaml", "drop_ratings": "3"},
            "--drop_ratings has no effect with --dataset table; `drop`",
        ),
        ({"dataset": "table", "schema": "s.yaml", "ids_in_prompt": True}, "--ids_in_prompt has no effect .*`sides`"),
        ({"dataset": "table", "schema": "s.yaml", "preset": "paper"}, "--preset has no effect .*`sides`"),
        ({"dataset": "table"}, "--schema is needed for --dataset table"),
        ({"dataset": "table", "schema": "s.yaml", "ratios": [8, 2]}, "--ratios takes 3 values; got 2"),
        ({"dataset": "ml-1m", "schema": "s.yaml"}, "--schema has no effect with --dataset ml-1m"),
        ({"dataset": "ml-1m", "data_files": ["x"]}, "--data_files has no effect with --dataset ml-1m"),
        ({"infer_schema": ["x.csv"], "output_dir": "out"}, "--output_dir has no effect with --infer_schema"),
        ({"infer_schema": ["x.csv"], "output_dir": None, "dataset": "ml-1m"}, "--infer_schema is for --dataset table"),
        ({}, "--dataset must be one of ml-100k, ml-1m, bookcrossing, .*table"),
        ({"dataset": "table", "schema": "s.yaml", "output_dir": None}, "--output_dir is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            PrepareArguments(**{"output_dir": "out"} | options)


def test_a_failed_run_leaves_the_old_folder(folder):
    run(folder)
    before = (folder / "out" / "schema.json").read_bytes()
    (folder / "clicks.csv").write_text("uid\n1\n")
    with pytest.raises(ValueError, match="no file has a column"):
        run(folder, options={"overwrite_output_dir": True})
    assert (folder / "out" / "schema.json").read_bytes() == before


# --- what comes after


def test_the_command_reads_flags(folder, capsys):
    schema = write_schema(folder)
    flags = ["--schema", str(schema), "--output_dir", str(folder / "out"), "--ratios", "6", "2", "2"]
    assert cli.main(["prepare", "--dataset", "table", *flags]) == 0
    printed = capsys.readouterr().out
    assert "dropped: three stars" in printed and DatasetSchema.load(folder / "out").protocol["ratios"] == [6, 2, 2]
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--dataset", "table", "--output_dir", str(folder / "out")])
    assert "--schema is needed" in capsys.readouterr().err


def test_finetuning_runs_on_a_table(clean, tmp_path, plm):
    results = tiny.finetune(clean.out, plm, tmp_path / "model", strategy="joint")
    assert 0 <= results["test_auc"] <= 1 and results["test_rows"] > 0
    assert "clicks" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_counts_add_up_whatever_the_dirt(tmp_path):
    """Random lines, of which some are broken, and random side tables: every line ends in exactly one place."""
    for seed in range(6):
        generator = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        lines = ["user,item,stars,text"]
        for _ in range(400):
            line = [
                str(generator.randrange(12)),
                str(generator.randrange(15)),
                str(generator.randrange(1, 6)),
                generator.choice(["a", '"b, c"', ""]),
            ]
            dirt = generator.random()
            if dirt < 0.15:
                line[generator.randrange(4)] = generator.choice(["", "x", '"', '"open', "9" * 20, "\0", "1,2", "nan"])
            lines.append(",".join(line) if dirt > 0.02 else "")
        (folder / "clicks.csv").write_bytes("\n".join(lines).encode() + b"\n1,\xff,5,a\n1,2,5,last\n")
        items = [{"item": str(item), "title": f"Item {item}"} for item in range(12)] + [
            {"item": "3", "title": "again"},
            {"item": None, "title": "none"},
        ]
        (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
        schema = {
            "name": "dirt",
            "files": "clicks.csv",
            "label": "stars >= 4",
            "drop": ["stars == 2", "user == '7'"],
            "user": "user",
            "item": "item",
            "unique": bool(seed % 2),
            "split": "random",
            "joins": [
                {
                    "files": "items.jsonl",
                    "on": "item",
                    "missing": ["reject", "drop", "null"][seed % 3],
                    "duplicates": "first",
                }
            ],
            "fields": [
                {"name": "user", "key": True},
                {"name": "item", "key": True},
                {"name": "text"},
                {"name": "title", "nullable": seed > 2},
            ],
        }
        (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
        args = PrepareArguments(
            "table", str(folder / "out"), schema=str(folder / "schema.yaml"), max_malformed_share=1.0
        )
        report = prepare.run(args)
        assert adds_up(report) and report["rows_kept"] == len(all_rows(folder / "out")) > 50
        named = sum(count for reason, count in report["dropped"].items() if reason not in schema["drop"])
        of_events = [one for one in rejected(folder / "out") if one[0] == "clicks.csv"]
        assert len(of_events) == report["malformed"] + named and len({one[1] for one in of_events}) == len(of_events)
        entry = report["raw_files"]["items.jsonl"]
        assert (entry["lines"], entry["malformed"], sum(entry["unused_by_reason"].values())) == (14, 1, 1)


DOCS = Path(prepare.__file__).parents[1] / "docs"


@pytest.mark.skipif(not DOCS.is_dir(), reason="a wheel has no docs")
def test_the_example_of_the_documentation_prepares(tmp_path):
    text = (DOCS / "datasets.md").read_text(encoding="utf-8")
    (tmp_path / "schema.yaml").write_text(text.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    (tmp_path / "clicks").mkdir()
    rows = [
        {
            "uid": row["uid"],
            "item_id": row["item_id"],
            "country": ["nl", "zz", "NULL"][row["uid"] % 3],
            "stars": row["stars"],
            "dwell": row["price"] or "",
            "seen_at": f"2024-01-{1 + number % 28:02} 0{number % 7}:30",
            "weight": 1,
        }
        for number, row in enumerate(event_rows())
    ]
    write_csv(tmp_path / "clicks" / "1.csv", rows[:300]), write_csv(tmp_path / "clicks" / "2.csv", rows[300:])
    items = [
        {
            "id": f"i{item}",
            "title": f"Item {item}",
            "maker_id": item % 3,
            "tags": ["a", "b"][: item % 3],
            "price": item / 2,
        }
        for item in range(29)
    ]
    write_jsonl(tmp_path / "items.jsonl", items)
    pq.write_table(pa.table({"maker_id": [0, 1, 2], "name": ["x", "y", "z"]}), tmp_path / "makers.parquet")
    report = prepare.run(PrepareArguments("table", str(tmp_path / "out"), schema=str(tmp_path / "schema.yaml")))
    assert adds_up(report) and report["malformed"] == 0 and report["rows_kept"] > 200
    assert set(report["dropped"]) == {"item_id is not in items.jsonl", "three stars", "robots"} and all(
        report["dropped"].values()
    )
    assert DatasetSchema.load(tmp_path / "out").protocol["split"] == "time"


def test_rules_that_drop_every_row_are_named(tmp_path):
    (tmp_path / "rows.csv").write_text("u,i,stars\n" + "".join(f"{n},{n},{n % 5}\n" for n in range(9)))
    schema = {
        "name": "few",
        "files": "rows.csv",
        "label": "stars >= 3",
        "drop": ["u >= 0"],
        "user": "u",
        "item": "i",
        "fields": [{"name": "u", "type": "int", "key": True}, {"name": "i", "type": "int", "key": True}],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(schema))
    with pytest.raises(ValueError, match=r"what is left \(.*stars >= 3.*\) has 0 rows, 0 of them clicks"):
        prepare.run(prepare.PrepareArguments("table", str(tmp_path / "out"), schema=str(tmp_path / "s.yaml")))


def test_weights_that_are_all_zero_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("u,i,stars,w\n" + "".join(f"{n % 9},{n},{n % 5},0\n" for n in range(90)))
    schema = {
        "name": "few",
        "files": "rows.csv",
        "label": "stars >= 3",
        "user": "u",
        "item": "i",
        "sample_weight": "w",
        "fields": [{"name": "u", "type": "int", "key": True}, {"name": "i", "type": "int", "key": True}],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(schema))
    with pytest.raises(ValueError, match=r"sample weight 'w': all \d+ training rows weigh 0"):
        prepare.run(prepare.PrepareArguments("table", str(tmp_path / "out"), schema=str(tmp_path / "s.yaml")))


@pytest.mark.parametrize(
    "name", ["../clicks.csv", "../*.csv", "{folder}/clicks.csv", "link.csv", "local://{folder}/clicks.csv"]
)
@pytest.mark.parametrize("place", ["events", "joins"])
def test_a_schema_reads_in_its_own_folder(folder, name, place):
    """Unless the command names another one."""
    inner = folder / "inner"
    inner.mkdir()
    write_csv(inner / "clicks.csv", event_rows())
    (inner / "link.csv").symlink_to(folder / "clicks.csv")
    name = name.format(folder=folder)
    error = FileNotFoundError if "local" in name else ValueError  # on this machine it is no address
    match = "no file fits" if "local" in name else "lies outside of .*inner, and a schema names files in its folder"
    files = {"files": name} if place == "events" else {"joins": [{"files": name, "on": "uid"}]}
    write_schema(inner, **files)
    with pytest.raises(error, match=match):
        prepare.run(PrepareArguments("table", str(folder / "out"), schema=str(inner / "schema.yaml")))


def test_the_command_line_names_other_folders(folder):
    inner = folder / "inner"
    inner.mkdir()
    write_schema(inner, files="clicks.csv")
    schema = str(inner / "schema.yaml")
    for number, more in enumerate(({"data_dir": str(folder)}, {"data_files": [str(folder / "clicks.csv")]})):
        assert prepare.run(PrepareArguments("table", str(folder / f"o{number}"), schema=schema, **more))["rows_kept"]


def test_a_first_schema_of_files_elsewhere_says_their_folder(folder):
    schema = folder / "inner" / "s.yaml"
    told = write_first_schema([str(folder / "clicks.csv")], schema)
    assert f"--schema {schema} --data_dir {folder} --output_dir D" in told
    assert yaml.safe_load(schema.read_text())["files"] == "clicks.csv"
