# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the recipes need to run on many processes beyond what Accelerate does: with DDP, FSDP2 and DeepSpeed ZeRO-2.

One process and DDP change nothing. Under FSDP2 a model's parameters are shards, and what needs them whole is a
collective: all processes must take part in each forward pass, in saving and in reading.
"""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers.modeling_layers import GradientCheckpointingLayer

from flip_ctr.train.arguments import TrainingOptions

BLOCKS = "FSDP_TRANSFORMER_CLS_TO_WRAP"  # the variable of Accelerate's `fsdp_transformer_layer_cls_to_wrap`


# --- what cannot work is refused at the start


def check_launch(mixed_precision: str) -> None:
    """Compares what Accelerate was told by its launcher with what the recipe will do.

    Raises:
        ValueError: the launcher's precision is another one, or it asks for gradient accumulation.
    """
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", mixed_precision):
        raise ValueError(
            f"Accelerate was started with mixed_precision {told}, the recipe with --mixed_precision {mixed_precision}: "
            f"give the recipe --mixed_precision {told}, or leave mixed_precision out of the Accelerate config"
        )
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise ValueError(
            f"Accelerate was started with gradient_accumulation_steps {steps}; the recipe accumulates itself: leave it "
            f"out of the Accelerate config and give the recipe --gradient_accumulation_steps {steps}"
        )


def check_accelerator(accelerator: Accelerator) -> None:
    """Checks that Accelerate runs what its launcher was asked for, and that FSDP's settings fit these models.

    Raises:
        ValueError: fp16 on a CPU, which Accelerate would silently leave out; the processes do not know of each other,
            FSDP or DeepSpeed was asked for and is not in use, or FSDP is of version 1, loads the model in the first
            process only, or does not cut at the PLM's blocks.
    """
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU; on a CPU choose bf16 or no")
    launched = int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1
    if launched > accelerator.num_processes:
        raise ValueError(
            f"started as one of {launched} processes, but Accelerate found no GPU and would let each of them run for "
            "itself; to use CPUs set ACCELERATE_USE_CPU=1"
        )
    for name, kind in (("FSDP", DistributedType.FSDP), ("DEEPSPEED", DistributedType.DEEPSPEED)):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" and accelerator.distributed_type != kind:
            raise ValueError(
                f"Accelerate was asked for {name} and runs without it ({accelerator.distributed_type.value}): it has "
                f"{name} on GPUs only, started by its launcher; choose the config multi_gpu or single_gpu"
            )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    version = getattr(plugin, "fsdp_version", 1)  # an older Accelerate has none to choose
    if version != 2:
        raise ValueError(f"fsdp_version is {version} in the Accelerate config; it must be 2 (see the config fsdp2)")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading is true in the Accelerate config; it must be false: all processes but the "
            "first would score rows with empty weights"
        )
    policy = getattr(plugin.auto_wrap_policy, "func", plugin.auto_wrap_policy)
    if policy is not transformer_auto_wrap_policy:
        raise ValueError(
            "fsdp_auto_wrap_policy must be TRANSFORMER_BASED_WRAP in the Accelerate config: only the PLM's blocks may "
            "be units of their own, heads and towers are not called as a whole"
        )


def splits_states(accelerator: Accelerator) -> bool:
    """Whether optimizer states, or more, are split among the processes: FSDP and DeepSpeed, which know dense gradients
    only."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def check_run(accelerator: Accelerator, args: TrainingOptions) -> None:
    """Checks a training run's arguments against the way it is spread over processes.

    Raises:
        ValueError: LoRA or GradCache under FSDP or DeepSpeed; an ID-only model under FSDP; step checkpoints, another
            stage than ZeRO-1 and 2, or accumulation of its own under DeepSpeed.
    """
    kind = accelerator.distributed_type
    if getattr(args, "grad_cache_chunk_size", None) is not None and splits_states(accelerator):
        raise ValueError(
            f"--grad_cache_chunk_size does not run under {kind.value}; choose the Accelerate config multi_gpu, or "
            "leave it out"
        )
    if args.use_lora and splits_states(accelerator):
        raise ValueError(
            f"--use_lora does not run under {kind.value}: LoRA's gradients and optimizer states are small, there is "
            "little to split; choose the Accelerate config multi_gpu, or leave --use_lora out"
        )
    if args.plm_every > 1 and splits_states(accelerator):
        raise ValueError(
            f"--plm_every {args.plm_every} does not run under {kind.value}, which exchanges all gradients in each "
            "step; choose the Accelerate config multi_gpu, or --plm_every 1"
        )
    strategy = getattr(args, "strategy", None)
    if not getattr(args, "pretrains_text", True) and kind == DistributedType.FSDP:
        raise ValueError(
            "pretraining without a PLM does not run under FSDP, which splits one; choose the Accelerate config "
            "multi_gpu"
        )
    if strategy in ("id", "frozen") and kind == DistributedType.FSDP:
        raise ValueError(
            f"--strategy {strategy} does not run under FSDP, which splits a PLM that is trained; choose the Accelerate "
            "config multi_gpu"
        )
    if kind != DistributedType.DEEPSPEED:
        return
    for name in ("checkpointing_steps", "resume_from_checkpoint"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name} does not run under DeepSpeed, whose optimizer states lie in pieces; choose the Accelerate "
                f"config fsdp2 or multi_gpu, or leave --{name} out"
            )
    if (stage := accelerator.deepspeed_plugin.zero_stage) not in (1, 2):
        raise ValueError(
            f"zero_stage is {stage} in the Accelerate config; the recipes know 1 and 2. To split parameters too: the "
            "config fsdp2; to split nothing: multi_gpu"
        )
    if (steps := accelerator.deepspeed_plugin.deepspeed_config.get("gradient_accumulation_steps", 1)) not in (
        1,
        "auto",
    ):
        raise ValueError(
            f"gradient_accumulation_steps is {steps} in the DeepSpeed config; the recipe accumulates itself: leave it "
            f"out there and give the recipe --gradient_accumulation_steps {steps}"
        )


