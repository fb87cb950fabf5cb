"""Click rates of earlier rows: equal to a plain loop over the rows, and without what would tell a row's own label."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_movielens as movielens
import raw_table as own_table
from leaks import rows_without_signal, tree_auc, without_the_row

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.splits import SPLIT_RULES, with_split
from flip_ctr.data.prepare.statistics import (
    BY_TIME,
    FOLDS,
    FROZEN,
    Past,
    read_statistics,
    statistics_rule,
    with_statistics,
)
from flip_ctr.data.prepare.support_rows import with_support
from flip_ctr.data.readers.click_rates import SMOOTHING, Statistic
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.train import prepare

SEED = 3
COLUMNS = {"row_key": ("user", "item"), "user": "user", "item": "item", "time": "time"}
STATISTICS = (Statistic(("user",)), Statistic(("item",)), Statistic(("user", "tags")))


def events(rows: int = 250) -> pa.Table:
    """With ties in time, users and items of a few rows and of many, null keys, empty and null lists."""
    generator = np.random.default_rng(0)
    tags = [["a", "a"], ["a", "b"], [], None, ["c"]]  # a value counts once
    return pa.table(
        {
            "_row": np.arange(rows),
            "user": pa.array([None if u == 1 else int(u) for u in generator.geometric(0.1, rows)], pa.int64()),
            "item": [f"ü{i}" for i in generator.integers(0, 25, rows)],
            "tags": pa.array([tags[i] for i in generator.integers(0, 5, rows)], pa.list_(pa.string())),
            "time": generator.integers(0, 60, rows),
            "label": pa.array(generator.integers(0, 2, rows), pa.int8()),
        }
    )


def with_rates(
    folder, split: str, table: pa.Table, statistics=STATISTICS, past: Past = FROZEN, support_rows: int = 0
) -> list[dict]:
    """The rows of a table with their statistics, in order."""
    pq.write_table(table, folder / "rows.parquet")
    with Engine("duckdb", folder) as opened:
        rows = with_split(opened.read(folder / "rows.parquet"), split, SEED, (8, 1, 1), order="_row", **COLUMNS)
        rows = with_support(opened.keep(rows, "placed"), support_rows, "user", "item", "time")
        options = {"split": split, "seed": SEED, "label": "label", "past": past, "support_rows": support_rows}
        rates = with_statistics(opened, rows, statistics, **options, **COLUMNS)
        return opened.fetch(rates.order_by("_row")).to_pylist()


def fold(row: dict, split: str) -> int:
    keys = {"cold_items": ["item"], "cold_users": ["user"]}.get(split, ["user", "item"])
    text = "|".join([str(SEED), "fold", *(str(row[key]) for key in keys)])
    return int(hashlib.md5(text.encode()).hexdigest()[:8], 16) * FOLDS // 2**32


def shared(row: dict, keys: tuple[str, ...]) -> set[tuple]:
    """The values of the keys that a row has, each combination."""
    values = [row[key] if key == "tags" else [row[key]] for key in keys]
    combined: list[tuple] = [()]
    for of_key in values:
        combined = [(*before, value) for before in combined for value in of_key or []]
    return {one for one in combined if None not in one}


def moment(row: dict) -> int:
    """A row without a time comes before all others."""
    return -(10**9) if row["time"] is None else row["time"]


PASTS = [Past(rolling, label_delay) for rolling in (False, True) for label_delay in (0, 1, 7)]


@pytest.mark.parametrize(
    ("split", "past"),
    [(split, FROZEN) for split in SPLIT_RULES]
    + [("time", past) for past in PASTS[1:]]
    + [("leave_last_out", PASTS[4])],
)
def test_rates_are_those_of_a_plain_loop(tmp_path, split, past):
    table = events()
    if past != FROZEN:  # as of a split that the data brings
        times = [None if time == 9 else time for time in table["time"].to_pylist()]
        table = table.set_column(4, "time", pa.array(times, pa.int64()))
    if split not in BY_TIME:  # a null user has no fold; `prepare` refuses a null in the row key
        table = table.filter(pa.compute.is_valid(table["user"]))
    rows = with_rates(tmp_path, split, table, past=past)
    assert {row["_split"] for row in rows} == {0, 1, 2}
    train = [row for row in rows if row["_split"] == 0]
    prior = SMOOTHING * sum(row["label"] for row in train) / len(train)
    counted = 0
    for row in rows:
        if split in BY_TIME:
            counted_rows = rows if past.rolling and row["_split"] else train
            others = [other for other in counted_rows if moment(other) + past.label_delay < moment(row)]
        elif row["_split"] == 0:
            others = [other for other in train if fold(other, split) != fold(row, split)]
        else:
            others = train
        for statistic in STATISTICS:
            own = shared(row, statistic.keys)
            meet = [(len(own & shared(other, statistic.keys)), other["label"]) for other in others]
            number, clicks = sum(n for n, _ in meet), sum(n * label for n, label in meet)
            assert row[statistic.count] == number
            assert row[statistic.rate] == pytest.approx((clicks + prior) / (number + SMOOTHING), rel=1e-12)
            counted += number
    assert counted > 1000


@pytest.mark.parametrize("support_rows", [1, 3])
def test_support_rows_count_as_what_is_known_of_a_user(tmp_path, support_rows):
    """For held-out rows; and a training row knows no more of its user, none of it being of its own fold of pairs."""
    table = events()
    table = table.filter(pa.compute.is_valid(table["user"]))
    rows = with_rates(tmp_path, "cold_users", table, support_rows=support_rows)
    place = {row["_row"]: (row["time"], row["_digest"], row["_row"]) for row in rows}

    def first(user: int, those: list[dict]) -> list[dict]:
        return sorted((one for one in those if one["user"] == user), key=lambda one: place[one["_row"]])[:support_rows]

    train, held_out = ([row for row in rows if (row["_split"] == 0) == of_train] for of_train in (True, False))
    support = [one for user in {row["user"] for row in held_out} for one in first(user, held_out)]
    assert {row["_row"] for row in rows if row["_past_support"]} == {one["_row"] for one in support}
    prior = SMOOTHING * sum(row["label"] for row in train) / len(train)
    known_of_users = []
    for row in rows:
        for statistic in STATISTICS:
            if row["_split"]:
                others = train + support
            elif "user" in statistic.keys:
                others = first(row["user"], [one for one in train if fold(one, "random") != fold(row, "random")])
            else:
                others = [one for one in train if fold(one, "cold_users") != fold(row, "cold_users")]
            own = shared(row, statistic.keys)
            meet = [(len(own & shared(other, statistic.keys)), other["label"]) for other in others]
            number, clicks = sum(n for n, _ in meet), sum(n * label for n, label in meet)
            assert row[statistic.count] == number
            assert row[statistic.rate] == pytest.approx((clicks + prior) / (number + SMOOTHING), rel=1e-12)
        known_of_users.append((row["_split"] == 0, row[STATISTICS[0].count]))
    assert {(True, support_rows), (False, support_rows)} <= set(known_of_users)
    assert max(known_of_users, key=lambda one: one[1])[1] == support_rows


def leak(
    folder, split: str, leave_one_out: bool = False, past: Past = FROZEN, support_rows: int = 0
) -> tuple[float, float]:
    """AUC of a tree on users' rates where labels follow from nothing: on training rows that it has not seen, and on
    validation and test rows. Users have different numbers of rows, so that their counts tell who they are."""
    table = rows_without_signal()
    statistic = Statistic(("user",))
    rows = with_rates(folder, split, table, [statistic], past, support_rows)
    features = np.array([[row[statistic.rate], row[statistic.count]] for row in rows])
    labels, train = np.array([row["label"] for row in rows]), np.array([row["_split"] == 0 for row in rows])
    if leave_one_out:
        clicks, number = without_the_row(table, labels, train)
        features = np.stack([clicks / number, number + train], axis=1)
    return tree_auc(features, labels, train)


@pytest.mark.parametrize(
    ("split", "options"),
    [(split, {}) for split in SPLIT_RULES]
    + [("time", {"past": Past(rolling=True, label_delay=1000)}), ("cold_users", {"support_rows": 5})],
)
def test_a_tree_on_the_rates_finds_no_label_in_them(tmp_path, split, options):
    train, others = leak(tmp_path, split, **options)
    assert train < 0.54 and others < 0.56


def test_leave_one_out_would_be_found(tmp_path):
    """What the folds are for: where each training row but itself counts, the tree reads labels of training rows."""
    train, others = leak(tmp_path, "random", leave_one_out=True)
    assert train > 0.6 and others < 0.56


def test_prepare_adds_numeric_fields_and_says_what_they_count(tmp_path):
    raw = movielens.write_1m(tmp_path / "raw")
    options = {"split": "time", "statistics": ["user_id", "user_id+genre"], "drop_ratings": ""}
    prepare.run(prepare.PrepareArguments("ml-1m", str(tmp_path / "out"), str(raw), **options))
    schema = DatasetSchema.load(tmp_path / "out")
    added = {one.name: (one.type, one.kind, one.entity, one.sides) for one in schema.fields[-4:]}
    assert added == {
        "user_id_click_rate": ("float", "numeric", "user", ("id",)),
        "user_id_rows": ("int", "numeric", "user", ("id",)),
        "user_id_genre_click_rate": ("float", "numeric", "context", ("id",)),
        "user_id_genre_rows": ("int", "numeric", "context", ("id",)),
    }
    assert schema.protocol["statistics"] == "training rows with an earlier time"
    assert "training rows with an earlier time" in (tmp_path / "out" / "README.md").read_text()
    rows = read_split(tmp_path / "out", "train")
    assert rows.column_names[-1] == "label" and rows["user_id_click_rate"].null_count == 0


def test_a_schema_names_statistics_of_its_own_fields(tmp_path):
    own_table.write_csv(tmp_path / "clicks.csv", own_table.event_rows())
    own_table.run(tmp_path, "out", statistics=["item_id", "item_id+tags"])
    rows = read_split(tmp_path / "out", "test")
    assert {"item_id_click_rate", "item_id_rows", "item_id_tags_click_rate"} <= set(rows.column_names)
    with pytest.raises(ValueError, match=r"schema.yaml: `statistics`: 'nobody' in 'nobody' is no field of a row"):
        own_table.run(tmp_path, "other", statistics="nobody")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["movie"], "'movie' in 'movie' is no field of a row; there are user, tag"),
        (["price"], "'price' is float; rows share values of type string, int, bool"),
        (["user", "user"], "'user' names a column, or says what another one says, a second time"),
        (["user+user"], "a second time"),
        (["user+tag", "user_tag"], "'user_tag' makes a column 'user_tag_click_rate', which is there already"),
        (["old"], "'old' makes a column 'old_rows', which is there already"),
    ],
)
def test_a_wrong_statistic_is_refused(texts, message):
    names = ("user", "tag", "user_tag", "old", "old_rows")
    fields = [*(FlipField(name) for name in names), FlipField("price", type="float")]
    with pytest.raises(ValueError, match=message):
        read_statistics(texts, fields, "--statistics")


def test_what_counts_is_said_and_refused_where_it_has_no_effect(tmp_path):
    assert [statistics_rule("time", past) for past in (PASTS[0], PASTS[2], PASTS[5])] == [
        "training rows with an earlier time",
        "training rows with a time more than 7 before the row's",
        "training rows with a time more than 7 before the row's; for a row of validation or test those of validation "
        "and test too",
    ]
    own_table.write_csv(tmp_path / "clicks.csv", own_table.event_rows())
    rolling = {"past": "rolling", "label_delay": 60}
    own_table.run(tmp_path, "out", split="time", statistics="user_id", history=3, **rolling)
    protocol = DatasetSchema.load(tmp_path / "out").protocol
    for name, of in (("statistics", ""), ("history", " of the user")):
        assert protocol[name] == (
            f"training rows{of} with a time more than 60 before the row's; for a row of validation or test those of "
            "validation and test too"
        )
    for changes, message in (
        ({"past": "later"}, "`past` must be one of frozen, rolling; got 'later'"),
        ({"label_delay": -1}, "`label_delay` must be a whole number of at least 0; got -1"),
        ({"label_delay": 5, "split": "time"}, "`label_delay` has no effect without statistics or histories"),
        ({"past": "rolling", "statistics": "user_id"}, r"`past` is of the splits by time \(.*\); got random"),
    ):
        with pytest.raises(ValueError, match=message):
            own_table.run(tmp_path, "other", **changes)
