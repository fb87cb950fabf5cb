# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint folder: which files are its own, and how they are written."""

import os
import shutil
import tempfile
from fnmatch import fnmatch

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from flip_ctr.modeling_flip.configuration_flip import CUSTOM_ENTRY
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import TrainArguments
from flip_ctr.train.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, merge, restore_adapter, save_adapter
from flip_ctr.train.models.whole_weights import whole_model
from flip_ctr.train.outputs.card import CARD, RECORD
from flip_ctr.train.outputs.plots import CURVES_FILE, RELIABILITY_FILE
from flip_ctr.train.outputs.results import HISTORY_FILE, RESULTS_FILE, write_json

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
PARTIAL = (
    ".saving-"  # what is being written, a checkpoint or a step checkpoint; the next run removes what a killed one left
)


def matches(name: str, patterns) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def clear_reports(folder: str) -> None:
    """Removes what a former run says of its checkpoint, and what a killed one left half-written; the checkpoint itself
    stays until another takes its place."""
    for name in os.listdir(folder):
        if matches(name, REPORTS):
            os.remove(os.path.join(folder, name))
        elif name.startswith(PARTIAL):
            shutil.rmtree(os.path.join(folder, name))


def save(
    accelerator: Accelerator, model: nn.Module, processor: FlipProcessor, args: TrainArguments, record: dict
) -> None:
    """Saves model, processor and training record to `--output_dir` from the main process; a LoRA model as an adapter.
    All processes must call it.

    Everything is written beside first and then put in place, so that no file is ever half-written; files of another
    checkpoint that lay there go.

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
    with tempfile.TemporaryDirectory(dir=args.output_dir, prefix=PARTIAL) as partial:
        if isinstance(model, PeftModel):
            save_adapter(model, partial, args.model_name_or_path)
        else:
            model.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_json(accelerator, partial, RECORD, record)
        new = os.listdir(partial)
        for name in new:
            os.replace(os.path.join(partial, name), os.path.join(args.output_dir, name))
        for name in os.listdir(args.output_dir):
            if matches(name, (*WEIGHTS, *CODE, *PROCESSOR)) and name not in new:
                os.remove(os.path.join(args.output_dir, name))


def best_model(
    accelerator: Accelerator, model: nn.Module, processor: FlipProcessor, args: TrainArguments, record: dict
) -> nn.Module:
    """The best click model of a run, as its checkpoint gives it; that of a LoRA run is merged, unless only the adapter
    is kept."""
    accelerator.wait_for_everyone()
    # a run that goes on may have been killed after it had merged
    if isinstance(model, PeftModel) and os.path.isfile(os.path.join(args.output_dir, ADAPTER_WEIGHTS)):
        restore_adapter(model, args.output_dir)
        if args.lora_adapter_only:
            return model
        save(accelerator, merge(model), processor, args, record)
    return FlipForCTR.from_pretrained(args.output_dir, dtype=torch.float32).to(accelerator.device)
