# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The `flip-ctr` command: one word for each recipe."""

import importlib
import os
import sys
import time

from flip_ctr.train.launch import LAUNCHED, config_names, launch, split_options

# command -> module and what it does; modules are imported only when called
COMMANDS = {
    "prepare": ("prepare", "raw files of a public dataset, or any table -> dataset folder"),
    "pretrain": ("pretrain", "align an ID tower and a PLM on the training rows"),
    "finetune": ("finetune", "train click prediction: id, plm or joint"),
    "fuse": ("fuse", "a joint model from an ID-based and a PLM-based one that were trained apart"),
    "evaluate": ("evaluate_ctr", "metrics of a checkpoint on a split"),
    "predict": ("predict", "click probabilities for the rows of a file"),
    "push": ("push", "publish a checkpoint on the Hugging Face Hub"),
    "demo": ("demo", "the whole pipeline on a generated catalogue, or on real data"),
}

OTHERS_WAIT = 3  # seconds


def usage() -> str:
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
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
            "flip-ctr COMMAND --help lists the options.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one recipe; what a user did wrong is one line on standard error and exit code 2, not a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    command, *rest = argv
    if command not in COMMANDS:
        print(f"flip-ctr: no command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        options, rest = split_options(rest) if command in LAUNCHED else (None, rest)
        recipe = importlib.import_module(f"flip_ctr.train.{COMMANDS[command][0]}")
        if (
            options is not None
            and options.accelerate_config is not None
            and launch(command, options, rest, recipe.parse)
        ):
            return 0
        recipe.main(rest)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:  # (an attention that is not installed, say)
        if os.environ.get("RANK", "0") != "0":
            time.sleep(OTHERS_WAIT)  # the launcher ends this process once the first one has said it
        print(f"flip-ctr {command}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
