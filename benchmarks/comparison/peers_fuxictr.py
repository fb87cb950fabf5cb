# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""DCNv2, FinalMLP and DIN of FuxiCTR, trained on our rows; see [`peers`].

The distribution `fuxictr` ships the layers, and not the models, which its repository keeps in `model_zoo`. They are put
together here from the library's own layers, embeddings and initialisation as the model zoo does: DCNv2 in its
`parallel` structure (a cross network beside a DNN, one linear layer on both), FinalMLP with feature selection and
bilinear aggregation in heads, DIN with the histories of the dataset folder (see [`peers_histories`]). A multi-valued
field is a `sequence` feature with the library's `MaskedAveragePooling`. Defaults are those of the model zoo; where it
leaves sizes open they are ours.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from flip_ctr.benchmarks.comparison.peers import Column, Network, NetworkArguments, PeerData, train_network
from flip_ctr.benchmarks.comparison.peers_histories import HistoryData, RowHistories
from flip_ctr.modeling_flip.histories_flip import IS_CLICKED, NOT_CLICKED
from flip_ctr.train.options import option

MODELS = ("DCNv2", "FinalMLP", "DIN")


@dataclass(kw_only=True)
class FuxiCTRArguments(NetworkArguments):
    model: str = option("DCNv2", "which of its models", choices=list(MODELS))
    num_cross_layers: int = option(3, "cross layers of DCNv2")
    use_low_rank_mixture: bool = option(
        False, "DCNv2 with a mixture of low-rank experts, as ours is by default, in place of full matrices"
    )
    low_rank: int = option(32, "rank of that mixture")
    num_experts: int = option(4, "experts of that mixture")
    batch_norm: bool = option(False, "batch normalisation in the DNNs")
    num_heads: int = option(1, "heads of FinalMLP's aggregation")
    gate_hidden_dims: list[int] = option([64], "hidden layers of FinalMLP's gates")
    first_context: list[str] = option(
        [], "fields that FinalMLP's first gate sees; a learned constant when not given", nargs="+"
    )
    second_context: list[str] = option([], "fields that the second gate sees")
    model_name_or_path: str | None = option(None, "PLM whose frozen states of items DIN reads beside ids", model=True)
    attention_hidden_units: list[int] = option([64], "hidden layers of DIN's attention")


def run(args: FuxiCTRArguments, folder: Path) -> dict:
    """Trains, saves predictions into the folder and returns the costs."""
    torch.manual_seed(args.seed)
    data = HistoryData(args.dataset_dir, args.model_name_or_path) if args.model == "DIN" else PeerData(args.dataset_dir)
    return train_network(args, folder, data, build(args, data))


def build(args: FuxiCTRArguments, data: PeerData) -> Network:
    """The model that `args` name, for the fields of `data`."""
    features = feature_map(data)
    model: nn.Module = (
        din(args, features, data)
        if isinstance(data, HistoryData)
        else {"DCNv2": dcnv2, "FinalMLP": final_mlp}[args.model](args, features)
    )
    initialise(model)
    tables = [weight for name, weight in model.named_parameters() if "embedding_layers." in name]

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        of_history = (data.history(ids),) if isinstance(data, HistoryData) else ()
        return model(by_name(data.columns, ids), *of_history)[:, 0]

    def penalty() -> torch.Tensor:
        # of whole tables, as the library's `embedding_regularizer`, which takes half of its factor
        return args.embedding_l2 * sum(table.square().sum() for table in tables)

    return Network(model, logits_of, penalty)


