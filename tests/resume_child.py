"""What the processes of `test_resume` run. Imported once by a fork server: importing the stack takes longer than a
run."""

import contextlib
import multiprocessing
import os

import tiny
import torch

from flip_ctr.train.outputs import plots

plots.pyplot = lambda: None  # drawing takes as long as a run


def run(recipe: str, paths: tuple[str, str, str], options: dict) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # loader workers: not by the fork server, which would import all again
    dataset_dir, model, output_dir = paths
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        getattr(tiny, recipe)(dataset_dir, model, output_dir, **options)


def ready() -> None:
    """Nothing: once it has returned the fork server has imported everything."""
