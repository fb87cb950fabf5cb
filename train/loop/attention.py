# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Which attention implementation of transformers the PLM trains with, where `--attn_implementation` names none: the
one that is fastest on the run's first batch."""

import time
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.loop.distributed import splits_states
from flip_ctr.train.outputs.run_log import logger

TURNS = 3
LEAST_GAIN = 1.15  # of time, for another than the PLM's own: the noise of a clock must not choose
TOKENS_ON_CPU, TOKENS_ELSEWHERE = 512, 16_384  # of a batch that are read; a CPU is busy with few
LONGEST_EAGER = 128  # tokens of a prompt; the memory that eager attention takes grows with their square
SMALLEST_PLM = 1_000_000  # weights; of fewer a step takes no time worth a trial


def candidates(accelerator: Accelerator, text_encoder: PreTrainedModel, longest: int) -> list[str]:
    """The implementations that a PLM can train with on this device, on prompts of so many tokens; its own first."""
    own = text_encoder.config._attn_implementation
    if not text_encoder._can_set_attn_implementation():
        return [own]
    flash = accelerator.device.type == "cuda" and accelerator.mixed_precision != "no" and is_flash_attn_2_available()
    there = {
        "eager": longest <= LONGEST_EAGER,
        "sdpa": text_encoder._supports_sdpa,
        "flash_attention_2": text_encoder._supports_flash_attn and flash,
    }
    return [own] + [name for name, has in there.items() if has and name != own]


def choose_attention(
    accelerator: Accelerator,
    text_encoder: PreTrainedModel | None,
    args: TrainingOptions,
    batch: dict[str, torch.Tensor],
    lengths: np.ndarray | None = None,
) -> str | None:
    """Sets the PLM's attention to the implementation whose forward and backward pass is fastest on prompts of a batch,
    says so, and returns its name; None without a PLM. It is the first process's choice on all of them.

    Nothing is tried where `--attn_implementation` names one, where there is but one, where the PLM does not train, is
    small or has its weights in shares (FSDP, DeepSpeed). The random state, and all gradients, stay as they were.

    Args:
        batch: the run's first.
        lengths: `(N,)` tokens of all prompts, where they are known.
    """
    if text_encoder is None or "input_ids" not in batch:
        return None
    trained = [parameter for parameter in text_encoder.parameters() if parameter.requires_grad]
    length = batch["input_ids"].shape[-1]
    names = candidates(accelerator, text_encoder, length if lengths is None else int(lengths.max()))
    small = text_encoder.num_parameters() < SMALLEST_PLM
    if args.attn_implementation is not None or not trained or small or splits_states(accelerator):
        names = names[:1]
    chosen, found = names[0], ""
    if len(names) > 1:
        most = TOKENS_ON_CPU if accelerator.device.type == "cpu" else TOKENS_ELSEWHERE
        ids, mask = (batch[name][: max(1, most // length)] for name in ("input_ids", "attention_mask"))
        seconds = time_attention(accelerator, text_encoder, trained, names, ids, mask)
        fastest = min(names, key=seconds.__getitem__)
        if seconds[chosen] >= LEAST_GAIN * seconds[fastest]:
            chosen = fastest
        (chosen,) = broadcast_object_list([chosen])
        text_encoder.set_attn_implementation(chosen)
        times = ", ".join(f"{name} {1000 * seconds[name]:,.0f} ms" for name in names)
        found = f" (forward and backward of {ids.numel():,} tokens: {times})"
    compiled = "compiled" if args.torch_compile else "not compiled"
    logger.info(f"the PLM's attention is {chosen}{found}; the PLM is {compiled}")
    return chosen


def time_attention(
    accelerator: Accelerator,
    text_encoder: PreTrainedModel,
    trained: list[torch.nn.Parameter],
    names: list[str],
    ids: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, float]:
    """Seconds of a forward and backward pass with each implementation, the least of some turns after one to warm up;
    on a CPU its own seconds, which other processes do not lengthen."""
    device = accelerator.device
    ids, mask, on_cpu = ids.to(device), mask.to(device), device.type == "cpu"
    clock: Callable[[], float] = time.process_time if on_cpu else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for _ in range(1 + TURNS):
            for name in names:
                text_encoder.set_attn_implementation(name)
                started = clock()
                with accelerator.autocast():
                    # `forward`, as a call would compile what --torch_compile asks to compile, once for each
                    states = text_encoder.forward(input_ids=ids, attention_mask=mask).last_hidden_state
                # not `backward`: DDP's reducer counts what it is told of
                torch.autograd.grad(states.float().mean(), trained, allow_unused=True)
                if not on_cpu:
                    torch.accelerator.synchronize()
                seconds[name].append(clock() - started)
    return {name: min(times[1:]) for name, times in seconds.items()}
