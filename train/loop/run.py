# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The start and the end of a run: Accelerate, output folder, log, tracker."""

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env, set_seed

from flip_ctr.data.outputs import LOCK, OWNER, claimed
from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.loop.distributed import (
    check_accelerator,
    check_launch,
    check_run,
    splits_states,
)
from flip_ctr.train.loop.resume import Preempted, discard, step_checkpoints
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.checkpoint import clear_leftovers, clear_reports
from flip_ctr.train.outputs.hub import check_hub_arguments
from flip_ctr.train.outputs.run_log import LOG_FILE, close_log, file_logger, logger, open_log, set_up_logging, write_log

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's `mallopt`
KEPT_BYTES = 2**28

_held = ExitStack()  # the output folder of the run, until it ends


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16 (AVX-512 BF16), without which they are slower than
    float32's. torch has no public name for that."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def keep_freed_memory() -> None:
    """Lets this process keep up to 256 MB that it freed, for the next step. On Linux glibc gives memory back to the
    system as soon as tensors are freed, and the next step's tensors then wait for pages of zeros: a sixth of a step of
    an ID tower on a CPU."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):  # musl has none
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(parameter, KEPT_BYTES)


def default_precision() -> str:
    """That of a training run which names none: what Accelerate's launcher was told, or else bf16 on a CPU that
    multiplies it. On a GPU it has not been measured what bf16 does to quality."""
    if (told := os.environ.get("ACCELERATE_MIXED_PRECISION")) in ("bf16", "fp16"):
        return told
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device  # as `Accelerator` finds it
    return "bf16" if device.type == "cpu" and multiplies_bf16() else "no"


def make_accelerator(mixed_precision: str | None, **kwargs) -> Accelerator:
    """An `Accelerator` with that precision, whatever the recipe that ran before in this process had; None is
    [`default_precision`].

    Raises:
        ValueError: Accelerate was started with settings that contradict the recipe's, or that it cannot keep here.
    """
    if mixed_precision is None:
        mixed_precision = default_precision()
    check_launch(mixed_precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # of the precision alone: the processes and the device stay
    # no buffer changes in training, and one has a number for each feature: DDP would send it before every forward pass
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=handlers, **kwargs)
    check_accelerator(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def check_output_dir(args: Any, *sources: str, goes_on: bool = False) -> None:
    """Raises `ValueError` where the output folder is a file, holds files that the run was not told to overwrite, or is
    the checkpoint that one of the arguments `sources` names, whose place the new one would take."""
    folder = args.output_dir
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--output_dir {folder} is a file; name a folder")
    for name in sources:
        source = getattr(args, name)
        if source and os.path.exists(source) and os.path.exists(folder) and os.path.samefile(source, folder):
            raise ValueError(
                f"--output_dir {folder} is --{name}: the new checkpoint would take the place of what it is made from"
            )
    if os.path.isdir(folder) and set(os.listdir(folder)) - {LOCK, OWNER} and not (args.overwrite_output_dir or goes_on):
        raise ValueError(f"--output_dir {folder} is not empty; choose another or add --overwrite_output_dir")


def claim_output_dir(args: Any, goes_on: bool = False) -> None:
    """Makes the output folder where it is not there, keeps other runs out of it until this one ends, and takes out of
    it what a former run left.

    Raises:
        FileExistsError: another run writes there.
        ValueError: files have appeared there since the run began, which it was not told to overwrite.
    """
    folder = args.output_dir
    _held.enter_context(claimed(Path(folder), Path(folder, LOCK)))
    check_output_dir(args, goes_on=goes_on)
    clear_leftovers(folder)
    clear_reports(folder)
    for checkpoint in [] if goes_on else step_checkpoints(folder):  # of a former run: `latest` must not find them
        discard(checkpoint)


def start(args: TrainingOptions) -> Accelerator:
    """Checks the output folder and the Hub's arguments, starts Accelerate and logging, and sets the seed. Writes
    nothing yet, not even the folder, see [`begin`].

    Raises:
        ValueError: the output folder holds files and `--overwrite_output_dir` was not given, or is what a LoRA run
            starts from; or nothing could be pushed; or the tracker, or the user's own code, cannot be imported; or
            Accelerate was started in a way that does not fit the run.
    """
    import_custom_code(args.custom_code)
    check_hub_arguments(args)
    goes_on = args.resume_from_checkpoint is not None
    check_output_dir(args, *(["model_name_or_path"] if args.use_lora else []), goes_on=goes_on)
    log_with = None if args.report_to == "none" else args.report_to
    if log_with and importlib.util.find_spec(log_with) is None:
        raise ValueError(
            f"--report_to {log_with}: the package {log_with} is not installed (pip install 'flip-ctr[{log_with}]')"
        )
    accelerator = make_accelerator(args.mixed_precision, log_with=log_with, project_dir=args.output_dir)
    args.mixed_precision = accelerator.mixed_precision
    check_run(accelerator, args)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have seen it empty
    set_up_logging(accelerator)
    if accelerator.is_main_process:
        open_log(os.path.join(args.output_dir, LOG_FILE), append=goes_on)
    if args.embedding_optimizer != "dense" and splits_states(accelerator):
        logger.warning(
            f"--embedding_optimizer {args.embedding_optimizer} works on one process and under DDP; "
            f"{accelerator.distributed_type.value} splits dense gradients: the feature tables are trained as dense ones"
        )
        args.use_dense_tables()
    file_logger.info(
        f"{args.recipe} on {accelerator.num_processes} process(es), {accelerator.device.type}, "
        f"{accelerator.mixed_precision}"
    )
    file_logger.info(f"arguments: {json.dumps({name: str(value) for name, value in args.published().items()})}")
    set_seed(args.seed)
    return accelerator


def begin(accelerator: Accelerator, args: TrainingOptions) -> None:
    """All was checked, and training begins: what a former run left in the output folder goes, the log is a file from
    here on, and the tracker starts."""
    if accelerator.is_main_process:
        # not before: a run that is refused leaves nothing behind
        claim_output_dir(args, goes_on=args.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()
    write_log()
    if args.report_to != "none":
        name = os.path.basename(os.path.abspath(args.output_dir))
        where = {"wandb": {"name": name, "dir": args.output_dir}, "trackio": {"name": name}}
        published = {name: str(value) for name, value in args.published().items()}
        accelerator.init_trackers(
            f"flip-ctr-{args.recipe}", published, {key: where[key] for key in where.keys() & {args.report_to}}
        )


def end_trackers(accelerator: Accelerator) -> None:
    """Ends the trackers of a run. The processes stay together for what comes next, see [`part_processes`]."""
    for tracker in accelerator.trackers:
        tracker.finish()


def part_processes() -> None:
    """Ends what keeps the processes of a command together, if there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # a process that ends while another still talks to it makes that one abort
        torch.distributed.destroy_process_group()


def recipe(run: Callable[[TrainingOptions], dict]) -> Callable[[TrainingOptions], dict]:
    """Decorator of a recipe's `run`: what ends it is in its log too, which is then closed."""

    @wraps(run)
    def logged(args: TrainingOptions) -> dict:
        close_log()
        try:
            return run(args)
        except BaseException as error:
            if isinstance(error, Preempted):
                file_logger.info("stopped")
            else:
                file_logger.error(
                    f"stopped by {type(error).__name__}", exc_info=error if isinstance(error, Exception) else None
                )
            raise
        finally:
            _held.close()
            close_log()

    return logged
