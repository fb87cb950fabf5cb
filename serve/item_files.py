# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The items of a catalogue, and what users did with them, in files and dataset folders."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from flip_ctr.data.readers.dataset_items import read_dataset_items
from flip_ctr.data.readers.dataset_schema import SCHEMA_NAME
from flip_ctr.data.readers.row_reader import RowReader, columns_of_file, whole_table
from flip_ctr.modeling_flip.columns_flip import read_columns
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.values_flip import Value
from flip_ctr.serve.catalogue import key_field


def fields_of_file(path: str, processor: FlipProcessor, option: str) -> list[FlipField]:
    """The model's fields that a file of rows has columns of; `option` is what names the file."""
    extractor = processor.feature_extractor
    return columns_of_file(path, extractor.all_fields, extractor.reading, option)


def read_items(path: str, processor: FlipProcessor, item_key: str | None = None, entity: str = "item") -> pa.Table:
    """The items, or what else is of that entity, in a file, in the format of the model's data or a plain one of its
    ending: the columns that are fields, and the key. A side table of that data has its own names of both. Of a dataset
    folder see [`read_dataset_items`].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or lacks the key; or the folder is damaged.
    """
    if (Path(path) / SCHEMA_NAME).is_file():
        every = [field for field in processor.feature_extractor.all_fields if not field.is_history]
        key = key_field(every, [field.name for field in every if field.entity == entity], item_key)
        entity = key.entity if key in every else entity
        columns = [field.name for field in every if field.entity == entity]
        return read_dataset_items(path, key.name, list(dict.fromkeys([key.name, *columns])))
    every = [field for field in processor.feature_extractor.all_fields if not field.is_history]
    reading = processor.feature_extractor.reading
    named = [{}, *({**join["on"], **(join.get("columns") or {})} for join in reading.get("joins", ()))]
    called = [[replace(one, column=names.get(one.name, one.column)) for one in every] for names in named]
    there = columns_of_file(path, [one for some in called for one in some], reading, "items")
    fields = max(([one for one in some if one in there] for some in called), key=len)
    also = {item_key: None} if item_key and item_key not in [field.name for field in fields] else {}
    reader = RowReader([path], fields, reading, also=also, option="items")
    return whole_table(reader, "items")


def read_pairs(path: str, processor: FlipProcessor, user: FlipField, item: FlipField) -> dict[Value, list[Value]]:
    """The items of each user in a file with the keys of both, in canonical form; rows without a user are nobody's."""
    reader = RowReader([path], [user, item], processor.feature_extractor.reading, option="--exclude")
    columns = read_columns(whole_table(reader, "--exclude"), [user, item])
    users, items = ([column.values[code] for code in column.codes] for column in columns.values())
    found: dict[Value, list[Value]] = {}
    for one, other in zip(users, items):
        if one is None:  # nobody's
            continue
        found.setdefault(one, []).append(other)
    return found
