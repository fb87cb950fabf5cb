# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rows -> model inputs: feature ids by the feature extractor, prompts by composing tokenised pieces.

A prompt is `[CLS] gender is male ; age is 24 ; … ; genre is Drama, Romance [SEP]` (the paper's modality
transformation). A value's tokens never change, so each distinct (field, value) is tokenised once into a ragged table,
and the token ids of a batch are one vectorised gather from it. That gives each token its field for free, and cuts a too
long value, never a later field.
"""

import copy
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, BatchFeature
from transformers.dynamic_module_utils import custom_object_save
from transformers.processing_utils import ProcessorMixin
from transformers.utils import PROCESSOR_NAME

from .calibration_flip import corrected  # noqa: F401
from .columns_flip import Column, RowError, read_columns
from .configuration_flip import PROMPTS, FlipConfig  # which also says what transformers is needed
from .containers_flip import UnknownContainer  # noqa: F401
from .feature_extraction_flip import VOCABULARY_FILE, FlipFeatureExtractor, count_rows
from .fields_flip import (
    FlipField,
    ProcessorFields,
    check_choice,
    check_count,
    fields_of_items,
    history_entity,
    history_field,
    read_fields,
)
from .fingerprint_flip import (
    CHECKPOINT_FORMAT,
    HUB_ARGUMENTS,
    check_checkpoint,
    checksums,
    differing,
    digest,
    write_with_checksums,
)
from .histories_flip import Histories, HistoryItems, only_named, read_histories
from .new_files_flip import new_files
from .prompt_tables_flip import EncodedRows, EntityPrompts, EntityPromptsBuilder, PromptTableBuilder, RowPrompts
from .rows_flip import RawRows
from .values_flip import Value, canonical_label

MAX_CACHED_VALUES = 100_000
MOST_LISTED = 20  # fields in an error
OPTIONS = ("max_length", "label", "weight", "prompts")  # of `from_dataset`, which `__init__` takes
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
CHECKED_ROWS = 256  # whose prompts are compared with the tokenizer's own ids


def _spread(rows: int) -> np.ndarray:
    """At most `CHECKED_ROWS` row numbers, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(CHECKED_ROWS, rows)).astype(int)) if rows else np.empty(0, int)


class NoTokenizer:
    """Stands where an ID-only processor has no tokenizer: a `Trainer` asks any processor's for its special tokens."""

    bos_token_id = eos_token_id = pad_token_id = mask_token_id = None


