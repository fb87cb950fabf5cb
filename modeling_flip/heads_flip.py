# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The heads that FLIP's models put on the two towers.

Shapes below: B rows, F fields of the tabular view and their S slots in `feature_ids` (S = F while each field has one
value), L tokens, M masked tokens or features, H the PLM's hidden size, D_id the size of `h_id`.
"""

import math
from itertools import accumulate

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_flip import FlipConfig
from .fields_flip import NUM_RESERVED_IDS, UNK_ID
from .gather_flip import gather_rows
from .id_tower import grown
from .layers_flip import ZeroLinear
from .losses_flip import IGNORE_INDEX, MaskedFeatureScores
from .text_attention_flip import attend_to_tokens

# of values that targets are ranked among: 4 MB, which a CPU's cache holds (9 times as many took 4 times as long)
SCORES_AT_ONCE = 2**20


class FlipProjection(nn.Module):
    """Projection to the space of ICL: linear, GELU, linear, dropout, residual, LayerNorm."""

    def __init__(self, input_dim: int, output_dim: int, dropout: float):
        super().__init__()
        self.input = nn.Linear(input_dim, output_dim)
        self.output = nn.Linear(output_dim, output_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected = self.input(hidden)
        return self.norm(projected + self.dropout(self.output(nn.functional.gelu(projected))))


def contrastive_logits(
    id_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor | float, training: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scaled similarities of this process's rows with the rows of all processes (ICL's in-batch negatives).

    Args:
        id_embeds, text_embeds: `(B, d)`; while training every process has as many rows.
        scale: what similarities are multiplied by.

    Returns `id_to_text` and `text_to_id`, `(B, rows of all processes)`, and the number of each row's own counterpart
    `(B,)`.
    """
    (all_id, first), (all_text, _) = gather_rows(id_embeds, training), gather_rows(text_embeds, training)
    labels = torch.arange(first, first + len(id_embeds), device=id_embeds.device)
    return scale * (id_embeds @ all_text.T).float(), scale * (text_embeds @ all_id.T).float(), labels


class IdentityLinear(nn.Linear):
    """A square linear layer that starts as the identity."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.eye_(self.weight)
        init.zeros_(self.bias)


class RowDropout(nn.Module):
    """Whole rows of `(B, n)` become 0 while training, a share of them, and the others stay as they are."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.training or self.share == 0:
            return rows
        return rows.masked_fill(torch.rand(len(rows), 1, device=rows.device) < self.share, 0.0)


