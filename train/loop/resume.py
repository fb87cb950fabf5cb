# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Exact resume: a run that is killed goes on from its last step checkpoint and ends in the same weights, bit for bit.

A step checkpoint `checkpoint-N` holds model, optimizer, schedule, scaler, the loop's own state, and the random state of
every process. Which rows, masks and noise come next follows from (seed, epoch, step). It is never published, and is
read without pickle's code (`weights_only`).
"""

import json
import math
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable
from functools import cached_property
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from flip_ctr.data.batches.cache import processor_digest
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.streaming import StreamedDataset
from flip_ctr.data.outputs import sync
from flip_ctr.modeling_flip.fingerprint_flip import file_sha256, read_json
from flip_ctr.modeling_flip.new_files_flip import PARTIAL
from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.loop.prompt_states import PromptReader
from flip_ctr.train.models.whole_weights import load_training_state, training_state
from flip_ctr.train.outputs.checkpoint import CODE, PROCESSOR, WEIGHTS, matches
from flip_ctr.train.outputs.record import RECORD
from flip_ctr.train.outputs.run_log import logger

OF_MANIFEST = "manifest_sha256"
STATE_FILE, OWN_FILE, MANIFEST = "training_state.pt", "process_{}.pt", "progress.json"
FOLDER = re.compile(r"checkpoint-(\d+)")
LATEST = "latest"
# arguments that may differ between a run and its continuation: they change no weight
FREE = ("dataloader_num_workers", "logging_steps")
PREEMPTED = 75  # the exit code of a run that was told to stop and saved first (EX_TEMPFAIL: try again)


class Preempted(SystemExit):
    """The process got SIGTERM, saved a step checkpoint, and ends; with `--resume_from_checkpoint latest` it goes on."""

    def __init__(self):
        super().__init__(PREEMPTED)


def step_checkpoints(folder: str) -> list[str]:
    """The whole step checkpoints in an output folder, oldest first. Half-written ones have another name."""
    found = (
        [(int(match[1]), name) for name in os.listdir(folder) if (match := FOLDER.fullmatch(name))]
        if os.path.isdir(folder)
        else []
    )
    return [os.path.join(folder, name) for _, name in sorted(found)]


def discard(folder: str) -> None:
    """Removes a step checkpoint; where the run is killed on the way, what is left is none any more."""
    left = os.path.join(os.path.dirname(folder), f"{PARTIAL}old-{os.path.basename(folder)}")
    os.rename(folder, left)
    shutil.rmtree(left)


def fingerprint(dataset: EncodedDataset | StreamedDataset) -> str:
    """Of the training rows, and of the processor that encodes them: a continuation on others would not be one."""
    parts = [dataset.rows.content_digest(), processor_digest(dataset.processor, dataset.prompts)]
    return blake2b("|".join(parts).encode(), digest_size=16).hexdigest()


class StepCheckpoints:
    """Writes and reads the step checkpoints of a run.

    Args:
        accelerator, args: of the run.
        dataset: the training rows.
        steps_per_epoch: for `--checkpointing_steps epoch`.

    Raises:
        ValueError: `--resume_from_checkpoint` names no checkpoint, or one of another run; says what differs.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args: TrainingOptions,
        dataset: EncodedDataset | StreamedDataset,
        steps_per_epoch: int,
    ):
        self.accelerator, self.args = accelerator, args
        every = args.checkpointing_steps
        self.every = None if every is None else steps_per_epoch if every == "epoch" else int(every)
        self.dataset = dataset
        self.reader: PromptReader | None = None  # keeps states that must be the same when the run goes on
        self.asked_to_stop = self._due = False
        # Python lets only the main thread say what a signal does
        self._listens = self.every is not None and threading.current_thread() is threading.main_thread()
        if self._listens:
            # a preempted job: only remembered here, acted upon between two steps
            self._previous = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked_to_stop", True))

    @cached_property
    def run(self) -> dict[str, Any]:
        """What must be the same when the run goes on; reads all training rows, so only where it is needed."""
        return {
            "arguments": self.args.published(),
            "num_processes": self.accelerator.num_processes,
            # its optimizer states have names, others have numbers
            "fsdp": self.accelerator.distributed_type == DistributedType.FSDP,
            "training_rows": fingerprint(self.dataset),
            "teacher": getattr(self.dataset, "teacher", None),
        }

    def close(self) -> None:
        """Gives SIGTERM back its former meaning."""
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)

    # --- writing

    def after_step(
        self,
        step: int,
        model: nn.Module,
        optimizer,
        scheduler,
        loop: Callable[[], dict[str, Any]],
        before_saving: Callable[[], None],
        between_windows: bool = True,
    ) -> None:
        """Saves where it is time to, on all processes together.

        Args:
            loop: gives the loop's own state.
            before_saving: is called first; what it raises keeps the state from being saved.
            between_windows: whether no gradients wait for the PLM's step (`--plm_every`); what is due while some do is
                saved after it.

        Raises:
            Preempted: the run was told to stop, and has saved.
            OSError: it cannot be saved; earlier checkpoints are untouched.
        """
        self._due = self._due or (self.every is not None and step % self.every == 0)
        if not between_windows:
            return
        stop = self._any_asked_to_stop()
        if self.every is not None and (stop or self._due):
            self._due = False
            before_saving()
            self.save(step, model, optimizer, scheduler, loop())
        if stop:
            self.close()
            again = self.args.resume_from_checkpoint == LATEST  # of a stage of `train` too, which has no such option
            how = "the same command goes on" if again else f"go on with --resume_from_checkpoint {LATEST}"
            logger.info(f"told to stop: saved at step {step}; {how}")
            raise Preempted

    def _any_asked_to_stop(self) -> bool:
        if self.accelerator.num_processes == 1 or self.every is None:
            return self.asked_to_stop
        # all must save the same step, though the signal may have reached one process only
        flag = torch.tensor(int(self.asked_to_stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag).item())

    def save(self, step: int, model: nn.Module, optimizer, scheduler, loop: dict[str, Any]) -> None:
        accelerator, folder = self.accelerator, self.args.output_dir
        target, partial = os.path.join(folder, f"checkpoint-{step}"), os.path.join(folder, f"{PARTIAL}{step}")
        try:
            if accelerator.is_main_process:
                os.makedirs(partial)
            accelerator.wait_for_everyone()
            own = _random_state() | {"prompt_states": {} if self.reader is None else self.reader.kept()}
            _write(os.path.join(partial, OWN_FILE.format(accelerator.process_index)), own)
            weights, moments = training_state(accelerator, model, optimizer)
            if accelerator.is_main_process:
                state = {
                    "model": weights,
                    "optimizer": moments,
                    "scheduler": scheduler.state_dict(),
                    "loop": loop,
                    "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                }
                _write(os.path.join(partial, STATE_FILE), state)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _write_manifest(partial, {"step": step} | self.run)
                if os.path.isdir(target):
                    discard(target)
                os.rename(partial, target)  # only now does `latest` see it
                self._discard_old()
            accelerator.wait_for_everyone()
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            earlier = ", ".join(os.path.basename(path) for path in step_checkpoints(folder)) or "none"
            raise OSError(
                error.errno,
                f"checkpoint-{step} could not be saved in {folder}: {error.strerror or error}. Whole ones there: "
                f"{earlier}",
            ) from error

    def _discard_old(self) -> None:
        """Those beyond `--checkpoints_total_limit`."""
        if self.args.checkpoints_total_limit is not None:
            for old in step_checkpoints(self.args.output_dir)[: -self.args.checkpoints_total_limit]:
                discard(old)

    # --- reading

    def load(self, model: nn.Module, optimizer, scheduler) -> dict[str, Any] | None:
        """Puts everything back as it was; returns the loop's own state, None where the run starts from the
        beginning."""
        folder = self.args.resume_from_checkpoint
        if folder is None:
            return None
        if folder == LATEST:
            found = step_checkpoints(self.args.output_dir)
            if not found:
                logger.info(f"no step checkpoint in {self.args.output_dir} yet: starting from the beginning")
                return None
            folder = self._newest_whole(found)
        elif (damage := damage_of(folder)) is not None:
            raise ValueError(f"--resume_from_checkpoint {folder}: {damage}")
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            self._check(json.load(file), folder)
        state = torch.load(os.path.join(folder, STATE_FILE), map_location="cpu", weights_only=True)
        load_training_state(self.accelerator, model, optimizer, state["model"], state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        path = os.path.join(folder, OWN_FILE.format(self.accelerator.process_index))
        own = torch.load(path, map_location="cpu", weights_only=True)
        _set_random_state(own)
        if self.reader is not None:
            self.reader.restore(own["prompt_states"])
        if state["loop"]["best"] > -math.inf:
            self._bring_best_model(os.path.dirname(os.path.abspath(folder)))
        self.accelerator.wait_for_everyone()
        if self.args.resume_from_checkpoint == LATEST and self.accelerator.is_main_process:
            self._discard_old()  # which a run that was killed while it saved has not
        logger.info(f"going on from {folder}")
        return state["loop"]

    @staticmethod
    def _newest_whole(found: list[str]) -> str:
        """The last of some step checkpoints that is not damaged; says which are. `ValueError` where all are."""
        damages = {}
        for folder in reversed(found):
            damage = damage_of(folder)
            if damage is None:
                return folder
            damages[folder] = damage
            logger.warning(f"{folder} is left out: {damage}")
        listed = "; ".join(f"{folder}: {damage}" for folder, damage in damages.items())
        raise ValueError(
            f"--resume_from_checkpoint {LATEST}: no step checkpoint is whole ({listed}); leave the flag out, and add "
            "--overwrite_output_dir, to start from the beginning"
        )

    def _bring_best_model(self, run_folder: str) -> None:
        """Copies the best model so far from the folder of the run that goes on, where that is another than this one's:
        later evaluations may not be better. `ValueError` where it is not there."""
        output_dir = self.args.output_dir
        if os.path.isdir(output_dir) and os.path.samefile(run_folder, output_dir):
            return
        names = [name for name in os.listdir(run_folder) if matches(name, (*WEIGHTS, *CODE, *PROCESSOR, RECORD))]
        if not any(matches(name, WEIGHTS) for name in names):
            raise ValueError(
                f"--resume_from_checkpoint: the best model of that run so far is not in {run_folder}, where it was "
                f"saved; put it there, or go on with --output_dir {run_folder}"
            )
        if self.accelerator.is_main_process:
            os.makedirs(output_dir, exist_ok=True)
            for name in names:
                shutil.copyfile(os.path.join(run_folder, name), os.path.join(output_dir, name))

    def _check(self, saved: dict, folder: str) -> None:
        before, now = saved["arguments"], json.loads(json.dumps(self.run["arguments"]))
        differing = sorted(
            name for name in before.keys() | now.keys() if name not in FREE and before.get(name) != now.get(name)
        )
        if differing:
            listed = ", ".join(f"--{name} was {before.get(name)} and is {now.get(name)}" for name in differing)
            raise ValueError(f"--resume_from_checkpoint {folder} is of a run with other arguments: {listed}")
        if saved["num_processes"] != self.run["num_processes"]:
            raise ValueError(
                f"--resume_from_checkpoint {folder} is of a run on {saved['num_processes']} process(es), this one has "
                f"{self.run['num_processes']}"
            )
        if saved.get("fsdp", False) != self.run["fsdp"]:
            had, has = ("with" if fsdp else "without" for fsdp in (not self.run["fsdp"], self.run["fsdp"]))
            raise ValueError(f"--resume_from_checkpoint {folder} is of a run {had} FSDP, this one is {has} it")
        if saved["training_rows"] != self.run["training_rows"]:
            raise ValueError(
                f"--resume_from_checkpoint {folder} is of a run on other training rows than {self.args.dataset_dir} "
                "has now"
            )
        if saved.get("teacher") != self.run["teacher"]:
            raise ValueError(
                f"--resume_from_checkpoint {folder} is of a run with another teacher than {self.args.teacher} is now"
            )


def _write(path: str, content) -> None:
    """Writes a file of torch's. `OSError` where it cannot be written."""
    with open(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own, of the archive that it could not end
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())  # a machine that goes down must not leave a name without its bytes


def _write_manifest(folder: str, values: dict[str, Any]) -> None:
    """Writes what a step checkpoint is of, with checksums of its files and of itself."""
    values = values | {"sha256": {name: file_sha256(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}}
    with open(os.path.join(folder, MANIFEST), "w", encoding="utf-8") as file:
        json.dump(values | {OF_MANIFEST: _manifest_sha256(values)}, file, indent=2)
    sync(Path(folder))


def _manifest_sha256(values: dict[str, Any]) -> str:
    return sha256(
        json.dumps({k: v for k, v in values.items() if k != OF_MANIFEST}, sort_keys=True).encode()
    ).hexdigest()


def damage_of(folder: str) -> str | None:
    """What is wrong with a step checkpoint; None where it is whole. Reads all of it."""
    path = os.path.join(folder, MANIFEST)
    if not os.path.isfile(path):
        return f"not a step checkpoint: it has no {MANIFEST}"
    try:
        values = read_json(path)
    except ValueError:
        return f"{MANIFEST} is damaged"
    if OF_MANIFEST in values and values[OF_MANIFEST] != _manifest_sha256(values):
        return f"{MANIFEST} is damaged: its SHA-256 is another than when it was saved"
    for name, sha in values.get("sha256", {}).items():  # those of older versions have none
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            return f"{name} is missing"
        if file_sha256(path) != sha:
            return f"{name} is damaged: its SHA-256 is another than when it was saved"
    return None


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
