# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""ID-based backbones of FLIP behind one interface: feature ids in, the interaction vector `h_id` out.

A tower is a class that takes a `FlipConfig` (and its own arguments, from `config.id_tower_kwargs`), has an `output_dim`,
and maps `feature_ids` `(batch, slots)` to `h_id` `(batch, output_dim)`. `register_id_tower` names it.
"""

import ast
import inspect
import os
import sys
from itertools import accumulate, groupby

import torch
from torch import nn
from transformers import initialization as init
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import logging

from .configuration_flip import CUSTOM_ENTRY, PAD_ID, FlipConfig

logger = logging.get_logger(__name__)

# where a name lies that a user's file imports from the package itself
PUBLIC_NAMES = {
    "configuration_flip": ("FlipConfig", "FlipField"),
    "feature_extraction_flip": ("FlipFeatureExtractor",),
    "modeling_flip": ("FlipPreTrainedModel", "FlipModel", "FlipForPretraining", "FlipForCTR"),
    "modeling_id_tower": ("IdTower", "register_id_tower"),
    "processing_flip": ("FlipProcessor",),
}
FLAT_MODULES = (*PUBLIC_NAMES, "columns_flip", "modeling_flip_heads", "pipeline_flip", CUSTOM_ENTRY)
ID_TOWERS: dict[str, type["IdTower"]] = {}


def register_id_tower(name: str):
    """Class decorator: makes a tower available as `FlipConfig(id_tower=name)`."""

    def register(cls):
        ID_TOWERS[name] = cls
        return cls

    return register


def build_id_tower(config: FlipConfig) -> "IdTower":
    """The tower that `config.id_tower` names, with `config.id_tower_kwargs`.

    Raises:
        ValueError: no tower has that name, or the tower has no such argument.
    """
    if config.id_tower not in ID_TOWERS:
        raise ValueError(
            f"FlipConfig: `id_tower` must be one of {', '.join(sorted(ID_TOWERS))}; got {config.id_tower!r}. A tower of your own is "
            "known once the module that registers it has been imported."
        )
    tower = ID_TOWERS[config.id_tower]
    allowed = list(inspect.signature(tower.__init__).parameters)[2:]
    unknown = sorted(set(config.id_tower_kwargs) - set(allowed))
    if unknown:
        raise ValueError(
            f"FlipConfig: `id_tower_kwargs` of {config.id_tower!r} may hold {', '.join(allowed) or 'nothing'}; "
            f"got {', '.join(unknown)}."
        )
    return tower(config, **config.id_tower_kwargs)


def save_tower_code(tower: "IdTower", folder: str) -> str | None:
    """Copies the file of a user's own tower, and files beside it that it imports, into a checkpoint, with an entry module that
    registers the tower before the models load.

    Returns the name of that module for `auto_map`; None for a tower of this package, or one whose code cannot be copied (defined
    in `__main__` or a notebook, or with imports that mean nothing elsewhere; that is logged).
    """
    module = type(tower).__module__
    if module == __name__:
        return None
    try:
        path = getattr(sys.modules.get(module), "__file__", None)
        if module == "__main__" or path is None:
            raise ValueError(f"it is defined in {module}, which is no file that could be copied")
        files = {}
        for source in [path, *get_relative_import_files(path)]:
            name = os.path.basename(source).removesuffix(".py")
            if not os.path.samefile(os.path.dirname(source), os.path.dirname(path)):
                raise ValueError(f"it imports {source}, which is not in the folder of {path}")
            if source != path and name in FLAT_MODULES:
                continue  # a copy of a checkpoint's code, which brings these itself
            if name in FLAT_MODULES:
                raise ValueError(f"its file has the name of a file of this package, {name}.py")
            with open(source, encoding="utf-8") as file:
                files[name] = _with_flat_imports(file.read())
    except (ValueError, OSError) as error:
        logger.warning(
            f"the checkpoint does not carry the code of the ID tower {type(tower).__name__}: {error}. It loads only where that tower "
            "is registered."
        )
        return None
    entry = f"from .{os.path.basename(path).removesuffix('.py')} import {type(tower).__name__}  # registers the tower\n"
    files[CUSTOM_ENTRY] = entry + "from .modeling_flip import FlipForCTR, FlipForPretraining, FlipModel\n"
    for name, source in files.items():
        with open(os.path.join(folder, f"{name}.py"), "w", encoding="utf-8") as file:
            file.write(source)
    return CUSTOM_ENTRY


def _with_flat_imports(source: str) -> str:
    """A file that imports from `flip_ctr`, as one that imports from the files beside it in a checkpoint. `ValueError` where it cannot."""
    package, lines = __name__.split(".")[0], source.splitlines(keepends=True)
    homes = {name: home for home, names in PUBLIC_NAMES.items() for name in names}
    # from the end, so that line numbers stay true
    for node in sorted((node for node in ast.walk(ast.parse(source)) if hasattr(node, "lineno")), key=lambda node: -node.lineno):
        if isinstance(node, ast.Import) and any(one.name.split(".")[0] == package for one in node.names):
            raise ValueError(f"line {node.lineno}: write `from {package} import …` instead of `import {package}`")
        if not isinstance(node, ast.ImportFrom) or node.level or (node.module or "").split(".")[0] != package:
            continue
        flat = []
        for one in node.names:
            home = homes.get(one.name) if node.module == package else node.module.split(".", 1)[1]
            if home not in FLAT_MODULES:
                raise ValueError(f"line {node.lineno}: `{one.name}` of {node.module} is not part of what a checkpoint carries")
            renamed = f" as {one.asname}" if one.asname else ""
            flat.append(f"{lines[node.lineno - 1][: node.col_offset]}from .{home} import {one.name}{renamed}\n")
        lines[node.lineno - 1 : node.end_lineno] = flat
    return "".join(lines)


class FeatureEmbedding(nn.Embedding):
    """One table for the features of all fields: row `sizes of the fields before + local id` of each slot's field.

    `(batch, slots)` local ids -> `(batch, fields, embedding_dim)`; a field of several slots is the mean of those that are not pad.

    Args:
        field_sizes: number of feature ids of each field.
        slot_fields: the field of each slot, in ascending order; one slot a field when None.
    """

    def __init__(self, field_sizes: list[int], embedding_dim: int, slot_fields: list[int] | None = None):
        super().__init__(sum(field_sizes), embedding_dim)
        self.field_sizes = list(field_sizes)
        self.slot_fields = list(range(len(field_sizes)) if slot_fields is None else slot_fields)
        slots = [self.slot_fields.count(field) for field in range(len(field_sizes))]
        # runs of neighbouring fields, (slots, whether they are one field's): fields of one slot need no pooling
        runs = groupby(slots, key=lambda number: number > 1)
        self.runs = [run for several, group in runs for run in ([(n, True) for n in group] if several else [(sum(group), False)])]
        self.register_buffer("offsets", self._offsets(), persistent=False)

    def _offsets(self) -> torch.Tensor:
        """First row of each slot's field, `(slots,)`."""
        starts = [0, *accumulate(self.field_sizes[:-1])]
        return torch.tensor([starts[field] for field in self.slot_fields])

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.normal_(self.weight, std=config.id_initializer_range)
        init.copy_(self.offsets, self._offsets())  # built on the meta device by `from_pretrained`: filled here

    def forward(self, feature_ids: torch.Tensor) -> torch.Tensor:
        if feature_ids.shape[-1] != len(self.slot_fields):
            raise ValueError(
                f"feature_ids has {feature_ids.shape[-1]} columns, the model has {len(self.slot_fields)} slots of "
                f"{len(self.field_sizes)} ID-side fields."
            )
        embeds = super().forward(feature_ids + self.offsets)  # (B, S, D)
        if len(self.slot_fields) == len(self.field_sizes):
            return embeds
        sizes = [size for size, _ in self.runs]
        parts = zip(self.runs, embeds.split(sizes, dim=1), feature_ids.split(sizes, dim=1))
        return torch.cat([mean_of_values(part, ids) if pooled else part for (_, pooled), part, ids in parts], dim=1)


