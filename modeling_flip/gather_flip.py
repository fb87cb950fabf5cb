# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Exchanges between the processes that train together: rows, and totals that means are over."""

import torch
import torch.distributed as dist
from torch import nn


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class GatherRows(torch.autograd.Function):
    """All processes' rows in rank order; the gradient of a row is the sum of what all processes' losses have for it."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # a reduce-scatter would send half as much, but not every backend has it
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_unequal(rows: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """The rows of all processes in rank order, without gradients; `lengths` says how many each has."""
    # padded to the longest: collectives of equal sizes work on every backend
    padded = nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(lengths) - len(rows))).contiguous()
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths)])


def gather_rows(embeds: torch.Tensor, training: bool = True) -> tuple[torch.Tensor, int]:
    """The rows of all processes in rank order, `(B, d)` -> `(sum of B, d)`, and the number of this process's first one.

    While training they have gradients, and each process has as many rows; otherwise their numbers may differ.
    """
    if world_size() == 1:
        return embeds, 0
    if training:
        return GatherRows.apply(embeds), dist.get_rank() * len(embeds)
    sizes = [torch.empty(1, dtype=torch.long, device=embeds.device) for _ in range(world_size())]
    dist.all_gather(sizes, sizes[0].new_tensor([len(embeds)]))
    lengths = torch.cat(sizes).tolist()
    return gather_unequal(embeds, lengths), sum(lengths[: dist.get_rank()])


def share_of_total(total: torch.Tensor, training: bool) -> torch.Tensor:
    """What a process divides its sum of losses by, so that DDP's average over processes is the mean over the targets of
    all.

    Args:
        total: scalar, the number of this process's targets, or the sum of their weights.
    """
    total = total.float()
    if training and world_size() > 1:
        total = total.clone()  # of the caller
        dist.all_reduce(total)
        total = total / world_size()
    return torch.where(total > 0, total, 1.0)  # without targets the sum of their losses is 0
