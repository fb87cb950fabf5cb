# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The tabular view: columns of canonical values -> feature ids, by what was learned on the training rows: a vocabulary
of each field, or the bounds of its buckets."""

import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import cached_file

from .calibration_flip import corrected  # noqa: F401
from .columns_flip import Column, read_columns
from .configuration_flip import FlipConfig  # noqa: F401  which says what transformers is needed
from .containers_flip import UnknownContainer  # noqa: F401
from .fields_flip import NULL_ID, NUM_RESERVED_IDS, PAD_ID, UNK_ID, FlipField, read_fields, slot_fields
from .fingerprint_flip import AGAIN, HUB_ARGUMENTS, digest, fields_digest
from .rows_flip import RawRows  # noqa: F401
from .values_flip import Value

HASH_KEY_VARIABLE = "FLIP_HASH_KEY"
VOCABULARY_FILE = "vocabularies.txt"
MAX_JSON_VALUES = 100_000  # JSON of a million values takes seconds to load: more lie in a file of their own
# of each field on the ID side: canonical value (of a multi-valued field each of its values), or None for null -> number
# of rows
Counts = dict[str, dict[str | None, int]]


def id_side_values(value: Value, field: FlipField) -> tuple[str, ...]:
    """What the ID side has of a field's canonical value: `max_values` of a multi-valued one, and nothing of a null."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value[: field.max_values]


def add_counts(counts: Counts, columns: Mapping[str, Column], fields: Sequence[FlipField | dict]) -> None:
    """Adds a chunk of the training rows to the counts that [`FlipFeatureExtractor.from_counts`] builds from; start with
    `{}`.

    What is learned from many chunks is what is learned from all rows at once. Fields whose values are hashed have
    nothing to learn, and are not counted; of logarithmic buckets only the smallest and the largest number are kept.
    """
    for field in read_fields(fields):
        if not field.on_id_side or not (field.has_vocabulary or field.kind == "numeric"):
            continue
        column, of_field = columns[field.name], counts.setdefault(field.name, {})
        for value, rows in zip(column.values, np.bincount(column.codes, minlength=len(column.values)).tolist()):
            for one in id_side_values(value, field) or (None,):
                of_field[one] = of_field.get(one, 0) + rows
        if field.kind == "numeric" and field.bucketing == "log":
            known = sorted((value for value, rows in of_field.items() if value is not None and rows), key=float)
            counts[field.name] = {
                value: of_field[value] for value in (*known[:1], *known[-1:], None) if value in of_field
            }


def count_rows(rows: Any, fields: Sequence[FlipField]) -> Counts:
    """The counts of a split on disk, which is read part by part, or of columns."""
    counts: Counts = {}
    if hasattr(rows, "map_parts"):
        for columns in rows.map_parts(lambda part: read_columns(part, fields), [field.name for field in fields]):
            add_counts(counts, columns, fields)
    else:
        add_counts(counts, rows, fields)
    return counts


def counts_of(counts: Counts, field: FlipField) -> dict[str | None, int]:
    """The counts of one field. `ValueError` where it was not counted."""
    if field.name not in counts:
        raise ValueError(f"field '{field.name}' has no counts; there are those of {', '.join(counts) or 'none'}.")
    return counts[field.name]


def frequent_values(counts: Counts, field: FlipField, min_frequency: int) -> list[str]:
    """The values of a field that occur in so many rows, by falling frequency, ties in order of the value."""
    counted = [(-n, v) for v, n in counts_of(counts, field).items() if v is not None and n >= min_frequency]
    return [value for _, value in sorted(counted)]


def hash_bucket(value: str, num_buckets: int) -> int:
    """The bucket, from 0, of a canonical value: the first 8 bytes of its md5 as an unsigned big-endian integer, modulo
    their number. The same on every machine."""
    return int.from_bytes(hashlib.md5(value.encode(), usedforsecurity=False).digest()[:8], "big") % num_buckets


def numbers(values: Sequence[str]) -> np.ndarray:
    """Canonical values of numbers as float64."""
    return np.array([float(value) for value in values], np.float64)


