"""What only a GPU shows; `benchmarks/gpu_check.sh` runs these tests on one."""

import subprocess
import sys
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from device_steps import RECIPES, arguments, made

from flip_ctr.train.loop.optimizer import make_optimizer
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.step import TrainingStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def waiting(monkeypatch):
    """The functions of this package in which the host waits for the GPU -> how often."""
    waits = Counter()

    def remember(message, *_, **__):
        if "synchroniz" in str(message):
            frames = [(Path(frame.filename).resolve(), frame.name) for frame in traceback.extract_stack()]
            ours = [name for path, name in frames if path.is_relative_to(ROOT) and "tests" not in path.parts]
            waits[ours[-1] if ours else "backward"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", remember)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", RECIPES)
def test_the_host_waits_where_the_pretended_device_says(name, monkeypatch):
    options, in_steps, in_windows = RECIPES[name]
    model, batches = made(name, options)
    args, accelerator = arguments(options), make_accelerator("no")
    model = model.to(accelerator.device).train()
    step = TrainingStep(accelerator, model, make_optimizer(model, args, accelerator.device), args)
    groups = step.windows(([batch] for batch in batches), len(batches))
    for _ in range(2):  # what is made once is there
        step.backward(next(groups))
        step.update()
    with waiting(monkeypatch) as waits:
        for group in groups:
            step.backward(group)
            step.update()
    assert set(waits) == set(in_steps) | set(in_windows)


WRONG_ID = """
import torch
from device_steps import RECIPES, made
model, (batch, *_) = made("id", RECIPES["id"][0])
batch["feature_ids"][1, 0] = 10**6
model.cuda()(**{name: values.cuda() for name, values in batch.items()})
torch.cuda.synchronize()
"""


def test_an_id_of_no_field_ends_the_process():
    """An assertion of the device, after which a process cannot use it."""
    result = subprocess.run([sys.executable, "-c", WRONG_ID], cwd=ROOT / "tests", capture_output=True, text=True)
    assert result.returncode != 0 and "device-side assert" in result.stderr
