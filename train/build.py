# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Processors, configurations and models from the recipes' arguments: new, around a PLM, or from a FLIP checkpoint."""

import dataclasses
import json
import logging

import torch
from transformers import AutoConfig, AutoTokenizer

from flip_ctr.configuration_flip import FlipConfig
from flip_ctr.data.schema import DatasetSchema
from flip_ctr.modeling_flip import FlipForCTR, FlipForPretraining
from flip_ctr.processing_flip import FlipProcessor
from flip_ctr.train.arguments import TrainArguments
from flip_ctr.train.lora import is_adapter, load_adapter, whole_checkpoint

logger = logging.getLogger("flip_ctr")

# position tables of these models also hold rows for the padding offset
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "mpnet", "longformer")
# arguments that shape the model; a checkpoint brings its own
SHAPE = ("id_tower", "id_tower_kwargs", "id_embedding_size", "id_hidden_dims", "text_pooling")
DROPOUTS = ("id_dropout", "id_embedding_dropout")


def max_positions(text_config) -> int | None:
    """Longest input of the PLM in tokens; None where it has no limit."""
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and text_config.model_type in OFFSET_POSITIONS:
        positions -= (text_config.pad_token_id or 0) + 1
    return positions


def new_processor(rows, schema: DatasetSchema, args: TrainArguments, plm: str | None) -> FlipProcessor:
    """A processor whose vocabularies come from the training rows; with the PLM's tokenizer where one is named."""
    settings = {"label": schema.label, "weight": schema.weight_column, "min_frequency": args.min_frequency,
                "hash_user_values": args.hash_user_values}  # fmt: skip
    if plm is None:
        return FlipProcessor.from_dataset(rows, schema.fields, **settings)
    limit = max_positions(AutoConfig.from_pretrained(plm))
    return FlipProcessor.from_dataset(rows, schema.fields, AutoTokenizer.from_pretrained(plm), max_length=limit, **settings)


def model_settings(args: TrainArguments, names) -> dict:
    """Those arguments that were given, as settings of `FlipConfig`."""
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "id_tower_kwargs" in settings:
        settings["id_tower_kwargs"] = json.loads(settings["id_tower_kwargs"])
    return settings


def new_config(processor: FlipProcessor, args: TrainArguments) -> FlipConfig:
    """The configuration of a new model: every given argument that is also a setting of [`FlipConfig`]."""
    names = {field.name for field in dataclasses.fields(args)} & {field.name for field in dataclasses.fields(FlipConfig)}
    return FlipConfig(fields=processor.fields, **model_settings(args, sorted(names)))


def load_checkpoint(args: TrainArguments, schema: DatasetSchema, **settings) -> tuple[FlipForCTR, FlipProcessor]:
    """A click model and its processor from a FLIP checkpoint, with those settings of its configuration changed.

    Raises:
        ValueError: the dataset's fields are not the checkpoint's; or a flag asks for another shape than the checkpoint has.
    """
    path = args.model_name_or_path
    processor, config = FlipProcessor.from_pretrained(path), FlipConfig.from_pretrained(path)
    check_fields(processor, schema, path)
    if args.hash_user_values and not processor.feature_extractor.hashed_fields:
        raise ValueError(f"--hash_user_values: the vocabulary of {path} holds the values themselves; pretrain with that flag")
    for name, value in model_settings(args, SHAPE).items():
        if value != getattr(config, name):
            raise ValueError(f"--{name} {value} does not fit {path}, which has {getattr(config, name)}; leave the flag out")
    settings |= model_settings(args, DROPOUTS)
    with whole_checkpoint(path, args.base_model_name_or_path) as folder:
        model = FlipForCTR.from_pretrained(folder, **settings, **loading_arguments(args))
    return model, processor.without_tokenizer() if model.config.strategy == "id" else processor


def load_click_model(name_or_path: str, base_model_name_or_path: str | None = None) -> tuple[FlipForCTR, FlipProcessor]:
    """A fine-tuned checkpoint, to score with: whole, or a LoRA adapter with its base. `ValueError` where it is not one."""
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != FlipConfig.model_type or FlipForCTR.__name__ not in (config.architectures or []):
        kind = ", ".join(config.architectures or [config.model_type])
        raise ValueError(f"{name_or_path} is a {kind}, not a fine-tuned click model; run `flip-ctr finetune` first")
    adapter = is_adapter(name_or_path)
    model = load_adapter(name_or_path, base_model_name_or_path) if adapter else FlipForCTR.from_pretrained(name_or_path)
    return model, FlipProcessor.from_pretrained(name_or_path)


def check_fields(processor: FlipProcessor, schema: DatasetSchema, path: str) -> None:
    """Raises `ValueError` where the dataset's fields are not those that the checkpoint was trained with."""
    def view(field):
        return field.name, field.type, field.sides

    have = [view(field) for field in processor.feature_extractor.all_fields]
    given = [view(field) for field in schema.fields]
    if have != given:
        theirs, ours = (", ".join(f"{n} ({t}, {'+'.join(s)})" for n, t, s in fields) for fields in (have, given))
        raise ValueError(f"the dataset's fields [{ours}] are not those of the checkpoint {path} [{theirs}]")


def loading_arguments(args: TrainArguments) -> dict:
    """What `from_pretrained` is given, for a PLM and for a checkpoint."""
    # float32 master weights: transformers 5 would take the checkpoint's dtype
    kwargs = {"dtype": torch.float32}
    return kwargs | ({"attn_implementation": args.attn_implementation} if args.attn_implementation else {})


def new_pretraining_model(processor: FlipProcessor, args: TrainArguments) -> FlipForPretraining:
    config = new_config(processor, args)
    return FlipForPretraining.from_text_pretrained(args.model_name_or_path, config, **loading_arguments(args))


def new_click_model(processor: FlipProcessor, args: TrainArguments) -> FlipForCTR:
    config = new_config(processor, args)
    if args.strategy == "id":
        return FlipForCTR(config)
    return FlipForCTR.from_text_pretrained(args.model_name_or_path, config, **loading_arguments(args))
