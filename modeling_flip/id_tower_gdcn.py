# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""GDCN: gated deep & cross network.

Shapes below: B rows, F fields, D the size of an embedding, dim = F * D.
"""

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .id_tower import TowerLinear, register_id_tower
from .id_tower_dcn import CrossTower


class GatedCrossLayer(nn.Module):
    """A GDCN cross layer: `x' = x0 * (W x + b) * sigmoid(W_g x) + x`, `(B, dim)` -> `(B, dim)`."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = TowerLinear(dim, dim)
        self.gate = TowerLinear(dim, dim, bias=False)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x + x0 * self.linear(x) * self.gate(x).sigmoid()


@register_id_tower("gdcn")
class GDCN(CrossTower):
    """Gated deep & cross network (Wang et al., CIKM 2023): cross layers with an information gate.

    Args:
        num_cross_layers: cross layers (3 by default in the authors' code).
        structure: `parallel` (GDCN-P): `h_id = [cross; deep]`; `stacked` (GDCN-S): `h_id` is the DNN over the last
            cross layer.
    """

    def __init__(self, config: FlipConfig, num_cross_layers: int = 3, structure: str = "parallel"):
        super().__init__(config, num_cross_layers, structure, GatedCrossLayer)
