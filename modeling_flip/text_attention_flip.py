# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""MTM's query of each row attends to the token states of the row's prompts, of which many rows may share one.

The states of one row after the other would be several times as large as what the PLM gives, and would be copied in each
step forth and back: most of the time of a step with entity prompts. Here they are looked up for a few rows at a time,
which a cache holds, and looked up again for the backward pass.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd.function import once_differentiable

# of the states that are looked up at a time
CHUNK_BYTES = {"cpu": 2**20}
CHUNK_BYTES_ELSEWHERE = 2**28


def attend_to_tokens(
    query: torch.Tensor, states: torch.Tensor, attention_mask: torch.Tensor, prompt_index: torch.Tensor
) -> torch.Tensor:
    """The mean of the token states of each row's prompts, weighed by the softmax of their scaled products with the
    row's query.

    Args:
        query: `(B, H)`.
        states: `(P, L, H)`, of each prompt's tokens.
        attention_mask: `(P, L)`, 1 for tokens and 0 for padding.
        prompt_index: `(B, E)`, the prompts of each row.

    Returns `(B, H)`, with the dtype of the states; sums are in float32.
    """
    return _TokenAttention.apply(query, states, attention_mask, prompt_index).to(states.dtype)


class _TokenAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, states, attention_mask, prompt_index):
        dtype = torch.promote_types(states.dtype, torch.float32)
        scale = states.shape[-1] ** -0.5
        context = query.new_empty(query.shape, dtype=dtype)
        mask = attention_mask[prompt_index].flatten(1) == 0  # (B, E L)
        attention = context.new_empty(mask.shape)
        with _without_autocast(query.device.type):
            for rows in _chunks(prompt_index, states):
                tokens = states[prompt_index[rows]].flatten(1, 2).to(dtype)  # (c, E L, H)
                scores = torch.bmm(tokens, (query[rows].to(dtype) * scale)[:, :, None])[..., 0]
                attention[rows] = scores.masked_fill_(mask[rows], -torch.inf).softmax(-1)
                context[rows] = torch.bmm(attention[rows, None], tokens)[:, 0]
        ctx.save_for_backward(query, states, attention, prompt_index)
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx, of_context):
        query, states, attention, prompt_index = ctx.saved_tensors
        dtype = attention.dtype
        scale = states.shape[-1] ** -0.5
        scaled, of_context = query.to(dtype) * scale, of_context.to(dtype)
        of_query = torch.empty_like(scaled)
        of_states = torch.zeros_like(states, dtype=dtype) if ctx.needs_input_grad[1] else None
        with _without_autocast(query.device.type):
            for rows in _chunks(prompt_index, states):
                index, weights = prompt_index[rows], attention[rows]
                tokens = states[index].flatten(1, 2).to(dtype)
                of_weights = torch.bmm(tokens, of_context[rows, :, None])[..., 0]
                of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True))
                of_query[rows] = torch.bmm(of_scores[:, None], tokens)[:, 0] * scale
                if of_states is not None:
                    sides = (
                        torch.stack([weights, of_scores], dim=2),
                        torch.stack([of_context[rows], scaled[rows]], dim=1),
                    )
                    of_tokens = torch.bmm(*sides)  # (c, E L, H)
                    of_states.index_add_(0, index.flatten(), of_tokens.view(-1, *states.shape[1:]))
        return of_query.to(query.dtype), None if of_states is None else of_states.to(states.dtype), None, None


def _without_autocast(device_type: str) -> AbstractContextManager:
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def _chunks(prompt_index: torch.Tensor, states: torch.Tensor) -> list[slice]:
    """Rows whose prompts' states are looked up together."""
    of_row = prompt_index.shape[1] * states.shape[1:].numel() * 4
    number = max(1, CHUNK_BYTES.get(states.device.type, CHUNK_BYTES_ELSEWHERE) // max(1, of_row))
    return [slice(start, start + number) for start in range(0, len(prompt_index), number)]
