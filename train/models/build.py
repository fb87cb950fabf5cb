# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Processors, configurations and models from the recipes' arguments: new, around a PLM, or from a FLIP checkpoint."""

import dataclasses
import json
import logging

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.streaming import StreamedDataset
from flip_ctr.data.readers.click_rates import STATISTICS
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.configuration_flip import SETTINGS, FlipConfig, is_decoder
from flip_ctr.modeling_flip.feature_extraction_flip import FlipFeatureExtractor
from flip_ctr.modeling_flip.fields_flip import FlipField, history_field
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR, FlipForPretraining, FlipPreTrainedModel
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import PretrainArguments, TrainingOptions
from flip_ctr.train.models.lora import add_lora, is_adapter, load_adapter, plain, whole_checkpoint
from flip_ctr.train.models.warm_start import (
    ID_SHAPE,
    has_id_tower,
    id_model_config,
    ids_of,
    join_ids,
    set_sampling_rate,
    start_id_tower,
    take_ids,
)
from flip_ctr.train.option_groups import OWN_DROPOUT

logger = logging.getLogger("flip_ctr")

# position tables of these models also hold rows for the padding offset
OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "mpnet",
    "longformer",
)
# after the last layer, by the names of transformers' encoders
FINAL_NORMS = ("final_norm", "final_layer_norm", "norm", "ln", "ln_f", "emb_layer_norm_after")
DROPOUTS = ("id_dropout", "id_embedding_dropout")


def max_positions(text_config) -> int | None:
    """Longest input of the PLM in tokens; None where it has no limit."""
    positions = getattr(text_config, "max_position_embeddings", None)
    if positions is not None and text_config.model_type in OFFSET_POSITIONS:
        positions -= (text_config.pad_token_id or 0) + 1
    return positions


def new_processor(rows: SplitRows, schema: DatasetSchema, args: TrainingOptions, plm: str | None) -> FlipProcessor:
    """A processor whose vocabularies come from the training rows; with the PLM's tokenizer where one is named."""
    settings = {
        "min_frequency": args.min_frequency,
        "hash_user_values": args.hash_user_values,
        "prompts": args.prompts or "row",
    }
    tokenizer = None
    if plm is not None:
        if args.prompt_fields is not None:
            schema = dataclasses.replace(schema, fields=with_prompt_fields(schema.fields, args.prompt_fields))
        tokenizer = AutoTokenizer.from_pretrained(plm)
        settings["max_length"] = max_positions(AutoConfig.from_pretrained(plm))
    processor = FlipProcessor.from_dataset(rows, schema, tokenizer, **settings)
    if args.id_model is not None:
        extractor = ids_of(args.id_model)
        check_vocabulary(args, extractor, args.id_model)
        take_ids(processor, extractor, args.id_model)
        grow_vocabulary(processor, rows, args)
    elif args.grow:
        raise ValueError(
            "--grow adds to the vocabulary of a FLIP checkpoint, and this run starts with none; a new model knows all "
            "values of the training rows"
        )
    return processor


def check_vocabulary(args: TrainingOptions, extractor: FlipFeatureExtractor, path: str) -> None:
    """Raises `ValueError` where an argument asks for another vocabulary than the checkpoint brings: for a frequency and
    it does not grow, or for hashes and it holds the values themselves."""
    if not args.grow:
        args.no_effect(f"where {path} brings its own vocabulary", min_frequency=1)
    if args.hash_user_values and not extractor.hashed_fields:
        raise ValueError(
            f"--hash_user_values: the vocabulary of {path} holds the values themselves; pretrain with that flag"
        )


def grow_vocabulary(processor: FlipProcessor, rows: SplitRows, args: TrainingOptions) -> None:
    """With `--grow`: ids for the values of the training rows that have none; says how many."""
    if args.grow:
        added = processor.grow(rows, args.min_frequency)
        new = ", ".join(f"{number:,} of {name}" for name, number in added.items() if number)
        logger.info(f"new values that got ids: {new or 'none'}")


