# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the switches of memory and speed do to a pretraining step: seconds beside the plain step's, and peak memory.

    python benchmarks/training_switches.py --dataset_dir D --model_name_or_path PLM

Each switch is measured in a process of its own, in which the plain step and the switched one take turns batch by batch,
so that a noisy machine slows both. Memory is the growth of a process that trains with the switch alone, from before the
model to its peak.
"""

import statistics
from dataclasses import dataclass

import torch
from transformers import AutoConfig

from flip_ctr.benchmarks.children import answer, measure, peak_gb, take_turns, timed, write_rows
from flip_ctr.benchmarks.recipe_step import RecipeStep
from flip_ctr.train.option_groups import OWN_DROPOUT
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments
from flip_ctr.train.pretrain import PretrainArguments

WARM_UP = 3
# name -> arguments of the recipe; batches are shared out so that every step sees the same rows
SWITCHES = {
    "none": {},
    "--mixed_precision bf16": {"mixed_precision": "bf16"},
    "--gradient_checkpointing": {"gradient_checkpointing": True},
    "--gradient_accumulation_steps 4, batches of a quarter": {"gradient_accumulation_steps": 4},
    "--grad_cache_chunk_size, a quarter of the batch": {"grad_cache_chunk_size": 0},
    "--attn_implementation eager": {"attn_implementation": "eager"},
    "--freeze_plm_layers, half of them": {"freeze_plm_layers": -1},
    "--use_lora": {"use_lora": True},
    "--plm_dropout 0": {"plm_dropout": 0.0},
    "--torch_compile": {"torch_compile": True},
    "bf16, eager, --plm_dropout 0": {"mixed_precision": "bf16", "attn_implementation": "eager", "plm_dropout": 0.0},
    "bf16, eager, --plm_dropout 0, --torch_compile": {
        "mixed_precision": "bf16",
        "attn_implementation": "eager",
        "plm_dropout": 0.0,
        "torch_compile": True,
    },
    "--mlm_vocabulary plm": {"mlm_vocabulary": "plm"},
    "--embedding_optimizer lazy_adam": {"embedding_optimizer": "lazy_adam"},
}


@dataclass
class SwitchArguments(Options):
    dataset_dir: str = required("dataset folder", path=True)
    model_name_or_path: str = required("the PLM", model=True)
    batch_size: int = option(64, "rows of a step")
    num_batches: int = option(10, "steps to time")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


class Run(RecipeStep):
    """A training step with some switches, on the first rows of the training split."""

    def __init__(self, dataset_dir: str, plm: str, batch_size: int, options: dict):
        options = dict(options)
        if "grad_cache_chunk_size" in options:
            options["grad_cache_chunk_size"] = batch_size // 4
        if "freeze_plm_layers" in options:
            options["freeze_plm_layers"] = AutoConfig.from_pretrained(plm).num_hidden_layers // 2
        args = PretrainArguments(
            dataset_dir=dataset_dir,
            model_name_or_path=plm,
            output_dir="",
            max_train_samples=20_000,
            per_device_train_batch_size=batch_size,
            **{"plm_dropout": OWN_DROPOUT} | options,
        )
        self.accumulation = args.gradient_accumulation_steps
        super().__init__(args)
        self.batches = iter(self.loader)

    def timed_step(self) -> float:
        batch = next(self.batches)
        parts = zip(*(tensor.chunk(self.accumulation) for tensor in batch.values()))
        group = [dict(zip(batch, part)) for part in parts]
        return timed(self.step, group)


def child(dataset_dir: str, plm: str, batch_size: int, num_batches: int, switches: list[dict]) -> dict:
    """Seconds of a step with each set of switches, taking turns, and the growth of the process's peak memory."""
    runs = [Run(dataset_dir, plm, batch_size, options) for options in switches]
    seconds = take_turns(runs, WARM_UP, num_batches)
    return {
        "seconds": statistics.median(times[-1] for times in seconds),
        "ratio": statistics.median(times[-1] / times[0] for times in seconds),
        "memory_gb": peak_gb() - runs[0].before_gb,
    }


def run(args: SwitchArguments) -> list[dict]:
    rows, data = [], (args.dataset_dir, args.model_name_or_path, args.batch_size)
    for name, options in SWITCHES.items():
        beside = measure(*data, args.num_batches, [{}, options])
        alone = measure(*data, 5, [options])
        rows.append(
            {
                "switch": name,
                "seconds": beside["seconds"],
                "ratio": beside["ratio"],
                "memory_gb": alone["memory_gb"],
                "batch_size": args.batch_size,
                "batches": args.num_batches,
                "threads": torch.get_num_threads(),
            }
        )
        print(
            f"{name}: {beside['seconds']:.2f} s a step, {beside['ratio']:.2f} of the plain one, "
            f"{alone['memory_gb']:.2f} GB",
            flush=True,
        )
    write_rows(rows, args.output_file)
    return rows


if __name__ == "__main__":
    if not answer(child):
        run(parse_arguments(SwitchArguments))
