# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rows -> model inputs: feature ids by the feature extractor, prompts by composing tokenised pieces.

A prompt is `[CLS] gender is male ; age is 24 ; … ; genre is Drama, Romance [SEP]` (the paper's modality
transformation). A value's tokens never change, so each distinct (field, value) is tokenised once into a ragged table,
and the token ids of a batch are one vectorised gather from it. That gives each token its field for free, and cuts a too
long value, never a later field.
"""

import os
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, BatchFeature
from transformers.dynamic_module_utils import custom_object_save
from transformers.processing_utils import ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from .columns_flip import Column, RowError, Value, canonical_label, raw_columns, read_columns
from .configuration_flip import FlipConfig  # noqa: F401  which says what transformers is needed
from .feature_extraction_flip import Counts, FlipFeatureExtractor, add_counts
from .fields_flip import FlipField

NO_FIELD = -1  # template and special tokens, and padding, belong to no field
MAX_CACHED_VALUES = 100_000
CHECKED_ROWS = 256  # whose prompts are compared with the tokenizer's own ids


class PromptTable:
    """Token ids of template pieces and of distinct values, ragged; a prompt is a row of entry numbers.

    Attributes:
        tokens: `(all tokens,)` int32, one entry behind the other.
        offsets: `(entries + 1,)`: entry e is `tokens[offsets[e]:offsets[e + 1]]`.
        num_fields: text fields T. Entries 0 to T are the template: what stands before each value, and the end.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, num_fields: int, pad_token_id: int):
        self.tokens, self.offsets, self.num_fields, self.pad_token_id = tokens, offsets, num_fields, pad_token_id

    def lengths(self, entries: np.ndarray) -> np.ndarray:
        """Number of tokens of each prompt, `(rows, T)` value entries -> `(rows,)` int32."""
        template = self.offsets[self.num_fields + 1]  # the template's pieces come first
        return (template + (self.offsets[entries + 1] - self.offsets[entries]).sum(1)).astype(np.int32)

    def compose(self, entries: np.ndarray) -> dict[str, np.ndarray]:
        """`(rows, T)` value entries -> int64 arrays `(rows, L)`, padded on the right to the longest row.

        Returns `input_ids`, `attention_mask`, and `token_fields`: the text field (0 to T - 1) of each value token, -1
        for template tokens, special tokens and padding.
        """
        rows, fields = entries.shape
        # template and values take turns: piece 0, value 0, piece 1, value 1, ..., last piece
        turns = np.empty((rows, 2 * fields + 1), np.int64)
        turns[:, 0::2] = np.arange(fields + 1)
        turns[:, 1::2] = entries
        turn_fields = np.full(2 * fields + 1, NO_FIELD)
        turn_fields[1::2] = np.arange(fields)

        starts = self.offsets[turns].ravel()
        lengths = (self.offsets[turns + 1] - self.offsets[turns]).ravel()
        ends = lengths.cumsum()
        source = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
        row_lengths = lengths.reshape(rows, 2 * fields + 1).sum(1)
        mask = np.arange(row_lengths.max(initial=0)) < row_lengths[:, None]
        input_ids = np.full(mask.shape, self.pad_token_id, np.int64)
        input_ids[mask] = self.tokens[source]
        token_fields = np.full(mask.shape, NO_FIELD, np.int64)
        token_fields[mask] = np.repeat(np.tile(turn_fields, rows), lengths)
        return {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "token_fields": token_fields}


