"""Items of one title are one item to `cold_items`."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_table as own_table

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.same_items import title_key, with_same_items
from flip_ctr.data.prepare.statistics import FOLDS
from flip_ctr.data.readers.dataset_schema import SPLITS, DatasetSchema
from flip_ctr.train.prepare import PrepareArguments

TITLES = [
    "Chasing Amy (1997)",
    "chasing  amy, 1997",
    "Titanic (1997)",
    "Titanic (1953)",
    None,
    None,
    "…",
    "…",
    "Ｔｉｔａｎｉｃ 1953",
]


def editions() -> list[dict]:
    """Rows of 30 items, of which three each have a title that differs in case, marks and spaces; two have none."""
    rows = own_table.event_rows()
    for row in rows:
        number = int(row["item_id"][1:])
        marks = [" (x)", ",  X", "-x"][number // 10]
        row["title"] = None if number in (4, 14) else f"Title {number % 10}{marks}"
    return rows


def item_splits(folder) -> dict[str, str]:
    return {item: split for split in SPLITS for item in read_split(folder, split)["item_id"].to_pylist()}


def test_titles_are_compared_by_letters_and_digits(tmp_path):
    table = {"_row": range(9), "item": [20, 10, 1, 3, 4, 5, 6, 7, 2], "title": TITLES, "_kept": [True] * 9}
    pq.write_table(pa.table({name: list(values) for name, values in table.items()}), tmp_path / "rows.parquet")
    with Engine("duckdb", tmp_path) as engine:
        rows, counts = with_same_items(engine, engine.read(tmp_path / "rows.parquet"), "item", "title")
        found = engine.fetch(rows.order_by("_row").select("_item"))["_item"].to_pylist()
    assert found == [10, 10, 1, 2, 4, 5, 6, 7, 2] and counts == {"titles": 2, "keys": 4}
    assert title_key("Straße: №5!") == "strasseno5"


def test_no_item_is_in_two_splits_under_two_keys(tmp_path):
    own_table.write_csv(tmp_path / "clicks.csv", editions())
    options = {"split": "cold_items", "ratios": [2, 1, 1], "statistics": "user_id", "history": 30}
    own_table.run(tmp_path, "plain", **options)
    report = own_table.run(tmp_path, "grouped", item_title="title", **options)
    assert report["same_items"] == {"titles": 9, "keys": 27}
    plain, grouped = item_splits(tmp_path / "plain"), item_splits(tmp_path / "grouped")
    of_title = {}
    for item, split in grouped.items():
        number = int(item[1:])
        of_title.setdefault(item if number in (4, 14) else number % 10, set()).add(split)
    assert all(len(splits) == 1 for splits in of_title.values()) and plain != grouped
    # what has a title of its own, or stands for its title, stays where it was
    for item in ("i4", "i14", "i24", *(min(f"i{n + tens}" for tens in (0, 10, 20)) for n in range(10) if n != 4)):
        assert plain[item] == grouped[item]
    rule = "; the smallest key stands for all items whose title has the same letters and digits"
    assert DatasetSchema.load(tmp_path / "grouped").protocol["split_rule"].endswith(rule)
    assert "27 keys are of 9 titles that have several" in (tmp_path / "grouped" / "README.md").read_text()
    # histories of training rows leave out all keys of the title, as they are of one fold
    seed = DatasetSchema.load(tmp_path / "grouped").protocol["split_seed"]

    def fold(item: str) -> int:
        number = int(item[1:])
        item = (
            item
            if number in (4, 14)
            else min(f"i{number % 10 + tens}" for tens in (0, 10, 20) if number % 10 + tens not in (4, 14))
        )
        return int(hashlib.md5(f"{seed}|fold|{item}".encode()).hexdigest()[:8], 16) * FOLDS // 2**32

    rows = read_split(tmp_path / "grouped", "train").to_pylist()
    assert all(fold(one["item_id"]) != fold(row["item_id"]) for row in rows for one in row["history"])
    for row in rows:
        others = [
            other
            for other in rows
            if other["user_id"] == row["user_id"] and fold(other["item_id"]) != fold(row["item_id"])
        ]
        assert len(row["history"]) == len(others) and np.isfinite(row["user_id_click_rate"])
    # a rate leaves out the fold too, and takes its rows from all users' folds
    assert {row["user_id_rows"] for row in rows} == {len(row["history"]) for row in rows}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "schema.yaml: `item_title` says which items are one, for split cold_items; got random"),
        ({"split": "cold_items", "item_title": "tags"}, "must name a field of text; got 'tags', there are zip, title"),
        ({"split": "cold_items", "item_title": "nobody"}, "got 'nobody', there are zip, title"),
    ],
)
def test_a_wrong_title_is_refused(tmp_path, changes, message):
    own_table.write_csv(tmp_path / "clicks.csv", own_table.event_rows())
    with pytest.raises(ValueError, match=message):
        own_table.run(tmp_path, "out", **{"item_title": "title"} | changes)


def test_the_command_line_says_where_tables_say_it():
    with pytest.raises(ValueError, match="--item_title has no effect with --dataset table; `item_title` of the schema"):
        PrepareArguments("table", "out", schema="schema.yaml", item_title="title")
