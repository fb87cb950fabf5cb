# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A model alone that trains on one batch: what `data_loading.py` compares memory with. It imports nothing that reads
data."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from flip_ctr.benchmarks.children import answer
from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.train.loop.optimizer import make_optimizer
from flip_ctr.train.loop.step import TrainingStep

BATCH, ARGUMENTS = "batch.safetensors", "arguments.json"


class Peaks:
    """The most memory of this process, in MB: resident (the system's own record) and anonymous (looked at every few
    milliseconds)."""

    def __init__(self):
        self.anonymous, self.stop = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    @staticmethod
    def _status(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    def _watch(self) -> None:
        while not self.stop.wait(0.003):
            self.anonymous = max(self.anonymous, self._status("RssAnon"))

    def read(self) -> dict[str, float]:
        self.stop.set()
        self.thread.join()
        return {"resident_mb": self._status("VmHWM") / 1024, "anonymous_mb": self.anonymous / 1024}


def train_on(accelerator: Accelerator, batches: Iterator[dict[str, torch.Tensor]], model: FlipForCTR, args) -> None:
    step = TrainingStep(
        accelerator, *accelerator.prepare(model.train(), make_optimizer(model, args, accelerator.device)), args
    )
    for batch in batches:
        step.backward([batch])
        step.update()


def leave(folder: Path, batch: dict[str, torch.Tensor], model: FlipForCTR, args) -> None:
    """What [`child`] needs to do the same steps."""
    save_file(batch, folder / BATCH)
    model.config.save_pretrained(folder)
    (folder / ARGUMENTS).write_text(json.dumps(vars(args)), encoding="utf-8")


def child(folder: str, num_steps: int) -> dict[str, float]:
    """Peaks of memory of a model that trains on the batch that lies in the folder."""
    peaks = Peaks()
    args = SimpleNamespace(**json.loads((Path(folder) / ARGUMENTS).read_text(encoding="utf-8")))
    config, batch = FlipConfig.from_pretrained(folder), load_file(Path(folder) / BATCH)
    plm = args.model_name_or_path
    model = FlipForCTR(config) if plm is None else FlipForCTR.from_text_pretrained(plm, config, dtype=torch.float32)
    train_on(Accelerator(), (dict(batch) for _ in range(num_steps)), model, args)
    return peaks.read()


if __name__ == "__main__":
    answer(child)
