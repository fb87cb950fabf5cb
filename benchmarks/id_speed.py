# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The training step of ID towers beside that of the same models of other libraries, on the same batches.

    OMP_NUM_THREADS=1 PEERS/bin/python benchmarks/id_speed.py --dataset_dir D

`PEERS` is an environment with `benchmarks/peers-requirements.txt`; a library that is not installed is left out. Our
step is that of `finetune --strategy id`: the batch from the loader, forward, backward, l2, clipping and AdamW. A peer's
is that of its runs in `compare.py` (see [`comparison.peers`]) on the arrays of the same batch, with the same sizes of
layers, its own penalties, and Adam, in float32, and where our step is in bf16 once more inside `torch.autocast`, which
these libraries do not have. They take turns, batch by batch, in one process, so that a noisy machine slows all.
Seconds are the processor's, in which others on the machine do not count, so that one thread is what they are for.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from flip_ctr.benchmarks.children import write_rows
from flip_ctr.benchmarks.comparison import peers_deepctr, peers_fuxictr
from flip_ctr.benchmarks.comparison.peers import PeerData
from flip_ctr.benchmarks.recipe_step import RecipeStep
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments

FUXICTR = "FuxiCTR", peers_fuxictr.FuxiCTRArguments, peers_fuxictr.build
DEEPCTR = "DeepCTR-Torch", peers_deepctr.DeepCTRArguments, peers_deepctr.build
LIBRARIES = {"FuxiCTR": "fuxictr", "DeepCTR-Torch": "deepctr_torch"}
# tower, its arguments -> the same model of other libraries, and its arguments
CASES = [
    (
        "dcnv2",
        {},
        [
            (FUXICTR, {"model": "DCNv2", "use_low_rank_mixture": True, "num_cross_layers": 2}),
            (DEEPCTR, {"model": "DCNMix"}),
        ],
    ),
    ("dcnv2", {"full_matrix": True}, [(FUXICTR, {"model": "DCNv2", "num_cross_layers": 2})]),
    ("deepfm", {}, [(DEEPCTR, {"model": "DeepFM"})]),
    ("finalmlp", {}, [(FUXICTR, {"model": "FinalMLP"})]),
    ("autoint", {"attention_size": 32}, [(DEEPCTR, {"model": "AutoInt"})]),
    ("widedeep", {}, [(DEEPCTR, {"model": "WDL"})]),
    ("xdeepfm", {}, [(DEEPCTR, {"model": "xDeepFM"})]),
]
BF16 = ", bf16"
WARM_UP = 5


@dataclass
class SpeedArguments(Options):
    dataset_dir: str = required("dataset folder", path=True)
    batch_size: int = option(1024, "rows of a step")
    turns: int = option(60, "steps of each to time", at_least=10)
    mixed_precision: str | None = option(
        None, "of our step; as a run chooses it when not given", choices=("no", "bf16")
    )
    towers: list[str] = option(sorted({tower for tower, _, _ in CASES}), "towers to time", nargs="+")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def peer_step(args, build: Callable, data: PeerData, bf16: bool) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A step of a peer, in bf16 or float32: feature ids `(B, slots)` and labels `(B,)`."""
    torch.manual_seed(args.seed)
    network = build(args, data)
    network.model.train()
    optimizer = torch.optim.Adam(network.model.parameters(), lr=args.learning_rate)

    def step(ids: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network.step(optimizer, args.max_grad_norm, ids, labels)

    return step


def our_step(recipe: RecipeStep, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A step of ours from the loader on; returns its batch."""
    batch = next(batches)
    recipe.step.backward([batch])
    recipe.step.update()
    return batch


def timed(call: Callable, *arguments) -> tuple[float, Any]:
    """Seconds of the processor that a call took, and what it returned."""
    started = time.process_time()
    returned = call(*arguments)
    return time.process_time() - started, returned


def run(args: SpeedArguments) -> list[dict]:
    sizes = {"dataset_dir": args.dataset_dir, "output_dir": "", "per_device_train_batch_size": args.batch_size}
    data, results = PeerData(args.dataset_dir), []
    for tower, kwargs, peers in CASES:
        if tower not in args.towers:
            continue
        recipe = RecipeStep(
            FinetuneArguments(
                strategy="id", id_tower=tower, id_tower_kwargs=kwargs, mixed_precision=args.mixed_precision, **sizes
            )
        )
        batches, precision = iter(recipe.loader), recipe.accelerator.mixed_precision
        steps = {
            f"{library} {options['model']}{BF16 * bf16}": peer_step(arguments(**sizes, **options), build, data, bf16)
            for (library, arguments, build), options in peers
            if find_spec(LIBRARIES[library]) is not None
            for bf16 in ((False, True) if precision == "bf16" else (False,))
        }
        seconds: dict[str, list[float]] = {name: [] for name in ("ours", *steps)}
        for _ in range(WARM_UP + args.turns):
            taken, batch = timed(our_step, recipe, batches)
            seconds["ours"].append(taken)
            ids, labels = batch["feature_ids"].long(), batch["labels"].float()
            for name, step in list(steps.items()):
                try:
                    seconds[name].append(timed(step, ids, labels)[0])
                except RuntimeError as error:
                    if not name.endswith(BF16):
                        raise
                    print(f"{name} is left out, it does not run under autocast: {error}")
                    del steps[name], seconds[name]
        middle = {name: statistics.median(times[WARM_UP:]) for name, times in seconds.items()}
        row = {
            "tower": tower,
            "id_tower_kwargs": kwargs,
            "precision": precision,
            "rows_per_second": args.batch_size / middle.pop("ours"),
        }
        row["peers"] = {name: {"rows_per_second": args.batch_size / of_peer} for name, of_peer in middle.items()}
        for name, numbers in row["peers"].items():
            pairs = zip(seconds[name][WARM_UP:], seconds["ours"][WARM_UP:])
            numbers["ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
        print(row, flush=True)
        results.append(row | {"batch_size": args.batch_size, "threads": torch.get_num_threads()})
    header = ["tower", "ours, rows/s", "peer", "its rows/s", "ours / best peer"]
    header += ["peer in bf16", "its rows/s", "ours / best in bf16"]
    table = []
    for row in results:
        arguments = "".join(f", {argument} {value}" for argument, value in row["id_tower_kwargs"].items())
        table.append([row["tower"] + arguments, f"{row['rows_per_second']:,.0f}"])
        for bf16 in (False, True):
            peers = [(peer["ratio"], name) for name, peer in row["peers"].items() if name.endswith(BF16) == bf16]
            if not peers:
                table[-1] += [""] * 3
                continue
            ratio, name = min(peers)
            theirs = row["peers"][name]["rows_per_second"]
            table[-1] += [name.removesuffix(BF16), f"{theirs:,.0f}", f"{ratio:.2f}"]
    print(markdown_table(header, table))
    write_rows(results, args.output_file)
    return results


if __name__ == "__main__":
    run(parse_arguments(SpeedArguments))
