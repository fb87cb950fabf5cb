# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the recipes: dataclasses, read from flags, a YAML file (`--config`) and a preset; flags win."""

import argparse
import dataclasses
import difflib
import json
import os
import sys
import textwrap
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser, SchedulerType

from flip_ctr.modeling_flip.configuration_flip import FlipConfig

Arguments = TypeVar("Arguments")

OWN_DROPOUT = -1.0  # as --plm_dropout: the rates that the PLM has
LORA_LEARNING_RATE = 1e-3  # low-rank updates learn too slowly at the rate of whole weights
# Optimizers of the feature tables, and what validation preferred with them on ml-1m where it differs from the dense
# one.
EMBEDDING_OPTIMIZERS = {"dense": {}, "rowwise_adagrad": {"embedding_learning_rate": 0.3}, "lazy_adam": {}}

# Arguments that say where files lie, are secret, or make no difference to the result: never written into a checkpoint,
# a card or a
# tracker.
PRIVATE = (
    "checkpointing_steps",
    "checkpoints_total_limit",
    "resume_from_checkpoint",
    "dataset_dir",
    "output_dir",
    "overwrite_output_dir",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_token",
    "hub_pretraining_heads",
    "report_to",
    "custom_code",
)

# arguments of pretraining, and settings of FlipConfig, that say what its objectives see
OBJECTIVES = ("mlm_weight", "mtm_weight", "icl_weight", "mlm_id_dropout", "mtm_text_dropout")

# arguments that name a checkpoint: what is published of a local one is its folder's own name
MODELS = ("model_name_or_path", "base_model_name_or_path", "id_model")

# What the paper and its release use where the defaults here differ, in any recipe that has the option; what differs by
# recipe or
# strategy stands in `recipe_defaults` of the recipe's arguments.
PRESETS = {
    "paper": {
        "ids_in_prompt": True,
        "id_initializer_range": 1e-4,
        "mtm_noise": "global",
        "icl_similarity": "dot",
        "icl_temperature": 0.7,
        "fusion": "raw",
        "text_mask_ratio": 0.15,
        "id_mask_ratio": 0.15,
        "mask_unit": "field",
        "unk_rate": 0.0,
        "weight_decay": 1e-3,
        "lr_scheduler_type": "cosine",
    }
}


CUSTOM_CODE = (
    "Python files or modules to import first, which register what is yours: my_towers.py for an ID tower of your own"
)


def option(default, help: str, **metadata):
    """A dataclass field with a help text; a list default is copied."""
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str):
    """A dataclass field without a default: the flag must be given."""
    return field(metadata={"help": help})


def listed(defaults: dict[str, dict]) -> str:
    """Defaults by case, a line for each, for `--help`."""
    return "\n".join(
        f"  {case}: {', '.join(f'{name} {value}' for name, value in values.items())}"
        for case, values in defaults.items()
    )


class HelpFormatter(argparse.HelpFormatter):
    """Says an option's default where it has one, and that it is required where it is."""

    def _get_help_string(self, action):
        if action.required:
            return f"{action.help} (required)"
        shown = (
            action.default is not None
            and action.default is not argparse.SUPPRESS
            and "%(default)" not in (action.help or "")
        )
        return f"{action.help} (default: %(default)s)" if shown else action.help

    def _fill_text(self, text, width, indent):
        """Wraps each line by itself; a list stays one."""
        return "\n".join(
            textwrap.fill(
                line, width, initial_indent=indent, subsequent_indent=indent + ("    " if line[:1] == " " else "")
            )
            for line in text.splitlines()
        )


class RecipeParser(HfArgumentParser):
    """Says what is wrong in one line, without all options before it, and which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        unknown = (
            message.removeprefix("unrecognized arguments: ").split()[0]
            if message.startswith("unrecognized arguments: ")
            else ""
        )
        hint = f"; did you mean {near}?" if (near := self.nearest(unknown)) else ""
        self.exit(2, f"{self.prog}: error: {message}{hint} ({self.prog} --help lists the options)\n")

    def nearest(self, option: str) -> str | None:
        """The option whose name is like the given one, or has it as a part."""
        names = [
            name
            for action in self._actions
            for name in action.option_strings
            if name.startswith("--") and "-" not in name[2:]
        ]
        word = option.lstrip("-").split("=")[0].replace("-", "_")
        parts = [name for name in names if len(word) > 2 and f"_{word}_" in f"_{name[2:]}_"]
        return next(iter(parts or (difflib.get_close_matches(f"--{word}", names, n=1) if word else [])), None)


def preset_settings(arguments: type, preset: str) -> dict:
    """What a preset sets of a dataclass's options. `ValueError` where there is no such preset."""
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    names = {field.name for field in dataclasses.fields(arguments)}
    return {name: value for name, value in PRESETS[preset].items() if name in names}


