# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""DCN: deep & cross network.

Shapes below: B rows, F fields, D the size of an embedding, dim = F * D.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import check_choice, check_count
from .id_tower import IdTower, TowerLinear, register_id_tower

STRUCTURES = ("parallel", "stacked")


class CrossTower(IdTower):
    """Base of the towers of cross layers: `h_id = [cross; deep]`, or stacked, the DNN over the last cross layer.

    Args:
        new_layer: makes a cross layer `(x0, x) -> x'` of `(B, dim)`, given dim.
    """

    def __init__(
        self, config: FlipConfig, num_cross_layers: int, structure: str, new_layer: Callable[[int], nn.Module]
    ):
        super().__init__(config)
        owner = type(self).__name__
        check_count(owner, "num_cross_layers", num_cross_layers, 1)
        check_choice(owner, "structure", structure, STRUCTURES)
        self.stacked = structure == "stacked"
        self.cross = nn.ModuleList(new_layer(self.input_dim) for _ in range(num_cross_layers))
        if not self.stacked:
            self.output_dim += self.input_dim

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        x0 = x = embeds.flatten(1)
        for layer in self.cross:
            x = layer(x0, x)
        return x

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.dnn(self.interact(embeds)) if self.stacked else super().encode(embeds)


class VectorCrossLayer(nn.Module):
    """A DCN cross layer (equation 3): `x' = x0 <x, w> + b + x`, `(B, dim)` -> `(B, dim)`."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = TowerLinear(dim, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.zeros_(self.bias)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x0 * self.weight(x) + self.bias + x


@register_id_tower("dcn")
class DCN(CrossTower):
    """Deep & Cross network (Wang et al., ADKDD 2017, section 2): cross layers with a weight vector, `h_id = [cross;
    deep]`.

    Args:
        num_cross_layers: cross layers (2 in FLIP's release; the paper's best model on Criteo had 6).
    """

    def __init__(self, config: FlipConfig, num_cross_layers: int = 2):
        super().__init__(config, num_cross_layers, "parallel", VectorCrossLayer)