class FlipProcessor(ProcessorMixin):
    """The feature extractor and the PLM's tokenizer (none for an ID-only model): rows -> model inputs.

    Args:
        feature_extractor: a [`FlipFeatureExtractor`].
        tokenizer: the PLM's tokenizer; `None` for an ID-only model.
        max_length: longest prompt in tokens that the PLM takes; the tokenizer's own limit when `None`.
        label: column of the clicks (0 or 1), read where rows have it.
        weight: column of the rows' weights, read where rows have it.
        prompts: one prompt a `row`, or one for each `entity` of a row; as of the model's [`FlipConfig`].
        fingerprint: of a saved one, whose tokenizer has not changed since.

    Raises:
        ValueError: no text field for a tokenizer, a tokenizer without tokens, or the template and the fields' budgets
            exceed `max_length`.
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
        prompts: str = "row",
        fingerprint: dict[str, Any] | None = None,
        **kwargs,
    ):
        # not through the base class, which demands every attribute: an ID-only processor has no tokenizer
        self.check_argument_for_proper_class("feature_extractor", feature_extractor)
        if tokenizer is not None:
            self.check_argument_for_proper_class("tokenizer", tokenizer)
        self.chat_template = None
        self.feature_extractor = feature_extractor
        self.tokenizer = NoTokenizer() if tokenizer is None else tokenizer
        check_choice("FlipProcessor", "prompts", prompts, PROMPTS)
        self.label, self.weight, self.prompts = label, weight, prompts
        self.id_only = tokenizer is None  # saved: loading is decided by it, never by a failed attempt
        self.max_length, self._taken_for_special = max_length, []
        self._tokenizer_digest: str | None = (fingerprint or {}).get("tokenizer")
        self._cache: dict[tuple[str, Value], list[int]] = {}
        self._feature_counts: np.ndarray | None = None  # of the training rows; never saved
        if tokenizer is not None:
            limits = [
                limit for limit in (max_length, tokenizer.model_max_length) if limit is not None and limit < 10**9
            ]
            self.max_length = min(limits) if limits else None
            if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # transformers makes one of nothing
                raise ValueError(
                    f"FlipProcessor: the tokenizer {type(tokenizer).__name__} of {tokenizer.name_or_path or 'no path'} "
                    "has no tokens beside its special ones: its files (tokenizer.json) are missing."
                )
            special = {
                tokenizer.convert_tokens_to_ids(t): t for t in tokenizer.all_special_tokens if t != tokenizer.unk_token
            }
            self._taken_for_special = [t for t in special.values() if set(self._tokenize([t])[0]) & set(special)]
            # some tokenizers put a space of their own before a text (Llama 2's old files): the tokens of a text that
            # stands behind a word are then those behind this one
            word, behind = self._tokenize(["a", "a a"])
            self._word = [] if self._tokenize([" a"])[0] == behind[len(word) :] else word
            self._templates = [self._tokenize_template(fields) for fields in self.prompt_fields]
            self._check_length()

    # --- building

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        fields: Any,
        tokenizer=None,
        min_frequency: int = 1,
        hash_user_values: bool = False,
        reading: dict | None = None,
        **kwargs,
    ) -> "FlipProcessor":
        """Builds the vocabularies from the *training* split, and checks that prompts compose with this tokenizer.

        Args:
            dataset: the training rows, in any form that `__call__` takes, or a split on disk that is read part by part
                (`flip_ctr.data.readers.shards.SplitRows`).
            fields: the fields in order, [`FlipField`]s or dicts; or the schema of a dataset folder
                (`flip_ctr.DatasetSchema`), which also says `label`, `weight` and `reading`.
            tokenizer: the PLM's; `None` for ID-only.
            min_frequency: values in fewer rows get no id of their own.
            hash_user_values: store keyed hashes of the values of the user's fields, see [`FlipFeatureExtractor`].
            reading: how raw files of such rows are read, see [`FlipFeatureExtractor`].
            kwargs: `max_length`, `label`, `weight`, `prompts`.

        Raises:
            TypeError: `fields` are none, or there is no such option.
            ValueError: there are no rows or fields; a column is missing or a value has another type; or the composed
                token ids of a sample of rows differ from the tokenizer's own on the whole prompt.
        """
        unknown = [name for name in kwargs if name not in OPTIONS]
        if unknown:  # `__init__` ignores what a saved processor has beside its own
            raise TypeError(f"FlipProcessor: there is no option `{unknown[0]}`; there are {', '.join(OPTIONS)}.")
        check_count("FlipProcessor", "min_frequency", min_frequency, 1)
        if hasattr(fields, "weight_column"):  # a schema
            kwargs = {"label": fields.label, "weight": fields.weight_column} | kwargs
            fields, reading = fields.fields, fields.reading if reading is None else reading
        schema = read_fields(fields)
        if not schema:
            raise ValueError("FlipProcessor: `fields` must name at least one column; got none.")
        on_disk = hasattr(dataset, "map_parts")
        columns = {} if on_disk else read_columns(dataset, schema)
        counts = count_rows(dataset if on_disk else columns, schema)
        if not on_disk and not len(next(iter(columns.values())).codes):
            raise ValueError("FlipProcessor: there are no rows to learn the vocabularies from.")
        extractor = FlipFeatureExtractor.from_counts(counts, schema, min_frequency, hash_user_values)
        extractor.reading = reading or {}
        processor = cls(extractor, tokenizer, **kwargs)
        if not on_disk:
            processor._feature_counts = extractor.count_features([extractor.encode(columns)])
        if tokenizer is not None:
            rows = _spread(len(dataset) if on_disk else len(next(iter(columns.values())).codes))
            few = read_columns(dataset.take(rows), schema) if on_disk else columns
            processor.check_composition(few, range(len(rows)) if on_disk else rows, rows)
        return processor

    def grow(self, dataset: Any, min_frequency: int = 1) -> dict[str, int]:
        """Appends the values of newer rows that are in no vocabulary yet. All others keep their ids, and numeric fields
        their buckets; [`FlipPreTrainedModel.grow`] gives a model the rows for them.

        Args:
            dataset: newer training rows, in any form that `from_dataset` takes.
            min_frequency: values in fewer of them stay `[UNK]`.

        Returns: of each field with a vocabulary the number of its new values.

        Raises:
            ValueError: a column is missing or a value has another type; or values are hashed with a secret key that is
                not at hand.
        """
        fields = self.feature_extractor.id_fields
        rows = dataset if hasattr(dataset, "map_parts") else read_columns(dataset, fields)
        self._feature_counts = None  # of the rows that came before
        return self.feature_extractor.grow(count_rows(rows, fields), min_frequency)

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
        """The fields with the sizes of their vocabularies, for `FlipConfig(fields=...)`. Right after `from_dataset` of
        rows in memory they know how often each feature occurs there, so that [`FlipForPretraining`] does."""
        fields = [field.to_dict() for field in self.feature_extractor.all_fields]
        return ProcessorFields(fields, self.fingerprint, self._feature_counts)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint's model and processor have in common, see `fingerprint_flip`."""
        if self._tokenizer_digest is None and not self.id_only:
            self._tokenizer_digest = digest([json.dumps(sorted(self.tokenizer.get_vocab().items()))])
        extractor = self.feature_extractor.fingerprint
        return (
            {"format": CHECKPOINT_FORMAT} | extractor | {"prompts": self.prompts, "tokenizer": self._tokenizer_digest}
        )

    def check_model(self, config: FlipConfig, path: str) -> None:
        """Raises `ValueError` where the processor does not give the inputs of a model with that configuration.

        Args:
            path: where both lie, for the error.
        """
        ours, theirs = (
            {field.name: field.vocab_size for field in fields if field.on_id_side}
            for fields in (self.feature_extractor.all_fields, read_fields(config.fields))
        )
        for name in ours | theirs:
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{path}: field '{name}' has {ours.get(name, 'no')} ids in the processor, and "
                    f"{theirs.get(name, 'none')} in the model's configuration; they are not of one checkpoint."
                )
        other = differing(config.fingerprint, self.fingerprint)
        if other:
            raise ValueError(f"{path}: the processor is not of this model: they differ in {', '.join(other)}.")
        if config.strategy != "id" and config.text_config is not None and self.id_only:
            raise ValueError(f"{path}: the model reads text, and its processor has no tokenizer.")

    @property
    def text_fields(self) -> list[FlipField]:
        return [field for field in self.feature_extractor.all_fields if field.on_text_side]

    @property
    def prompt_fields(self) -> list[list[FlipField]]:
        """The fields of each of a row's prompts: all text fields in one, or those of each entity."""
        if self.prompts == "row":
            return [self.text_fields]
        entities = dict.fromkeys(field.entity for field in self.text_fields)
        return [[field for field in self.text_fields if field.entity == entity] for entity in entities]

    @property
    def model_input_names(self) -> list[str]:
        return ["feature_ids"] + ([] if self.id_only else ["input_ids", "attention_mask", "token_fields"])

    def without_tokenizer(self) -> "FlipProcessor":
        """The same processor for an ID-only model."""
        processor = FlipProcessor(self.feature_extractor, label=self.label, weight=self.weight)
        processor._feature_counts = self._feature_counts
        return processor

    def without_history(self) -> "FlipProcessor":
        """The same processor for rows whose histories are not read, as in pretraining."""
        extractor = copy.copy(self.feature_extractor)
        extractor.fields = [field for field in extractor.fields if not FlipField.from_dict(field).is_history]
        processor = copy.copy(self)
        processor.feature_extractor = extractor
        return processor

    # --- histories

    @property
    def history_field(self) -> FlipField | None:
        """The field of kind `history`, if there is one."""
        return history_field(self.feature_extractor.all_fields)

    def read_items(self, rows: Any) -> HistoryItems | None:
        """The items that histories name, from a table with a row an item, in any form that `__call__` takes; None where
        no field is a history.

        Raises:
            ValueError: a column is missing, a value has another type, or a key has two rows.
        """
        if self.history_field is None or rows is None:
            return None
        return rows if isinstance(rows, HistoryItems) else HistoryItems.read(rows, self.feature_extractor.all_fields)

    def encode_items(
        self, columns: dict[str, Column], builder: EntityPromptsBuilder | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Items of histories -> their feature ids `(I, slots of an item)`, and which of a builder's prompts each has
        `(I,)`; None where they have none."""
        fields = self.feature_extractor.all_fields
        on_id_side = [field.name for field in fields_of_items(fields) if field.on_id_side]
        ids = np.empty((len(next(iter(columns.values())).codes), 0), np.int32)
        if on_id_side:
            ids = self.feature_extractor.encode(columns, on_id_side).astype(np.int32)
        entity = None if builder is None else history_entity(fields, [some[0].entity for some in self.prompt_fields])
        return ids, None if entity is None else builder.add_entity(columns, entity)

    # --- prompts

    def prompt_texts(self, values: Sequence[Value]) -> list[str]:
        """The prompts of one row as text, from the canonical values of the text fields: one, or one an entity."""
        named = dict(zip([field.name for field in self.text_fields], values))
        return [self._prompt(fields, [named[field.name] for field in fields]) for fields in self.prompt_fields]

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

    def _tokenize_behind(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that begin with a space, as they are behind another word."""
        if not self._word:
            return self._tokenize(texts)
        return [ids[len(self._word) :] for ids in self._tokenize(["a" + text for text in texts])]

    def _tokenize_template(self, fields: list[FlipField]) -> list[list[int]]:
        """What stands before each value of a prompt, and the end."""
        if not fields:
            raise ValueError("no field is on the text side; a PLM needs at least one field with 'text' in its `sides`.")
        probe = self._tokenize(["a"])[0]
        whole = self.tokenizer("a")["input_ids"]
        position = next(i for i in range(len(whole) + 1) if whole[i : i + len(probe)] == probe)
        prefix, suffix = whole[:position], whole[position + len(probe) :]
        wordings = [field.wording for field in fields]
        start = self._tokenize([f"{wordings[0]} is"])[0]
        later = self._tokenize_behind([f" ; {wording} is" for wording in wordings[1:]]) if wordings[1:] else []
        return [prefix + start, *later, suffix]

    def _check_length(self) -> None:
        for pieces, fields in zip(self._templates, self.prompt_fields):
            template, budget = sum(map(len, pieces)), sum(field.max_tokens for field in fields)
            if self.max_length is not None and template + budget > self.max_length:
                listed = ", ".join(f"{field.name} {field.max_tokens}" for field in fields[:MOST_LISTED])
                listed += f", and {len(fields) - MOST_LISTED} more" * (len(fields) > MOST_LISTED)
                fewer = "take fields out of the prompt, by --prompt_fields or by `sides: [id]` in the schema"
                lower = "lower `max_tokens` of some fields in the schema"
                # below one token a value nothing is left to lower
                way_out = fewer if template + len(fields) > self.max_length else f"{lower}, or {fewer}"
                raise ValueError(
                    f"the prompt's template ({template} tokens) and the budgets of its {len(fields)} fields ({listed}) "
                    f"exceed the PLM's maximum of {self.max_length} tokens; {way_out}."
                )

    def _value_tokens(self, field: FlipField, values: Sequence[Value], budget: int | None) -> list[list[int]]:
        words = [" " + self.value_text(field, value) for value in values]
        return [tokens[:budget] for tokens in self._tokenize_behind(words)] if words else []

    def _cached_tokens(self, field: FlipField, values: Sequence[Value], budget: int | None) -> list[list[int]]:
        new = [value for value in values if (field.name, value) not in self._cache]
        if len(self._cache) + len(new) > MAX_CACHED_VALUES:
            self._cache.clear()
            new = list(values)
        tokens = dict(zip(new, self._value_tokens(field, new, budget)))
        if len(new) <= MAX_CACHED_VALUES:
            self._cache.update({(field.name, value): ids for value, ids in tokens.items()})
        return [tokens[value] if value in tokens else self._cache[field.name, value] for value in values]

    def piece_builders(self, cached: bool = False, truncate: bool = True) -> list[PromptTableBuilder]:
        """An empty table for each of a row's prompts, with its template; values are cut to their fields' budgets.

        Args:
            cached: keep the tokens of values for the next table (for few rows at a time).
            truncate: False leaves values whole.
        """
        tokenize = self._cached_tokens if cached else self._value_tokens

        def reader(fields: list[FlipField]):
            return lambda number, values: tokenize(
                fields[number], values, fields[number].max_tokens if truncate else None
            )

        return [
            PromptTableBuilder(pieces, reader(fields)) for pieces, fields in zip(self._templates, self.prompt_fields)
        ]

    def entity_prompts_builder(self, cached: bool = False) -> EntityPromptsBuilder:
        """No prompts yet; see [`EntityPromptsBuilder`]. `cached` as of `piece_builders`."""
        numbers = {field.name: number for number, field in enumerate(self.text_fields)}
        fields = [{field.name: numbers[field.name] for field in fields} for fields in self.prompt_fields]
        return EntityPromptsBuilder(self.piece_builders(cached), fields, self.pad_token_id)

    @property
    def pad_token_id(self) -> int:
        """What prompts are padded with; attention never sees it."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def encode_prompts(self, columns: dict[str, Column], cached: bool = False) -> RowPrompts:
        """Row prompts; `cached` as of `piece_builders`."""
        (pieces,) = self.piece_builders(cached)
        entries = pieces.add([columns[field.name] for field in self.text_fields])
        return RowPrompts(pieces.table(self.pad_token_id), entries)

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
        few = {}
        for name in [field.name for field in self.text_fields]:
            few[name] = columns[name].take(picked)
        for pieces, fields in zip(self.piece_builders(truncate=False), self.prompt_fields):
            of_prompt = [few[field.name] for field in fields]
            entries = pieces.add(of_prompt)
            composed = pieces.table(self.pad_token_id).compose(entries)
            for i, row in enumerate(numbers):
                got = composed["input_ids"][i][composed["attention_mask"][i] == 1].tolist()
                self._compare(got, self._prompt(fields, [column.values[column.codes[i]] for column in of_prompt]), row)

    def _compare(self, got: list[int], prompt: str, row: int) -> None:
        expected = list(self.tokenizer(prompt, split_special_tokens=True, truncation=False, verbose=False)["input_ids"])
        if got != expected:
            at = next((j for j, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
            convert = self.tokenizer.convert_ids_to_tokens
            raise ValueError(
                f"prompts do not compose with {type(self.tokenizer).__name__}: row {row}, token {at} of {prompt!r} "
                f"is {convert(got[at : at + 3])} in pieces and {convert(expected[at : at + 3])} as a whole. "
                "This tokenizer joins text across spaces; use a PLM whose tokenizer does not."
            )

    # --- rows to inputs

    def __call__(self, rows: Any, return_tensors: str | None = "pt", items: Any = None) -> BatchFeature:
        """Rows -> a batch of model inputs. Never masks anything.

        Args:
            rows: a dict of columns; one row as a dict (single-valued fields are scalars in it) or a pandas Series; a
                list of such rows; a pandas, polars or Arrow table, a DuckDB relation, or anything else that has an
                Arrow stream; a `datasets` dataset or batch; or an iterator of rows. A column has the name of its
                field, or of the field's `column`; columns that are no field are ignored. A multi-valued field has a
                list in each row, or text, see [`FlipField`].
            return_tensors: `"pt"`, or `"np"` or `None` for arrays.
            items: the items that the rows' histories name, with all fields of an item, as `read_items` takes them, or
                what it returns, where there are many calls; not needed where the entries of the histories have these
                fields themselves.

        Returns:
            `feature_ids` `(B, S)`; with histories `history_ids` `(B, n, slots of an item)` and `history_outcomes` `(B,
            n)`: 1 not clicked, 2 clicked, 0 behind a shorter history; with a tokenizer `input_ids`, `attention_mask`,
            and `token_fields`: the number of the text field that a token is of, -1 for none (pretraining masks fields),
            `(B, L)`, or with entity prompts `(B, E, L)`, one prompt an entity, and `(B, E + n, L)` with those of a
            history's entries behind them; `labels` and `sample_weight` `(B,)` where the rows have these columns.

        Raises:
            ValueError: a column is missing, or a value has another type: names column and row.
        """
        rows = self.read_rows(rows)
        encoded = self.encode(rows, cached=True, items=items)
        batch = encoded.batch(np.arange(len(encoded)))
        index = batch.pop("prompt_index", None)
        if index is not None:  # a prompt for each row: what is cut or joined along the rows stays right
            batch |= {name: batch[name][index] for name in ("input_ids", "attention_mask", "token_fields")}
        labels, weights = self.read_targets(rows)
        if labels is not None:
            batch["labels"] = labels
        if weights is not None:
            batch["sample_weight"] = weights
        return BatchFeature(batch, tensor_type=return_tensors)

    def read_rows(self, rows: Any) -> RawRows:
        """Rows in any form that `__call__` takes, whose columns can then be asked for many times."""
        return RawRows.of(rows, self.feature_extractor.all_fields)

    def encode(self, rows: Any, prompts: bool = True, cached: bool = False, items: Any = None) -> EncodedRows:
        """Rows in any form that `__call__` takes -> [`EncodedRows`], each distinct value encoded once.

        Args:
            prompts: whether to make the textual view too, where there is a tokenizer.
            cached: keep the tokens of values for the next call (for few rows at a time).
            items: as of `__call__`.
        """
        rows = self.read_rows(rows)
        columns = self.feature_extractor.read(rows)
        fields = self.feature_extractor.all_fields
        histories = None
        if history_field(fields) is not None:
            histories = read_histories(rows, fields, self.read_items(items))
        return self.encode_columns(columns, histories, prompts, cached)

    def encode_columns(
        self,
        columns: dict[str, Column],
        histories: tuple[np.ndarray, np.ndarray, dict[str, Column]] | None = None,
        prompts: bool = True,
        cached: bool = False,
    ) -> EncodedRows:
        """The canonical values of rows -> [`EncodedRows`].

        Args:
            columns: of all fields but the history.
            histories: what [`read_histories`] returns; needed where a field is a history.
            prompts, cached: as of `encode`.
        """
        feature_ids = self.feature_extractor.encode(columns)
        of_rows: RowPrompts | EntityPrompts | None = None
        builder = of_histories = None
        if prompts and not self.id_only:
            if self.prompts == "row":
                of_rows = self.encode_prompts(columns, cached)
            else:
                builder = self.entity_prompts_builder(cached)
                index = builder.add(columns)
        if histories is not None:
            numbers, outcomes, of_items = histories
            numbers, of_items = only_named(numbers, of_items)
            of_histories = Histories(numbers, outcomes, *self.encode_items(of_items, builder))
        if builder is not None:
            of_rows = builder.prompts(index)
        return EncodedRows(feature_ids, of_rows, of_histories)

    def read_targets(self, rows: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The clicks `(rows,)` int64 and weights `(rows,)` float32, None where the rows have no such column.

        Raises:
            ValueError: a label is not 0 or 1, or a weight is not a number of at least 0; names column and row.
        """
        label = FlipField(self.label, "float")
        weight = FlipField(self.weight, "float", nullable=False) if self.weight else None
        columns = self.read_rows(rows).columns([], [label, *([weight] if weight else [])])
        labels = weights = None
        if self.label in columns:
            column = Column.read(columns[self.label], label, canonical_label)
            labels = column.map({"0": 0, "1": 1}, -1)
            if (labels < 0).any():
                row = int((labels < 0).argmax())
                value = column.values[column.codes[row]]
                raise RowError(self.label, row, f"a label must be 0 or 1, got {value}")
        if weight is not None and self.weight in columns:
            column = Column.read(columns[self.weight], weight)
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
            "prompts": self.prompts,
            "processor_class": type(self).__name__,
            "fingerprint": self.fingerprint,
        } | ({"auto_map": self.auto_map} if hasattr(self, "auto_map") else {})

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Saves the processor, the tokenizer where it has one, and the code, so that `from_pretrained` reads them
        back."""
        with new_files(save_directory, PROCESSOR_NAME, [VOCABULARY_FILE]) as partial:
            self._save(partial, **kwargs)
            saved = [os.path.join(save_directory, name) for name in sorted(os.listdir(partial))]
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            self.push_to_hub(repo_id, **kwargs)
        return saved

    def _save(self, folder: str, **kwargs) -> None:
        if self.id_only:  # the base class expects a tokenizer
            for part in (self.feature_extractor, self):
                custom_object_save(part, folder, config=part)  # type: ignore[arg-type]
        else:
            super().save_pretrained(folder, **kwargs)
        self.feature_extractor.save_vocabularies(folder)
        files = TOKENIZER_FILES + tuple(getattr(self.tokenizer, "vocab_files_names", {}).values())
        write_with_checksums(
            folder, PROCESSOR_NAME, json.loads(self.to_json_string()), {} if self.id_only else checksums(folder, files)
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers.

        Raises:
            ValueError: files are damaged or not of this checkpoint, see [`check_checkpoint`].
        """
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        check_checkpoint(str(pretrained_model_name_or_path), PROCESSOR_NAME, hub)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        if (processor_dict or {}).get("id_only"):
            return [AutoFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **kwargs)]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)


__all__ = ["FlipProcessor"]
