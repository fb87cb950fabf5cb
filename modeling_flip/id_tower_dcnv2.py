# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""DCN V2.

Shapes below: B rows, F fields, D the size of an embedding, dim = F * D.
"""

from functools import partial

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import check_count
from .id_tower import TowerLinear, check_flag, register_id_tower
from .id_tower_dcn import CrossTower
from .layers_flip import linear


class CrossLayer(nn.Module):
    """A DCN V2 cross layer (equation 1): `x' = x0 * (W x + b) + x`, `(B, dim)` -> `(B, dim)`."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = TowerLinear(dim, dim)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(x, x0, self.linear(x))


class LowRankCrossLayer(nn.Module):
    """A DCNv2 cross layer as a mixture of low-rank experts (DCN V2): `(B, dim)` -> `(B, dim)`.

    `x' = x + sum_e gate_e(x) * x0 * (U_e tanh(C_e tanh(V_e^T x)) + b)`. The gates sum to 1, so that the sum over the
    experts goes through one matrix product with their U side by side.
    """

    def __init__(self, dim: int, low_rank: int, num_experts: int):
        super().__init__()
        # filled by init_flip_weights; zeros until then, so that a tower built alone holds no garbage
        self.down = nn.Parameter(torch.zeros(dim, num_experts * low_rank))  # V
        self.core = nn.Parameter(torch.zeros(num_experts, low_rank, low_rank))  # C
        self.up = nn.Parameter(torch.zeros(num_experts * low_rank, dim))  # U
        self.bias = nn.Parameter(torch.zeros(dim))
        self.gate = TowerLinear(dim, num_experts, bias=False)

    def init_flip_weights(self, config: FlipConfig) -> None:
        num_experts, low_rank, _ = self.core.shape
        dim = self.down.shape[0]
        # Xavier of each expert's own matrix, not of the experts side by side
        outer, inner = (2 / (dim + low_rank)) ** 0.5, low_rank**-0.5
        init.normal_(self.down, std=outer)
        init.normal_(self.core, std=inner)
        init.normal_(self.up, std=outer)
        init.zeros_(self.bias)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        num_experts = self.core.shape[0]
        experts = linear(x, self.down.t(), activation="tanh")  # (B, E * r)
        # one product with all cores on the diagonal is faster than a small one for each
        experts = linear(experts, torch.block_diag(*self.core).t(), activation="tanh").unflatten(-1, (num_experts, -1))
        gates = self.gate(x).t().contiguous().softmax(0).t().unsqueeze(-1)  # (B, E, 1); the few experts are rows here
        return torch.addcmul(x, x0, linear((gates * experts).flatten(1), self.up.t(), self.bias))


@register_id_tower("dcnv2")
class DCNv2(CrossTower):
    """DCN V2 (Wang et al., WWW 2021): `h_id = [cross; deep]`; by default FLIP's, with low-rank mixture cross layers.

    Args:
        num_cross_layers: cross layers (2 in FLIP's experiments).
        low_rank: rank of an expert; 32 when None.
        num_experts: experts a layer; 4 when None.
        full_matrix: cross layers with one whole weight matrix each, without experts.
        structure: `parallel`, or `stacked`: `h_id` is the DNN over the last cross layer.
    """

    def __init__(
        self,
        config: FlipConfig,
        num_cross_layers: int = 2,
        low_rank: int | None = None,
        num_experts: int | None = None,
        full_matrix: bool = False,
        structure: str = "parallel",
    ):
        check_flag("DCNv2", "full_matrix", full_matrix)
        given = [name for name, value in (("low_rank", low_rank), ("num_experts", num_experts)) if value is not None]
        if full_matrix and given:
            raise ValueError(
                f"DCNv2: `{given[0]}` is of low-rank experts, and with `full_matrix` there are none; leave it out."
            )
        experts = {
            "low_rank": 32 if low_rank is None else low_rank,
            "num_experts": 4 if num_experts is None else num_experts,
        }
        for name, value in experts.items():
            check_count("DCNv2", name, value, 1)
        super().__init__(
            config, num_cross_layers, structure, CrossLayer if full_matrix else partial(LowRankCrossLayer, **experts)
        )