class PromptTableBuilder:
    """Grows a [`PromptTable`] part by part of the rows: a value that was met before keeps its entry, a new one gets the
    next.

    Args:
        template: token ids of what stands before each value, and of the end.
        read: number of a text field and values of it -> their token ids.
    """

    def __init__(self, template: Sequence[Sequence[int]], read: Callable[[int, Sequence[Value]], list[list[int]]]):
        self.read, self.num_fields = read, len(template) - 1
        # arrays of machine integers: lists would take ten times as much for millions of values
        self.tokens, self.offsets = array("i"), array("q", [0])
        self._append(template)
        self.known: list[dict[Value, int]] = [{} for _ in range(self.num_fields)]

    def _append(self, pieces: Sequence[Sequence[int]]) -> None:
        for piece in pieces:
            self.tokens.extend(piece)
            self.offsets.append(len(self.tokens))

    def add(self, columns: Sequence[Column]) -> np.ndarray:
        """The entries of each row's values, `(rows, T)` int32, from the columns of the text fields."""
        entries = []
        for number, (column, known) in enumerate(zip(columns, self.known)):
            new, first = [value for value in column.values if value not in known], len(self.offsets) - 1
            self._append(self.read(number, new))
            known.update(zip(new, range(first, first + len(new))))
            entries.append(np.array([known[value] for value in column.values], np.int32)[column.codes])
        return np.stack(entries, axis=1)

    def lengths(self, entries: np.ndarray) -> np.ndarray:
        """Number of tokens of each prompt, `(rows, T)` entries -> `(rows,)` int32."""
        offsets = np.frombuffer(self.offsets, np.int64)  # no copy, and gone before the array grows again
        return PromptTable(np.empty(0, np.int32), offsets, self.num_fields, 0).lengths(entries)

    def table(self, pad_token_id: int) -> PromptTable:
        """The table of all values so far."""
        tokens, offsets = np.array(self.tokens, np.int32), np.array(self.offsets, np.int64)
        return PromptTable(tokens, offsets, self.num_fields, pad_token_id)


class EncodedRows:
    """Rows as integers: batches are gathered from them, nothing is tokenised again.

    Attributes:
        feature_ids: `(N, slots)` int32.
        prompt_table, entries: the prompts' [`PromptTable`] and `(N, text fields)` int32 entries of it, or None.
        lengths: `(N,)` int32 tokens of each prompt, or None.
    """

    def __init__(
        self,
        feature_ids: np.ndarray,
        prompt_table: PromptTable | None = None,
        entries: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ):
        self.feature_ids = feature_ids.astype(np.int32, copy=False)
        self.prompt_table, self.entries, self.lengths = prompt_table, entries, lengths
        if prompt_table is not None and lengths is None:
            self.lengths = prompt_table.lengths(entries)

    def __len__(self) -> int:
        return len(self.feature_ids)

    def order(self) -> np.ndarray:
        """The rows by falling length of their prompts, `(N,)`: neighbours pad little, and too large a batch fails at
        once."""
        return np.arange(len(self)) if self.lengths is None else np.argsort(-self.lengths, kind="stable")

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`feature_ids`, and with prompts `input_ids`, `attention_mask` and `token_fields`, of those rows."""
        batch = {"feature_ids": self.feature_ids[rows].astype(np.int64)}
        return batch if self.entries is None else batch | self.prompt_table.compose(self.entries[rows])


def _spread(rows: int) -> np.ndarray:
    """At most `CHECKED_ROWS` row numbers, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(CHECKED_ROWS, rows)).astype(int)) if rows else np.empty(0, int)