def by_name(columns: list[Column], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Feature ids `(n, slots)` as the library's layers take them."""
    return {
        one.name: ids[:, one.start : one.stop] if one.field.is_multi_valued else ids[:, one.start] for one in columns
    }


def feature_map(data: PeerData):
    """The library's description of the fields."""
    from fuxictr.features import FeatureMap

    features = FeatureMap("rows", ".")
    for one in data.columns:
        spec = {"type": "categorical", "source": "", "vocab_size": one.size}
        if one.field.is_multi_valued:
            spec |= {
                "type": "sequence",
                "max_len": one.stop - one.start,
                "padding_idx": 0,
                "feature_encoder": "layers.MaskedAveragePooling()",
            }
        features.features[one.name] = spec
    features.num_fields = len(data.columns)
    return features


def initialise(model: nn.Module) -> None:
    """As the library's `BaseModel.reset_parameters`: Xavier for linear layers, then what a layer does itself."""
    for module in model.modules():
        if type(module) in (nn.Linear, nn.Conv1d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if hasattr(module, "init_weights"):
            module.init_weights()


def dnn(args: FuxiCTRArguments, size: int) -> nn.Module:
    from fuxictr.pytorch.layers import MLP_Block

    return MLP_Block(
        input_dim=size,
        hidden_units=args.id_hidden_dims,
        hidden_activations="ReLU",
        output_activation=None,
        dropout_rates=args.id_dropout,
        batch_norm=args.batch_norm,
    )


def dcnv2(args: FuxiCTRArguments, features) -> nn.Module:
    """DCNv2 (arXiv 2008.13535), `model_structure` parallel."""
    from fuxictr.pytorch.layers import CrossNetMix, CrossNetV2, FeatureEmbedding

    size = args.id_embedding_size * features.num_fields

    class DCNv2(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = FeatureEmbedding(features, args.id_embedding_size)
            if args.use_low_rank_mixture:
                self.cross = CrossNetMix(
                    size, args.num_cross_layers, low_rank=args.low_rank, num_experts=args.num_experts
                )
            else:
                self.cross = CrossNetV2(size, args.num_cross_layers)
            self.deep = dnn(args, size)
            self.output = nn.Linear(size + args.id_hidden_dims[-1], 1)

        def forward(self, inputs):
            embedded = self.embedding(inputs, flatten_emb=True)
            return self.output(torch.cat([self.cross(embedded), self.deep(embedded)], dim=-1))

    return DCNv2()


def final_mlp(args: FuxiCTRArguments, features) -> nn.Module:
    """FinalMLP (arXiv 2304.00902): each of two DNNs sees the embeddings times 2 * sigmoid(gate), and their ends meet
    bilinearly."""
    from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block

    width, size, last, heads = (
        args.id_embedding_size,
        args.id_embedding_size * features.num_fields,
        args.id_hidden_dims[-1],
        args.num_heads,
    )
    if last % heads:
        raise ValueError(f"num_heads {heads} must divide the last of id_hidden_dims, {last}")

    class Gate(nn.Module):
        """What a DNN sees of the embeddings, decided by context fields or one constant."""

        def __init__(self, context: list[str]):
            super().__init__()
            self.embedding = FeatureEmbedding(features, width, required_feature_columns=context) if context else None
            self.constant = None if context else nn.Parameter(torch.zeros(1, width))
            self.gate = MLP_Block(
                input_dim=width * max(1, len(context)),
                output_dim=size,
                hidden_units=args.gate_hidden_dims,
                hidden_activations="ReLU",
                output_activation="Sigmoid",
                batch_norm=False,
            )

        def forward(self, inputs, embedded):
            seen = (
                self.constant.expand(len(embedded), -1)
                if self.embedding is None
                else self.embedding(inputs, flatten_emb=True)
            )
            return embedded * self.gate(seen) * 2

    class FinalMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = FeatureEmbedding(features, width)
            self.gates = nn.ModuleList([Gate(args.first_context), Gate(args.second_context)])
            self.deep = nn.ModuleList([dnn(args, size), dnn(args, size)])
            self.linear = nn.ModuleList([nn.Linear(last, 1), nn.Linear(last, 1)])
            self.bilinear = nn.Parameter(torch.empty(heads * (last // heads) ** 2, 1))
            nn.init.xavier_normal_(self.bilinear)

        def forward(self, inputs):
            embedded = self.embedding(inputs, flatten_emb=True)
            first, second = (deep(gate(inputs, embedded)) for gate, deep in zip(self.gates, self.deep))
            x, y = (end.view(-1, heads, last // heads) for end in (first, second))
            meeting = torch.einsum("bhi,hij,bhj->b", x, self.bilinear.view(heads, last // heads, -1), y)
            return self.linear[0](first) + self.linear[1](second) + meeting[:, None]

    return FinalMLP()


def din(args: FuxiCTRArguments, features, data: HistoryData) -> nn.Module:
    """DIN (arXiv 1706.06978) over two sequences, what the user clicked and what not. An item is the embeddings of its
    fields, and with a PLM a linear layer's of its text; the row's item has the same."""
    from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbedding

    width, has_text = args.id_embedding_size, data.texts is not None
    of_item = width * (len(data.item_columns) + has_text)

    class DIN(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = FeatureEmbedding(features, width)
            self.text = nn.Linear(data.texts.shape[1], width) if has_text else None
            self.attention = nn.ModuleList(
                DIN_Attention(of_item, args.attention_hidden_units, hidden_activations="Dice") for _ in range(2)
            )
            self.deep = dnn(args, width * (features.num_fields + has_text) + 2 * of_item)
            self.output = nn.Linear(args.id_hidden_dims[-1], 1)

        def items(self, ids: torch.Tensor, texts: torch.Tensor | None) -> torch.Tensor:
            """Feature ids `(n, slots of an item)` and texts `(n, H)` -> `(n, of_item)`."""
            embedded = self.embedding(by_name(data.item_columns, ids), flatten_emb=True)
            return embedded if self.text is None else torch.cat([embedded, self.text(texts)], dim=1)

        def forward(self, inputs, history: RowHistories):
            target = self.items(history.target_ids, history.target_texts)
            distinct, places = history.items.unique(return_inverse=True)  # items that many histories hold are read once
            texts = None if data.texts is None else data.texts[data.item_texts[distinct]]
            of_distinct = self.items(data.item_ids[distinct], texts)
            entries = of_distinct[places]  # (B, n, of_item)
            pooled = [
                attention(target, entries, history.outcomes == outcome)
                for attention, outcome in zip(self.attention, (IS_CLICKED, NOT_CLICKED))
            ]
            rows = [self.embedding(inputs, flatten_emb=True), *pooled]
            rows += [] if self.text is None else [self.text(history.target_texts)]
            return self.output(self.deep(torch.cat(rows, dim=1)))

    return DIN()
