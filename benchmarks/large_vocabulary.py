# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Cost of a training step by the size of the vocabulary, with each `--embedding_optimizer`.

    python benchmarks/large_vocabulary.py

Ids follow a Zipf distribution over eight fields, two of which (a user, an item) hold nearly all features. `id` is a
fine-tuning step of the ID tower alone (DCNv2), `pretraining` one with MTM, whose output table is as large, and with a
PLM of one small layer. A step is
all of it: forward, backward, exchange, clipping, l2, update. Both sizes take turns batch by batch in one process, so
that a noisy machine slows both; memory is the peak of a process that trains one size alone.
"""

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from transformers import BertConfig

from flip_ctr.benchmarks.children import answer, measure, peak_gb, take_turns, timed, write_rows
from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.modeling_flip.fields_flip import MASK_ID, NUM_RESERVED_IDS
from flip_ctr.modeling_flip.losses_flip import IGNORE_INDEX
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR, FlipForPretraining
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.loop.optimizer import make_optimizer, use_sparse_tables
from flip_ctr.train.loop.step import TrainingStep
from flip_ctr.train.option_groups import EMBEDDING_OPTIMIZERS
from flip_ctr.train.options import Options, option
from flip_ctr.train.parser import parse_arguments
from flip_ctr.train.pretrain import PretrainArguments

SMALL_FIELDS = (6, 11, 25, 50, 2000, 10_000)
WARM_UP = 5
TOKENS, WORDS = 8, 1000


@dataclass
class VocabularyArguments(Options):
    sizes: list[int] = option([100_000, 10_000_000], "features in all")
    optimizers: list[str] = option(list(EMBEDDING_OPTIMIZERS), "embedding optimizers")
    recipes: list[str] = option(["id", "pretraining"], "id, pretraining")
    batch_size: int = option(1024, "rows a batch")
    num_batches: int = option(40, "steps to time")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def field_sizes(total: int) -> list[int]:
    rest = total - sum(SMALL_FIELDS)
    return [*SMALL_FIELDS, rest * 6 // 10, rest - rest * 6 // 10]


def zipf_counts(size: int) -> np.ndarray:
    """How often the values of a field occur in ten rows a feature, in order of frequency."""
    weights = 1 / np.arange(1, size - NUM_RESERVED_IDS + 1)
    counts = np.maximum(1, weights / weights.sum() * size * 10).astype(np.int64)
    return np.concatenate([np.zeros(NUM_RESERVED_IDS, np.int64), counts])


class Run:
    """One model of one size, and its training step."""

    def __init__(self, recipe: str, optimizer: str, total: int, batch_size: int):
        self.recipe, self.batch_size, sizes = recipe, batch_size, field_sizes(total)
        text = BertConfig(
            vocab_size=WORDS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
        fields = [{"name": f"f{number}", "vocab_size": size} for number, size in enumerate(sizes)]
        settings = {"dataset_dir": "", "output_dir": "", "model_name_or_path": "-", "embedding_optimizer": optimizer}
        if recipe == "id":
            args = FinetuneArguments(**settings, strategy="id")
            model = FlipForCTR(FlipConfig(fields=fields, strategy="id"))
        else:
            args = PretrainArguments(**settings)
            model = FlipForPretraining(FlipConfig(fields=fields, text_config=text))
        self.running = [torch.from_numpy(zipf_counts(size)).cumsum(0) for size in sizes]
        if recipe != "id":
            model.set_feature_counts(
                torch.cat([running.diff(prepend=running.new_zeros(1)) for running in self.running])
            )
        if optimizer != "dense":
            use_sparse_tables(model)
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = accelerator.device
        self.step = TrainingStep(
            accelerator, *accelerator.prepare(model.train(), make_optimizer(model, args, self.device)), args
        )
        self.generator = torch.Generator().manual_seed(0)

    def batch(self) -> dict[str, torch.Tensor]:
        uniform = torch.rand(len(self.running), self.batch_size, generator=self.generator, dtype=torch.double)
        drawn = [
            torch.searchsorted(running, (u * running[-1]).long(), right=True)
            for running, u in zip(self.running, uniform)
        ]
        batch = {"feature_ids": torch.stack(drawn, dim=1)}
        if self.recipe == "id":
            return batch | {"labels": torch.randint(2, (self.batch_size,), generator=self.generator)}
        masked = torch.rand(batch["feature_ids"].shape, generator=self.generator) < 0.15
        words = torch.randint(WORDS, (self.batch_size, TOKENS), generator=self.generator)
        hidden = torch.rand(words.shape, generator=self.generator) < 0.15
        return batch | {
            "masked_feature_ids": batch["feature_ids"].masked_fill(masked, MASK_ID),
            "mtm_labels": batch["feature_ids"].masked_fill(~masked, IGNORE_INDEX),
            "input_ids": words,
            "attention_mask": torch.ones_like(words),
            "masked_input_ids": words.masked_fill(hidden, 0),
            "mlm_labels": words.masked_fill(~hidden, IGNORE_INDEX),
        }

    def timed_step(self) -> float:
        batch = self.batch()
        return timed(self.step, [batch])


def child(recipe: str, optimizer: str, batch_size: int, num_batches: int, sizes: list[int]) -> dict:
    """Seconds of a step at each size, taking turns, and the process's peak memory in GB."""
    runs = [Run(recipe, optimizer, size, batch_size) for size in sizes]
    seconds = take_turns(runs, WARM_UP, num_batches)
    ratios = [times[-1] / times[0] for times in seconds]
    return {
        "seconds": [statistics.median(times) for times in zip(*seconds)],
        "ratio": statistics.median(ratios),
        "peak_gb": peak_gb(),
    }


def run(args: VocabularyArguments) -> list[dict]:
    rows = []
    for recipe in args.recipes:
        for optimizer in args.optimizers:
            together = measure(recipe, optimizer, args.batch_size, args.num_batches, args.sizes)
            memory = [measure(recipe, optimizer, args.batch_size, 3, [size])["peak_gb"] for size in args.sizes]
            rows.append(
                {
                    "recipe": recipe,
                    "embedding_optimizer": optimizer,
                    "features": args.sizes,
                    "seconds": together["seconds"],
                    "ratio": together["ratio"],
                    "peak_gb": memory,
                    "batch_size": args.batch_size,
                    "threads": torch.get_num_threads(),
                }
            )
            times = " ".join(
                f"{size:,}: {1000 * s:.1f} ms {gb:.2f} GB"
                for size, s, gb in zip(args.sizes, together["seconds"], memory)
            )
            print(f"{recipe} {optimizer}: {times} ratio {together['ratio']:.2f}", flush=True)
    write_rows(rows, args.output_file)
    return rows


if __name__ == "__main__":
    if not answer(child):
        run(parse_arguments(VocabularyArguments))
