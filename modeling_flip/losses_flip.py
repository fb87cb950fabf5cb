# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The losses of FLIP: functions of tensors, each testable without a model.

Shapes below: B rows, M masked tokens or features.
"""

import math

import torch
from torch import nn

from .gather_flip import gather_rows, share_of_total

IGNORE_INDEX = -100


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


def contrastive_loss(
    id_embeds: torch.Tensor, text_embeds: torch.Tensor, scale, training: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric InfoNCE with the negatives of the global batch (the paper's ICL).

    Each process computes its own rows of the similarity matrices. Returns the loss, the mean over its rows, and,
    detached, the share of them whose own counterpart is the most similar one.

    Args:
        id_embeds, text_embeds: `(B, d)`; while training every process has as many rows.
        scale: what similarities are multiplied by.
    """
    (all_id, first), (all_text, _) = gather_rows(id_embeds, training), gather_rows(text_embeds, training)
    labels = torch.arange(first, first + len(id_embeds), device=id_embeds.device)
    id_to_text = scale * (id_embeds @ all_text.T).float()  # (B, rows of all processes)
    text_to_id = scale * (text_embeds @ all_id.T).float()
    loss = (nn.functional.cross_entropy(id_to_text, labels) + nn.functional.cross_entropy(text_to_id, labels)) / 2
    return loss, (id_to_text.argmax(-1) == labels).float().mean()


def click_loss(
    logits: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None, training: bool = False
) -> torch.Tensor:
    """Binary cross-entropy of `(B, n)` logits, the sum over n heads, averaged over the rows with their weights where
    given.

    Args:
        labels, sample_weight: `(B,)`; clicks 0 or 1, and weights.
        training: with weights, the average of the processes' losses is the mean over the rows of all.
    """
    targets = labels.float()[:, None].expand_as(logits)
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(1)
    if sample_weight is None:
        return losses.mean()
    return (losses * sample_weight).sum() / share_of_total(sample_weight.sum(), training)
