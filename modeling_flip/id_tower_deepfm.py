# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""DeepFM.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch

from .configuration_flip import FlipConfig
from .id_tower import IdTower, bi_interaction, register_id_tower


@register_id_tower("deepfm")
class DeepFM(IdTower):
    """DeepFM (Guo et al., IJCAI 2017): `h_id = [bi-interaction; deep]`, and a first-order term in the click logit."""

    has_first_order = True

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.output_dim += self.embedding_size

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return bi_interaction(embeds)
