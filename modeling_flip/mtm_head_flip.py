# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The head of MTM: masked ids from the other ids and the text.

Shapes below: B rows, F fields of the tabular view and their S slots in `feature_ids` (S = F while each field has one
value), L tokens, M masked features, H the PLM's hidden size, D_id the size of `h_id`.
"""

from itertools import accumulate

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import NUM_RESERVED_IDS, UNK_ID
from .heads_flip import RowDropout
from .id_tower import grown
from .losses_flip import IGNORE_INDEX, MaskedFeatureScores
from .text_attention_flip import attend_to_tokens

# of values that targets are ranked among: 4 MB, which a CPU's cache holds (9 times as many took 4 times as long)
SCORES_AT_ONCE = 2**20


def _places(masks: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rows and columns where each of some masks `(B, n)` is true. A device is waited for twice, however many masks
    there are."""
    numbers = torch.stack([mask.sum() for mask in masks]).tolist()
    places = torch.cat([mask.flatten() for mask in masks]).nonzero()[:, 0].split(numbers)
    starts = accumulate((mask.numel() for mask in masks), initial=0)
    inside = [place - start for place, start in zip(places, starts)]
    return [(one // mask.shape[1], one % mask.shape[1]) for one, mask in zip(inside, masks)]


class FlipMTMHead(nn.Module):
    """Recovers masked feature ids from `[~h_id ; c]` (the paper's MTM).

    `c` is what one query, `LayerNorm(W ~h_id)`, attends to among the token states of the unmasked text; without a
    `text_dim` there is no text, and `~h_id` alone is used (MAP). Noise features are drawn from the training counts by
    inversion: integers below the total, looked up in the running sum.
    """

    feature_counts: torch.Tensor

    def __init__(self, config: FlipConfig, id_dim: int, text_dim: int | None):
        super().__init__()
        self.config, self.id_dim = config, id_dim
        self.field_sizes = config.field_sizes
        self.field_starts = [0, *accumulate(self.field_sizes[:-1])]  # first row of each field in the tables
        slots = [0, *accumulate(field.num_slots for field in config.id_fields)]
        self.field_slots = [slice(*ends) for ends in zip(slots, slots[1:])]  # each field's columns of the labels
        size, total = config.mtm_embedding_size, sum(self.field_sizes)
        self.row_dropout = RowDropout(config.mtm_text_dropout)
        self.query = self.query_norm = None
        if text_dim is not None:
            self.query, self.query_norm = nn.Linear(id_dim, text_dim), nn.LayerNorm(text_dim)
        self.project = nn.Linear(id_dim + (text_dim or 0), len(self.field_sizes) * size)
        self.embeddings = nn.Embedding(total, size)
        self.bias = nn.Embedding(total, 1)
        self.register_buffer("feature_counts", torch.zeros(total, dtype=torch.long))
        self._noise: tuple[torch.Tensor, ...] | None = None

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.zeros_(self.feature_counts)  # garbage where a checkpoint without this head is loaded

    @torch.no_grad()
    def set_feature_counts(self, counts: torch.Tensor) -> None:
        """Sets the training counts of all features `(sum of field_sizes,)`; the output biases start at log p.

        Raises:
            ValueError: the counts have another length, or none of a field's values was counted.
        """
        counts = torch.as_tensor(counts, dtype=torch.long, device=self.feature_counts.device)
        if counts.shape != self.feature_counts.shape:
            raise ValueError(f"expected counts of {len(self.feature_counts)} features, got {tuple(counts.shape)}.")
        counts = counts.clone()
        for start in self.field_starts:
            counts[start : start + NUM_RESERVED_IDS] = 0  # reserved ids are neither targets nor noise
        empty = self._uncounted(counts)
        if empty:
            raise ValueError(f"field '{empty[0]}': no value was counted, so that noise cannot be drawn from it.")
        self.feature_counts.copy_(counts)
        self._noise = None
        log_prob = self._noise_tables()[4]
        self.bias.weight.copy_(torch.where(counts > 0, log_prob, 0.0)[:, None])

    @torch.no_grad()
    def grow(self, field_sizes: list[int]) -> None:
        """Appends rows to the output tables, as [`FeatureEmbedding.grow`] does; their biases start as the lowest of the
        field. Until `set_feature_counts` tells how often the new values occur, they are never noise."""
        starts = (
            (self.embeddings, lambda rows: rows[UNK_ID]),
            (self.bias, lambda rows: rows.amin(0)),
        )
        for table, start in starts:
            weight = grown(table.weight, self.field_sizes, field_sizes, start)
            table.weight = nn.Parameter(weight, table.weight.requires_grad)
            table.num_embeddings = len(weight)
        self.feature_counts = grown(self.feature_counts, self.field_sizes, field_sizes, lambda rows: rows.new_zeros(()))
        self._noise = None
        self.field_sizes = list(field_sizes)
        self.field_starts = [0, *accumulate(field_sizes[:-1])]

    def start_with(self, counts: torch.Tensor) -> None:
        """As `set_feature_counts`, where these are counts of this model's features, and some value of each field was
        counted."""
        fits = counts.shape == self.feature_counts.shape and not self.feature_counts.is_meta
        if fits and not self._uncounted(counts):
            self.set_feature_counts(counts)

    def _uncounted(self, counts: torch.Tensor) -> list[str]:
        """Names of the fields of which no value was counted."""
        return [
            field.name
            for start, field in zip(self.field_starts, self.config.id_fields)
            if counts[start + NUM_RESERVED_IDS : start + field.vocab_size].sum() == 0
        ]

    @torch.no_grad()
    def start_from(self, other: "FlipMTMHead") -> None:
        """Takes over what another head of the same fields has learned of recovering ids from `h_id`; how to read a text
        it learns anew."""
        for ours, theirs in ((self.embeddings, other.embeddings), (self.bias, other.bias)):
            ours.weight.copy_(theirs.weight)
        self.project.weight[:, : self.id_dim].copy_(other.project.weight[:, : self.id_dim])
        self.project.bias.copy_(other.project.bias)

    def _noise_tables(self):
        """The running sum of the counts, per field its first row and the range of its counts in that sum, each
        feature's log probability as noise, and each slot's field."""
        if self._noise is None or self._noise[0].device != self.feature_counts.device:
            counts, starts = self.feature_counts, torch.tensor(self.field_starts, device=self.feature_counts.device)
            running = counts.cumsum(0)
            low = (running - counts)[starts]
            high = running[starts + torch.tensor(self.field_sizes, device=counts.device) - 1]
            if self.config.mtm_noise == "global":
                low, high = torch.zeros_like(low), running[-1].expand_as(high)
            empty = (high == low).tolist()
            lacking = [
                field.name for n, field in enumerate(self.config.id_fields) if empty[n] and not self.uses_softmax(n)
            ]
            if lacking:
                raise ValueError(
                    f"MTM draws noise from how often each value of {', '.join(lacking)} occurs in the training rows, "
                    "and knows no counts: call `model.set_feature_counts(processor.count_features(training_rows))` "
                    "first."
                )
            # a feature that was never counted cannot be drawn; 1 keeps its log finite should a label name it
            totals = torch.repeat_interleave(high - low, torch.tensor(self.field_sizes, device=counts.device))
            log_prob = counts.clamp(min=1).double().log() - totals.clamp(min=1).double().log()
            self._noise = (
                running,
                starts,
                low,
                high,
                log_prob.float(),
                torch.tensor(self.config.slot_fields, device=counts.device),
            )
        return self._noise

    def sample_noise(self, fields: torch.Tensor, uniform: torch.Tensor | None = None) -> torch.Tensor:
        """k noise features of each target, `(M,)` fields -> `(M, k)` rows of the tables, in O(log vocabulary) each.

        Args:
            uniform: `(M, k)` float64 numbers in [0, 1) to draw with (float32 could name 2^24 features); random when
                `None`.
        """
        running, _, low, high, _, _ = self._noise_tables()
        low, high = low[fields, None], high[fields, None]
        if uniform is None:
            uniform = torch.rand(len(fields), self.config.mtm_num_noise, dtype=torch.double, device=fields.device)
        drawn = (uniform * (high - low)).long().minimum(high - low - 1)  # a number rounded to 1 is of the field too
        return torch.searchsorted(running, low + drawn, right=True)

    def represent(
        self,
        id_hidden_state: torch.Tensor,
        text_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`(B, D_id)` masked tabular view and `(P, L, H)` unmasked text -> one vector per field, `(B, F, size)`.

        Args:
            attention_mask: `(P, L)`.
            prompt_index: `(B, E)`, the prompts of each row.
        """
        states = [id_hidden_state]
        if self.query is not None:
            query = self.query_norm(self.query(id_hidden_state))  # (B, H)
            context = attend_to_tokens(query, text_hidden_states, attention_mask, prompt_index)
            states.append(self.row_dropout(context))
        return self.project(torch.cat(states, dim=-1)).unflatten(-1, (len(self.field_sizes), -1))

    def score(self, vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`s = vector . output embedding + bias`: `(M, size)` and table rows `(M, n)` -> `(M, n)`."""
        return torch.einsum("md,mnd->mn", vectors, self.embeddings(rows)).float() + self.bias(rows)[..., 0].float()

    def field_logits(self, vectors: torch.Tensor, field: int) -> torch.Tensor:
        """Scores of all real values of one field, `(M, size)` -> `(M, field size - reserved)`."""
        start = self.field_starts[field]
        # looked up, not sliced: a slice's gradient is a whole table
        rows = torch.arange(start + NUM_RESERVED_IDS, start + self.field_sizes[field], device=vectors.device)
        return (vectors @ self.embeddings(rows).T).float() + self.bias(rows)[:, 0].float()

    def uses_softmax(self, field: int) -> bool:
        """Whether a field is small enough for the full softmax; noise that is mostly the target itself teaches
        little."""
        values = self.field_sizes[field] - NUM_RESERVED_IDS
        return self.config.mtm_noise == "field" and values <= self.config.mtm_full_softmax_size

    def scores(
        self, vectors: torch.Tensor, labels: torch.Tensor, noise_uniform: torch.Tensor | None = None
    ) -> MaskedFeatureScores:
        """Scores of the masked features and of their noise. Those of one field are all recovered from the field's one
        vector.

        Args:
            vectors: `(B, F, size)` from `represent`.
            labels: `(B, S)` local ids of masked features, -100 elsewhere.
            noise_uniform: `(B, S, k)` numbers to draw the noise with, see `sample_noise`; random when `None`.
        """
        k = self.config.mtm_num_noise
        if noise_uniform is not None and noise_uniform.shape[-1] != k:
            raise ValueError(
                f"noise_uniform has {noise_uniform.shape[-1]} numbers a feature, `config.mtm_num_noise` is {k}."
            )
        softmax_logits, softmax_targets = [], []
        with_noise = labels != IGNORE_INDEX
        small = list(filter(self.uses_softmax, range(len(self.field_sizes))))
        masks = [with_noise[:, self.field_slots[field]].clone() for field in small]
        for field in small:
            with_noise[:, self.field_slots[field]] = False
        *of_small, (rows, slots) = _places([*masks, with_noise])
        for field, (some, at) in zip(small, of_small):
            softmax_logits.append(self.field_logits(vectors[some, field], field))
            softmax_targets.append(labels[:, self.field_slots[field]][some, at] - NUM_RESERVED_IDS)
        _, starts, _, _, log_prob, slot_fields = self._noise_tables()
        fields = slot_fields[slots]
        targets = (labels[rows, slots] + starts[fields])[:, None]  # (M, 1)
        noise = self.sample_noise(fields, None if noise_uniform is None else noise_uniform[rows, slots])
        scores = self.score(vectors[rows, fields], torch.cat([targets, noise], dim=1))
        return MaskedFeatureScores(
            softmax_logits, softmax_targets, scores[:, 0], scores[:, 1:], log_prob[targets[:, 0]], log_prob[noise]
        )

    @torch.no_grad()
    def accuracy(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Share of masked features that rank first among all real values of their field; where n values of a field are
        masked in a row, among the first n. Arguments as of `scores`."""
        hits = torch.zeros((), device=labels.device)
        for field, slots in enumerate(self.field_slots):
            targets = labels[:, slots]
            rows = (targets != IGNORE_INDEX).any(1)
            targets = targets[rows]  # (R, n)
            masked = targets != IGNORE_INDEX
            ranks = self.ranks(vectors[rows, field], targets, field)
            hits += ((ranks < masked.sum(1, keepdim=True)) & masked).sum()
        return hits / (labels != IGNORE_INDEX).sum().clamp(min=1)

    def ranks(self, queries: torch.Tensor, targets: torch.Tensor, field: int) -> torch.Tensor:
        """How many of a field's real values score higher than each target, or as high with a lower id: `(R, size)` and
        local ids `(R, n)` -> `(R, n)`. What is no target has any rank."""
        own = torch.full_like(targets, -torch.inf, dtype=torch.float)
        for first, scores in self._score_blocks(queries, field):
            at = targets - first
            inside = (at >= 0) & (at < scores.shape[1])
            own = torch.where(inside, scores.gather(1, at.clamp(0, scores.shape[1] - 1)), own)
        ranks = torch.zeros_like(targets)
        for first, scores in self._score_blocks(queries, field):
            ids = torch.arange(first, first + scores.shape[1], device=scores.device)
            for slot in range(targets.shape[1]):
                target, score = targets[:, slot, None], own[:, slot, None]
                ranks[:, slot] += ((scores > score) | ((scores == score) & (ids < target))).sum(1)
        return ranks

    def _score_blocks(self, queries: torch.Tensor, field: int):
        """Scores of a field's real values in blocks, `(R, block)`, each with its first local id: all of a large
        vocabulary at once would not fit into memory."""
        start, size = self.field_starts[field], self.field_sizes[field]
        block = max(1, SCORES_AT_ONCE // max(1, len(queries)))
        for first in range(NUM_RESERVED_IDS, size, block):
            rows = slice(start + first, start + min(first + block, size))
            yield first, (queries @ self.embeddings.weight[rows].T).float() + self.bias.weight[rows, 0].float()
