"""`flip-ctr predict`: the same rows give the same scores, whatever the file."""

import csv
import json

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from flip_ctr import FlipField
from flip_ctr.data.readers import row_files
from flip_ctr.train.predict import PredictArguments, run

ROWS = [
    {
        "user_id": 1,
        "gender": "female",
        "age": 21,
        "occupation": "writer",
        "zip_code": "00001",
        "movie_id": 2,
        "title": "Comedy Number 2 (1952)",
        "genre": "Comedy",
        "note": "a",
    },
    {
        "user_id": 2,
        "gender": "male",
        "age": None,
        "occupation": None,
        "zip_code": "00002",
        "movie_id": 3,
        "title": "Drama Number 3 (1953)",
        "genre": "Drama",
        "note": "",
    },
    {
        "user_id": 999,
        "gender": "other",
        "age": 99,
        "occupation": "pilot",
        "zip_code": "02139",
        "movie_id": 998,
        "title": 'A "new", strange; title\nin two lines',
        "genre": None,
        "note": "ß",
    },
    {
        "user_id": None,
        "gender": None,
        "age": None,
        "occupation": None,
        "zip_code": None,
        "movie_id": None,
        "title": None,
        "genre": None,
        "note": None,
    },
    {
        "user_id": 30,
        "gender": "female",
        "age": 20,
        "occupation": "NA",
        "zip_code": "V1N3Z",
        "movie_id": 40,
        "title": "  Cité   des enfants ",
        "genre": "Drama, Romance",
        "note": "e",
    },
]


def write(path, rows=ROWS, floats: bool = False) -> str:
    """Writes rows by hand. `floats`: integers as other tools store them, 21.0."""
    rows = [dict(row) for row in rows]
    if floats:
        rows = [{k: float(v) if isinstance(v, int) else v for k, v in row.items()} for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def read(path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(path, parse_options=options).to_pylist()


def scores(model, tmp_path, source: str) -> list[float]:
    return run(PredictArguments(str(model), source, str(tmp_path / "out.parquet")))["click_probability"].to_pylist()


@pytest.fixture(scope="module")
def joint(finetuned):
    return finetuned["joint"][0]


@pytest.mark.parametrize("strategy", ["id", "joint"])
@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_format_has_no_say(tmp_path, finetuned, strategy, suffix, floats):
    model = finetuned[strategy][0]
    expected = scores(model, tmp_path, write(tmp_path / "reference.parquet"))
    assert len(expected) == 5 and all(0 < score < 1 for score in expected) and len(set(expected)) == 5
    assert scores(model, tmp_path, write(tmp_path / f"rows{suffix}", floats=floats)) == expected


def test_files_of_other_tools(tmp_path, joint):
    expected = scores(joint, tmp_path, write(tmp_path / "reference.parquet"))
    frame = pd.DataFrame(ROWS)
    frame.to_csv(tmp_path / "pandas.csv", index=False)
    frame.to_csv(tmp_path / "excel.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    frame.to_parquet(tmp_path / "pandas.parquet")
    frame.convert_dtypes().to_json(tmp_path / "pandas.jsonl", orient="records", lines=True)
    for name in ("pandas.csv", "excel.csv", "pandas.parquet", "pandas.jsonl"):
        assert scores(joint, tmp_path, str(tmp_path / name)) == expected, name


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_all_output_formats_hold_the_rows_and_their_scores(tmp_path, joint, suffix):
    output = tmp_path / "new folder" / f"scores{suffix}"
    table = run(PredictArguments(str(joint), write(tmp_path / "rows.parquet"), str(output)))
    columns = ["click_probability", "id_probability", "text_probability"]
    assert table.column_names == [*ROWS[0], *columns]
    for written, row, score in zip(read(output), ROWS, table.to_pylist(), strict=True):
        assert [written[name] for name in columns] == pytest.approx([score[name] for name in columns], abs=1e-15)
        if suffix != ".csv":  # in a CSV an empty text and a null are the same
            assert {name: written[name] for name in row} == row


def test_batches_and_order_have_no_say(tmp_path, joint):
    expected = scores(joint, tmp_path, write(tmp_path / "rows.csv"))
    reverse = scores(joint, tmp_path, write(tmp_path / "reverse.csv", ROWS[::-1]))
    assert reverse[::-1] == pytest.approx(expected, abs=1e-6)
    arguments = PredictArguments(
        str(joint), str(tmp_path / "rows.csv"), str(tmp_path / "o.csv"), per_device_eval_batch_size=2
    )
    assert run(arguments)["click_probability"].to_pylist() == pytest.approx(expected, abs=1e-6)


def test_labels_in_the_file_are_ignored(tmp_path, joint):
    expected = scores(joint, tmp_path, write(tmp_path / "rows.csv"))
    labelled = [row | {"label": "clicked"} for row in ROWS]
    assert scores(joint, tmp_path, write(tmp_path / "labelled.csv", labelled)) == expected


# --- errors


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_errors_name_file_column_and_row(tmp_path, joint, suffix):
    short = write(tmp_path / f"short{suffix}", [{k: v for k, v in row.items() if k != "title"} for row in ROWS])
    with pytest.raises(ValueError, match=f"short{suffix}: column.s. 'title' missing"):
        scores(joint, tmp_path, short)
    wrong = [row | {"age": str(row["age"] or 1)} for row in ROWS]
    wrong[2]["age"] = "old"
    with pytest.raises(
        ValueError, match=f"wrong{suffix}: column 'age', row 2: expected int, got str 'old'. Rows are counted from 0"
    ):
        scores(joint, tmp_path, write(tmp_path / f"wrong{suffix}", wrong))


def test_integers_where_text_belongs_are_refused(tmp_path, joint):
    """A reader has already lost the leading zeros."""
    rows = [row | {"zip_code": 2139} for row in ROWS]
    for suffix in (".jsonl", ".parquet"):
        with pytest.raises(ValueError, match="column 'zip_code', row 0: expected text, got int 2139.*leading zeros"):
            scores(joint, tmp_path, write(tmp_path / f"rows{suffix}", rows))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("rows.jsonl", '{"user_id": 1}\n{"user_id"\n', ValueError, "rows.jsonl, line 2"),
        ("rows.jsonl", '{"user_id": 1}\n[1]\n', ValueError, "line 2: expected an object of columns"),
        ("rows.jsonl", '{"user_id": 1}\n{"user_id": "x"}\n', ValueError, "column 'user_id' mixes int and str"),
        ("rows.csv", "user_id,age\n1,2\n3\n", ValueError, "rows.csv: .*Expected 2 columns, got 1"),
        ("rows.parquet", "no parquet", ValueError, "rows.parquet"),
        ("rows.csv", ",".join(ROWS[0]) + "\n", ValueError, "rows.csv has no rows"),
        ("rows.jsonl", "", ValueError, "rows.jsonl has no rows"),
        ("rows.xlsx", "", ValueError, "rows.xlsx: expected a file that ends in .parquet, .csv, .jsonl"),
        (None, "", FileNotFoundError, "no file .*nowhere.csv"),
    ],
)
def test_broken_files(tmp_path, joint, name, content, error, message):
    path = tmp_path / (name or "nowhere.csv")
    if name:
        path.write_text(content)
    with pytest.raises(error, match=message):
        scores(joint, tmp_path, str(path))


def test_an_existing_column_is_never_overwritten(tmp_path, joint):
    rows = [row | {"click_probability": 0.5} for row in ROWS]
    with pytest.raises(ValueError, match="already has a column 'click_probability'; rename it"):
        scores(joint, tmp_path, write(tmp_path / "rows.csv", rows))


def test_the_output_format_is_checked_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="scores.tsv: expected a file that ends in"):
        run(PredictArguments("nowhere", "nowhere.csv", str(tmp_path / "scores.tsv")))


