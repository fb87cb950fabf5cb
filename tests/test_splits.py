"""Splits: the same rows everywhere, by the rule that is documented."""

from hashlib import md5

import numpy as np
import pyarrow as pa
import pytest

from flip_ctr.data.splits import SPLITS, split_bounds, split_table

COLUMNS = {"row_key": ("user_id", "movie_id"), "user_column": "user_id", "item_column": "movie_id"}


def ratings(users=40, movies=30, times=None) -> pa.Table:
    user, movie = (index.ravel() + 1 for index in np.indices((users, movies)))
    return pa.table(
        {
            "user_id": user,
            "movie_id": movie,
            "timestamp": np.arange(len(user))[::-1].copy() if times is None else times,
            "label": pa.array((user * 7 + movie * 3) % 4 > 0).cast(pa.int8()),
        }
    )


def rows(table: pa.Table) -> list[tuple]:
    return list(zip(table["user_id"].to_pylist(), table["movie_id"].to_pylist()))


def expected_split(text: str) -> str:
    """The rule in plain integers: eight hexadecimal digits in tenths of 2^32."""
    number = int(md5(text.encode()).hexdigest()[:8], 16)
    return "train" if number < 2**32 * 8 // 10 else "validation" if number < 2**32 * 9 // 10 else "test"


def test_bounds_are_the_documented_digits():
    assert split_bounds((8, 1, 1)) == [b"cccccccc", b"e6666666"]


def test_random_split_places_each_row_by_its_md5():
    table = ratings()
    splits = split_table(table, "random", seed=7, **COLUMNS)
    assert {row: name for name, part in splits.items() for row in rows(part)} == {
        (user, movie): expected_split(f"7|{user}|{movie}|0") for user, movie in rows(table)
    }


def test_random_split_is_pinned():
    # computed once by hand: whoever changes the rule makes every published number incomparable
    assert md5(b"42|1|1193|0").hexdigest()[:8] == "4d6d4579"
    splits = split_table(ratings(), "random", seed=42, **COLUMNS)
    assert [len(part) for part in splits.values()] == [951, 136, 113]


def test_random_split_does_not_depend_on_row_order_or_chunks():
    table = ratings()
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    chunked = pa.concat_tables([shuffled.slice(0, 100), shuffled.slice(100)])
    once, again = (split_table(one, "random", **COLUMNS) for one in (table, chunked))
    assert all(sorted(rows(once[name])) == sorted(rows(again[name])) for name in SPLITS)


def test_duplicates_are_placed_each_by_its_rank():
    table = ratings()
    splits = split_table(pa.concat_tables([table, table]), "random", seed=42, **COLUMNS)
    found = sorted((row, name) for name, part in splits.items() for row in rows(part))
    assert found == sorted(
        ((user, movie), expected_split(f"42|{user}|{movie}|{rank}")) for user, movie in rows(table) for rank in (0, 1)
    )


@pytest.mark.parametrize(("entity", "column"), [("item", "movie_id"), ("user", "user_id")])
def test_cold_splits_share_no_entity(entity, column):
    table = ratings()
    splits = split_table(table, f"cold_{entity}s", seed=3, **COLUMNS)
    entities = {name: set(part[column].to_pylist()) for name, part in splits.items()}
    assert not (entities["train"] & entities["validation"] or entities["train"] & entities["test"])
    assert not entities["validation"] & entities["test"]
    assert sum(len(part) for part in splits.values()) == len(table)
    assert all(expected_split(f"3|{entity}|{one}") == name for name, ids in entities.items() for one in ids)


def test_time_split_is_in_order_of_time():
    splits = split_table(ratings(), "time", time_column="timestamp", **COLUMNS)
    times = [part["timestamp"].to_numpy() for part in splits.values()]
    assert [len(part) for part in times] == [960, 120, 120]
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()


def test_time_split_breaks_ties_by_hash():
    table = ratings(times=np.repeat([5, 9], 600))
    splits = split_table(table, "time", seed=1, time_column="timestamp", **COLUMNS)
    late = sorted(rows(table)[600:], key=lambda row: md5(f"1|{row[0]}|{row[1]}|0".encode()).hexdigest())
    assert sorted(rows(splits["test"])) == sorted(late[-120:])
    assert sorted(rows(splits["validation"])) == sorted(late[-240:-120])


def test_time_split_is_refused_without_an_order():
    with pytest.raises(ValueError, match="all 1,200 rows have the same timestamp, 0.*--split random"):
        split_table(ratings(times=np.zeros(1200, dtype=np.int64)), "time", time_column="timestamp", **COLUMNS)
    with pytest.raises(ValueError, match="no column of times"):
        split_table(ratings(), "time", **COLUMNS)


def test_a_split_without_rows_or_with_one_class_is_refused():
    with pytest.raises(ValueError, match="split 'validation' of --split random has 0 rows"):
        split_table(ratings(), "random", ratios=(9, 0, 1), **COLUMNS)
    rows_back_in_time = np.arange(1200)
    label = pa.array((rows_back_in_time < 120) | (rows_back_in_time % 2 == 0)).cast(pa.int8())
    with pytest.raises(ValueError, match="split 'test' of --split time has 120 rows, 120 of them clicks"):
        split_table(ratings().set_column(3, "label", label), "time", time_column="timestamp", **COLUMNS)


def test_a_null_key_and_an_unknown_rule_are_refused():
    table = ratings().set_column(1, "movie_id", pa.array([None, *range(1199)]))
    with pytest.raises(ValueError, match="column 'movie_id': 1 null"):
        split_table(table, "random", **COLUMNS)
    with pytest.raises(ValueError, match="random, time, cold_items, cold_users; got 'leave_one_out'"):
        split_table(ratings(), "leave_one_out", **COLUMNS)
