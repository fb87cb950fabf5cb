# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""PNN: product-based network.

Shapes below: B rows, F fields, D the size of an embedding, P = F (F - 1) / 2 pairs of fields.
"""

import torch

from .configuration_flip import FlipConfig
from .fields_flip import check_choice
from .id_tower import DNN, FieldPairs, IdTower, register_id_tower

PRODUCTS = ("inner", "outer", "both")


@register_id_tower("pnn")
class PNN(IdTower):
    """Product-based network (Qu et al., ICDM 2016): `h_id` is a DNN over the embeddings and products of them.

    Args:
        products: `inner` (IPNN, also FLIP's baseline): `<e_i, e_j>` of each pair; `outer` (OPNN): `s s^T` with `s` the
            sum of the embeddings, the paper's superposition of all outer products; `both` (PNN*).
    """

    min_fields = 2

    def __init__(self, config: FlipConfig, products: str = "inner"):
        super().__init__(config, deep=False)
        check_choice("PNN", "products", products, PRODUCTS)
        self.inner, self.outer = products != "outer", products != "inner"
        self.pairs = FieldPairs(self.num_fields) if self.inner else None
        size = (
            self.input_dim
            + self.inner * self.num_fields * (self.num_fields - 1) // 2
            + self.outer * self.embedding_size**2
        )
        self.dnn = DNN(size, config.id_hidden_dims, config.id_dropout)
        self.output_dim = self.dnn.output_dim

    def products(self, embeds: torch.Tensor) -> list[torch.Tensor]:
        """`(B, F, D)` -> the inner products `(B, P)` and the outer one `(B, D * D)`, or one of them."""
        parts = [self.pairs.inner_products(embeds)] if self.inner else []
        if self.outer:
            total = embeds.sum(1)  # (B, D)
            parts.append((total[:, :, None] * total[:, None, :]).flatten(1))
        return parts

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.dnn(torch.cat([embeds.flatten(1), *self.products(embeds)], dim=1))
