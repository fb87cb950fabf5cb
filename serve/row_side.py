# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""One side of rows, the items' or the users': some of the fields -> their feature ids, and what their prompts say."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from tqdm.auto import tqdm

from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import FlipField, history_entity
from flip_ctr.modeling_flip.modeling_flip import FlipPreTrainedModel
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.prompt_tables_flip import EntityPrompts
from flip_ctr.serve.candidate_model import TextParts

PROMPTS_AT_ONCE = 64  # that the PLM reads together
ROWS_AT_ONCE = 65_536  # whose texts are read together
MANY_PROMPTS = 1_000  # of which a bar says how many are read


class RowSide:
    """Some of the fields of rows.

    Args:
        fields: of this side; those of one entity's prompt are all of one side.
        reads_items: whether what histories read of items is wanted too.
        dtype: of what is kept of texts; as computed when None.
        remembers: of how many texts what was read last is remembered: many users have the same.
        lock: of the tokenizer, where another side has it too.
    """

    def __init__(
        self,
        model: FlipPreTrainedModel,
        processor: FlipProcessor,
        fields: Sequence[FlipField],
        reads_items: bool = False,
        dtype: torch.dtype | None = None,
        remembers: int = 0,
        lock: AbstractContextManager | None = None,
    ):
        self.model, self.processor, self.fields, self.dtype = model, processor, list(fields), dtype
        names = {field.name for field in fields}
        self.keeps_text = model.base_model.text_encoder is not None and model.config.prompts == "entity"
        of_prompts = processor.prompt_fields if self.keeps_text else []
        self.entities = [number for number, prompt in enumerate(of_prompts) if prompt[0].name in names]
        history = history_entity(processor.feature_extractor.all_fields, [prompt[0].entity for prompt in of_prompts])
        self._item = self.entities.index(history) if reads_items and history is not None else None
        self.lock = lock or threading.Lock()  # a tokenizer is for one thread at a time
        self._remembers, self._remembered = remembers, OrderedDict[tuple, list[torch.Tensor | None]]()

    def slots(self, names: Collection[str]) -> list[int]:
        """The slots of `feature_ids` that are of some fields."""
        fields = self.model.config.id_fields
        return [slot for slot, field in enumerate(self.model.config.slot_fields) if fields[field].name in names]

    def encode_ids(self, columns: Mapping[str, Column], rows: int) -> torch.Tensor:
        """`(rows, their slots)` int32 local feature ids of the columns that are on the ID side."""
        names = [field.name for field in self.fields if field.on_id_side and field.name in columns]
        ids = np.empty((rows, 0), np.int64)
        if names:
            ids = self.processor.feature_extractor.encode(columns, names)
        return torch.from_numpy(ids.astype(np.int32)).to(self.model.device)

    @torch.no_grad()
    def read_text(self, columns: dict[str, Column], rows: int) -> TextParts | None:
        """What the prompts of this side say; None for a model whose prompts hold both sides, or that has none."""
        if not self.keeps_text:
            return None
        if 0 < rows <= self._remembers and self.entities:
            return self._recall(columns, rows)
        starts = range(0, max(rows, 1), ROWS_AT_ONCE)
        parts = [self._read_part(columns, range(start, min(start + ROWS_AT_ONCE, rows))) for start in starts]
        return TextParts(*(None if some[0] is None else torch.cat(some) for some in zip(*parts)))

    def _recall(self, columns: dict[str, Column], rows: int) -> TextParts:
        """As `read_text`; texts that are remembered are not read."""
        names = [field.name for entity in self.entities for field in self.processor.prompt_fields[entity]]
        said = zip(*([columns[name].values[code] for code in columns[name].codes] for name in names))
        first: dict[tuple, int] = {}
        places = [first.setdefault(values, row) for row, values in enumerate(said)]
        with self.lock:
            known = {values: self._remembered[values] for values in first if values in self._remembered}
        new = {values: row for values, row in first.items() if values not in known}
        if new:
            read = self._read_part({name: columns[name].take(list(new.values())) for name in names}, range(len(new)))
            known |= {values: [None if part is None else part[n] for part in read] for n, values in enumerate(new)}
        with self.lock:
            for values in first:
                self._remembered[values] = known[values]
                self._remembered.move_to_end(values)
            while len(self._remembered) > self._remembers:
                self._remembered.popitem(last=False)
        by_row = {row: known[values] for values, row in first.items()}
        parts = zip(*(by_row[place] for place in places))
        return TextParts(*(None if some[0] is None else torch.stack(some) for some in parts))

    def _read_part(self, columns: dict[str, Column], rows: range) -> TextParts:
        interaction = self.model.base_model.text_interaction
        if not self.entities:  # all prompts are of the other side
            sizes = interaction.product.out_features, interaction.product.in_features
            return TextParts(*(interaction.product.weight.new_zeros(len(rows), size) for size in sizes))
        states = self.pooled(columns, rows)
        own, factors = interaction.parts(states, self.entities)
        query = entry = None
        if self._item is not None:
            query = interaction.history.target(states[:, self._item])
            entry = interaction.history.entry(states[:, self._item])
        parts = own, factors, query, entry
        return TextParts(*(part if part is None else part.to(self.dtype or part.dtype) for part in parts))

    @torch.no_grad()
    def pooled(self, columns: Mapping[str, Column], rows: range) -> torch.Tensor:
        """The pooled states of some rows' prompts, `(rows, prompts of this side, H)`; equal ones are read once."""
        with self.lock:
            builder = self.processor.entity_prompts_builder()
            few = {name: columns[name].take(rows) for entity in self.entities for name in builder.fields[entity]}
            index = np.stack([builder.add_entity(few, entity) for entity in self.entities], axis=1)
        return self._read_prompts(builder.prompts(index))[torch.from_numpy(index.astype(np.int64))]

    def _read_prompts(self, prompts: EntityPrompts) -> torch.Tensor:
        """The pooled states of all prompts, `(P, H)`; those of similar length are read together."""
        flip, count = self.model.base_model, len(prompts.offsets) - 1
        order = np.argsort(-np.diff(prompts.offsets), kind="stable")
        alone = EntityPrompts(
            prompts.tokens, prompts.token_fields, prompts.offsets, np.arange(count)[:, None], prompts.pad_token_id
        )
        found = []
        with tqdm(total=count, unit="text", dynamic_ncols=True, disable=count < MANY_PROMPTS) as bar:
            for start in range(0, count, PROMPTS_AT_ONCE):
                numbers = order[start : start + PROMPTS_AT_ONCE]
                batch = {name: torch.from_numpy(values) for name, values in alone.batch(numbers).items()}
                inputs = [batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")]
                found.append(flip.pooled_text(*inputs)[batch["prompt_index"][:, 0].to(self.model.device)])
                bar.update(len(numbers))
        if not found:
            return torch.empty(0, flip.config.text_config.hidden_size, device=self.model.device)
        return torch.cat(found)[torch.from_numpy(np.argsort(order))]
