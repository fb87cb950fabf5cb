# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the models of other libraries share: our rows as they see them, and for the networks one training loop.

They see the ID side of the dataset folder's schema, as our ID towers do: the same values with the same numbers,
vocabularies from training rows alone, what training has not seen as one value. The prompt side, which only a language
model can read, they do not have.

The loop is that of `flip-ctr finetune --strategy id`: the same rows a batch and number of epochs, a linear schedule
with warm-up, an evaluation after each epoch, the weights with the best validation AUC - LogLoss kept, an end after so
many epochs without a better one, and the test split scored once with those weights. It stands around a library's
`nn.Module`, as the trainers of the libraries know neither that schedule nor that rule. The optimizer is Adam, theirs by
default.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import get_scheduler

from flip_ctr.benchmarks.comparison.predictions import Predictions, timed_passes
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.shards import open_splits
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.modeling_flip.losses_flip import click_loss
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.outputs.metrics import click_metrics


@dataclass(kw_only=True)
class PeerArguments(Options):
    """What every model of another library is given."""

    dataset_dir: str = required("dataset folder", path=True)
    output_dir: str = required("folder of the run's own output", path=True)
    seed: int = option(42, "seed of initialisation and order")
    per_device_eval_batch_size: int = option(512, "rows of a scoring batch")
    early_stopping_patience: int = option(3, "stop after so many evaluations without a better AUC - LogLoss")


@dataclass(kw_only=True)
class NetworkArguments(PeerArguments):
    """And what every network is: the names and values of `flip-ctr finetune --strategy id`, where not said
    otherwise."""

    per_device_train_batch_size: int = option(1024, "rows of a batch")
    num_train_epochs: int = option(10, "passes over the training rows")
    learning_rate: float = option(1e-3, "of all weights; the libraries' default")
    lr_scheduler_type: str = option("linear", "shape of the learning rate")
    warmup_ratio: float = option(0.05, "share of the steps with a rising learning rate")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    embedding_l2: float = option(1e-5, "factor of the sum of squares of the whole feature tables, added to the loss")
    id_embedding_size: int = option(32, "size of a feature embedding")
    id_hidden_dims: list[int] = option([300, 300, 128], "layers of the DNN")
    id_dropout: float = option(0.0, "dropout in the DNN")


@dataclass(frozen=True)
class Column:
    """A field as a peer sees it: ids below `size` (0 pad, 1 never, 2 unseen, 3 null) in columns `start` to `stop`;
    several are a list."""

    field: FlipField
    size: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return self.field.name


class PeerData:
    """The splits of a dataset folder as feature ids `(rows, slots)`, labels and users; see [`EncodedDataset`].

    Args:
        tokenizer: where prompts of entities are to be encoded too.
    """

    def __init__(self, dataset_dir: str, tokenizer: Any = None):
        rows = open_splits(dataset_dir, dict.fromkeys(("train", "validation", "test")))
        schema = rows["train"].schema
        text = {} if tokenizer is None else {"tokenizer": tokenizer, "prompts": "entity"}
        processor = FlipProcessor.from_dataset(
            rows["train"], schema.fields, label=schema.label, weight=schema.weight_column, **text
        )
        extractor = processor.feature_extractor
        slots = np.bincount(extractor.slot_fields)
        stops = np.cumsum(slots)
        fields = [field for field in extractor.all_fields if field.on_id_side]
        self.columns = [
            Column(field, field.vocab_size, int(stop - size), int(stop))
            for field, size, stop in zip(fields, slots, stops)
        ]
        self.processor = processor
        self.splits = {split: EncodedDataset(processor, of_split, bool(text)) for split, of_split in rows.items()}

    def ids(self, split: str) -> np.ndarray:
        return np.array(self.splits[split].encoded.feature_ids)  # torch takes no mapped file

    def labels(self, split: str) -> np.ndarray:
        return np.asarray(self.splits[split].labels)

    def weights(self, split: str) -> np.ndarray | None:
        """Of the rows, for the training loss; None where the dataset has no weight column."""
        weights = self.splits[split].weights
        return None if weights is None else np.array(weights, np.float32)


