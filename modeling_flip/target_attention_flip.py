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
        shape, heads = query.shape[:-1], (NUM_HEADS, ATTENTION_DIM // NUM_HEADS)
        users, rows = outcomes.shape[0], query.shape[1] if query.ndim == 3 else 1
        query = query.view(users, rows, *heads)
        keys, values = entries.chunk(2, dim=-1)
        if places is not None:
            keys, values = (nn.functional.embedding(places, part.contiguous()) for part in (keys, values))
        # Histories of one row each are many. They stay as they lie, heads side by side, as to copy them head by head
        # took longer than the zeros that the heads of a query then have beside them.
        whole = places is not None and rows == 1
        if whole:  # (B, 1, heads, ATTENTION_DIM) and (B, 1, n, ATTENTION_DIM)
            own = torch.eye(NUM_HEADS, dtype=query.dtype, device=query.device)[..., None]
            query, keys, values = (query[:, :, None] * own).flatten(-2), keys[:, None], values[:, None]
        else:  # (B, heads, C, d) and (B, heads, n, d)
            query = query.transpose(1, 2)
            keys, values = (part.unflatten(-1, heads).transpose(1, 2) for part in (keys, values))
        scores = (query @ keys.mT).view(users, NUM_HEADS, rows, outcomes.shape[1]) / heads[1] ** 0.5
        scores = scores.masked_fill((outcomes == NO_ENTRY)[:, None, None], torch.finfo(scores.dtype).min)
        nothing = self.nothing.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, nothing], dim=-1).softmax(-1)[..., :-1]  # (B, heads, C, n)
        of_outcome = torch.stack([outcomes == IS_CLICKED, outcomes == NOT_CLICKED], dim=1)  # (B, 2, n)
        parts = weights[..., None, :] * of_outcome[:, None, None]  # (B, heads, C, 2, n)
        weighted = parts.to(values.dtype)
        if whole:
            said = (weighted.flatten(1, 3)[:, None] @ values).view(users, 1, NUM_HEADS, 2, *heads)
            said = said.diagonal(dim1=2, dim2=4).movedim(-1, 2)  # (B, 1, heads, 2, d), each head's own part
        else:
            said = (weighted.flatten(2, 3) @ values).unflatten(2, (rows, 2)).transpose(1, 2)  # (B, C, heads, 2, d)
        shares = (parts.sum(-1) + SMALLEST_SHARE).log().transpose(1, 2).unbind(-1)  # (B, C, heads) each
        counts = of_outcome.sum(-1).to(weights.dtype)[:, None].split(1, dim=-1)  # (B, 1, 1) each
        rate = [(count + PRIOR_ENTRIES).log() for count in counts]
        of_history = [fact.expand(-1, rows, 1) for fact in (rate[0] - rate[1], sum(counts).log1p())]
        facts = [said.flatten(2), shares[0] - shares[1], *of_history]
        return self.output(torch.cat(facts, dim=-1)).view(*shape, self.output.out_features)
