# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The items that users are shown: their values, their feature ids, and what the PLM says of their texts, each computed
once. A catalogue never changes: another one takes its place.

A saved one is a folder: `catalogue.json`, `items.parquet` (the items' values in canonical form, see [`Column`]) and
`states.safetensors`, which is mapped into memory when it is read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flip_ctr.data.outputs import new_folder
from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.modeling_flip.values_flip import Value
from flip_ctr.serve.candidate_model import TextParts

MANIFEST, ITEMS, STATES = "catalogue.json", "items.parquet", "states.safetensors"
SHOWN = "shown"  # the column that says whether an item is ranked
FORMAT = 1


@dataclass(frozen=True)
class Catalogue:
    """N items.

    Args:
        key: the field that tells items apart.
        columns: of the key and of all fields that the items have.
        ids: `(N, slots of the items' fields)` int32 local feature ids.
        text: what the items' prompts say; None where nothing of it can be kept.
        shown: `(N,)` bool, whether an item is ranked; one that is not may still be in histories.
    """

    key: FlipField
    columns: dict[str, Column]
    ids: torch.Tensor
    text: TextParts | None
    shown: np.ndarray

    def __len__(self) -> int:
        return len(self.shown)

    @cached_property
    def keys(self) -> np.ndarray:
        """`(N,)` the items' keys as canonical values."""
        column = self.columns[self.key.name]
        return np.array(column.values, object)[column.codes]

    @cached_property
    def numbers(self) -> dict[Value, int]:
        """The number of each key's item."""
        return dict(zip(self.keys.tolist(), range(len(self))))

    @cached_property
    def known(self) -> dict[Value, int]:
        """The number of the item of each key that is ranked."""
        rows = np.flatnonzero(self.shown)
        return dict(zip(self.keys[rows].tolist(), rows.tolist()))

    @cached_property
    def answers(self) -> np.ndarray:
        """`(N,)` the keys as rows have them: of type int, float or bool, or text."""
        plain = {"int": int, "float": float, "bool": lambda value: value == "true"}.get(self.key.type)
        return self.keys if plain is None else np.array([plain(key) for key in self.keys], object)

    @cached_property
    def version(self) -> str:
        """A digest of the items, the same wherever the same ones stand in the same order."""
        sink = pa.BufferOutputStream()
        table = self.as_table()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return blake2b(sink.getvalue(), digest_size=6).hexdigest()

    def take(self, rows: np.ndarray) -> "Catalogue":
        """Some items, by their numbers."""
        picked = torch.from_numpy(rows).to(self.ids.device)
        return Catalogue(
            self.key,
            {name: column.take(rows) for name, column in self.columns.items()},
            self.ids[picked],
            self.text and TextParts(*(None if part is None else part[picked] for part in self.text)),
            self.shown[rows],
        )

    def with_items(self, others: "Catalogue") -> "Catalogue":
        """With other items too, which replace those of the same key. Items keep their numbers."""
        places = np.array([self.numbers.get(key, -1) for key in others.keys.tolist()], np.int64)
        rows = np.arange(len(self) + int((places < 0).sum()))
        rows[places[places >= 0]] = len(self) + np.flatnonzero(places >= 0)
        rows[len(self) :] = len(self) + np.flatnonzero(places < 0)
        columns = {name: joined([column, others.columns[name]]) for name, column in self.columns.items()}
        text = self.text and TextParts(
            *(None if one is None else torch.cat([one, other]) for one, other in zip(self.text, others.text))
        )
        both = Catalogue(
            self.key, columns, torch.cat([self.ids, others.ids]), text, np.concatenate([self.shown, others.shown])
        )
        return both.take(rows)

    def without(self, keys: Sequence[Value]) -> "Catalogue":
        """With some items no longer ranked. `ValueError` where one is not."""
        rows = self.find(keys)
        shown = self.shown.copy()
        shown[rows] = False
        return replace(self, shown=shown)

    @cached_property
    def _by_answer(self) -> dict[Any, int]:
        rows = np.flatnonzero(self.shown)
        return dict(zip(self.answers[rows].tolist(), rows.tolist()))

    def find_answers(self, keys: Sequence) -> np.ndarray | None:
        """The numbers of items that are ranked, by their keys as `answers` has them; None where one is in another form,
        or unknown. Reading many keys into canonical form takes longer than ranking them."""
        if set(map(type, keys)) - {type(one) for one in self.answers[:1]}:
            return None
        try:
            return np.array([self._by_answer[key] for key in keys], np.int64)
        except KeyError:
            return None

    def find(self, keys: Sequence[Value]) -> np.ndarray:
        """The numbers of items that are ranked. `ValueError` where there is none of a key."""
        known = self.known
        unknown = [key for key in keys if key not in known]
        if unknown:
            more = f", and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
            raise ValueError(f"no item of the catalogue has {self.key.name} {unknown[0]!r}{more}")
        return np.array([known[key] for key in keys], np.int64)

    def as_table(self) -> pa.Table:
        """The items' values in canonical form, a row an item, and `shown`."""
        columns = {}
        for name, column in self.columns.items():
            values = [list(value) if isinstance(value, tuple) else value for value in column.values]
            columns[name] = pa.array(values).take(pa.array(column.codes))
        return pa.table(columns | {SHOWN: pa.array(self.shown)})

    # --- on disk

    def save(self, folder: str | Path, model_digest: str, overwrite: bool = False) -> None:
        """Writes the folder, whole or not at all.

        Args:
            model_digest: of the model that its texts were read by.
        """
        text = (
            {} if self.text is None else {name: part for name, part in self.text._asdict().items() if part is not None}
        )
        tensors = {name: part.cpu().contiguous() for name, part in ({"ids": self.ids} | text).items()}
        about = {"format": FORMAT, "key": self.key.to_dict(), "items": len(self), "model": model_digest}
        place = Path(folder).expanduser().resolve()
        if place.exists() and not overwrite:
            raise FileExistsError(f"{place} is there already; name another folder, or replace it with overwrite=True")
        if place.exists() and not (place / MANIFEST).is_file():
            raise FileExistsError(f"{place} is no catalogue (it has no {MANIFEST}), and is not replaced")
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(place, overwrite) as new:
            new.mkdir()
            (new / MANIFEST).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            pq.write_table(self.as_table(), new / ITEMS, write_page_checksum=True)
            save_file(tensors, new / STATES)

    @classmethod
    def load(cls, folder: str | Path, model_digest: str, device: torch.device) -> "Catalogue":
        """Reads a folder that `save` has written.

        Raises:
            ValueError: a file is missing or damaged, or the texts were read by another model.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if about["format"] > FORMAT:
                raise ValueError(f"format {about['format']}, and this code reads {FORMAT}; install a newer flip-ctr")
            if about["model"] != model_digest:
                raise ValueError("its texts were read by another model, or with other vocabularies; build it anew")
            table = pq.read_table(folder / ITEMS, page_checksum_verification=True)
            with safe_open(folder / STATES, "pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, SafetensorError) as error:
            raise ValueError(f"catalogue {folder}: {error}") from error
        ids, shown = tensors.pop("ids"), table.column(SHOWN).to_numpy()
        if not len(ids) == len(table) == about["items"]:
            raise ValueError(f"catalogue {folder}: {ITEMS} has {len(table)} items, and {STATES} {len(ids)}")
        columns = {name: read_back(table.column(name)) for name in table.column_names if name != SHOWN}
        return cls(FlipField.from_dict(about["key"]), columns, ids, TextParts(**tensors) if tensors else None, shown)


def distinct(column: Column) -> Column:
    """The same column with each value once."""
    places: dict[Value, int] = {}
    codes = np.array([places.setdefault(value, len(places)) for value in column.values], np.int64)
    return Column(list(places), codes[column.codes])


def joined(columns: Sequence[Column]) -> Column:
    """The rows of some columns, one behind the other; a value that several columns have is there several times."""
    starts = np.cumsum([0, *(len(column.values) for column in columns)])
    codes = np.concatenate([start + column.codes for start, column in zip(starts, columns)])
    return Column(list(chain.from_iterable(column.values for column in columns)), codes)


def read_back(values: pa.ChunkedArray) -> Column:
    """A column of canonical values."""
    if pa.types.is_list(values.type):
        whole = [None if value is None else tuple(value) for value in values.to_pylist()]
        return distinct(Column(whole, np.arange(len(whole))))
    encoded = values.combine_chunks().dictionary_encode(null_encoding="encode")
    return Column(encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64))


def key_field(fields: Sequence[FlipField], names: Sequence[str], item_key: str | None) -> FlipField:
    """The field that tells items apart.

    Args:
        fields: of the model.
        names: those of them that items have.
        item_key: a column; when None the key of the items in histories, or the first field of items that is a key.

    Raises:
        ValueError: none is.
    """
    history = next((field for field in fields if field.is_history), None)
    # a user's key comes last: a table of rows may hold it before the item's
    keys = sorted(
        (field for field in fields if field.key and field.name in names), key=lambda one: one.entity == "user"
    )
    name = item_key or (history.history_of if history is not None else next((field.name for field in keys), None))
    if name is None:
        raise ValueError("items: no column of theirs is a key; say which one tells them apart by item_key (--item_key)")
    return next((field for field in fields if field.name == name), FlipField(name))
