# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Entity prompts: one for each entity of a row, which all rows of that entity share, so that the PLM reads it once.

This is our own design on top of the paper, whose prompts are one a row. Shapes below: B rows, E entities with fields in
the prompts, P distinct prompts, L tokens, S slots of `feature_ids`, H the PLM's hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import MASK_ID, PAD_ID
from .id_tower import bi_interaction, integer_keys
from .target_attention_flip import FlipTargetAttention

INTERACTION_RANK = 64


def prompt_keys(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of each prompt's tokens, `(..., L)` -> `(...)` int64, whatever the padding on the right."""
    return integer_keys((input_ids + 1) * attention_mask)


def distinct_prompts(tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Row form -> compact form: `(B, E, L)` each -> `(P, L)` each, and the prompt of each row and entity `(B, E)`.

    Prompts are the same where all tensors are.
    """
    rows, entities = tensors[0].shape[:2]
    together = torch.cat([tensor.flatten(0, 1) for tensor in tensors], dim=-1)
    distinct, index = together.unique(dim=0, return_inverse=True)
    return list(distinct.split(tensors[0].shape[-1], dim=-1)), index.view(rows, entities)


def entity_slots(config: FlipConfig) -> list[list[bool]]:
    """For each entity with a prompt whether a slot of `feature_ids` is of it, `(E, S)`."""
    fields = config.id_fields
    return [[fields[field].entity == entity for field in config.slot_fields] for entity in config.prompt_entities]


def entity_views(feature_ids: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """The ids of one entity alone, all others masked: `(B, S)` and `entity_slots` `(E, S)` -> `(E, B, S)`."""
    return torch.where(~slots[:, None] & (feature_ids != PAD_ID), MASK_ID, feature_ids)


class MaskedPairs(NamedTuple):
    """Masked prompts, each paired with the row and the entity whose ids MLM predicts it from.

    Args:
        states, labels: `(n, L, H)` what the PLM says of the masked prompts, and `(n, L)` their masked tokens.
        rows, entities: `(n,)`.
    """

    states: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    entities: torch.Tensor


class EntityText(NamedTuple):
    """The compact prompts of a batch as the PLM has read them.

    Args:
        input_ids, attention_mask: `(P, L)`.
        prompt_index: `(B, E)`, which prompt each row has of each entity.
        states: `(P, L, H)`, the PLM's last hidden states; None where no objective reads the clean view.
        masked: the masked view, where MLM is on.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    prompt_index: torch.Tensor
    states: torch.Tensor | None
    masked: MaskedPairs | None


class FlipTextInteraction(nn.Module):
    """The pooled states of a row's prompts -> the textual view of the row, one vector.

    `sum_e A_e x_e + C sum_{e < f} (B_e x_e) * (B_f x_f)`: each `A_e` starts as the identity and C at zero. With E
    prompts of N candidates what the items' say alone can be kept, see `parts`: what is left a row is a product of low
    rank. What the prompts of the history say of the row's item is added, and starts at zero.

    Args:
        history_entity: the number of the entity whose prompts the history has, or None without a history.
    """

    def __init__(
        self, hidden_size: int, num_entities: int, history_entity: int | None = None, rank: int = INTERACTION_RANK
    ):
        super().__init__()
        self.history_entity, self.history = history_entity, None
        if history_entity is not None:
            self.history = FlipTargetAttention(hidden_size, hidden_size, hidden_size)
        self.own = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_entities))
        self.factors = nn.ModuleList(nn.Linear(hidden_size, rank, bias=False) for _ in range(num_entities))
        self.product = nn.Linear(rank, hidden_size, bias=False)

    def init_flip_weights(self, config: FlipConfig) -> None:
        for name, parameter in self.own.named_parameters():
            (init.eye_ if name.endswith("weight") else init.zeros_)(parameter)
        init.zeros_(self.product.weight)
        if self.history is not None:
            init.zeros_(self.history.output.weight)

    def alone(self, pooled: torch.Tensor, entity: int) -> torch.Tensor:
        """What the prompt of one entity says without the others, `(..., H)` -> `(..., H)`."""
        return self.own[entity](pooled)

    def parts(
        self, pooled: torch.Tensor, entities: Sequence[int], known: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the prompts of some of the entities say together, `(..., H)`, and their factors, with which they meet
        the others', `(..., rank)`; from their pooled states `(..., those entities, H)`, of which only those count that
        are `known` `(..., those entities)`."""
        states = pooled.unbind(-2)
        own = torch.stack([self.alone(state, entity) for state, entity in zip(states, entities)], dim=-2)
        factors = torch.stack([self.factors[entity](state) for state, entity in zip(states, entities)], dim=-2)
        if known is not None:
            own, factors = own * known[..., None], factors * known[..., None]
        return own.sum(-2) + self.product(bi_interaction(factors)), factors.sum(-2)

    def forward(
        self, pooled: torch.Tensor, prompt_index: torch.Tensor, history_outcomes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The pooled states of prompts -> the textual view of rows, `(B, H)`.

        Args:
            pooled: `(P, H)`.
            prompt_index: `(B, E + n)`, which prompt each row has of each entity, and of the history's entries.
            history_outcomes: `(B, n)`: 1 not clicked, 2 clicked, 0 for no entry.
        """
        of_entities, of_history = prompt_index.split([len(self.own), prompt_index.shape[1] - len(self.own)], dim=1)
        states = nn.functional.embedding(of_entities, pooled)
        state, _ = self.parts(states, range(len(self.own)))
        if self.history is None:
            return state
        if history_outcomes is None:  # as an empty history; of one place, so that each weight has a gradient
            of_history, history_outcomes = of_entities[:, :1], torch.zeros_like(of_entities[:, :1])
        item = states[:, self.history_entity]
        return state + self.history(item, self.history.entry(pooled), history_outcomes, of_history)
