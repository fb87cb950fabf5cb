# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Options as dataclass fields: what a value may be is declared with the option, and checked in one place; defaults that
depend on the case, and presets, are YAML files in `presets/`.

Nothing here imports torch or transformers: what is wrong with a command line is said at once.
"""

import dataclasses
import difflib
import functools
import itertools
import json
import math
import operator
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flip_ctr.modeling_flip.fields_flip import BOUNDS

PRESETS = Path(__file__).with_name("presets")
LIMITS = {int: 2**63 - 1, float: 1e30}  # of numbers that can be meant
MAX_SEED = 2**32 - 1  # of numpy, Python and torch together
DEFAULTS = "defaults"  # the file of what holds without a preset
ALL, ALWAYS = "all", "always"  # the section for every recipe, and the case that always holds

# What other libraries call an option (transformers, Keras, scikit-learn, FuxiCTR, DeepCTR, Lightning), and its names
# here: of several the first one that the command has.
SYNONYMS = {
    "learning_rate": "lr base_lr eta",
    "plm_learning_rate": "bert_lr lm_lr text_lr plm_lr",
    "id_learning_rate": "id_lr tower_lr",
    "embedding_learning_rate": "embedding_lr emb_lr",
    "num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs nepochs",
    "max_train_steps": "steps max_steps num_steps iterations n_iter max_iter",
    "per_device_train_batch_size": "batch_size bs train_batch_size batch",
    "per_device_eval_batch_size": "batch_size bs eval_batch_size test_batch_size",
    "gradient_accumulation_steps": "grad_accum accumulate_grad_batches accumulation_steps",
    "weight_decay": "wd decay",
    "embedding_l2": "l2 l2_reg l2_reg_embedding embedding_regularizer regularizer reg reg_lambda",
    "embedding_optimizer": "optimizer optim",
    "lr_scheduler_type": "scheduler lr_scheduler schedule lr_schedule",
    "warmup_ratio": "warmup warmup_steps num_warmup_steps",
    "max_grad_norm": "clip grad_clip clip_grad clipnorm gradient_clip_val max_gradient_norm",
    "mixed_precision": "fp16 bf16 precision amp dtype torch_dtype",
    "early_stopping_patience": "patience early_stopping early_stop_patience",
    "seed": "random_state random_seed",
    "dataset_dir": "data dataset data_dir dataset_path dataset_name data_path dataset_root train_file train_data input",
    "data_dir": "data raw raw_dir data_path data_root path",
    "data_files": "files train_file",
    "dataset": "dataset_name name",
    "model_name_or_path": "model plm bert checkpoint ckpt pretrained model_path model_name pretrained_model",
    "base_model_name_or_path": "base base_model",
    "tokenizer_name": "tokenizer",
    "id_model": "model id_checkpoint tower_checkpoint",
    "plm_model": "model plm plm_checkpoint text_model",
    "id_tower": "tower backbone ctr_model arch architecture",
    "id_embedding_size": "embedding_dim emb_dim embed_dim embedding_size emb_size hidden_dim",
    "id_hidden_dims": "hidden_units hidden_dims dnn_hidden_units hidden_layers hidden_sizes hidden_layer_sizes",
    "id_dropout": "dropout net_dropout dnn_dropout dropout_rate",
    "text_pooling": "pooling pooler",
    "text_mask_ratio": "mlm_probability mask_ratio mask_prob mask_rate",
    "icl_temperature": "temperature tau temp",
    "grad_cache_chunk_size": "gc_chunk_size grad_cache chunk_size",
    "min_frequency": "min_freq min_count min_categr_count",
    "max_train_samples": "max_samples limit n_samples train_size",
    "use_lora": "lora peft",
    "lora_r": "rank r",
    "lora_alpha": "alpha",
    "torch_compile": "compile",
    "dataloader_num_workers": "workers num_workers n_jobs",
    "report_to": "tracker logger log_with wandb tensorboard",
    "checkpointing_steps": "save_steps save_every save_freq",
    "checkpoints_total_limit": "save_total_limit",
    "resume_from_checkpoint": "resume restart",
    "output_dir": "out output out_dir output_path save_dir model_dir save_path logdir",
    "output": "out output_dir output_file output_path save_path",
    "overwrite_output_dir": "overwrite force",
    "input": "file rows data input_file dataset_dir test_file",
    "strategy": "task mode method",
    "hub_model_id": "repo repo_id hub_id",
    "hub_private_repo": "private",
    "click_threshold": "threshold",
    "split_seed": "seed random_state random_seed",
    "num_processes": "gpus num_gpus nproc nproc_per_node n_gpu world_size devices",
}


# --- declaring


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with a help text; a list default is copied.

    Args:
        metadata: what is checked of a value that is given:
            choices (the values there are), at_least, above, at_most, below (bounds of a number, or of each of a list),
            also (values outside the bounds), limit (the largest number that can be meant), length (of a list).
            What is done with it:
            path (a file or folder of this machine: `~` is expanded; never published), model (a path or hub id: `~` is
            expanded, of a folder its own name is published), private (never published).
    """
    metadata = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def required(help: str, **metadata: Any) -> Any:
    """An option without a default: it must be given."""
    return field(metadata={"help": help, **metadata})


