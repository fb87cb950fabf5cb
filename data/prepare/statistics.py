# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Click rates of what a row shares with earlier rows: of its user, its item, its user and genre, ...

A rate that counts the row itself, or all of its neighbours but the row, tells its label: a tree on such rates is far
better on training rows than on test rows. So a row's statistics count training rows only, and of these

* in a split by time those that came before it: ties are left out, and what was not known yet (`label_delay`). Asked for
  (`rolling`), rows of validation and test count too for those of validation and test that come after them;
* in the other splits for a training row those of other folds, where all rows of an item (`cold_items`), of a user
  (`cold_users`) or of a pair of both are in one fold, and for validation and test rows all of them.

Where held-out users have `support_rows`, S of each, these count too for rows of validation and test. Statistics of the
user then count of a training user no more than will be known of a new one: the first S rows, in other folds of pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.splits import by_digest, md5_of, text_key
from flip_ctr.data.prepare.support_rows import event_order
from flip_ctr.data.readers.click_rates import ClickRates, Statistic
from flip_ctr.data.readers.dataset_schema import SPLITS
from flip_ctr.modeling_flip.fields_flip import FlipField

FOLDS = 5
NO_FOLD = FOLDS  # what a row leaves out that leaves out no fold
BY_TIME = ("time", "leave_last_out")
MODES = ("frozen", "rolling")
KEY_TYPES = ("string", "int", "bool")
INNER = "_past_"  # how columns begin that are needed on the way


@dataclass(frozen=True)
class Past:
    """Which earlier rows count for a row, in a split by time.

    Args:
        rolling: for a row of validation or test those of validation and test too. Training rows alone when False
            (frozen), and for a training row: no label of another split enters what is learned from.
        label_delay: how long after a row its click is known, in the unit of the times (seconds, of timestamps). A row
            counts for those that are later than that.
    """

    rolling: bool = False
    label_delay: int = 0

    def of_parts(self, rows: ir.Table, before: Callable[[ir.Table, ir.Table], ir.Table]) -> ir.Table:
        """What `before` makes of rows and the events that count for them."""
        train = rows.filter(rows._split == SPLITS.index("train"))
        if not self.rolling:
            return before(rows, train)
        return before(train, train).union(before(rows.filter(rows._split != SPLITS.index("train")), rows))

    def known_at(self, time: ir.Column) -> ir.Column:
        """When the clicks of rows are known."""
        if not self.label_delay:
            return time
        return time + (ibis.interval(seconds=self.label_delay) if time.type().is_timestamp() else self.label_delay)

    def rule(self, of: str = "") -> str:
        """For people."""
        others = "; for a row of validation or test those of validation and test too" * self.rolling
        when = f"a time more than {self.label_delay} before the row's" if self.label_delay else "an earlier time"
        return f"training rows{of} with {when}{others}"


FROZEN = Past()


def read_past(mode: str, label_delay: int, order: str, used: bool, names: tuple[str, str]) -> Past:
    """Which earlier rows count.

    Args:
        mode: `frozen` or `rolling`.
        order: the split after whose rule rows count.
        used: whether there are statistics or histories.
        names: what the first two are called, for errors.

    Raises:
        ValueError: one is asked for, and no rows are counted, or not by time.
    """
    for name, asked in zip(names, (mode != MODES[0], label_delay != 0)):
        if asked and not used:
            raise ValueError(f"{name} has no effect without statistics or histories, which count earlier rows.")
        if asked and order not in BY_TIME:
            raise ValueError(f"{name} is of the splits by time ({', '.join(BY_TIME)}); got {order}.")
    return Past(mode == MODES[1], label_delay)


