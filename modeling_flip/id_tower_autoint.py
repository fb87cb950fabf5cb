# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""AutoInt.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .fields_flip import check_count
from .id_tower import IdTower, TowerLinear, check_divides, check_flag, register_id_tower


class InteractingLayer(nn.Module):
    """Self-attention over the fields with a linear residual: `(B, F, input)` -> `(B, F, output)`."""

    def __init__(self, input_size: int, output_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.residual = (
            TowerLinear(input_size, output_size, bias=False) for _ in range(4)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, F, size)
            for layer in (self.query, self.key, self.value)
        )
        # (B, heads, fields of keys, fields of queries). Of so few fields flash attention is slow on a CPU, and so is a
        # softmax along the last dimension
        scores = key @ query.mT / query.shape[-1] ** 0.5
        attended = (scores.softmax(-2).mT @ value).transpose(1, 2).flatten(2)
        return (attended + self.residual(hidden)).relu()


@register_id_tower("autoint")
class AutoInt(IdTower):
    """AutoInt+ (Song et al., CIKM 2019): `h_id = [interacting layers over the fields; deep]`.

    Args:
        num_layers: interacting layers (3 in the paper).
        num_heads: attention heads (2 in the paper).
        attention_size: size of a field after a layer, all heads together (2 x 32 in the paper).
        use_dnn: AutoInt+; without the DNN it is AutoInt, and `h_id` the interacting layers'.
    """

    def __init__(
        self,
        config: FlipConfig,
        num_layers: int = 3,
        num_heads: int = 2,
        attention_size: int = 64,
        use_dnn: bool = True,
    ):
        check_flag("AutoInt", "use_dnn", use_dnn)
        for name, value in (("num_layers", num_layers), ("num_heads", num_heads), ("attention_size", attention_size)):
            check_count("AutoInt", name, value, 1)
        check_divides("AutoInt", "attention_size", attention_size, "num_heads", num_heads)
        super().__init__(config, deep=use_dnn)
        sizes = [self.embedding_size] + [attention_size] * num_layers
        self.attention = nn.ModuleList(InteractingLayer(a, b, num_heads) for a, b in zip(sizes, sizes[1:]))
        self.output_dim += self.num_fields * sizes[-1]

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        for layer in self.attention:
            embeds = layer(embeds)
        return embeds.flatten(1)
