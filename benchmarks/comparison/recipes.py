# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a run of the grid may be: a recipe of flip-ctr by its command, the average of finished runs, or a model of
another library.

A recipe reads its options from a command line. Its `run` is called in a child process; it fills the run's folder with
predictions of validation and test (`pretrain` makes none) and returns what the run cost.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from flip_ctr.benchmarks.comparison import peers_deepctr, peers_fuxictr, peers_past, peers_trees
from flip_ctr.benchmarks.comparison.predictions import SPLITS, Predictions, timed_passes
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train import cli
from flip_ctr.train.loop.loaders import encode_split
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.outputs.results import HISTORY_FILE, RESULTS_FILE
from flip_ctr.train.parser import parse_arguments

MODEL = "model"  # folder of the recipe's own output, inside the run's
COMMANDS = ("pretrain", "finetune", "fuse")  # of flip-ctr
KEPT_RESULTS = ("train_seconds", "train_rows", "train_steps", "best_step", "best_epoch", "num_processes")


@dataclass(frozen=True)
class Recipe:
    """A kind of run.

    Attributes:
        options: names of its options.
        parse: a command line -> its arguments; exits where one is wrong.
        run: arguments, the run's folder -> costs; `train_seconds`, `rows_per_second`, `parameters`, …
        of_package: whether flip-ctr itself does it, and options `common` to all of its recipes are given to it.
        predicts: whether it predicts clicks.
        library: distribution that it needs beside flip-ctr.
        quick: whether it is done at once, so that it needs no process of its own.
    """

    name: str
    options: frozenset[str]
    parse: Callable[[list[str]], Any]
    run: Callable[[Any, Path], dict]
    of_package: bool = False
    predicts: bool = True
    library: str | None = None
    quick: bool = False

    @property
    def trains_clicks(self) -> bool:
        return self.predicts and not self.quick


def flags(options: dict[str, Any]) -> list[str]:
    """Options as a command line: lists as several values, mappings as JSON; what is null is left out."""
    argv = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        argv += [f"--{name}", *map(str, values)]
    return argv


# --- flip-ctr's own


def run_command(command: str, argv: list[str], args: Any, folder: Path) -> dict:
    """`flip-ctr COMMAND` in this process, then the predictions of its checkpoint."""
    code = cli.main([command, *argv])
    if code:
        raise SystemExit(code)
    output = Path(args.output_dir)
    results = json.loads((output / RESULTS_FILE).read_text(encoding="utf-8"))
    costs = {name: results[name] for name in KEPT_RESULTS if name in results} | {"history": validation_history(output)}
    if command == "pretrain":
        return costs | {"parameters": stored_parameters(output)}
    return costs | score_checkpoint(args, folder)


def validation_history(output: Path) -> list[dict]:
    """The evaluations of a run with `seconds` since its start, `epoch`, `auc` and `logloss`; none where it keeps no
    history."""
    path = output / HISTORY_FILE
    history = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return [
        {"seconds": one["seconds"], "epoch": one["epoch"], "auc": one["eval_auc"], "logloss": one["eval_logloss"]}
        for one in history
        if "eval_auc" in one
    ]


def stored_parameters(output: Path) -> int:
    """Number of weights in a checkpoint's files."""
    from safetensors import safe_open

    total = 0
    for path in output.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118  not a dict
    return total


def score_checkpoint(args: Any, folder: Path) -> dict:
    """Scores validation and test with the checkpoint in `args.output_dir`, in float32 as the recipe itself scores test,
    and times the latter."""
    accelerator = make_accelerator("no")
    model, processor = load_click_model(args.output_dir, getattr(args, "base_model_name_or_path", None))
    model = model.to(accelerator.device)
    for split in SPLITS:
        rows = encode_split(accelerator, processor, SplitRows(args.dataset_dir, split), prompts=not processor.id_only)
        scores, speed = timed_passes(
            lambda: score(accelerator, model, rows, args.per_device_eval_batch_size), len(rows), split
        )
        Predictions.of(scores, rows.labels, rows.users).save(folder, split)
    return speed | {"parameters": model.num_parameters()}


def _command(name: str) -> Recipe:
    def run(args: Any, folder: Path) -> dict:
        return run_command(name, json.loads((folder / "run.json").read_text(encoding="utf-8"))["argv"], args, folder)

    options = _options(cli.arguments_of(name))
    return Recipe(name, options, partial(cli.parse, name), run, of_package=True, predicts=name != "pretrain")


# --- the average of finished runs


@dataclass
class AverageArguments(Options):
    dataset_dir: str = required("dataset folder", path=True)
    output_dir: str = required("folder of the run", path=True)
    models: list[str] = option([], "output folders of the runs", path=True)

    def check(self) -> None:
        if len(self.models) < 2:
            raise ValueError(f"--models must name at least two runs; got {len(self.models)}")


def average(args: AverageArguments, folder: Path) -> dict:
    """The mean of the log odds of finished runs; it costs what they cost."""
    runs = [Path(model).parent for model in args.models]
    for split in SPLITS:
        parts = [Predictions.load(run, split) for run in runs]
        logits = np.mean([part.logits for part in parts], axis=0, dtype=np.float64).astype(np.float32)
        Predictions(parts[0].labels, parts[0].users, logits).save(folder, split)
    costs = [json.loads((run / "result.json").read_text(encoding="utf-8")) for run in runs]
    return {
        "train_seconds": 0.0,
        "history": [],
        "parameters": sum(one["parameters"] for one in costs),
        "rows_per_second": 1 / sum(1 / one["rows_per_second"] for one in costs),
        "threads": costs[0]["threads"],
    }


def _options(arguments: type) -> frozenset[str]:
    return frozenset(one.name for one in dataclasses.fields(arguments))


def _other(name: str, arguments: type, run: Callable[[Any, Path], dict], library: str | None = None) -> Recipe:
    return Recipe(
        name,
        _options(arguments),
        lambda argv: parse_arguments(arguments, argv, name),
        run,
        library=library,
        quick=library is None,
    )


RECIPES: dict[str, Recipe] = {
    **{name: _command(name) for name in COMMANDS},
    "average": _other("average", AverageArguments, average),
    "fuxictr": _other("fuxictr", peers_fuxictr.FuxiCTRArguments, peers_fuxictr.run, "fuxictr"),
    "deepctr": _other("deepctr", peers_deepctr.DeepCTRArguments, peers_deepctr.run, "deepctr-torch"),
    "catboost": _other("catboost", peers_trees.CatBoostArguments, peers_trees.run, "catboost"),
    "past": _other("past", peers_past.PastArguments, peers_past.run, "scikit-learn"),
}


def versions(recipe: Recipe) -> dict[str, str]:
    """Of the libraries that a run's numbers depend on."""
    names = [
        "torch",
        "numpy",
        *(["transformers", "accelerate"] if recipe.of_package else []),
        *([recipe.library] if recipe.library else []),
    ]
    return {name: version(name) for name in names}
