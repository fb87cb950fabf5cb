# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The first rows of new users: `cold_users` takes them out of the split, as what is known of these users.

They are events of the users' other rows, for histories and for click rates. Nothing learns from them, and nothing is
scored on them.
"""

from collections.abc import Callable

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from flip_ctr.data.readers.dataset_schema import SPLITS


def event_order(rows: ir.Table, time: str | None) -> list:
    """The order of events: by time, those without one first, and at random among equal ones."""
    of_time = [] if time is None else [ibis.asc(rows[time], nulls_first=True)]
    return [*of_time, rows._digest.asc(), rows._row.asc()]


def with_support(rows: ir.Table, number: int, user: str | None, item: str | None, time: str | None) -> ir.Table:
    """The rows with a column `_past_support`: whether a row is one of the first events of a held-out user.

    Args:
        rows: with `_row`, `_split` and `_digest`.
        number: how many first events of each.
        user, item: columns of their keys. A row without an item is no event.
        time: column of the time, where there is one.
    """
    if not number:
        return rows.mutate(_past_support=ibis.literal(False))
    held_out = (rows._split != SPLITS.index("train")) & rows[item].notnull()
    rows = rows.mutate(_past_support=held_out)
    place = ibis.row_number().over(group_by=[user, "_past_support"], order_by=event_order(rows, time))
    return rows.mutate(_past_support=rows._past_support & (place < number))


def support_counts(rows: ir.Table, user: str, fetch: Callable[[ir.Table], pa.Table]) -> dict[str, int]:
    """How many `rows` are support, and how many held-out `users_without_rows` have no other row.

    Args:
        rows: all kept rows, with `_past_support` of [`with_support`].
    """
    held_out = rows.filter(rows._split != SPLITS.index("train"))
    number = held_out._past_support.cast("int64")
    by_user = held_out.group_by(user).agg(rows=held_out.count(), support=number.sum())
    lost = (by_user.rows == by_user.support).cast("int64")
    counted = fetch(by_user.agg(rows=by_user.support.sum(), users_without_rows=lost.sum()))
    return {name: counted[name][0].as_py() or 0 for name in counted.column_names}
