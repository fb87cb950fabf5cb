# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The head of MLM: masked tokens from the text around them and the ids.

Shapes below: M masked tokens, H the PLM's hidden size, D_id the size of `h_id`.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from .heads_flip import IdentityLinear, RowDropout
from .losses_flip import IGNORE_INDEX


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
