# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""One optimizer step: forward and backward over a group of batches, gradients exchanged and clipped, weights
updated."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.loop.distributed import accumulating, splits_states
from flip_ctr.train.loop.grad_cache import chunked_losses
from flip_ctr.train.loop.optimizer import FeatureTables
from flip_ctr.train.loop.prompt_states import PromptReader, merge_prompts
from flip_ctr.train.models.lora import plain
from flip_ctr.train.models.whole_weights import split


class TrainingStep:
    """Forward, backward and update. On W processes with batches of B rows it does what one process does with batches of
    W x B rows: sums of losses are divided by the counts of all processes, and ICL sees the rows of all.

    With entity prompts the PLM makes one step for `--plm_every` steps of all else: see [`windows`] and
    [`PromptReader`]. Its gradient is the mean over the rows of these steps, and is clipped apart from the rest.

    Args:
        accelerator: of the run.
        model, optimizer: as `accelerator.prepare` gave them.
        args: of the run.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer, args: TrainingOptions):
        self.accelerator, self.model, self.args = accelerator, model, args
        # around an optimizer without a scaler Accelerate's wrapper only looks, at each step, for what is installed
        wrapped = accelerator.scaler is not None or accelerator.distributed_type == DistributedType.DEEPSPEED
        self.optimizer = optimizer if wrapped else getattr(optimizer, "optimizer", optimizer)
        self.tables = FeatureTables(accelerator.unwrap_model(model), args.embedding_l2)
        # DeepSpeed takes the gradients away: there l2 must be in the loss
        self.l2_in_loss = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.chunk_size = getattr(args, "grad_cache_chunk_size", None)
        plain_model = plain(accelerator.unwrap_model(model))
        self.by_entity = plain_model.config.prompts == "entity" and plain_model.base_model.text_encoder is not None
        self.reader = PromptReader.of(accelerator, plain_model, args.per_device_train_batch_size)
        self.window_rows, self.closes = 0, True
        self._held: dict[nn.Parameter, torch.Tensor] = {}  # gradients of the PLM's weights that a head shares
        self.skipped = 0  # steps in a row without an update, as their gradients overflowed fp16

    def windows(self, groups: Iterator[list[dict]], steps: int) -> Iterator[list[dict]]:
        """The groups of batches of an epoch, at most `steps` of them; with entity prompts with the states of their
        prompts, which the PLM reads for `--plm_every` groups at a time. `closes` says of the last group of such a
        window that the PLM's step follows."""
        groups = islice(groups, steps)
        if not self.by_entity:
            yield from groups
            return
        device = self.accelerator.device
        while window := list(islice(groups, self.args.plm_every)):
            batches = [
                {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
                for group in window
                for batch in group
            ]
            self.model.train()  # an evaluation may have come before: prompts are read with dropout
            self.window_rows = sum(len(batch["feature_ids"]) for batch in batches)
            read = iter(
                merge_prompts(batches).batches if self.reader is None else self.reader.read(batches, train=True)
            )
            for number, group in enumerate(window):
                self.closes = number == len(window) - 1
                yield list(islice(read, len(group)))

    def backward(self, group: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Adds up the gradients of the mean over the group's batches; returns each batch's losses and accuracies,
        detached."""
        outputs = []
        if self.reader is not None:
            self.reader.weight = sum(len(batch["feature_ids"]) for batch in group) / self.window_rows
        for number, batch in enumerate(group):
            batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            last = number == len(group) - 1
            if self.chunk_size is not None:
                output = chunked_losses(
                    self.accelerator,
                    self.model,
                    batch,
                    self.chunk_size,
                    lambda loss: self.accelerator.backward(loss / len(group)),
                    sync=last,
                )
            else:
                with accumulating(self.accelerator, self.model, last):
                    output = self.model(**batch)
                    self.accelerator.backward((output["loss"] + self._penalty()) / len(group))
            outputs.append({n: value.detach() for n, value in output.items() if n.endswith(("loss", "accuracy"))})
        if self.reader is not None:
            self._hold_shared(self.reader)
        return outputs

    def _hold_shared(self, reader: PromptReader) -> None:
        """Puts gradients aside that a head gave to the PLM's weights (MLM's decoder is its token embeddings): they are
        for the PLM's step."""
        for parameter in reader.parameters:
            if parameter.grad is not None:
                held = self._held.get(parameter)
                new = parameter.grad * reader.weight
                self._held[parameter] = new if held is None else held + new
                parameter.grad = None

    def update(self) -> torch.Tensor | None:
        """Clips the gradients and updates the weights; returns the norm before clipping, None where it is not known."""
        scale = self._scale()
        self.tables.exchange()
        if not self.l2_in_loss:
            self.tables.add_l2(scale)  # gradients are still those of the scaled loss
        norm = self._clip(self.args.max_grad_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.reader is not None and self.closes:
            norm = self._update_plm(self.reader, norm)
        # (Accelerate's `step_was_skipped` does not see what a fused optimizer skips)
        self.skipped = self.skipped + 1 if self._scale() < scale else 0
        return norm

    def backward_plm(self) -> None:
        """The PLM's backward pass after the steps of a window: its gradients are then there, and no others."""
        if self.reader is not None:
            for parameter, gradient in self._held.items():
                parameter.grad = gradient
            self._held = {}
            self.reader.backward()

    def _update_plm(self, reader: PromptReader, norm: torch.Tensor) -> torch.Tensor:
        """The PLM's step; returns the norm of both steps' gradients."""
        if not reader.parameters:
            return norm
        self.backward_plm()
        of_plm = clip_gradients(reader.parameters, self.args.max_grad_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.linalg.vector_norm(torch.stack([norm, of_plm]))

    def _scale(self) -> float:
        """What a loss is multiplied by; a scaler makes it smaller where it skips a step."""
        return 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()

    def _penalty(self) -> torch.Tensor | float:
        return self.tables.penalty() if self.l2_in_loss else 0.0

    def _clip(self, max_norm: float) -> torch.Tensor | None:
        if splits_states(self.accelerator):
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm)
            if isinstance(norm, float):  # of DeepSpeed, which has clipped and updated in the backward pass
                return torch.tensor(norm, device=self.accelerator.device)
            return _whole(norm)
        self.accelerator.unscale_gradients()
        return clip_gradients(self.model.parameters(), max_norm)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales the gradients of these parameters, coalesced where they are sparse, to a norm of at most `max_norm` in
    all; returns the norm before."""
    graded = [p for p in parameters if p.grad is not None]
    dense = [p for p in graded if not p.grad.is_sparse]
    values = [p.grad.values() for p in graded if p.grad.is_sparse]
    norm = get_total_norm([p.grad for p in dense] + values)
    if norm.device.type == "cpu" and norm + 1e-6 <= max_norm:  # all would be multiplied by 1; a GPU is not waited for
        return norm
    clip_grads_with_norm_(dense, max_norm, norm)
    for part in values:
        part.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def weights_are_finite(model: nn.Module) -> bool:
    """Whether all weights are numbers, and none so large that its square is not (1e19). Under FSDP all processes must
    call it."""
    split(model)
    return bool(_whole(get_total_norm([parameter.detach() for parameter in model.parameters()])).isfinite())


def _whole(norm: torch.Tensor) -> torch.Tensor:
    """A norm as a plain tensor: under FSDP it comes in shares."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class FiniteWatch:
    """Remembers the first step with a number that is not finite, on the device, without waiting for it at every
    step."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.first = torch.zeros((), dtype=torch.long, device=accelerator.device)

    def watch(self, value: torch.Tensor, step: int) -> None:
        self.first = torch.where((self.first == 0) & ~value.isfinite(), step, self.first)

    def first_bad_step(self) -> int | None:
        """The first such step on any process, counted from 1; None while all was finite."""
        found = self.accelerator.gather(self.first[None])
        found = found[found > 0]
        return found.min().item() if len(found) else None
