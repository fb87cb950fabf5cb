# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the parts of a row do for its score: the row is scored again without each of them.

A field is left out as a null is read: on the ID side the id of a null, in the prompt the words for one. A key with a
vocabulary gets `[UNK]` there, as training leaves the ids of users and items out so (`unk_rate`). A history is left out
as an empty one, and an entry of it as if it had never been there.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from scipy.special import expit
from torch import nn

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import UNK_ID, FlipField, check_count, fields_of_items, history_field
from flip_ctr.modeling_flip.histories_flip import IS_CLICKED, NO_ENTRY, NO_ITEM, read_histories
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.pipeline_flip import DEFAULT_BATCH_SIZE
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.prompt_tables_flip import EncodedRows
from flip_ctr.train.loop.prompt_states import PromptReader
from flip_ctr.train.loop.scoring import LOG_ODDS, ROWS_AHEAD, score, score_rows
from flip_ctr.train.models.lora import plain
from flip_ctr.train.outputs.metrics import Effects, PartEffect, auc_difference

WEIGHT = "id_weight"
WHOLE, EVERYTHING, FIRST_FIELD = 0, 1, 2  # what the first copies of a row lack: nothing, and all that is read of it
FIELD, HISTORY, ENTRY = "field", "history", "entry"  # kinds of parts
SIDES = {"id": "id_logits", "text": "text_logits"}  # of a joint model -> their log odds in its output
# Rows of validation that a card is made from, by what the PLM reads of a row: to score them without each field takes
# about as long as to score a validation split of some thousand rows once.
MOST_ROWS = {"nothing": 2_000, "entity": 1_000, "row": 500}

Score = Callable[[EncodedRows], dict[str, np.ndarray]]  # what a model says of rows, by the names of its output
Histories = tuple[np.ndarray, np.ndarray, dict[str, Column]]  # what `read_histories` returns


class Copies(NamedTuple):
    """Rows several times: M copies, each without a part.

    Attributes:
        encoded: the copies.
        rows: `(M,)` the row that a copy is of, in order.
        parts: `(M,)` what it lacks: 0 nothing, 1 everything, then the fields, the history, and its entries, oldest
            first.
    """

    encoded: EncodedRows
    rows: np.ndarray
    parts: np.ndarray


