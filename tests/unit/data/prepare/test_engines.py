"""Engines: Spark gives the dataset folder that DuckDB gives, row for row; their failures are one line and leave
nothing."""

import datetime
import importlib.util
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_bookcrossing as bookcrossing
import raw_movielens as movielens
import raw_table as own_table
import tiny

from flip_ctr.data.prepare.engines import ENGINES, Engine
from flip_ctr.data.prepare.own_splits import OwnSplit, read_split
from flip_ctr.data.prepare.split_statistics import entity_prompts
from flip_ctr.data.prepare.splits import SPLIT_RULES, with_split
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.train import predict, prepare
from flip_ctr.train.arguments import PredictArguments

needs_spark = pytest.mark.skipif(
    importlib.util.find_spec("pyspark") is None or shutil.which("java") is None,
    reason="PySpark or Java is not installed",
)


def content(folder) -> dict[str, bytes]:
    """Every file of a dataset folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dirty_bookcrossing(tmp_path):
    """Ratings with every reason to become no row, and side tables with some."""
    ratings = bookcrossing.rating_lines()
    ratings[3], ratings[7] = '"1";"0001"', '"999";"0000000002X";"5"'
    ratings += [ratings[10], f'"1";"{bookcrossing.isbn(2)}";"0"', '"2";"0000000000";"9"']
    books = [
        bookcrossing.book_line(1),
        bookcrossing.book_line(1, "Again"),
        bookcrossing.book_line(3, "NOVEL, 5", author="Unknown"),
    ]
    users = [bookcrossing.user_line(1, "n/a, , ", age="NULL")]
    return "bookcrossing", bookcrossing.write_raw(tmp_path / "raw", ratings, books, users), {"max_malformed_share": 0.1}


@needs_spark
def test_spark_gives_the_folder_that_duckdb_gives(tmp_path, spark, pictures):
    dataset, raw, options = dirty_bookcrossing(tmp_path)
    options |= {"statistics": ["user_id"], "history": 3, "split": "cold_items", "item_title": "title"}
    for engine in ("duckdb", "pyspark"):
        prepare.run(prepare.PrepareArguments(dataset, str(tmp_path / engine), str(raw), engine=engine, **options))
    first, second = content(tmp_path / "duckdb"), content(tmp_path / "pyspark")
    assert first.keys() == second.keys() and len(first) == 9
    assert not [name for name in first if first[name] != second[name]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["duckdb", "pyspark", "raw"]


@needs_spark
def test_spark_joins_and_reads_values_as_duckdb_does(tmp_path, spark):
    changes = own_table.write_joined(tmp_path) | {"split": "leave_last_out", "types": {"at": "timestamp"}}
    moment = lambda row: datetime.datetime.fromtimestamp(row["at"], datetime.UTC).isoformat()  # noqa: E731
    rows = own_table.without(own_table.event_rows(), "title", "tags", "price", "new")
    own_table.write_csv(tmp_path / "clicks.csv", [row | {"at": moment(row)} for row in rows])
    changes["joins"][0]["missing"] = "null"
    drop = ["at < '2023-11-14 22:20'", "price is null"]
    changes |= {"statistics": ["user_id+tags"], "history": 4, "past": "rolling", "label_delay": 40}
    for engine in ("duckdb", "pyspark"):
        own_table.run(tmp_path, engine, {"engine": engine}, drop=drop, **changes)
    first, second = content(tmp_path / "duckdb"), content(tmp_path / "pyspark")
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] != second[name]]


@needs_spark
@pytest.mark.parametrize("split", SPLIT_RULES)
def test_spark_places_each_row_where_duckdb_does(tmp_path, spark, split):
    numbers = np.arange(1500)
    table = pa.table(
        {
            "_row": numbers,
            "user": numbers % 37,
            "item": [f"ü{number * 7 % 50}" for number in numbers],
            "time": numbers * 31 % 7,
            "kept": numbers % 5 > 0,
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    columns = {"row_key": ("user", "item"), "user": "user", "item": "item", "time": "time", "group": "kept"}
    placed = []
    for name in ENGINES:
        with Engine(name, tmp_path) as engine:
            rows = with_split(engine.read(tmp_path / "rows.parquet"), split, 3, (8, 1, 1), order="_row", **columns)
            placed.append(engine.fetch(rows.order_by("_row").select("_split"))["_split"].to_pylist())
    assert placed[0] == placed[1] and set(placed[0]) == {0, 1, 2}


@needs_spark
def test_spark_reads_splits_that_the_data_brings_as_duckdb_does(tmp_path, spark):
    words = ["Train", " VAL ", "dev", "test", None, "other"]
    table = {"text": words, "number": [0, 1, 2, 3, None, 4], "flag": [True, False, True, False, None, True]}
    table |= {"_row": list(range(6)), "_file": pa.array([0, 0, 1, 1, 2, 2], pa.int32())}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    splits = [
        read_split({"column": "text"}),
        read_split({"column": "number", "train": [0, 1], "test": [3]}),
        read_split({"column": "flag", "train": [False], "validation": True}),
        OwnSplit(files={"a": "train", "b": "test", "c": "validation"}),
    ]
    placed = []
    for name in ENGINES:
        with Engine(name, tmp_path) as engine:
            rows = engine.read(tmp_path / "rows.parquet")
            codes = {f"s{at}": one.code(rows, {"a": 0, "b": 1, "c": 2}) for at, one in enumerate(splits)}
            placed.append(engine.fetch(rows.order_by("_row").select(**codes)).to_pydict())
    expected = {"s0": [0, 1, 1, 2, None, None], "s1": [0, 0, None, 2, None, None]}
    assert placed[0] == placed[1] == expected | {"s2": [1, 0, 1, 0, None, 1], "s3": [0, 0, 2, 2, 1, 1]}


@pytest.mark.parametrize("name", ["duckdb", pytest.param("pyspark", marks=needs_spark)])
def test_distinct_prompts_are_those_of_training_rows(tmp_path, request, name):
    if name == "pyspark":
        request.getfixturevalue("spark")
    rows = {
        "_split": [0, 0, 0, 0, 0, 1],
        "user": [1, 2, 3, None, 1, 4],
        "age": [30, 30, None, None, 30, 99],
        "genres": [["a", "b"], ["b", "a"], [], None, ["a", "b"], ["c"]],
        "hour": [1, 2, 3, 4, 5, 6],
    }
    fields = [
        FlipField("user", "int", entity="user", key=True, sides=("id",)),
        FlipField("age", "int", entity="user"),
        FlipField("genres", kind="multi-valued", entity="item"),
        FlipField("hour", "int", sides=("id",)),
    ]
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    with Engine(name, tmp_path) as engine:
        found = entity_prompts(engine.read(tmp_path / "rows.parquet"), fields, engine.fetch)
    assert found == {
        "user": {"fields": ["age"], "prompts": 2, "keys": 3},
        "item": {"fields": ["genres"], "prompts": 3, "keys": None},  # an empty list is a null
        "context": {"fields": [], "prompts": 0, "keys": None},
    }


def test_engines_and_their_options_are_checked(tmp_path):
    with pytest.raises(ValueError, match="--engine must be one of duckdb, pyspark; got 'polars'"):
        Engine("polars", tmp_path)
    with pytest.raises(OSError, match="--memory_limit lots: .*1GB"):
        Engine("duckdb", tmp_path, "lots")
    with pytest.raises(ValueError, match="--memory_limit is DuckDB's"):
        Engine("pyspark", tmp_path, "1GB")


def test_without_pyspark_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"PySpark is not installed \(pip install 'flip-ctr\[spark\]'\)"):
        Engine("pyspark", tmp_path)


def test_an_engine_that_fails_leaves_nothing(tmp_path):
    raw = movielens.write_1m(tmp_path / "raw")
    with pytest.raises(OSError, match="reading .*: Out of Memory Error"):
        prepare.run(prepare.PrepareArguments("ml-1m", str(tmp_path / "out"), str(raw), memory_limit="1kB"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


@needs_spark
def test_spark_writes_a_folder_of_scores(tmp_path, spark):
    """Here and not with the recipes, as all tests of Spark share one Java machine."""
    own_table.write_csv(tmp_path / "clicks.csv", own_table.event_rows())
    own_table.run(tmp_path)
    tiny.finetune(tmp_path / "out", None, tmp_path / "m", num_train_epochs=1)
    shard = tmp_path / "out" / "data" / "test-00000-of-00001.parquet"
    rows = pq.read_table(shard)
    bad = rows.set_column(0, "user_id", pa.array(["x", *map(str, rows["user_id"].to_pylist()[1:])]))
    pq.write_table(bad, tmp_path / "bad.parquet")
    expected = tiny.predicted(tmp_path / "m", shard)["click_probability"].to_pylist()
    output = tmp_path / "spark.parquet"
    arguments = {"input": [str(tmp_path / "bad.parquet")], "output": str(output), "engine": "pyspark"}
    with pytest.raises(ValueError, match="user_id is not a whole number: 'x' in .*, and 1 such rows in all"):
        predict.run(PredictArguments(str(tmp_path / "m"), **arguments))
    assert not output.exists()
    counts = predict.run(PredictArguments(str(tmp_path / "m"), **arguments, on_error="null"))
    assert counts == {"rows": len(rows), "scored": len(rows) - 1}
    found = pq.read_table(output)
    assert found["click_probability"].to_pylist()[1:] == pytest.approx(expected[1:], abs=1e-6)
    assert found.select(["click_probability", "reason"]).slice(0, 1).to_pylist() == [
        {"click_probability": None, "reason": "user_id is not a whole number: 'x'"}
    ]
    with pytest.raises(ValueError, match="spark.parquet is there already"):
        predict.run(PredictArguments(str(tmp_path / "m"), **arguments))
