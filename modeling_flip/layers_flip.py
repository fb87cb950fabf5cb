# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Layers that ID towers and target attention are built from."""

from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig


class TowerLinear(nn.Linear):
    """A linear layer initialised as CTR models are (Xavier): the 0.02 of language models lets a DNN's signal fade."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.xavier_normal_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)
