"""Splits: the same rows everywhere, by the rule that is documented."""

import math
from hashlib import md5

import numpy as np
import pyarrow as pa
import pytest

from flip_ctr.data.prepare.splits import SPLIT_RULES, check_fold, parts
from flip_ctr.data.prepare.splits import split_table as place
from flip_ctr.data.readers.dataset_schema import SPLITS

COLUMNS = {"row_key": ("user_id", "movie_id"), "user": "user_id", "item": "movie_id"}


def split_table(*args, **kwargs) -> dict[str, pa.Table]:
    return parts(place(*args, **kwargs))


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


@pytest.mark.parametrize(("split", "column"), [("random", None), ("cold_items", "movie_id"), ("cold_users", "user_id")])
@pytest.mark.parametrize(("ratios", "folds"), [((8, 1, 1), 10), ((5, 1, 2), 4), ((3, 0, 1), 4)])
def test_folds_test_each_row_once(split, column, ratios, folds):
    table = ratings()
    turned = [split_table(table, split, seed=3, ratios=ratios, fold=fold, **COLUMNS) for fold in range(folds)]
    assert rows(turned[0]["test"]) == rows(split_table(table, split, seed=3, ratios=ratios, **COLUMNS)["test"])
    assert sorted(row for one in turned for row in rows(one["test"])) == sorted(rows(table))
    for one in turned:
        assert sum(len(part) for part in one.values()) == len(table)
        if column:
            assert not set(one["train"][column].to_pylist()) & set(one["test"][column].to_pylist())
    if ratios == (8, 1, 1):
        assert all(rows(one["validation"]) == rows(next_one["test"]) for one, next_one in zip(turned, turned[1:]))
        tenths = {
            row: int(md5(f"3|{row[0]}|{row[1]}|0".encode()).hexdigest()[:8], 16) * 10 >> 32 for row in rows(table)
        }
        if split == "random":
            assert {row: 9 - fold for fold, one in enumerate(turned) for row in rows(one["test"])} == tenths


def test_only_what_is_hashed_has_folds():
    with pytest.raises(
        ValueError, match="split_fold: 3 is for splits random, cold_items, cold_users, not for split time"
    ):
        check_fold(3, "time", (8, 1, 1))
    with pytest.raises(ValueError, match="split_fold must be from 0 to 9 with ratios 8 1 1; got 10"):
        check_fold(10, "random", (8, 1, 1))
    with pytest.raises(ValueError, match="split_fold must be from 0 to 0 with ratios 8 1 0; got 1"):
        check_fold(1, "random", (8, 1, 0))


def test_time_split_is_in_order_of_time():
    splits = split_table(ratings(), "time", time="timestamp", **COLUMNS)
    times = [part["timestamp"].to_numpy() for part in splits.values()]
    assert [len(part) for part in times] == [960, 120, 120]
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()


def test_time_split_breaks_ties_by_hash():
    table = ratings(times=np.repeat([5, 9], 600))
    splits = split_table(table, "time", seed=1, time="timestamp", **COLUMNS)
    late = sorted(rows(table)[600:], key=lambda row: md5(f"1|{row[0]}|{row[1]}|0".encode()).hexdigest())
    assert sorted(rows(splits["test"])) == sorted(late[-120:])
    assert sorted(rows(splits["validation"])) == sorted(late[-240:-120])


@pytest.mark.parametrize("ratios", [(8, 1, 1), (5, 3, 2), (1, 1, 1)])
def test_each_user_gives_its_share_by_hash(ratios):
    table = pa.concat_tables([ratings().slice(30 * user, user) for user in range(1, 31)])  # of 1 to 30 rows
    splits = split_table(table, "by_user", seed=5, ratios=ratios, **COLUMNS)
    placed = {row: name for name, part in splits.items() for row in rows(part)}
    total = sum(ratios)
    for user in {user for user, _ in placed}:
        own = sorted(
            (row for row in placed if row[0] == user),
            key=lambda row: md5(f"5|{row[0]}|{row[1]}|0".encode()).hexdigest(),
        )
        size = len(own)
        test, held_out = (math.floor(size * share / total + 0.5) for share in (ratios[2], ratios[1] + ratios[2]))
        expected = ["train"] * (size - held_out) + ["validation"] * (held_out - test) + ["test"] * test
        assert [placed[row] for row in own] == expected


def test_the_last_row_of_each_user_is_test():
    times = (np.arange(1200) * 7919) % 1000  # with ties
    table = ratings(times=times)
    few = pa.concat_tables([table.slice(0, 1), table.slice(30, 2), table.slice(60, 3), table.slice(90, 30)])
    splits = split_table(few, "leave_last_out", seed=2, time="timestamp", **COLUMNS)
    placed = {row: name for name, part in splits.items() for row in rows(part)}
    at = dict(zip(rows(few), few["timestamp"].to_pylist()))
    for user, size in {1: 1, 2: 2, 3: 3, 4: 30}.items():
        own = [row for row in placed if row[0] == user]
        own.sort(key=lambda row: (at[row], md5(f"2|{row[0]}|{row[1]}|0".encode()).hexdigest()))
        expected = ["train"] * size if size < 3 else ["train"] * (size - 2) + ["validation", "test"]
        assert [placed[row] for row in own] == expected


def test_a_split_that_needs_a_column_that_is_not_there_is_refused():
    with pytest.raises(
        ValueError,
        match="--split time: this dataset has no column of times; use --split random, by_user, cold_items, cold_users",
    ):
        split_table(ratings(), "time", **COLUMNS)
    with pytest.raises(
        ValueError, match="--split cold_users: this dataset has no column of users; use --split random."
    ):
        split_table(ratings(), "cold_users", row_key=("movie_id",))
    with pytest.raises(
        ValueError, match="random, time, leave_last_out, by_user, cold_items, cold_users; got 'leave_one_out'"
    ):
        split_table(ratings(), "leave_one_out", **COLUMNS)


@pytest.mark.parametrize("split", SPLIT_RULES)
def test_every_row_is_in_one_split_and_the_seed_matters(split):
    table = ratings(times=(np.arange(1200) * 31) % 7)  # with ties
    placed = [place(table, split, seed, time="timestamp", **COLUMNS) for seed in (1, 2)]
    assert all(one.drop_columns("_split").equals(table) for one in placed)
    assert sorted(set(placed[0]["_split"].to_pylist())) == [0, 1, 2]
    assert placed[0]["_split"] != placed[1]["_split"]
