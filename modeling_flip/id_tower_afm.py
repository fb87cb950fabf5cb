# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""AFM: attentional factorization machine.

Shapes below: B rows, F fields, D the size of an embedding, P = F (F - 1) / 2 pairs of fields.
"""

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .fields_flip import check_count
from .id_tower import FieldPairs, IdTower, TowerLinear, register_id_tower


@register_id_tower("afm")
class AFM(IdTower):
    """Attentional factorization machine (Xiao et al., IJCAI 2017, section 3): `h_id = sum_ij a_ij e_i * e_j` over the
    pairs, `a` a softmax of `h^T relu(W (e_i * e_j) + b)`; a first-order term in the click logit, no DNN. `id_dropout`
    is on the products of the pairs.

    Args:
        attention_size: size of the attention network's layer; that of an embedding when None (as in the paper).
    """

    has_first_order = True
    min_fields = 2

    def __init__(self, config: FlipConfig, attention_size: int | None = None):
        super().__init__(config, deep=False)
        if attention_size is None:
            attention_size = self.embedding_size
        check_count("AFM", "attention_size", attention_size, 1)
        self.pairs = FieldPairs(self.num_fields)
        self.attention = TowerLinear(self.embedding_size, attention_size)
        self.score = TowerLinear(attention_size, 1, bias=False)
        self.dropout = nn.Dropout(config.id_dropout)
        self.output_dim = self.embedding_size

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        left, right = self.pairs(embeds)
        products = self.dropout(left * right)  # (B, P, D)
        weights = self.score(self.attention(products).relu()).softmax(1)  # (B, P, 1)
        return (weights * products).sum(1)
