# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The losses of FLIP: functions of tensors, each testable without a model.

Shapes below: B rows, M masked tokens or features.
"""

import math
from typing import NamedTuple

import torch
from torch import nn

from .gather_flip import gather_rows, share_of_total
from .inputs_flip import IGNORE_INDEX as IGNORE_INDEX
from .inputs_flip import check_clicks

USER, WITHIN_USER, ROW = "user", "within_user", "row"  # the entity whose rows are each other's negatives; terms of ICL


class MaskedFeatureScores(NamedTuple):
    """What MTM's head says of a batch's masked features, see [`masked_tabular_loss`].

    Args:
        softmax_logits, softmax_targets: of each small field `(M, values)` and `(M,)`.
        target_scores, target_log_prob: `(M,)`, of the features of all other fields, and their log probability as noise.
        noise_scores, noise_log_prob: `(M, k)`, of the noise features of each of them.
    """

    softmax_logits: list[torch.Tensor]
    softmax_targets: list[torch.Tensor]
    target_scores: torch.Tensor
    noise_scores: torch.Tensor
    target_log_prob: torch.Tensor
    noise_log_prob: torch.Tensor


def masked_language_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The paper's MLM: cross-entropy of `(M, vocabulary)` logits, the sum over the masked tokens `(M,)`; targets of
    -100 do not count."""
    return nn.functional.cross_entropy(logits.float(), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def nce_loss(target_scores, noise_scores, target_log_prob, noise_log_prob) -> torch.Tensor:
    """Noise-contrastive estimation (NCE, of the paper's MTM): each target against its k noise features, one loss a
    target `(M,)`.

    `-log sigmoid(s(v) - log k p(v)) - sum_noise log(1 - sigmoid(s(v') - log k p(v')))`; scores and log probabilities
    of the targets are `(M,)`, of the noise `(M, k)`.
    """
    log_k = math.log(noise_scores.shape[-1])
    target = nn.functional.softplus(log_k + target_log_prob - target_scores)
    noise = nn.functional.softplus(noise_scores - noise_log_prob - log_k)
    return target + noise.sum(-1)


def masked_tabular_loss(scores: MaskedFeatureScores) -> torch.Tensor:
    """The paper's MTM, the sum over the masked features: cross-entropy over all values of a small field, NCE for the
    features of the others."""
    total = scores.target_scores.new_zeros(())
    for logits, targets in zip(scores.softmax_logits, scores.softmax_targets):
        total = total + nn.functional.cross_entropy(logits, targets, reduction="sum")
    noise = scores.target_scores, scores.noise_scores, scores.target_log_prob, scores.noise_log_prob
    return total + nce_loss(*noise).sum()


def contrastive_loss(id_to_text: torch.Tensor, text_to_id: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The paper's ICL, symmetric InfoNCE: the mean over `(B, N)` scaled similarities of each row's view with the other
    view of all N rows, whose own counterpart is number `labels` `(B,)`."""
    return (nn.functional.cross_entropy(id_to_text, labels) + nn.functional.cross_entropy(text_to_id, labels)) / 2


def contrastive_accuracy(id_to_text: torch.Tensor, text_to_id: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of the rows whose own text is the most similar one to their ids; arguments as of [`contrastive_loss`]."""
    return (id_to_text.argmax(-1) == labels).float().mean()


class ContrastTerm(NamedTuple):
    """One term of ICL with entity prompts.

    Args:
        loss: scalar, symmetric InfoNCE.
        right: `(2,)`, how many counterparts were the most similar ones, and of how many.
    """

    loss: torch.Tensor
    right: torch.Tensor


def entity_contrasts(
    id_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    keys: tuple[torch.Tensor, torch.Tensor],
    names: list[str],
    scale: torch.Tensor | float,
    training: bool = True,
) -> dict[str, ContrastTerm]:
    """ICL with entity prompts: a term for each entity, over the distinct ids of it in the batches of all processes, and
    a term for rows among the rows of the same user (ICL over rows alone would learn to tell users apart).

    Rows with equal prompts are positives of each other. An entity of many rows counts once, as anchor and as candidate.

    Args:
        id_embeds, text_embeds: `(B, V, d)`: the first view is that of the row, the others those of the entities.
        keys: `(B, V - 1)` int64 of the ids and of the prompts of each entity: equal where those are.
        names: of the V - 1 entities.
        scale: what similarities are multiplied by.
        training: whether there are gradients, and as many rows in every process.
    """
    (all_ids, _), (all_texts, _) = (gather_rows(embeds, training) for embeds in (id_embeds, text_embeds))
    all_id_keys, all_text_keys = (gather_rows(part, training)[0] for part in keys)
    same_ids = keys[0][:, None] == all_id_keys[None]  # (B, N, V - 1)
    same_texts = keys[1][:, None] == all_text_keys[None]

    def similarities(view: int) -> tuple[torch.Tensor, torch.Tensor]:
        to_texts = scale * (id_embeds[:, view] @ all_texts[:, view].T).float()
        return to_texts, scale * (text_embeds[:, view] @ all_ids[:, view].T).float()

    def term(view: int, positives, candidates, weights, counts=(None, None)) -> ContrastTerm:
        loss = right = torch.zeros((), device=weights.device)
        for logits, count in zip(similarities(view), counts):
            logits = logits.masked_fill(~candidates, -torch.inf)
            hits = positives.gather(1, logits.argmax(1, keepdim=True))[:, 0]
            if count is not None:
                logits = logits - count.log()
            wanted = logits.masked_fill(~positives, -torch.inf).logsumexp(1)
            loss = loss + (weights * (logits.logsumexp(1) - wanted)).sum() / 2
            right = right + (weights * hits).sum() / 2
        total = weights.sum()
        return ContrastTerm(loss / share_of_total(total, training), torch.stack([right, total]).detach())

    terms = {}
    for number, name in enumerate(names):
        positives = same_texts[..., number]
        times = [_times(part[:, number]) for part in (all_text_keys, all_id_keys)]
        weights = 1 / same_ids[..., number].sum(1)
        terms[name] = term(number + 1, positives, torch.ones_like(positives), weights, times)
    if len(names) > 1:
        positives = same_texts.all(-1)
        candidates = same_ids[..., names.index(USER)] | positives if USER in names else torch.ones_like(positives)
        weights = (candidates & ~positives).any(1).float()
        terms[WITHIN_USER if USER in names else ROW] = term(0, positives, candidates, weights)
    return terms


def _times(keys: torch.Tensor) -> torch.Tensor:
    """How often each key occurs, `(N,)` -> `(N,)`."""
    keys = keys.contiguous()
    ordered = keys.sort().values  # `unique` would make the host wait for the device
    return (torch.searchsorted(ordered, keys, right=True) - torch.searchsorted(ordered, keys)).float()


def click_loss(
    logits: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None, training: bool = False
) -> torch.Tensor:
    """Binary cross-entropy of `(B, n)` logits, the sum over n heads, averaged over the rows with their weights where
    given.

    Args:
        labels, sample_weight: `(B,)`; clicks 0 or 1, and weights.
        training: with weights, the average of the processes' losses is the mean over the rows of all.

    Raises:
        TypeError: labels or weights are no tensors of numbers.
        ValueError: there are no rows, labels or weights have another shape, a label is neither 0 nor 1, or a weight is
            below 0 or not finite (on CUDA, where looking would wait for the device, a failed assertion of the device
            says so).
    """
    check_clicks(labels, sample_weight, len(logits))
    return _click_cross_entropy(logits, labels, sample_weight, training)


def soft_click_loss(
    logits: torch.Tensor, soft_targets: torch.Tensor, sample_weight: torch.Tensor | None = None, training: bool = False
) -> torch.Tensor:
    """[`click_loss`] of probabilities in the place of clicks (Hinton et al., "Distilling the knowledge in a neural
    network", 2015, at temperature 1).

    It is linear in them: of `(1 - w) * labels + w * p` it is `1 - w` times the loss of the clicks and `w` times the
    cross-entropy to a teacher's probability p.

    Args:
        soft_targets: `(B,)` floating-point, from 0 to 1.

    Raises:
        TypeError, ValueError: as of [`click_loss`]; a probability is not from 0 to 1.
    """
    check_clicks(soft_targets, sample_weight, len(logits), "soft_targets")
    return _click_cross_entropy(logits, soft_targets, sample_weight, training)


def _click_cross_entropy(logits, labels, sample_weight, training: bool) -> torch.Tensor:
    targets = labels.float()[:, None].expand_as(logits)
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(1)
    if sample_weight is None:
        return losses.mean()
    return (losses * sample_weight).sum() / share_of_total(sample_weight.sum(), training)
