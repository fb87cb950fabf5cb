# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A split as its users and all items of its dataset folder: who clicked what, and who had met what before."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from flip_ctr.data.readers.click_rates import COUNT, RATE
from flip_ctr.data.readers.dataset_items import places_of, read_dataset_items
from flip_ctr.data.readers.dataset_schema import SCHEMA_NAME, SPLITS, DatasetSchema
from flip_ctr.data.readers.shards import ITEMS_NAME, SplitRows, has_split, open_splits
from flip_ctr.modeling_flip.fields_flip import FlipField, history_field


@dataclass
class SplitCatalogue:
    """U users and I items.

    Args:
        key: the column that tells items apart.
        items: a row an item, its fields: of `items.parquet` where the folder has one, of others the last row of it.
        users: a row a user, all fields but the items': the user's first row in the split.
        clicked, seen: `(U, I)` not zero where the user clicked the item in the split, and where the user has a row of
            the item in an earlier one (of train, validation, test).
        lost: how many rows of the split are of no user, or of no item.
    """

    key: str
    items: pa.Table
    users: pa.Table
    clicked: csr_array
    seen: csr_array
    lost: dict[str, int]


def item_field(
    schema: DatasetSchema, name: str | None = None, unknown: str = "--item_key must say which field is an item's key"
) -> FlipField:
    """The field that tells items apart, by its name or else by what the dataset says: the key of histories, or the only
    key that is not a user's (of several the one that is in the key of rows). `unknown` begins the error where none, or
    more than one, is found.

    Raises:
        ValueError: there is none, or several may be, or a field is of user and item together.
    """
    history = history_field(schema.fields)
    if name is None and history is not None:
        name = history.history_of
    owner = next((field.entity for field in schema.fields if field.name == schema.user_column), "user")
    keys = [field for field in schema.fields if field.entity != owner and (field.name == name or field.key)]
    found = [field for field in keys if field.name == name] if name else keys
    if len(found) > 1:
        found = [field for field in found if field.name in schema.protocol.get("row_key", ())]
    if len(found) != 1:
        there = ", ".join(field.name for field in keys) or "none"
        what = f"--item_key {name} is no field of an item" if name else unknown
        raise ValueError(f"{what}; keys in {SCHEMA_NAME}: {there}")
    if "statistics" in schema.protocol:
        for field in schema.fields:
            if field.entity == "context" and field.name.endswith((RATE, COUNT)):
                raise ValueError(
                    f"'{field.name}' counts rows by several columns, and only rows have such a number, not each user "
                    "with each item; prepare the dataset without these --statistics"
                )
    return found[0]


def read_split_catalogue(rows: SplitRows, labels: np.ndarray, item_key: str | None = None) -> SplitCatalogue:
    """Reads all of it from the dataset folder.

    Args:
        rows: all rows of the split.
        labels: `(N,)` their clicks.
        item_key: see [`item_field`].

    Raises:
        ValueError: as of [`item_field`] and [`SplitRows`]; an item of a row is not in `items.parquet`; or no row has a
            user.
    """
    schema, item = rows.schema, item_field(rows.schema, item_key)
    folder, user, key = rows.dataset_dir, schema.user_column, item.name
    splits = open_splits(folder, {name: None for name in SPLITS if has_split(folder, name)})
    of_items = [field.name for field in schema.fields if field.entity == item.entity and not field.is_history]
    of_users = [field.name for field in schema.fields if field.name not in of_items]
    items = read_dataset_items(folder, key, of_items)
    rows.check_same()
    pairs = _pairs(rows, user, key)
    users = pc.unique(pairs[user]).drop_null()
    if not len(users):
        raise ValueError(f"{folder}: column '{user}' of split '{rows.split}' is null in every row: there are no users")
    numbers, places = places_of(pairs[user], users), places_of(pairs[key], items[key])
    strange = (places < 0) & pairs[key].is_valid().to_numpy()
    if strange.any():
        raise ValueError(f"{folder / ITEMS_NAME} lacks {key} {pairs[key][int(strange.argmax())]}, which a row has")
    _, first = np.unique(numbers[numbers >= 0], return_index=True)
    shape = len(users), len(items)
    earlier = SPLITS[: SPLITS.index(rows.split)]
    before = [_pairs(splits[name], user, key) for name in earlier if name in splits]
    seen = [np.empty((2, 0), np.int64)] + [
        np.stack([places_of(one[user], users), places_of(one[key], items[key])]) for one in before
    ]
    return SplitCatalogue(
        key,
        items,
        rows.take(np.flatnonzero(numbers >= 0)[first], of_users),
        _marks(*np.stack([numbers, places])[:, labels > 0], shape),
        _marks(*np.concatenate(seen, axis=1), shape),
        {"rows_without_user": int((numbers < 0).sum()), "rows_without_item": int((places < 0).sum())},
    )


def _pairs(rows: SplitRows, *columns: str) -> pa.Table:
    return pa.concat_tables(part for _, part in rows.parts(dict.fromkeys(columns)))


def _marks(users: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> csr_array:
    both = (users >= 0) & (items >= 0)
    return csr_array((np.ones(both.sum()), (users[both], items[both])), shape)
