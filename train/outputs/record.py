# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The record of a checkpoint's training, `training_args.json`: how it came about, on which data, and the same of what
it started from."""

import json
import os

import accelerate
import torch
import transformers
from transformers.utils import cached_file

import flip_ctr
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.models.lora import is_flip_checkpoint
from flip_ctr.train.option_groups import OBJECTIVES
from flip_ctr.train.options import public_name
from flip_ctr.train.outputs.run_log import logger

RECORD = "training_args.json"
# what a training takes from other checkpoints: the key of their record in its own -> the options that name them
SOURCES = {
    "started_from": ("model_name_or_path", "plm_model"),
    "id_tower_from": ("id_model",),
    "teacher": ("teacher",),
}

UNKNOWN: dict = {}  # in place of a pretraining's arguments: there may have been one


def read_record(name_or_path: str | None) -> dict | None:
    """The training record of a checkpoint, a folder or hub id; None where it has none, or a file of that name that
    another library wrote, as PLMs come with."""
    if name_or_path is None:
        return None
    path = cached_file(name_or_path, RECORD, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        record = json.load(file)
    return record if isinstance(record, dict) and {"recipe", "arguments"} <= record.keys() else None


def training_record(args: TrainingOptions, schema: DatasetSchema, source: str | None = None) -> dict:
    """How a checkpoint came about: recipe, versions, arguments (no paths, no token), data, and the same of what it
    started from, `--model_name_or_path` or another source, and of what `--id_model` and `--teacher` name. Warns where
    one of these was trained on another split."""
    source, published = source or args.model_name_or_path, args.published()
    before = read_record(source)
    hub_id = source if source is not None and not os.path.exists(source) else None
    is_plm = source is not None and not is_flip_checkpoint(source)
    record = {
        "recipe": args.recipe,
        "versions": {one.__name__: one.__version__ for one in (flip_ctr, transformers, accelerate, torch)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "arguments": published,
        "changed": args.changed(),
        "data": schema.placing,
        # the first model on the Hub that all this started from, where there is one
        "base_model": (before or {}).get("base_model") or hub_id,
        "plm": public_name(source) if is_plm else (before or {}).get("plm"),
        "started_from": before,
        "id_tower_from": read_record(getattr(args, "id_model", None)),
        "teacher": read_record(getattr(args, "teacher", None)),
    }
    for told in other_splits(record):
        logger.warning(told)
    return record


# --- by which pretraining


def pretraining_arguments(record: dict | None) -> dict | None:
    """The arguments of the pretraining that a checkpoint comes from; None where there was none."""
    while record and record["recipe"] != "pretrain":
        record = record["started_from"]
    return record["arguments"] if record else None


def tower_pretraining(record: dict | None) -> dict | None:
    """The arguments of the pretraining that shaped a checkpoint's ID tower; None where there was none."""
    arguments = record["arguments"] if record else {}
    if arguments.get("id_model") and not record.get("id_tower_from"):
        return UNKNOWN  # a checkpoint without a record
    if record and record["recipe"] != "pretrain":
        before = record.get("id_tower_from") or record["started_from"]
        return (
            None if before and before["arguments"].get("strategy") == "plm" else tower_pretraining(before)
        )  # (which has no ID tower)
    if arguments.get("id_learning_rate") == 0:  # which left the tower as it was
        return tower_pretraining(record.get("id_tower_from"))
    return arguments if record and objectives_of(arguments).pretrains_id_tower else None


def objectives_of(pretraining: dict) -> FlipConfig:
    """A configuration that says what the objectives of a pretraining saw (records of before lack some settings)."""
    return FlipConfig(**{name: pretraining[name] for name in OBJECTIVES if name in pretraining})


# --- on which split


def other_splits(record: dict, data: dict | None = None) -> list[str]:
    """What a training took from checkpoints of another split than its own, or than `data`; see [`other_split`]."""
    data, told = data or record.get("data"), []
    for key, options in SOURCES.items():
        if before := record.get(key):
            option, name = next(((one, found) for one in options if (found := record["arguments"].get(one))), (key, ""))
            told += [other_split(f"--{option} {name}", before.get("data"), data), *other_splits(before, data)]
    return list(dict.fromkeys(filter(None, told)))  # two towers may come from one pretraining


def other_split(name: str, theirs: dict | None, ours: dict | None) -> str | None:
    """Says that a checkpoint was trained on another split than that of `ours`; None where it was not, or where nobody
    knows, as of rows of a frame."""
    if not theirs or not ours or theirs == ours:
        return None
    differ = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    parts = ", ".join(f"{key} {theirs.get(key)!r} there and {ours.get(key)!r} here" for key in differ)
    return (
        f"{name} was trained on another split than this dataset's ({parts}): it may know rows of validation and test, "
        "whose results then look better than they are"
    )


def warn_of_other_split(name_or_path: str, schema: DatasetSchema) -> None:
    """Warns where a checkpoint that is to score a dataset's rows was trained on another split of them."""
    if told := other_split(name_or_path, (read_record(name_or_path) or {}).get("data"), schema.placing):
        logger.warning(told)
