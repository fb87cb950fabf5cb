# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a row's user did before: a list of items, newest last, each with whether it was clicked.

An event is a training row with a user and an item. A row's history never holds the row itself, nor a row of validation
or test. Which events it holds:

* in a split by time those that came before the row: ties are left out, and what was not known yet (`label_delay`).
  Asked for (`rolling`), rows of validation and test are events too for those of validation and test;
* in the other splits for a training row those whose items are in another fold, where all rows of an item are in one.
  To leave out the row alone would tell its label: two rows of a user would differ in what each leaves out. For
  validation and test rows all events but those of the row's own item.

In `cold_users` a held-out user has no training row, but may have [`support_rows`].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from flip_ctr.data.prepare.statistics import (
    BY_TIME,
    FROZEN,
    KEY_TYPES,
    NO_FOLD,
    Past,
    fold_of,
    of_left_folds,
    running,
    without_inner,
)
from flip_ctr.data.prepare.support_rows import event_order
from flip_ctr.data.readers.dataset_schema import SPLITS
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField

HISTORY = "history"  # the column


@dataclass(frozen=True)
class History:
    """The column of the histories, and where its entries come from.

    Args:
        length: most entries of a history.
        user, item: columns of the user's and the item's key.
        field: of the column.
        item_columns: columns of `items.parquet`: the item's key, and what else describes the item.
        support_rows: how many first events of each held-out user are its history, and in no split.
    """

    length: int
    user: str
    item: str
    field: FlipField
    item_columns: tuple[str, ...]
    support_rows: int = 0

    def arrow_type(self, key: pa.DataType) -> pa.DataType:
        """Of the column, from the type of an item's key."""
        return pa.list_(pa.struct({self.item: key, CLICKED: pa.int8()}))


def read_history(
    length: int | None,
    support_rows: int,
    fields: Sequence[FlipField],
    *,
    split: str,
    user: str | None,
    item: str | None,
    columns: Sequence[str],
    names: tuple[str, str] = ("--history", "--support_rows"),
) -> History | None:
    """What is asked for; None where `length` is.

    Args:
        fields: of a row of the raw data, without statistics.
        split: see `splits`.
        user, item: columns of the keys, where there are such.
        columns: all columns of a row.
        names: what the first two are called, for errors.

    Raises:
        ValueError: there is no user or item, the item is no field or its values are no keys, a column has the name of
            the history's, or support rows are asked for where they have no effect.
    """
    owner, of_support = names
    if support_rows and length is None:
        raise ValueError(f"{of_support} has no effect without {owner}, which holds these rows.")
    if length is None:
        return None
    if support_rows and split != "cold_users":
        raise ValueError(
            f"{of_support} is of split cold_users, whose held-out users have no training row; got {split}."
        )
    if support_rows > length:
        raise ValueError(f"{of_support} must be at most {length}, the length of a history; got {support_rows}.")
    for key, what in ((user, "user"), (item, "item")):
        if key is None:
            raise ValueError(f"{owner} needs a column of {what}s; name it as `{what}`.")
    by_name = {one.name: one for one in fields}
    if item not in by_name:
        raise ValueError(f"{owner}: the item '{item}' is no field of a row; there are {', '.join(by_name)}.")
    key = by_name[item]
    if key.type not in KEY_TYPES or key.kind not in ("categorical", "hashed"):
        raise ValueError(
            f"{owner}: the item '{item}' is {key.kind} of type {key.type}; a history lists single values of type "
            f"{', '.join(KEY_TYPES)}."
        )
    taken = next((name for name in columns if name.lower() == HISTORY), None)
    if taken is not None:
        raise ValueError(f"{owner} makes a column '{HISTORY}', and '{taken}' is there already.")
    if item.lower() == CLICKED:
        raise ValueError(f"{owner}: an entry has '{CLICKED}' beside the item, so that the item must have another name.")
    field = FlipField(
        name=HISTORY,
        type=key.type,
        kind="history",
        entity=by_name[user].entity if user in by_name else "user",
        history_of=item,
        nullable=False,
        max_values=length,
    )
    of_item = [one.name for one in fields if one.entity == key.entity and one.name != item]
    return History(length, user, item, field, (item, *of_item), support_rows)


def history_rule(split: str, history: History, past: Past = FROZEN) -> str:
    """Which rows a history holds, for people."""
    if split in BY_TIME:
        return past.rule(" of the user")
    rule = (
        "training rows of the user; for a training row those whose items are in the four other fifths, by md5, and for "
        "other rows all but those of the row's own item. They may be later than the row: not to be compared with "
        "serving"
    )
    if history.support_rows:
        rule += f". For a held-out user the user's first {history.support_rows} rows, which are in no split"
    return rule


