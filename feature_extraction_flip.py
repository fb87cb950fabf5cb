# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The tabular view: rows -> canonical values -> feature ids, with one vocabulary per field.

Every value has one canonical form, a string made by the schema's type, which training, evaluation, prediction and the
prompt share: else a zip code `02139` becomes 2139, an age 25.0, and every score is silently wrong.
"""

import hashlib
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin

from .configuration_flip import NULL_ID, NUM_RESERVED_IDS, UNK_ID, FlipField, read_fields

HASH_KEY_VARIABLE = "FLIP_HASH_KEY"
NULL_TYPES = ("NoneType", "NAType", "NaTType")  # by name: pandas must not be imported here


class RowError(ValueError):
    """A value that cannot be read; whoever read only a part of a file knows the row's place in it.

    Args:
        column: name of the column.
        row: position in the rows that were read.
        reason: what is wrong with the value.
    """

    def __init__(self, column: str, row: int, reason: str):
        super().__init__(f"column '{column}', row {row}: {reason}.")
        self.column, self.row, self.reason = column, row, reason


def canonical_value(value: Any, type_name: str) -> str | None:
    """The canonical form of a value of a field of that type; None for a null (None, NaN, NA, or empty text).

    Raises:
        ValueError: the value is not of that type.
    """
    if type(value).__name__ in NULL_TYPES or value != value:
        return None
    if isinstance(value, str):
        value = unicodedata.normalize("NFC", " ".join(value.split()))
        if not value:
            return None
    if type_name == "string":
        if not isinstance(value, str):
            hint = "; read the file with the schema's types, so that leading zeros survive"
            raise ValueError(f"expected text, got {type(value).__name__} {value!r}{hint}")
        return value
    is_bool = isinstance(value, bool | np.bool_)
    if type_name == "bool":
        if is_bool or (isinstance(value, int | np.integer) and value in (0, 1)):
            return "true" if value else "false"
        if isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
            return "true" if value.lower() in ("true", "1") else "false"
    elif isinstance(value, str | int | float | np.integer | np.floating) and not is_bool:
        try:
            number = float(value)
            if type_name == "int":
                if isinstance(value, int | np.integer) or (isinstance(value, str) and "." not in value):
                    return str(int(value))  # not through a float, which loses digits above 2**53
                if number.is_integer():
                    return str(int(number))
            elif np.isfinite(number):
                number = value if isinstance(value, np.floating) else np.float64(number)
                return np.format_float_positional(number, unique=True, trim="-")  # shortest form that reads back the same
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"expected {type_name}, got {type(value).__name__} {value!r}")


def canonical_label(value: Any, type_name: str) -> str | None:
    """As `canonical_value`, and a bool is 0 or 1."""
    return canonical_value(int(value) if isinstance(value, bool | np.bool_) else value, type_name)


class Column:
    """One column, each distinct value once: `values[codes[row]]` is the canonical value of a row.

    Attributes:
        values: distinct canonical values (None for null), in order of first appearance.
        codes: `(rows,)` positions in `values`.
    """

    def __init__(self, values: list[str | None], codes: np.ndarray):
        self.values, self.codes = values, codes

    @classmethod
    def read(cls, raw, field: FlipField, convert=canonical_value) -> "Column":
        """Reads a sequence, or an Arrow (chunked) array. `ValueError` names column and row of a value of another type.

        `convert` makes the canonical value from a raw one and the field's type.
        """
        if hasattr(raw, "dictionary_encode"):  # Arrow: factorised without a Python loop over the rows
            raw = raw.combine_chunks() if hasattr(raw, "combine_chunks") else raw
            encoded = raw.dictionary_encode()
            distinct = [*encoded.dictionary.to_pylist(), None]
            codes = encoded.indices.fill_null(len(distinct) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
        else:
            distinct, codes = cls._factorize(raw)
        canonical, translate = {}, np.empty(max(len(distinct), 1), np.int64)
        used = set(np.unique(codes).tolist())
        for code, value in enumerate(distinct):
            if code not in used:
                continue
            try:
                text = convert(value, field.type)
                if text is None and not field.nullable:
                    raise ValueError("null, and the schema forbids nulls here")
            except ValueError as error:
                row = int((codes == code).argmax())
                raise RowError(field.name, row, str(error)) from None
            translate[code] = canonical.setdefault(text, len(canonical))
        return cls(list(canonical), translate[codes])

    @staticmethod
    def _factorize(raw) -> tuple[list, np.ndarray]:
        raw = raw.tolist() if hasattr(raw, "tolist") else raw
        seen, distinct, codes = {}, [], np.empty(len(raw), np.int64)
        for row, value in enumerate(raw):
            try:
                code = seen.setdefault((type(value), value), len(distinct))  # the type too: 1 == 1.0 == True
            except TypeError:  # unhashable: not a single value; named by canonical_value
                code = len(distinct)
            if code == len(distinct):
                distinct.append(value)
            codes[row] = code
        return distinct, codes

    def map(self, table: Mapping[str | None, int], default: int) -> np.ndarray:
        """`table[value]` of every row, `(rows,)`."""
        return np.array([table.get(value, default) for value in self.values], np.int64)[self.codes]


def is_one_row(rows: Any, names: Sequence[str]) -> bool:
    """Whether `rows` is one row, a dict of scalars, and not a dict of columns; the first named column that it has tells."""
    if hasattr(rows, "iloc"):  # pandas: a Series is a row, a frame is not
        return not hasattr(rows, "columns")
    if not (isinstance(rows, Mapping) or hasattr(rows, "keys")):
        return False
    first = next((rows[name] for name in names if name in rows), ())
    return isinstance(first, str | bytes) or np.ndim(first) == 0


def raw_columns(rows: Any, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The named columns of rows in any of the forms that people have them in; other columns are ignored.

    Args:
        rows: a dict of columns, one row as a dict of scalars, a list of dicts, a pandas or Arrow table, or a `datasets`
            dataset or batch.
        names: columns that must be there.
        optional: columns to take where they are there.

    Raises:
        ValueError: a column is missing (its name, and the row where only some rows lack it), or columns differ in length.
        TypeError: `rows` has another form.
    """
    if hasattr(rows, "with_format"):  # a datasets.Dataset: its Arrow table
        wanted = [name for name in (*names, *optional) if name in rows.column_names]
        rows = rows.select_columns(wanted).with_format("arrow")[:]
    if hasattr(rows, "column_names") and hasattr(rows, "column"):  # Arrow
        have, get = list(rows.column_names), rows.column
    elif hasattr(rows, "columns") and hasattr(rows, "iloc"):  # pandas
        have, get = list(rows.columns), lambda name: rows[name].tolist()
    elif isinstance(rows, Mapping) or hasattr(rows, "keys"):
        have = list(rows.keys())
        get = (lambda name: [rows[name]]) if is_one_row(rows, (*names, *optional)) else rows.__getitem__
    elif isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows):
        have = list(dict.fromkeys(key for row in rows for key in row)) if rows else list(names)  # no rows: no column is missing
        for name in names:
            lacking = next((i for i, row in enumerate(rows) if name not in row), None)
            if lacking is not None:
                raise ValueError(f"column '{name}' is missing in row {lacking}; it has: {', '.join(map(str, rows[lacking]))}.")
        get = lambda name: [row.get(name) for row in rows]  # noqa: E731
    else:
        raise TypeError(
            "rows must be a dict of columns, a dict, a list of dicts, a pandas or Arrow table or a datasets dataset; "
            f"got {type(rows).__name__}."
        )
    missing = [name for name in names if name not in have]
    if missing:
        raise ValueError(f"column(s) {', '.join(map(repr, missing))} missing; the rows have: {', '.join(map(str, have))}.")
    columns = {name: get(name) for name in (*names, *optional) if name in have}
    for name, column in columns.items():
        if isinstance(column, str | bytes) or not hasattr(column, "__len__"):
            raise ValueError(f"column '{name}' holds one value, {column!r}, where other columns hold one for each row.")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}.")
    return columns


