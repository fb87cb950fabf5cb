"""Splits that people bring: a column, files of each split, folders that hold columns, and shares of 0."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from raw_table import SCHEMA, event_rows, run, without, write_csv, write_jsonl

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.prepare.own_splits import OwnSplit, read_split_files, split_of
from flip_ctr.data.prepare.own_splits import read_split as own_split
from flip_ctr.data.prepare.splits import split_table
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.hive_partitions import partition_values
from flip_ctr.train.prepare import PrepareArguments

SPLITS = ("train", "validation", "test")
WORDS = ["Train", "training", "VAL", " dev ", "test"]


def folds() -> list[dict]:
    """Clicks, each with a word for its split."""
    return [row | {"fold": WORDS[number % 5]} for number, row in enumerate(event_rows())]


def keys(folder, split: str, key=("user_id", "item_id")) -> set[tuple]:
    rows = read_split(folder / "out", split)
    return set(zip(*(rows[name].to_pylist() for name in key)))


def wanted(numbers: set[int]) -> set[tuple]:
    rows = enumerate(event_rows())
    return {(row["uid"], row["item_id"]) for number, row in rows if number % 5 in numbers and row["stars"] != 3}


def splits_of(folder) -> list[set[tuple]]:
    return [keys(folder, split) for split in SPLITS]


EXPECTED = [{0, 1}, {2, 3}, {4}]


def test_a_column_says_the_split(tmp_path):
    write_csv(tmp_path / "clicks.csv", folds())
    report = run(tmp_path, split={"column": "fold"})
    assert splits_of(tmp_path) == [wanted(numbers) for numbers in EXPECTED] and list(report["splits"]) == list(SPLITS)
    protocol = DatasetSchema.load(tmp_path / "out").protocol
    assert (protocol["split"], protocol["split_rule"]) == ("column", "as column fold says it")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "* **Split** `column`:\n  as column fold says it.\n" in card and "ratios" not in protocol


def test_a_column_of_numbers_in_json_and_flags_win(tmp_path):
    write_jsonl(tmp_path / "clicks.jsonl", [row | {"fold": n % 5} for n, row in enumerate(event_rows())])
    split = {"column": "fold", "train": [0, 1], "test": [4, 2, 3]}
    report = run(tmp_path, files="clicks.jsonl", split=split)
    assert list(report["splits"]) == ["train", "test"] and keys(tmp_path, "test") == wanted({2, 3, 4})
    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(one) for name, one in found.items()} == {
        name: one["rows"] for name, one in report["splits"].items()
    }
    report = run(tmp_path, "flag", {"split": "random"}, files="clicks.jsonl", split=split)
    assert list(report["splits"]) == list(SPLITS) and report["protocol"]["ratios"] == [8, 1, 1]


def test_a_word_that_names_no_split_is_rejected_with_its_line(tmp_path):
    rows = folds()
    rows[7]["fold"], rows[8]["fold"], rows[9]["fold"] = "holdout", None, "secret"
    write_csv(tmp_path / "clicks.csv", without(rows, "title"))
    changes = {"fields": [one for one in SCHEMA["fields"] if one["name"] != "title"], "split": {"column": "fold"}}
    with pytest.raises(
        ValueError, match=r"3 of 600 lines are malformed.* line 9: fold names no split \(train, tr.*'hold"
    ):
        run(tmp_path, **changes)
    report = run(tmp_path, options={"max_malformed_share": 0.01}, **changes, drop={"secret": 'fold == "secret"'})
    assert (report["malformed"], report["dropped"]) == (2, {"secret": 1})


def test_files_of_each_split(tmp_path):
    (tmp_path / "a").mkdir()
    for split, names in ((0, ("a/1.csv", "a/2.csv")), (1, ("val.csv",)), (2, ("test.csv",))):
        for part, name in enumerate(names):
            rows = [row for n, row in enumerate(event_rows()) if n % 5 in EXPECTED[split]]
            write_csv(tmp_path / name, rows[part :: len(names)])
    files = {"training": "a/*.csv", "val": "val.csv", "test": ["test.csv"]}
    report = run(tmp_path, files=files, statistics=["user_id"], history=4)
    assert splits_of(tmp_path) == [wanted(numbers) for numbers in EXPECTED]
    assert report["protocol"]["split_rule"].startswith("as the files bring it: train is a/1.csv, a/2.csv; validation")
    assert report["protocol"]["statistics"] == "training rows with an earlier time"  # as `time` is named
    del files["val"]
    assert list(run(tmp_path, "two", files=files, time=...)["splits"]) == ["train", "test"]
    assert "they may be later" in DatasetSchema.load(tmp_path / "two").protocol.get("statistics", "they may be later")
    for changes, message in (
        ({"files": files | {"dev": "test.csv"}}, "test.csv is of validation and of test; a row is of one split"),
        ({"files": files, "split": "time"}, "names the files of each split, so that `split` must be left out"),
        ({"files": files | {"third": "x.csv"}}, "'third' is no split; write train, validation, test .or val"),
        ({"files": {"test": "x.csv"}}, "`train` must name the files whose rows are learned from"),
        ({"files": files | {"train": "x.csv"}}, "two entries are of the split train"),
        ({"files": files | {"val": "none.csv"}}, "no file fits 'none.csv'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(tmp_path, "no", **changes)
    with pytest.raises(ValueError, match="--data_files those of none; say the --split of those"):
        run(tmp_path, "no", {"data_files": [str(tmp_path / "val.csv")]}, files=files)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"column": "fold", "trian": [1]}, "unknown key.s. 'trian'; there are column, train, validation, test"),
        ({"train": [1]}, "`column` must be the name of the column that says the split; got None"),
        ({"column": "fold", "train": [1], "test": [1]}, "`test` must be values of fold that no other split has"),
        ({"column": "fold", "test": [1]}, "`train` must name the values of fold whose rows are learned from"),
        ({"column": "fold", "train": [1.5]}, "`train` must be values of fold"),
    ],
)
def test_what_a_split_cannot_say(split, message):
    with pytest.raises(ValueError, match=message):
        own_split(split)


def test_words_of_splits():
    assert [split_of(word) for word in ("Train", "dev", "eval", "valid", "TESTING", "other")] == [
        "train",
        "validation",
        "validation",
        "validation",
        "test",
        None,
    ]
    assert list(read_split_files({"test": "b", "train": "a"})) == ["train", "test"]
    assert own_split({"column": "is_test", "train": False, "test": [True]}) == OwnSplit(
        "is_test", {"false": "train", "true": "test"}, asked=("train", "test")
    )


@pytest.mark.parametrize("split", ["random", "time", "by_user", "cold_items", "cold_users"])
def test_a_share_of_0_gets_no_row(split):
    table = pa.Table.from_pylist(without(event_rows(), "tags"))
    names = {"user": "uid", "item": "item_id", "time": "at", "row_key": ["uid", "item_id"]}
    for ratios, there in (([8, 0, 2], {0, 2}), ([8, 2, 0], {0, 1}), ([1, 0, 0], {0}), ([8, 1, 1], {0, 1, 2})):
        placed = split_table(table, split, 42, ratios, **names)["_split"].to_pylist()
        assert set(placed) == there and 0.6 < placed.count(0) / len(placed) <= 1


def test_a_share_of_0_is_no_split(tmp_path):
    write_csv(tmp_path / "clicks.csv", event_rows())
    report = run(tmp_path, ratios=[8, 0, 2])
    assert list(report["splits"]) == ["train", "test"] and report["rows_kept"] == 480
    assert {path.name.split("-")[0] for path in (tmp_path / "out" / "data").iterdir()} == {"train", "test"}
    assert "unseen in test |" in (tmp_path / "out" / "README.md").read_text()


def test_shares_that_leave_nothing_to_learn_from(tmp_path):
    write_csv(tmp_path / "clicks.csv", event_rows())
    for ratios in ([0, 1, 1], [0, 0, 0]):
        with pytest.raises(ValueError, match="`ratios` must be three whole numbers .* that of train above 0"):
            run(tmp_path, ratios=ratios)
        with pytest.raises(ValueError, match="--ratios: the first share, that of train, must be above 0; got 0 "):
            PrepareArguments("table", "out", schema="s.yaml", ratios=ratios)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_in_the_names_of_folders(tmp_path, ending):
    rows = event_rows()
    for day in range(3):
        folder = (
            tmp_path
            / "clicks"
            / f"at=2024-03-0{day + 1}"
            / f"new={['true', 'false', '__HIVE_DEFAULT_PARTITION__'][day]}"
        )
        folder.mkdir(parents=True)
        some = without(rows[day::3], "at", "new")
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(some), folder / "part.parquet")
        else:
            {"csv": write_csv, "jsonl": write_jsonl}[ending](folder / f"part.{ending}", some)
    report = run(tmp_path, files=f"clicks/**/*.{ending}", types={"at": "timestamp"}, split="time", ratios=[6, 2, 2])
    found = read_split(tmp_path / "out", "test")
    assert {str(time) for time in found["at"].to_pylist()} == {"2024-03-03 00:00:00"} and report["rows_read"] == 600
    assert set(found["new"].to_pylist()) == {None} and True in read_split(tmp_path / "out", "train")["new"].to_pylist()
    assert report["events_files"][0] == f"clicks/at=2024-03-01/new=true/part.{ending}"


def test_partition_values(tmp_path):
    path = tmp_path / "a=b%20c" / "x" / "d=1=2" / "f=1.csv"
    assert partition_values(path) == {"a": "b c", "d": "1=2"}
