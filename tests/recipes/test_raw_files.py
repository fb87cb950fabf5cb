"""From raw files to a model and back: the very files of the data are scored and evaluated, and nothing is prepared
anew."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny
from raw_table import SCHEMA, event_rows, run, without, write_csv, write_joined
from sklearn.metrics import ndcg_score

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.train import evaluate_ctr, predict
from flip_ctr.train.arguments import EvaluateArguments, PredictArguments
from flip_ctr.train.loop import spark_scoring


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Clicks whose items stand in another file, a model of them, and a file with the clicks of the test split."""
    folder = tmp_path_factory.mktemp("joined")
    run(folder, **write_joined(folder))
    tiny.finetune(folder / "out", None, folder / "m", learning_rate=0.05)
    keys = {(row["user_id"], row["item_id"]) for row in read_split(folder / "out", "test").to_pylist()}
    rows = [row for row in event_rows() if (row["uid"], row["item_id"]) in keys or row["stars"] == 3]
    write_csv(folder / "test.csv", without(rows, "title", "tags", "price", "new"))
    return folder


def sides(folder) -> list[str]:
    return [f"items={folder}/items.jsonl", f"makers={folder}/brands.parquet"]


def test_files_are_evaluated_as_the_split_is(joined):
    model = str(joined / "m")
    by_split = evaluate_ctr.run(EvaluateArguments(model, str(joined / "out"), top_k=2))
    files = {"input": [str(joined / "test.csv")], "side": sides(joined), "label": "stars >= 4"}
    by_file = evaluate_ctr.run(EvaluateArguments(model, **files, drop=["stars == 3"], top_k=2))
    assert len(by_file) == len(by_split) > 5 and by_split["test_ranked_users"] > 1
    for name, value in by_split.items():
        if isinstance(value, int | float):
            assert by_file[name.replace("test_", "eval_")] == pytest.approx(value, abs=1e-6), name


def test_times_and_decimal_commas_are_read_as_the_schema_says(tmp_path):
    """Days whose text is in another order than the days, and stars such as 3,5."""

    def written(row: dict) -> dict:
        day = datetime.date(2024, 1, 1) + datetime.timedelta(days=row["at"] - 1_700_000_000)
        return row | {"at": day.strftime("%d/%m/%Y"), "stars": f"{row['stars'] - 1},5"}

    raw = [written(row) for row in event_rows()]
    write_csv(tmp_path / "clicks.csv", raw)
    types = {"at": "%d/%m/%Y", "stars": {"type": "float", "decimal": ","}}
    rules = {"label": "stars >= 3.5", "drop": ["stars == 2.5"]}
    run(tmp_path, types=types, split="time", history=3, **rules)
    tiny.finetune(tmp_path / "out", None, tmp_path / "m", learning_rate=0.05)
    by_split = evaluate_ctr.run(EvaluateArguments(str(tmp_path / "m"), str(tmp_path / "out")))
    keys = {name: read_split(tmp_path / "out", name).select(["user_id", "item_id"]) for name in ("train", "test")}
    keys = {name: {tuple(row.values()) for row in table.to_pylist()} for name, table in keys.items()}
    rows = {name: [row for row in raw if (row["uid"], row["item_id"]) in of_split] for name, of_split in keys.items()}
    events = [row | {"clicked": int(row["stars"] >= "3,5")} for row in rows["train"]]
    write_csv(tmp_path / "rows.csv", rows["test"])
    write_csv(tmp_path / "events.csv", events, columns=["uid", "item_id", "clicked", "at"])
    files = {
        name: str(tmp_path / file) for name, file in {"events": "events.csv", "items": "out/items.parquet"}.items()
    }
    files |= {"input": [str(tmp_path / "rows.csv")], "time_column": "at"}
    by_file = evaluate_ctr.run(EvaluateArguments(str(tmp_path / "m"), **files, **rules))
    assert by_file["eval_auc"] == pytest.approx(by_split["test_auc"], abs=1e-6)
    assert by_file["eval_logloss"] == pytest.approx(by_split["test_logloss"], abs=1e-6)
    write_csv(tmp_path / "events.csv", [row | {"at": "2024-03-01"} for row in events])
    with pytest.raises(ValueError, match="events.csv, line 2: at is not a time as %d/%m/%Y writes it: '2024-03-01'"):
        evaluate_ctr.run(EvaluateArguments(str(tmp_path / "m"), **files, **rules))


def test_each_users_rows_are_ranked_by_score(joined):
    results = evaluate_ctr.run(EvaluateArguments(str(joined / "m"), str(joined / "out"), top_k=2))
    rows = tiny.predicted(joined / "m", joined / "out" / "data" / "test-*.parquet", joined / "a.parquet").to_pandas()
    users = [mine for _, mine in rows.groupby("user_id")]
    counted = [mine for mine in users if len(mine) > 2 and mine["label"].any()]
    gains = [ndcg_score([mine["label"]], [mine["click_probability"]], k=2) for mine in counted]
    assert results["test_ndcg@2"] == pytest.approx(np.mean(gains), abs=1e-6) and len(counted) > 1
    assert results["test_ranked_users"] == len(counted)
    assert results["test_users_with_at_most_2_rows"] + results["test_users_without_click"] == len(users) - len(counted)