def read_columns(rows: Any, fields: Sequence[FlipField]) -> dict[str, Column]:
    """The fields' columns of rows in any form of [`raw_columns`]; errors name column and row (`ValueError`)."""
    raw = raw_columns(rows, [field.name for field in fields])
    return {field.name: Column.read(raw[field.name], field) for field in fields}


def add_counts(counts: dict[str, dict[str | None, int]], columns: Mapping[str, Column]) -> None:
    """Adds a part of the rows to `counts`: of each column the rows of each canonical value."""
    for name, column in columns.items():
        seen = counts.setdefault(name, {})
        for value, rows in zip(column.values, np.bincount(column.codes, minlength=len(column.values)).tolist()):
            seen[value] = seen.get(value, 0) + rows


class FlipFeatureExtractor(FeatureExtractionMixin):
    """Rows -> `feature_ids`. Per field, ids 0 to 3 are pad, mask, `[UNK]` and `[NULL]`; values follow in a fixed order.

    Args:
        fields: the fields of a row in order, see [`FlipField`] (dicts or objects).
        vocabularies: per ID-side field the list of its canonical values; the value at position i has id i + 4.
        min_frequency: values seen in fewer training rows got no id of their own; they are `[UNK]`.
        hashed_fields: fields whose vocabularies hold keyed hashes of the values (BLAKE2b), not the values.
        hash_salt: the published part of the key.
        hash_check: tells a wrong secret part of the key, which is the environment variable `FLIP_HASH_KEY`; None where the key
            has no secret part. Without one, whoever has the checkpoint can still test a guessed value.
    """

    model_input_names = ["feature_ids"]
    _auto_class = "AutoFeatureExtractor"  # saving copies the code

    def __init__(self, fields=None, vocabularies: list[list[str]] | None = None, min_frequency: int = 1,
                 hashed_fields: list[str] | None = None, hash_salt: str | None = None, hash_check: str | None = None,
                 **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        self.fields = [field.to_dict() for field in read_fields(fields)]
        self.vocabularies = vocabularies or [[] for _ in self.id_fields]
        self.min_frequency = min_frequency
        self.hashed_fields, self.hash_salt, self.hash_check = hashed_fields or [], hash_salt, hash_check
        if len(self.vocabularies) != len(self.id_fields):
            raise ValueError(f"{len(self.vocabularies)} vocabularies for {len(self.id_fields)} ID-side fields.")
        self._tables = None

    @property
    def all_fields(self) -> list[FlipField]:
        """All fields in order; those on the ID side with the size of their vocabulary."""
        fields, sizes = read_fields(self.fields), iter(self.vocabularies)
        for field in fields:
            field.vocab_size = NUM_RESERVED_IDS + len(next(sizes)) if field.on_id_side else None
        return fields

    @property
    def id_fields(self) -> list[FlipField]:
        return [field for field in read_fields(self.fields) if field.on_id_side]

    @classmethod
    def from_counts(cls, counts: Mapping[str, Mapping[str | None, int]], fields, min_frequency: int = 1,
                    hash_user_values: bool = False) -> "FlipFeatureExtractor":  # fmt: skip
        """Builds the vocabularies of the training split: values by falling frequency, ties in order of the value.

        With `hash_user_values` those of the fields of entity `user` hold keyed hashes, in order of the hash. `ValueError` where there
        is no such field.

        Args:
            counts: of each field in how many rows each canonical value occurs (None for null), see [`add_counts`].
        """
        vocabularies = []
        for field in read_fields(fields):
            if field.on_id_side:
                counted = [(-n, v) for v, n in counts[field.name].items() if v is not None and n >= min_frequency]
                vocabularies.append([value for _, value in sorted(counted)])
        extractor = cls(fields=fields, vocabularies=vocabularies, min_frequency=min_frequency)
        if hash_user_values:
            extractor._hash_vocabularies("user")
        return extractor

    def _hash_vocabularies(self, entity: str) -> None:
        self.hashed_fields = [field.name for field in self.id_fields if field.entity == entity]
        if not self.hashed_fields:
            raise ValueError(f"no field on the ID side has entity {entity!r}: there is nothing to hash.")
        secret = os.environ.get(HASH_KEY_VARIABLE, "")
        hashed = [words for field, words in zip(self.id_fields, self.vocabularies) if field.name in self.hashed_fields]
        # of the values, so that the same rows give the same ids; and of the secret, without which nothing can be tried on it
        content = hashlib.blake2b(repr(hashed).encode(), key=hashlib.sha256(secret.encode()).digest(), digest_size=16)
        self.hash_salt = content.hexdigest()
        key = self._hash_key(secret)
        if secret:
            self.hash_check = self._hash(key, "", "")
        for field, vocabulary in zip(self.id_fields, self.vocabularies):
            if field.name in self.hashed_fields:
                # in order of the hash: by frequency or value, the order itself would tell who is who
                vocabulary[:] = sorted(self._hash(key, field.name, value) for value in vocabulary)

    def _hash_key(self, secret: str) -> bytes:
        return hashlib.blake2b(f"{self.hash_salt}{secret}".encode(), digest_size=32).digest()

    @staticmethod
    def _hash(key: bytes, field: str, value: str) -> str:
        # the field is part of it: the same value in two fields must not look the same
        return hashlib.blake2b(f"{field}\0{value}".encode(), key=key, digest_size=16).hexdigest()

    def _hashed(self, column: Column, field: str) -> Column:
        """The column as its field's vocabulary has it."""
        if field not in self.hashed_fields or all(value is None for value in column.values):
            return column
        secret = ""
        if self.hash_check is not None:
            secret = os.environ.get(HASH_KEY_VARIABLE, "")
            if self._hash(self._hash_key(secret), "", "") != self.hash_check:
                state = "holds another key" if secret else "is not set"
                raise ValueError(
                    f"column '{field}': the vocabularies of {', '.join(self.hashed_fields)} hold hashes made with a secret key, "
                    f"and the environment variable {HASH_KEY_VARIABLE} {state}. Set it to that key, or leave these columns null."
                )
        key = self._hash_key(secret)
        return Column([None if value is None else self._hash(key, field, value) for value in column.values], column.codes)

    def read(self, rows: Any) -> dict[str, Column]:
        """The fields' columns of rows in any form of [`raw_columns`]; errors name column and row (`ValueError`)."""
        return read_columns(rows, read_fields(self.fields))

    def encode(self, columns: Mapping[str, Column]) -> np.ndarray:
        """Columns -> local feature ids `(rows, ID-side fields)`. A value outside the vocabulary is `[UNK]`."""
        if self._tables is None:
            self._tables = [
                {None: NULL_ID} | {value: i for i, value in enumerate(vocabulary, NUM_RESERVED_IDS)}
                for vocabulary in self.vocabularies
            ]
        ids = [
            self._hashed(columns[field.name], field.name).map(table, UNK_ID)
            for field, table in zip(self.id_fields, self._tables)
        ]
        return np.stack(ids, axis=1)

    def __call__(self, rows: Any, return_tensors: str | None = None) -> BatchFeature:
        """Rows -> `feature_ids` `(rows, ID-side fields)`, an int64 array unless `return_tensors="pt"`."""
        return BatchFeature({"feature_ids": self.encode(self.read(rows))}, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        # not deep-copied as the base class does: vocabularies can be large, and nothing changes them
        saved = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        return saved | {"feature_extractor_type": type(self).__name__}


__all__ = ["FlipFeatureExtractor"]