def read_statistics(texts: Sequence[str], fields: Sequence[FlipField], owner: str) -> tuple[Statistic, ...]:
    """Statistics from texts such as `user_id` and `user_id+genre`.

    Args:
        fields: of a row.
        owner: whose texts they are, for errors.

    Raises:
        ValueError: there is no such field, its type cannot be a key, a statistic comes twice, or a field has the name
            of its columns.
    """
    by_name, found = {one.name: one for one in fields}, []
    for text in texts:
        keys = tuple(key.strip() for key in text.split("+"))
        for key in keys:
            if key not in by_name:
                raise ValueError(f"{owner}: '{key}' in '{text}' is no field of a row; there are {', '.join(by_name)}")
            if by_name[key].type not in KEY_TYPES:
                raise ValueError(
                    f"{owner}: '{key}' is {by_name[key].type}; rows share values of type {', '.join(KEY_TYPES)}"
                )
        statistic = Statistic(keys)
        if len(set(keys)) < len(keys) or any(set(keys) == set(one.keys) for one in found):
            raise ValueError(f"{owner}: '{text}' names a column, or says what another one says, a second time")
        before = {*by_name, *(name for one in found for name in one.columns)}
        taken = [name for name in statistic.columns if name in before]
        if taken:
            raise ValueError(f"{owner}: '{text}' makes a column '{taken[0]}', which is there already")
        found.append(statistic)
    return tuple(found)


def statistic_fields(statistics: Sequence[Statistic], fields: Sequence[FlipField]) -> list[FlipField]:
    """The fields of all statistics: of the entity of their keys, or of the context where these are of several."""
    entities = {one.name: one.entity for one in fields}
    result = []
    for statistic in statistics:
        of_keys = {entities[key] for key in statistic.keys}
        result += statistic.fields(of_keys.pop() if len(of_keys) == 1 else "context")
    return result


def statistics_rule(split: str, past: Past = FROZEN, support_rows: int = 0) -> str:
    """Which rows a row's statistics count, for people."""
    if split in BY_TIME:
        return past.rule()
    unit = {"cold_items": "items", "cold_users": "users"}.get(split, "user-item pairs")
    rule = (
        f"training rows; for a training row those whose {unit} are in the four other fifths, by md5. They may be later "
        "than the row: not to be compared with serving"
    )
    if support_rows:
        rule += (
            f". For rows of validation and test also the first {support_rows} rows of each held-out user, which are in "
            f"no split. Statistics of the user count for a training row the first {support_rows} rows of its user "
            "whose user-item pairs are in the four other fifths"
        )
    return rule


def with_statistics(
    engine: Engine,
    rows: ir.Table,
    statistics: Sequence[Statistic],
    *,
    split: str,
    seed: int,
    label: str,
    row_key: Sequence[str],
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    past: Past = FROZEN,
    support_rows: int = 0,
) -> ir.Table:
    """The rows with two columns for each statistic.

    Args:
        rows: kept rows with `_row`, `_split` and `_digest`, and `_past_support` of `support_rows.with_support`.
        split, seed, row_key, user, item, time: as of `splits.with_split`.
        label: column of the click.
        past: which earlier rows count, in a split by time.
        support_rows: how many rows are known of each held-out user, in `cold_users`.
    """
    train = rows._split == SPLITS.index("train")
    totals = engine.fetch(rows.filter(train).agg(rows=ibis._.count(), clicks=ibis._[label].cast("int64").sum()))
    rates = ClickRates(tuple(statistics), *(totals[name][0].as_py() or 0 for name in ("rows", "clicks")))
    fold = f"{INNER}fold"
    if split not in BY_TIME:
        together = {"cold_items": [item], "cold_users": [user]}.get(split, row_key)
        rows = rows.mutate(**{fold: fold_of(rows, seed, together)})
    if support_rows:
        rows = rows.mutate(_past_pairs=fold_of(rows, seed, row_key))
        keys = [key for statistic in statistics for key in statistic.keys]
        known = engine.keep(_first_rows(rows, support_rows, [*keys, label], user, time), "first_rows")
    for statistic in statistics:
        if split in BY_TIME:
            counted = _of_earlier_rows(rows, statistic, label, time, past)
        elif support_rows and user in statistic.keys:
            counted = _of_first_rows(rows, known, statistic, label)
        else:
            counted = _of_other_folds(rows, statistic, label, fold)
            if support_rows:
                support = known.filter(known._past_support, known._past_left == NO_FOLD)
                counted = counted.union(_of_first_rows(rows, support, statistic, label))
        rows = with_columns(rows, counted, statistic, rates)
    return without_inner(rows)


