"""Toy rows with what their users had before, and the items that these histories name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tiny

from flip_ctr import FlipField

HISTORY = FlipField(
    "history", "int", kind="history", history_of="movie_id", max_values=3, entity="user", nullable=False
)
FIELDS = [*tiny.FIELDS, HISTORY]
NUMBERS = [
    FlipField("user_rate", "float", kind="numeric", num_buckets=6, entity="user", sides=("id",)),
    FlipField("pair_rows", "int", kind="numeric", num_buckets=4, sides=("id",)),  # of the user and the item's genre
]
OF_ITEM = ("movie_id", "title", "genre")


def past_rows(count: int = 24, whole: bool = False) -> list[dict]:
    """Toy rows, each with what its user had before: none, few, and more than are kept; `whole` entries have all fields
    of their item."""
    rows, past = tiny.toy_rows(count), {}
    for row in rows:
        before = past.setdefault(row["user_id"], [])
        row["history"] = before[-9:] if row["user_id"] != 3 else []
        names = OF_ITEM if whole else OF_ITEM[:1]
        before.append({name: row[name] for name in names} | {"clicked": row["label"]})
        before.append(before[0] | {"clicked": 1 - row["label"]})
    return rows


def number_rows(count: int = 24) -> list[dict]:
    """Past rows whose users have a rate, and each pair of a user and an item a number; one is null."""
    rows = past_rows(count)
    for row in rows:
        row["user_rate"] = None if row["user_id"] == 4 else row["user_id"] / 8
        row["pair_rows"] = pair_rows(row["user_id"], row["movie_id"])
    return rows


def pair_rows(user: int, movie: int) -> int:
    return user * movie % 11


def items_of(rows: list[dict]) -> list[dict]:
    return list({row["movie_id"]: {name: row[name] for name in OF_ITEM} for row in rows}.values())


def write_past_dataset(folder: Path, count: int = 96) -> Path:
    """A dataset folder by hand, with the same rows in each split, and its items."""
    rows = past_rows(count)
    tiny.write_dataset(folder, rows, FIELDS)
    pq.write_table(pa.Table.from_pylist(items_of(rows)), folder / "items.parquet")
    return folder
