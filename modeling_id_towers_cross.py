# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""ID towers that multiply with the embeddings once a layer: DCN, DCN V2, GDCN, xDeepFM.

Shapes below: B rows, F fields, D the size of an embedding, dim = F * D.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig, check_choice, check_count
from .modeling_id_tower import IdTower, TowerLinear, check_flag, check_sizes, register_id_tower

STRUCTURES = ("parallel", "stacked")


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


class CrossLayer(nn.Module):
    """A DCN V2 cross layer (equation 1): `x' = x0 * (W x + b) + x`, `(B, dim)` -> `(B, dim)`."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = TowerLinear(dim, dim)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x + x0 * self.linear(x)


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
        experts = (x @ self.down).tanh().unflatten(-1, (num_experts, -1))  # (B, E, r)
        experts = torch.einsum("ber,ers->bes", experts, self.core).tanh()
        gates = self.gate(x).softmax(-1).unsqueeze(-1)  # (B, E, 1)
        return x + x0 * ((gates * experts).flatten(1) @ self.up + self.bias)


class GatedCrossLayer(nn.Module):
    """A GDCN cross layer: `x' = x0 * (W x + b) * sigmoid(W_g x) + x`, `(B, dim)` -> `(B, dim)`."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = TowerLinear(dim, dim)
        self.gate = TowerLinear(dim, dim, bias=False)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x + x0 * self.linear(x) * self.gate(x).sigmoid()


class CrossTower(IdTower):
    """Base of the towers of cross layers: `h_id = [cross; deep]`, or stacked, the DNN over the last cross layer.

    Args:
        new_layer: makes a cross layer `(x0, x) -> x'` of `(B, dim)`, given dim.
    """

    def __init__(self, config: FlipConfig, num_cross_layers: int, structure: str, new_layer: Callable[[int], nn.Module]):
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


@register_id_tower("dcn")
class DCN(CrossTower):
    """Deep & Cross network (Wang et al., ADKDD 2017, section 2): cross layers with a weight vector, `h_id = [cross; deep]`.

    Args:
        num_cross_layers: cross layers (2 in FLIP's release; the paper's best model on Criteo had 6).
    """

    def __init__(self, config: FlipConfig, num_cross_layers: int = 2):
        super().__init__(config, num_cross_layers, "parallel", VectorCrossLayer)


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

    def __init__(self, config: FlipConfig, num_cross_layers: int = 2, low_rank: int | None = None,
                 num_experts: int | None = None, full_matrix: bool = False, structure: str = "parallel"):  # fmt: skip
        check_flag("DCNv2", "full_matrix", full_matrix)
        given = [name for name, value in (("low_rank", low_rank), ("num_experts", num_experts)) if value is not None]
        if full_matrix and given:
            raise ValueError(f"DCNv2: `{given[0]}` is of low-rank experts, and with `full_matrix` there are none; leave it out.")
        experts = {"low_rank": 32 if low_rank is None else low_rank, "num_experts": 4 if num_experts is None else num_experts}
        for name, value in experts.items():
            check_count("DCNv2", name, value, 1)
        super().__init__(config, num_cross_layers, structure, CrossLayer if full_matrix else partial(LowRankCrossLayer, **experts))


@register_id_tower("gdcn")
class GDCN(CrossTower):
    """Gated deep & cross network (Wang et al., CIKM 2023): cross layers with an information gate.

    Args:
        num_cross_layers: cross layers (3 by default in the authors' code).
        structure: `parallel` (GDCN-P): `h_id = [cross; deep]`; `stacked` (GDCN-S): `h_id` is the DNN over the last cross layer.
    """

    def __init__(self, config: FlipConfig, num_cross_layers: int = 3, structure: str = "parallel"):
        super().__init__(config, num_cross_layers, structure, GatedCrossLayer)


class CIN(nn.Module):
    """xDeepFM's compressed interaction network (section 3.1, equation 6): `(B, F, D)` -> `(B, sum of sizes)`.

    Map h of layer k is `X^k_h = sum_ij W^{k,h}_ij X^{k-1}_i * X^0_j`, products element by element; the output is each map's sum over
    the D elements. Without an activation: the paper found none to be the best.
    """

    def __init__(self, num_fields: int, sizes: list[int]):
        super().__init__()
        inputs = [num_fields, *sizes]
        self.layers = nn.ModuleList(TowerLinear(a * num_fields, b, bias=False) for a, b in zip(inputs, sizes))

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        x0 = x = embeds.mT  # (B, D, F): each element of the embeddings has its own maps
        pooled = []
        for layer in self.layers:
            x = layer((x[..., :, None] * x0[..., None, :]).flatten(2))  # (B, D, H * F) -> (B, D, H)
            pooled.append(x.sum(1))
        return torch.cat(pooled, dim=-1)


@register_id_tower("xdeepfm")
class XDeepFM(IdTower):
    """xDeepFM (Lian et al., KDD 2018, section 3): `h_id = [CIN; deep]`, and a first-order term in the click logit.

    Args:
        cin_sizes: maps of each layer of the CIN (100 a layer on two of the paper's datasets, 200 on Criteo); two layers when None.
    """

    has_first_order = True

    def __init__(self, config: FlipConfig, cin_sizes: list[int] | None = None):
        super().__init__(config)
        cin_sizes = [100, 100] if cin_sizes is None else cin_sizes
        check_sizes("xDeepFM", "cin_sizes", cin_sizes)
        self.cin = CIN(self.num_fields, list(cin_sizes))
        self.output_dim += sum(cin_sizes)

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.cin(embeds)
