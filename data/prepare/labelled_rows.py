# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""From typed tables to labelled rows in splits, written once over Ibis: the same expressions run on every engine.

Each row of the raw table of events ends in exactly one place: rejected with a reason, dropped by a named rule, kept in
    a split, or kept in histories and click rates only, see `support_rows`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, tee

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.histories import HISTORY, History, items_of, with_histories
from flip_ctr.data.prepare.own_splits import OwnSplit
from flip_ctr.data.prepare.rules import Rule
from flip_ctr.data.prepare.same_items import ITEM, with_same_items
from flip_ctr.data.prepare.splits import NEEDS, RATIOS, SEED, check_fold, text_key, with_digest, with_split
from flip_ctr.data.prepare.statistics import FROZEN, Past, with_statistics
from flip_ctr.data.prepare.support_rows import support_counts, with_support
from flip_ctr.data.readers.click_rates import Statistic
from flip_ctr.data.readers.dataset_schema import SPLITS
from flip_ctr.data.readers.raw_files import (
    PLACE_COLUMNS,
    LineLog,
    MalformedLine,
    RawTable,
    UnusedLine,
    write_typed,
)

LABEL = "label"
UNUSABLE = {"malformed": MalformedLine, "unused": UnusedLine}


@dataclass(frozen=True)
class Join:
    """Columns of a side table, added to each row by its key.

    Args:
        table: name of the side table.
        on: columns of the rows, those of earlier joins too, to the side table's key columns.
        missing: what a row is whose key the side table lacks: `malformed` or `unused` (see `raw`), or `null`: it is
            kept, with nulls. A null key is always such a row.
        again: what a line of the side table is whose key came before: `malformed` or `unused`. The first counts.
        missing_reason: why a row without partner is rejected, for people.
    """

    table: str
    on: dict[str, str]
    missing: str = "malformed"
    again: str = "malformed"
    missing_reason: str | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of typed tables.

    Args:
        events: name of the table that has a row for each possible click.
        joins: in the order in which they are made.
        label: rule of a click.
        drops: name of each reason to drop a row, and its rule; the first that holds counts. A row that cannot be used
            is malformed, and not dropped, unless a rule that names a needed column drops rows without it.
        columns: columns of the dataset folder in order, without the label.
        row_key: columns that identify a row.
        unique: whether of rows with the same key only the first counts, the others being unused.
        again_reason: why the others are, for people.
        user, item, time: columns of the user, the item and the time, where there are such.
        weight: column of the sample weight: a row without one, or with one below 0, is malformed.
        required: more columns that must not be null.
        split, seed, ratios, fold: see `splits`.
        own_split: a split that the data brings instead.
        statistics: whose columns are added, see `statistics`.
        history: the column of histories to add, see `histories`.
        past: which earlier rows both count, in a split by time.
        item_title: column whose texts say which items are one, see `same_items`.
    """

    events: str
    label: str
    columns: tuple[str, ...]
    row_key: tuple[str, ...]
    joins: tuple[Join, ...] = ()
    drops: dict[str, str] = field(default_factory=dict)
    unique: bool = False
    again_reason: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    weight: str | None = None
    required: tuple[str, ...] = ()
    split: str = "random"
    seed: int = SEED
    ratios: Sequence[int] = RATIOS
    fold: int = 0
    own_split: OwnSplit | None = None
    statistics: tuple[Statistic, ...] = ()
    history: History | None = None
    past: Past = FROZEN
    item_title: str | None = None

    def __post_init__(self) -> None:
        check_fold(self.fold, self.split, self.ratios)

    @property
    def one_item(self) -> str | None:
        """The column whose values tell items apart."""
        return self.item if self.item_title is None else ITEM

    @property
    def order(self) -> str:
        """The split after whose rule statistics and histories count rows: of one that the data brings those before a
        row where there is a time, and else as of a random one."""
        return self.split if self.own_split is None else "random" if self.time is None else "time"

    @property
    def support_rows(self) -> int:
        """How many rows are known of each held-out user."""
        return self.history.support_rows if self.history else 0

    @property
    def asked(self) -> tuple[str, ...]:
        """The splits that are to have rows."""
        if self.own_split is not None:
            return self.own_split.asked
        if self.split == "leave_last_out":
            return SPLITS
        return tuple(name for name, ratio in zip(SPLITS, self.ratios) if ratio)

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without which a row has no place in a split, or none in the dataset."""
        extra = [getattr(self, need) for need in NEEDS.get(self.split, ())]
        extra += [self.own_split.column] if self.own_split and self.own_split.column else []
        return tuple(dict.fromkeys([*self.row_key, *extra, *([self.weight] if self.weight else []), *self.required]))


