# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""LoRA on the PLM: low-rank updates of its projections are trained, its own weights are not; all else trains as always.

A LoRA run ends in a merged checkpoint, which is like any other, or (`--lora_adapter_only`) in a folder with the
updates, the ID tower and the heads, which needs its base to predict. PEFT reads that folder too:
`PeftModel.from_pretrained(base, folder)`.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import CONFIG_NAME, cached_file

from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.modeling_flip.fingerprint_flip import add_checksums, check_checkpoint, read_json
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR, FlipForPretraining, FlipPreTrainedModel
from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.options import public_name

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, TEXT_ENCODER = "base_model.model.", ".text_encoder."
BASE_HASH = "base_sha256"


def target_pattern(model: FlipPreTrainedModel, names: list[str] | None) -> str:
    """A pattern for the PLM's linear layers: all of them, or those whose path in the PLM ends in one of the names.

    Raises:
        ValueError: a name fits no linear layer of the PLM; names the layers that there are.
    """
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and TEXT_ENCODER in f".{name}"
    ]
    if names is None:
        chosen = linear
    else:
        for one in names:
            if not any(f".{layer}".endswith(f".{one}") for layer in linear):
                have = ", ".join(sorted({layer.split(".")[-1] for layer in linear}))
                raise ValueError(
                    f"--lora_target_modules {one}: the PLM has no linear layer of that name; it has: {have}"
                )
        chosen = [layer for layer in linear if any(f".{layer}".endswith(f".{one}") for one in names)]
    # layers of the same name in all blocks, without their numbers
    kinds = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(layer)) for layer in chosen})
    return "|".join(kinds)


def add_lora(model: FlipPreTrainedModel, args: TrainingOptions) -> PeftModel:
    """Wraps a model: of the PLM only the low-rank updates train; everything outside it trains in full.

    Raises:
        ValueError: the model holds no PLM, or `--lora_target_modules` names a layer that it does not have.
    """
    if model.base_model.text_encoder is None:
        raise ValueError("--use_lora adapts the PLM, and an ID-only model has none; leave the flag out")
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=target_pattern(model, args.lora_target_modules),
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if TEXT_ENCODER not in name:
            parameter.requires_grad_(True)
    return wrapped


def base_hash(model: nn.Module) -> str:
    """SHA-256 over the PLM's own weights, with or without LoRA around them: what an adapter belongs to."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        path = f".{name}".replace(".base_layer.", ".")
        if TEXT_ENCODER in path and ".lora_" not in path:
            digest.update(path.rpartition(TEXT_ENCODER)[2].encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: str, base: str) -> None:
    """Writes the updates of the PLM and everything outside it in full: `adapter_config.json`,
    `adapter_model.safetensors`, the model's configuration and code. `base` is the path or hub id that the weights
    without updates came from."""
    inner = model.get_base_model()
    inner.config.architectures = [type(inner).__name__]
    inner.save_tower_code(folder)
    custom_object_save(inner, folder, config=inner.config)
    inner.config.save_pretrained(folder)
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = public_name(base), True
    config.save_pretrained(folder)
    tied = {PREFIX + name for name in inner.all_tied_weights_keys}
    outside = {
        name: tensor for name, tensor in model.state_dict().items() if TEXT_ENCODER not in name and name not in tied
    }
    updates = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: tensor.contiguous() for name, tensor in (updates | outside).items()}
    save_file(state, os.path.join(folder, ADAPTER_WEIGHTS), metadata={"format": "pt", BASE_HASH: base_hash(model)})
    add_checksums(folder)


def restore_adapter(model: PeftModel, folder: str) -> None:
    """Puts a saved adapter's weights back into the model that it was saved from. `ValueError` where they are
    damaged."""
    check_checkpoint(folder, CONFIG_NAME, {})
    model.load_adapter(folder, "default", is_trainable=True)


def merge(model: PeftModel) -> FlipPreTrainedModel:
    """The plain model with the updates added to the PLM's weights. Changes `model` itself."""
    return model.merge_and_unload()