# --- files as people have them


def test_columns_that_are_no_field_come_back_as_they_stood(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("uid,zip,big,e,flag\n7,007,12345678901234567890,1e5,True\n")
    rows = row_files.read_rows(str(path), [FlipField("uid", "int")])
    assert rows.to_pylist() == [{"uid": 7, "zip": "007", "big": "12345678901234567890", "e": "1e5", "flag": "True"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", b"uid,a,uid\n1,2,3\n", "its header names uid more than once"),
        (
            "r.jsonl",
            b'{"uid": 1}\n{"uid": 1180591620717411303424}\n',
            "column 'uid', row 1: 1180591620717411303424 does not fit into 64 bits",
        ),
        ("r.jsonl", b'{"uid": 1}\n{"uid": "\xe9"}\n', "r.jsonl, line 2: 'utf-8' codec can't decode"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        row_files.read_rows(str(tmp_path / name), [FlipField("uid", "int")])


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'\xef\xbb\xbf{"uid": 1}\n')
    assert row_files.read_rows(str(tmp_path / "r.jsonl"), [FlipField("uid", "int")]).to_pylist() == [{"uid": 1}]


def test_rows_that_cannot_be_written_leave_what_lay_there(tmp_path):
    (tmp_path / "r.csv").write_text("before")
    with pytest.raises(ValueError, match="column 'd' holds struct<a: int64>, which a CSV file cannot"):
        row_files.write_rows(pa.table({"d": [{"a": 1}]}), str(tmp_path / "r.csv"))
    assert (tmp_path / "r.csv").read_text() == "before" and len(list(tmp_path.iterdir())) == 1