def test_without_users_there_are_no_lists(tmp_path):
    fields = [{name: value for name, value in one.items() if name != "entity"} for one in SCHEMA["fields"][1:]]
    write_csv(tmp_path / "clicks.csv", event_rows())
    run(tmp_path, user=..., fields=fields)
    tiny.finetune(tmp_path / "out", None, tmp_path / "m")
    model, rows = str(tmp_path / "m"), {"input": [str(tmp_path / "clicks.csv")], "label": "stars > 3"}
    with pytest.raises(ValueError, match=r"--top_k ranks the rows of each user, and \S+/schema.json names no user_col"):
        evaluate_ctr.run(EvaluateArguments(model, str(tmp_path / "out"), top_k=2))
    with pytest.raises(ValueError, match="no field of the model is the key of a user .its fields: zip, item_id, title"):
        evaluate_ctr.run(EvaluateArguments(model, **rows, top_k=2))


def test_files_and_shards_have_the_same_scores(joined):
    parts = tiny.predicted(joined / "m", joined / "out" / "data" / "test-*.parquet", joined / "a.parquet")
    rows = tiny.predicted(joined / "m", joined / "test.csv", joined / "b.parquet", side=sides(joined))
    expected = {(row["user_id"], row["item_id"]): row["click_probability"] for row in parts.to_pylist()}
    found = {(int(row["uid"]), row["item_id"]): row["click_probability"] for row in rows.to_pylist()}
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6) and len(expected) > 5
    assert rows.column_names[:3] == ["uid", "item_id", "stars"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "evaluate needs --dataset_dir, or --input"),
        ({"dataset_dir": "D", "input": ["r.csv"], "label": "x"}, "evaluate needs --dataset_dir, or --input"),
        ({"input": ["test.csv"]}, "--label says what a click is"),
        ({"input": ["test.csv"], "label": "stars >"}, "rule 'stars >' cannot be read"),
        ({"input": ["test.csv"], "label": "clicked"}, r"test.csv: column\(s\) 'clicked' missing"),
        ({"input": ["test.csv"], "label": "stars"}, "line .: stars is not true, false, 1 or 0: '\\d'"),
        ({"input": ["test.csv"], "label": "stars > 9"}, "rows to score, which are not of both classes"),
        ({"input": ["null.csv"], "label": "stars > 3"}, "null.csv, line 3: label rule 'stars > 3' is null"),
        (
            {"input": ["test.csv"], "label": "stars > 3", "top_k": 999},
            "--top_k 999 needs users with more than 999 rows",
        ),
        ({"dataset_dir": "D", "top_k": 2, "max_eval_samples": 9}, "--top_k .* and --max_eval_samples leaves some out"),
    ],
)
def test_errors_of_evaluate(joined, options, message):
    unrated = [row | {"stars": None if number == 1 else row["stars"]} for number, row in enumerate(event_rows())]
    write_csv(joined / "null.csv", without(unrated, "title", "tags", "price", "new"))
    if "input" in options:
        options = options | {"input": [str(joined / name) for name in options["input"]], "side": sides(joined)}
    with pytest.raises(ValueError, match=message):
        evaluate_ctr.run(EvaluateArguments(str(joined / "m"), **options))


def test_a_side_table_is_named_by_name_and_file(joined):
    arguments = PredictArguments(str(joined / "m"), [str(joined / "test.csv")], str(joined / "o.csv"), side=["items"])
    with pytest.raises(ValueError, match="--side items: expected NAME=FILE, such as items=items.parquet"):
        predict.run(arguments)


def test_no_path_of_the_data_is_published(joined):
    saved = json.loads((joined / "m" / "processor_config.json").read_text())["feature_extractor"]
    assert saved["reading"]["joins"][0]["on"] == {"item_id": "id"} and ".jsonl" not in json.dumps(saved)


# --- Spark


def test_a_worker_of_spark_scores_as_predict_does(joined):
    """What Spark calls, without Spark."""
    rows = pq.read_table(joined / "out" / "data" / "test-00000-of-00001.parquet")
    rows = rows.set_column(0, "user_id", pc.if_else(pa.array([True] + [False] * (len(rows) - 1)), None, rows[0]))
    pq.write_table(rows, joined / "null.parquet")
    expected = tiny.predicted(joined / "m", joined / "null.parquet", joined / "c.parquet")
    args = PredictArguments(str(joined / "m"), [str(joined / "null.parquet")], "o.parquet", engine="pyspark")
    (counts,) = (one.to_pylist()[0] for one in spark_scoring._check(args, iter(rows.to_batches())))
    assert counts == {"rows": len(rows), "refused": 0, "why": None}
    scored = pa.Table.from_batches(spark_scoring._score(args, iter(rows.to_batches())))
    assert scored.column_names == expected.column_names
    assert scored["click_probability"].to_pylist() == pytest.approx(expected["click_probability"].to_pylist(), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": ["r.csv"]}, "--engine pyspark reads and writes Parquet; r.csv does not end in .parquet"),
        ({"output": "o.csv"}, "o.csv does not end in .parquet"),
    ],
)
def test_spark_reads_and_writes_parquet(joined, options, message):
    options = {"input": ["r.parquet"], "output": "o.parquet", "engine": "pyspark"} | options
    with pytest.raises(ValueError, match=message):
        predict.run(PredictArguments(str(joined / "m"), **options))
