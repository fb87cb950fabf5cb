# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FiBiNET.

Shapes below: B rows, F fields, D the size of an embedding, P = F (F - 1) / 2 pairs of fields.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import check_choice, check_count
from .id_tower import DNN, FieldPairs, IdTower, TowerLinear, register_id_tower

BILINEAR = ("all", "each", "interaction")


class Excitation(nn.Linear):
    """A linear layer that starts with positive weights: before a relu, a field whose weights are all negative would be
    off for good."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.uniform_(self.weight, 0.0, (6 / sum(self.weight.shape)) ** 0.5)  # the positive half of Xavier's


class SENet(nn.Module):
    """FiBiNET's squeeze and excitation: weighs each field by what the means of all embeddings say. `(B, F, D)` to the
    same."""

    def __init__(self, num_fields: int, reduction_ratio: int):
        super().__init__()
        reduced = max(1, num_fields // reduction_ratio)
        self.squeeze = TowerLinear(num_fields, reduced, bias=False)
        self.excite = Excitation(reduced, num_fields, bias=False)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        weights = self.excite(self.squeeze(embeds.mean(-1)).relu()).relu()  # (B, F)
        return embeds * weights[..., None]


class BilinearInteraction(nn.Module):
    """FiBiNET's `(v_i W) * v_j` of each pair i < j: `(B, F, D)` -> `(B, P, D)`.

    One W for all pairs (`all`), one for each first field (`each`), or one for each pair (`interaction`).
    """

    def __init__(self, num_fields: int, size: int, kind: str):
        super().__init__()
        self.kind, self.pairs = kind, FieldPairs(num_fields)
        # the last field is the first of no pair
        matrices = {"all": 1, "each": num_fields - 1, "interaction": self.pairs.num_pairs}[kind]
        # filled by init_flip_weights; zeros until then, so that a tower built alone holds no garbage
        self.weight = nn.Parameter(torch.zeros(matrices, size, size))

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)  # Xavier of each matrix

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        left, right = self.pairs(embeds)
        if self.kind == "interaction":
            left = torch.einsum("bpd,pde->bpe", left, self.weight)
        else:  # before the pairs: each field is in several
            firsts = embeds[:, :-1]
            firsts = (
                firsts @ self.weight[0] if self.kind == "all" else torch.einsum("bfd,fde->bfe", firsts, self.weight)
            )
            left = firsts.index_select(1, self.pairs.left)
        return left * right


@register_id_tower("fibinet")
class FiBiNET(IdTower):
    """FiBiNET (Huang et al., RecSys 2019): `h_id` is a DNN over the bilinear products of all pairs, of the embeddings
    and of the embeddings weighed by SENet; a first-order term in the click logit.

    Args:
        bilinear: whose matrix a pair takes: `all` have one, `each` first field has its own, or each `interaction` has.
        reduction_ratio: SENet's layer has so many times fewer units than there are fields (3 in the paper).
    """

    has_first_order = True
    min_fields = 2

    def __init__(self, config: FlipConfig, bilinear: str = "interaction", reduction_ratio: int = 3):
        super().__init__(config, deep=False)
        check_choice("FiBiNET", "bilinear", bilinear, BILINEAR)
        check_count("FiBiNET", "reduction_ratio", reduction_ratio, 1)
        self.senet = SENet(self.num_fields, reduction_ratio)
        self.bilinear, self.senet_bilinear = (
            BilinearInteraction(self.num_fields, self.embedding_size, bilinear) for _ in range(2)
        )
        size = 2 * self.bilinear.pairs.num_pairs * self.embedding_size
        self.dnn = DNN(size, config.id_hidden_dims, config.id_dropout)
        self.output_dim = self.dnn.output_dim

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        products = [self.bilinear(embeds), self.senet_bilinear(self.senet(embeds))]  # (B, P, D) each
        return self.dnn(torch.cat(products, dim=1).flatten(1))
