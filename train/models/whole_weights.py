# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Whole weights and optimizer states of a model whose parameters are split among processes (FSDP2, DeepSpeed ZeRO-2).

Of a model on one process, or under DDP, they are its own.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are split among the processes, so that each forward pass needs all of them."""
    return isinstance(model, FSDPModule)


def split(model: nn.Module) -> None:
    """Has each process hold its shares alone, where parameters are split: after a forward pass without a backward one
    the root's are whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_model(accelerator: Accelerator, model: nn.Module) -> nn.Module | None:
    """The model as one process trains it, to save it. All processes must call it; where weights are gathered (FSDP,
    DeepSpeed) all but the main process get None."""
    model = accelerator.unwrap_model(model)
    if is_sharded(model):
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        state = _master_weights(model)
    else:
        return model
    if not accelerator.is_main_process:
        return None
    with torch.device("meta"):
        whole = type(model)(model.config)  # FSDP's class builds the one that it was made of
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    return whole


def _master_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model in DeepSpeed's hands, with the float32 weights that it trains: in bf16 the model has rounded
    ones. What is frozen has no others."""
    from deepspeed.utils import safe_get_full_fp32_param

    state = model.state_dict()
    weights = {}
    for parameter in model.parameters():
        trained = safe_get_full_fp32_param(parameter) if parameter.requires_grad else parameter.detach().float()
        weights[id(parameter)] = trained.cpu()
    return state | {name: weights[id(one)] for name, one in model.named_parameters(remove_duplicate=False)}


def training_state(accelerator: Accelerator, model: nn.Module, optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole states of model and optimizer, on the main process. All processes must call it."""
    model = accelerator.unwrap_model(model)
    if not is_sharded(model):
        return model.state_dict(), optimizer.state_dict()
    return get_state_dict(model, optimizer.optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_training_state(accelerator: Accelerator, model: nn.Module, optimizer, weights: dict, moments: dict) -> None:
    """Puts back what `training_state` gave; every process must have read it."""
    model = accelerator.unwrap_model(model)
    if not is_sharded(model):
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        return
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(model, optimizer.optimizer, model_state_dict=weights, optim_state_dict=moments, options=options)
