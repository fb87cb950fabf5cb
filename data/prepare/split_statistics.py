# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a dataset folder says of its rows: counts by split and field, computed by the engine that holds them."""

from collections.abc import Callable, Sequence

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from flip_ctr.data.readers.dataset_schema import SPLITS
from flip_ctr.modeling_flip.fields_flip import FlipField


def split_statistics(
    rows: ir.Table, fields: Sequence[FlipField], fetch: Callable[[ir.Table], pa.Table] = ir.Table.to_pyarrow
) -> dict[str, dict]:
    """For each split its rows, clicks and click rate, and for each field its distinct values and nulls and, outside
    `train`, the share of rows whose value `train` never has (a null is not a value). Of a field of lists it is the
    share of all its values and nulls. Histories are left out, see `histories.history_lengths`.

    Args:
        rows: with the label and `_split`, see `splits`.
        fetch: gets a small result from the engine of the rows.
    """
    fields = [one for one in fields if not one.is_history]
    counted = fetch(rows.group_by("_split").agg(rows=rows.count(), clicks=rows.label.cast("int64").sum()))
    by_code = {row["_split"]: row for row in counted.to_pylist()}
    totals = [by_code.get(code, {"rows": 0, "clicks": 0}) for code in range(len(SPLITS))]
    of_fields: dict[str, list[dict]] = {one.name: [] for one in fields}
    for row in fetch(_value_counts(rows, fields)).to_pylist() if fields else ():
        of_fields[row["field"]].append(row)
    statistics = {}
    for code, name in enumerate(SPLITS):
        columns = {}
        for one in fields:
            here, kinds = f"n_{code}", of_fields[one.name]
            values = [row for row in kinds if not row["null"]]
            columns[one.name] = {
                "values": sum(row["values"] for row in values if row[f"in_{code}"]),
                "nulls": sum(row[here] for row in kinds if row["null"]),
            }
            if code:
                unseen = sum(row[here] for row in values if not row["in_0"])
                columns[one.name]["unseen_share"] = round(unseen / max(1, sum(row[here] for row in kinds)), 6)
        count, clicks = totals[code]["rows"], totals[code]["clicks"]
        rate = round(clicks / count, 6) if count else None
        statistics[name] = {"rows": count, "clicks": clicks, "click_rate": rate, "fields": columns}
    return statistics


def _value_counts(rows: ir.Table, fields: Sequence[FlipField]) -> ir.Table:
    """Of each field a row for each kind of value that it has: whether it is `null`, and for each split s whether it is
    in it (`in_s`); with how many distinct `values` are of that kind, and how many rows they have in each split
    (`n_s`)."""
    parts = []
    for one in fields:
        values = rows.select("_split", value=rows[one.name])
        if values.value.type().is_array():
            full = values.filter(values.value.length() > 0)
            empty = values.filter(values.value.isnull() | (values.value.length() == 0))
            single = full.mutate(value=full.value.unnest())
            values = single.filter(single.value.notnull()).union(
                empty.mutate(value=ibis.null(full.value.type().value_type))
            )
        per_value = values.group_by("value").agg(
            **{f"n_{code}": values.count(where=values._split == code) for code in range(len(SPLITS))}
        )
        kind = {f"in_{code}": per_value[f"n_{code}"] > 0 for code in range(len(SPLITS))}
        counts = {f"n_{code}": per_value[f"n_{code}"].sum() for code in range(len(SPLITS))}
        counted = per_value.group_by(null=per_value.value.isnull(), **kind).agg(values=per_value.count(), **counts)
        parts.append(counted.mutate(field=ibis.literal(one.name)))
    return ibis.union(*parts) if len(parts) > 1 else parts[0]


def entity_prompts(
    rows: ir.Table, fields: Sequence[FlipField], fetch: Callable[[ir.Table], pa.Table] = ir.Table.to_pyarrow
) -> dict[str, dict]:
    """For each entity its `fields` in the prompt, and of the training rows how many distinct `prompts` these make and
    how many distinct `keys` the entity has, None where no field is its key. Prompts are distinct where a value is; an
    empty list is a null.

    Args:
        rows: with `_split`, see `splits`.
        fetch: gets a small result from the engine of the rows.
    """
    train = rows.filter(rows._split == SPLITS.index("train"))
    found: dict[str, dict] = {}
    counts = []
    for entity in dict.fromkeys(field.entity for field in fields):
        own = [field for field in fields if field.entity == entity]
        texts, keys = [field.name for field in own if field.on_text_side], [field.name for field in own if field.key]
        found[entity] = {"fields": texts, "prompts": 0, "keys": 0 if keys else None}
        if texts:
            counts.append(_distinct_count(train, texts, entity, "prompts"))
        if keys:
            named = train.filter(ibis.or_(*(train[name].notnull() for name in keys)))
            counts.append(_distinct_count(named, keys, entity, "keys"))
    counted = fetch(ibis.union(*counts) if len(counts) > 1 else counts[0]).to_pylist() if counts else []
    for row in counted:
        found[row["entity"]][row["what"]] = row["number"]
    return found


def _distinct_count(rows: ir.Table, columns: Sequence[str], entity: str, what: str) -> ir.Table:
    """One row: how many distinct combinations of values these columns have."""
    values = {}
    for name in columns:
        column = rows[name]
        values[name] = (
            ibis.ifelse(column.length() > 0, column, ibis.null(column.type())) if column.type().is_array() else column
        )
    distinct = rows.select(**values).distinct()
    return distinct.agg(number=distinct.count()).mutate(entity=ibis.literal(entity), what=ibis.literal(what))


def check_splits(
    statistics: dict[str, dict],
    fields: Sequence[FlipField],
    split: str,
    label_rule: str,
    way_out: str,
    asked: Sequence[str] = SPLITS,
) -> None:
    """`ValueError` where a split has one class only, as no AUC exists without both, or a field is null in all training
    rows.

    Args:
        label_rule: what a click is, and `way_out`, how to change that, for the message.
        asked: the splits that are to have rows.
    """
    rows, clicks = (sum(one[name] for one in statistics.values()) for name in ("rows", "clicks"))
    counts = {f"what is left ({label_rule})": (rows, clicks)}
    counts |= {
        f"split '{name}' of --split {split}": (one["rows"], one["clicks"])
        for name, one in statistics.items()
        if one["rows"] or name in asked
    }
    for owner, (rows, clicks) in counts.items():
        if not 0 < clicks < rows:
            raise ValueError(
                f"{owner} has {rows:,} rows, {clicks:,} of them clicks; it needs both clicks and non-clicks. Use more "
                f"data, another --split or --split_seed, or another label rule ({way_out})."
            )
    train = statistics["train"]
    empty = [name for name, counts in train["fields"].items() if counts["values"] == 0]
    if empty:
        raise ValueError(
            f"column(s) {', '.join(empty)}: all {train['rows']:,} training rows are null, so that there is nothing to "
            "learn; leave such a field out, or name the column that holds its values."
        )