def with_prompt_fields(fields: list[FlipField], names: list[str]) -> list[FlipField]:
    """The fields with just the named ones in the prompt, in the order of the schema; a field that is then on no side is
    left out.

    Raises:
        ValueError: there is no field of a name.
    """
    unknown = [name for name in names if name not in [field.name for field in fields]]
    if unknown:
        raise ValueError(
            f"--prompt_fields {unknown[0]}: the dataset's fields are {', '.join(field.name for field in fields)}"
        )
    sides = [
        field.sides
        if field.is_history
        else tuple(side for side, on in (("id", field.on_id_side), ("text", field.name in names)) if on)
        for field in fields
    ]
    return [dataclasses.replace(field, sides=where) for field, where in zip(fields, sides) if where]


def without_unread_history(model: FlipForCTR, processor: FlipProcessor) -> FlipProcessor:
    """The processor without the history where no side of the model reads it: rows to score then need none."""
    flip, config = model.base_model, model.config
    reads = any(part is not None and part.history is not None for part in (flip.id_tower, flip.text_interaction))
    if reads or processor.history_field is None:
        return processor
    logger.warning(
        f"strategy {config.strategy} with prompts {config.prompts!r} reads no histories (the text side does with "
        "--prompts entity): those of the dataset have no effect"
    )
    config.fields = [field for field in config.fields if field["kind"] != "history"]
    return processor.without_history()


def model_settings(args: TrainingOptions, names) -> dict:
    """Those arguments that were given, as settings of `FlipConfig`."""
    settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "id_tower_kwargs" in settings:
        settings["id_tower_kwargs"] = json.loads(settings["id_tower_kwargs"])
    return settings


def new_config(processor: FlipProcessor, args: TrainingOptions) -> FlipConfig:
    """The configuration of a new model: every given argument that is also a setting of [`FlipConfig`]."""
    names = ({field.name for field in dataclasses.fields(args)} & set(SETTINGS)) - {"calibration"}  # fitted later
    return FlipConfig(fields=processor.fields, **model_settings(args, sorted(names)) | new_tower_shape(args))


def new_tower_shape(args: TrainingOptions) -> dict:
    """The shape of an ID tower that the model does not have yet: that of `--id_model` where one is named, and otherwise
    what was asked for."""
    if args.id_model is None:
        others = {} if args.id_tower is None else {"id_tower_kwargs": {}}  # those of another tower would not fit
        return others | model_settings(args, ID_SHAPE)
    config = id_model_config(args.id_model)
    check_shape(args, config, ID_SHAPE, args.id_model)
    return {name: getattr(config, name) for name in ID_SHAPE}


def check_shape(args: TrainingOptions, config: FlipConfig, names, path: str) -> None:
    """Raises `ValueError` where a flag asks for another shape than the checkpoint has."""
    for name, value in model_settings(args, names).items():
        if value != getattr(config, name):
            raise ValueError(
                f"--{name} {value} does not fit {path}, which has {getattr(config, name)}; leave the flag out"
            )


