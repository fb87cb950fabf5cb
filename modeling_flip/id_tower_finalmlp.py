# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FinalMLP.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import check_count
from .id_tower import DNN, IdTower, TowerLinear, check_divides, check_flag, check_sizes, register_id_tower


class FeatureGate(nn.Module):
    """FinalMLP's feature selection of one stream: `2 sigmoid(MLP(context)) * embeddings`, `(B, F, D)` -> `(B, F * D)`.

    The context is the embeddings of some fields, or a learned vector, the same for all rows.

    Args:
        context: positions of the fields; none for a learned vector.
    """

    def __init__(self, num_fields: int, size: int, gate_size: int, context: list[int]):
        super().__init__()
        self.context = context
        self.vector = None if context else nn.Parameter(torch.zeros(size))
        self.hidden = TowerLinear(size * max(1, len(context)), gate_size)
        self.gate = TowerLinear(gate_size, num_fields * size)

    def init_flip_weights(self, config: FlipConfig) -> None:
        if self.vector is not None:
            init.normal_(self.vector)  # at zero the hidden layer would have no gradient

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        context = (
            self.vector if self.vector is not None else torch.cat([embeds[:, field] for field in self.context], dim=-1)
        )
        return 2 * self.gate(self.hidden(context).relu()).sigmoid() * embeds.flatten(1)


@register_id_tower("finalmlp")
class FinalMLP(IdTower):
    """FinalMLP (Mao et al., AAAI 2023): two DNNs over the embeddings, each with its own selection of features, fused.

    `h_id = [o_1; o_2; fused]`, of which `fused` is `(o_1 W) * o_2` (element by element), head by head. The paper's
    bilinear fusion `b + w_1 o_1 + w_2 o_2 + sum_heads o_1^T W o_2` is linear in it: the click logit's weight of an
    element of `fused` scales a column of W.

    Args:
        num_heads: heads of the fusion; the last size of both streams must be a multiple of it.
        second_hidden_dims: layers of the second stream; those of the first, `id_hidden_dims`, when None.
        feature_selection: whether gates weigh the embeddings before the streams.
        gate_size: size of a gate's hidden layer.
        first_context, second_context: names of the fields whose embeddings drive the gate of a stream (the paper has a
            user's in one and an item's in the other); a learned vector when None.
    """

    def __init__(
        self,
        config: FlipConfig,
        num_heads: int = 1,
        second_hidden_dims: list[int] | None = None,
        feature_selection: bool = True,
        gate_size: int | None = None,
        first_context: list[str] | None = None,
        second_context: list[str] | None = None,
    ):
        check_count("FinalMLP", "num_heads", num_heads, 1)
        check_flag("FinalMLP", "feature_selection", feature_selection)
        own = {"gate_size": gate_size, "first_context": first_context, "second_context": second_context}
        given = [name for name, value in own.items() if value is not None]
        if given and not feature_selection:
            raise ValueError(
                f"FinalMLP: `{given[0]}` is of the feature selection; leave it out without `feature_selection`."
            )
        gate_size = 64 if gate_size is None else gate_size
        check_count("FinalMLP", "gate_size", gate_size, 1)
        if second_hidden_dims is None:
            second_hidden_dims = config.id_hidden_dims
        else:
            check_sizes("FinalMLP", "second_hidden_dims", second_hidden_dims)
        super().__init__(config)  # its DNN is the first stream
        self.second_dnn = DNN(self.input_dim, list(second_hidden_dims), config.id_dropout)
        self.first_gate = self.second_gate = None
        if feature_selection:
            contexts = [
                _positions(config, *one)
                for one in (("first_context", first_context), ("second_context", second_context))
            ]
            self.first_gate, self.second_gate = (
                FeatureGate(self.num_fields, self.embedding_size, gate_size, context) for context in contexts
            )
        first, second = self.dnn.output_dim, self.second_dnn.output_dim
        for size in (first, second):
            check_divides("FinalMLP", "a stream's last size", size, "num_heads", num_heads)
        # filled by init_flip_weights; zeros until then, so that a tower built alone holds no garbage
        self.fusion = nn.Parameter(torch.zeros(num_heads, first // num_heads, second // num_heads))
        self.output_dim = first + 2 * second

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.normal_(self.fusion, std=(2 / sum(self.fusion.shape[1:])) ** 0.5)  # Xavier of each head's matrix

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        flat = embeds.flatten(1)
        first = self.dnn(flat if self.first_gate is None else self.first_gate(embeds))
        second = self.second_dnn(flat if self.second_gate is None else self.second_gate(embeds))
        heads = first.unflatten(-1, (len(self.fusion), -1))
        fused = torch.einsum("bhx,hxy->bhy", heads, self.fusion).flatten(1) * second
        return torch.cat([first, second, fused], dim=-1)


def _positions(config: FlipConfig, argument: str, names: list[str] | None) -> list[int]:
    """Of the named fields, among those of the ID side."""
    have = [field.name for field in config.id_fields]
    if names is not None and (not isinstance(names, list | tuple) or not names):
        raise ValueError(f"FinalMLP: `{argument}` must be a list of fields' names; got {names!r}.")
    unknown = [name for name in names or [] if name not in have]
    if unknown:
        raise ValueError(
            f"FinalMLP: `{argument}` must name fields of the ID side, {', '.join(have)}; got {unknown[0]!r}."
        )
    return [have.index(name) for name in names or []]
