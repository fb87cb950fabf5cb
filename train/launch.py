# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""`flip-ctr RECIPE --accelerate_config NAME_OR_PATH ...`: the recipe started in many processes by `accelerate
launch`."""

import argparse
import os
from pathlib import Path

from flip_ctr.train.options import did_you_mean

CONFIGS = Path(__file__).parent / "accelerate_configs"
LAUNCHED = (
    "train",
    "pretrain",
    "finetune",
    "fuse",
    "evaluate",
    "predict",
    "rank",
)  # the commands that know more than one process
OPTIONS = {
    "num_processes": int,
    "num_machines": int,
    "machine_rank": int,
    "main_process_ip": str,
    "main_process_port": int,
}


def config_names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def launch_help() -> str:
    """For `--help` of the recipes that can be launched."""
    return (
        "Many processes: the flip-ctr command also takes --accelerate_config NAME_OR_PATH, an Accelerate config file "
        f"or one of {', '.join(config_names())}, and starts the recipe through `accelerate launch`; with it "
        "--num_processes, --num_machines, --machine_rank, --main_process_ip and --main_process_port replace what the "
        "config says (processes: of all machines together)."
    )


def find_config(name_or_path: str) -> Path:
    """The config file that a name or path means. `ValueError` where there is none; lists the names."""
    named = CONFIGS / f"{name_or_path}.yaml"
    for path in (Path(name_or_path).expanduser(), named):
        if path.is_file():
            return path
    names = config_names()
    raise ValueError(
        f"--accelerate_config {name_or_path}: no such file, and not one of {', '.join(names)}"
        f"{did_you_mean(name_or_path, names)}"
    )


def split_options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's options, and the recipe's own arguments.

    Raises:
        ValueError: an option of the launcher was given without `--accelerate_config`.
    """
    parser = argparse.ArgumentParser(prog="flip-ctr", add_help=False, allow_abbrev=False)
    for name, kind in {"accelerate_config": str, **OPTIONS}.items():
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=kind)  # both, as the recipes' own flags
    options, rest = parser.parse_known_args(argv)
    given = [name for name in OPTIONS if getattr(options, name) is not None]
    if given and options.accelerate_config is None:
        raise ValueError(f"--{given[0]} has no effect without --accelerate_config")
    return options, rest


def launch(command: str, options: argparse.Namespace, rest: list[str]) -> bool:
    """Runs `flip-ctr command` with the arguments `rest` in as many processes as the config says, and waits for them.
    Where it says one, only sets the environment for it and returns False: the caller runs it, and hears a signal
    itself.

    Raises:
        ValueError: no such config, or it is for several machines and the first one's address is not known.
        SystemExit: a process failed, or the launcher was told to stop.
    """
    import yaml

    path = find_config(options.accelerate_config)
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    try:
        settings = {**yaml.safe_load(path.read_text(encoding="utf-8")), **given}
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"--accelerate_config {options.accelerate_config} is no Accelerate config: {error}") from error
    if settings.get("num_machines", 1) > 1:
        for name in ("main_process_ip", "machine_rank"):  # without them every machine would wait for itself
            if settings.get(name) is None:
                raise ValueError(
                    f"--accelerate_config {options.accelerate_config} is for several machines and needs --{name}"
                )
    # what takes seconds comes when the config is right
    from accelerate.commands.launch import _validate_launch_command, launch_command, launch_command_parser
    from accelerate.utils import prepare_simple_launcher_cmd_env
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    # the command itself, not its module: what a user did wrong is one line there too
    recipe = ["--module", "flip_ctr.train.cli", command, *rest]
    arguments = ["--quiet", "--config_file", str(path), *flags, *recipe]
    resolved, *_ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    if not (
        resolved.multi_gpu or resolved.use_fsdp or resolved.use_deepspeed or resolved.use_megatron_lm or resolved.tpu
    ):
        os.environ.update(prepare_simple_launcher_cmd_env(resolved)[1])
        return False
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        raise SystemExit(max(failure.exitcode for failure in error.failures.values())) from None
    except SignalException as error:  # passed on to the processes, which have saved where --checkpointing_steps says so
        raise SystemExit(128 + error.sigval) from None
    return True
