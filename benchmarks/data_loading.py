# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Memory and speed of how training gets its rows: from the mapped encoded split, and with `--streaming`.

    python benchmarks/data_loading.py --dataset_dir D --model_name_or_path PLM

Memory: the peak of a process that takes `finetune`'s way to its batches (splits, vocabularies, checks, encoding,
loader) and trains some steps on them, beside that of a process that only has the model, imports no library that reads
data, and does as many steps on the longest of these batches (`bare_training.py`). The resident set counts pages of
mapped files too, which the system takes back where it needs them; anonymous memory does not.

Speed: rows a second of batches from the mapped split (for an epoch also with the encoding before it) and from the
stream, a batch all of `input_ids`, `attention_mask`, `token_fields`, feature ids and labels; beside
`datasets.map(batched=True)`, which runs each row's prompt text through the same fast tokenizer. They take turns in one
process.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from flip_ctr.benchmarks.bare_training import Peaks, leave, train_on
from flip_ctr.benchmarks.children import answer, measure, write_rows
from flip_ctr.data.batches.cache import cached_split
from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.samplers import GlobalBatchSampler
from flip_ctr.data.batches.streaming import StreamedDataset
from flip_ctr.data.prepare.splits import SPLITS
from flip_ctr.data.readers.shards import SplitRows, open_splits
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.loop.loaders import check_clicks, encode_split, make_loader, training_split
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.models.build import new_click_model, new_processor
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments

SPEED_BATCH = 1024  # rows of a batch of the measurements of speed


@dataclass
class LoadingArguments(Options):
    dataset_dir: str = required("dataset folder, which nobody else uses: its encoded splits are removed", path=True)
    model_name_or_path: str = required("the PLM; its tokenizer must be a fast one", model=True)
    num_steps: int = option(10, "training steps of the measurements of memory")
    batch_size: int = option(32, "rows of a batch of these steps")
    tokenized_rows: int = option(50_000, "rows that `datasets.map` tokenises in a turn")
    composed_rows: int = option(500_000, "rows that are composed in a turn")
    turns: int = option(5, "turns of the measurements of speed")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


# --- memory


def train_child(
    dataset_dir: str, plm: str, strategy: str, batch_size: int, num_steps: int, streaming: bool, folder: str | None
) -> dict:
    """Trains as `finetune` does; where a folder is named, leaves there what a bare model needs to do the same."""
    peaks = Peaks()
    args = FinetuneArguments(
        dataset_dir=dataset_dir,
        output_dir="",
        model_name_or_path=plm if strategy != "id" else None,
        strategy=strategy,
        per_device_train_batch_size=batch_size,
        streaming=streaming,
    )
    accelerator, prompts = make_accelerator("no"), strategy != "id"
    splits = open_splits(dataset_dir, dict.fromkeys(SPLITS))
    processor = new_processor(splits["train"], splits["train"].schema, args, args.model_name_or_path)
    model = new_click_model(processor, args)
    check_clicks(processor, splits)
    dataset = training_split(accelerator, processor, splits["train"], args, prompts)
    others = [encode_split(accelerator, processor, splits[name], prompts) for name in SPLITS[1:]]
    loader = make_loader(dataset, FlipCollator(processor, args.seed, args.unk_rate), batch_size, accelerator, args.seed)
    longest, width = {}, 0

    def watched() -> Iterator[dict[str, torch.Tensor]]:
        nonlocal longest, width
        for batch in islice(loader, num_steps):
            size = batch.get("input_ids", batch["feature_ids"]).shape[1]
            longest, width = (batch, size) if size > width else (longest, width)
            yield batch

    train_on(accelerator, watched(), model, args)
    if folder is not None:
        leave(Path(folder), longest, model, args)
    return peaks.read() | {"rows": sum(one.num_rows for one in (dataset, *others))}


