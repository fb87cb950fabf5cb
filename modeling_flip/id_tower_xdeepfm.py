# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""xDeepFM.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .id_tower import IdTower, TowerLinear, check_sizes, register_id_tower


class CIN(nn.Module):
    """xDeepFM's compressed interaction network (section 3.1, equation 6): `(B, F, D)` -> `(B, sum of sizes)`.

    Map h of layer k is `X^k_h = sum_ij W^{k,h}_ij X^{k-1}_i * X^0_j`, products element by element; the output is each
    map's sum over the D elements. Without an activation: the paper found none to be the best.
    """

    def __init__(self, num_fields: int, sizes: list[int]):
        super().__init__()
        inputs = [num_fields, *sizes]
        self.layers = nn.ModuleList(TowerLinear(a * num_fields, b, bias=False) for a, b in zip(inputs, sizes))

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        x0 = x = embeds.mT  # (B, D, F): each element of the embeddings has its own maps
        pooled = []
        for layer in self.layers[:-1]:
            x = layer((x[..., :, None] * x0[..., None, :]).flatten(2))  # (B, D, H * F) -> (B, D, H)
            pooled.append(x.sum(1))
        # of the last maps only their sums are read: the products are summed up before the layer, which is linear
        pooled.append(self.layers[-1]((x.mT @ x0).flatten(1)))
        return torch.cat(pooled, dim=-1)


@register_id_tower("xdeepfm")
class XDeepFM(IdTower):
    """xDeepFM (Lian et al., KDD 2018, section 3): `h_id = [CIN; deep]`, and a first-order term in the click logit.

    Args:
        cin_sizes: maps of each layer of the CIN (100 a layer on two of the paper's datasets, 200 on Criteo); two layers
            when None.
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