def best_evaluation(history: list[dict]) -> int:
    """Which entry of a history has the best validation AUC - LogLoss."""
    return int(np.argmax([entry["auc"] - entry["logloss"] for entry in history]))


class Network(NamedTuple):
    """A model of another library.

    Args:
        logits_of: feature ids `(B, slots)` -> log odds `(B,)`.
        penalty: regularisation, added to the loss of each batch.
    """

    model: nn.Module
    logits_of: Callable[[torch.Tensor], torch.Tensor]
    penalty: Callable[[], torch.Tensor]

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        ids: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> None:
        """One training step on feature ids `(B, slots)`, and labels and the rows' weights `(B,)`."""
        loss = click_loss(self.logits_of(ids)[:, None], labels, weights) + self.penalty()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        optimizer.step()


def train_network(args: NetworkArguments, folder: Path, data: PeerData, network: Network) -> dict:
    """Trains a network, keeps the weights that are best on validation, saves the predictions and returns the costs."""
    model = network.model
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    generator = np.random.default_rng(args.seed)
    ids, labels = torch.from_numpy(data.ids("train")), torch.from_numpy(data.labels("train").astype(np.float32))
    sample_weight = None if (given := data.weights("train")) is None else torch.from_numpy(given)
    steps_per_epoch = math.ceil(len(ids) / args.per_device_train_batch_size)
    total = steps_per_epoch * args.num_train_epochs
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, math.ceil(args.warmup_ratio * total), total)

    @torch.no_grad()
    def score(split: str) -> np.ndarray:
        model.eval()
        rows = torch.from_numpy(data.ids(split)).split(args.per_device_eval_batch_size)
        return np.concatenate([network.logits_of(part.to(device)).float().cpu().numpy() for part in rows])

    history, weights, started = [], None, time.perf_counter()
    for epoch in range(1, args.num_train_epochs + 1):
        model.train()
        for rows in batches(generator.permutation(len(ids)), args.per_device_train_batch_size):
            weights_of_rows = None if sample_weight is None else sample_weight[rows].to(device)
            batch = ids[rows].to(device), labels[rows].to(device), weights_of_rows
            network.step(optimizer, args.max_grad_norm, *batch)
            scheduler.step()
        measured = click_metrics(score("validation"), data.labels("validation"))
        entry = {"seconds": time.perf_counter() - started, "epoch": epoch}
        history.append(entry | {name: measured[name] for name in ("auc", "logloss")})
        print(history[-1], flush=True)
        best = best_evaluation(history)
        if best == len(history) - 1:
            weights = copy.deepcopy(model.state_dict())
        if len(history) - 1 - best >= args.early_stopping_patience:
            break
    seconds = history[-1]["seconds"]
    model.load_state_dict(weights)
    speed = save_predictions(folder, data, score)
    return speed | {
        "train_seconds": seconds,
        "train_rows": len(ids),
        "train_steps": len(history) * steps_per_epoch,
        "best_epoch": history[best]["epoch"],
        "history": history,
        "parameters": sum(weight.numel() for weight in model.parameters()),
    }


def batches(order: np.ndarray, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(order), size):
        yield torch.from_numpy(order[start : start + size])


def save_predictions(folder: Path, data: PeerData, score: Callable[[str], np.ndarray]) -> dict:
    """Saves what a trained model says of validation and test; returns its speed on the latter."""
    for split in ("validation", "test"):
        rows = data.splits[split]
        logits, speed = timed_passes(lambda: score(split), len(rows), split)  # noqa: B023  called at once
        Predictions.of({"logits": logits}, rows.labels, rows.users).save(folder, split)
    return speed
