# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Splits into train, validation and test that are the same rows on every machine and engine.

A row is placed by an md5 of text, never by a random generator or by the engine's own hash. The first eight digits of
the digest, in lower-case hexadecimal, are compared *as text* with two bounds: for 8:1:1 a row is of `train` below
`cccccccc`, of `validation` below `e6666666`, else of `test`. Any engine with md5 and string comparison can repeat that.
Positions are compared in whole numbers, which no engine rounds.
"""

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.data.readers.dataset_schema import SPLITS

RATIOS = (8, 1, 1)
SEED = 42

# The rules by name, each with the sentence that a dataset card says.
SPLIT_RULES = {
    "random": "each row by md5(seed|{row_key}|duplicate rank)",
    "time": "rows ordered by {time}, ties by md5(seed|{row_key}|duplicate rank); the earliest are train, the last test",
    "leave_last_out": "of each {user}'s rows ordered by {time}, ties by md5(seed|{row_key}|duplicate rank), the last "
    "is test, the "
    "last but one validation; users with fewer than three rows are all train",
    "by_user": "of each {user}'s rows, ordered by md5(seed|{row_key}|duplicate rank), the first are train and the "
    "last test, in "
    "these ratios rounded to whole rows (half a row is rounded up): a user's only rows are train",
    "cold_items": "each item by md5(seed|item|{item}): all rows of an item are in one split",
    "cold_users": "each user by md5(seed|user|{user}): all rows of a user are in one split",
}
# the rules by which a digest alone places a row, so that each part of the digests can be the test split once
HASHED = ("random", "cold_items", "cold_users")
# what a rule needs to know of the rows, beside their key
NEEDS = {
    "time": ("time",),
    "leave_last_out": ("time", "user"),
    "by_user": ("user",),
    "cold_items": ("item",),
    "cold_users": ("user",),
}


def check_fold(fold: int, split: str, ratios: Sequence[int]) -> None:
    """`ValueError` where a split has no such fold."""
    if fold and split not in HASHED:
        raise ValueError(f"split_fold: {fold} is for splits {', '.join(HASHED)}, not for split {split}.")
    folds = sum(ratios) // ratios[-1] if ratios[-1] else 1
    if not 0 <= fold < folds:
        shares = " ".join(map(str, ratios))
        raise ValueError(f"split_fold must be from 0 to {folds - 1} with ratios {shares}; got {fold}.")


def check_split_name(split: str) -> None:
    """`ValueError` where there is no such split."""
    if split not in SPLIT_RULES:
        raise ValueError(f"--split must be one of {', '.join(SPLIT_RULES)}; got {split!r}.")


def check_split(split: str, owner: str = "this dataset", **columns: str | None) -> None:
    """`ValueError` where there is no such split, or no column that it needs; `user`, `item` and `time` name the
    columns."""
    check_split_name(split)
    for need in NEEDS.get(split, ()):
        if columns.get(need) is None:
            possible = [
                name for name in SPLIT_RULES if all(columns.get(other) is not None for other in NEEDS.get(name, ()))
            ]
            raise ValueError(f"--split {split}: {owner} has no column of {need}s; use --split {', '.join(possible)}.")


def text_key(table: ir.Table, column: str) -> ir.StringValue:
    """A key as text, an integer in decimal digits."""
    return table[column] if table[column].type().is_string() else table[column].cast("string")


def md5_of(seed: int, *parts: ir.StringValue | str) -> ir.StringValue:
    """md5 of `seed|part|part|...`."""
    text = ibis.literal(str(seed))
    for part in parts:
        text = text.concat("|", part)
    return text.hexdigest("md5")


def by_digest(digest: ir.StringValue, ratios: Sequence[int], fold: int = 0) -> ir.IntegerValue:
    """Which of several parts of these sizes a digest falls in, from 0: of `SPLITS`, say. With each `fold` all parts
    begin earlier by the size of the last one, round the circle of all digests."""
    total = sum(ratios)
    begins = [(sum(ratios[:part]) - fold * ratios[-1]) % total for part in range(len(ratios))]
    begins, parts = zip(*sorted((begin, part) for part, begin in enumerate(begins) if ratios[part]))
    start, before = digest.substr(0, 8), (parts[-1], *parts)  # below the first begin lies the last part
    cases = [(start < f"{begin * 2**32 // total:08x}", part) for begin, part in zip(begins, before) if begin]
    return ibis.cases(*cases, else_=parts[-1]) if cases else ibis.literal(parts[-1])


def with_digest(
    table: ir.Table, seed: int, *, row_key: Sequence[str], order: str, group: str | None = None
) -> ir.Table:
    """The table with a column `_digest`, see [`with_split`]."""
    own = [] if group is None else [group]
    table = table.mutate(_rank=ibis.row_number().over(group_by=[*own, *row_key], order_by=order))
    return table.mutate(
        _digest=md5_of(seed, *(text_key(table, column) for column in row_key), table._rank.cast("string"))
    ).drop("_rank")


def with_split(
    table: ir.Table,
    split: str,
    seed: int,
    ratios: Sequence[int],
    *,
    row_key: Sequence[str],
    order: str,
    group: str | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    fold: int = 0,
) -> ir.Table:
    """The table with two columns: `_split`, the index into `SPLITS` of each row, and `_digest`, md5(`seed|value of each
    key column|duplicate rank`), by which rows are in random order.

    Args:
        split: one of `SPLIT_RULES`. `cold_items` and `cold_users` split entities, so that their ratios hold for items
            or users.
        ratios: whole numbers, one a split; a split of 0 gets no rows.
        row_key: columns that identify a row, in the order in which they are hashed.
        order: column of running numbers: of rows with the same key the first has duplicate rank 0, the second 1, ...
        group: a column of true and false; rows are counted and ordered only among those that have the same.
        user, item, time: columns that the split may need.
        fold: which of the disjoint parts of the digests is the test split, see [`by_digest`].

    Raises:
        ValueError: see [`check_split`].
    """
    check_split(split, user=user, item=item, time=time)
    own = [] if group is None else [group]
    table = with_digest(table, seed, row_key=row_key, order=order, group=group)
    if split in ("cold_items", "cold_users"):
        entity, column = ("item", item) if split == "cold_items" else ("user", user)
        return table.mutate(_split=by_digest(md5_of(seed, entity, text_key(table, column)), ratios, fold).cast("int8"))
    total, (train, validation, test) = sum(ratios), ratios
    if split == "random":
        code = by_digest(table._digest, ratios, fold)
    elif split == "time":
        window = ibis.window(group_by=own)
        position = ibis.row_number().over(group_by=own, order_by=[time, "_digest"]) + 1
        rows = table.count().over(window)
        # at or behind the whole part of rows * share: position + 1 > rows * share
        code = ibis.cases(
            (position * total <= rows * train, 0), (position * total <= rows * (train + validation), 1), else_=2
        )
    else:
        last_out = split == "leave_last_out"
        latest = [ibis.desc(time), ibis.desc("_digest")] if last_out else [ibis.desc("_digest")]
        from_end = ibis.row_number().over(group_by=[*own, user], order_by=latest) + 1
        rows = table.count().over(ibis.window(group_by=[*own, user]))
        if last_out:
            code = ibis.cases((rows < 3, 0), (from_end == 1, 2), (from_end == 2, 1), else_=0)
        else:  # from_end <= rows * share + 1/2
            code = ibis.cases(
                (2 * total * from_end <= 2 * rows * test + total, 2),
                (2 * total * from_end <= 2 * rows * (validation + test) + total, 1),
                else_=0,
            )
    return table.mutate(_split=code.cast("int8"))


def split_table(
    table: pa.Table,
    split: str = "random",
    seed: int = 42,
    ratios: Sequence[int] = RATIOS,
    *,
    row_key: Sequence[str],
    **columns: str | None,
) -> pa.Table:
    """Rows in memory with the column `_split`; the other arguments are those of [`with_split`]."""
    numbered = table.append_column("_row", pa.array(range(len(table)), pa.int64()))
    placed = with_split(ibis.memtable(numbered), split, seed, ratios, row_key=row_key, order="_row", **columns)
    return table.append_column("_split", placed.select("_row", "_split").order_by("_row").to_pyarrow()["_split"])


def parts(placed: pa.Table) -> dict[str, pa.Table]:
    """The rows of each split, in the table's order."""
    rows = placed.drop_columns("_split")
    return {name: rows.filter(pc.equal(placed["_split"], code)) for code, name in enumerate(SPLITS)}