class RowParts:
    """Rows, and the parts of them that a model reads.

    Args:
        model, processor: of one checkpoint.
        columns: of all fields of the processor but the history.
        histories: what [`read_histories`] returns, where a field is a history.

    Attributes:
        fields: that the model reads, without the history.
        history: the field of the history, if there is one.
    """

    def __init__(
        self,
        model: FlipForCTR,
        processor: FlipProcessor,
        columns: dict[str, Column],
        histories: Histories | None = None,
    ):
        self.processor, self.columns, self.histories = processor, columns, histories
        extractor, strategy = processor.feature_extractor, model.config.strategy
        self.reads_text = strategy != "id"
        every, of_ids = extractor.all_fields, extractor.id_fields
        if strategy == "plm":  # the text side may read numbers of the ID side
            slots = model.config.number_slots if model.text_numbers is not None else []
            of_ids = [of_ids[extractor.slot_fields[slot]] for slot in slots]
        names = [one.name for one in of_ids]
        self.fields = [one for one in every if one.name in names or (one.on_text_side and self.reads_text)]
        self.history = history_field(every)
        # the slot of each key that is left out as [UNK]
        self._key_slots = {
            field.name: extractor.slot_fields.index(number) for number, field in extractor.key_fields.items()
        }

    @classmethod
    def read(cls, model: FlipForCTR, processor: FlipProcessor, rows: Any, items: Any = None) -> "RowParts":
        """Of rows, and of the items that their histories name, in any form that [`FlipProcessor.__call__`] takes.
        `ValueError` where a column is missing or a value has another type."""
        rows = processor.read_rows(rows)
        columns, fields = processor.feature_extractor.read(rows), processor.feature_extractor.all_fields
        histories = None
        if history_field(fields) is not None:
            histories = read_histories(rows, fields, processor.read_items(items))
        return cls(model, processor, columns, histories)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).codes)

    @property
    def names(self) -> list[str]:
        """The fields, and the history behind them."""
        return [field.name for field in self.fields] + ([] if self.history is None else [self.history.name])

    def copies(self, picked: np.ndarray, entries: bool = True) -> Copies:
        """The copies of some rows, those of a row one behind the other; `entries`: also without each entry of its
        history."""
        fixed = FIRST_FIELD + len(self.names)
        lengths = np.zeros(len(picked), np.int64)
        if self.histories is not None and entries:
            lengths = (self.histories[1][picked] != NO_ENTRY).sum(1)
        counts = fixed + lengths
        rows = np.repeat(np.arange(len(picked)), counts)
        parts = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
        lacks = {name: (parts == EVERYTHING) | (parts == FIRST_FIELD + n) for n, name in enumerate(self.names)}
        columns = {}
        for name, column in self.columns.items():
            few = column.take(picked)
            codes = few.codes[rows]
            if name in lacks:
                codes[lacks[name]] = len(few.values)
            columns[name] = Column([*few.values, None], codes)
        histories = self.histories
        if histories is not None and self.history is not None:
            numbers, outcomes = histories[0][picked][rows], histories[1][picked][rows]
            numbers[lacks[self.history.name]], outcomes[lacks[self.history.name]] = NO_ITEM, NO_ENTRY
            one_less = parts >= fixed
            _remove(numbers, one_less, parts[one_less] - fixed, NO_ITEM)
            _remove(outcomes, one_less, parts[one_less] - fixed, NO_ENTRY)
            histories = numbers, outcomes, histories[2]
        encoded = self.processor.encode_columns(columns, histories, self.reads_text, cached=True)
        for name, slot in self._key_slots.items():
            if name in lacks:
                encoded.feature_ids[lacks[name], slot] = UNK_ID
        return Copies(encoded, rows, parts)

    def explain(self, score: Score) -> Iterator[dict[str, Any]]:
        """What [`explain`] says of each row."""
        longest = 0 if self.histories is None else self.histories[0].shape[1]
        at_once = max(1, ROWS_AHEAD // (FIRST_FIELD + len(self.names) + longest))
        for start in range(0, len(self), at_once):
            picked = np.arange(start, min(start + at_once, len(self)))
            encoded, rows, parts = self.copies(picked)
            found = {name: values.tolist() for name, values in score(encoded).items()}
            bounds = np.searchsorted(rows, np.arange(len(picked) + 1)).tolist()
            for row, first, last in zip(picked.tolist(), bounds, bounds[1:]):
                yield self._answer(row, {name: values[first:last] for name, values in found.items()})

    def _answer(self, row: int, found: dict[str, list[float]]) -> dict[str, Any]:
        """The answer for a row, from what the model says of its copies by the names of its output."""
        log_odds, joint = found["logits"], WEIGHT in found
        whole, base = log_odds[WHOLE], log_odds[EVERYTHING]
        answer: dict[str, Any] = {"click_probability": float(expit(whole)), "log_odds": whole}
        if joint:
            answer |= {f"{side}_log_odds": found[output][WHOLE] for side, output in SIDES.items()}
            answer[WEIGHT] = found[WEIGHT][WHOLE]
        parts = []
        for number, (kind, name, value) in enumerate(self._described(row), FIRST_FIELD):
            part = {"kind": kind, "part": name, "value": value}
            part |= {"log_odds": log_odds[number], "change": whole - log_odds[number]}
            if joint:
                part |= {f"{side}_change": found[one][WHOLE] - found[one][number] for side, one in SIDES.items()}
            parts.append(part)
        changes = sum(part["change"] for part in parts if part["kind"] != ENTRY)
        return answer | {"base_log_odds": base, "remainder": whole - base - changes, "parts": parts}

    def _described(self, row: int) -> Iterator[tuple[str, str, str | None]]:
        """Kind, name and value of each part of a row, in the order of its copies."""
        for field in self.fields:
            yield FIELD, field.name, _text(self.columns[field.name], row, field)
        if self.history is None or self.histories is None:
            return
        numbers, outcomes, items = self.histories
        length = int((outcomes[row] != NO_ENTRY).sum())
        yield HISTORY, self.history.name, f"{length} entr{'y' if length == 1 else 'ies'}"
        of_item = fields_of_items(self.processor.feature_extractor.all_fields)
        key = next(field for field in of_item if field.name == self.history.history_of)
        label = next((one for one in of_item if one.on_text_side and one.type == "string"), key)
        for place in range(length):
            number, clicked = int(numbers[row, place]), outcomes[row, place] == IS_CLICKED
            called = _text(items[label.name], number, label) or f"{key.wording} {_text(items[key.name], number, key)}"
            value = f"{called}, {'clicked' if clicked else 'not clicked'}"
            yield ENTRY, f"{self.history.name}[{place - length}]", value


def _text(column: Column, row: int, field: FlipField) -> str | None:
    value = column.values[column.codes[row]]
    return None if value is None else field.value_text(value)


def _remove(entries: np.ndarray, rows: np.ndarray, places: np.ndarray, filler: int) -> None:
    """Takes the entry at a place out of each of some rows of `(rows, n)`; the later ones move up."""
    kept = np.arange(entries.shape[1] - 1)
    kept = kept + (kept >= places[:, None])
    entries[rows] = np.pad(np.take_along_axis(entries[rows], kept, 1), ((0, 0), (0, 1)), constant_values=filler)


class OneDevice:
    """What scoring asks of an `Accelerator`, of a model that computes where it is."""

    distributed_type = DistributedType.NO

    def __init__(self, device: torch.device):
        self.device = device

    def autocast(self) -> AbstractContextManager:
        return nullcontext()


def scorer(
    model: nn.Module, processor: FlipProcessor, batch_size: int, accelerator: Accelerator | None = None
) -> Score:
    """Scores encoded rows in this process, each distinct entity prompt once; without an Accelerator where the model
    is."""
    accelerator = cast(Accelerator, OneDevice(model.device)) if accelerator is None else accelerator
    reader = PromptReader.of(accelerator, model, batch_size)
    return lambda encoded: score_rows(
        accelerator, model, EncodedDataset(processor, encoded), batch_size, reader, (*LOG_ODDS, WEIGHT)
    )


def explain(
    model: FlipForCTR, processor: FlipProcessor, rows: Any, items: Any = None, batch_size: int = DEFAULT_BATCH_SIZE
) -> dict[str, Any] | list[dict[str, Any]]:
    """How much of a row's score is each field, its history, and each entry of that; of a joint model also how much is
    the ids and the text.

    ```python
    >>> from flip_ctr import FlipForCTR, FlipProcessor, explain
    >>> model, processor = (one.from_pretrained("org/flip-ml-100k") for one in (FlipForCTR, FlipProcessor))
    >>> row = {"user_id": 12, "gender": "male", "age": 24, "occupation": "student", "zip_code": "94043"}
    >>> answer = explain(model, processor, row | {"movie_id": 313, "title": "Titanic (1997)", "genre": "Drama"})
    >>> {part["part"]: part["change"] for part in answer["parts"]}
    ```

    The row is scored again without each part: a `change` is the log odds of the whole row less those without the part,
    above 0 where the part raises the score. The changes need not add up to the score: of two fields that say the same
    (a title and its id) each is missed little, and both together much.

    What is said of a row:

    * `click_probability`, and `log_odds` of a click;
    * of strategy `joint` `id_log_odds` and `text_log_odds`, the score by the ids alone and by the text alone, and
      `id_weight`, the weight of the ids in the joint score;
    * `parts`: a dict for each field that the model reads (`kind` `field`), for the history (`history`) and for each
      of its entries (`entry`, oldest first: `history[-1]` is the newest), with the name (`part`), the `value` as
      text (None for a null), the `log_odds` without it, and the `change`; of strategy `joint` also the changes of
      the two sides, `id_change` and `text_change`;
    * `base_log_odds`: the log odds with all fields and the history left out;
    * `remainder`: what the changes of fields and history lack to `log_odds - base_log_odds`.

    Args:
        model, processor: of one checkpoint. The model is in eval mode meanwhile.
        rows: one row, or many, in any form that [`FlipProcessor.__call__`] takes.
        items: the items that histories name, as of [`FlipProcessor.__call__`].
        batch_size: rows the model takes at once; a row is as many as it has parts, and two.

    Returns:
        A dict for one row, a list in the order of the rows for many.

    Raises:
        ValueError: the model is no click model or the processor not its own; a column is missing, or a value has
            another type: names column and row.
    """
    if not hasattr(model, "fusion"):  # the class may be of a checkpoint's own code
        raise ValueError(f"explain: a FlipForCTR is needed, which predicts clicks; got {type(model).__name__}.")
    check_count("explain", "batch_size", batch_size, 1)
    processor.check_model(model.config, model.name_or_path or "explain")
    rows = processor.read_rows(rows)
    parts = RowParts.read(model, processor, rows, items)
    with evaluating(model):
        answers = list(parts.explain(scorer(model, processor, batch_size)))
    return answers[0] if rows.is_one_row else answers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in eval mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# --- over many rows


def measure_effects(
    accelerator: Accelerator, model: nn.Module, processor: FlipProcessor, rows: SplitRows, seed: int, batch_size: int
) -> Effects:
    """What each field and the history do on a seeded sample of a split's rows. Each process scores a part of them, and
    all processes get the same."""
    inner = plain(accelerator.unwrap_model(model))
    config = inner.config
    most = MOST_ROWS["nothing" if config.strategy == "id" else config.prompts]
    picked = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    table = rows.take(picked)
    labels, _ = processor.read_targets(table)
    both = len(np.unique(labels)) > 1
    parts = RowParts.read(inner, processor, table, rows.map_items(processor.read_items))
    encoded = parts.copies(np.arange(len(picked)), entries=False).encoded
    scores = score(accelerator, model, EncodedDataset(processor, encoded), batch_size)["logits"]
    logits = scores.astype(np.float64).reshape(len(picked), -1).T  # (copies of a row, rows)
    effects = []
    for name, without in zip(parts.names, logits[FIRST_FIELD:], strict=True):
        lost, error = auc_difference(logits[WHOLE], without, labels) if both else (math.nan, math.nan)
        effects.append(PartEffect(name, float(abs(logits[WHOLE] - without).mean()), lost, error))
    return Effects(sorted(effects, key=lambda one: -one.change), len(picked))
