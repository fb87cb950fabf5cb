# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""DCNMix, AutoInt, DeepFM, Wide&Deep (WDL) and xDeepFM of DeepCTR-Torch, trained on our rows; see [`peers`].

The models are the library's, with its own linear part over all fields. A multi-valued field is a `VarLenSparseFeat`
with mean pooling. The library's penalties are added as it computes them: `embedding_l2` on the embeddings (its
`l2_reg_embedding`, 1e-5 by default), and its defaults on the linear part and the cross network. xDeepFM's CIN has the
sizes of ours, and as ours no activation and maps that are not split.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from flip_ctr.benchmarks.comparison.peers import Network, NetworkArguments, PeerData, train_network
from flip_ctr.train.options import option

MODELS = ("DCNMix", "AutoInt", "DeepFM", "WDL", "xDeepFM")


@dataclass(kw_only=True)
class DeepCTRArguments(NetworkArguments):
    model: str = option("DCNMix", "which of its models", choices=list(MODELS))
    num_cross_layers: int = option(2, "cross layers of DCNMix")
    low_rank: int = option(32, "rank of DCNMix's experts")
    num_experts: int = option(4, "experts of DCNMix")
    num_attention_layers: int = option(3, "attention layers of AutoInt")
    num_attention_heads: int = option(2, "heads of AutoInt")
    cin_sizes: list[int] = option([100, 100], "layers of xDeepFM's CIN")
    init_std: float = option(1e-4, "standard deviation of initial embeddings and DNN weights; the library's default")


def without_version_check() -> None:
    """Keeps the library from asking the network for its newest version when it is imported."""
    quiet = ModuleType("deepctr_torch.utils")
    quiet.check_version = lambda version: None
    sys.modules.setdefault(quiet.__name__, quiet)


def run(args: DeepCTRArguments, folder: Path) -> dict:
    """Trains, saves predictions into the folder and returns the costs."""
    data = PeerData(args.dataset_dir)
    return train_network(args, folder, data, build(args, data))


def build(args: DeepCTRArguments, data: PeerData) -> Network:
    """The model that `args` name, for the fields of `data`."""
    without_version_check()
    from deepctr_torch import models
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat

    features = []
    for one in data.columns:
        feature = SparseFeat(one.name, one.size, embedding_dim=args.id_embedding_size)
        features.append(
            VarLenSparseFeat(feature, maxlen=one.stop - one.start, combiner="mean")
            if one.field.is_multi_valued
            else feature
        )
    shared = {
        "dnn_hidden_units": tuple(args.id_hidden_dims),
        "dnn_dropout": args.id_dropout,
        "l2_reg_embedding": args.embedding_l2,
        "init_std": args.init_std,
        "seed": args.seed,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    own = {
        "DCNMix": {"cross_num": args.num_cross_layers, "low_rank": args.low_rank, "num_experts": args.num_experts},
        "AutoInt": {"att_layer_num": args.num_attention_layers, "att_head_num": args.num_attention_heads},
        "xDeepFM": {"cin_layer_size": tuple(args.cin_sizes), "cin_split_half": False, "cin_activation": "linear"},
    }
    model = getattr(models, args.model)(features, features, **own.get(args.model, {}), **shared)
    model.out.task = "regression"  # log odds: the sigmoid is in the loss

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        return model(ids.float())[:, 0]  # the library takes ids as floats, which hold whole numbers up to 2**24

    if max(one.size for one in data.columns) > 2**24:
        raise ValueError(
            f"{args.dataset_dir}: a field has more than {2**24:,} values, which DeepCTR-Torch cannot tell apart"
        )
    return Network(model, logits_of, lambda: model.get_regularization_loss()[0])
