# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Pretraining: aligns an ID tower and a PLM on the training rows of a dataset folder, without their labels.

flip-ctr pretrain --dataset_dir D --model_name_or_path PLM --id_tower dcnv2 --output_dir P
accelerate launch -m flip_ctr.train.cli pretrain --config pretrain.yaml
"""

import torch

from flip_ctr.data.readers.shards import has_split, open_splits
from flip_ctr.train.arguments import PretrainArguments
from flip_ctr.train.loop.loaders import (
    encode_split,
    make_loader,
    pretraining_collator,
    say_no_validation,
    training_loader,
    training_split,
)
from flip_ctr.train.loop.prompt_states import PromptReader, read_ahead
from flip_ctr.train.loop.run import end_trackers, recipe, start
from flip_ctr.train.loop.training_loop import how_long, train
from flip_ctr.train.models.build import check_mlm, check_model, new_pretraining_model, new_processor, ready_to_train
from flip_ctr.train.models.lora import is_flip_checkpoint, merge, plain
from flip_ctr.train.outputs.card import write_card
from flip_ctr.train.outputs.checkpoint import save
from flip_ctr.train.outputs.hub import push
from flip_ctr.train.outputs.plots import plot_history
from flip_ctr.train.outputs.record import training_record
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import logger

BATCHES_AHEAD = 16  # of validation, whose prompts the PLM reads together


@recipe
def run(args: PretrainArguments) -> dict:
    """Pretrains and saves; returns the results that are also in `all_results.json`.

    Raises:
        ValueError: an argument, the dataset folder or the PLM does not fit; the message names it.
    """
    # 1. Accelerate, logging, seed
    accelerator = start(args)

    # 2. Rows and vocabularies: the training split only
    wanted = {"train": args.max_train_samples}
    if has_split(args.dataset_dir, "validation"):
        wanted["validation"] = args.max_eval_samples
    else:
        say_no_validation(args)
    rows = open_splits(args.dataset_dir, wanted, args.seed)
    train_rows, eval_rows = rows["train"], rows.get("validation")
    schema = train_rows.schema
    for flag in ("model_name_or_path", "id_model"):
        if getattr(args, flag) is not None:
            check_model(flag, getattr(args, flag))
    check_mlm(args)
    record = training_record(args, schema)
    if args.model_name_or_path is not None and is_flip_checkpoint(args.model_name_or_path):
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path} is a FLIP checkpoint; pretraining starts from a PLM"
        )
    processor = new_processor(train_rows, schema, args, args.model_name_or_path)

    # 3. Masks, and encoded rows
    reader = processor.without_history()  # no objective reads what came before
    collator, eval_collator = (pretraining_collator(reader, args, unknown_ids) for unknown_ids in (True, False))
    train_set = training_split(accelerator, reader, train_rows, args, args.pretrains_text)
    eval_set = None if eval_rows is None else encode_split(accelerator, reader, eval_rows, args.pretrains_text)
    if eval_set is not None and len(eval_set) < accelerator.num_processes:
        raise ValueError(
            f"the split 'validation' has {len(eval_set)} rows for {accelerator.num_processes} processes; each needs one"
        )
    tokens = "" if args.pretrains_text else "; no text"
    if args.pretrains_text and eval_set is not None:
        tokens = f"; {eval_set.mean_tokens:.1f} tokens a row on average"
    logger.info(f"{train_set.num_rows:,} training rows{tokens}")

    # 4. Model, and batches
    model = ready_to_train(new_pretraining_model(processor, args, train_set), processor, args)
    loader = training_loader(train_set, collator, accelerator, args)
    # negatives of a random batch, as in training
    eval_loader = None
    if eval_set is not None:
        eval_loader = make_loader(eval_set, eval_collator, args.per_device_train_batch_size, accelerator, complete=True)

    # 5. Train
    def evaluate() -> dict[str, float]:
        return {} if eval_loader is None else evaluate_alignment(accelerator, model, eval_loader)

    history = train(accelerator, model, loader, args, evaluate)

    # 6. Save
    whole = merge(model) if args.use_lora and not args.lora_adapter_only else model
    save(accelerator, whole, processor, args, record)
    results = {name: value for name, value in history[-1].items() if name.startswith("eval_")}
    results |= {
        "train_rows": train_set.num_rows,
        **how_long(history),
        "num_processes": accelerator.num_processes,
    }
    report(accelerator, results, args.output_dir)
    if accelerator.is_main_process:
        plot_history(history, args.output_dir)
        write_card(args.output_dir, record, plain(whole), processor, schema, args.dataset_dir, train_rows, results)
    end_trackers(accelerator)

    # 7. The Hub, where asked for
    if accelerator.is_main_process and args.push_to_hub:
        push(args)
    return results


@torch.no_grad()
def evaluate_alignment(accelerator, model, loader) -> dict[str, float]:
    """Losses and accuracies on validation rows, each counted once; accuracies also with shuffled counterparts, the gap
    is alignment."""
    model.eval()
    sums, weights, counted = {}, {}, torch.zeros((), device=accelerator.device)
    by_entity: dict[str, torch.Tensor] = {}
    reader = PromptReader.of(accelerator, plain(accelerator.unwrap_model(model)), loader.batch_sampler.batch_size)
    for batch in loader if reader is None else read_ahead(reader, loader, BATCHES_AHEAD):
        with accelerator.autocast():
            output = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
        rows = torch.tensor(len(batch["feature_ids"]), device=accelerator.device)
        counted += rows
        counts = {"mlm": output.num_mlm_targets, "mtm": output.num_mtm_targets, "icl": rows, "loss": rows}
        for name, value in (output.by_entity or {}).items():
            by_entity[name] = by_entity.get(name, 0) + value.float()
        for name, value in output.items():
            if name.endswith(("loss", "accuracy")):
                weight = counts[name.split("_")[0]]
                sums[name] = sums.get(name, 0) + value.float() * weight
                weights[name] = weights.get(name, 0) + weight
    means = {name: accelerator.reduce(total) / accelerator.reduce(weights[name]) for name, total in sums.items()}
    for name, right in by_entity.items():
        hits, targets = accelerator.reduce(right).tolist()
        if targets > 0:
            means[name] = torch.tensor(hits / targets)
    return {f"eval_{name}": mean.item() for name, mean in means.items()} | {
        "eval_rows": int(accelerator.reduce(counted).item())
    }