def load_checkpoint(
    args: TrainingOptions, schema: DatasetSchema, rows: SplitRows, **settings
) -> tuple[FlipForCTR, FlipProcessor]:
    """A click model and its processor from a FLIP checkpoint, with those settings of its configuration changed, and
    with `--grow` the new values of the training rows in its vocabulary.

    Raises:
        ValueError: the dataset's fields are not the checkpoint's; or a flag asks for another shape than the checkpoint
            has.
    """
    path = args.model_name_or_path
    processor, config = FlipProcessor.from_pretrained(path), FlipConfig.from_pretrained(path)
    processor.check_model(config, path)
    if (config.strategy == "frozen") != (settings["strategy"] == "frozen"):
        raise ValueError(
            f"the ID tower of {path} is of another form than that of --strategy {settings['strategy']}: with frozen "
            "the text is one of its fields; frozen starts from a bare PLM (or goes on from frozen)"
        )
    if settings["strategy"] == "id" and not has_id_tower(config):
        raise ValueError(f"--strategy id: {path} has no ID tower; leave --model_name_or_path out for a new one")
    if settings["strategy"] in ("plm", "joint") and config.text_config is None:
        raise ValueError(
            f"--strategy {settings['strategy']} needs a PLM, and {path} has none; name a PLM with --model_name_or_path "
            "and this checkpoint with --id_model"
        )
    args.check_id_tower(new=not has_id_tower(config) and settings["strategy"] == "joint")
    if args.prompt_fields is not None:
        raise ValueError(f"--prompt_fields: the prompts of {path} have its own fields; leave the flag out")
    check_fields(processor, schema, path)
    if STATISTICS in schema.reading:  # those of these rows, whose click rate is another
        extractor = processor.feature_extractor
        extractor.reading = {**extractor.reading, STATISTICS: schema.reading[STATISTICS]}
    check_vocabulary(args, processor.feature_extractor, path)
    check_shape(args, config, ("text_pooling", "prompts"), path)
    if settings["strategy"] == "joint" and not has_id_tower(config):
        settings |= new_tower_shape(args)
    else:
        check_shape(args, config, ID_SHAPE, path)
    settings |= model_settings(args, DROPOUTS)
    if config.calibration is not None:
        logger.warning(
            f"the calibration of {path} is left out, as it is of the weights that are there; --calibration "
            f"{config.calibration['kind']} fits one to the new ones"
        )
    settings["calibration"] = None
    with whole_checkpoint(path, args.base_model_name_or_path) as folder:
        model = FlipForCTR.from_pretrained(folder, **settings, **loading_arguments(args))
    rate = config.negative_sampling_rate if args.negative_sampling_rate is None else args.negative_sampling_rate
    if rate != config.negative_sampling_rate:
        logger.info(
            f"{path} was trained on {config.negative_sampling_rate:g} of the non-clicks, this run on {rate:g} "
            "(--negative_sampling_rate): its click layers start from the same probabilities"
        )
    set_sampling_rate(model, rate)
    if args.id_model is not None:
        join_ids(processor.feature_extractor, ids_of(args.id_model), args.id_model)
    grow_vocabulary(processor, rows, args)
    model.grow(processor.fields)
    return model, processor.without_tokenizer() if model.config.strategy == "id" else processor


def check_model(flag: str, name_or_path: str) -> None:
    """Raises `OSError` that names the flag where there is no model of that name or path."""
    try:
        AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:  # (a path that is no name of a repository is a ValueError)
        raise OSError(
            f"--{flag} {name_or_path}: no model folder, and none that could be read from the Hub "
            f"({str(error).splitlines()[0]})"
        ) from error


def check_mlm(args: PretrainArguments) -> None:
    """Switches MLM off where the PLM is a decoder, which has no masked language model.

    Raises:
        ValueError: MLM was asked for.
    """
    if args.model_name_or_path is None or args.mlm_weight == 0:
        return
    text_config = AutoConfig.from_pretrained(args.model_name_or_path)
    if not is_decoder(text_config):
        return
    kind = f"a decoder ({text_config.model_type}), which is no masked language model"
    if "mlm_weight" in args.given:
        raise ValueError(
            f"--mlm_weight {args.mlm_weight}: {args.model_name_or_path} is {kind}; leave the flag out, or name an "
            "encoder (BERT, RoBERTa, DeBERTa, ModernBERT, ...)"
        )
    logger.info(f"the PLM is {kind}: pretraining goes without MLM (--mlm_weight 0)")
    args.change(mlm_weight=0.0)


def load_click_model(
    name_or_path: str, base_model_name_or_path: str | None = None, flag: str = "model_name_or_path"
) -> tuple[FlipForCTR, FlipProcessor]:
    """A fine-tuned checkpoint, to score with: whole, or a LoRA adapter with its base. `ValueError` where it is not one,
    `OSError` where there is none."""
    check_model(flag, name_or_path)
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != FlipConfig.model_type or FlipForCTR.__name__ not in (config.architectures or []):
        kind = ", ".join(config.architectures or [config.model_type])
        raise ValueError(
            f"--{flag} {name_or_path} is a {kind}, not a fine-tuned click model; run `flip-ctr finetune` first"
        )
    if is_adapter(name_or_path):
        model = load_adapter(name_or_path, base_model_name_or_path)
    else:
        model = FlipForCTR.from_pretrained(name_or_path)
    processor = FlipProcessor.from_pretrained(name_or_path)
    processor.check_model(model.config, name_or_path)
    return model, processor


