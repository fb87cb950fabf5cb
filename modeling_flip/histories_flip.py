# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Histories of rows -> numbers of items, and outcomes. An item is encoded once, however many histories it is in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .columns_flip import Column, RowError, distinct_rows, read_columns
from .containers_flip import plain_column
from .fields_flip import CLICKED, PAD_ID, FlipField, fields_of_items, history_field
from .rows_flip import RawRows, column_of, named_columns
from .values_flip import NULL_TYPES, Value, canonical_label

NO_ENTRY, NOT_CLICKED, IS_CLICKED = 0, 1, 2  # of `history_outcomes`
NO_ITEM = -1
NULL_HISTORY = "null, and the schema forbids nulls here; [] where nothing was before"


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
        """From a table with a row an item, in any form of [`RawRows`]; `fields` are those of a row."""
        history = history_field(fields)
        assert history is not None
        return cls(read_columns(rows, fields_of_items(fields)), history.history_of)


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
        history, at least 1; and `(rows, n)` the entries' prompts, -1 for none, where there is the text side."""
        outcomes = self.outcomes[rows]
        # at least one place: tables lose the shape of an empty array, and each weight has a gradient
        longest = int((outcomes != NO_ENTRY).sum(1).max(initial=1))
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
    rows: Any, fields: Sequence[FlipField], items: HistoryItems | None = None, width: int | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, Column]]:
    """The histories of rows in any form of [`RawRows`]: of each the last entries.

    Args:
        fields: of a row.
        items: what the entries name. Without them each entry must have all fields of its item.
        width: columns of the result; those of the longest history when not given.

    Returns: numbers of items and outcomes, see [`Histories`], and the columns that describe the items.

    Raises:
        ValueError: the column is missing; an entry lacks its item's key, a field of it or `clicked`; or names an item
            that is not among `items`. Names column and row.
    """
    field, of_item = history_field(fields), fields_of_items(fields)
    assert field is not None
    wanted = of_item if items is None else [one for one in of_item if one.name == field.history_of]
    clicked = FlipField(CLICKED, "float", nullable=False)
    raw = RawRows.of(rows, fields).columns([field])[field.name]
    lengths, entries = _entries(raw, field, [*wanted, clicked])
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    try:
        said = Column.read(entries.columns([clicked])[CLICKED], clicked, canonical_label)
        outcomes = said.map({"0": NOT_CLICKED, "1": IS_CLICKED}, NO_ENTRY)
        if (outcomes == NO_ENTRY).any():
            raise RowError(CLICKED, int((outcomes == NO_ENTRY).argmax()), "expected 0 or 1")
        columns = read_columns(entries, wanted)
    except RowError as error:
        raise RowError(f"{field.name}.{error.column}", int(row_of[error.row]), error.reason) from None
    if items is None:
        codes = np.stack([column.codes for column in columns.values()], axis=1)
        first, numbers = distinct_rows(codes, max(len(column.values) for column in columns.values()) or 1)
        columns = {name: column.take(first) for name, column in columns.items()}
    else:
        keys = columns[field.history_of]
        numbers = keys.map(items.numbers, NO_ITEM)
        if (numbers == NO_ITEM).any():
            entry = int((numbers == NO_ITEM).argmax())
            reason = f"{field.history_of} {keys.values[keys.codes[entry]]!r} is no known item"
            raise RowError(field.name, int(row_of[entry]), reason)
        columns = items.columns
    filled = np.arange(lengths.max(initial=1) if width is None else width) < lengths[:, None]
    of_rows = np.full(filled.shape, NO_ITEM, np.int32)
    of_outcomes = np.full(filled.shape, NO_ENTRY, np.int8)
    of_rows[filled], of_outcomes[filled] = numbers, outcomes
    return of_rows, of_outcomes, columns


def only_named(items: np.ndarray, columns: dict[str, Column]) -> tuple[np.ndarray, dict[str, Column]]:
    """The items that some histories name, with new numbers: numbers `(N, n)` as of [`Histories`], and the columns."""
    used, places = np.unique(items[items != NO_ITEM], return_inverse=True)
    renumbered = np.full_like(items, NO_ITEM)
    renumbered[items != NO_ITEM] = places
    return renumbered, {name: column.take(used) for name, column in columns.items()}


def _entries(raw: Any, field: FlipField, wanted: Sequence[FlipField]) -> tuple[np.ndarray, RawRows]:
    """How many entries of each row are read, and those of all rows.

    Args:
        wanted: what an entry must have.
    """
    raw = plain_column(raw)
    if hasattr(raw, "combine_chunks"):
        raw = raw.combine_chunks()
    others = [one.name for one in wanted if one.name not in (field.history_of, CLICKED)]
    needs = f"{field.history_of}, {CLICKED}" + (
        f" and, as no items are given (items=, --items), {', '.join(others)}" if others else ""
    )
    if getattr(getattr(getattr(raw, "type", None), "value_type", None), "num_fields", 0):
        # lists of structs: no row becomes a Python object
        if raw.null_count and not field.nullable:
            row = int(np.flatnonzero(raw.is_null().to_numpy(zero_copy_only=False))[0])
            raise RowError(field.name, row, NULL_HISTORY)
        lengths = raw.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        ends = np.repeat(lengths.cumsum(), lengths)
        flat = raw.flatten()
        kind = flat.type
        parts = flat.take(np.flatnonzero(ends - np.arange(len(ends)) <= field.max_values)).flatten()
        have = [kind.field(number).name for number in range(kind.num_fields)]
        if _lacking(have, wanted):
            raise ValueError(f"column '{field.name}': an entry needs {needs}; the entries have {', '.join(have)}.")
        entries = RawRows(have, lambda names: [parts[have.index(name)] for name in names])
        return np.minimum(lengths, field.max_values), entries
    listed = raw.to_pylist() if hasattr(raw, "to_pylist") else list(raw)
    kept: list[list[Mapping]] = []
    known: dict[tuple, str | None] = {}  # the names of an entry -> what it lacks
    for row, value in enumerate(listed):
        if type(value).__name__ in NULL_TYPES or (isinstance(value, float) and value != value):
            if not field.nullable:
                raise RowError(field.name, row, NULL_HISTORY)
            value = []
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
            raise RowError(field.name, row, f"a history is a list of entries, got {value!r}")
        kept.append(list(value)[-field.max_values :])
        for entry in kept[-1]:
            if not isinstance(entry, Mapping):
                raise RowError(
                    field.name, row, f"an entry is a dict with {field.history_of} and {CLICKED}, got {entry!r}"
                )
            names = tuple(entry)
            if names not in known:
                known[names] = _lacking(names, wanted)
            if known[names]:
                raise RowError(field.name, row, f"an entry needs {needs}; one has no '{known[names]}'")
    entries = RawRows.of([entry for value in kept for entry in value])
    return np.array([len(value) for value in kept], np.int64), entries


def _lacking(names: Sequence, wanted: Sequence[FlipField]) -> str | None:
    """The first field that an entry of these names lacks."""
    named = named_columns(names)
    return next((field.name for field in wanted if column_of(field, named) is None), None)
