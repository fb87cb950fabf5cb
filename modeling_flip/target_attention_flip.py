# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a user's history says of a row's item."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .histories_flip import IS_CLICKED, NO_ENTRY, NOT_CLICKED
from .layers_flip import TowerLinear

ATTENTION_DIM = 64
NUM_HEADS = 4
SMALLEST_SHARE = 0.05  # of the attention, that a ratio of clicks is smoothed with
PRIOR_ENTRIES = 2.0  # clicked and not clicked, that are added to a history


class FlipTargetAttention(nn.Module):
    """Attention of a row's item over the history, and the clicks there (after DIN: Zhou et al., KDD 2018).

    Each head weighs the entries by their likeness to the row's item, beside a place that stands for no entry, so that a
    history may have nothing to say and an empty one says nothing. Clicked entries and others are summed up apart; what
    the entries say is: both sums, the log ratio of the attention on clicked entries and on others (which of its
    neighbours the user clicked), and the same of the whole history with the logarithm of its length.

    Args:
        target_dim, entry_dim: sizes of the vectors of the row's item, and of an entry's.
        output_dim: size of the result.
    """

    def __init__(self, target_dim: int, entry_dim: int, output_dim: int):
        super().__init__()
        self.target = TowerLinear(target_dim, ATTENTION_DIM)
        self.entry = TowerLinear(entry_dim, 2 * ATTENTION_DIM)  # key and value
        self.nothing = nn.Parameter(torch.zeros(NUM_HEADS))
        self.output = TowerLinear(2 * ATTENTION_DIM + NUM_HEADS + 2, output_dim)

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.zeros_(self.nothing)

    def forward(
        self,
        target: torch.Tensor,
        entries: torch.Tensor,
        outcomes: torch.Tensor,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of items `(B, target_dim)` over histories, see `attend`."""
        return self.attend(self.target(target), entries, outcomes, places)

    def attend(
        self, query: torch.Tensor, entries: torch.Tensor, outcomes: torch.Tensor, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            query: `(B, ATTENTION_DIM)`, what the layer `target` makes of the rows' items; or `(B, C, ATTENTION_DIM)`,
                of C rows that share a history.
            entries: `(B, n, 2 ATTENTION_DIM)`, what the layer `entry` makes of the entries' vectors.
            outcomes: `(B, n)`: 1 not clicked, 2 clicked, 0 where there is no entry.
            places: `(B, n)`, where `entries` are `(items, 2 ATTENTION_DIM)`, each item once: which one an entry is.

        Returns `(B, output_dim)`, or `(B, C, output_dim)`.
        """
        shape, rows = query.shape[:-1], query.shape[1] if query.ndim == 3 else 1
        query = query.view(outcomes.shape[0], rows, NUM_HEADS, ATTENTION_DIM // NUM_HEADS)
        keys, values = entries.chunk(2, dim=-1)
        if places is not None:
            keys, values = (nn.functional.embedding(places, part.contiguous()) for part in (keys, values))
        # histories of one row each are many, and to copy them head by head takes longer than products with zeros
        whole = places is not None and rows == 1
        scores = likeness(query, keys, whole) / query.shape[-1] ** 0.5  # (B, heads, C, n)
        scores = scores.masked_fill((outcomes == NO_ENTRY)[:, None, None], torch.finfo(scores.dtype).min)
        nothing = self.nothing.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, nothing], dim=-1).softmax(-1)[..., :-1]  # (B, heads, C, n)
        of_outcome = torch.stack([outcomes == IS_CLICKED, outcomes == NOT_CLICKED], dim=1)  # (B, 2, n)
        parts = weights[..., None, :] * of_outcome[:, None, None]  # (B, heads, C, 2, n)
        said = weighted_sums(parts.to(values.dtype), values, whole)  # (B, C, heads, 2, d)
        shares = (parts.sum(-1) + SMALLEST_SHARE).log().transpose(1, 2).unbind(-1)  # (B, C, heads) each
        counts = of_outcome.sum(-1).to(weights.dtype)[:, None].split(1, dim=-1)  # (B, 1, 1) each
        rate = [(count + PRIOR_ENTRIES).log() for count in counts]
        of_history = [fact.expand(-1, rows, 1) for fact in (rate[0] - rate[1], sum(counts).log1p())]
        facts = [said.flatten(2), shares[0] - shares[1], *of_history]
        return self.output(torch.cat(facts, dim=-1)).view(*shape, self.output.out_features)


def likeness(query: torch.Tensor, keys: torch.Tensor, whole: bool) -> torch.Tensor:
    """Products of queries `(B, C, heads, d)` with keys `(B, n, heads d)`, head by head: `(B, heads, C, n)`.

    Args:
        whole: of one query a history, C = 1, with the keys as they lie: each head of it has zeros in place of the
            others.
    """
    if not whole:
        return query.transpose(1, 2) @ keys.unflatten(-1, query.shape[2:]).transpose(1, 2).mT
    own = torch.eye(query.shape[2], dtype=query.dtype, device=query.device)[..., None]
    return ((query * own).flatten(-2) @ keys.mT)[:, :, None]


def weighted_sums(weights: torch.Tensor, values: torch.Tensor, whole: bool) -> torch.Tensor:
    """Sums over the entries of values `(B, n, heads d)` with weights `(B, heads, C, k, n)`, head by head: `(B, C,
    heads, k, d)`; `whole` as of [`likeness`], which sums up what is of other heads too, and leaves it."""
    heads, rows, kinds = weights.shape[1:4]
    if not whole:
        sums = weights.flatten(2, 3) @ values.unflatten(-1, (heads, -1)).transpose(1, 2)
        return sums.unflatten(2, (rows, kinds)).transpose(1, 2)
    sums = (weights.flatten(1, 3) @ values).view(-1, heads, kinds, heads, values.shape[-1] // heads)
    return sums.diagonal(dim1=1, dim2=3).movedim(-1, 1)[:, None]
