# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Items that have several keys, such as the editions of a book: those of one title.

A title is the letters and digits of a text in lower case (NFKC). Of the keys of a title the smallest stands for all, so
that an item of a title of its own stays where it would be without this.
"""

import unicodedata

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from flip_ctr.data.prepare.engines import Engine
from flip_ctr.modeling_flip.fields_flip import FlipField

# what a dataset card says of it behind the rule of the split
SAME_ITEMS = "; the smallest key stands for all items whose {title} has the same letters and digits"
ITEM = "_item"  # column of the key that stands for all keys of an item


def check_item_title(title: str | None, fields: list[FlipField], *, split: str, item: str | None, name: str) -> None:
    """`ValueError` where the title is no field of text, or has no effect.

    Args:
        fields: of a row.
        split: see `splits`.
        item: column of the item's key.
        name: what the title is called, for errors.
    """
    if title is None:
        return
    if split != "cold_items":
        raise ValueError(f"{name} says which items are one, for split cold_items; got {split}.")
    texts = [one.name for one in fields if one.type == "string" and not one.is_multi_valued and one.name != item]
    if title not in texts:
        raise ValueError(f"{name} must name a field of text; got '{title}', there are {', '.join(texts) or 'none'}.")


def title_key(title: str | None) -> str:
    """The letters and digits of a title in lower case; '' where it has none."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", title or "").casefold()))


def with_same_items(engine: Engine, rows: ir.Table, item: str, title: str) -> tuple[ir.Table, dict[str, int]]:
    """The rows with a column `_item`, the smallest key of the items with the row's title; and how many `keys` are of
    titles that have several, and how many `titles` these are.

    Args:
        rows: with `_row` and `_kept`; only kept rows are looked at, and of a key the first one says the title.
    """
    named = rows.filter(rows._kept & rows[item].notnull()).select("_row", item, title)
    first = ibis.row_number().over(group_by=item, order_by="_row") == 0
    named = named.mutate(_past_first=first).filter("_past_first").select(item, title).order_by(item)
    keys: dict[str, list] = {}
    for batch in engine.batches(named):
        for key, text in zip(batch.column(item).to_pylist(), batch.column(title).to_pylist()):
            if title_key(text):
                keys.setdefault(title_key(text), []).append(key)
    several = [ones for ones in keys.values() if len(ones) > 1]
    others = [(key, min(ones)) for ones in several for key in ones if key != min(ones)]
    kind = rows[item].type().to_pyarrow()
    path = engine.work / "same_items.parquet"
    pq.write_table(
        pa.table([pa.array(some, kind) for some in zip(*others)] or [pa.array([], kind)] * 2, ["_past_key", ITEM]), path
    )
    same = engine.read(path)
    joined = rows.left_join(same, rows[item] == same._past_key)
    counts = {"titles": len(several), "keys": sum(map(len, several))}
    return joined.mutate(**{ITEM: joined[ITEM].fill_null(joined[item])}).drop("_past_key"), counts