@dataclass
class PreparedRows:
    """The rows of a dataset on an engine.

    Attributes:
        rows: the kept rows with label, `_row`, `_split` and `_digest`.
        types: of the columns of the folder, label included.
        dropped: rows by the rule that dropped them.
        items: where there are histories, a row for each item key, ordered.
        support: where rows of held-out users are in no split, how many, see `support_rows.support_counts`.
        same_items: where titles say which items are one, how many have several keys, see `same_items`.
    """

    engine: Engine
    rows: ir.Table
    types: dict[str, pa.DataType]
    dropped: dict[str, int]
    items: ir.Table | None = None
    support: dict[str, int] | None = None
    same_items: dict[str, int] | None = None

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(self.types)

    def split(self, code: int) -> Iterator[pa.RecordBatch]:
        """The rows of a split, with the types of the folder; those of `train` in random order, so that a stream of them
        is mixed, the others in that of the raw files."""
        order = ["_digest", "_row"] if SPLITS[code] == "train" else ["_row"]
        ordered = self.rows.filter(self.rows._split == code).select(*self.types, *order).order_by(order)
        yield from self._batches(ordered, self.schema)

    @property
    def items_schema(self) -> pa.Schema:
        return pa.schema({name: self.types[name] for name in self.items.columns})

    def item_batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of `items`, with the types of the folder."""
        yield from self._batches(self.items, self.items_schema)

    def _batches(self, ordered: ir.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for batch in self.engine.batches(ordered):
            columns = [batch.column(one.name).cast(one.type) for one in schema]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def prepare_rows(engine: Engine, tables: Sequence[RawTable], plan: Plan, log: LineLog) -> PreparedRows:
    """Reads the raw tables, and places every row of the events.

    Args:
        tables: the events' among them, in the order in which they are read.
        log: gets every line that becomes no row.

    Raises:
        ValueError: a file has a larger share of malformed lines than the log allows; a column or rule of the plan does
            not fit the tables; all rows that are left have the same label, or none is left.
    """
    by_name = {table.name: table for table in tables}
    _check_plan(by_name, plan)
    typed = {}
    for table in tables:
        path = engine.work / f"{table.name}.typed.parquet"
        write_typed(table, path, log)
        typed[table.name] = engine.read(path)

    kinds: dict[str, str] = {}  # of each reason to reject a row: malformed or unused
    rows, reasons = typed[plan.events], []
    for join in plan.joins:
        side = _first_of_each_key(engine, by_name[join.table], typed[join.table], join, log)
        rows, found = _join(rows, side, join)
        if join.missing != "null":
            keys = ", ".join(join.on)
            reason = join.missing_reason or f"{keys} is not in {', '.join(by_name[join.table].files)}"
            kinds[reason] = join.missing
            reasons.append((~found, reason, _shown(rows, join.on)))
    rules = {name: Rule(rule) for name, rule in plan.drops.items()}
    for column in plan.needed:
        reason = f"{column} is null"
        kinds[reason] = "malformed"
        # a key that a join adds is null where there is no partner, and then that is the reason
        place = 0 if column in by_name[plan.events].columns else len(reasons)
        named = [rule.of_rows(rows).fill_null(False) for rule in rules.values() if column in rule.columns]
        # a rule such as `user_id is null` drops such rows: then they are not malformed
        reasons.insert(place, (rows[column].isnull() & ~ibis.or_(*named), reason, ibis.literal("")))
        if plan.own_split and column == plan.own_split.column:
            kinds[plan.own_split.reason] = "malformed"
            other = rows[column].notnull() & plan.own_split.code(rows, {}).isnull() & ~ibis.or_(*named)
            reasons.append((other, plan.own_split.reason, text_key(rows, column)))
    if plan.weight:
        reason = f"{plan.weight} is below 0"
        kinds[reason] = "malformed"
        reasons.append(((rows[plan.weight] < 0).fill_null(False), reason, rows[plan.weight].cast("string")))

    rows = rows.mutate(
        _reason=_first(reasons), _text=_first([(when, None, text) for when, _, text in reasons], text=True)
    )
    if plan.unique:
        reason = plan.again_reason or f"{', '.join(plan.row_key)} came on an earlier line"
        kinds[reason] = "unused"
        rows = rows.mutate(_usable=rows._reason.isnull())
        rows = rows.mutate(_rank=ibis.row_number().over(group_by=["_usable", *plan.row_key], order_by="_row"))
        again = rows._usable & (rows._rank > 0)
        rows = rows.mutate(
            _reason=again.ifelse(reason, rows._reason), _text=again.ifelse(_shown(rows, plan.row_key), rows._text)
        ).drop("_usable", "_rank")
    drops = [(rule.of_rows(rows).fill_null(False), name, None) for name, rule in rules.items()]
    rows = rows.mutate(_drop=rows._reason.isnull().ifelse(_first(drops), ibis.null("string")))
    label = Rule(plan.label).of_rows(rows)
    unlabelled = f"label rule {plan.label!r} is null"
    kinds[unlabelled] = "malformed"
    nameless = rows._reason.isnull() & rows._drop.isnull() & label.isnull()
    others = [name for name in rows.columns if name.lower() != LABEL and name != "_reason"]  # Label is label to engines
    reason = nameless.ifelse(unlabelled, rows._reason)
    rows = rows.select(*others, _reason=reason, **{LABEL: label.ifelse(1, 0).cast("int8")})
    rows = rows.mutate(_kept=rows._reason.isnull() & rows._drop.isnull())
    same_items = None
    if plan.item_title:
        rows, same_items = with_same_items(engine, rows, plan.item, plan.item_title)
    # where a row belongs is found without the columns that nothing asks, which windows would carry along
    asked = [name for name in (*plan.row_key, plan.user, plan.item, plan.one_item, plan.time) if name]
    placed, by = rows.select("_row", "_kept", *dict.fromkeys(asked)), {"order": "_row", "group": "_kept"}
    if plan.own_split is None:
        by |= {"user": plan.user, "item": plan.one_item, "time": plan.time, "fold": plan.fold}
        placed = with_split(placed, plan.split, plan.seed, plan.ratios, row_key=plan.row_key, **by)
        rows = rows.inner_join(placed.select("_row", "_split", "_digest"), "_row")
    else:
        placed = with_digest(placed, plan.seed, row_key=plan.row_key, **by)
        rows = rows.inner_join(placed.select("_row", "_digest"), "_row")
        numbers = {name: log.number(name) for name in plan.own_split.files}
        rows = rows.mutate(_split=plan.own_split.code(rows, numbers))
    internal = ("_row", "_file", "_line", "_reason", "_text", "_drop", "_kept", "_split", "_digest")
    internal += (ITEM,) * (plan.item_title is not None)
    rows = engine.keep(rows.select(*internal, *plan.columns, LABEL), "placed")

    events = by_name[plan.events]
    rejected = rows.filter(rows._reason.notnull())
    _reject(engine, events, rejected, {reason: UNUSABLE[kind] for reason, kind in kinds.items()}, log)
    log.check_table(events.files)
    counted = engine.fetch(
        rows.filter(rows._reason.isnull() & rows._drop.notnull()).group_by("_drop").agg(rows=ibis._.count())
    )
    counts = dict(zip(counted["_drop"].to_pylist(), counted["rows"].to_pylist()))
    types = _types(by_name, plan)
    kept = rows.filter("_kept")
    if "time" in NEEDS.get(plan.split, ()):
        _check_times(engine, kept, plan)
    if plan.weight:
        _check_weights(engine, kept, plan.weight)
    kept = with_support(kept, plan.support_rows, plan.user, plan.item, plan.time)
    if plan.statistics:
        columns = {name: getattr(plan, name) for name in ("seed", "row_key", "user", "time", "past", "support_rows")}
        columns |= {"split": plan.order, "item": plan.one_item}
        kept = engine.keep(with_statistics(engine, kept, plan.statistics, label=LABEL, **columns), "kept")
        for statistic in plan.statistics:
            types |= {statistic.rate: pa.float64(), statistic.count: pa.int64()}
    dropped = {name: counts.get(name, 0) for name in plan.drops}
    prepared = PreparedRows(engine, kept, types, dropped, same_items=same_items)
    if plan.history:
        _add_histories(prepared, plan.history, plan)
    types[LABEL] = types.pop(LABEL)  # the last column
    return prepared


def _add_histories(prepared: PreparedRows, history: History, plan: Plan) -> None:
    """Gives the rows their histories, takes support rows out of the splits, and finds the items."""
    engine, kept = prepared.engine, prepared.rows
    prepared.items = items_of(kept, history)
    columns = {"split": plan.order, "seed": plan.seed, "time": plan.time, "together": plan.one_item, "past": plan.past}
    rows = engine.keep(with_histories(kept, history, label=LABEL, **columns), "histories")
    if history.support_rows:
        prepared.support = support_counts(rows, history.user, engine.fetch)
    prepared.rows = rows.filter(~rows._past_support)
    prepared.types[HISTORY] = history.arrow_type(prepared.types[history.item])


def _check_times(engine: Engine, kept: ir.Table, plan: Plan) -> None:
    """`ValueError` where all times are equal."""
    times = kept[plan.time]
    found = engine.fetch(kept.agg(rows=kept.count(), first=times.min(), last=times.max())).to_pylist()[0]
    if found["rows"] and found["first"] == found["last"]:
        raise ValueError(
            f"--split {plan.split}: all {found['rows']:,} rows have the same {plan.time}, {found['first']}; there is "
            "no order to split by. Use --split random, by_user, cold_items or cold_users."
        )


def _check_weights(engine: Engine, kept: ir.Table, weight: str) -> None:
    """`ValueError` where no training row has a weight above 0."""
    train = kept.filter(kept._split == SPLITS.index("train"))
    rows, heaviest = engine.fetch(train.agg(rows=train.count(), heaviest=train[weight].max())).to_pylist()[0].values()
    if rows and not heaviest:
        raise ValueError(
            f"sample weight '{weight}': all {rows:,} training rows weigh 0, so that there is nothing to learn from."
        )


def _check_plan(tables: dict[str, RawTable], plan: Plan) -> None:
    """`ValueError` where a column is named that is not there, or two tables have a column of the same name."""
    have = dict(tables[plan.events].columns)
    for join in plan.joins:
        side = tables[join.table].columns
        for column, key in join.on.items():
            for name, columns, where in ((column, have, "the rows"), (key, side, f"table {join.table}")):
                if name not in columns:
                    raise ValueError(
                        f"join with {join.table}: {where} have no column '{name}'; there are {', '.join(columns)}."
                    )
            if have[column] != side[key]:
                raise ValueError(
                    f"join with {join.table}: '{column}' is {have[column]}, '{key}' is {side[key]}; give both one type."
                )
        new = {name: kind for name, kind in side.items() if name not in join.on.values()}
        twice = sorted(have.keys() & new.keys())
        if twice:
            raise ValueError(
                f"join with {join.table}: column(s) {', '.join(twice)} are there already; rename them or leave them "
                "out."
            )
        have |= new
    for name in (
        *plan.columns,
        *plan.needed,
        *Rule(plan.label).columns,
        *(c for rule in plan.drops.values() for c in Rule(rule).columns),
    ):
        if name not in have:
            raise ValueError(f"no table has a column '{name}'; there are {', '.join(have)}.")


def _types(tables: dict[str, RawTable], plan: Plan) -> dict[str, pa.DataType]:
    have = {
        name: kind
        for table in (plan.events, *(join.table for join in plan.joins))
        for name, kind in tables[table].columns.items()
    }
    return {name: have[name] for name in plan.columns} | {LABEL: pa.int8()}


def _first(cases: list[tuple], text: bool = False) -> ir.StringValue:
    """Of (condition, name, text) the name, or the text, of the first condition that holds; null where none does."""
    branches = [(when, shown if text else name) for when, name, shown in cases]
    return ibis.cases(*branches, else_=ibis.null("string")) if branches else ibis.null("string")


def _shown(table: ir.Table, columns) -> ir.StringValue:
    """The values of a key as people read them."""
    return ibis.literal(", ").join([text_key(table, column).fill_null("null") for column in columns])


def _first_of_each_key(engine: Engine, raw: RawTable, side: ir.Table, join: Join, log: LineLog) -> ir.Table:
    """A side table with one row a key; what is left out is in the log."""
    keys = list(join.on.values())
    absent = ibis.or_(*(side[key].isnull() for key in keys))
    side = side.mutate(_rank=ibis.row_number().over(group_by=keys, order_by="_row"), _absent=absent)
    null, again = f"{', '.join(keys)} is null", f"{', '.join(keys)} comes a second time"
    reason = ibis.cases((side._absent, null), (side._rank > 0, again), else_=ibis.null("string"))
    side = side.mutate(_reason=reason, _text=_shown(side, keys))
    left_out = side.filter(side._reason.notnull()).select("_file", "_line", "_reason", "_text")
    _reject(engine, raw, left_out, {null: MalformedLine, again: UNUSABLE[join.again]}, log)
    log.check_table(raw.files)
    return side.filter(side._reason.isnull()).drop("_rank", "_absent", "_reason", "_text", *PLACE_COLUMNS)


def _join(rows: ir.Table, side: ir.Table, join: Join) -> tuple[ir.Table, ir.BooleanValue]:
    """The rows with the side table's columns, and whether each has found its partner."""
    renamed = {f"_key_{number}": key for number, key in enumerate(join.on.values())}
    side = side.rename(renamed).mutate(_found=ibis.literal(True))
    joined = rows.left_join(side, [rows[column] == side[key] for column, key in zip(join.on, renamed)])
    found = f"_found_{join.table}"
    joined = joined.mutate(**{found: joined._found.fill_null(False)}).drop("_found", *renamed)
    return joined, joined[found]


def _reject(engine: Engine, raw: RawTable, rejected: ir.Table, kinds: dict[str, type], log: LineLog) -> None:
    """Tells the log of lines that the engine has left out; the whole line comes from the raw file, where that has
    lines."""
    order = ["_row"] if "_row" in rejected.columns else ["_file", "_line"]
    columns = dict.fromkeys(["_file", "_line", "_reason", "_text", *order])
    ordered = rejected.select(*columns).order_by(order)
    rows = (row for batch in engine.batches(ordered) for row in batch.to_pylist())
    names = list(log.files)
    for number, of_file in groupby(rows, key=lambda row: row["_file"]):
        name = names[number]
        of_file, ahead = tee(of_file)  # one row apart
        if raw.texts is not None:
            texts = raw.texts(raw.files[name], (row["_line"] for row in ahead))
        else:
            texts = (row["_text"] for row in ahead)
        for row, text in zip(of_file, texts):
            log.reject(name, row["_line"], kinds[row["_reason"]](row["_reason"], row["_text"] or ""), text)
