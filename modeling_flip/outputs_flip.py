# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the models return.

Shapes below: B rows, L tokens, H the PLM's hidden size, D_id the size of `h_id`.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers.utils import ModelOutput

from .configuration_flip import FlipConfig

Output = TypeVar("Output", bound=ModelOutput)


@dataclass
class FlipModelOutput(ModelOutput):
    """
    Args:
        id_embeds: `(B, projection_dim)`, the tabular view in the space of ICL (unit length with cosine similarity).
        text_embeds: `(B, projection_dim)`, the textual view in the same space.
        id_hidden_state: `(B, D_id)`, the ID tower's interaction vector `h_id`.
        text_hidden_states: `(B, L, H)`, the PLM's last hidden states; with entity prompts `(B, E, L, H)` in the row
            form, `(P, L, H)` in the compact form.
        text_pooled: `(B, H)`, the PLM's pooled state; with entity prompts `(B, E, H)` or `(P, H)`.
        text_state: `(B, H)`, the textual view of the row: the pooled state, or the interaction of those of its
            entities.
    """

    id_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    id_hidden_state: torch.Tensor | None = None
    text_hidden_states: torch.Tensor | None = None
    text_pooled: torch.Tensor | None = None
    text_state: torch.Tensor | None = None


@dataclass
class FlipForPretrainingOutput(ModelOutput):
    """
    All but the embeddings are scalars; those of an objective that is off are None. Accuracies are detached.

    Args:
        loss: weighted sum of the three losses.
        mlm_loss, mtm_loss: means over the masked tokens and over the masked features.
        icl_loss: symmetric InfoNCE; with entity prompts the mean over its terms.
        icl_accuracy: share of rows whose own counterpart is the most similar of the batch; with entity prompts of the
            rows of the same user in the batch, where there are others.
        mlm_accuracy, mtm_accuracy: share of masked tokens, and of masked features among all values of their field,
            ranked first, or among the first n where n values of the field were masked (in eval mode only: ranking costs
            as much as a
                layer).
        mlm_shuffled_accuracy, mtm_shuffled_accuracy: the same with the other modality's rows shifted by one (in eval
            mode only): what is recovered without the counterpart. Only the gap to the true accuracy is alignment. None
            where the objective does not see the other modality.
        num_mlm_targets, num_mtm_targets: how many tokens and features the means are over.
        id_embeds, text_embeds: `(B, V, projection_dim)`, the views that ICL compares; with `reduction="sum"` only.
        by_entity: with entity prompts in eval mode, `{objective}_{entity}_accuracy`, `..._shuffled_accuracy` (with that
            entity's counterparts shifted by one) and `icl_within_user_accuracy` -> how many were right and of how many,
            `(2,)`.
    """

    loss: torch.Tensor | None = None
    mlm_loss: torch.Tensor | None = None
    mtm_loss: torch.Tensor | None = None
    icl_loss: torch.Tensor | None = None
    mlm_accuracy: torch.Tensor | None = None
    mtm_accuracy: torch.Tensor | None = None
    icl_accuracy: torch.Tensor | None = None
    mlm_shuffled_accuracy: torch.Tensor | None = None
    mtm_shuffled_accuracy: torch.Tensor | None = None
    num_mlm_targets: torch.Tensor | None = None
    num_mtm_targets: torch.Tensor | None = None
    id_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    by_entity: dict[str, torch.Tensor] | None = None


@dataclass
class FlipForCTROutput(ModelOutput):
    """
    Args:
        loss: scalar, where labels were given.
        logits: `(B, 1)`, log odds of a click; `logits.sigmoid()` is the click probability. In eval mode all log odds
            are corrected, see `negative_sampling_rate` and `calibration` of [`FlipConfig`].
        id_logits, text_logits: `(B, 1)`, the two towers' own log odds; None for a tower that the strategy does not use.
        id_weight: `(B, 1)` or `(1,)`, the weight alpha of the ID tower in the joint logit.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    id_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None
    id_weight: torch.Tensor | None = None


def returned(output: Output, config: FlipConfig, return_dict: bool | None) -> Output | tuple:
    """The output as it was asked for: itself, or as a tuple of what is not None."""
    return_dict = config.return_dict if return_dict is None else return_dict
    return output if return_dict else output.to_tuple()
