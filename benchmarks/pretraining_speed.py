# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Speed of a pretraining step beside the bare PLM doing two forward-backward passes on the same tokens.

    python benchmarks/pretraining_speed.py --dataset_dir D --model_name_or_path PLM --mixed_precision bf16

Ours is the whole step: composing and masking the batch, both towers, the three losses, backward, clipping, AdamW. Bare
is the PLM alone, forward and backward on the clean and then on the masked token ids, and nothing else. The two take
turns batch by batch, so that a noisy machine slows both; the ratio bare / ours of their rows per second is the number
to watch.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import AutoModel

from flip_ctr.benchmarks.children import print_numbers, write_rows
from flip_ctr.data.batches.collators import FlipPretrainingCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train.loop.loaders import make_loader
from flip_ctr.train.loop.optimizer import make_optimizer
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.step import TrainingStep
from flip_ctr.train.models.build import new_pretraining_model, new_processor, ready_to_train
from flip_ctr.train.option_groups import OWN_DROPOUT
from flip_ctr.train.options import option
from flip_ctr.train.outputs.run_log import set_up_logging
from flip_ctr.train.parser import parse_arguments
from flip_ctr.train.pretrain import PretrainArguments


@dataclass(kw_only=True)
class SpeedArguments(PretrainArguments):
    output_dir: str = option("", "unused")
    per_device_train_batch_size: int = option(64, "rows a batch")
    plm_dropout: float = option(OWN_DROPOUT, "every dropout of the PLM; as the bare one has them")
    num_batches: int = option(30, "batches to time, after three to warm up")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def run(args: SpeedArguments) -> dict:
    accelerator = make_accelerator(args.mixed_precision)
    set_up_logging(accelerator)
    rows = SplitRows(args.dataset_dir, "train", args.max_train_samples, args.seed)
    processor = new_processor(rows, rows.schema, args, args.model_name_or_path)
    dataset = EncodedDataset(processor, rows)
    model = ready_to_train(new_pretraining_model(processor, args, dataset), processor, args)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, args, accelerator.device))
    step = TrainingStep(accelerator, model, optimizer, args)
    bare = AutoModel.from_pretrained(args.model_name_or_path, dtype=torch.float32).to(accelerator.device)
    model.train(), bare.train()
    batches = iter(
        make_loader(
            dataset,
            FlipPretrainingCollator(processor, args.seed),
            args.per_device_train_batch_size,
            accelerator,
            args.seed,
        )
    )

    seconds = {"ours": [], "bare": []}
    tokens = rows_timed = 0
    for number in range(args.num_batches + 3):
        started = time.perf_counter()
        batch = {name: tensor.to(accelerator.device) for name, tensor in next(batches).items()}
        step.backward([batch])
        step.update()
        _wait(accelerator)
        between = time.perf_counter()
        for name in ("input_ids", "masked_input_ids"):
            with accelerator.autocast():
                states = bare(input_ids=batch[name], attention_mask=batch["attention_mask"]).last_hidden_state
            accelerator.backward(states.float().mean())
        bare.zero_grad()
        _wait(accelerator)
        if number >= 3:
            seconds["ours"].append(between - started)
            seconds["bare"].append(time.perf_counter() - between)
            tokens += int(batch["attention_mask"].sum())
            rows_timed += len(batch["attention_mask"])
    rates = {name: rows_timed / sum(times) for name, times in seconds.items()}
    results = {
        "ours_rows_per_second": rates["ours"],
        "bare_rows_per_second": rates["bare"],
        "ratio_bare_to_ours": statistics.median(o / b for o, b in zip(seconds["ours"], seconds["bare"])),
        "batch_size": args.per_device_train_batch_size,
        "batches": args.num_batches,
        "tokens_per_row": tokens / rows_timed,
        "mixed_precision": args.mixed_precision,
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
    }
    print_numbers(results)
    write_rows(results, args.output_file)
    return results


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    run(parse_arguments(SpeedArguments, description=__doc__.split("\n")[0]))
