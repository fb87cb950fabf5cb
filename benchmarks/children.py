# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A benchmark that measures in processes of their own, so that memory is that of one model alone."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from flip_ctr.train.loop.step import TrainingStep

CHILD = "--child"


def peak_gb() -> float:
    """The most memory that this process, or its part of the GPU, has had."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(step: TrainingStep, group: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of one optimizer step."""
    started = time.perf_counter()
    step.backward(group)
    step.update()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def take_turns(runs: list, warm_up: int, number: int) -> list[list[float]]:
    """Seconds of each run's `timed_step`, batch by batch, after some to warm up."""
    return [[run.timed_step() for run in runs] for _ in range(warm_up + number)][warm_up:]


def measure(*arguments, script: str | Path | None = None) -> dict:
    """What `child(*arguments)` of a script, the running one when None, returns, called in a process of its own."""
    command = [sys.executable, str(script or sys.argv[0]), CHILD, json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def answer(child: Callable[..., dict]) -> bool:
    """Whether this process is one of [`measure`]'s; prints what `child` returns where it is."""
    if sys.argv[1:2] != [CHILD]:
        return False
    print(json.dumps(child(*json.loads(sys.argv[2]))))
    return True


def print_numbers(results: dict) -> None:
    for name, value in results.items():
        print(f"{name:<24}{value:.3f}" if isinstance(value, float) else f"{name:<24}{value}")


def write_rows(rows: list[dict] | dict, path: str | None) -> None:
    """The results as JSON, where a file is named."""
    if path:
        Path(path).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
