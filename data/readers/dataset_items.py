# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The items of a dataset folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flip_ctr.data.readers.dataset_schema import SPLITS
from flip_ctr.data.readers.shards import ITEMS_NAME, has_split, open_splits


def read_dataset_items(dataset_dir: str | Path, key: str, columns: Sequence[str]) -> pa.Table:
    """A row an item, or what else has a key: of `items.parquet` where the folder has one of items, and else, with what
    that lacks (statistics), of the last row of each key.

    Args:
        key: the column that tells items apart.
        columns: of an item, the key among them.

    Raises:
        ValueError: the folder is damaged, or its rows lack the key.
    """
    there = [split for split in SPLITS if has_split(dataset_dir, split)]
    of_rows = None
    for split in open_splits(dataset_dir, dict.fromkeys(there)).values():
        if key not in split.column_names:
            raise ValueError(f"{dataset_dir}: no column '{key}'; there are {', '.join(split.column_names)}")
        for _, part in split.parts(columns):
            part = part.filter(pc.is_valid(part[key]))
            of_rows = _last_of_each(part if of_rows is None else pa.concat_tables([of_rows, part]), key)
    assert of_rows is not None
    path = Path(dataset_dir) / ITEMS_NAME
    if not path.is_file() or key not in pq.read_schema(path).names:
        return of_rows
    return _with_columns(pq.read_table(path, page_checksum_verification=True), of_rows, key)


def places_of(values: pa.ChunkedArray, among: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Where values stand among others, -1 for null and for those that do not."""
    among = among.combine_chunks() if isinstance(among, pa.ChunkedArray) else among
    return pc.index_in(values, among, skip_nulls=True).fill_null(-1).to_numpy().astype(np.int64)


def _last_of_each(table: pa.Table, key: str) -> pa.Table:
    codes = table[key].combine_chunks().dictionary_encode().indices.to_numpy()
    _, from_end = np.unique(codes[::-1], return_index=True)
    return table.take(len(table) - 1 - from_end)


def _with_columns(items: pa.Table, of_rows: pa.Table, key: str) -> pa.Table:
    """Items with the columns that the items of rows have more; null for an item of no row."""
    items = items.set_column(items.column_names.index(key), key, items[key].cast(of_rows[key].type))
    places = places_of(items[key], of_rows[key])
    found = of_rows.take(pa.array(places, mask=places < 0))
    for name in of_rows.column_names:
        if name not in items.column_names:
            items = items.append_column(name, found[name])
    return items.select(of_rows.column_names)
