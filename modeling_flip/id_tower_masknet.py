# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""MaskNet.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import Allowed, check_choice, check_count
from .id_tower import DNN, IdTower, TowerLinear, check_sizes, register_id_tower

STRUCTURES = ("serial", "parallel")


class FieldNorm(nn.Module):
    """Layer normalisation of each field's embedding with weights of its own (MaskNet's LN_EMB): `(B, F, D)` -> `(B, F *
    D)`."""

    def __init__(self, num_fields: int, size: int):
        super().__init__()
        # flat: an optimizer tells norms, which do not decay, by their one dimension
        self.weight = nn.Parameter(torch.ones(num_fields * size))
        self.bias = nn.Parameter(torch.zeros(num_fields * size))

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.ones_(self.weight)
        init.zeros_(self.bias)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(embeds, embeds.shape[-1:]).flatten(1) * self.weight + self.bias


class MaskBlock(nn.Module):
    """MaskNet's block (section 3): `relu(LN(W (mask * hidden)))`, the instance-guided mask two layers over the row's
    embeddings.

    `(B, F * D)` embeddings and `(B, input_dim)` hidden -> `(B, output_dim)`.
    """

    def __init__(self, embeds_dim: int, input_dim: int, output_dim: int, reduction_ratio: float, dropout: float):
        super().__init__()
        between = max(1, int(reduction_ratio * input_dim))
        self.aggregate, self.project = TowerLinear(embeds_dim, between), TowerLinear(between, input_dim)
        self.hidden = TowerLinear(input_dim, output_dim, bias=False)
        self.norm, self.dropout = nn.LayerNorm(output_dim), nn.Dropout(dropout)

    def forward(self, embeds: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        mask = self.project(self.aggregate(embeds).relu())
        return self.dropout(self.norm(self.hidden(mask * hidden)).relu())


@register_id_tower("masknet")
class MaskNet(IdTower):
    """MaskNet (Wang et al., DLP-KDD 2021, section 3): mask blocks in the place of a DNN's layers, over normalised
    embeddings.

    Args:
        structure: `serial`: one block on the other, of the sizes `id_hidden_dims`, `h_id` the last; `parallel`: blocks
            side by side on the embeddings, `h_id` a DNN over all of them.
        reduction_ratio: size of the mask's inner layer over that of what is masked (2 in the paper).
        num_blocks: blocks of `parallel`; 3 when None.
        block_size: size of such a block; 64 when None.
    """

    def __init__(
        self,
        config: FlipConfig,
        structure: str = "serial",
        reduction_ratio: float = 2.0,
        num_blocks: int | None = None,
        block_size: int | None = None,
    ):
        check_choice("MaskNet", "structure", structure, STRUCTURES)
        Allowed(float, above=0, limit=2**10).check("MaskNet", "reduction_ratio", reduction_ratio)
        blocks = {
            name: value for name, value in (("num_blocks", num_blocks), ("block_size", block_size)) if value is not None
        }
        for name, value in blocks.items():
            check_count("MaskNet", name, value, 1)
        parallel = structure == "parallel"
        if blocks and not parallel:
            raise ValueError(
                f"MaskNet: `{next(iter(blocks))}` is of structure 'parallel'; the blocks of 'serial' are "
                "`id_hidden_dims`."
            )
        if not parallel:
            check_sizes("MaskNet", "id_hidden_dims", config.id_hidden_dims)
        super().__init__(config, deep=False)
        self.norm = FieldNorm(self.num_fields, self.embedding_size)
        outputs = [blocks.get("block_size", 64)] * blocks.get("num_blocks", 3) if parallel else config.id_hidden_dims
        inputs = [self.input_dim] * len(outputs) if parallel else [self.input_dim, *outputs[:-1]]
        settings = reduction_ratio, config.id_dropout
        self.blocks = nn.ModuleList(MaskBlock(self.input_dim, a, b, *settings) for a, b in zip(inputs, outputs))
        self.dnn = DNN(sum(outputs), config.id_hidden_dims, config.id_dropout) if parallel else None
        self.output_dim = self.dnn.output_dim if parallel else outputs[-1]

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        flat, hidden = embeds.flatten(1), self.norm(embeds)
        if self.dnn is not None:
            return self.dnn(torch.cat([block(flat, hidden) for block in self.blocks], dim=-1))
        for block in self.blocks:
            hidden = block(flat, hidden)
        return hidden