def bucket_boundaries(counts: Mapping[str | None, int], field: FlipField) -> list[float]:
    """Bounds between the buckets of a numeric field, ascending: bucket i is of the numbers from bound i - 1 (included)
    to bound i.

    `quantile`: bound i is the number at the share i / num_buckets of the counted rows in order. Bounds are numbers that
    occur, and each bucket has rows; where many rows have one number there are fewer. `log`: even steps of sign(x) *
    log1p(|x|) between the extremes.
    """
    counted = [(value, rows) for value, rows in counts.items() if value is not None and rows > 0]
    if not counted:
        return []
    values, rows = numbers([value for value, _ in counted]), np.array([rows for _, rows in counted])
    if field.bucketing == "log":
        low, high = (np.sign(x) * np.log1p(abs(x)) for x in (values.min(), values.max()))
        steps = np.linspace(low, high, field.num_buckets + 1)[1:-1]
        bounds = np.sign(steps) * np.expm1(abs(steps))
    else:
        order = np.argsort(values, kind="stable")
        up_to = rows[order].cumsum()
        # whole numbers: the same bounds on every machine
        targets = np.array([int(up_to[-1]) * i // field.num_buckets for i in range(1, field.num_buckets)])
        bounds = values[order][np.searchsorted(up_to, targets, side="right")]
    return np.unique(bounds[bounds > values.min()]).tolist()


def bucket_numbers(boundaries: Sequence[float]) -> list[float]:
    """The number that stands for each bucket, of mean 0 and variance 1 over the buckets: `sign(x) * log1p(|x|)` of its
    lower bound. The first bucket, which has none, is as wide as the second."""
    if not boundaries:
        return [0.0]
    bounds = np.sign(boundaries) * np.log1p(np.abs(boundaries))
    first = 2 * bounds[0] - bounds[1] if len(bounds) > 1 else bounds[0] - 1
    values = np.concatenate([[first], bounds])
    return ((values - values.mean()) / values.std()).round(6).tolist()


class FlipFeatureExtractor(FeatureExtractionMixin):
    """Rows -> `feature_ids`. Per field, ids 0 to 3 are pad, mask, `[UNK]` and `[NULL]`; values or buckets follow in a
    fixed order.

    A field takes one column (slot) of `feature_ids`; a multi-valued one takes `max_values`, filled from the left, the
    rest pad.

    Args:
        fields: the fields of a row in order, see [`FlipField`] (dicts or objects).
        vocabularies: per ID-side field the list of its canonical values; the value at position i has id i + 4. Empty
            for a field of buckets.
        boundaries: per ID-side field the ascending bounds of its numeric buckets, see [`bucket_boundaries`], or None
            for another kind; a number in bucket i has id i + 4, one beyond those of the training rows is in the first
            or last bucket.
        min_frequency: values seen in fewer training rows got no id of their own; they are `[UNK]`.
        hashed_fields: fields whose vocabularies hold keyed hashes of the values (BLAKE2b), not the values.
        hash_salt: the published part of the key.
        hash_check: tells a wrong secret part of the key, which is the environment variable `FLIP_HASH_KEY`; None where
            the key has no secret part. Without one, whoever has the checkpoint can still test a guessed value.
        vocabulary_sizes: of vocabularies that lie in `vocabularies.txt`, one value a line, as those of more than
            100,000 values do; `from_pretrained` reads them.
        reading: how raw files of such rows are read, by the keys of the schema of a table (formats, encodings, side
            tables, and no paths), and what computing their click rates takes; it travels with the checkpoint for
            `flip-ctr predict` and `evaluate`.
        fingerprint: of a saved one, with which `from_pretrained` compares what it has read.
    """

    model_input_names = ["feature_ids"]
    _auto_class = "AutoFeatureExtractor"  # saving copies the code

    def __init__(
        self,
        fields=None,
        vocabularies: list[list[str]] | None = None,
        min_frequency: int = 1,
        hashed_fields: list[str] | None = None,
        hash_salt: str | None = None,
        hash_check: str | None = None,
        boundaries: list[list[float] | None] | None = None,
        vocabulary_sizes: list[int] | None = None,
        reading: dict[str, Any] | None = None,
        fingerprint: dict[str, str] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._saved_fingerprint = fingerprint
        self.fields = [field.to_dict() for field in read_fields(fields)]
        self._sizes_in_file = vocabulary_sizes if vocabularies is None else None
        self.vocabularies = vocabularies or [[] for _ in self.id_fields]
        self.boundaries = boundaries or [[] if field.kind == "numeric" else None for field in self.id_fields]
        self.min_frequency, self.reading = min_frequency, reading or {}
        self.hashed_fields, self.hash_salt, self.hash_check = hashed_fields or [], hash_salt, hash_check
        if len(self.vocabularies) != len(self.id_fields):
            raise ValueError(f"{len(self.vocabularies)} vocabularies for {len(self.id_fields)} ID-side fields.")
        if [bounds is not None for bounds in self.boundaries] != [field.kind == "numeric" for field in self.id_fields]:
            numeric = [field.name for field in self.id_fields if field.kind == "numeric"]
            raise ValueError(
                f"`boundaries` must hold a list for each numeric ID-side field ({', '.join(numeric)}) and None for the "
                "others."
            )
        self._tables: list[dict[str, int]] | None = None

    @property
    def fingerprint(self) -> dict[str, str]:
        """Digests of the fields, and of what was learned for them: vocabularies, bounds of buckets, hashing."""
        learned = [repr([self.boundaries, self.hashed_fields, self.hash_salt, self.hash_check])]
        learned += ["\n".join([str(len(words)), *words]) for words in self.vocabularies]
        return {"fields": fields_digest(self.fields), "vocabularies": digest(learned)}

    @property
    def all_fields(self) -> list[FlipField]:
        """All fields in order; those on the ID side with the number of their ids, and the numbers of their buckets."""
        fields = read_fields(self.fields)
        for field, words, bounds in zip(
            [field for field in fields if field.on_id_side], self.vocabularies, self.boundaries
        ):
            values = (
                len(bounds) + 1 if bounds is not None else len(words) if field.has_vocabulary else field.num_buckets
            )
            field.vocab_size = NUM_RESERVED_IDS + values
            field.bucket_numbers = None if bounds is None else bucket_numbers(bounds)
        return fields

    @property
    def id_fields(self) -> list[FlipField]:
        return [field for field in read_fields(self.fields) if field.on_id_side]

    @property
    def slot_fields(self) -> list[int]:
        """For each slot (column) of `feature_ids` the position of its field in `id_fields`."""
        return slot_fields(self.id_fields)

    @classmethod
    def from_counts(
        cls, counts: Counts, fields, min_frequency: int = 1, hash_user_values: bool = False
    ) -> "FlipFeatureExtractor":
        """Builds vocabularies and bounds of buckets from what was counted in the training split.

        Args:
            counts: see [`add_counts`], which counts chunks of rows that do not fit into memory together.
            fields: the schema's fields in order.
            min_frequency: values in fewer rows get no id of their own. (Buckets are what they are.)
            hash_user_values: vocabularies of the fields of entity `user` hold keyed hashes, in order of the hash.

        Values come by falling frequency, ties in order of the value.

        Raises:
            ValueError: a field was not counted, or there is no vocabulary of a user's field to hash.
        """
        vocabularies, boundaries = [], []
        for field in read_fields(fields):
            if not field.on_id_side:
                continue
            vocabularies.append(frequent_values(counts, field, min_frequency) if field.has_vocabulary else [])
            boundaries.append(bucket_boundaries(counts_of(counts, field), field) if field.kind == "numeric" else None)
        extractor = cls(fields=fields, vocabularies=vocabularies, min_frequency=min_frequency, boundaries=boundaries)
        if hash_user_values:
            extractor._hash_vocabularies("user")
        return extractor

    def grow(self, counts: Counts, min_frequency: int = 1) -> dict[str, int]:
        """Appends the values that were counted in newer rows and are in no vocabulary yet; all others keep their ids,
        and so do buckets their bounds.

        Args:
            counts: of the newer rows, see [`add_counts`].
            min_frequency: values in fewer of the newer rows are left out.

        Returns: of each field with a vocabulary the number of its new values. These come by falling frequency, ties in
        order of the value; hashed ones in order of the hash.

        Raises:
            ValueError: a field was not counted; or its values are hashed with a key that is not at hand.
        """
        added = {}
        for number, field in enumerate(self.id_fields):
            if not field.has_vocabulary:
                continue
            values = self._hashed(frequent_values(counts, field, min_frequency), field.name)
            known = set(self.vocabularies[number])
            new = [value for value in values if value not in known]
            if field.name in self.hashed_fields:
                new.sort()
            self.append(number, new)
            added[field.name] = len(new)
        return added

    def append(self, number: int, values: list[str]) -> None:
        """Appends values, as the vocabulary has them, to that of one field of `id_fields`."""
        self.vocabularies[number] = self.vocabularies[number] + values
        self._tables = None

    def _hash_vocabularies(self, entity: str) -> None:
        self.hashed_fields = [field.name for field in self.id_fields if field.entity == entity and field.has_vocabulary]
        if not self.hashed_fields:
            raise ValueError(
                f"no field on the ID side has entity {entity!r} and a vocabulary: there is nothing to hash."
            )
        secret = os.environ.get(HASH_KEY_VARIABLE, "")
        hashed = [words for field, words in zip(self.id_fields, self.vocabularies) if field.name in self.hashed_fields]
        # of the values, so that the same rows give the same ids; and of the secret, without which nothing can be tried
        # on it
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

    def _hashed(self, values: Sequence[str], field: str) -> list[str]:
        """Canonical values as their field's vocabulary has them."""
        if field not in self.hashed_fields or not values:
            return list(values)
        secret = ""
        if self.hash_check is not None:
            secret = os.environ.get(HASH_KEY_VARIABLE, "")
            if self._hash(self._hash_key(secret), "", "") != self.hash_check:
                state = "holds another key" if secret else "is not set"
                raise ValueError(
                    f"column '{field}': the vocabularies of {', '.join(self.hashed_fields)} hold hashes made with a "
                    f"secret key, and the environment variable {HASH_KEY_VARIABLE} {state}. Set it to that key, or "
                    "leave these columns null."
                )
        key = self._hash_key(secret)
        return [self._hash(key, field, value) for value in values]

    def read(self, rows: Any) -> dict[str, Column]:
        """The fields' columns of rows in any form of [`RawRows`]; errors name column and row (`ValueError`)."""
        return read_columns(rows, read_fields(self.fields))

    def encode(self, columns: Mapping[str, Column], names: Collection[str] | None = None) -> np.ndarray:
        """Columns -> local feature ids `(rows, slots)`. A value outside the vocabulary is `[UNK]`.

        Args:
            names: fields whose ids are wanted, of those on the ID side; all when not given.
        """
        if self._sizes_in_file is not None:
            raise ValueError(f"the vocabularies lie in {VOCABULARY_FILE}, which only `from_pretrained` reads.")
        wanted = [(n, field) for n, field in enumerate(self.id_fields) if names is None or field.name in names]
        return np.concatenate([self._encode(n, field, columns[field.name]) for n, field in wanted], axis=1)

    def _encode(self, number: int, field: FlipField, column: Column) -> np.ndarray:
        """The ids of one ID-side field, `(rows, its slots)`, each distinct value encoded once."""
        if not field.is_multi_valued:
            ids = np.full((len(column.values), 1), NULL_ID, np.int64)
            real = [value is not None for value in column.values]
            ids[real, 0] = self._local_ids(number, field, [str(value) for value in column.values if value is not None])
            return ids[column.codes]
        kept = [id_side_values(value, field) for value in column.values]
        distinct = list(dict.fromkeys(value for values in kept for value in values))
        id_of = dict(zip(distinct, self._local_ids(number, field, distinct)))
        filled = np.arange(field.num_slots) < np.array([len(values) for values in kept], np.int64)[:, None]
        ids = np.full(filled.shape, PAD_ID, np.int64)
        ids[filled] = [id_of[value] for values in kept for value in values]
        ids[~filled[:, 0], 0] = NULL_ID
        return ids[column.codes]

    def _local_ids(self, number: int, field: FlipField, values: list[str]) -> list[int]:
        """The feature ids of canonical values of one ID-side field."""
        if field.kind == "numeric":
            return (NUM_RESERVED_IDS + np.searchsorted(self.boundaries[number], numbers(values), side="right")).tolist()
        if not field.has_vocabulary:
            return [NUM_RESERVED_IDS + hash_bucket(value, field.num_buckets) for value in values]
        if self._tables is None:
            self._tables = [
                {value: i for i, value in enumerate(words, NUM_RESERVED_IDS)} for words in self.vocabularies
            ]
        return [self._tables[number].get(value, UNK_ID) for value in self._hashed(values, field.name)]

    @property
    def key_fields(self) -> dict[int, FlipField]:
        """The keys that have a vocabulary, by their number in `id_fields`."""
        return {number: field for number, field in enumerate(self.id_fields) if field.key and field.has_vocabulary}

    def unknown_keys(self, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
        """For each of the `key_fields` which rows have a value that its vocabulary lacks, `(rows,)`; a null is none."""
        ids = {
            field.name: self._encode(number, field, columns[field.name]) for number, field in self.key_fields.items()
        }
        return {name: of_rows[:, 0] == UNK_ID for name, of_rows in ids.items()}

    def __call__(self, rows: Any, return_tensors: str | None = None) -> BatchFeature:
        """Rows -> `feature_ids` `(rows, slots)`, an int64 array unless `return_tensors="pt"`."""
        return BatchFeature({"feature_ids": self.encode(self.read(rows))}, tensor_type=return_tensors)

    def count_features(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        """How often each feature occurs in parts of feature ids `(rows, S)`: `(sum of field sizes,)`, in the order of
        the ID tower's table."""
        counts = [np.zeros(field.vocab_size, np.int64) for field in self.all_fields if field.on_id_side]
        for feature_ids in parts:
            for ids, field in zip(feature_ids.T, self.slot_fields):
                counts[field] += np.bincount(ids, minlength=len(counts[field]))
        return np.concatenate(counts)

    # --- saving and loading

    def _has_file(self) -> bool:
        return sum(map(len, self.vocabularies)) > MAX_JSON_VALUES

    def to_dict(self) -> dict[str, Any]:
        # not deep-copied as the base class does: vocabularies can be large, and nothing changes them
        saved = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        if self._has_file():
            saved |= {"vocabularies": None, "vocabulary_sizes": [len(words) for words in self.vocabularies]}
        return saved | {"feature_extractor_type": type(self).__name__, "fingerprint": self.fingerprint}

    def save_vocabularies(self, folder) -> list[str]:
        """Writes what is too large for JSON, and removes what an earlier save has left; returns the paths written."""
        path = os.path.join(folder, VOCABULARY_FILE)
        if not self._has_file():
            if os.path.isfile(path):
                os.remove(path)
            return []
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            for words in self.vocabularies:
                file.writelines(f"{word}\n" for word in words)  # a canonical value holds no line end
        return [path]

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """As in transformers, with the file of large vocabularies."""
        saved = super().save_pretrained(save_directory, **kwargs)
        self.save_vocabularies(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory))), **kwargs)
        return saved

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, with the file of large vocabularies.

        Raises:
            ValueError: that file does not hold as many values as the configuration says; or fields or vocabularies are
                not those that were saved.
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        extractor = loaded[0] if isinstance(loaded, tuple) else loaded
        if extractor._sizes_in_file is not None:
            path = cached_file(pretrained_model_name_or_path, VOCABULARY_FILE, **hub)
            try:
                with open(path, encoding="utf-8") as file:
                    words = file.read().split("\n")[:-1]
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: damaged, this is no UTF-8: {error}. {AGAIN}") from None
            ends = np.cumsum(extractor._sizes_in_file).tolist()
            if ends[-1] != len(words):
                raise ValueError(
                    f"{path} holds {len(words):,} values, and the vocabularies have {ends[-1]:,}: it is not of this "
                    "checkpoint."
                )
            extractor.vocabularies = [words[end - size : end] for end, size in zip(ends, extractor._sizes_in_file)]
            extractor._sizes_in_file = None
        expected = extractor._saved_fingerprint or {}
        found = extractor.fingerprint if expected else {}  # goes through all vocabularies
        for name, saved in expected.items():
            if found.get(name) != saved:
                raise ValueError(
                    f"{pretrained_model_name_or_path}: the {name} of the processor (processor_config.json, "
                    f"{VOCABULARY_FILE}) are not those that were saved: damaged, changed, or of another checkpoint. "
                    f"{AGAIN}"
                )
        return loaded


__all__ = ["FlipFeatureExtractor"]
