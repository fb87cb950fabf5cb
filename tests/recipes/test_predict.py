"""`flip-ctr predict`: the same rows give the same scores, whatever the file."""

import csv
import json

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import tiny

from flip_ctr.train.loop import file_scoring
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
    return tiny.predicted(model, source, tmp_path / "out.parquet")["click_probability"].to_pylist()


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


COLUMNS = ["click_probability", "id_probability", "text_probability"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_all_output_formats_hold_the_rows_and_their_scores(tmp_path, joint, suffix):
    expected = scores(joint, tmp_path, write(tmp_path / "rows.parquet"))
    output = tmp_path / "new folder" / f"scores{suffix}"
    counts = run(PredictArguments(str(joint), str(tmp_path / "rows.parquet"), str(output)))
    assert counts == {"rows": 5, "scored": 5}
    for written, row, score in zip(read(output), ROWS, expected, strict=True):
        assert list(written) == [*ROWS[0], *COLUMNS]
        assert written["click_probability"] == pytest.approx(score, abs=1e-15)
        assert all(0 < written[name] < 1 for name in COLUMNS)
        if suffix != ".csv":  # in a CSV an empty text and a null are the same
            assert {name: written[name] for name in row} == row


@pytest.mark.parametrize("source", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet"])
def test_columns_that_are_no_field_come_back_as_they_stood(tmp_path, finetuned, source, target):
    more = {"big": "12345678901234567890", "e": "1e5", "flag": "True", "late": None}
    rows = [row | more for row in ROWS]
    rows[3]["late"] = "x"
    run(PredictArguments(str(finetuned["id"][0]), write(tmp_path / f"r{source}", rows), str(tmp_path / f"o{target}")))
    if target == ".csv":
        with open(tmp_path / "o.csv", newline="", encoding="utf-8") as file:
            written = list(csv.DictReader(file))
    else:
        written = read(tmp_path / f"o{target}")
    assert [row["zip_code"] or None for row in written] == [row["zip_code"] for row in ROWS]
    assert [row["title"] or None for row in written] == [row["title"] for row in ROWS]
    assert [[row[name] or None for name in more] for row in written] == [[row[name] for name in more] for row in rows]


def test_batches_and_order_have_no_say(tmp_path, joint, monkeypatch):
    expected = scores(joint, tmp_path, write(tmp_path / "rows.csv"))
    reverse = scores(joint, tmp_path, write(tmp_path / "reverse.csv", ROWS[::-1]))
    assert reverse[::-1] == pytest.approx(expected, abs=1e-6)
    output = tmp_path / "o.parquet"
    run(PredictArguments(str(joint), str(tmp_path / "rows.csv"), str(output), per_device_eval_batch_size=2))
    assert pq.read_table(output)["click_probability"].to_pylist() == pytest.approx(expected, abs=1e-6)


def test_several_files_and_patterns_are_one_input(tmp_path, joint):
    expected = scores(joint, tmp_path, write(tmp_path / "rows.csv"))
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "1.csv", [dict(reversed(row.items())) for row in ROWS[:2]])
    write(tmp_path / "parts" / "2.csv", [row | {"more": "x"} for row in ROWS[2:]])
    assert scores(joint, tmp_path, str(tmp_path / "parts" / "*.csv")) == pytest.approx(expected, abs=1e-6)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written["more"].to_pylist() == [None] * 2 + ["x"] * 3
    assert written["title"].to_pylist()[2] == ROWS[2]["title"]


def test_labels_in_the_file_are_ignored(tmp_path, joint):
    expected = scores(joint, tmp_path, write(tmp_path / "rows.csv"))
    labelled = [row | {"label": "clicked"} for row in ROWS]
    assert scores(joint, tmp_path, write(tmp_path / "labelled.csv", labelled)) == expected


# --- errors, before the first row is scored


@pytest.fixture
def no_scoring(monkeypatch):
    monkeypatch.setattr(file_scoring, "score_rows", lambda *_: pytest.fail("a row was scored"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_errors_name_file_column_and_row(tmp_path, joint, suffix, no_scoring):
    short = write(tmp_path / f"short{suffix}", [{k: v for k, v in row.items() if k != "title"} for row in ROWS])
    with pytest.raises(ValueError, match=f"short{suffix}: column.s. 'title' missing; the rows have: 'user_id', "):
        scores(joint, tmp_path, short)
    wrong = [row | {"age": str(row["age"] or 1)} for row in ROWS]
    wrong[2]["age"] = "old"
    where = {".csv": "line 4", ".jsonl": "line 3", ".parquet": "row 3"}[suffix]
    with pytest.raises(ValueError, match=f"wrong{suffix}, {where}: age is not a whole number: 'old'"):
        scores(joint, tmp_path, write(tmp_path / f"wrong{suffix}", wrong))


def test_integers_where_text_belongs_are_refused(tmp_path, joint):
    """A reader has already lost the leading zeros."""
    rows = [row | {"zip_code": 2139} for row in ROWS]
    for suffix in (".jsonl", ".parquet"):
        with pytest.raises(ValueError, match=f"rows{suffix}, (line|row) 1: zip_code is a number, not text: '2139'"):
            scores(joint, tmp_path, write(tmp_path / f"rows{suffix}", rows))


USER = dict.fromkeys(ROWS[0]) | {"user_id": 1}


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("rows.jsonl", json.dumps(USER) + '\n{"user_id"\n', ValueError, "rows.jsonl, line 2: broken JSON"),
        ("rows.jsonl", json.dumps(USER) + "\n[1]\n", ValueError, "line 2: not a JSON object of columns"),
        ("rows.jsonl", json.dumps(USER) + '\n{"user_id": "x"}\n', ValueError, "line 2: user_id is not a whole"),
        ("rows.csv", ",".join(ROWS[0]) + "\n3\n", ValueError, "rows.csv, line 2: values: 1 for 9 columns"),
        ("rows.csv", ",".join(ROWS[0]) + '\n1,,,,,,"Big,,\n', ValueError, "line 2: title: a quote that does not end"),
        ("rows.csv", ",".join([*ROWS[0], "age"]) + "\n", ValueError, "rows.csv has more than one column 'age'"),
        ("rows.csv", ",".join([*ROWS[0], "note"]) + "\n", ValueError, "its header names 'note' more than once"),
        ("rows.parquet", "no parquet", ValueError, "rows.parquet"),
        ("rows.csv", ",".join(ROWS[0]) + "\n", ValueError, "rows.csv has no rows"),
        ("rows.jsonl", "", ValueError, "rows.jsonl has no rows"),
        ("rows.jsonl", json.dumps(USER)[:-1] + ', "age": 3}', ValueError, "line 1: 'age' comes twice in an object"),
        ("rows.csv", "sep=;\n", ValueError, "rows.csv is empty; expected a line with the names"),
        ("rows.jsonl", json.dumps(USER | {"title": "x\ud83d"}), ValueError, "half of a character"),
        ("rows.jsonl", json.dumps(USER | {"user_id": 2**70}), ValueError, "line 1: user_id does not fit into 64 bits"),
        ("rows.xlsx", "", ValueError, "rows.xlsx: expected a file that ends in .csv, "),
        (None, "", FileNotFoundError, "no file fits .*nowhere.csv"),
    ],
)
def test_broken_files(tmp_path, joint, name, content, error, message, no_scoring):
    path = tmp_path / (name or "nowhere.csv")
    if name:
        path.write_text(content)
    with pytest.raises(error, match=message):
        scores(joint, tmp_path, str(path))


def test_bytes_that_are_no_text_are_named(tmp_path, joint, no_scoring):
    path = tmp_path / "r.jsonl"
    path.write_bytes(json.dumps(USER | {"title": "x"}).replace("x", "@").encode().replace(b"@", b"\xe9") + b"\n")
    with pytest.raises(ValueError, match="r.jsonl, line 1: bytes that are not utf-8"):
        scores(joint, tmp_path, str(path))


def test_parquet_text_that_is_no_utf_8_is_named(tmp_path, joint, no_scoring):
    table = pa.Table.from_pylist(ROWS)
    broken = pa.array([b"x\xff", *[row["title"] and row["title"].encode() for row in ROWS[1:]]], pa.binary())
    titles = pa.Array.from_buffers(pa.string(), len(broken), broken.buffers())
    pq.write_table(table.set_column(table.column_names.index("title"), "title", titles), tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="r.parquet, row 1: title is bytes, not text"):
        scores(joint, tmp_path, str(tmp_path / "r.parquet"))


def test_an_existing_column_is_never_overwritten(tmp_path, joint, no_scoring):
    rows = [row | {"click_probability": 0.5} for row in ROWS]
    for suffix in (".csv", ".jsonl"):
        with pytest.raises(ValueError, match="already has a column 'click_probability'; rename it"):
            scores(joint, tmp_path, write(tmp_path / f"rows{suffix}", rows))
    path, output = write(tmp_path / "r.csv", [row | {"reason": ""} for row in ROWS]), str(tmp_path / "o.csv")
    with pytest.raises(ValueError, match="already has a column 'reason'"):
        run(PredictArguments(str(joint), path, output, on_error="null"))


def test_an_output_that_is_there_stays(tmp_path, joint, monkeypatch):
    path, output = write(tmp_path / "rows.csv"), tmp_path / "scores.csv"
    output.write_text("before")
    with pytest.raises(ValueError, match="scores.csv is there already; choose another name or add --overwrite_output"):
        run(PredictArguments("nowhere", path, str(output)))
    monkeypatch.setattr(file_scoring, "score_rows", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(PredictArguments(str(joint), path, str(output), overwrite_output=True))
    assert output.read_text() == "before" and {one.name for one in tmp_path.iterdir()} == {"rows.csv", "scores.csv"}


def test_what_cannot_be_written_is_known_before(tmp_path, joint, no_scoring):
    output = str(tmp_path / "scores")
    with pytest.raises(ValueError, match="scores.tsv: expected a file that ends in"):
        run(PredictArguments("nowhere", "nowhere.csv", output + ".tsv"))
    nested = write(tmp_path / "r.jsonl", [row | {"d": {"a": 1}} for row in ROWS])
    with pytest.raises(ValueError, match="r.jsonl: column 'd' holds struct<a: int64>, which a CSV file cannot"):
        run(PredictArguments(str(joint), nested, output + ".csv"))
    mixed = write(tmp_path / "m.jsonl", [row | {"d": value} for row, value in zip(ROWS, [1, "x", None, [1], 2])])
    with pytest.raises(ValueError, match="m.jsonl: column 'd' mixes int and list of int and str; write JSON lines"):
        run(PredictArguments(str(joint), mixed, output + ".parquet"))


def test_an_output_in_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--output .*file/o.csv: .*/file is a file, and no folder"):
        run(PredictArguments("nowhere", "nowhere.csv", str(tmp_path / "file" / "o.csv")))


# --- rows without a score


def test_a_file_of_which_no_line_can_be_read(tmp_path, finetuned):
    (tmp_path / "r.jsonl").write_bytes(b"\xa3x\n[1]\n")
    table = tiny.predicted(finetuned["id"][0], tmp_path / "r.jsonl", on_error="null")
    assert table["click_probability"].null_count == 2
    assert table["reason"].to_pylist()[1] == "not a JSON object of columns: '[1]'"


@pytest.mark.parametrize("target", [".csv", ".jsonl", ".parquet"])
def test_a_row_that_cannot_be_read_has_no_score_and_a_reason(tmp_path, joint, target):
    expected = scores(joint, tmp_path, write(tmp_path / "good.csv"))
    lines = (tmp_path / "good.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    # behind the header: a good row, a line of one value, a stray quote, a value of another type, and the other rows
    bad = ["one value\n", '9,f,1,w,1,1,"Big,x,y\n', lines[1].replace(",21,", ",old,"), "\n"]
    (tmp_path / "bad.csv").write_text("".join([*lines[:2], *bad, *lines[2:]]), encoding="utf-8")
    output = tmp_path / f"o{target}"
    arguments = PredictArguments(str(joint), str(tmp_path / "bad.csv"), str(output), on_error="null")
    assert run(arguments) == {"rows": 9, "scored": 5}
    written = read(output)
    assert [row["click_probability"] for row in written[:1] + written[5:]] == pytest.approx(expected, abs=1e-6)
    assert all(row[name] is None for row in written[1:5] for name in COLUMNS)
    assert [row["reason"] for row in written[1:5]] == [
        "values: 1 for 9 columns: 'one value'",
        "title: a quote that does not end, or text behind a closing quote: '9,f,1,w,1,1,\"Big,x,y'",
        "age is not a whole number: 'old'",
        "blank line",
    ]
    assert not any(row["reason"] for row in written[:1] + written[5:]) and written[3]["age"] == "old"
