# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""ID towers of attention, logarithms, masks and gated streams: AutoInt, AFN, MaskNet, FinalMLP.

Shapes below: B rows, F fields, D the size of an embedding.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig, check_choice, check_count
from .modeling_id_tower import (
    DNN,
    FeatureEmbedding,
    IdTower,
    TowerLinear,
    check_divides,
    check_flag,
    check_sizes,
    register_id_tower,
)

NORMS = ("layer", "batch")
STRUCTURES = ("serial", "parallel")
SMALLEST = 1e-5  # of an embedding's absolute value, before the logarithm


class InteractingLayer(nn.Module):
    """Self-attention over the fields with a linear residual: `(B, F, input)` -> `(B, F, output)`."""

    def __init__(self, input_size: int, output_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.residual = (
            TowerLinear(input_size, output_size, bias=False) for _ in range(4)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, F, size)
            for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return (attended + self.residual(hidden)).relu()


@register_id_tower("autoint")
class AutoInt(IdTower):
    """AutoInt+ (Song et al., CIKM 2019): `h_id = [interacting layers over the fields; deep]`.

    Args:
        num_layers: interacting layers (3 in the paper).
        num_heads: attention heads (2 in the paper).
        attention_size: size of a field after a layer, all heads together (2 x 32 in the paper).
        use_dnn: AutoInt+; without the DNN it is AutoInt, and `h_id` the interacting layers'.
    """

    def __init__(self, config: FlipConfig, num_layers: int = 3, num_heads: int = 2, attention_size: int = 64, use_dnn: bool = True):
        check_flag("AutoInt", "use_dnn", use_dnn)
        for name, value in (("num_layers", num_layers), ("num_heads", num_heads), ("attention_size", attention_size)):
            check_count("AutoInt", name, value, 1)
        check_divides("AutoInt", "attention_size", attention_size, "num_heads", num_heads)
        super().__init__(config, deep=use_dnn)
        sizes = [self.embedding_size] + [attention_size] * num_layers
        self.attention = nn.ModuleList(InteractingLayer(a, b, num_heads) for a, b in zip(sizes, sizes[1:]))
        self.output_dim += self.num_fields * sizes[-1]

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        for layer in self.attention:
            embeds = layer(embeds)
        return embeds.flatten(1)


class LogarithmicLayer(nn.Module):
    """AFN's logarithmic transformation: `(B, F, D)` -> `(B, neurons, D)`.

    Neuron j is `exp(sum_i w_ij ln|e_i|)`, the product of the embeddings raised to learned powers, element by element. Absolute values keep
    the logarithm real; both logarithms and results are normalised.
    """

    def __init__(self, num_fields: int, size: int, num_neurons: int, norm: str):
        super().__init__()
        self.powers = TowerLinear(num_fields, num_neurons, bias=False)
        layer = norm == "layer"
        self.log_norm, self.exp_norm = (nn.LayerNorm(size) if layer else nn.BatchNorm1d(n) for n in (num_fields, num_neurons))

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        logs = self.log_norm(embeds.abs().clamp(min=SMALLEST).log())
        return self.exp_norm(self.powers(logs.mT).mT.exp())


@register_id_tower("afn")
class AFN(IdTower):
    """Adaptive factorization network (Cheng et al., AAAI 2020): `h_id` is a DNN over logarithmic neurons, that is interactions of
    learned orders; AFN+ has a second table and a DNN over it, `h_id = [that; deep]`.

    Args:
        num_neurons: logarithmic neurons (256 in FLIP's release; the paper has hundreds to 1500, of embeddings of 10).
        norm: of logarithms and neurons: `layer` over the elements of an embedding, or `batch`, the paper's, a mean over the rows of a
            batch. That makes a row's score depend on the rows beside it while training, by process and by GradCache's chunk, and each
            process has its own running means.
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

    def forward(self, feature_ids: torch.Tensor, text_embeds: torch.Tensor | None = None) -> torch.Tensor:
        interaction = self.interact(self.embed(self.embeddings, feature_ids, text_embeds))
        if self.dnn is None:
            return interaction
        deep = self.dnn(self.embed(self.deep_embeddings, feature_ids, text_embeds).flatten(1))
        return torch.cat([interaction, deep], dim=-1)


class FieldNorm(nn.Module):
    """Layer normalisation of each field's embedding with weights of its own (MaskNet's LN_EMB): `(B, F, D)` -> `(B, F * D)`."""

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
    """MaskNet's block (section 3): `relu(LN(W (mask * hidden)))`, the instance-guided mask two layers over the row's embeddings.

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
    """MaskNet (Wang et al., DLP-KDD 2021, section 3): mask blocks in the place of a DNN's layers, over normalised embeddings.

    Args:
        structure: `serial`: one block on the other, of the sizes `id_hidden_dims`, `h_id` the last; `parallel`: blocks side by side
            on the embeddings, `h_id` a DNN over all of them.
        reduction_ratio: size of the mask's inner layer over that of what is masked (2 in the paper).
        num_blocks: blocks of `parallel`; 3 when None.
        block_size: size of such a block; 64 when None.
    """

    def __init__(self, config: FlipConfig, structure: str = "serial", reduction_ratio: float = 2.0,
                 num_blocks: int | None = None, block_size: int | None = None):  # fmt: skip
        check_choice("MaskNet", "structure", structure, STRUCTURES)
        if isinstance(reduction_ratio, bool) or not isinstance(reduction_ratio, int | float) or reduction_ratio <= 0:
            raise ValueError(f"MaskNet: `reduction_ratio` must be a number above 0; got {reduction_ratio!r}.")
        blocks = {name: value for name, value in (("num_blocks", num_blocks), ("block_size", block_size)) if value is not None}
        for name, value in blocks.items():
            check_count("MaskNet", name, value, 1)
        parallel = structure == "parallel"
        if blocks and not parallel:
            raise ValueError(f"MaskNet: `{next(iter(blocks))}` is of structure 'parallel'; the blocks of 'serial' are `id_hidden_dims`.")
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
        context = self.vector if self.vector is not None else torch.cat([embeds[:, field] for field in self.context], dim=-1)
        return 2 * self.gate(self.hidden(context).relu()).sigmoid() * embeds.flatten(1)


