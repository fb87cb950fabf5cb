# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint folder: which files are its own, and how they are written."""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers.utils import CONFIG_NAME

from flip_ctr.data.outputs import remove, sync, sync_names
from flip_ctr.modeling_flip.configuration_flip import CUSTOM_ENTRY
from flip_ctr.modeling_flip.fingerprint_flip import SAVED
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.new_files_flip import PARTIAL
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, merge, plain, restore_adapter, save_adapter
from flip_ctr.train.models.whole_weights import is_sharded, whole_model
from flip_ctr.train.outputs.card import CARD
from flip_ctr.train.outputs.plots import CURVES_FILE, RELIABILITY_FILE
from flip_ctr.train.outputs.record import RECORD
from flip_ctr.train.outputs.results import HISTORY_FILE, RESULTS_FILE, write_json
from flip_ctr.train.outputs.run_log import logger

WEIGHTS = ("config.json", "model*.safetensors", "model.safetensors.index.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS)
CODE = ("*_flip.py", "id_tower*.py", f"{CUSTOM_ENTRY}.py")
PROCESSOR = (
    "processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "vocabularies.txt",
)

REPORTS = (CARD, RESULTS_FILE, HISTORY_FILE, CURVES_FILE, RELIABILITY_FILE)


def matches(name: str, patterns) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def clear_reports(folder: str) -> None:
    """Removes what a former run says of its checkpoint; the checkpoint itself stays until another takes its place."""
    for name in os.listdir(folder):
        if matches(name, REPORTS):
            os.remove(os.path.join(folder, name))


def clear_leftovers(folder: str) -> None:
    """Finishes what a killed run was putting in place, removes what it left half-written, and says so. Who calls it has
    claimed the folder."""
    for name in sorted(os.listdir(folder)):
        if name.startswith(PARTIAL):
            remove(Path(folder, name))
            logger.warning(f"removed {os.path.join(folder, name)}, which a killed run left")
    if os.path.isdir(os.path.join(folder, SAVED)):
        place_saved(folder)
        logger.warning(f"{folder}: finished what a killed run had begun, putting its whole checkpoint in its place")


def save(
    accelerator: Accelerator, model: nn.Module, processor: FlipProcessor, args: TrainingOptions, record: dict
) -> None:
    """Saves model, processor and training record to `--output_dir` from the main process; a LoRA model as an adapter.
    All processes must call it.

    Everything is written beside first and then put in place, so that no file is ever half-written; files of another
    checkpoint that lay there go. Where a run is killed on the way, what lies there is the old checkpoint, the new one,
    or refused when it is loaded; the new one then lies whole in `.saved`.

    Raises:
        OSError: it cannot be written; what lay there stays.
    """
    accelerator.wait_for_everyone()
    model = whole_model(accelerator, model)
    if accelerator.is_main_process:
        try:
            _save(accelerator, model, processor, args, record)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(
                f"the checkpoint could not be saved in {args.output_dir}: {reason}. What lay there is as it was"
            ) from error
    accelerator.wait_for_everyone()


def _save(accelerator, model, processor, args, record) -> None:
    with new_checkpoint(args.output_dir) as new:
        plain(model).config.fingerprint = processor.fingerprint  # both may have changed since they were made
        if isinstance(model, PeftModel):
            save_adapter(model, new, args.model_name_or_path)
        else:
            model.save_pretrained(new)
        processor.save_pretrained(new)
        write_json(accelerator, new, RECORD, record)


@contextmanager
def new_checkpoint(folder: str) -> Iterator[str]:
    """A folder for the files of a whole checkpoint, which are put in place when all are written."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL) as partial:
        new = os.path.join(partial, "new")
        os.mkdir(new)
        yield new
        sync(Path(new))
        if os.path.isdir(os.path.join(folder, SAVED)):  # an earlier save failed on its last step
            place_saved(folder)
        os.rename(new, os.path.join(folder, SAVED))
    place_saved(folder)


def link(source: str, target: str) -> None:
    """Gives a file a second name, or copies it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def place_saved(folder: str) -> None:
    """Gives the files of a whole checkpoint in `.saved` their places, where they are not the same already; those of
    another checkpoint go. `config.json` comes last: its checksums are of the files that are there by then."""
    saved = os.path.join(folder, SAVED)
    new = sorted(os.listdir(saved), key=lambda name: (name == CONFIG_NAME, name))
    for name in new:
        source, target = os.path.join(saved, name), os.path.join(folder, name)
        if os.path.isfile(target) and filecmp.cmp(source, target, shallow=False):
            continue
        beside = os.path.join(folder, f"{PARTIAL}{name}")
        Path(beside).unlink(missing_ok=True)
        link(source, beside)
        os.replace(beside, target)
    for name in os.listdir(folder):
        if matches(name, (*WEIGHTS, *CODE, *PROCESSOR)) and name not in new:
            os.remove(os.path.join(folder, name))
    sync_names(Path(folder))
    placed = os.path.join(folder, f"{PARTIAL}placed")
    os.rename(saved, placed)  # half of it must not be taken for a checkpoint
    shutil.rmtree(placed)


def best_model(
    accelerator: Accelerator, model: nn.Module, processor: FlipProcessor, args: TrainingOptions, record: dict
) -> nn.Module:
    """The best click model of a run, as its checkpoint gives it; that of a LoRA run is merged, unless only the adapter
    is kept. From here on Accelerate casts nothing: what this model scores is what it scores elsewhere."""
    accelerator.wait_for_everyone()
    accelerator.autocast_handler = AutocastKwargs(enabled=False)
    # a run that goes on may have been killed after it had merged
    if isinstance(model, PeftModel) and os.path.isfile(os.path.join(args.output_dir, ADAPTER_WEIGHTS)):
        restore_adapter(model, args.output_dir)
        if args.lora_adapter_only:
            return model if is_sharded(model) else accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        save(accelerator, merge(model), processor, args, record)
    return FlipForCTR.from_pretrained(args.output_dir, dtype=torch.float32).to(accelerator.device)
