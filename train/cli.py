# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The `flip-ctr` command: one word for each recipe.

The command starts in `flip_ctr_command`, without the package's `__init__`, which imports torch and transformers: help
and what is wrong with a command line come at once, and `prepare` needs neither. `python -m flip_ctr.train.cli` is the
same command, and starts slower.
"""

import importlib
import os
import sys
import time
import traceback
from typing import Any, NamedTuple

from flip_ctr.train.launch import LAUNCHED, OPTIONS, config_names, launch, launch_help, split_options
from flip_ctr.train.options import nearest


class Command(NamedTuple):
    """A command: its module, the class of its arguments in `train.arguments`, and what it does."""

    module: str
    arguments: str
    does: str


COMMANDS = {
    "prepare": Command(
        "train.prepare", "PrepareArguments", "raw files of a public dataset, or any table -> dataset folder"
    ),
    "train": Command("train.train_model", "TrainArguments", "the best known recipe: all stages, the best model kept"),
    "pretrain": Command("train.pretrain", "PretrainArguments", "align an ID tower and a PLM on the training rows"),
    "finetune": Command("train.finetune", "FinetuneArguments", "train click prediction: id, plm or joint"),
    "fuse": Command(
        "train.fuse", "FuseArguments", "a joint model from an ID-based and a PLM-based one that were trained apart"
    ),
    "calibrate": Command("train.calibrate", "CalibrateArguments", "fit a checkpoint's probabilities to clicks"),
    "evaluate": Command("train.evaluate_ctr", "EvaluateArguments", "metrics of a checkpoint on a split"),
    "predict": Command("train.predict", "PredictArguments", "click probabilities for the rows of a file"),
    "explain": Command("train.explain", "ExplainArguments", "what each field and history does for a row's score"),
    "rank": Command("serve.rank", "RankArguments", "the best items of a catalogue for the users of a file"),
    "embed": Command("serve.embed", "EmbedArguments", "vectors of items or users, of ids and of text"),
    "export": Command("serve.export", "ExportArguments", "a click model as graphs for ONNX Runtime or OpenVINO"),
    "space": Command(
        "serve.space", "SpaceArguments", "a page to try a model: a Hugging Face Space, as a folder or published"
    ),
    "serve": Command("serve.server", "ServeArguments", "rank items and score rows over HTTP"),
    "push": Command("train.push", "PushArguments", "publish a checkpoint on the Hugging Face Hub"),
    "demo": Command("train.demo", "DemoArguments", "the whole pipeline on a generated catalogue, or on real data"),
}
# what others call them
MEANT = {
    "prepare": "preprocess preprocessing data download dataset convert",
    "train": "fit training learn automl auto",
    "pretrain": "align pretraining",
    "finetune": "tune finetuning fine_tune",
    "fuse": "ensemble merge",
    "calibrate": "calibration platt isotonic recalibrate",
    "evaluate": "eval test score metrics",
    "predict": "inference infer predict_proba",
    "explain": "importance feature_importance why shap explanation interpret attribution",
    "rank": "recommend recommendations ranking rerank top_k topk",
    "embed": "embedding embeddings vectors encode export_embeddings",
    "export": "onnx openvino convert quantize",
    "space": "page app gradio ui web spaces",
    "serve": "server deploy api http",
    "push": "upload publish share",
    "demo": "example quickstart",
}

OTHERS_WAIT = 3  # seconds


def usage() -> str:
    lines = [f"  {name:<10}{command.does}" for name, command in COMMANDS.items()]
    several = [
        f"{', '.join(LAUNCHED)}: --accelerate_config NAME_OR_PATH starts them in many processes;",
        f"a file of `accelerate config` or one of {', '.join(config_names())}.",
    ]
    return "\n".join(
        [
            "usage: flip-ctr COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            *several,
            "",
            "flip-ctr COMMAND --help lists the options, flip-ctr --version says the version.",
        ]
    )


def arguments_of(name: str) -> type:
    """The class of a command's arguments."""
    return getattr(importlib.import_module("flip_ctr.train.arguments"), COMMANDS[name].arguments)


def parse(name: str, argv: list[str]) -> Any:
    """A command's arguments; exits with one line where one is wrong."""
    from flip_ctr.train.parser import parse_arguments

    launched = name in LAUNCHED
    does = COMMANDS[name].does
    return parse_arguments(
        arguments_of(name),
        argv,
        prog=f"flip-ctr {name}",
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=launch_help() if launched else None,
        more_options=("accelerate_config", *OPTIONS) if launched else (),
    )


def whole_package() -> None:
    """Runs the package's `__init__` where the command started without it: it registers the models with transformers."""
    package = sys.modules["flip_ctr"]
    if not hasattr(package, "__all__"):
        package.__spec__.loader.exec_module(package)


def main(argv: list[str] | None = None) -> int:
    """Runs one recipe; what a user did wrong is one line on standard error and exit code 2, not a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"flip-ctr {version('flip-ctr')}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        meant = next((one for one, words in MEANT.items() if name in words.split()), nearest(name, COMMANDS))
        hint = f"; did you mean {meant}?" if meant else ""
        print(f"flip-ctr: there is no command {name}{hint} (flip-ctr --help lists them)", file=sys.stderr)
        return 2
    try:
        options, rest = split_options(rest) if name in LAUNCHED else (None, rest)
        args = parse(name, rest)
        if options is not None and options.accelerate_config is not None and launch(name, options, rest):
            return 0
        if name != "prepare":
            whole_package()
        recipe = importlib.import_module(f"flip_ctr.{COMMANDS[name].module}")
        getattr(recipe, "main", recipe.run)(args)
        if name in LAUNCHED:
            importlib.import_module("flip_ctr.train.loop.run").part_processes()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:  # (an attention that is not installed, say)
        if "--debug" in rest:
            traceback.print_exc()
        if os.environ.get("RANK", "0") != "0":
            time.sleep(OTHERS_WAIT)  # the launcher ends this process once the first one has said it
        print(f"flip-ctr {name}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