def plain(model: nn.Module) -> FlipPreTrainedModel:
    """The FLIP model, inside its LoRA wrapper where it has one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _find(name_or_path: str, file: str) -> str | None:
    return cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False)


def is_flip_checkpoint(name_or_path: str) -> bool:
    """Whether a folder or hub id is a FLIP checkpoint, whole or an adapter, and not a bare PLM. `OSError` where there
    is none."""
    return AutoConfig.from_pretrained(name_or_path).model_type == FlipConfig.model_type


def is_adapter(name_or_path: str) -> bool:
    """Whether a FLIP checkpoint, a folder or hub id, is an adapter that needs its base."""
    return _find(name_or_path, ADAPTER_CONFIG) is not None


def load_adapter(name_or_path: str, base_model_name_or_path: str | None = None, **kwargs) -> FlipPreTrainedModel:
    """The merged model of a LoRA adapter and its base.

    Args:
        name_or_path: folder or hub id of a checkpoint made with `--lora_adapter_only`.
        base_model_name_or_path: the PLM or FLIP checkpoint that it was trained on; the one that the adapter names when
            `None`.
        kwargs: passed to `from_pretrained` of the base (`dtype`, float32 by default, `attn_implementation`, ...).

    Raises:
        OSError: there is no adapter, or the base cannot be found.
        ValueError: files are damaged; the adapter names a folder elsewhere on this machine as its base; or the base is
            the adapter itself, or has other weights than the one that the adapter was trained on.
    """
    check_checkpoint(name_or_path, CONFIG_NAME, {})
    path = _find(name_or_path, ADAPTER_CONFIG)
    if path is None:
        raise OSError(f"{name_or_path} is no LoRA adapter: it has no {ADAPTER_CONFIG}")
    named = read_json(path).get("base_model_name_or_path")
    if base_model_name_or_path is None and (os.path.isabs(str(named)) or ".." in re.split(r"[/\\\\]", str(named))):
        raise ValueError(
            f"{os.path.join(name_or_path, ADAPTER_CONFIG)} names the base {named!r}, and must not lead elsewhere on "
            "this machine; name it with --base_model_name_or_path"
        )
    base = base_model_name_or_path or named
    if not isinstance(base, str):
        raise ValueError(f"{name_or_path}: {ADAPTER_CONFIG} names no base; name it with --base_model_name_or_path")
    if os.path.exists(base) and os.path.exists(name_or_path) and os.path.samefile(base, name_or_path):
        raise ValueError(
            f"{name_or_path} is a LoRA adapter and cannot be its own base; name its base with --base_model_name_or_path"
        )
    weights = _find(name_or_path, ADAPTER_WEIGHTS)
    if weights is None:
        raise OSError(f"{name_or_path} is a LoRA adapter, and lacks {ADAPTER_WEIGHTS}: it was not saved whole")
    kwargs.setdefault("dtype", torch.float32)  # as in training; else the PLM alone would have its checkpoint's
    config = FlipConfig.from_pretrained(name_or_path)
    cls = {one.__name__: one for one in (FlipForCTR, FlipForPretraining)}[config.architectures[0]]
    try:
        from_flip = is_flip_checkpoint(base)
    except OSError as error:
        raise OSError(
            f"{name_or_path} is a LoRA adapter of {base!r}, which is neither a folder here nor on the Hub; name its "
            "base with --base_model_name_or_path"
        ) from error
    other = f"{base} is not the base of the LoRA adapter {name_or_path}: its PLM has other weights"
    if from_flip:
        # the adapter's vocabulary may have grown; what is outside the PLM comes from the adapter
        config.fields, fields = FlipConfig.from_pretrained(base).fields, config.fields
        with whole_checkpoint(base) as folder:  # a base may be an adapter itself
            try:
                model = cls.from_pretrained(folder, config=config, **kwargs)
                model.grow(fields)
            except (RuntimeError, ValueError) as error:  # of other shapes or fields
                raise ValueError(other) from error
    else:
        model = cls.from_text_pretrained(base, config, **kwargs)
    with safe_open(weights, "pt") as file:
        expected = file.metadata()[BASE_HASH]
    if base_hash(model) != expected:
        raise ValueError(other)
    return merge(PeftModel.from_pretrained(model, name_or_path))


@contextmanager
def whole_checkpoint(name_or_path: str, base_model_name_or_path: str | None = None) -> Iterator[str]:
    """A checkpoint with all its weights: the given one, or for an adapter a temporary folder with the merged model."""
    if not is_adapter(name_or_path):
        yield name_or_path
        return
    with tempfile.TemporaryDirectory() as folder:
        with torch.random.fork_rng():  # what is initialised next must not depend on how the checkpoint is stored
            load_adapter(name_or_path, base_model_name_or_path).save_pretrained(folder)
        yield folder
