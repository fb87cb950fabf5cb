# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""LR: logistic regression.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch

from .configuration_flip import FlipConfig
from .id_tower import IdTower, register_id_tower


@register_id_tower("lr")
class LR(IdTower):
    """Logistic regression (Richardson et al., WWW 2007): no interaction, `h_id = [e_1; ...; e_F]`, no DNN.

    The click logit, linear in `h_id`, gives feature i of field f the weight `<v_f, e_i>`: logistic regression with each
    weight written as a product. FLIP needs a vector that tells the row's features apart, which a sum of weights does
    not.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config, deep=False)
        self.output_dim = self.input_dim

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return embeds.flatten(1)