@register_id_tower("finalmlp")
class FinalMLP(IdTower):
    """FinalMLP (Mao et al., AAAI 2023): two DNNs over the embeddings, each with its own selection of features, fused.

    `h_id = [o_1; o_2; fused]`, of which `fused` is `(o_1 W) * o_2` (element by element), head by head. The paper's bilinear fusion
    `b + w_1 o_1 + w_2 o_2 + sum_heads o_1^T W o_2` is linear in it: the click logit's weight of an element of `fused` scales a column of W.

    Args:
        num_heads: heads of the fusion; the last size of both streams must be a multiple of it.
        second_hidden_dims: layers of the second stream; those of the first, `id_hidden_dims`, when None.
        feature_selection: whether gates weigh the embeddings before the streams.
        gate_size: size of a gate's hidden layer.
        first_context, second_context: names of the fields whose embeddings drive the gate of a stream (the paper has a user's in one
            and an item's in the other); a learned vector when None.
    """

    def __init__(self, config: FlipConfig, num_heads: int = 1, second_hidden_dims: list[int] | None = None,
                 feature_selection: bool = True, gate_size: int | None = None, first_context: list[str] | None = None,
                 second_context: list[str] | None = None):  # fmt: skip
        check_count("FinalMLP", "num_heads", num_heads, 1)
        check_flag("FinalMLP", "feature_selection", feature_selection)
        given = {"gate_size": gate_size, "first_context": first_context, "second_context": second_context}
        given = [name for name, value in given.items() if value is not None]
        if given and not feature_selection:
            raise ValueError(f"FinalMLP: `{given[0]}` is of the feature selection; leave it out without `feature_selection`.")
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
            contexts = [_positions(config, *one) for one in (("first_context", first_context), ("second_context", second_context))]
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
        raise ValueError(f"FinalMLP: `{argument}` must name fields of the ID side, {', '.join(have)}; got {unknown[0]!r}.")
    return [have.index(name) for name in names or []]
