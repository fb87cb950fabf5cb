# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Histories of rows -> numbers of items, and outcomes. An item is encoded once, however many histories it is in."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .columns_flip import (
    Column,
    RowError,
    Value,
    canonical_label,
    distinct_rows,
    names_by_kind,
    raw_columns,
    read_columns,
)
from .fields_flip import PAD_ID, FlipField, fields_of_items, history_field

CLICKED = "clicked"  # what an entry says beside its item
NO_ENTRY, NOT_CLICKED, IS_CLICKED = 0, 1, 2  # of `history_outcomes`
NO_ITEM = -1


class HistoryItems:
    """The items that histories name, each with its fields.

    Args:
        columns: of the fields that describe an item, its key among them.
        key: name of the key.

    Raises:
        ValueError: two items have one key.
    """

    def __init__(self, columns: dict[str, Column], key: str):
        self.columns, codes = columns, columns[key].codes
        self.numbers: dict[Value, int] = dict(zip([columns[key].values[code] for code in codes], range(len(codes))))
        if len(self.numbers) < len(codes):
            counts = np.bincount(codes)
            twice = columns[key].values[int(counts.argmax())]
            raise ValueError(f"items: {key} '{twice}' has {counts.max():,} rows; each item must have one.")

    @classmethod
    def read(cls, rows: Any, fields: Sequence[FlipField]) -> "HistoryItems":
        """From a table with a row an item, in any form of [`raw_columns`]; `fields` are those of a row."""
        history = history_field(list(fields))
        assert history is not None
        return cls(read_columns(rows, fields_of_items(list(fields))), history.history_of)


class Histories:
    """The histories of N rows, of at most n entries.

    Attributes:
        items: `(N, n)` int32 numbers of the entries' items, newest last, -1 behind them.
        outcomes: `(N, n)` int8: 1 not clicked, 2 clicked, 0 behind them.
        item_ids: `(I, slots of an item)` int32 local feature ids of the items.
        item_prompts: `(I,)` int32, which of the distinct prompts an item has; None without the text side.
    """

    def __init__(
        self,
        items: np.ndarray,
        outcomes: np.ndarray,
        item_ids: np.ndarray,
        item_prompts: np.ndarray | None = None,
    ):
        self.items, self.outcomes, self.item_ids, self.item_prompts = items, outcomes, item_ids, item_prompts

    def batch(self, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """`history_ids` `(rows, n, slots of an item)` and `history_outcomes` `(rows, n)` int64, n of the longest
        history; and `(rows, n)` the entries' prompts, -1 for none, where there is the text side."""
        outcomes = self.outcomes[rows]
        longest = int((outcomes != NO_ENTRY).sum(1).max(initial=0))
        items, outcomes = self.items[rows, :longest], outcomes[:, :longest]
        known = items != NO_ITEM
        ids = np.full((*items.shape, self.item_ids.shape[1]), PAD_ID, np.int64)
        ids[known] = self.item_ids[items[known]]
        prompts = None
        if self.item_prompts is not None:
            prompts = np.full(items.shape, NO_ITEM, np.int64)
            prompts[known] = self.item_prompts[items[known]]
        return {"history_ids": ids, "history_outcomes": outcomes.astype(np.int64)}, prompts


def read_histories(
    rows: Any, fields: Sequence[FlipField], items: HistoryItems | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, Column]]:
    """The histories of rows in any form of [`raw_columns`].

    Args:
        fields: of a row.
        items: what the entries name. Without them each entry must have all fields of its item.

    Returns: numbers of items and outcomes, see [`Histories`], and the columns that describe the items.

    Raises:
        ValueError: the column is missing; an entry lacks its item's key, a field of it or `clicked`; or names an item
            that is not among `items`. Names column and row.
    """
    field, of_item = history_field(list(fields)), fields_of_items(list(fields))
    assert field is not None
    single = names_by_kind(fields)[0][:1]  # which tells a row from a dict of columns
    lengths, entries = _entries(raw_columns(rows, [field.name], single, [field.name])[field.name], field)
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    wanted = of_item if items is None else [one for one in of_item if one.name == field.history_of]
    try:
        outcomes = Column.read(
            raw_columns(entries, [CLICKED])[CLICKED], FlipField(CLICKED, "float", nullable=False), canonical_label
        ).map({"0": NOT_CLICKED, "1": IS_CLICKED}, NO_ENTRY)
        if (outcomes == NO_ENTRY).any():
            raise RowError(CLICKED, int((outcomes == NO_ENTRY).argmax()), "expected 0 or 1")
        columns = read_columns(entries, wanted)
    except RowError as error:
        raise RowError(f"{field.name}.{error.column}", int(row_of[error.row]), error.reason) from None
    except ValueError as error:
        raise ValueError(
            f"column '{field.name}': each entry needs {', '.join([*(one.name for one in wanted), CLICKED])}: {error}"
        ) from None
    if items is None:
        codes = np.stack([column.codes for column in columns.values()], axis=1)
        first, numbers = distinct_rows(codes, max(len(column.values) for column in columns.values()) or 1)
        columns = {name: Column(column.values, column.codes[first]) for name, column in columns.items()}
    else:
        numbers = columns[field.history_of].map(items.numbers, NO_ITEM)
        if (numbers == NO_ITEM).any():
            entry = int((numbers == NO_ITEM).argmax())
            keys = columns[field.history_of]
            raise RowError(
                field.name,
                int(row_of[entry]),
                f"{field.history_of} {keys.values[keys.codes[entry]]!r} is no known item",
            )
        columns = items.columns
    # the last entries of each row, from the left
    ends = lengths.cumsum()
    kept = ends[row_of] - np.arange(len(row_of)) <= field.max_values
    lengths = np.minimum(lengths, field.max_values)
    filled = np.arange(lengths.max(initial=0)) < lengths[:, None]
    of_rows = np.full(filled.shape, NO_ITEM, np.int32)
    of_outcomes = np.full(filled.shape, NO_ENTRY, np.int8)
    of_rows[filled], of_outcomes[filled] = numbers[kept], outcomes[kept]
    return of_rows, of_outcomes, columns


def _entries(raw: Any, field: FlipField) -> tuple[np.ndarray, Any]:
    """How many entries each row has, and those of all rows as columns or a list of dicts."""
    if hasattr(raw, "combine_chunks") or hasattr(raw, "value_lengths"):  # Arrow: no row becomes a Python object
        raw = raw.combine_chunks() if hasattr(raw, "combine_chunks") else raw
        lengths = raw.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = raw.flatten()
        if getattr(flat.type, "num_fields", 0):
            return lengths, {flat.type.field(n).name: flat.field(n) for n in range(flat.type.num_fields)}
        return lengths, flat.to_pylist()
    listed = [[] if value is None or value is np.nan else value for value in raw]
    for row, value in enumerate(listed):
        if isinstance(value, str | bytes | dict) or not hasattr(value, "__len__"):
            raise RowError(field.name, row, f"a history is a list of entries, got {value!r}")
        lacking = next((entry for entry in value if not isinstance(entry, dict)), None)
        if lacking is not None:
            raise RowError(
                field.name, row, f"an entry is a dict with {field.history_of} and {CLICKED}, got {lacking!r}"
            )
    return np.array([len(value) for value in listed], np.int64), [entry for value in listed for entry in value]
