# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Splits into train, validation and test that are the same rows on every machine and engine.

A row is placed by an md5 of text, never by a random generator or by the engine's own hash. The first eight digits of
the digest, in lower-case hexadecimal, are compared *as text* with two bounds: for 8:1:1 a row is of `train` below
`cccccccc`, of `validation` below `e6666666`, else of `test`. Any engine with md5 and string comparison can repeat that.
"""

from collections.abc import Sequence
from hashlib import md5

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "validation", "test")
RATIOS = (8, 1, 1)

# The rules by name, each with the sentence that a dataset card says.
SPLIT_RULES = {
    "random": "each row by md5(seed|{row_key}|duplicate rank)",
    "time": "rows ordered by {time}, ties by md5(seed|{row_key}|duplicate rank); the earliest are train, the last test",
    "cold_items": "each item by md5(seed|item|{item}): all rows of an item are in one split",
    "cold_users": "each user by md5(seed|user|{user}): all rows of a user are in one split",
}


def canonical_keys(table: pa.Table, column: str) -> list[str]:
    """The values of a key column as text, an integer in decimal digits. `ValueError` where one is null."""
    values = table[column]
    if values.null_count:
        raise ValueError(f"column '{column}': {values.null_count} null value(s); a key of the split must not be null.")
    return values.cast(pa.string()).to_pylist()


def split_bounds(ratios: Sequence[int]) -> list[bytes]:
    """The digests at which validation and test begin, as eight hexadecimal digits; `ratios` are whole numbers."""
    total = sum(ratios)
    return [b"%08x" % (sum(ratios[:i]) * 2**32 // total) for i in range(1, len(ratios))]


def place(digests: np.ndarray, ratios: Sequence[int]) -> np.ndarray:
    """Index into `SPLITS` of each hexadecimal digest."""
    return np.searchsorted(np.array(split_bounds(ratios), dtype=digests.dtype), digests, side="right")


def row_digests(table: pa.Table, row_key: Sequence[str], seed: int) -> np.ndarray:
    """md5(`seed|value of each key column|duplicate rank`) of each row, 32 hexadecimal digits as bytes.

    The duplicate rank is 0 for the first row of the table with these key values, 1 for the second, ...
    """
    keys = map("|".join, zip(*(canonical_keys(table, column) for column in row_key)))
    seen, digests = {}, []
    for key in keys:
        rank = seen[key] = seen.get(key, -1) + 1
        digests.append(md5(f"{seed}|{key}|{rank}".encode(), usedforsecurity=False).hexdigest())
    return np.array(digests, dtype="S32")


def entity_digests(table: pa.Table, entity: str, column: str, seed: int) -> np.ndarray:
    """md5(`seed|entity|value`) of each row, so that it depends on the row's entity alone."""
    keys = canonical_keys(table, column)
    digest = {key: md5(f"{seed}|{entity}|{key}".encode(), usedforsecurity=False).hexdigest() for key in set(keys)}
    return np.array([digest[key] for key in keys], dtype="S32")


def place_by_time(times: pa.ChunkedArray, digests: np.ndarray, ratios: Sequence[int], column: str) -> np.ndarray:
    """Index into `SPLITS` of each row, ordered by time and then by digest; `ValueError` where all times are equal."""
    if times.null_count:
        raise ValueError(f"split 'time': column '{column}' has {times.null_count} null value(s).")
    times = times.to_numpy()
    if len(times) and times.min() == times.max():
        raise ValueError(
            f"split 'time': all {len(times):,} rows have the same {column}, {times[0]}; there is no order to split by. "
            "Use --split random, cold_items or cold_users."
        )
    ends = np.cumsum(ratios) * len(times) // sum(ratios)
    codes = np.empty(len(times), dtype=np.int64)
    codes[np.lexsort((digests, times))] = np.searchsorted(ends, np.arange(len(times)), side="right")
    return codes


def split_table(
    table: pa.Table,
    split: str = "random",
    seed: int = 42,
    ratios: Sequence[int] = RATIOS,
    *,
    row_key: Sequence[str],
    user_column: str,
    item_column: str,
    time_column: str | None = None,
    label_column: str = "label",
) -> dict[str, pa.Table]:
    """Splits a table into `train`, `validation` and `test`, each in the table's row order.

    Args:
        split: one of `SPLIT_RULES`. `random` and `time` split rows, `cold_items` and `cold_users` split entities, so
            that their ratios hold for items or users.
        ratios: whole numbers, one a split.
        row_key: columns that identify a row, in the order in which they are hashed.

    Raises:
        ValueError: an unknown rule, a null in a key, no order in time, or a split that is empty or has one class only.
    """
    if split not in SPLIT_RULES:
        raise ValueError(f"--split must be one of {', '.join(SPLIT_RULES)}; got {split!r}.")
    if split == "cold_items":
        codes = place(entity_digests(table, "item", item_column, seed), ratios)
    elif split == "cold_users":
        codes = place(entity_digests(table, "user", user_column, seed), ratios)
    elif split == "random":
        codes = place(row_digests(table, row_key, seed), ratios)
    else:
        if time_column is None:
            raise ValueError("split 'time': this dataset has no column of times.")
        codes = place_by_time(table[time_column], row_digests(table, row_key, seed), ratios, time_column)
    tables = {name: table.filter(pa.array(codes == code)) for code, name in enumerate(SPLITS)}
    for name, part in tables.items():
        check_both_classes(part, label_column, f"split '{name}' of --split {split}")
    return tables


def check_both_classes(table: pa.Table, label_column: str, owner: str) -> None:
    """`ValueError`, naming the owner, unless the table has clicks and non-clicks: no AUC exists without both."""
    clicks = pc.sum(table[label_column]).as_py() or 0
    if not 0 < clicks < len(table):
        raise ValueError(
            f"{owner} has {len(table):,} rows, {clicks:,} of them clicks; it needs both clicks and non-clicks. "
            "Use more data, another --split or --split_seed, or another label rule (--click_threshold, --drop_ratings)."
        )
