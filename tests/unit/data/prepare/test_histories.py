"""Histories: equal to a plain loop over the rows, without validation and test rows, and without what would tell a row's
own label."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_bookcrossing as bookcrossing
import raw_movielens as movielens
import raw_table as own_table
from leaks import rows_without_signal, tree_auc, without_the_row

from flip_ctr.data.datasets.synthetic import CatalogueSettings, generate_catalogue, write_catalogue
from flip_ctr.data.prepare.dataset_folder import check_output_dir, read_split, shard_path, write_split
from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.histories import (
    History,
    history_lengths,
    items_of,
    read_history,
    with_histories,
)
from flip_ctr.data.prepare.splits import SPLIT_RULES, with_split
from flip_ctr.data.prepare.statistics import BY_TIME, FOLDS, FROZEN, Past
from flip_ctr.data.prepare.support_rows import support_counts, with_support
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.columns_flip import read_columns
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.train import prepare

SEED, LENGTH = 3, 4
FIELDS = [
    FlipField("user", "int", entity="user", key=True),
    FlipField("item", entity="item", key=True),
    FlipField("year", "int", entity="item"),
]


def a_history(split: str, support_rows: int = 0, length: int = LENGTH) -> History:
    names = [field.name for field in FIELDS]
    return read_history(length, support_rows, FIELDS, split=split, user="user", item="item", columns=names)


def events(rows: int = 250) -> pa.Table:
    """With ties and nulls in time, users and items of a few rows and of many, null keys, pairs that come again."""
    generator = np.random.default_rng(0)
    maybe = lambda values, null: pa.array([None if one == null else one for one in values.tolist()], pa.int64())  # noqa: E731
    items = generator.integers(0, 25, rows)
    return pa.table(
        {
            "_row": np.arange(rows),
            "user": maybe(generator.geometric(0.1, rows), 1),
            "item": [None if item == 3 else f"ü{item}" for item in items],
            "year": generator.integers(1990, 1995, rows),
            "time": maybe(generator.integers(0, 60, rows), 7),
            "label": pa.array(generator.integers(0, 2, rows), pa.int8()),
        }
    )


def for_split(split: str) -> pa.Table:
    """Without the nulls that `prepare` refuses."""
    table = events()
    needed = {"cold_items": ["item"], "cold_users": ["user"], "by_user": ["user"]}.get(split, [])
    for name in ["time"] * (split in BY_TIME) + needed + ["user"] * (split == "leave_last_out"):
        table = table.filter(pa.compute.is_valid(table[name]))
    return table


def with_history(folder, split: str, table: pa.Table, history: History, time: str | None = "time", past: Past = FROZEN):
    """The rows of a table with their histories in order, and the items, lengths and counts of support rows."""
    pq.write_table(table, folder / "rows.parquet")
    columns = {"user": "user", "item": "item", "time": "time"}
    with Engine("duckdb", folder) as opened:
        rows = opened.read(folder / "rows.parquet")
        # a key without nulls, as in a table of one's own whose `row_key` is the number of the impression
        rows = with_split(rows, split, SEED, (8, 1, 1), row_key=("_row",), order="_row", **columns)
        rows = with_support(opened.keep(rows, "placed"), history.support_rows, history.user, history.item, time)
        options = {"split": split, "seed": SEED, "label": "label", "time": time, "past": past}
        done = opened.keep(with_histories(rows, history, **options), "done")
        return (
            opened.fetch(done.order_by("_row")).to_pylist(),
            opened.fetch(items_of(done, history)).to_pylist(),
            history_lengths(done, opened.fetch),
            support_counts(done, history.user, opened.fetch),
        )


def fold(item: str | None) -> int:
    text = f"{SEED}|fold|{item or ''}"
    return int(hashlib.md5(text.encode()).hexdigest()[:8], 16) * FOLDS // 2**32


def moment(row: dict) -> int:
    """A row without a time comes before all others."""
    return -(10**9) if row["time"] is None else row["time"]


def expected(rows: list[dict], split: str, time: str | None, support_rows: int = 0, past: Past = FROZEN) -> list:
    """The plain loop: the history of each row, and None for a support row."""

    def place(row):
        known = (row[time] is not None, row[time] or 0) if time else ()
        return *known, row["_digest"], row["_row"]

    support = set()
    for user in {row["user"] for row in rows}:
        own = [row for row in rows if row["user"] == user and row["_split"] > 0 and row["item"] is not None]
        support |= {row["_row"] for row in sorted(own, key=place)[:support_rows]}
    happened = [
        row
        for row in sorted(rows, key=place)
        if (row["_split"] == 0 or row["_row"] in support or past.rolling) and None not in (row["user"], row["item"])
    ]
    found = []
    for row in rows:
        others = [other for other in happened if other["user"] == row["user"]]
        if row["_split"] == 0:  # also where rows of other splits count for one another
            others = [other for other in others if other["_split"] == 0]
        if split in BY_TIME:
            others = [other for other in others if moment(other) + past.label_delay < moment(row)]
        elif row["_split"] == 0:
            others = [other for other in others if fold(other["item"]) != fold(row["item"])]
        else:
            others = [other for other in others if other["item"] != row["item"]]
        entries = [{"item": other["item"], "clicked": other["label"]} for other in others[-LENGTH:]]
        found.append(None if row["_row"] in support else entries)
    return found


@pytest.mark.parametrize("split", SPLIT_RULES)
def test_histories_are_those_of_a_plain_loop(tmp_path, split):
    rows, *_ = with_history(tmp_path, split, for_split(split), a_history(split))
    assert {row["_split"] for row in rows} == {0, 1, 2}
    assert [row["history"] for row in rows] == expected(rows, split, "time")
    lengths = {len(row["history"]) for row in rows}
    assert lengths == set(range(LENGTH + 1))
    repeated = [
        row
        for row in rows
        if any((row["user"], row["item"]) == (one["user"], one["item"]) for one in rows if one != row)
    ]
    assert len(repeated) > 20
    train = {(row["user"], row["item"]) for row in rows if row["_split"] == 0}
    assert all((row["user"], one["item"]) in train for row in rows for one in row["history"])
    if split not in BY_TIME:
        assert not any(row["item"] == one["item"] for row in rows for one in row["history"])


@pytest.mark.parametrize("split", ["random", "by_user", "cold_items", "cold_users"])
def test_without_times_the_order_is_by_digest(tmp_path, split):
    rows, *_ = with_history(tmp_path, split, for_split(split), a_history(split), time=None)
    assert [row["history"] for row in rows] == expected(rows, split, None)


@pytest.mark.parametrize("past", [Past(True), Past(False, 5), Past(True, 5)], ids=str)
def test_what_is_known_by_then_is_that_of_a_plain_loop(tmp_path, past):
    """With rows of no time, as of a split that the data brings."""
    rows, *_ = with_history(tmp_path, "time", events(), a_history("time"), past=past)
    found = [row["history"] for row in rows]
    assert found == expected(rows, "time", "time", past=past) != expected(rows, "time", "time")
    assert set(map(len, found)) == set(range(LENGTH + 1))


@pytest.mark.parametrize("time", ["time", None])
@pytest.mark.parametrize("support_rows", [1, 3])
def test_support_rows_are_the_history_of_held_out_users(tmp_path, support_rows, time):
    history = a_history("cold_users", support_rows)
    rows, items, _, counts = with_history(tmp_path, "cold_users", for_split("cold_users"), history, time)
    of_loop = expected(rows, "cold_users", time, support_rows)
    support = [row["_past_support"] for row in rows]
    assert support == [one is None for one in of_loop]
    assert [row["history"] for row in rows if not row["_past_support"]] == [one for one in of_loop if one is not None]
    held_out = {row["user"] for row in rows if row["_split"]}
    left = {row["user"] for row in rows if row["_split"] and not row["_past_support"]}
    assert counts == {"rows": sum(support), "users_without_rows": len(held_out - left)}
    assert sum(support) > len(held_out) // 2 and left
    assert {one["item"] for row in rows for one in row["history"]} <= {one["item"] for one in items}


def test_items_are_those_of_the_first_row_of_each_key(tmp_path):
    rows, items, lengths, counts = with_history(tmp_path, "random", events(), a_history("random"))
    first = {row["item"]: row["year"] for row in reversed(rows) if row["item"] is not None}
    assert items == [{"item": item, "year": first[item]} for item in sorted(first)]
    train = [len(row["history"]) for row in rows if row["_split"] == 0]
    assert lengths["train"] == {"mean": round(np.mean(train), 2), "empty": round(np.mean(np.equal(train, 0)), 6)}
    assert counts == {"rows": 0, "users_without_rows": 0}


def leak(folder, split: str, leave_one_out: bool = False) -> tuple[float, float]:
    """AUC of a tree on the length and the click rate of histories where labels follow from nothing: on training rows
    that it has not seen, and on validation and test rows. Users have different numbers of rows, so that lengths tell
    who they are."""
    table = rows_without_signal()
    table = table.append_column("year", pa.array(np.full(len(table), 2000)))
    rows, *_ = with_history(folder, split, table, a_history(split, length=200))
    labels, train = np.array([row["label"] for row in rows]), np.array([row["_split"] == 0 for row in rows])
    number = np.array([len(row["history"]) for row in rows])
    clicks = np.array([sum(one["clicked"] for one in row["history"]) for row in rows])
    if leave_one_out:
        clicks, number = without_the_row(table, labels, train)
    features = np.stack([clicks / np.maximum(number, 1), number], axis=1)
    return tree_auc(features, labels, train)


@pytest.mark.parametrize("split", SPLIT_RULES)
def test_a_tree_on_the_histories_finds_no_label_in_them(tmp_path, split):
    train, others = leak(tmp_path, split)
    assert train < 0.54 and others < 0.56 and train - others < 0.03


def test_leave_one_out_would_be_found(tmp_path):
    """What the folds are for: where a history lacks the row alone, the tree reads labels of training rows."""
    train, others = leak(tmp_path, "random", leave_one_out=True)
    assert train - others > 0.1


def test_prepare_adds_histories_and_items(tmp_path, pictures):
    raw, out = movielens.write_1m(tmp_path / "raw"), tmp_path / "out"
    options = {"split": "time", "statistics": ["movie_id"], "history": 5, "drop_ratings": ""}
    report = prepare.run(prepare.PrepareArguments("ml-1m", str(out), str(raw), **options))
    schema = DatasetSchema.load(out)
    field = FlipField(
        "history", "int", kind="history", entity="user", history_of="movie_id", nullable=False, max_values=5
    )
    assert schema.fields[-1] == field and not field.on_id_side and not field.on_text_side
    assert schema.protocol["history"] == "training rows of the user with an earlier time"
    card = (out / "README.md").read_text()
    assert "the last 5 values of `movie_id`" in card and "## Histories" in card
    assert "history" not in report["splits"]["train"]["fields"]
    rows = read_split(out, "train")
    assert rows.schema.field("history").type == pa.list_(pa.struct({"movie_id": pa.int64(), "clicked": pa.int8()}))
    assert rows.column_names[-2:] == ["history", "label"] and rows["history"].null_count == 0
    items = pq.read_table(out / "items.parquet")
    assert items.column_names == ["movie_id", "title", "genre"]
    assert items["movie_id"].to_pylist() == list(range(1, movielens.MOVIES + 1))
    # who reads the folder passes the histories by
    assert set(SplitRows(out, "train").used_columns) >= {"history"}
    assert "history" not in read_columns(rows.slice(0, 3), schema.fields)
    assert check_output_dir(out, overwrite=True) == out
    (out / "history.parquet").touch()
    with pytest.raises(FileExistsError, match="also holds history.parquet"):
        check_output_dir(out, overwrite=True)


def test_support_rows_are_counted(tmp_path):
    raw, out = movielens.write_100k(tmp_path / "raw"), tmp_path / "out"
    options = {"split": "cold_users", "history": 5, "support_rows": 2, "ratios": [2, 1, 1]}
    report = prepare.run(prepare.PrepareArguments("ml-100k", str(out), str(raw), **options))
    users = {user for name in ("validation", "test") for user in read_split(out, name)["user_id"].to_pylist()}
    assert report["support"] == {"rows": 2 * len(users), "users_without_rows": 0}
    placed = report["rows_kept"] + report["support"]["rows"] + sum(report["dropped"].values())
    assert placed == report["rows_read"]
    assert ["support,", "in", "no", "split", str(2 * len(users))] in map(
        str.split, prepare.summary(report).splitlines()
    )
    assert f"| support of held-out users, in no split | {2 * len(users)} |" in (out / "README.md").read_text()
    assert {len(one) for one in read_split(out, "test")["history"].to_pylist()} == {2}


def test_books_and_tables_have_histories(tmp_path):
    raw = bookcrossing.write_raw(tmp_path / "raw")
    prepare.run(prepare.PrepareArguments("bookcrossing", str(tmp_path / "books"), str(raw), history=3))
    assert read_split(tmp_path / "books", "train")["history"].type.value_type.field(0).name == "isbn"
    own_table.write_csv(tmp_path / "clicks.csv", own_table.event_rows())
    own_table.run(tmp_path, "out", history=3)
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert items.column_names == ["item_id", "title", "tags", "price"] and len(items) == own_table.ITEMS
    assert max(map(len, read_split(tmp_path / "out", "test")["history"].to_pylist())) == 3


def test_the_generated_catalogue_has_histories(tmp_path):
    settings = CatalogueSettings(users=30, items=40, rows=600)
    table = generate_catalogue(settings, 0)
    plain, with_past = (
        write_catalogue(tmp_path / name, table, "cold_items", settings, 1, history)
        for name, history in (("plain", None), ("with_past", 6))
    )
    for split in ("train", "validation", "test"):
        rows = read_split(with_past, split)
        assert rows.drop_columns("history") == read_split(plain, split)
        assert max(map(len, rows["history"].to_pylist())) == 6
    assert pq.read_table(with_past / "items.parquet").column_names == ["item_id", "title", "genre"]


def test_bytes_do_not_depend_on_how_an_engine_cuts_its_rows(tmp_path):
    numbers = np.arange(10_000 * 50)  # more than a page of Parquet holds
    entries = pa.StructArray.from_arrays([pa.array(numbers * 7919 % 100_003)], ["item"])
    history = pa.ListArray.from_arrays(np.arange(0, len(numbers) + 1, 50, dtype=np.int32), entries)
    table, written = pa.table({"history": history}), []
    for size in (10_000, 777):
        (tmp_path / str(size) / "data").mkdir(parents=True)
        write_split(tmp_path / str(size), "test", table.to_batches(size), table.schema, len(table))
        written.append(shard_path(tmp_path / str(size), "test").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": 0}, "`history` must be a whole number of at least 1; got 0"),
        ({"support_rows": 2}, "schema.yaml: `support_rows` has no effect without .*`history`"),
        ({"history": 3, "support_rows": 2}, "`support_rows` is of split cold_users, .*; got random"),
        ({"history": 3, "support_rows": 4, "split": "cold_users"}, "`support_rows` must be at most 3, .*; got 4"),
        ({"history": 3, "user": ...}, "schema.yaml: `history` needs a column of users; name it as `user`"),
        ({"history": 3, "item": ...}, "schema.yaml: `history` needs a column of items; name it as `item`"),
        ({"history": 3, "item": "stars"}, "the item 'stars' is no field of a row; there are user_id, zip"),
        ({"history": 3, "item": "tags"}, "the item 'tags' is multi-valued of type string"),
        ({"history": 3, "user": "price"}, "'price' is of type float and cannot identify"),
        ({"fields": [{"name": "past", "kind": "history"}]}, "a column of kind 'history' is made by `history: 50`"),
    ],
)
def test_what_a_schema_cannot_have_is_refused(tmp_path, changes, message):
    own_table.write_csv(tmp_path / "clicks.csv", own_table.event_rows())
    with pytest.raises(ValueError, match=message):
        own_table.run(tmp_path, "out", row_key=["user_id", "item_id"], **changes)


def test_names_that_a_history_needs_are_refused():
    for name, message in (("History", "and 'History' is there already"), ("clicked", "must have another name")):
        fields = [FlipField("user"), FlipField(name)]
        with pytest.raises(ValueError, match=message):
            read_history(3, 0, fields, split="random", user="user", item=name, columns=["user", name])
    with pytest.raises(ValueError, match="`history_of` must name the key of an item"):
        FlipField("history", kind="history")


def test_the_command_line_says_what_is_wrong():
    with pytest.raises(ValueError, match="--history has no effect with --dataset table; `history` of the schema"):
        prepare.PrepareArguments("table", "out", schema="schema.yaml", history=3)