def mean_of_values(embeds: torch.Tensor, feature_ids: torch.Tensor) -> torch.Tensor:
    """The mean over the slots of one field that are not pad: `(B, n, D)` and local ids `(B, n)` -> `(B, 1, D)`."""
    pad = (feature_ids == PAD_ID)[..., None]  # (B, n, 1)
    return embeds.masked_fill(pad, 0.0).sum(1, keepdim=True) / (~pad).sum(1, keepdim=True).clamp(min=1)


class TowerLinear(nn.Linear):
    """A linear layer initialised as CTR models are (Xavier): the 0.02 of language models lets a DNN's signal fade."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.xavier_normal_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class DNN(nn.Module):
    """Hidden layers with ReLU and dropout: `(batch, input_dim)` -> `(batch, hidden_dims[-1])`."""

    def __init__(self, input_dim: int, hidden_dims: list[int], dropout: float):
        super().__init__()
        dims = [input_dim, *hidden_dims]
        self.layers = nn.ModuleList(TowerLinear(a, b) for a, b in zip(dims, dims[1:]))
        self.dropout = nn.Dropout(dropout)
        self.output_dim = dims[-1]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = self.dropout(layer(hidden).relu())
        return hidden


class IdTower(nn.Module):
    """Base of the towers: feature embeddings, a DNN beside the interaction, and `h_id = [interaction; deep]`.

    A subclass sets `output_dim` and implements `interact`.
    """

    has_first_order = False  # whether the click logit also adds one weight a feature (DeepFM)

    def __init__(self, config: FlipConfig):
        super().__init__()
        self.num_fields = len(config.field_sizes)
        if self.num_fields == 0:
            raise ValueError("FlipConfig: `fields` has no field on the ID side; an ID tower needs at least one.")
        self.embedding_size = config.id_embedding_size
        self.input_dim = self.num_fields * self.embedding_size
        self.embeddings = FeatureEmbedding(config.field_sizes, self.embedding_size, config.slot_fields)
        self.embedding_dropout = nn.Dropout(config.id_embedding_dropout)
        self.dnn = DNN(self.input_dim, config.id_hidden_dims, config.id_dropout)
        self.output_dim = self.dnn.output_dim

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        """`(batch, fields, embedding_size)` -> the interaction, `(batch, output_dim - deep)`."""
        raise NotImplementedError

    def forward(self, feature_ids: torch.Tensor) -> torch.Tensor:
        embeds = self.embedding_dropout(self.embeddings(feature_ids))  # (B, F, D)
        return torch.cat([self.interact(embeds), self.dnn(embeds.flatten(1))], dim=-1)


@register_id_tower("deepfm")
class DeepFM(IdTower):
    """DeepFM (Guo et al., IJCAI 2017): `h_id = [bi-interaction; deep]`, and a first-order term in the click logit."""

    has_first_order = True

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.output_dim += self.embedding_size

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        # sum of e_i * e_j over all pairs i < j, in O(fields)
        return 0.5 * (embeds.sum(1).square() - embeds.square().sum(1))


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
    """

    def __init__(self, config: FlipConfig, num_layers: int = 3, num_heads: int = 2, attention_size: int = 64):
        super().__init__(config)
        if attention_size % num_heads:
            raise ValueError(f"AutoInt: attention_size {attention_size} is not a multiple of num_heads {num_heads}.")
        sizes = [self.embedding_size] + [attention_size] * num_layers
        self.attention = nn.ModuleList(InteractingLayer(a, b, num_heads) for a, b in zip(sizes, sizes[1:]))
        self.output_dim += self.num_fields * sizes[-1]

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        for layer in self.attention:
            embeds = layer(embeds)
        return embeds.flatten(1)


