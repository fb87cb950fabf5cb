# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What probabilities are worth where one row in a thousand is a click and training has a share of the non-clicks.

    python benchmarks/rare_clicks.py --output_dir RUNS

Clicks of generated users and items are drawn with known probabilities. An ID model (DCNv2, all settings by default) is
trained on all clicks and a share of the non-clicks; validation and test have all rows. The table compares its
probabilities on test with the clicks, and with the probabilities that these were drawn with, before any correction and
after each.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import expit

from flip_ctr.data.prepare.dataset_folder import shard_path
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.train import calibrate, finetune
from flip_ctr.train.arguments import CalibrateArguments, FinetuneArguments
from flip_ctr.train.loop.calibration import uncorrected
from flip_ctr.train.loop.loaders import encode_split
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.option_groups import CALIBRATIONS
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.outputs.metrics import click_metrics
from flip_ctr.train.parser import parse_arguments

USERS, ITEMS, FACTORS = 20_000, 2_000, 4
BATCH = 2**16  # of scoring
SPREAD = (0.7, 0.7, 0.5)  # standard deviation, in log odds, of users, of items, and of what is of both


@dataclass
class RareClicksArguments(Options):
    output_dir: str = required("folder of the generated dataset and of the models", path=True)
    rows: int = option(4_000_000, "training rows before non-clicks are left out", at_least=1)
    held_out_rows: int = option(1_000_000, "rows of validation, and of test", at_least=1)
    log_odds: float = option(-7.4, "of a click of the average user and item")
    negative_sampling_rate: float = option(0.01, "share of the non-clicks that training has", above=0, at_most=1)
    seed: int = option(0, "of all that is drawn", at_least=0)


def make_dataset(args: RareClicksArguments) -> tuple[Path, np.ndarray]:
    """Writes the dataset folder; returns its path and the probabilities of the test rows."""
    generator = np.random.default_rng(args.seed)
    users, items = (generator.normal(0, spread, size) for spread, size in zip(SPREAD, (USERS, ITEMS)))
    tastes, traits = (generator.normal(0, 1, (size, FACTORS)) for size in (USERS, ITEMS))
    folder = Path(args.output_dir, "data")
    (folder / "data").mkdir(parents=True)
    fields = [
        FlipField("user_id", "int", entity="user", key=True, sides=("id",)),
        FlipField("item_id", "int", entity="item", key=True, sides=("id",)),
    ]
    DatasetSchema("rare-clicks", fields, user_column="user_id").save(folder)
    sizes = {"train": args.rows, "validation": args.held_out_rows, "test": args.held_out_rows}
    for split, size in sizes.items():
        user, item = generator.integers(0, USERS, size), generator.integers(0, ITEMS, size)
        together = np.einsum("nf,nf->n", tastes[user], traits[item]) / FACTORS**0.5
        probabilities = expit(args.log_odds + users[user] + items[item] + SPREAD[2] * together)
        clicks = generator.random(size) < probabilities
        kept = clicks | (generator.random(size) < (args.negative_sampling_rate if split == "train" else 1.0))
        columns = {"user_id": user, "item_id": item, "label": clicks.astype(np.int64)}
        pq.write_table(pa.table({name: values[kept] for name, values in columns.items()}), shard_path(folder, split))
        print(f"{split}: {kept.sum():,} rows, {clicks.sum():,} clicks of {clicks.mean():.3%}", flush=True)
    return folder, probabilities


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(RareClicksArguments, argv, "rare_clicks")
    data, probabilities = make_dataset(args)
    paths = {kind: str(Path(args.output_dir, kind)) for kind in ("model", *CALIBRATIONS)}
    settings = {"dataset_dir": str(data), "seed": args.seed, "per_device_eval_batch_size": BATCH}
    sampled = {"strategy": "id", "negative_sampling_rate": args.negative_sampling_rate}
    finetune.run(FinetuneArguments(output_dir=paths["model"], **sampled, **settings))
    for kind in CALIBRATIONS:
        start = {"model_name_or_path": paths["model"], "calibration": kind}
        calibrate.run(CalibrateArguments(output_dir=paths[kind], **start, **settings))

    accelerator = make_accelerator("no")
    model, processor = load_click_model(paths["model"])
    test = encode_split(accelerator, processor, SplitRows(data, "test"), prompts=False)
    rows = []
    with uncorrected(model):
        found = score(accelerator, model.to(accelerator.device), test, BATCH)
    for kind, name in (
        (None, "none"),
        ("model", "--negative_sampling_rate"),
        *((kind, f"… and --calibration {kind}") for kind in CALIBRATIONS),
    ):
        if kind is None:
            logits = found["logits"]
        else:
            with uncorrected(load_click_model(paths[kind])[0]) as correct:
                logits = correct(found)[0]["logits"]
        metrics, odds = click_metrics(logits, test.labels), expit(logits.astype(np.float64))
        numbers = [metrics["predicted_actual_ratio"], odds.mean() / probabilities.mean()]
        shown = [f"{one:.3f}" for one in numbers] + [f"{metrics['ece']:.6f}", f"{metrics['logloss']:.6f}"]
        distance = np.abs(np.log(odds / probabilities)).mean()
        rows.append([name, *shown, f"{distance:.3f}", f"{metrics['auc']:.4f}"])
    titles = ["correction", "predicted / actual clicks", "predicted / expected clicks", "ECE", "LogLoss"]
    print(markdown_table([*titles, "mean abs. log(p / true p)", "AUC"], rows))


if __name__ == "__main__":
    main()
