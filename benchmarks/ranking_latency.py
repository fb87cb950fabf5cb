# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""How long a request to a ranker takes: candidates of a real catalogue for one user after another, in one thread.

    OMP_NUM_THREADS=1 python benchmarks/ranking_latency.py --models ID JOINT --dataset_dir DATA

Beside the rankers stands the bare ID tower of the first model on prepared tensors of as many rows. All take turns, so
that a noisy machine slows all of them; what is shown is the median, and of the ratios to the first model's.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from flip_ctr.benchmarks.children import write_rows
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.serve.item_files import read_items
from flip_ctr.serve.ranker import FlipRanker
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments
from flip_ctr.train.serve_arguments import BACKENDS

WARM_UP = 5
BARE = "bare ID tower"


@dataclass
class LatencyArguments(Options):
    models: list[str] = required("fine-tuned checkpoints, an ID-only one first", path=True)
    dataset_dir: str = required("dataset folder whose items are ranked for users of its test split", path=True)
    backends: list[str] = option(["torch"], "what computes requests: torch, onnx", choices=BACKENDS)
    candidates: int = option(1000, "items a request ranks", at_least=1)
    turns: int = option(200, "requests", at_least=10)
    seed: int = option(0, "seed of the candidates", at_least=0)
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def requests(args: LatencyArguments, ranker: FlipRanker) -> list[dict]:
    """Arguments of `rank`: users of the test split, and candidates at random."""
    users = read_split(args.dataset_dir, "test").slice(0, args.turns + WARM_UP).to_pylist()
    generator, keys = np.random.default_rng(args.seed), ranker.catalogue.answers
    history = ranker.processor.history_field
    names = [field.name for field in ranker.user_fields]
    return [
        {
            "user": {name: user[name] for name in names},
            "candidates": generator.choice(keys, args.candidates, replace=False).tolist(),
            "history": user[history.name] if history is not None else None,
        }
        for user in users
    ]


def run(args: LatencyArguments) -> list[dict]:
    """Prints a table, and returns its rows: `median_ms`, `p95_ms` and `ratio` to the bare tower."""
    torch.set_num_threads(1)
    calls: dict[str, list[Callable]] = {}
    for path in args.models:
        model, processor = load_click_model(path)
        items = read_items(args.dataset_dir, processor)
        for backend in args.backends:
            ranker = FlipRanker(model, processor, items, backend=backend)
            asked = requests(args, ranker)
            if not calls:
                calls[BARE] = [bare_tower(ranker, items, asked[0]["user"], args.candidates)] * len(asked)
            calls[f"{Path(path).name}, {backend}"] = [partial(ranker.rank, **one) for one in asked]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(args.turns + WARM_UP):
        for name, some in calls.items():
            started = time.perf_counter()
            some[turn]()
            seconds[name].append(time.perf_counter() - started)
    seconds = {name: values[WARM_UP:] for name, values in seconds.items()}
    rows = [
        {
            "what": name,
            "median_ms": 1000 * statistics.median(values),
            "p95_ms": 1000 * float(np.percentile(values, 95)),
            "ratio": statistics.median(one / other for one, other in zip(values, seconds[BARE])),
        }
        for name, values in seconds.items()
    ]
    table = [[row["what"], *(f"{row[name]:.2f}" for name in ("median_ms", "p95_ms", "ratio"))] for row in rows]
    print(f"{args.candidates:,} candidates, {args.turns} requests, one thread\n")
    print(markdown_table(["", "median, ms", "95th percentile, ms", f"x {BARE}"], table))
    write_rows(rows, args.output_file)
    return rows


def bare_tower(ranker: FlipRanker, items: pa.Table, user: dict, candidates: int) -> Callable:
    """The ID tower's forward alone, on the inputs of a user with so many items."""
    picked = items.take(np.arange(candidates) % len(items)).to_pylist()
    history = ranker.processor.history_field
    past = {} if history is None else {history.name: []}
    inputs = ranker.processor.without_tokenizer()([item | user | past for item in picked], items=items)
    tower, names = ranker.model.flip.id_tower, ("feature_ids", "history_ids", "history_outcomes")
    return torch.no_grad()(partial(tower, **{name: inputs[name] for name in names if name in inputs}))


if __name__ == "__main__":
    run(parse_arguments(LatencyArguments, description=__doc__))
