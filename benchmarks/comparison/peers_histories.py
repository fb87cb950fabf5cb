# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a peer that reads histories is given: the events and outcomes of the dataset folder, and frozen states of texts.

The histories are those that our models read, of the same rows, entries and outcomes. An item's text is its prompt, of
which a PLM's states are averaged over the tokens once, before training.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from flip_ctr.benchmarks.comparison.peers import PeerData
from flip_ctr.modeling_flip.fields_flip import fields_of_items
from flip_ctr.modeling_flip.histories_flip import NO_ITEM

PROMPTS_AT_ONCE = 256


class RowHistories(NamedTuple):
    """The histories of some rows, and their own items.

    Args:
        items: `(B, n)` numbers of the entries' items, 0 where there is none.
        outcomes: `(B, n)`: 0 no entry, 1 not clicked, 2 clicked.
        target_ids: `(B, slots of an item)` feature ids of the row's item.
        target_texts: `(B, H)` of the row's item; None without a PLM.
    """

    items: torch.Tensor
    outcomes: torch.Tensor
    target_ids: torch.Tensor
    target_texts: torch.Tensor | None


class HistoryData(PeerData):
    """A dataset folder whose rows have histories.

    Args:
        model_name_or_path: the PLM that reads the items' texts; None for ids alone.

    Attributes:
        item_columns: the fields of an entry, in columns of `item_ids`.
        item_ids: `(I, slots of an item)` feature ids of all items.
        texts: `(T, H)` of the distinct texts; None without a PLM.

    Raises:
        ValueError: the folder has no histories.
    """

    def __init__(self, dataset_dir: str, model_name_or_path: str | None = None):
        from transformers import AutoTokenizer

        tokenizer = None if model_name_or_path is None else AutoTokenizer.from_pretrained(model_name_or_path)
        super().__init__(dataset_dir, tokenizer)
        histories = self.splits["train"].encoded.histories
        if histories is None:
            raise ValueError(f"{dataset_dir}: the rows have no histories; make them with `prepare --history`")
        self.item_ids = torch.from_numpy(np.array(histories.item_ids, np.int64))
        by_name = {one.name: one for one in self.columns}
        fields = fields_of_items(self.processor.feature_extractor.all_fields)
        of_items = [by_name[field.name] for field in fields if field.on_id_side]
        stops = np.cumsum([one.stop - one.start for one in of_items])
        self.item_columns = [
            replace(one, start=int(stop - one.stop + one.start), stop=int(stop)) for one, stop in zip(of_items, stops)
        ]
        self.item_slots = [slot for one in of_items for slot in range(one.start, one.stop)]
        self.texts: torch.Tensor | None = None
        self.row_texts: dict[str, np.ndarray] = {}
        if model_name_or_path is not None:
            self._read_texts(model_name_or_path)

    def _read_texts(self, model_name_or_path: str) -> None:
        """The states of all items' prompts, and which of them each row's item and each item of a history has."""
        known: dict[bytes, int] = {}  # tokens of each distinct prompt
        entity = [fields[0].entity for fields in self.processor.prompt_fields].index(self.item_columns[0].field.entity)
        for split, dataset in self.splits.items():
            prompts, of_items = dataset.encoded.prompts, dataset.encoded.histories.item_prompts
            parts = np.split(np.asarray(prompts.tokens), prompts.offsets[1:-1])
            used, places = np.unique(np.concatenate([prompts.index[:, entity], of_items]), return_inverse=True)
            numbers = np.array([known.setdefault(parts[one].tobytes(), len(known)) for one in used])[places]
            self.row_texts[split], self.item_texts = numbers[: len(dataset)], torch.from_numpy(numbers[len(dataset) :])
        self.texts = pooled_states(model_name_or_path, [np.frombuffer(one, np.int32) for one in known])

    def ids(self, split: str) -> np.ndarray:
        """Feature ids, and behind them the items and outcomes of the history, and the number of the item's text."""
        histories = self.splits[split].encoded.histories
        items = np.where(histories.items == NO_ITEM, 0, histories.items)
        texts = self.row_texts.get(split, np.zeros(len(items), np.int64))[:, None]
        return np.concatenate([super().ids(split), items, histories.outcomes, texts], axis=1)

    def history(self, ids: torch.Tensor) -> RowHistories:
        """What stands behind the feature ids of rows that `ids` gave."""
        slots = self.columns[-1].stop
        items, outcomes = ids[:, slots:-1].chunk(2, dim=1)
        texts = None if self.texts is None else self.texts[ids[:, -1]]
        return RowHistories(items, outcomes, ids[:, self.item_slots], texts)


@torch.no_grad()
def pooled_states(model_name_or_path: str, prompts: list[np.ndarray]) -> torch.Tensor:
    """The mean over the tokens of what a PLM says of each prompt, `(T, H)`, each of mean 0 and variance 1."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(model_name_or_path).eval()
    states = torch.empty(len(prompts), model.config.hidden_size)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), PROMPTS_AT_ONCE):
        numbers = order[start : start + PROMPTS_AT_ONCE]
        tokens = [torch.from_numpy(prompts[number].astype(np.int64)) for number in numbers]
        ids = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        states[numbers] = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.layer_norm(states, states.shape[-1:])