class TextField(nn.Linear):
    """The PLM's pooled state as an embedding of the ID tower, of the size that feature embeddings start with: `(B, H)`
    -> `(B, D)`."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.normal_(
            self.weight, std=config.id_initializer_range / math.sqrt(self.in_features)
        )  # of inputs with variance 1
        init.zeros_(self.bias)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        pooled = pooled.to(self.weight.dtype)  # remembered states have that of before DeepSpeed rounded the model
        return super().forward(nn.functional.layer_norm(pooled, pooled.shape[-1:]))


class FlipMLMHead(nn.Module):
    """Predicts masked tokens from `[~H_token ; h_id]` (the paper's MLM).

    Without an `id_dim` it predicts from the text alone. The fusion starts as `~H_token` plus a small part of `h_id`,
    and what follows is the usual head of a masked language model (dense, activation, LayerNorm, decoder tied to the
    input embeddings), so that a PLM's own head fits.

    While pretraining on a dataset its softmax may be over the tokens that occur there ([`set_vocabulary`]): they are
    few beside all of the PLM's, whose logits would take much of a step. What they are is not saved.
    """

    # the names that transformers' masked language models give to the parts of this head
    PLM_NAMES = {
        "dense": (
            "cls.predictions.transform.dense",
            "lm_head.dense",
            "vocab_transform",
            "generator_predictions.dense",
            "head.dense",
            "lm_predictions.lm_head.dense",
            "predictions.dense",
        ),
        "norm": (
            "cls.predictions.transform.LayerNorm",
            "lm_head.layer_norm",
            "vocab_layer_norm",
            "generator_predictions.LayerNorm",
            "head.norm",
            "lm_predictions.lm_head.LayerNorm",
            "predictions.LayerNorm",
        ),
        "decoder": (
            "cls.predictions",
            "lm_head",
            "vocab_projector",
            "generator_lm_head",
            "decoder",
            "lm_predictions.lm_head",
            "predictions",
        ),
    }

    def __init__(self, text_config, id_dim: int | None, embedding_dim: int, vocab_size: int, id_dropout: float = 0.0):
        super().__init__()
        self.row_dropout = RowDropout(id_dropout)
        self.fuse_text = IdentityLinear(text_config.hidden_size, text_config.hidden_size)
        self.fuse_id = None if id_dim is None else nn.Linear(id_dim, text_config.hidden_size, bias=False)
        self.dense = nn.Linear(text_config.hidden_size, embedding_dim)
        names = ("classifier_activation", "hidden_act", "activation")
        self.activation = ACT2FN[
            next((getattr(text_config, name) for name in names if hasattr(text_config, name)), "gelu")
        ]
        eps = getattr(text_config, "layer_norm_eps", getattr(text_config, "norm_eps", 1e-12))
        self.norm = nn.LayerNorm(embedding_dim, eps=eps)
        self.decoder = nn.Linear(embedding_dim, vocab_size)
        self.register_buffer("vocabulary", None, persistent=False)
        self.register_buffer("places", None, persistent=False)

    @torch.no_grad()
    def set_vocabulary(self, token_ids: torch.Tensor | None) -> None:
        """The softmax is over these tokens `(n,)`, ascending, from here on; None: over all of the PLM's."""
        self.vocabulary = self.places = None
        if token_ids is not None:
            device = self.decoder.bias.device
            self.vocabulary = token_ids.to(device)
            self.places = torch.full((len(self.decoder.bias),), -1, device=device)
            self.places[self.vocabulary] = torch.arange(len(token_ids), device=device)

    def candidates(self, targets: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The tokens that masked ones are told from, None for all, and where among them the targets `(M,)` are.

        In training all targets are in the vocabulary, and another would be an error of the loss; in evaluation those
        that are not come in addition.
        """
        if self.vocabulary is None:
            return None, targets
        known = targets != IGNORE_INDEX
        places = torch.where(known, self.places[targets.clamp(min=0)], IGNORE_INDEX)
        if self.training:
            return self.vocabulary, places
        new = targets[places == -1].unique()
        places[places == -1] = len(self.vocabulary) + torch.searchsorted(new, targets[places == -1])
        return torch.cat([self.vocabulary, new]), places

    def forward(
        self,
        token_states: torch.Tensor,
        id_hidden_state: torch.Tensor | None = None,
        candidates: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`(M, H)` states of the masked tokens and `(M, D_id)` vectors of their rows -> logits `(M, vocabulary)`, or
        `(M, n)` of the tokens `candidates` `(n,)`.

        While training some of the rows' vectors are to be dropped before, with `row_dropout`.
        """
        fused = self.fuse_text(token_states)
        if self.fuse_id is not None:
            fused = fused + self.fuse_id(id_hidden_state)
        states = self.norm(self.activation(self.dense(fused)))
        if candidates is None:
            return self.decoder(states)
        return nn.functional.linear(states, self.decoder.weight[candidates], self.decoder.bias[candidates])

    @torch.no_grad()
    def load_plm_head(self, mlm_model: PreTrainedModel) -> bool:
        """Copies the head of a transformers masked language model; False, and no change, where it is of another
        form."""
        state = dict(mlm_model.named_parameters(remove_duplicate=False))
        found = {
            part: next((n for n in names if f"{n}.bias" in state or f"{n}.weight" in state), None)
            for part, names in self.PLM_NAMES.items()
        }
        if None in (found["dense"], found["norm"]):
            return False
        for part in ("dense", "norm"):
            if state[f"{found[part]}.weight"].shape != getattr(self, part).weight.shape:
                return False
        for part, name in found.items():
            module = getattr(self, part)
            if part != "decoder":  # the decoder's weight is tied to the input embeddings
                module.weight.copy_(state[f"{name}.weight"])
            bias = state.get(f"{name}.bias")
            module.bias.zero_() if bias is None else module.bias.copy_(bias)
        return True


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
            prompt_index: `(B, E)`, the prompts of each row; without it each row has the one of its own number.
        """
        states = [id_hidden_state]
        if self.query is not None:
            if prompt_index is None:
                prompt_index = torch.arange(len(id_hidden_state), device=id_hidden_state.device)[:, None]
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


class FlipFusion(nn.Module):
    """The joint logit `alpha * logit_id + (1 - alpha) * logit_plm` (the paper's adaptive fine-tuning).

    `scalar`: one alpha, a sigmoid that starts at 0.5. `gate`: each row its own alpha from both towers' states and from
    which of its ids are unknown (a scalar cannot turn to the text when the ids are new). `raw`: the release's unbounded
    scalar, which starts at 0.
    """

    def __init__(self, config: FlipConfig, id_dim: int, text_dim: int):
        super().__init__()
        self.kind = config.fusion
        if self.kind == "gate":
            self.id_norm, self.text_norm = nn.LayerNorm(id_dim), nn.LayerNorm(text_dim)
            self.gate = ZeroLinear(id_dim + text_dim + config.num_slots, 1)
        else:
            self.alpha = nn.Parameter(torch.zeros(1))

    def init_flip_weights(self, config: FlipConfig) -> None:
        if self.kind != "gate":
            init.zeros_(self.alpha)

    def forward(self, id_logits, text_logits, id_hidden_state, text_pooled, feature_ids):
        if self.kind == "gate":
            unknown = (feature_ids == UNK_ID).to(text_pooled.dtype)  # (B, S)
            states = [self.id_norm(id_hidden_state), self.text_norm(text_pooled), unknown]
            alpha = self.gate(torch.cat(states, dim=-1)).float().sigmoid()  # (B, 1)
        else:
            alpha = self.alpha if self.kind == "raw" else self.alpha.sigmoid()
        return alpha * id_logits + (1 - alpha) * text_logits, alpha
