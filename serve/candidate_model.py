# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a request computes: the log odds of candidates, from their ids and from what was kept of their texts.

Shapes: U users with C candidates each, those of one user together; S slots of `feature_ids`, H the PLM's hidden size, R
the rank of the text interaction, n entries of a history.
"""

from typing import NamedTuple

import torch
from torch import nn

from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.pipeline_flip import PROBABILITIES

OUTPUTS = (*PROBABILITIES, "id_weight")  # of the model's output, what is said of a candidate


class TextParts(NamedTuple):
    """What the prompts of some entities say, see [`FlipTextInteraction.parts`]: `(..., H)` and `(..., R)`; and where
    the text side reads histories, what its attention makes of items: as those of rows, `(..., 64)`, and as entries of
    histories `(..., 128)`."""

    own: torch.Tensor
    factors: torch.Tensor
    query: torch.Tensor | None = None
    entry: torch.Tensor | None = None


class CandidateModel(nn.Module):
    """A [`FlipForCTR`] without its PLM.

    Args:
        model: with entity prompts, or without a PLM.
    """

    def __init__(self, model: FlipForCTR):
        super().__init__()
        self.model = model

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        item_own: torch.Tensor | None = None,
        item_factors: torch.Tensor | None = None,
        user_own: torch.Tensor | None = None,
        user_factors: torch.Tensor | None = None,
        item_query: torch.Tensor | None = None,
        history_entry: torch.Tensor | None = None,
        history_ids: torch.Tensor | None = None,
        history_outcomes: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            feature_ids: `(U C, S)` local feature ids, where the strategy has an ID tower or the text side reads
                numbers.
            item_own, item_factors: `(U C, H)` and `(U C, R)` of the candidates.
            user_own, user_factors: `(U, H)` and `(U, R)` of all other prompts of the rows.
            item_query: `(U C, 64)` of the candidates, where the text side reads histories.
            history_entry: `(U, n, 128)` of the items in the histories.
            history_ids, history_outcomes: `(U, n, slots of an item)` and `(U, n)`, see [`FlipModel.forward`].

        Returns `logits`, and of strategy `joint` `id_logits` and `text_logits`, `(U C, 1)` each, and `id_weight`,
        `(U C, 1)` or `(1,)`.
        """
        flip, text_state, id_state = self.model.flip, None, None
        if item_own is not None:
            users, candidates = user_own.shape[0], item_own.shape[0]
            together = (users, candidates // max(users, 1))
            product = user_factors[:, None] * item_factors.unflatten(0, together)
            state = item_own.unflatten(0, together) + user_own[:, None] + flip.text_interaction.product(product)
            if item_query is not None:
                query = item_query.unflatten(0, together)
                state = state + flip.text_interaction.history.attend(query, history_entry, history_outcomes)
            text_state = state.flatten(0, 1)
        if flip.id_tower is not None:
            inputs = {"feature_ids": feature_ids}
            if flip.id_tower.history is not None:
                inputs |= {"history_ids": history_ids, "history_outcomes": history_outcomes}
            if flip.text_field is not None:
                inputs["text_embeds"] = flip.text_field(text_state)
            id_state = flip.id_tower(**inputs)
        output = self.model.predict(feature_ids, id_state, text_state)
        names = list(output) if self.model.fusion is not None else ["logits"]
        return {name: output[name] for name in names}
