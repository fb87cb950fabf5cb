# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Every ID tower alone, with the defaults of `finetune --strategy id`: quality, size, time of an epoch.

    OMP_NUM_THREADS=1 python benchmarks/id_towers.py --dataset_dir D --output_dir RUNS

Each tower trains in a process of its own, one after the other; those whose run in RUNS is complete are not run again.
The time of an epoch is the least of the run's, from its start to after validation, so that a noisy machine matters
less.
"""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from flip_ctr.benchmarks.children import write_rows
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments

# the default form of each tower, and its other ones
FORMS = {
    "lr": {},
    "fm": {},
    "afm": {},
    "widedeep": {},
    "deepfm": {},
    "pnn": {},
    "pnn, outer": {"products": "outer"},
    "pnn, both": {"products": "both"},
    "fibinet": {},
    "fibinet, all": {"bilinear": "all"},
    "fibinet, each": {"bilinear": "each"},
    "dcn": {},
    "dcnv2": {},
    "dcnv2, stacked": {"structure": "stacked"},
    "dcnv2, full": {"full_matrix": True},
    "dcnv2, full, stacked": {"full_matrix": True, "structure": "stacked"},
    "gdcn": {},
    "gdcn, stacked": {"structure": "stacked"},
    "xdeepfm": {},
    "autoint": {},
    "autoint, no DNN": {"use_dnn": False},
    "afn": {},
    "afn, batch norm": {"norm": "batch"},
    "afn, with DNN (AFN+)": {"use_dnn": True},
    "masknet": {},
    "masknet, parallel": {"structure": "parallel"},
    "finalmlp": {},
    "finalmlp, user and movie contexts": {"first_context": ["user_id"], "second_context": ["movie_id"]},
}


@dataclass
class TowerArguments(Options):
    dataset_dir: str = required("dataset folder", path=True)
    output_dir: str = required("folder for the runs", path=True)
    seed: int = option(42, "seed of initialisation and order")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def main() -> None:
    args = parse_arguments(TowerArguments)
    rows = []
    for form, kwargs in FORMS.items():
        folder = Path(args.output_dir) / form.replace(", ", "-").replace(" ", "-")
        if not (folder / "all_results.json").exists():
            command = [
                "finetune",
                "--dataset_dir",
                args.dataset_dir,
                "--strategy",
                "id",
                "--seed",
                str(args.seed),
                "--output_dir",
                str(folder),
                "--overwrite_output_dir",
                "--id_tower",
                form.split(",")[0],
                "--id_tower_kwargs",
                json.dumps(kwargs),
            ]
            subprocess.run([sys.executable, "-m", "flip_ctr.train.cli", *command], check=True)
        rows.append({"tower": form, "id_tower_kwargs": kwargs} | numbers(folder))
    header = ["tower", "outside the tables", "size of `h_id`", "validation AUC / LogLoss", "test AUC", "test LogLoss"]
    header += ["best epoch", "seconds an epoch"]
    table = [
        [
            row["tower"],
            f"{row['dense_parameters']:,}",
            row["h_id"],
            f"{row['eval_auc']:.4f} / {row['eval_logloss']:.4f}",
            f"{row['test_auc']:.4f}",
            f"{row['test_logloss']:.4f}",
            f"{row['best_epoch']:.0f}",
            f"{row['epoch_seconds']:.1f}",
        ]
        for row in rows
    ]
    print(markdown_table(header, table))
    write_rows(rows, args.output_file)


def numbers(folder: Path) -> dict:
    results = json.loads((folder / "all_results.json").read_text())
    history = json.loads((folder / "history.json").read_text())
    seconds = [0.0, *(entry["seconds"] for entry in history if "eval_auc" in entry)]
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a dict
    tables = ("embeddings.weight", "first_order.weight")
    sizes = {
        name: math.prod(shape) for name, shape in shapes.items() if not name.endswith((*tables, "num_batches_tracked"))
    }
    kept = ("eval_auc", "eval_logloss", "test_auc", "test_logloss", "best_epoch")
    return {name: results[name] for name in kept} | {
        "dense_parameters": sum(size for name, size in sizes.items() if "running_" not in name),
        "h_id": shapes["id_classifier.weight"][1],
        "epoch_seconds": min(after - before for before, after in zip(seconds, seconds[1:])),
    }


if __name__ == "__main__":
    main()