def without_inner(rows: ir.Table) -> ir.Table:
    """The rows without the columns that were needed on the way, but for `_past_support`."""
    return rows.drop(*(name for name in rows.columns if name.startswith(INNER) and name != f"{INNER}support"))


def fold_of(rows: ir.Table, seed: int, together: Sequence[str]) -> ir.IntegerValue:
    """Which fifth a row is in: the same for all rows with these values."""
    texts = (text_key(rows, column).fill_null("") for column in together)
    return by_digest(md5_of(seed, "fold", *texts), [1] * FOLDS)


def of_left_folds(events: ir.Table, fold: str) -> ir.Table:
    """Each event once for every fold but its own, `_past_left`, which is left out; and once for rows that leave out
    none."""
    events = events.mutate(_past_left=ibis.array(list(range(FOLDS + 1))).unnest())
    return events.filter(events._past_left != events[fold])


def with_columns(rows: ir.Table, counted: ir.Table, statistic: Statistic, rates: ClickRates) -> ir.Table:
    """The rows with the two columns of a statistic.

    Args:
        rows: with `_row`.
        counted: for each row, and each value of its keys, `_past_rows` and `_past_clicks`; no line where there are
            none.
    """
    counted = counted.group_by("_row").agg(_past_rows=ibis._._past_rows.sum(), _past_clicks=ibis._._past_clicks.sum())
    counted = counted.rename(_past_of="_row")
    rows = rows.left_join(counted, rows._row == counted._past_of)
    number = rows._past_rows.fill_null(0)
    # whole numbers up to one division, which every engine makes alike
    above = rows._past_clicks.fill_null(0) * rates.rows + rates.smoothing * rates.clicks
    rate = above.cast("float64") / ((number + rates.smoothing) * rates.rows).cast("float64")
    rows = rows.mutate(**{statistic.rate: rate, statistic.count: number.cast("int64")})
    return rows.drop("_past_of", "_past_rows", "_past_clicks")


def _of_earlier_rows(rows: ir.Table, statistic: Statistic, label: str, time: str, past: Past) -> ir.Table:
    """For each row, and each value of its keys, `_past_rows` and `_past_clicks` of the rows before it."""
    keys = list(statistic.keys)
    single = one_value_a_row(rows, keys, ["_split", label, time])

    def before(asked: ir.Table, events: ir.Table) -> ir.Table:
        numbers = {"_past_n": ibis.literal(1, "int64"), "_past_c": events[label].cast("int64")}
        known = events.select("_row", *keys, _past_at=past.known_at(events[time]), **numbers)
        return counts_before(asked.mutate(_past_at=asked[time]), known, keys)

    return past.of_parts(single, before)


def counts_before(asked: ir.Table, known: ir.Table, keys: Sequence[str]) -> ir.Table:
    """For each row, and each value of its keys, `_past_rows` and `_past_clicks` of what was known before it.

    Args:
        asked: `_row`, the keys, and the time `_past_at`.
        known: the same, of events and of the time from which their clicks are known, and how many events (`_past_n`)
            and clicks (`_past_c`) a line stands for.
    """
    none = ibis.literal(0, "int64")
    together = asked.select("_row", *keys, "_past_at", _past_n=none, _past_c=none).union(known)
    sums = [running(together, name, keys) for name in ("_past_n", "_past_c")]
    found = together.mutate(_past_rows=sums[0], _past_clicks=sums[1])
    return found.filter(found._past_n == 0).select("_row", "_past_rows", "_past_clicks")


def running(rows: ir.Table, number: str, keys: Sequence[str]) -> ir.IntegerValue:
    """For each row the sum of a number over the events of its keys that were known before it.

    The rows stand for what is asked at a time `_past_at` (`_past_n` 0), and for what is known from a time on (1 or
    more): of the same time the former come first.
    """
    order = [ibis.asc("_past_at", nulls_first=True), ibis.asc("_past_n")]
    window = ibis.window(group_by=list(keys), order_by=order, preceding=(None, 1))
    return rows[number].sum().over(window).fill_null(0)


