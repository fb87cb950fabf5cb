# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""AFN: adaptive factorization network.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch
from torch import nn

from .configuration_flip import FlipConfig
from .fields_flip import check_choice, check_count
from .id_tower import DNN, FeatureEmbedding, IdTower, TowerLinear, check_flag, register_id_tower

NORMS = ("layer", "batch")


SMALLEST = 1e-5  # of an embedding's absolute value, before the logarithm


class LogarithmicLayer(nn.Module):
    """AFN's logarithmic transformation: `(B, F, D)` -> `(B, neurons, D)`.

    Neuron j is `exp(sum_i w_ij ln|e_i|)`, the product of the embeddings raised to learned powers, element by element.
    Absolute values keep the logarithm real; both logarithms and results are normalised.
    """

    def __init__(self, num_fields: int, size: int, num_neurons: int, norm: str):
        super().__init__()
        self.powers = TowerLinear(num_fields, num_neurons, bias=False)
        layer = norm == "layer"
        self.log_norm, self.exp_norm = (
            nn.LayerNorm(size) if layer else nn.BatchNorm1d(n) for n in (num_fields, num_neurons)
        )

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        logs = self.log_norm(embeds.abs().clamp(min=SMALLEST).log())
        return self.exp_norm(self.powers(logs.mT).mT.exp())


@register_id_tower("afn")
class AFN(IdTower):
    """Adaptive factorization network (Cheng et al., AAAI 2020): `h_id` is a DNN over logarithmic neurons, that is
    interactions of learned orders; AFN+ has a second table and a DNN over it, `h_id = [that; deep]`.

    Args:
        num_neurons: logarithmic neurons (256 in FLIP's release; the paper has hundreds to 1500, of embeddings of 10).
        norm: of logarithms and neurons: `layer` over the elements of an embedding, or `batch`, the paper's, a mean over
            the rows of a batch. That makes a row's score depend on the rows beside it while training, by process and by
            GradCache's chunk, and each process has its own running means.
        use_dnn: AFN+.
    """

    def __init__(self, config: FlipConfig, num_neurons: int = 256, norm: str = "layer", use_dnn: bool = False):
        check_count("AFN", "num_neurons", num_neurons, 1)
        check_choice("AFN", "norm", norm, NORMS)
        check_flag("AFN", "use_dnn", use_dnn)
        super().__init__(config, deep=use_dnn)
        self.logarithmic = LogarithmicLayer(self.num_fields, self.embedding_size, num_neurons, norm)
        self.neurons_dnn = DNN(num_neurons * self.embedding_size, config.id_hidden_dims, config.id_dropout)
        self.output_dim += self.neurons_dnn.output_dim
        self.deep_embeddings = None
        if use_dnn:
            self.deep_embeddings = FeatureEmbedding(config.field_sizes, self.embedding_size, config.slot_fields)

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.neurons_dnn(self.logarithmic(embeds).flatten(1))

    def forward(self, feature_ids, text_embeds=None, history_ids=None, history_outcomes=None) -> torch.Tensor:
        added = self.added_fields(feature_ids, text_embeds, history_ids, history_outcomes)
        interaction = self.interact(self.embed(self.embeddings, feature_ids, added))
        if self.dnn is None:
            return interaction
        deep = self.dnn(self.embed(self.deep_embeddings, feature_ids, added).flatten(1))
        return torch.cat([interaction, deep], dim=-1)