def with_preset(arguments: type[Arguments], preset: str, **options) -> Arguments:
    """A recipe's arguments with the settings of a preset, and other options, as `--preset NAME` and flags give them;
    options win.

    Raises:
        ValueError: no such preset, or an option does not fit.
    """
    return arguments(**preset_settings(arguments, preset) | options, preset=preset)


def parse_arguments(
    arguments: type[Arguments],
    argv: list[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    epilog: str | None = None,
) -> Arguments:
    """Reads a dataclass from flags over `--config FILE.yaml` over `--preset NAME` over the defaults.

    Exits with a message that names the flag, key or file where a value is wrong or a key unknown.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    hints = get_type_hints(arguments)  # (the parser changes the types of the fields themselves)
    types = {field.name: hints[field.name] for field in dataclasses.fields(arguments)}
    names = set(types)
    if "preset" in names:
        settings = {preset: preset_settings(arguments, preset) for preset in PRESETS}
        epilog = f"Settings of --preset:\n{listed(settings)}\n{epilog or ''}"
    parser = RecipeParser(
        arguments, prog=prog, description=description, epilog=epilog, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options; flags win over it")
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--preset")
    known, _ = early.parse_known_args(argv)
    settings = _read_yaml(parser, known.config, types) if known.config else {}
    preset = known.preset or settings.get("preset")
    if preset and "preset" in names:
        try:
            settings = preset_settings(arguments, preset) | settings
        except ValueError as error:
            parser.error(str(error))
    for action in parser._actions:  # a default from the file satisfies a required flag; argparse has no public way
        if action.dest in settings:
            action.required = False
            if settings[action.dest] is False and "no" in (action.choices or ()):  # YAML's reading of a plain `no`
                settings[action.dest] = "no"
            if (
                action.choices is not None
                and settings[action.dest] is not None
                and settings[action.dest] not in action.choices
            ):
                parser.error(f"{action.dest}: {settings[action.dest]!r} is not one of {', '.join(action.choices)}")
            # argparse converts defaults that are strings, as it does flags: YAML reads 1e-3 as a string
            if isinstance(settings[action.dest], int | float) and not isinstance(settings[action.dest], bool):
                settings[action.dest] = str(settings[action.dest])
    parser.set_defaults(**settings)
    namespace = parser.parse_args(argv)
    del namespace.config
    try:
        return arguments(**vars(namespace))
    except ValueError as error:
        parser.error(str(error))


def public_name(name_or_path: str) -> str:
    """What may be said of a model's name: a hub id as it is, of a local folder only its own name."""
    return os.path.basename(os.path.abspath(name_or_path)) if os.path.exists(name_or_path) else name_or_path


def _read_yaml(parser: argparse.ArgumentParser, path: str, types: dict) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {path}: {error}")
    if not isinstance(settings, dict):
        parser.error(f"--config {path}: expected `option: value` lines")
    unknown = sorted(set(map(str, settings)) - set(types))
    if unknown:
        near = {name: parser.nearest(name) for name in unknown}
        listed = (f"{name} (did you mean {option.lstrip('-')}?)" if option else name for name, option in near.items())
        parser.error(f"--config {path}: unknown option(s) {', '.join(listed)}")
    empty = [name for name, value in settings.items() if value is None and type(None) not in get_args(types[name])]
    if empty:
        parser.error(f"--config {path}: {empty[0]} has no value; leave the line out for the default")
    # a mapping is how YAML writes what a flag takes as JSON
    return {
        name: json.dumps(value) if isinstance(value, dict) and types[name] == str | None else value
        for name, value in settings.items()
    }


@dataclass(kw_only=True)
class TrainArguments:
    """What `pretrain` and `finetune` share."""

    dataset_dir: str = required("dataset folder written by `flip-ctr prepare`")
    output_dir: str = required("folder for the checkpoint, results and history")
    overwrite_output_dir: bool = option(False, "write into an output folder that already holds files")
    preset: str | None = option(None, "named settings: `paper` takes the paper's choices where the defaults differ")
    seed: int = option(42, "seed of initialisation, order, masks and noise")

    id_model: str | None = option(
        None, "FLIP checkpoint, trained on the same rows, whose ID tower this run starts with (path or hub id)"
    )
    id_tower: str | None = option(
        None,
        "ID-based backbone: dcnv2 (of a new model, by default), lr, fm, afm, widedeep, deepfm, pnn, "
        "fibinet, dcn, gdcn, xdeepfm, autoint, afn, masknet, finalmlp, or one that --custom_code registers",
    )
    id_tower_kwargs: str | None = option(None, "arguments of the tower as JSON, e.g. '{\"num_cross_layers\": 3}'")
    custom_code: list[str] | None = option(None, CUSTOM_CODE, nargs="+")
    id_embedding_size: int | None = option(None, "size of a feature embedding; 32 in a new model")
    id_initializer_range: float | None = option(None, "standard deviation of new feature embeddings; 0.02")
    id_hidden_dims: list[int] | None = option(None, "layers of the tower's DNN; 300 300 128 in a new model", nargs="+")
    id_dropout: float | None = option(None, "dropout in the tower's DNN; 0 in a new model")
    id_embedding_dropout: float | None = option(None, "dropout on the feature embeddings; 0 in a new model")
    prompt_fields: list[str] | None = option(
        None,
        "fields of the prompts, e.g. title genre; those that the dataset's schema puts there when "
        "not given (a checkpoint brings its own)",
        nargs="+",
    )
    min_frequency: int = option(1, "values in fewer training rows share the id [UNK]")
    unk_rate: float = option(0.01, "share of training rows whose user's, or item's, key ids are dropped to [UNK]")
    text_pooling: str | None = option(None, "the PLM's pooled state: cls (of a new model, by default) or mean")
    plm_dropout: float | None = option(
        None,
        f"every dropout of the PLM; {OWN_DROPOUT}: its own rates (as with --preset paper). 0 where it is trained, "
        "which learns more in a few passes, and is faster",
    )
    attn_implementation: str | None = option(None, "attention of the PLM: eager, sdpa, flash_attention_2, ...")

    per_device_train_batch_size: int | None = option(None, "rows a process takes in one forward pass")
    per_device_eval_batch_size: int = option(512, "rows a process takes in one evaluation pass")
    gradient_accumulation_steps: int = option(1, "batches added up before an optimizer step")
    num_train_epochs: float | None = option(None, "passes over the training rows")
    max_train_steps: int = option(-1, "optimizer steps; overrides the epochs when above 0")
    streaming: bool = option(
        False,
        "read the training rows anew in each epoch, a window at a time, instead of encoding them to disk once "
        "(only neighbours are mixed: prepare writes training rows in random order)",
    )
    max_train_samples: int | None = option(None, "train on a seeded random sample of so many rows")
    max_eval_samples: int | None = option(None, "evaluate on a seeded random sample of so many rows")
    learning_rate: float | None = option(None, "of the ID tower and all heads")
    plm_learning_rate: float | None = option(None, f"of the PLM; {LORA_LEARNING_RATE} with --use_lora")
    weight_decay: float = option(1e-3, "AdamW's, on weight matrices outside the embedding tables")
    embedding_optimizer: str = option(
        "dense",
        "of the feature tables: dense (AdamW; a step costs as much as the vocabulary is large), "
        "rowwise_adagrad or lazy_adam (touched rows only)",
        choices=list(EMBEDDING_OPTIMIZERS),
    )
    id_learning_rate: float | None = option(
        None,
        "of the ID tower; --learning_rate when not given, but 0, which leaves the tower as it is, where "
        "pretraining aligns a PLM to --id_model (not with --preset paper)",
    )
    embedding_learning_rate: float | None = option(
        None, "of the feature tables; the tower's when not given, but 0.3 with rowwise_adagrad"
    )
    embedding_l2: float | None = option(
        None, "factor of the sum of squares of the whole feature tables, added to the loss"
    )
    lr_scheduler_type: str = option("linear", "shape of the learning rate: linear, cosine, constant_with_warmup, ...")
    warmup_ratio: float = option(0.05, "share of the steps with a rising learning rate")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: not at all")
    mixed_precision: str = option("no", "no, bf16 or fp16", choices=["no", "bf16", "fp16"])
    gradient_checkpointing: bool = option(False, "recompute the PLM's activations to save memory")
    freeze_plm_layers: int = option(
        0, "leave the PLM's embeddings and so many of its lowest layers as they are; all of its layers: all of the PLM"
    )
    torch_compile: bool = option(False, "compile the PLM")
    dataloader_num_workers: int = option(0, "processes that compose batches")
    logging_steps: int = option(50, "optimizer steps between entries of the history")
    eval_steps: int | None = option(None, "optimizer steps between evaluations; each epoch when not given")
    report_to: str = option(
        "none", "tracker that gets the history too", choices=["none", "tensorboard", "wandb", "trackio"]
    )

    checkpointing_steps: str | None = option(
        None, "save all that a killed run needs to go on, every so many optimizer steps or each `epoch`"
    )
    checkpoints_total_limit: int | None = option(None, "keep only so many of these step checkpoints, the newest")
    resume_from_checkpoint: str | None = option(
        None,
        "go on from a step checkpoint: its folder, or `latest` of the output folder (from "
        "the beginning where there is none)",
    )

    use_lora: bool = option(
        False, "of the PLM train low-rank updates only (LoRA); the ID tower and the heads train in full"
    )
    lora_r: int = option(8, "rank of the updates")
    lora_alpha: float = option(16, "the updates are scaled by this / rank")
    lora_dropout: float = option(0.0, "dropout before the updates")
    lora_target_modules: list[str] | None = option(
        None,
        "names of the PLM's linear layers that are updated, e.g. query value; all of them when not given",
        nargs="+",
    )
    lora_adapter_only: bool = option(
        False, "save the updates, the ID tower and the heads without the PLM, instead of a merged model"
    )

    hash_user_values: bool = option(
        False, "keep raw values of the user's fields out of the vocabulary: store keyed hashes"
    )

    push_to_hub: bool = option(False, "publish the checkpoint when done; `flip-ctr push` does so later")
    hub_model_id: str | None = option(
        None, "repository to publish to, e.g. org/flip-ml1m; the output folder's name when not given"
    )
    hub_private_repo: bool = option(False, "make a new repository private")
    hub_token: str | None = option(None, "token of the Hub; that of `hf auth login` or HF_TOKEN when not given")

    def recipe_defaults(self) -> dict:
        """Values of the options whose default depends on the recipe, its strategy and the preset."""
        raise NotImplementedError

    def defaults_by_case(self) -> dict:
        """`recipe_defaults`, and what LoRA and the embedding optimizer change of them."""
        lora = {"plm_learning_rate": LORA_LEARNING_RATE} if self.use_lora else {}
        return self.recipe_defaults() | EMBEDDING_OPTIMIZERS[self.embedding_optimizer] | lora

    def use_dense_tables(self) -> None:
        """Goes back to `--embedding_optimizer dense`, and to its defaults where those of the other one were not
        changed."""
        before = self.defaults_by_case()
        self.embedding_optimizer = "dense"
        for name, value in (dict.fromkeys(before) | self.defaults_by_case()).items():
            if getattr(self, name) == before[name]:
                setattr(self, name, value)

    def check_id_tower(self, new: bool) -> None:
        """Raises `ValueError` where a new ID tower, one that `--id_model` does not start either, is to stay as it
        is."""
        if new and self.id_model is None and self.id_learning_rate == 0:
            raise ValueError(
                "--id_learning_rate 0 would leave a new ID tower as it was drawn: name one that was trained with "
                "--id_model"
            )

    def check_preset(self) -> None:
        """Raises `ValueError` where a preset is named that does not exist, or of which nothing is set: in Python its
        name alone sets little."""
        if self.preset is None:
            return
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        settings = {
            name: value for name, value in preset_settings(type(self), self.preset).items() if value != defaults[name]
        }
        if all(getattr(self, name) == defaults[name] for name in settings):
            raise ValueError(
                f"preset={self.preset!r} alone does not set {', '.join(settings)}; in Python write "
                f"with_preset({type(self).__name__}, {self.preset!r}, ...), of flip_ctr.train.arguments"
            )

    def check_effect(self, why: str, **without) -> None:
        """Raises `ValueError` where one of the options has another value than the given one, with which it does
        nothing, and no preset set it."""
        for name, default in without.items():
            value = getattr(self, name)
            if value != default and value != PRESETS.get(self.preset, {}).get(name):
                shown = "" if value is True else f" {' '.join(value)}" if isinstance(value, list) else f" {value}"
                raise ValueError(f"--{name}{shown} has no effect {why}; leave it out")

    def published(self) -> dict:
        """All arguments that may be published: no paths of this machine, no token."""
        values = {name: value for name, value in vars(self).items() if name not in PRIVATE}
        for name in MODELS:
            if values.get(name):
                values[name] = public_name(values[name])
        return values

    def changed(self) -> dict:
        """The published arguments that differ from the recipe's defaults: name -> `value` and `default`."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | self.defaults_by_case()
        config = FlipConfig()  # an argument of the model that is not given has the model's default
        shown = {name: getattr(config, name, None) if value is None else value for name, value in defaults.items()}
        return {
            name: {"value": value, "default": shown[name]}
            for name, value in self.published().items()
            if name not in MODELS and value not in (defaults[name], shown[name])
        }

    def __post_init__(self):
        self.check_preset()
        if not self.use_lora:
            self.check_effect(
                "without --use_lora",
                lora_r=8,
                lora_alpha=16,
                lora_dropout=0.0,
                lora_target_modules=None,
                lora_adapter_only=False,
            )
        schedules = [one.value for one in SchedulerType]
        if self.lr_scheduler_type not in schedules:
            raise ValueError(f"--lr_scheduler_type must be one of {', '.join(schedules)}; got {self.lr_scheduler_type}")
        if self.lora_r < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                "--lora_r must be at least 1, --lora_alpha above 0, --lora_dropout at least 0 and below 1; got "
                f"{self.lora_r}, {self.lora_alpha}, {self.lora_dropout}"
            )
        if self.freeze_plm_layers < 0:
            raise ValueError(f"--freeze_plm_layers must be at least 0; got {self.freeze_plm_layers}")
        if self.freeze_plm_layers and self.use_lora:
            raise ValueError(
                "--freeze_plm_layers has no place beside --use_lora, which freezes all of the PLM and adds updates to "
                "it"
            )
        if isinstance(self.lora_target_modules, str):  # a YAML file may say `lora_target_modules: query`
            self.lora_target_modules = [self.lora_target_modules]
        for name, value in self.defaults_by_case().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name in (
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "logging_steps",
            "min_frequency",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1; got {getattr(self, name)}")
        every = self.checkpointing_steps
        if every is not None and every != "epoch" and not (str(every).isdigit() and int(every) > 0):
            raise ValueError(f"--checkpointing_steps must be a number of steps of at least 1, or `epoch`; got {every}")
        if self.checkpoints_total_limit is not None and every is None:
            raise ValueError("--checkpoints_total_limit has no effect without --checkpointing_steps")
        for name in ("max_train_samples", "max_eval_samples", "eval_steps", "checkpoints_total_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1; got {getattr(self, name)}")
        if isinstance(self.prompt_fields, str):  # a YAML file may say `prompt_fields: title`
            self.prompt_fields = [self.prompt_fields]
        if isinstance(self.id_hidden_dims, int):  # a YAML file may say `id_hidden_dims: 64`
            self.id_hidden_dims = [self.id_hidden_dims]
        if self.id_tower_kwargs is not None:
            try:
                valid = isinstance(json.loads(self.id_tower_kwargs), dict)
            except json.JSONDecodeError:
                valid = False
            if not valid:
                raise ValueError(
                    f'--id_tower_kwargs must be a JSON object such as {{"low_rank": 32}}; got {self.id_tower_kwargs}'
                )
        for name in ("learning_rate", "plm_learning_rate", "embedding_learning_rate", "num_train_epochs"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be above 0; got {getattr(self, name)}")
        if self.id_learning_rate is not None and self.id_learning_rate < 0:
            raise ValueError(f"--id_learning_rate must be at least 0; got {self.id_learning_rate}")
        if self.embedding_l2 < 0:
            raise ValueError(f"--embedding_l2 must be at least 0; got {self.embedding_l2}")
        for name in ("unk_rate", "warmup_ratio", "id_dropout", "id_embedding_dropout", "plm_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 and (name, value) != ("plm_dropout", OWN_DROPOUT):
                raise ValueError(f"--{name} must be at least 0 and below 1; got {value}")