def memory(args: LoadingArguments) -> list[dict]:
    results = []
    for strategy in ("id", "joint"):
        shared = (args.dataset_dir, args.model_name_or_path, strategy, args.batch_size, args.num_steps)
        with tempfile.TemporaryDirectory() as folder:
            shutil.rmtree(Path(args.dataset_dir) / ".cache", ignore_errors=True)
            runs = {
                "encodes first": measure("train", *shared, False, folder),
                "encoded before": measure("train", *shared, False, None),
                "--streaming": measure("train", *shared, True, None),
            }
            bare = measure(folder, args.num_steps, script=Path(__file__).with_name("bare_training.py"))
        for name, peaks in runs.items():
            above = {f"{kind}_above_bare": peaks[kind] - bare[kind] for kind in bare}
            results.append(
                {"strategy": strategy, "from": name} | peaks | {f"bare_{kind}": bare[kind] for kind in bare} | above
            )
            print(
                f"memory, {strategy}, {name}: "
                + ", ".join(f"{kind} {value:.0f}" for kind, value in results[-1].items() if "mb" in kind),
                flush=True,
            )
    return results


# --- speed


def rate(batches: Iterator[dict], wanted: int) -> float:
    """Rows a second until so many rows have come, or all."""
    started, rows = time.perf_counter(), 0
    for batch in batches:
        rows += len(batch["rows"])
        if rows >= wanted:
            break
    return rows / (time.perf_counter() - started)


def speed_child(
    dataset_dir: str, plm: str, batch_size: int, tokenized_rows: int, composed_rows: int, turns: int
) -> dict:
    rows, tokenizer = SplitRows(dataset_dir, "train"), AutoTokenizer.from_pretrained(plm)
    processor = FlipProcessor.from_dataset(rows, rows.schema.fields, tokenizer)
    few = rows.take(range(tokenized_rows))
    columns = processor.feature_extractor.read(few)
    texts = zip(
        *([columns[field.name].values[code] for code in columns[field.name].codes] for field in processor.text_fields)
    )
    prompts = Dataset.from_dict({"prompt": [processor.prompt_texts(values)[0] for values in texts]})
    found: dict[str, list[float]] = {"encoding and composing": [], "composing": [], "streaming": [], "tokenizing": []}
    for turn in range(turns + 1):
        shutil.rmtree(Path(dataset_dir) / ".cache", ignore_errors=True)
        started = time.perf_counter()
        cached_split(processor, rows)
        encoding = time.perf_counter() - started
        dataset = EncodedDataset(processor, rows)
        plan = GlobalBatchSampler(len(dataset), batch_size, turn, dataset.lengths)
        composing = rate((dataset.__getitems__(batch) for batch in plan), composed_rows)
        streaming = rate(iter(StreamedDataset(processor, rows, batch_size, turn)), composed_rows)
        started = time.perf_counter()
        prompts.map(
            lambda batch: tokenizer(batch["prompt"]),
            batched=True,
            remove_columns=["prompt"],
            load_from_cache_file=False,
            keep_in_memory=True,
        )
        tokenizing = tokenized_rows / (time.perf_counter() - started)
        if turn > 0:  # the first warms up
            both = len(rows) / (encoding + len(rows) / composing)  # one epoch, the encoding before it included
            for values, value in zip(found.values(), (both, composing, streaming, tokenizing)):
                values.append(value)
    ratios = {name: [one / other for one, other in zip(values, found["tokenizing"])] for name, values in found.items()}
    return {
        "rows_per_second": {name: statistics.median(values) for name, values in found.items()},
        "ratio_to_tokenizing": {name: statistics.median(values) for name, values in ratios.items()},
        "rows": len(rows),
        "tokens_per_row": float(dataset.lengths.mean()),
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
    }


def run(args: LoadingArguments) -> dict:
    results = {"memory": memory(args)}
    results["speed"] = measure(
        "speed",
        args.dataset_dir,
        args.model_name_or_path,
        SPEED_BATCH,
        args.tokenized_rows,
        args.composed_rows,
        args.turns,
    )
    print(json.dumps(results["speed"], indent=2))
    results |= {"num_steps": args.num_steps, "batch_size": args.batch_size}
    write_rows(results, args.output_file)
    return results


def child(what: str, *arguments) -> dict:
    return {"train": train_child, "speed": speed_child}[what](*arguments)


if __name__ == "__main__":
    if not answer(child):
        run(parse_arguments(LoadingArguments))
