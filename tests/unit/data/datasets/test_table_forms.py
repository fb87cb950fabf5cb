"""Forms in which tables come: what `prepare` reads beside plain CSV, JSON lines and Parquet."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_table import SCHEMA, event_rows, run, without, write_csv

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.table_values import read_time
from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import FlipField


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What the plain clicks become."""
    folder = tmp_path_factory.mktemp("plain")
    write_csv(folder / "clicks.csv", event_rows())
    run(folder)
    return content(folder)


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out" / "data").iterdir()}


def rejected(folder) -> list[list]:
    return [list(row.values()) for row in pq.read_table(folder / "out" / "rejected.parquet").to_pylist()]


@pytest.mark.parametrize("named", [False, True])
def test_a_first_line_for_spreadsheets_is_no_row(tmp_path, plain, named):
    path = write_csv(tmp_path / "clicks.csv", event_rows(), ";")
    text = path.read_bytes().decode()
    names = {"column_names": list(event_rows()[0])} if named else {}
    path.write_bytes(b"sep=;\r\n" + (text.split("\r\n", 1)[1] if named else text).encode())
    assert run(tmp_path, delimiter=";", **names)["rows_read"] == 600
    assert content(tmp_path) == plain


def test_lines_that_python_has_printed(tmp_path, plain):
    lines = [repr(row) + "\n" for row in event_rows()]
    (tmp_path / "clicks.txt").write_text("".join(lines), encoding="utf-8")
    run(tmp_path, files="clicks.txt", format="python")
    assert content(tmp_path) == plain
    broken = [*lines[:5], "\n", "open('x')\n", "[1]\n", *lines[5:], "\n"]
    (tmp_path / "clicks.txt").write_text("".join(broken), encoding="utf-8")
    options = {"overwrite_output_dir": True, "max_malformed_share": 0.01}
    report = run(tmp_path, options=options, files="clicks.txt", format="python")
    assert content(tmp_path) == plain and report["rows_read"] == 603
    assert rejected(tmp_path) == [
        ["clicks.txt", 6, "blank line", ""],
        ["clicks.txt", 7, "not a Python dict of columns", "open('x')"],
        ["clicks.txt", 8, "not a Python dict of columns", "[1]"],
    ]


def test_times_in_other_forms(tmp_path):
    when = datetime.datetime(2024, 3, 21)
    for form, text in (
        ("%m/%d/%Y", "03/21/2024"),
        ("%y%m%d%H", "24032100"),
        ("%a %b %d %H:%M:%S %z %Y", "Wed Mar 20 16:00:00 -0800 2024"),
        (None, "2024-03-21 00:00:00 UTC"),
    ):
        assert read_time(text, form) == when
    days = [when + datetime.timedelta(row["at"] % 7) for row in event_rows()]
    rows = [row | {"at": int(f"{day:%Y%m%d}")} for row, day in zip(event_rows(), days)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clicks.parquet")
    run(tmp_path, files="clicks.parquet", types={"at": "%Y%m%d"}, split="time")
    found = read_split(tmp_path / "out", "train")["at"].to_pylist()
    assert (min(found), max(found)) == (when, when + datetime.timedelta(5))


def test_a_value_of_another_form_is_named(tmp_path):
    rows = [row | {"at": "03/21/2024"} for row in event_rows()]
    rows[7]["at"] = "2024-03-21"
    write_csv(tmp_path / "clicks.csv", rows)
    run(tmp_path, types={"at": "%m/%d/%Y"}, options={"max_malformed_share": 0.01})
    assert rejected(tmp_path)[0][1:3] == [11, "at is not a time as %m/%d/%Y writes it"]
    for form in ("%", "%d %d", "%!", "day"):
        with pytest.raises(ValueError, match="`types` must be `column: type` .* or the form of a time such as"):
            run(tmp_path, options={"overwrite_output_dir": True}, types={"at": form})


def test_ids_of_more_than_63_bits_are_text(tmp_path):
    rows = [row | {"uid": 2**64 - row["uid"]} for row in event_rows()]
    rows[0]["uid"] = 7
    table = pa.Table.from_pylist(without(rows, "uid")).append_column(
        "uid", pa.array([row["uid"] for row in rows], pa.uint64())
    )
    pq.write_table(table, tmp_path / "clicks.parquet")
    fields = [{**SCHEMA["fields"][0], "type": "string"}, *SCHEMA["fields"][1:]]
    run(tmp_path, files="clicks.parquet", fields=fields)
    users = {
        user
        for split in ("train", "validation", "test")
        for user in read_split(tmp_path / "out", split)["user_id"].to_pylist()
    }
    assert users == {str(row["uid"]) for row in rows}
    field = FlipField("user_id")
    assert Column.read(table["uid"], field).values[:2] == ["7", str(2**64 - 1)]
    assert Column.read([2**70], field).values == [str(2**70)]
    with pytest.raises(ValueError, match="expected text, got int 2139"):
        Column.read([2139], field)


def test_a_rule_drops_rows_without_a_key(tmp_path, plain):
    rows = event_rows()
    write_csv(tmp_path / "clicks.csv", [*rows, *(row | {"uid": None} for row in rows[:9])])
    with pytest.raises(ValueError, match="9 of 609 lines are malformed.*user_id is null"):
        run(tmp_path)
    report = run(tmp_path, drop={"three stars": "stars == 3", "no user": "user_id is null"})
    assert report["malformed"] == 0 and report["dropped"]["no user"] == sum(row["stars"] != 3 for row in rows[:9])
    assert content(tmp_path) == plain
