# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the checks of a model's inputs cost: a training step and a scoring call with them, beside the same without.

    OMP_NUM_THREADS=1 python benchmarks/input_checks.py

The ID-only model has the fields, and their sizes, of MovieLens-1M and the defaults of `finetune --strategy id`; the
model with a PLM reads 32 tokens a row with a BERT of two layers. Each call is made with and without the checks, in
turns, so that a noisy machine slows both; what is shown is the median of both, and of the difference of each turn.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from transformers import BertConfig

from flip_ctr.benchmarks.children import write_rows
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.modeling_flip import losses_flip
from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.modeling_flip.id_tower import FeatureEmbedding
from flip_ctr.modeling_flip.inputs_flip import InputChecks
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.train.options import Options, option
from flip_ctr.train.parser import parse_arguments

# ids of user, gender, age, occupation, zip code, movie, title, genre of MovieLens-1M, reserved ones included
FIELD_SIZES = (6044, 6, 11, 25, 3443, 3710, 3710, 305)
TOKENS, VOCABULARY = 32, 1000
BATCH_SIZES = {False: (1024, 1), True: (64, 1)}  # without and with a PLM


@dataclass
class CheckArguments(Options):
    turns: int = option(60, "pairs of calls to time; of batches of one row five times as many", at_least=10)
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Inside, models take inputs as they are."""
    with (
        mock.patch.object(InputChecks, "check", lambda *_, **__: None),
        mock.patch.object(InputChecks, "check_form", lambda *_: None),
        mock.patch.object(FeatureEmbedding, "check", lambda *_: None),
        mock.patch.object(losses_flip, "check_clicks", lambda *_: None),
    ):
        yield


def make_model(with_text: bool) -> FlipForCTR:
    fields = [{"name": f"field_{number}", "vocab_size": size} for number, size in enumerate(FIELD_SIZES)]
    if not with_text:
        return FlipForCTR(FlipConfig(fields=fields, strategy="id"))
    text_config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
    )
    return FlipForCTR(FlipConfig(text_config, fields=fields, strategy="joint"))


def make_batch(rows: int, with_text: bool) -> dict[str, torch.Tensor]:
    batch = {
        "feature_ids": torch.stack([torch.randint(4, size, (rows,)) for size in FIELD_SIZES], dim=1),
        "labels": torch.randint(0, 2, (rows,)),
    }
    if with_text:
        batch["input_ids"] = torch.randint(0, VOCABULARY, (rows, TOKENS))
        batch["attention_mask"] = torch.ones(rows, TOKENS, dtype=torch.long)
    return batch


def make_step(model: FlipForCTR, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A training step: forward, backward and update."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_scoring(model: FlipForCTR, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    views = {name: values for name, values in batch.items() if name != "labels"}

    @torch.inference_mode()
    def score() -> None:
        model(**views)

    return score


def seconds_of(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def compare(call: Callable[[], None], turns: int) -> dict[str, float]:
    """Milliseconds of a call with and without the checks, and what they add, as a share."""
    with_checks, without = [], []
    for turn in range(turns + turns // 10):
        for checked in (True, False) if turn % 2 else (False, True):
            with contextlib.nullcontext() if checked else unchecked():
                seconds = seconds_of(call)
            (with_checks if checked else without).append(seconds)
    with_checks, without = with_checks[turns // 10 :], without[turns // 10 :]  # the first ones warm up
    middle = statistics.median(without)
    added = statistics.median(one - other for one, other in zip(with_checks, without))
    return {"with_ms": 1000 * statistics.median(with_checks), "without_ms": 1000 * middle, "added": added / middle}


def run(args: CheckArguments) -> list[dict]:
    torch.manual_seed(0)
    rows = []
    for with_text in (False, True):
        for kind, make in (("step", make_step), ("scoring", make_scoring)):
            for size in BATCH_SIZES[with_text]:
                model = make_model(with_text).train(kind == "step")
                call = make(model, make_batch(size, with_text))
                # a call of few rows is short, and so is a difference: more of them are measured
                numbers = compare(call, args.turns if size > 1 else 5 * args.turns)
                rows.append(
                    {"model": "with a PLM" if with_text else "ID-only DCNv2", "call": kind, "rows": size} | numbers
                )
    table = [
        [
            row["model"],
            row["call"],
            f"{row['rows']:,}",
            f"{row['with_ms']:.3f}",
            f"{row['without_ms']:.3f}",
            f"{100 * row['added']:+.1f} %",
        ]
        for row in rows
    ]
    print(markdown_table(["model", "call", "rows", "with checks, ms", "without, ms", "added"], table))
    write_rows(rows, args.output_file)
    return rows


if __name__ == "__main__":
    run(parse_arguments(CheckArguments, description=__doc__))