class LowRankCrossLayer(nn.Module):
    """A DCNv2 cross layer as a mixture of low-rank experts (DCN V2): `(B, dim)` -> `(B, dim)`.

    `x' = x + sum_e gate_e(x) * x0 * (U_e tanh(C_e tanh(V_e^T x)) + b)`. The gates sum to 1, so that the sum over the
    experts goes through one matrix product with their U side by side.
    """

    def __init__(self, dim: int, low_rank: int, num_experts: int):
        super().__init__()
        # filled by init_flip_weights; zeros until then, so that a tower built alone holds no garbage
        self.down = nn.Parameter(torch.zeros(dim, num_experts * low_rank))  # V
        self.core = nn.Parameter(torch.zeros(num_experts, low_rank, low_rank))  # C
        self.up = nn.Parameter(torch.zeros(num_experts * low_rank, dim))  # U
        self.bias = nn.Parameter(torch.zeros(dim))
        self.gate = TowerLinear(dim, num_experts, bias=False)

    def init_flip_weights(self, config: FlipConfig) -> None:
        num_experts, low_rank, _ = self.core.shape
        dim = self.down.shape[0]
        # Xavier of each expert's own matrix, not of the experts side by side
        outer, inner = (2 / (dim + low_rank)) ** 0.5, low_rank**-0.5
        init.normal_(self.down, std=outer)
        init.normal_(self.core, std=inner)
        init.normal_(self.up, std=outer)
        init.zeros_(self.bias)

    def forward(self, x0: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        num_experts = self.core.shape[0]
        experts = (x @ self.down).tanh().unflatten(-1, (num_experts, -1))  # (B, E, r)
        experts = torch.einsum("ber,ers->bes", experts, self.core).tanh()
        gates = self.gate(x).softmax(-1).unsqueeze(-1)  # (B, E, 1)
        return x + x0 * ((gates * experts).flatten(1) @ self.up + self.bias)


@register_id_tower("dcnv2")
class DCNv2(IdTower):
    """DCN V2 (Wang et al., WWW 2021), parallel, with low-rank mixture cross layers: `h_id = [cross; deep]`.

    Args:
        num_cross_layers: cross layers (2 in FLIP's experiments).
        low_rank: rank of an expert (32).
        num_experts: experts a layer (4).
    """

    def __init__(self, config: FlipConfig, num_cross_layers: int = 2, low_rank: int = 32, num_experts: int = 4):
        super().__init__(config)
        self.cross = nn.ModuleList(
            LowRankCrossLayer(self.input_dim, low_rank, num_experts) for _ in range(num_cross_layers)
        )
        self.output_dim += self.input_dim

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        x0 = x = embeds.flatten(1)
        for layer in self.cross:
            x = layer(x0, x)
        return x


__all__ = ["IdTower", "register_id_tower"]