def by_case(help: str, **metadata: Any) -> Any:
    """An option whose default depends on the case: it stands in `presets/defaults.yaml`, or in a preset."""
    return option(None, help, by_case=True, **metadata)


@dataclass
class Options:
    """What the arguments of all commands are made of.

    A class with a `title` is a group of options, which `--help` shows under that title: first those of the command
    alone, then the groups in the order in which they are defined. Building arguments reads values generously (`"1e-3"`,
    one value for a list, `~`), fills in the defaults of the case, and checks all of it.

    Raises:
        ValueError: a value does not fit its option, or options do not fit each other; the message names them.
    """

    recipe: ClassVar[str] = ""  # the section of the files in `presets/`
    title: ClassVar[str] = "Options"
    place: ClassVar[int] = 0
    _count: ClassVar[itertools.count] = itertools.count(1)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.place = next(Options._count)

    def __post_init__(self) -> None:
        kinds = option_types(type(self))  # type: ignore[arg-type]
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if value is not None or (kinds[one.name] is bool and default_of(one) is not None):
                setattr(self, one.name, read_value(one, kinds[one.name], value))
        self.given = {one.name for one in dataclasses.fields(self) if getattr(self, one.name) != default_of(one)}
        for name, value in self.case_defaults().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.check()

    def check(self) -> None:
        """Checks options against each other; `ValueError` names them."""

    def cases(self) -> list[str]:
        """The cases of `presets/` that hold, beside `always`; the settings of a later one win."""
        return []

    def case_defaults(self, preset: bool = True) -> dict[str, Any]:
        """Defaults of the options for which they depend on the case: with the preset that was asked for, or without."""
        return settings_of(type(self), self.cases(), getattr(self, "preset", None) if preset else None)

    def no_effect(self, why: str, **without: Any) -> None:
        """Raises `ValueError` where one of the options was given, and is not the value that means it is off."""
        for name, off in without.items():
            value = getattr(self, name)
            if name in self.given and value != off:
                shown = "" if value is True else f" {' '.join(value)}" if isinstance(value, list) else f" {value}"
                raise ValueError(f"--{name}{shown} has no effect {why}; leave it out")

    def published(self) -> dict[str, Any]:
        """The arguments that may be published: no path of this machine, nothing that makes no difference to the
        result."""
        return published_values(type(self), {one.name: getattr(self, one.name) for one in dataclasses.fields(self)})

    def changed(self) -> dict[str, dict]:
        """The published arguments that differ from the defaults of the case without a preset, but for models: name ->
        `value` and `default`."""
        defaults = {one.name: default_of(one) for one in dataclasses.fields(self)} | self.case_defaults(preset=False)
        shown = self.shown_defaults(defaults)
        models = {one.name for one in dataclasses.fields(self) if one.metadata.get("model")}
        return {
            name: {"value": value, "default": shown[name]}
            for name, value in self.published().items()
            if name not in models and value not in (defaults[name], shown[name])
        }

    def shown_defaults(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """The defaults as a reader knows them."""
        return defaults


def default_of(one: dataclasses.Field) -> Any:
    """The default of a field; `MISSING` where it has none."""
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def is_private(one: dataclasses.Field) -> bool:
    """Whether an option's value is not published."""
    return bool(one.metadata.get("path") or one.metadata.get("private"))


def public_name(name_or_path: str) -> str:
    """What may be said of a model's name: a hub id as it is, of a local folder only its own name."""
    return os.path.basename(os.path.abspath(name_or_path)) if os.path.exists(name_or_path) else name_or_path


def published_values(arguments: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of values by name those of a command's options that may be published: no path, of a model's folder its name."""
    options = {one.name: one for one in dataclasses.fields(arguments) if not is_private(one)}
    return {
        name: public_name(str(value)) if value and options[name].metadata.get("model") else value
        for name, value in values.items()
        if name in options
    }


# --- reading and checking a value


@functools.cache
def option_types(arguments: type) -> dict[str, Any]:
    """Name of an option -> its type."""
    return typing.get_type_hints(arguments)


def simple_type(kind: Any) -> type:
    """`int` of `int | None` and of `list[int]`."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    return typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind


def is_list(kind: Any) -> bool:
    return "list[" in str(kind)


def read_value(one: dataclasses.Field, kind: Any, value: Any) -> Any:
    """An option's value, from a flag, a YAML file or Python, as the type that it has.

    Raises:
        ValueError: it is of another type, or not among the values that the option takes.
    """
    if is_list(kind):
        values = value if isinstance(value, list | tuple) else [value]
        read = [_read_one(one, simple_type(kind), part) for part in values]
        if (length := one.metadata.get("length")) is not None and len(read) != length:
            raise ValueError(f"--{one.name} takes {length} values; got {len(read)}")
        return read
    return _read_one(one, simple_type(kind), value)


def _read_one(one: dataclasses.Field, kind: type, value: Any) -> Any:
    metadata = one.metadata
    try:
        value = _as_type(kind, value, metadata)
        if kind is float and math.isinf(value):
            raise ValueError
    except (KeyError, OverflowError, TypeError, ValueError):
        what = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise ValueError(f"--{one.name} must be {what}; got {value!r}") from None
    if metadata.get("path") or metadata.get("model"):
        value = os.path.expanduser(value)
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        raise ValueError(
            f"--{one.name} must be one of {', '.join(choices)}; got {value!r}{did_you_mean(value, choices)}"
        )
    bounds = [(words, compare, metadata[key]) for key, (words, compare) in BOUNDS.items() if key in metadata]
    if any(not compare(value, bound) for _, compare, bound in bounds) and value not in metadata.get("also", ()):
        wanted = " and ".join(f"{words} {bound}" for words, _, bound in bounds)
        raise ValueError(f"--{one.name} must be {wanted}; got {value}")
    limit = metadata.get("limit", LIMITS.get(kind))
    if limit is not None and not abs(value) <= limit:  # nor is NaN
        raise ValueError(f"--{one.name} must be at most {limit:,}; got {value}")
    return value


WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _as_type(kind: type, value: Any, metadata: Any) -> Any:
    if kind is bool:
        return WORDS[str(value).lower()]
    if isinstance(value, bool):
        if kind is str and value is False and "no" in metadata.get("choices", ()):  # YAML's reading of a plain `no`
            return "no"
        raise TypeError
    if kind is int:
        return int(value) if isinstance(value, str) else operator.index(value)
    if kind is float:
        return float(value)
    if isinstance(value, dict):  # how YAML writes what a flag takes as JSON
        return json.dumps(value)
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, int | float) and abs(value) < math.inf:  # YAML's reading of `drop_ratings: 3`
        return str(value)
    raise TypeError


# --- what was meant


def nearest(word: str, names: Iterable[str], synonyms: bool = True) -> str | None:
    """The name that is meant by a word: one that other libraries use for it, one that has it as a part, or one that is
    spelled like it."""
    names = list(names)
    word = str(word).lower().replace("-", "_")
    if synonyms:
        for name, others in SYNONYMS.items():
            if word in others.split() and name in names:
                return name
    parts = [name for name in names if len(word) > 2 and f"_{word}_" in f"_{name}_"]
    return next(iter(parts or difflib.get_close_matches(word, names, n=1)), None)


def did_you_mean(word: Any, names: Iterable[str], synonyms: bool = False) -> str:
    """` (did you mean NAME?)`, or nothing."""
    near = nearest(str(word), names, synonyms)
    return f" (did you mean {near}?)" if near is not None else ""


# --- defaults by case, and presets


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != DEFAULTS)