def check_fields(processor: FlipProcessor, schema: DatasetSchema, path: str) -> None:
    """Raises `ValueError` where the dataset's fields are not those that the checkpoint was trained with; which of them
    its prompts have is the checkpoint's own choice."""

    def view(field):
        # of a text that holds several values the separator decides what they are
        return (
            field.name,
            field.type,
            field.kind + (f" by {field.separator!r}" if field.is_multi_valued else ""),
            field.on_id_side or field.is_history,
        )

    fields = processor.feature_extractor.all_fields
    have = [view(field) for field in fields]
    given = [view(field) for field in schema.fields if field.on_id_side or field.name in [one.name for one in fields]]
    if processor.history_field is None and history_field(schema.fields) is not None:
        logger.warning(f"the checkpoint {path} reads no histories: those of the dataset have no effect")
    if have != given:
        theirs, ours = (
            ", ".join(f"{n} ({t}, {k}{', id' * on_id})" for n, t, k, on_id in fields) for fields in (have, given)
        )
        raise ValueError(f"the dataset's fields [{ours}] are not those of the checkpoint {path} [{theirs}]")
    prompts = [[field.name for field in some if field.on_text_side] for some in (fields, schema.fields)]
    if not processor.id_only and prompts[0] != prompts[1]:
        logger.info(
            f"prompts have the checkpoint's fields {', '.join(prompts[0])}; the dataset's schema puts "
            f"{', '.join(prompts[1])} there"
        )


def loading_arguments(args: TrainingOptions) -> dict:
    """What `from_pretrained` is given, for a PLM and for a checkpoint."""
    # float32 master weights: transformers 5 would take the checkpoint's dtype
    kwargs = {"dtype": torch.float32}
    return kwargs | ({"attn_implementation": args.attn_implementation} if args.attn_implementation else {})


def new_pretraining_model(
    processor: FlipProcessor, args: TrainingOptions, train_set: EncodedDataset | StreamedDataset
) -> FlipForPretraining:
    """A new model, or one around the PLM, that knows how often each feature occurs in the training rows, and which
    tokens where MLM's softmax is over those."""
    config = new_config(processor, args)
    if args.model_name_or_path is None:
        model = FlipForPretraining(config)
    else:
        model = FlipForPretraining.from_text_pretrained(args.model_name_or_path, config, **loading_arguments(args))
    model.set_feature_counts(torch.from_numpy(train_set.feature_counts()))
    if args.mlm_vocabulary == "dataset":
        tokens = torch.from_numpy(train_set.token_ids()).long()
        model.set_mlm_vocabulary(tokens)
        logger.info(
            f"MLM tells {len(tokens):,} tokens apart, those of the training prompts; the PLM has "
            f"{model.config.text_config.vocab_size:,}"
        )
    return model


def new_click_model(processor: FlipProcessor, args: TrainingOptions) -> FlipForCTR:
    config = new_config(processor, args)
    if args.strategy == "id":
        return FlipForCTR(config)
    return FlipForCTR.from_text_pretrained(args.model_name_or_path, config, **loading_arguments(args))


