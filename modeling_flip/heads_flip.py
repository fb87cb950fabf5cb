# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What FLIP's models put on the two towers, but for the heads of MLM and MTM.

Shapes below: B rows, H the PLM's hidden size, D_id the size of `h_id`.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import UNK_ID
from .gather_flip import gather_rows
from .layers_flip import ZeroLinear


class FlipProjection(nn.Module):
    """Projection to the space of ICL: linear, GELU, linear, dropout, residual, LayerNorm."""

    def __init__(self, input_dim: int, output_dim: int, dropout: float):
        super().__init__()
        self.input = nn.Linear(input_dim, output_dim)
        self.output = nn.Linear(output_dim, output_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected = self.input(hidden)
        return self.norm(projected + self.dropout(self.output(nn.functional.gelu(projected))))


def contrastive_logits(
    id_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor | float, training: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled similarities of this process's rows with the rows of all processes (ICL's in-batch negatives).

    Args:
        id_embeds, text_embeds: `(B, d)`; while training every process has as many rows.
        scale: what similarities are multiplied by.

    Returns `id_to_text` and `text_to_id`, `(B, rows of all processes)`, and the number of each row's own counterpart
    `(B,)`.
    """
    (all_id, first), (all_text, _) = gather_rows(id_embeds, training), gather_rows(text_embeds, training)
    labels = torch.arange(first, first + len(id_embeds), device=id_embeds.device)
    return scale * (id_embeds @ all_text.T).float(), scale * (text_embeds @ all_id.T).float(), labels


class IdentityLinear(nn.Linear):
    """A square linear layer that starts as the identity."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.eye_(self.weight)
        init.zeros_(self.bias)


class RowDropout(nn.Module):
    """Whole rows of `(B, n)` become 0 while training, a share of them, and the others stay as they are."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.training or self.share == 0:
            return rows
        return rows.masked_fill(torch.rand(len(rows), 1, device=rows.device) < self.share, 0.0)


class TextField(nn.Linear):
    """The PLM's pooled state as an embedding of the ID tower, of the size that feature embeddings start with: `(B, H)`
    -> `(B, D)`."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.normal_(
            self.weight, std=config.id_initializer_range / math.sqrt(self.in_features)
        )  # of inputs with variance 1
        init.zeros_(self.bias)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        pooled = pooled.to(self.weight.dtype)  # remembered states have that of before DeepSpeed rounded the model
        return super().forward(nn.functional.layer_norm(pooled, pooled.shape[-1:]))


class FlipFusion(nn.Module):
    """The joint logit `alpha * logit_id + (1 - alpha) * logit_plm` (the paper's adaptive fine-tuning).

    `scalar`: one alpha, a sigmoid that starts at 0.5. `gate`: each row its own alpha from both towers' states and from
    which of its ids are unknown (a scalar cannot turn to the text when the ids are new). `raw`: the release's unbounded
    scalar, which starts at 0.
    """

    def __init__(self, config: FlipConfig, id_dim: int, text_dim: int):
        super().__init__()
        self.kind = config.fusion
        if self.kind == "gate":
            self.id_norm, self.text_norm = nn.LayerNorm(id_dim), nn.LayerNorm(text_dim)
            self.gate = ZeroLinear(id_dim + text_dim + config.num_slots, 1)
        else:
            self.alpha = nn.Parameter(torch.zeros(1))

    def init_flip_weights(self, config: FlipConfig) -> None:
        if self.kind != "gate":
            init.zeros_(self.alpha)

    def forward(self, id_logits, text_logits, id_hidden_state, text_pooled, feature_ids):
        if self.kind == "gate":
            unknown = (feature_ids == UNK_ID).to(text_pooled.dtype)  # (B, S)
            states = [self.id_norm(id_hidden_state), self.text_norm(text_pooled), unknown]
            alpha = self.gate(torch.cat(states, dim=-1)).float().sigmoid()  # (B, 1)
        else:
            alpha = self.alpha if self.kind == "raw" else self.alpha.sigmoid()
        return alpha * id_logits + (1 - alpha) * text_logits, alpha