def one_value_a_row(rows: ir.Table, keys: Sequence[str], others: Sequence[str]) -> ir.Table:
    """`_row`, the keys and some other columns, a row for each value where a key holds lists; none where one is null."""
    single = rows.select("_row", *dict.fromkeys([*others, *keys]))
    for key in keys:
        if single[key].type().is_array():
            single = single.mutate(**{key: single[key].unique().unnest()})
    return single.filter(*(single[key].notnull() for key in keys))


def _of_other_folds(rows: ir.Table, statistic: Statistic, label: str, fold: str) -> ir.Table:
    """For each row, and each value of its keys, `_past_rows` and `_past_clicks` of the training rows that count for it:
    all, of which a training row does not count those of its own fold."""
    keys = list(statistic.keys)
    columns = list(dict.fromkeys([*keys, fold]))
    single = one_value_a_row(rows, keys, ["_split", label, fold])
    is_train = single._split == SPLITS.index("train")
    clicked = is_train & (single[label] == 1)
    single = single.mutate(_past_n=is_train.cast("int64"), _past_c=clicked.cast("int64"))
    parts = single.group_by(columns).agg(_past_in=single._past_n.sum(), _past_in_c=single._past_c.sum())
    window = ibis.window(group_by=keys)
    sums = {f"{name}_sum": parts[name].sum().over(window) for name in ("_past_in", "_past_in_c")}
    names = {f"{INNER}key_{number}": name for number, name in enumerate(columns)}
    parts = parts.mutate(**sums).rename(names)
    joined = single.inner_join(parts, [single[name] == parts[other] for other, name in names.items()])
    own = joined._split == SPLITS.index("train")
    return joined.select(
        "_row",
        _past_rows=joined._past_in_sum - own.ifelse(joined._past_in, 0),
        _past_clicks=joined._past_in_c_sum - own.ifelse(joined._past_in_c, 0),
    )


def _first_rows(rows: ir.Table, number: int, columns: Sequence[str], user: str, time: str | None) -> ir.Table:
    """What is known of users who have a `number` of rows, with these columns: the rows, for each fold of pairs that is
    left out (`_past_left`). Of a held-out user these are the support rows."""
    events = rows.filter((rows._split == SPLITS.index("train")) | rows._past_support)
    times = [] if time is None else [time]
    inner = ("_row", "_digest", "_past_support", "_past_pairs")
    events = of_left_folds(events.select(*dict.fromkeys([*inner, user, *times, *columns])), "_past_pairs")
    place = ibis.row_number().over(group_by=[user, "_past_left"], order_by=event_order(events, time))
    return events.mutate(_past_place=place).filter(lambda one: one._past_place < number)


def _of_first_rows(rows: ir.Table, first: ir.Table, statistic: Statistic, label: str) -> ir.Table:
    """For each row, and each value of its keys, `_past_rows` and `_past_clicks` of the [`_first_rows`] that are known
    where the row's fold is left out; a held-out row leaves out none."""
    columns = list(dict.fromkeys([*statistic.keys, "_past_left"]))
    known = one_value_a_row(first, statistic.keys, ["_past_left", label])
    known = known.group_by(columns).agg(_past_rows=known.count(), _past_clicks=known[label].cast("int64").sum())
    names = {f"{INNER}key_{number}": name for number, name in enumerate(columns)}
    known = known.rename(names)
    is_train = rows._split == SPLITS.index("train")
    asked = rows.mutate(_past_left=is_train.ifelse(rows._past_pairs, NO_FOLD))
    asked = one_value_a_row(asked, statistic.keys, ["_past_left"])
    joined = asked.inner_join(known, [asked[name] == known[other] for other, name in names.items()])
    return joined.select("_row", "_past_rows", "_past_clicks")