def ready_to_train(model: FlipPreTrainedModel, processor: FlipProcessor, args: TrainingOptions) -> nn.Module:
    """The model with the ID tower of `--id_model` where one is named, which stays as it is with `--id_learning_rate 0`,
    and with what the arguments ask of its PLM: dropout, LoRA, frozen layers, gradient checkpointing, compilation; says
    what trains.

    Raises:
        ValueError: an argument asks for something of a PLM, and the model has none, or one without it.
    """
    if args.id_model is not None:
        start_id_tower(model, processor, args.id_model)
    if args.plm_dropout not in (None, OWN_DROPOUT) and model.base_model.text_encoder is not None:
        set_dropout(model.base_model.text_encoder, args.plm_dropout)  # LoRA has a rate of its own
    if args.use_lora:
        model = add_lora(model, args)
    text_encoder = plain(model).base_model.text_encoder
    switches = ("freeze_plm", "freeze_plm_layers", "gradient_checkpointing", "torch_compile")
    asked = [name for name in switches if getattr(args, name)] + (
        ["plm_dropout"] if args.plm_dropout is not None else []
    )
    if asked and text_encoder is None:
        raise ValueError(f"--{asked[0]} is of the PLM, and an ID-only model has none; leave the flag out")
    if plain(model).config.prompts == "entity":
        if args.mixed_precision == "fp16":
            raise ValueError("--mixed_precision fp16 does not run with entity prompts; choose bf16 or no")
    elif args.plm_every > 1:
        raise ValueError(
            f"--plm_every {args.plm_every} is for models with entity prompts (--prompts entity), and this one has one "
            "prompt a row"
        )
    if args.freeze_plm:
        text_encoder.requires_grad_(False)
    if args.freeze_plm_layers:
        freeze_layers(text_encoder, args.freeze_plm_layers)
    if args.id_learning_rate == 0:
        lock_id_tower(plain(model))
    if args.gradient_checkpointing:
        # older versions of transformers know it by its former name only
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if args.torch_compile:
        # the PLM alone: it is nearly all of the work, and batches differ in length
        text_encoder.compile(dynamic=True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(f"{plain(model).num_parameters():,} parameters, {trained:,} of them trained")
    return model


def lock_id_tower(model: FlipPreTrainedModel) -> None:
    """Leaves the ID tower as it is, and the weights of single features that a click model such as DeepFM has beside
    it."""
    for part in (model.base_model.id_tower, getattr(model, "first_order", None)):
        if part is not None:
            part.requires_grad_(False)


def set_dropout(text_encoder: PreTrainedModel, rate: float) -> None:
    """Gives all dropouts of a PLM that rate: its modules, the numbers that its attention reads, and its configuration,
    which is saved."""

    def is_rate(name: str, value) -> bool:
        named = "dropout" in name or name.endswith("_pdrop")  # GPT-2's name for it
        return named and "classifier" not in name and isinstance(value, int | float) and not isinstance(value, bool)

    for module in list(text_encoder.modules()):
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, child in module.named_children():
            if "drop" in name and isinstance(child, nn.Identity):  # ModernBERT's, of a configuration that had 0
                setattr(module, name, nn.Dropout(rate))
        for holder in (module, *filter(None, [getattr(module, "config", None)])):
            for name in [name for name, value in vars(holder).items() if is_rate(name, value)]:
                setattr(holder, name, rate)


def freeze_layers(text_encoder: PreTrainedModel, number: int) -> None:
    """Trains only the PLM's layers after the first `number`, and a norm after the last; nothing of it where that is
    their number.

    Raises:
        ValueError: the PLM has fewer layers, or they cannot be told (ALBERT has one that it repeats).
    """
    have = text_encoder.config.num_hidden_layers
    lists = [module for module in text_encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == have]
    if len(lists) != 1 or number > have:
        found = f"{have} layers" if len(lists) == 1 else "no list of its layers"
        raise ValueError(f"--freeze_plm_layers {number}: {type(text_encoder).__name__} has {found}")
    text_encoder.requires_grad_(False)
    if number < have:
        lists[0][number:].requires_grad_(True)
        encoder = next(module for module in text_encoder.modules() if lists[0] in module.children())
        named = [*text_encoder.named_children(), *encoder.named_children()]
        # `LayerNorm` inside an encoder is DeBERTa's, of what all layers share
        for child in [child for name, child in named if name in FINAL_NORMS] + [
            getattr(text_encoder, "LayerNorm", None)
        ]:
            if child is not None:
                child.requires_grad_(True)
