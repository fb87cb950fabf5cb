# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What entity prompts save: rows a second, tokens that the PLM reads, and memory, beside row prompts.

    python benchmarks/entity_prompts.py --dataset_dir D --model_name_or_path PLM --mixed_precision bf16

Whole training steps are timed: composing and masking batches, both towers, the losses, backward, clipping, AdamW. Each
form runs in a process of its own, twice and in turns, so that a noisy machine slows all. The floor is the work that no
implementation can leave out: distinct tokens over those of one prompt a row. Memory is the growth of the process from
before the model to its peak.
"""

import time
from dataclasses import dataclass

import torch

from flip_ctr.benchmarks.children import answer, measure, peak_gb, print_numbers, write_rows
from flip_ctr.benchmarks.recipe_step import RecipeStep
from flip_ctr.train.arguments import FinetuneArguments, PretrainArguments
from flip_ctr.train.loop.training_loop import grouped
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments

TURNS = 2


@dataclass(kw_only=True)
class EntityArguments(Options):
    dataset_dir: str = required("dataset folder", path=True)
    model_name_or_path: str = required("the PLM", model=True)
    recipe_name: str = option("pretrain", "recipe whose step is timed", choices=("pretrain", "plm", "joint"))
    prompt_fields: list[str] | None = option(None, "fields of the prompts; those of the schema when not given")
    plm_every: list[int] = option([1, 16, 64], "steps of all else for one of the PLM", at_least=1)
    batch_size: int = option(1024, "rows a batch with entity prompts", at_least=1)
    row_batch_size: int = option(128, "rows a batch with row prompts", at_least=1)
    row_batches: int = option(8, "batches of row prompts to time, after two to warm up", at_least=1)
    mixed_precision: str = option("bf16", "precision", choices=("no", "bf16"))
    attn_implementation: str | None = option(None, "attention of the PLM; as a run chooses it when not given")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def child(settings: dict, name: str, windows: int, warm_up: int) -> dict:
    """Times some windows of one form."""
    settings |= {"output_dir": ""}
    is_pretraining = name == "pretrain"
    args = PretrainArguments(**settings) if is_pretraining else FinetuneArguments(strategy=name, **settings)
    recipe = RecipeStep(args)
    recipe.choose_attention()
    text_encoder, step = recipe.model.flip.text_encoder, recipe.step
    tokens = {"read": 0, "padded": 0}
    encode = text_encoder.forward

    def counted(input_ids, attention_mask, **kwargs):
        if torch.is_grad_enabled():  # what is read again for the backward pass is not read twice
            tokens["read"] += int(attention_mask.sum())
            tokens["padded"] += attention_mask.numel()
        return encode(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    text_encoder.forward = counted
    batches = iter(recipe.loader)
    seconds = rows_timed = 0.0
    for timed, number in ((False, warm_up), (True, windows * args.plm_every)):
        tokens |= {"read": 0, "padded": 0}
        started = time.perf_counter()
        for group in step.windows(grouped(batches, 1), number):
            rows_timed += timed * len(group[0]["feature_ids"])
            step.backward(group)
            step.update()
        seconds = time.perf_counter() - started
    views = 2 if is_pretraining else 1
    per_row = views * recipe.dataset.mean_tokens
    return {
        "rows_per_second": rows_timed / seconds,
        "rows": rows_timed,
        "plm_tokens_per_row": tokens["read"] / rows_timed,
        "padded_tokens_per_row": tokens["padded"] / rows_timed,
        "tokens_of_all_prompts_per_row": per_row,
        "growth_gb": peak_gb() - recipe.before_gb,
    }


def run(args: EntityArguments) -> list[dict]:
    common = {
        "dataset_dir": args.dataset_dir,
        "model_name_or_path": args.model_name_or_path,
        "mixed_precision": args.mixed_precision,
        "attn_implementation": args.attn_implementation,
    } | ({"prompt_fields": args.prompt_fields} if args.prompt_fields else {})
    forms = {
        "row": (common | {"prompts": "row", "per_device_train_batch_size": args.row_batch_size}, args.row_batches, 2)
    }
    for every in args.plm_every:
        entity = {"prompts": "entity", "plm_every": every, "per_device_train_batch_size": args.batch_size}
        forms[f"entity, plm_every {every}"] = common | entity, max(1, 4 // every), 1
    results: dict[str, list[dict]] = {name: [] for name in forms}
    for _ in range(TURNS):
        for name, (settings, windows, warm_up) in forms.items():
            results[name].append(measure(settings, args.recipe_name, windows, warm_up, script=__file__))
    rows = []
    row_tokens = results["row"][0]["plm_tokens_per_row"]
    row_rate = sum(one["rows_per_second"] for one in results["row"]) / TURNS
    for name, turns in results.items():
        means = {key: sum(one[key] for one in turns) / TURNS for key in turns[0]}
        floor = row_tokens / means["plm_tokens_per_row"]
        ratio = means["rows_per_second"] / row_rate
        rows.append({"form": name} | means | {"times_row": ratio, "floor": floor, "of_floor": ratio / floor})
        print_numbers(rows[-1])
        print()
    write_rows(rows, args.output_file)
    return rows


if __name__ == "__main__" and not answer(child):
    run(parse_arguments(EntityArguments, description=__doc__.split("\n")[0]))