def with_histories(
    rows: ir.Table,
    history: History,
    *,
    split: str,
    seed: int,
    label: str,
    time: str | None = None,
    together: str | None = None,
    past: Past = FROZEN,
) -> ir.Table:
    """The rows with a column `history`: a list of `{item key, clicked}`, newest last, empty where there is none.

    Args:
        rows: kept rows with `_row`, `_split` and `_digest`, and `_past_support` of `support_rows.with_support`.
        split, seed, time: as of `splits.with_split`.
        label: column of the click.
        together: column whose values decide the fold of an item; the item's key when not given.
        past: which earlier rows are events, in a split by time.
    """
    user, item = history.user, history.item
    is_event = (rows._split == SPLITS.index("train")) | rows._past_support
    rows = rows.mutate(
        _past_event=(is_event | past.rolling) & rows[user].notnull() & rows[item].notnull(),
        _past_entry=ibis.struct({item: rows[item], CLICKED: rows[label].cast("int8")}),
    )
    kind = rows._past_entry.type()
    if split in BY_TIME:
        rows = past.of_parts(rows, lambda asked, events: _before(asked, events, history, time, past))
    else:
        rows = _of_other_folds(rows, history, seed, time, together or item)
    empty = ibis.literal([], type=f"array<{kind}>")
    rows = rows.mutate(**{HISTORY: rows._past_entries.fill_null(empty)})
    return without_inner(rows)


def _before(rows: ir.Table, events: ir.Table, history: History, time: str, past: Past) -> ir.Table:
    """The rows with `_past_entries`, the last events that were known before their time, or null."""
    user = history.user
    events = events.filter("_past_event")
    asked = rows.select("_row", user, _past_at=rows[time], _past_n=0)
    known = events.select("_row", user, _past_at=past.known_at(events[time]), _past_n=1)
    together = asked.union(known)
    numbered = together.mutate(_past_number=running(together, "_past_n", [user]))
    numbered = numbered.filter(numbered._past_n == 0).select("_past_number", _past_of="_row")
    rows = rows.inner_join(numbered, rows._row == numbered._past_of)
    # events are known in the order in which they come
    events = events.mutate(_past_place=ibis.row_number().over(group_by=user, order_by=event_order(events, time)))
    last = ibis.window(group_by=user, order_by="_past_place", preceding=history.length - 1, following=0)
    ends = events.select(
        _past_user=events[user], _past_end=events._past_place + 1, _past_entries=events._past_entry.collect().over(last)
    )
    return rows.left_join(ends, [rows[user] == ends._past_user, rows._past_number == ends._past_end])


def _of_other_folds(rows: ir.Table, history: History, seed: int, time: str | None, together: str) -> ir.Table:
    """The rows with `_past_entries`, the last events that a row of this split may know, or null."""
    user, item, length = history.user, history.item, history.length
    rows = rows.mutate(_past_fold=fold_of(rows, seed, [together]))
    is_train = rows._split == SPLITS.index("train")
    rows = rows.mutate(_past_out=is_train.ifelse(rows._past_fold, NO_FOLD))
    events = rows.filter("_past_event")
    place = ibis.row_number().over(group_by=user, order_by=event_order(events, time))
    events = events.select(user, item, "_past_fold", "_past_entry", _past_place=place)
    # a held-out row leaves out its own item: as many more entries as any item of the user has make up for that
    events = events.mutate(_past_same=ibis._.count().over(group_by=[user, item]))
    events = events.mutate(_past_more=ibis._._past_same.max().over(group_by=user))
    events = of_left_folds(events, "_past_fold")
    later = ibis.row_number().over(group_by=[user, "_past_left"], order_by=ibis.desc("_past_place"))
    events = events.mutate(_past_later=later)
    events = events.filter(events._past_later < length + (events._past_left == NO_FOLD).ifelse(events._past_more, 0))
    # no engine but DuckDB orders what it collects; a list of pairs is sorted by what comes first in a pair
    placed = ibis.struct({"place": events._past_place, "entry": events._past_entry})
    lists = events.group_by([user, "_past_left"]).agg(_past_sorted=placed.collect().sort())
    lists = lists.select(
        _past_user=lists[user], _past_of=lists._past_left, _past_entries=lists._past_sorted.map(lambda one: one.entry)
    )
    rows = rows.left_join(lists, [rows[user] == lists._past_user, rows._past_out == lists._past_of])
    others = rows._past_entries.filter(lambda one: (one[item] != rows[item]).fill_null(True))
    return rows.mutate(_past_entries=is_train.ifelse(rows._past_entries, _last(others, length)))


def _last(entries: ir.ArrayValue, length: int) -> ir.ArrayValue:
    number = entries.length()
    return (number > length).ifelse(entries[number - length :], entries)


def history_lengths(
    rows: ir.Table, fetch: Callable[[ir.Table], pa.Table] = ir.Table.to_pyarrow
) -> dict[str, dict[str, float]]:
    """For each split the `mean` length of a history, and the share of rows whose history is `empty`.

    Args:
        rows: with `history` and `_split`.
        fetch: gets a small result from the engine of the rows.
    """
    length = rows[HISTORY].length()
    counted = rows.group_by("_split").agg(
        rows=rows.count(), entries=length.sum(), empty=(length == 0).cast("int64").sum()
    )
    found = {row["_split"]: row for row in fetch(counted).to_pylist()}
    return {
        name: {
            "mean": round(found[code]["entries"] / found[code]["rows"], 2),
            "empty": round(found[code]["empty"] / found[code]["rows"], 6),
        }
        for code, name in enumerate(SPLITS)
        if code in found
    }


def items_of(rows: ir.Table, history: History) -> ir.Table:
    """A row for each item key in the order of the keys: what the first row of that key says of the item.

    Args:
        rows: all kept rows, with `_row`.
    """
    item = history.item
    rows = rows.filter(rows[item].notnull()).select("_row", *history.item_columns)
    first = ibis.row_number().over(group_by=item, order_by="_row") == 0
    return rows.mutate(_past_first=first).filter("_past_first").select(*history.item_columns).order_by(item)