class FlipProcessor(ProcessorMixin):
    """The feature extractor and the PLM's tokenizer (none for an ID-only model): rows -> model inputs.

    Args:
        feature_extractor: a [`FlipFeatureExtractor`].
        tokenizer: the PLM's tokenizer; `None` for an ID-only model.
        max_length: longest prompt in tokens that the PLM takes; the tokenizer's own limit when `None`.
        label: column of the clicks (0 or 1), read where rows have it.
        weight: column of the rows' weights, read where rows have it.

    Raises:
        ValueError: no text field for a tokenizer, or the template and the fields' budgets exceed `max_length`.
    """

    _auto_class = "AutoProcessor"  # saving copies the code

    def __init__(
        self,
        feature_extractor,
        tokenizer=None,
        max_length: int | None = None,
        label: str = "label",
        weight: str | None = None,
        id_only: bool | None = None,
        **kwargs,
    ):
        # not through the base class, which demands every attribute: an ID-only processor has no tokenizer
        self.check_argument_for_proper_class("feature_extractor", feature_extractor)
        if tokenizer is not None:
            self.check_argument_for_proper_class("tokenizer", tokenizer)
        self.chat_template = None
        self.feature_extractor, self.tokenizer = feature_extractor, tokenizer
        self.label, self.weight = label, weight
        self.id_only = tokenizer is None  # saved: loading is decided by it, never by a failed attempt
        self.max_length, self._taken_for_special = max_length, []
        self._cache: dict[tuple[int, Value], list[int]] = {}
        if tokenizer is not None:
            limits = [
                limit for limit in (max_length, tokenizer.model_max_length) if limit is not None and limit < 10**9
            ]
            self.max_length = min(limits) if limits else None
            special = {
                tokenizer.convert_tokens_to_ids(t): t for t in tokenizer.all_special_tokens if t != tokenizer.unk_token
            }
            self._taken_for_special = [t for t in special.values() if set(self._tokenize([t])[0]) & set(special)]
            self._template = self._tokenize_template()
            self._check_length()

    # --- building

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        fields: Sequence[FlipField | dict],
        tokenizer=None,
        min_frequency: int = 1,
        hash_user_values: bool = False,
        **kwargs,
    ) -> "FlipProcessor":
        """Builds the vocabularies from the *training* split, and checks that prompts compose with this tokenizer.

        Args:
            dataset: the training rows, in any form that `__call__` takes, or a split on disk that is read part by part
                (`flip_ctr.data.readers.shards.SplitRows`).
            fields: the schema's fields in order.
            tokenizer: the PLM's; `None` for ID-only.
            min_frequency: values in fewer rows get no id of their own.
            hash_user_values: store keyed hashes of the values of the user's fields, see [`FlipFeatureExtractor`].
            kwargs: `max_length`, `label`, `weight`.

        Raises:
            ValueError: a column is missing or a value has another type; or the composed token ids of a sample of rows
                differ from the tokenizer's own on the whole prompt.
        """
        schema = [FlipField.from_dict(field) for field in fields]
        counts: Counts = {}
        on_disk = hasattr(dataset, "map_parts")
        if on_disk:
            for columns in dataset.map_parts(lambda rows: read_columns(rows, schema), [field.name for field in schema]):
                add_counts(counts, columns, schema)
        else:
            add_counts(counts, columns := read_columns(dataset, schema), schema)
        extractor = FlipFeatureExtractor.from_counts(counts, schema, min_frequency, hash_user_values)
        processor = cls(extractor, tokenizer, **kwargs)
        if tokenizer is not None:
            rows = _spread(len(dataset) if on_disk else len(columns[schema[0].name].codes))
            few = read_columns(dataset.take(rows), schema) if on_disk else columns
            processor.check_composition(few, range(len(rows)) if on_disk else rows, rows)
        return processor

    def count_features(self, dataset: Any) -> np.ndarray:
        """How often each feature occurs in the training rows, `(sum of field sizes,)`: what
        [`FlipForPretraining.set_feature_counts`] takes. `dataset` as of `from_dataset`."""
        extractor = self.feature_extractor
        if not hasattr(dataset, "map_parts"):
            return extractor.count_features([extractor.encode(extractor.read(dataset))])
        names = [field.name for field in extractor.all_fields]
        return extractor.count_features(dataset.map_parts(lambda part: extractor.encode(extractor.read(part)), names))

    @property
    def fields(self) -> list[dict]:
        """The fields with the sizes of their vocabularies, for `FlipConfig(fields=...)`."""
        return [field.to_dict() for field in self.feature_extractor.all_fields]

    @property
    def text_fields(self) -> list[FlipField]:
        return [field for field in self.feature_extractor.all_fields if field.on_text_side]

    @property
    def model_input_names(self) -> list[str]:
        return ["feature_ids"] if self.id_only else ["feature_ids", "input_ids", "attention_mask"]

    def without_tokenizer(self) -> "FlipProcessor":
        """The same processor for an ID-only model."""
        return FlipProcessor(self.feature_extractor, label=self.label, weight=self.weight)

    # --- prompts

    def prompt(self, values: Sequence[Value]) -> str:
        """The prompt of one row as text, from the canonical values of the text fields."""
        return self._prompt(self.text_fields, values)

    def _prompt(self, fields: Sequence[FlipField], values: Sequence[Value]) -> str:
        return " ; ".join(f"{field.wording} is {self.value_text(field, value)}" for field, value in zip(fields, values))

    def value_text(self, field: FlipField, value: Value) -> str:
        """The value as the prompt says it. The pieces of a Unigram model include "[SEP]", which a space takes apart."""
        word = field.value_text(value)
        for token in self._taken_for_special:
            word = word.replace(token, f"{token[0]} {token[1:]}")
        return word

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        # split_special_tokens: a title that contains "[MASK]" is text
        return self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]

    def _tokenize_template(self) -> list[list[int]]:
        """What stands before each value, and the end."""
        if not self.text_fields:
            raise ValueError("no field is on the text side; a PLM needs at least one field with 'text' in its `sides`.")
        probe = self._tokenize(["a"])[0]
        whole = self.tokenizer("a")["input_ids"]
        position = next(i for i in range(len(whole) + 1) if whole[i : i + len(probe)] == probe)
        prefix, suffix = whole[:position], whole[position + len(probe) :]
        wordings = [field.wording for field in self.text_fields]
        pieces = self._tokenize([f"{wordings[0]} is", *(f" ; {wording} is" for wording in wordings[1:])])
        return [prefix + pieces[0], *pieces[1:], suffix]

    def _check_length(self) -> None:
        template, budgets = sum(map(len, self._template)), [field.max_tokens for field in self.text_fields]
        if self.max_length is not None and template + sum(budgets) > self.max_length:
            listed = ", ".join(f"{field.name} {field.max_tokens}" for field in self.text_fields)
            raise ValueError(
                f"the prompt's template ({template} tokens) and the fields' budgets ({listed}) exceed the PLM's "
                f"maximum of {self.max_length} tokens; lower `max_tokens` of some fields in the schema."
            )

    def _value_tokens(self, number: int, values: Sequence[Value], budget: int) -> list[list[int]]:
        field = self.text_fields[number]
        words = [" " + self.value_text(field, value) for value in values]
        return [tokens[:budget] for tokens in self._tokenize(words)] if words else []

    def _cached_tokens(self, field: int, values: Sequence[Value], budget: int) -> list[list[int]]:
        new = [value for value in values if (field, value) not in self._cache]
        if len(self._cache) + len(new) > MAX_CACHED_VALUES:
            self._cache.clear()
            new = list(values)
        tokens = dict(zip(new, self._value_tokens(field, new, budget)))
        if len(new) <= MAX_CACHED_VALUES:
            self._cache.update({(field, value): ids for value, ids in tokens.items()})
        return [tokens[value] if value in tokens else self._cache[field, value] for value in values]

    def prompt_table_builder(self, cached: bool = False, truncate: bool = True) -> PromptTableBuilder:
        """An empty table of this template, values cut to their fields' budgets.

        Args:
            cached: keep the tokens of values for the next table (for few rows at a time).
            truncate: False leaves values whole.
        """
        tokenize, budgets = (
            self._cached_tokens if cached else self._value_tokens,
            [field.max_tokens for field in self.text_fields],
        )
        return PromptTableBuilder(
            self._template, lambda field, values: tokenize(field, values, budgets[field] if truncate else None)
        )

    def prompt_entries(self, builder: PromptTableBuilder, columns: dict[str, Column]) -> np.ndarray:
        """Each row's entries in the builder's table, `(rows, T)` int32; new values are added to it."""
        return builder.add([columns[field.name] for field in self.text_fields])

    def prompt_table(self, columns: dict[str, Column], cached: bool = False, truncate: bool = True):
        """The ragged table of the columns' distinct values, and each row's entries in it `(rows, T)`."""
        builder = self.prompt_table_builder(cached, truncate)
        entries = self.prompt_entries(builder, columns)
        return builder.table(self.tokenizer.pad_token_id), entries

    def check_composition(
        self, columns: dict[str, Column], picked: Sequence[int] | np.ndarray, numbers: Sequence[int] | np.ndarray
    ) -> None:
        """Compares the composed ids of some rows with the tokenizer's own on the whole prompts.

        Args:
            columns: hold at least these rows.
            picked: their positions in the columns.
            numbers: their numbers in the dataset, for the error.

        Raises:
            ValueError: they differ; names the row, its prompt and the first differing token.
        """
        few, fields = {}, self.text_fields  # read once for all rows
        for name in [field.name for field in fields]:
            used, codes = np.unique(columns[name].codes[picked], return_inverse=True)
            few[name] = Column([columns[name].values[code] for code in used], codes)
        table, entries = self.prompt_table(few, truncate=False)
        composed = table.compose(entries)
        for i, row in enumerate(numbers):
            prompt = self._prompt(fields, [column.values[column.codes[i]] for column in few.values()])
            expected = self.tokenizer(prompt, split_special_tokens=True, truncation=False, verbose=False)["input_ids"]
            got = composed["input_ids"][i][composed["attention_mask"][i] == 1].tolist()
            if got != list(expected):
                at = next((j for j, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
                convert = self.tokenizer.convert_ids_to_tokens
                raise ValueError(
                    f"prompts do not compose with {type(self.tokenizer).__name__}: row {row}, token {at} of {prompt!r} "
                    f"is {convert(got[at : at + 3])} in pieces and {convert(list(expected)[at : at + 3])} as a whole. "
                    "This tokenizer joins text across spaces; use a PLM whose tokenizer does not."
                )

    # --- rows to inputs

    def __call__(self, rows: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Rows -> a batch of model inputs. Never masks anything.

        Args:
            rows: a dict of columns, one row as a dict (single-valued fields are scalars in it), a list of dicts, a
                pandas or Arrow table, or a `datasets` dataset or batch; columns that are no field are ignored. A
                multi-valued field has a list in each row, or text with its separators.
            return_tensors: `"pt"`, or `"np"` or `None` for arrays.

        Returns:
            `feature_ids` `(B, S)`; with a tokenizer `input_ids` and `attention_mask` `(B, L)`; `labels` and
            `sample_weight` `(B,)` where the rows have these columns.

        Raises:
            ValueError: a column is missing, or a value has another type: names column and row.
        """
        encoded = self.encode(rows, cached=True)
        composed = encoded.batch(np.arange(len(encoded)))
        batch = {name: composed[name] for name in self.model_input_names}
        labels, weights = self.read_targets(rows)
        if labels is not None:
            batch["labels"] = labels
        if weights is not None:
            batch["sample_weight"] = weights
        return BatchFeature(batch, tensor_type=return_tensors)

    def encode(self, rows: Any, prompts: bool = True, cached: bool = False) -> EncodedRows:
        """Rows in any form that `__call__` takes -> [`EncodedRows`], each distinct value encoded once.

        Args:
            prompts: whether to make the textual view too, where there is a tokenizer.
            cached: keep the tokens of values for the next call (for few rows at a time).
        """
        columns = self.feature_extractor.read(rows)
        feature_ids = self.feature_extractor.encode(columns)
        return EncodedRows(feature_ids, *(self.prompt_table(columns, cached) if prompts and not self.id_only else ()))

    def read_targets(self, rows: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The clicks `(rows,)` int64 and weights `(rows,)` float32, None where the rows have no such column.

        Raises:
            ValueError: a label is not 0 or 1, or a weight is not a number of at least 0; names column and row.
        """
        optional = [self.label] + ([self.weight] if self.weight else [])
        columns = raw_columns(rows, [], optional)
        labels = weights = None
        if self.label in columns:
            column = Column.read(columns[self.label], FlipField(self.label, "float"), canonical_label)
            labels = column.map({"0": 0, "1": 1}, -1)
            if (labels < 0).any():
                row = int((labels < 0).argmax())
                value = column.values[column.codes[row]]
                raise RowError(self.label, row, f"a label must be 0 or 1, got {value}")
        if self.weight in columns:
            column = Column.read(columns[self.weight], FlipField(self.weight, "float", nullable=False))
            weights = np.array([float(str(value)) for value in column.values], np.float32)[column.codes]
            if (weights < 0).any():
                row = int((weights < 0).argmax())
                raise RowError(self.weight, row, f"a weight must be at least 0, got {weights[row]}")
        return labels, weights

    # --- saving and loading

    def to_dict(self) -> dict[str, Any]:
        return {
            "feature_extractor": self.feature_extractor.to_dict(),
            "max_length": self.max_length,
            "label": self.label,
            "weight": self.weight,
            "id_only": self.id_only,
            "processor_class": type(self).__name__,
        } | ({"auto_map": self.auto_map} if hasattr(self, "auto_map") else {})

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Saves the processor, the tokenizer where it has one, and the code, so that `from_pretrained` reads them
        back."""
        if self.id_only:  # the base class expects a tokenizer
            os.makedirs(save_directory, exist_ok=True)
            for part in (self.feature_extractor, self):
                custom_object_save(part, save_directory, config=part)  # type: ignore[arg-type]
            saved = [os.path.join(save_directory, PROCESSOR_NAME)]
            self.to_json_file(saved[0])
        else:
            saved = super().save_pretrained(save_directory, **kwargs)
        saved += self.feature_extractor.save_vocabularies(save_directory)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(repo_id, **kwargs)
        return saved

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        if (processor_dict or {}).get("id_only"):
            return [AutoFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs)]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)


__all__ = ["FlipProcessor"]