@functools.cache
def preset_file(name: str) -> dict[str, dict[str, dict]]:
    """Recipe -> case -> settings, of a file in `presets/`; the section `all` is for every recipe."""
    import yaml

    return yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))


def sections(arguments: type, preset: str | None = None) -> dict[str, dict[str, Any]]:
    """Case -> settings of a dataclass's options: what a preset says of a case stands over what `defaults.yaml` says of
    it."""
    fields = {one.name: one for one in dataclasses.fields(arguments)}
    kinds = option_types(arguments)
    merged: dict[str, dict[str, Any]] = {}
    for name in (DEFAULTS, preset) if preset else (DEFAULTS,):
        for section in (ALL, getattr(arguments, "recipe", "")):
            for case, settings in preset_file(name).get(section, {}).items():
                merged.setdefault(case, {}).update(
                    {
                        option: None if value is None else read_value(fields[option], kinds[option], value)
                        for option, value in settings.items()
                        if option in fields
                    }
                )
    return merged


def settings_of(arguments: type, cases: list[str], preset: str | None = None) -> dict[str, Any]:
    """What holds in these cases."""
    merged = sections(arguments, preset)
    return {name: value for case in (ALWAYS, *cases) for name, value in merged.get(case, {}).items()}


def shown_default(arguments: type, one: dataclasses.Field) -> str:
    """An option's default as `--help` says it, by case where it depends on one: `default: 3e-3 (id, joint), 1e-3 (plm);
    preset paper: 5e-5`."""
    plain = default_of(one)
    if plain is not None and plain is not dataclasses.MISSING and plain is not False and plain != []:
        return f"default: {plain}"
    said = {}
    for name in (DEFAULTS, *(preset_names() if "preset" in option_types(arguments) else ())):
        by_value: dict[str, list[str]] = {}
        for section in (getattr(arguments, "recipe", ""), ALL):
            for case, settings in preset_file(name).get(section, {}).items():
                if one.name in settings:
                    value = settings[one.name]
                    by_value.setdefault("none" if value is None else str(value).lower(), []).append(case)
        said[name] = ", ".join(
            value if cases == [ALWAYS] else f"{value} ({', '.join(cases)})" for value, cases in by_value.items()
        )
    usual = said.pop(DEFAULTS)
    parts = [f"default: {usual}"] * (usual not in ("", "false"))
    return "; ".join(parts + [f"preset {name}: {text}" for name, text in said.items() if text not in ("", usual)])
