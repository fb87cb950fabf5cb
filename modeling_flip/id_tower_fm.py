# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FM: factorization machine.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch

from .configuration_flip import FlipConfig
from .id_tower import IdTower, bi_interaction, register_id_tower


@register_id_tower("fm")
class FM(IdTower):
    """Factorization machine (Rendle, ICDM 2010): `h_id` is the bi-interaction, and the click logit adds the first-order
    term; no DNN.

    FM's second-order term is the sum of the bi-interaction's elements; here the click logit weighs them, as in a neural
    factorization machine without hidden layers (He and Chua, SIGIR 2017).
    """

    has_first_order = True
    min_fields = 2

    def __init__(self, config: FlipConfig):
        super().__init__(config, deep=False)
        self.output_dim = self.embedding_size

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return bi_interaction(embeds)
