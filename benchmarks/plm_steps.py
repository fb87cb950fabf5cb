# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Training steps of a PLM beside the bare PLM on the same tokens, and how much of these is padding.

    python benchmarks/plm_steps.py --dataset_dir D --model_name_or_path PLM

Ours is all that a step does: composing and masking batches, both towers, the losses, backward, clipping, AdamW. Bare is
the PLM alone, forward and backward on the very tensors that our step gave it, with the same attention and dropout. Rest
is the next step with a PLM that gives zeros: the ID tower, heads and losses, and AdamW on all but the PLM. The three
take turns, so that a noisy machine slows all; on a CPU the seconds are those of this process. With entity prompts a
step is a window: one step of the PLM, and `--plm_every` of all else.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from transformers import AutoModel

from flip_ctr.benchmarks.children import print_numbers, write_rows
from flip_ctr.benchmarks.recipe_step import RecipeStep
from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.train.arguments import FinetuneArguments, PretrainArguments
from flip_ctr.train.loop.loaders import BatchLoader, make_loader
from flip_ctr.train.loop.training_loop import grouped
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.outputs.run_log import set_up_logging
from flip_ctr.train.parser import parse_arguments

WARM_UP = 2
# name -> arguments of the recipe; those of `finetune` have a strategy
RECIPES: dict[str, dict] = {
    "plm": {"strategy": "plm"},
    "plm-entity": {"strategy": "plm", "prompts": "entity", "plm_every": 8},
    # what pretraining asks of the PLM alone: plain MLM, without an ID tower
    "mlm": {"mlm_id_dropout": 1.0, "mtm_weight": 0.0, "icl_weight": 0.0},
    "pretrain": {},
    "pretrain-entity": {"prompts": "entity", "plm_every": 8},
}


@dataclass(kw_only=True)
class StepArguments(Options):
    dataset_dir: str = required("dataset folder", path=True)
    model_name_or_path: str = required("the PLM", model=True)
    recipes: list[str] = option(list(RECIPES), "recipes whose steps are timed", choices=tuple(RECIPES))
    batch_size: int | None = option(None, "rows a batch; those of the recipe when not given", at_least=1)
    attn_implementation: str | None = option(None, "attention of the PLM; as a run chooses it when not given")
    num_steps: int = option(8, f"steps to time, after {WARM_UP} to warm up", at_least=1)
    mixed_precision: str = option("bf16", "precision", choices=("no", "bf16"))
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def measure(args: StepArguments, name: str) -> dict:
    """The seconds of a recipe's steps, and of the bare PLM."""
    options = RECIPES[name] | {
        "dataset_dir": args.dataset_dir,
        "model_name_or_path": args.model_name_or_path,
        "attn_implementation": args.attn_implementation,
        "mixed_precision": args.mixed_precision,
        "output_dir": "",
    }
    if args.batch_size is not None:
        options["per_device_train_batch_size"] = args.batch_size
    pretrains = "strategy" not in options
    of_run = PretrainArguments(**options) if pretrains else FinetuneArguments(**options)
    recipe = RecipeStep(of_run)
    accelerator, dataset, loader, step = recipe.accelerator, recipe.dataset, recipe.loader, recipe.step
    set_up_logging(accelerator)
    text_encoder, attention = recipe.model.flip.text_encoder, recipe.choose_attention()
    bare = AutoModel.from_pretrained(of_run.model_name_or_path, dtype=torch.float32, attn_implementation=attention)
    _take_dropout(bare.to(accelerator.device).train(), text_encoder)

    read: list[tuple[torch.Tensor, torch.Tensor]] = []
    encode = text_encoder.forward

    def recorded(input_ids, attention_mask, **kwargs):
        if torch.is_grad_enabled():  # what is read again for the backward pass counts once
            read.append((input_ids, attention_mask))
        return encode(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def zeros(input_ids, **_):
        shape = *input_ids.shape, text_encoder.config.hidden_size
        return SimpleNamespace(last_hidden_state=torch.zeros(shape, device=input_ids.device, requires_grad=True))

    groups = step.windows(grouped(loader, 1), len(loader))
    clock = _clock(accelerator.device)
    seconds: dict[str, list[float]] = {"ours": [], "bare": [], "rest": []}
    tokens = places = 0

    def one_step() -> float:
        started = clock()
        while True:
            step.backward(next(groups))
            step.update()
            if step.closes:
                return clock() - started

    def bare_step() -> float:
        started = clock()
        for ids, mask in read:
            with accelerator.autocast():
                states = bare(input_ids=ids, attention_mask=mask).last_hidden_state
            accelerator.backward(states.float().mean())
        bare.zero_grad()
        return clock() - started

    for number in range(WARM_UP + args.num_steps):
        read.clear()
        text_encoder.forward = recorded
        ours, bares = one_step(), bare_step()
        text_encoder.forward = zeros
        times = {"ours": ours, "bare": bares, "rest": one_step()}
        if number >= WARM_UP:
            for kind, value in times.items():
                seconds[kind].append(value)
            tokens += sum(int(mask.sum()) for _, mask in read)
            places += sum(mask.numel() for _, mask in read)
    middle = {kind: statistics.median(times) for kind, times in seconds.items()}
    return {
        "recipe": name,
        "batch_size": of_run.per_device_train_batch_size,
        "attention": attention,
        **{f"{kind}_seconds": value for kind, value in middle.items()},
        "ratio": statistics.median(ours / bare for ours, bare in zip(seconds["ours"], seconds["bare"])),
        "ratio_without_rest": (middle["ours"] - middle["rest"]) / middle["bare"],
        "tokens_per_second": tokens / sum(seconds["ours"]),
        "padding": places / tokens - 1,
        "padding_of_epoch": _padding(loader, dataset.lengths),
        "padding_of_scoring": _padding(
            make_loader(dataset, FlipCollator(recipe.processor), 512, accelerator, shuffle=False), dataset.lengths
        ),
        "mixed_precision": of_run.mixed_precision,
        "device": accelerator.device.type,
        "threads": torch.get_num_threads(),
    }


def _take_dropout(model: nn.Module, source: nn.Module) -> None:
    rates = {name: module.p for name, module in source.named_modules() if isinstance(module, nn.Dropout)}
    for name, module in model.named_modules():
        if name in rates:
            module.p = rates[name]
    model.config = source.config  # BERT's attention reads its rate there


def _padding(loader: BatchLoader, lengths: np.ndarray | None) -> float | None:
    """Padding over tokens in all batches of an epoch; None where rows share their prompts."""
    if lengths is None:
        return None
    return sum(len(rows) * int(lengths[rows].max()) for rows in loader.batch_sampler.plan()) / int(lengths.sum()) - 1


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds: of this process on a CPU, of the wall when the device is done elsewhere."""

    def after_waiting() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return time.process_time if device.type == "cpu" else after_waiting


def run(args: StepArguments) -> list[dict]:
    results = []
    for name in args.recipes:
        results.append(measure(args, name))
        print_numbers(results[-1])
        print(flush=True)
    write_rows(results, args.output_file)
    return results


if __name__ == "__main__":
    run(parse_arguments(StepArguments, description=__doc__.split("\n")[0]))