# --- training


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, args: TrainingOptions):
    """`accelerator.prepare` of model and optimizer, with what FSDP and DeepSpeed must know of the run.

    Raises:
        ValueError: FSDP is in use, and the PLM's blocks are not known.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        if BLOCKS not in os.environ:
            # `_no_split_modules` will not do: some PLMs have none, and of others it holds the embeddings, which the MLM
            # decoder shares
            blocks = {
                type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
            }
            if not blocks:
                raise ValueError(
                    "no transformer block was found in the PLM for FSDP to split; name their class in the Accelerate "
                    "config: fsdp_transformer_layer_cls_to_wrap"
                )
            plugin.transformer_cls_names_to_wrap = sorted(blocks)
        if plugin.mixed_precision_policy is not None:
            # Accelerate would also round what a model returns, losses and logits, and sum gradients in low precision
            policy = dataclasses.replace(plugin.mixed_precision_policy, output_dtype=None, reduce_dtype=torch.float32)
            plugin.mixed_precision_policy = policy
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
            "gradient_accumulation_steps": 1,  # `accumulating` says which backward pass ends a step
            "gradient_clipping": args.max_grad_norm,  # DeepSpeed clips itself
        }
    with warnings.catch_warnings():  # torch has a new name for what Accelerate still calls `broadcast_buffers`
        warnings.filterwarnings("ignore", ".*broadcast_buffers.* is deprecated", FutureWarning)
        return accelerator.prepare(model, optimizer)


@contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Around a forward and a backward pass: gradients are averaged over the processes in the `last` of a step only."""
    accelerator.sync_gradients = last  # DeepSpeed steps at the end of a backward pass that synchronises
    with nullcontext() if last else accelerator.no_sync(model):
        yield
