# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Wide & Deep.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch

from .id_tower import IdTower, register_id_tower


@register_id_tower("widedeep")
class WideDeep(IdTower):
    """Wide & Deep (Cheng et al., DLRS 2016): `h_id = deep`; the wide part is the first-order term in the click logit.

    The paper's hand-made cross-product features are fields of their own, if there are any.
    """

    has_first_order = True

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.dnn(embeds.flatten(1))
