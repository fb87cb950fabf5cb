# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FLIP (arXiv 2310.19453): an ID-based CTR model and a pretrained language model (PLM), aligned on the same rows.

Shapes below: B rows, F fields of the tabular view, L tokens, H the PLM's hidden size, D_id the size of `h_id`.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, logging

from .configuration_flip import NUM_RESERVED_IDS, UNK_ID, FlipConfig
from .modeling_id_tower import FeatureEmbedding, TowerLinear, build_id_tower

logger = logging.get_logger(__name__)

IGNORE_INDEX = -100


# --- losses, each testable without a model -------------------------------------------------------------------------


def nce_loss(target_scores, noise_scores, target_log_prob, noise_log_prob) -> torch.Tensor:
    """Noise-contrastive estimation (paper eq. 8): each target against its k noise features, one loss a target `(M,)`.

    `-log sigmoid(s(v) - log k p(v)) - sum_noise log(1 - sigmoid(s(v') - log k p(v')))`; scores and log probabilities
    of the targets are `(M,)`, of the noise `(M, k)`.
    """
    log_k = math.log(noise_scores.shape[-1])
    target = nn.functional.softplus(log_k + target_log_prob - target_scores)
    noise = nn.functional.softplus(noise_scores - noise_log_prob - log_k)
    return target + noise.sum(-1)


def gather_rows(embeds: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in rank order and with gradients: `(B, d)` -> `(world * B, d)`."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return embeds
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(embeds))


def contrastive_loss(id_embeds: torch.Tensor, text_embeds: torch.Tensor, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric InfoNCE with the negatives of the global batch (paper eq. 10-11).

    Each process computes its own rows of the similarity matrices. Returns the loss and, detached, the share of rows whose
    own counterpart is the most similar one.
    """
    all_id, all_text = gather_rows(id_embeds), gather_rows(text_embeds)
    first = dist.get_rank() * len(id_embeds) if len(all_id) > len(id_embeds) else 0
    labels = torch.arange(first, first + len(id_embeds), device=id_embeds.device)
    id_to_text = scale * (id_embeds @ all_text.T).float()  # (B, world * B)
    text_to_id = scale * (text_embeds @ all_id.T).float()
    loss = (nn.functional.cross_entropy(id_to_text, labels) + nn.functional.cross_entropy(text_to_id, labels)) / 2
    return loss, (id_to_text.argmax(-1) == labels).float().mean()


def click_loss(logits: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Binary cross-entropy of `(B, 1)` logits with 0/1 labels `(B,)`, averaged with the rows' weights where given."""
    losses = nn.functional.binary_cross_entropy_with_logits(logits[:, 0].float(), labels.float(), reduction="none")
    if sample_weight is None:
        return losses.mean()
    return (losses * sample_weight).sum() / sample_weight.sum()


# --- outputs -------------------------------------------------------------------------------------------------------


@dataclass
class FlipModelOutput(ModelOutput):
    """
    Args:
        id_embeds: `(B, projection_dim)`, the tabular view in the space of ICL (unit length with cosine similarity).
        text_embeds: `(B, projection_dim)`, the textual view in the same space.
        id_hidden_state: `(B, D_id)`, the ID tower's interaction vector `h_id`.
        text_hidden_states: `(B, L, H)`, the PLM's last hidden states.
        text_pooled: `(B, H)`, the PLM's pooled state.
    """

    id_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    id_hidden_state: torch.FloatTensor | None = None
    text_hidden_states: torch.FloatTensor | None = None
    text_pooled: torch.FloatTensor | None = None


@dataclass
class FlipForPretrainingOutput(ModelOutput):
    """
    All are scalars; those of an objective that is off are None. Accuracies are detached.

    Args:
        loss: weighted sum of the three losses (paper eq. 12).
        mlm_loss, mtm_loss: means over the masked tokens and over the masked features.
        icl_loss: symmetric InfoNCE.
        mlm_accuracy, icl_accuracy: share of masked tokens, and of rows' counterparts, ranked first.
        mtm_accuracy: share of masked features ranked first among all values of their field (in eval mode only).
        mlm_shuffled_accuracy, mtm_shuffled_accuracy: the same with the other modality's rows shifted by one (in eval
            mode only): what is recovered without the counterpart. Only the gap to the true accuracy is alignment.
        num_mlm_targets, num_mtm_targets: how many tokens and features the means are over.
    """

    loss: torch.FloatTensor | None = None
    mlm_loss: torch.FloatTensor | None = None
    mtm_loss: torch.FloatTensor | None = None
    icl_loss: torch.FloatTensor | None = None
    mlm_accuracy: torch.FloatTensor | None = None
    mtm_accuracy: torch.FloatTensor | None = None
    icl_accuracy: torch.FloatTensor | None = None
    mlm_shuffled_accuracy: torch.FloatTensor | None = None
    mtm_shuffled_accuracy: torch.FloatTensor | None = None
    num_mlm_targets: torch.LongTensor | None = None
    num_mtm_targets: torch.LongTensor | None = None


@dataclass
class FlipForCTROutput(ModelOutput):
    """
    Args:
        loss: scalar, where labels were given.
        logits: `(B, 1)`, log odds of a click; `logits.sigmoid()` is the click probability.
        id_logits, text_logits: `(B, 1)`, the two towers' own log odds; None for a tower that the strategy does not use.
        id_weight: `(B, 1)` or `(1,)`, the weight alpha of the ID tower in the joint logit.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    id_logits: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None
    id_weight: torch.FloatTensor | None = None


# --- parts ---------------------------------------------------------------------------------------------------------


class FlipProjection(nn.Module):
    """Projection to the space of ICL (paper eq. 9): linear, GELU, linear, dropout, residual, LayerNorm."""

    def __init__(self, input_dim: int, output_dim: int, dropout: float):
        super().__init__()
        self.input = nn.Linear(input_dim, output_dim)
        self.output = nn.Linear(output_dim, output_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(output_dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        projected = self.input(hidden)
        return self.norm(projected + self.dropout(self.output(nn.functional.gelu(projected))))


class IdentityLinear(nn.Linear):
    """A square linear layer that starts as the identity."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.eye_(self.weight)
        init.zeros_(self.bias)


class FlipMLMHead(nn.Module):
    """Predicts masked tokens from `[~H_token ; h_id]` (paper eq. 5).

    The fusion starts as `~H_token` plus a small part of `h_id`, and what follows is the usual head of a masked language
    model (dense, activation, LayerNorm, decoder tied to the input embeddings), so that a PLM's own head fits.
    """

    # the names that transformers' masked language models give to the parts of this head
    PLM_NAMES = {
        "dense": ("cls.predictions.transform.dense", "lm_head.dense", "vocab_transform", "generator_predictions.dense",
                  "head.dense", "lm_predictions.lm_head.dense", "predictions.dense"),
        "norm": ("cls.predictions.transform.LayerNorm", "lm_head.layer_norm", "vocab_layer_norm",
                 "generator_predictions.LayerNorm", "head.norm", "lm_predictions.lm_head.LayerNorm",
                 "predictions.LayerNorm"),
        "decoder": ("cls.predictions", "lm_head", "vocab_projector", "generator_lm_head", "decoder",
                    "lm_predictions.lm_head", "predictions"),
    }  # fmt: skip

    def __init__(self, text_config, id_dim: int, embedding_dim: int, vocab_size: int):
        super().__init__()
        self.fuse_text = IdentityLinear(text_config.hidden_size, text_config.hidden_size)
        self.fuse_id = nn.Linear(id_dim, text_config.hidden_size, bias=False)
        self.dense = nn.Linear(text_config.hidden_size, embedding_dim)
        names = ("classifier_activation", "hidden_act", "activation")
        self.activation = ACT2FN[next((getattr(text_config, name) for name in names if hasattr(text_config, name)), "gelu")]
        eps = getattr(text_config, "layer_norm_eps", getattr(text_config, "norm_eps", 1e-12))
        self.norm = nn.LayerNorm(embedding_dim, eps=eps)
        self.decoder = nn.Linear(embedding_dim, vocab_size)

    def forward(self, token_states: torch.Tensor, id_hidden_state: torch.Tensor) -> torch.Tensor:
        """`(M, H)` states of the masked tokens and `(M, D_id)` vectors of their rows -> `(M, vocabulary)` logits."""
        fused = self.fuse_text(token_states) + self.fuse_id(id_hidden_state)
        return self.decoder(self.norm(self.activation(self.dense(fused))))

    @torch.no_grad()
    def load_plm_head(self, mlm_model: PreTrainedModel) -> bool:
        """Copies the head of a transformers masked language model; False, and no change, where it is of another form."""
        state = dict(mlm_model.named_parameters(remove_duplicate=False))
        found = {part: next((n for n in names if f"{n}.bias" in state or f"{n}.weight" in state), None)
                 for part, names in self.PLM_NAMES.items()}  # fmt: skip
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


class FlipMTMHead(nn.Module):
    """Recovers masked feature ids from `[~h_id ; c]` (paper eq. 6-8).

    `c` is what one query, `LayerNorm(W ~h_id)`, attends to among the token states of the unmasked text. Noise features are
    drawn from the training counts by inversion: integers below the total, looked up in the running sum.
    """

    def __init__(self, config: FlipConfig, id_dim: int, text_dim: int):
        super().__init__()
        self.config = config
        self.field_sizes = config.field_sizes
        size, total = config.mtm_embedding_size, sum(self.field_sizes)
        self.query = nn.Linear(id_dim, text_dim)
        self.query_norm = nn.LayerNorm(text_dim)
        self.project = nn.Linear(id_dim + text_dim, len(self.field_sizes) * size)
        self.embeddings = nn.Embedding(total, size)
        self.bias = nn.Embedding(total, 1)
        self.register_buffer("feature_counts", torch.zeros(total, dtype=torch.long))
        self._noise = None

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
        for start, field in zip(self._starts(), self.config.id_fields):
            counts[start : start + NUM_RESERVED_IDS] = 0  # reserved ids are neither targets nor noise
            if counts[start : start + field.vocab_size].sum() == 0:
                raise ValueError(f"field '{field.name}': no value was counted, so that noise cannot be drawn from it.")
        self.feature_counts.copy_(counts)
        self._noise = None
        log_prob = self._noise_tables()[-1]
        self.bias.weight.copy_(torch.where(counts > 0, log_prob, 0.0)[:, None])

    def _starts(self) -> list[int]:
        """First row of each field in the tables."""
        return [sum(self.field_sizes[:f]) for f in range(len(self.field_sizes))]

    def _noise_tables(self):
        """Per field the range of its counts in the running sum, and each feature's log probability as noise."""
        if self._noise is None or self._noise[0].device != self.feature_counts.device:
            counts, starts = self.feature_counts, torch.tensor(self._starts(), device=self.feature_counts.device)
            running = counts.cumsum(0)
            low = (running - counts)[starts]
            high = running[starts + torch.tensor(self.field_sizes, device=counts.device) - 1]
            if self.config.mtm_noise == "global":
                low, high = torch.zeros_like(low), running[-1].expand_as(high)
            # a feature that was never counted cannot be drawn; 1 keeps its log finite should a label name it
            totals = torch.repeat_interleave(high - low, torch.tensor(self.field_sizes, device=counts.device))
            log_prob = counts.clamp(min=1).double().log() - totals.clamp(min=1).double().log()
            self._noise = running, starts, low, high, log_prob.float()
        return self._noise

    def sample_noise(self, fields: torch.Tensor) -> torch.Tensor:
        """k noise features of each target, `(M,)` fields -> `(M, k)` rows of the tables."""
        running, _, low, high, _ = self._noise_tables()
        low, high = low[fields, None], high[fields, None]
        uniform = torch.rand(len(fields), self.config.mtm_num_noise, dtype=torch.double, device=fields.device)
        return torch.searchsorted(running, low + (uniform * (high - low)).long(), right=True)

    def represent(self, id_hidden_state, text_hidden_states, attention_mask) -> torch.Tensor:
        """`(B, D_id)` masked tabular view and `(B, L, H)` unmasked text -> one vector per field, `(B, F, size)`."""
        query = self.query_norm(self.query(id_hidden_state))  # (B, H)
        scores = torch.einsum("bh,blh->bl", query, text_hidden_states).float() / math.sqrt(query.shape[-1])
        attention = scores.masked_fill(attention_mask == 0, -torch.inf).softmax(-1).to(text_hidden_states.dtype)
        context = torch.einsum("bl,blh->bh", attention, text_hidden_states)
        projected = self.project(torch.cat([id_hidden_state, context], dim=-1))
        return projected.unflatten(-1, (len(self.field_sizes), -1))

    def score(self, vectors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """`s = vector . output embedding + bias`: `(M, size)` and table rows `(M, n)` -> `(M, n)`."""
        return torch.einsum("md,mnd->mn", vectors, self.embeddings(rows)).float() + self.bias(rows)[..., 0].float()

    def field_logits(self, vectors: torch.Tensor, field: int) -> torch.Tensor:
        """Scores of all real values of one field, `(M, size)` -> `(M, field size - reserved)`."""
        start = self._starts()[field]
        rows = slice(start + NUM_RESERVED_IDS, start + self.field_sizes[field])
        return (vectors @ self.embeddings.weight[rows].T).float() + self.bias.weight[rows, 0].float()

    def uses_softmax(self, field: int) -> bool:
        """Whether a field is small enough for the full softmax; noise that is mostly the target itself teaches little."""
        values = self.field_sizes[field] - NUM_RESERVED_IDS
        return self.config.mtm_noise == "field" and values <= self.config.mtm_full_softmax_size

    def loss(self, vectors: torch.Tensor, labels: torch.Tensor, noise_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Sum over the masked features.

        Args:
            vectors: `(B, F, size)` from `represent`.
            labels: `(B, F)` local ids of masked features, -100 elsewhere.
            noise_ids: `(B, F, k)` rows of the tables to use as noise (given by tests and exact multi-process runs).
        """
        total = vectors.new_zeros((), dtype=torch.float)
        with_noise = labels != IGNORE_INDEX
        for field in filter(self.uses_softmax, range(len(self.field_sizes))):
            with_noise[:, field] = False
            masked = labels[:, field] != IGNORE_INDEX
            logits = self.field_logits(vectors[masked, field], field)
            targets = labels[masked, field] - NUM_RESERVED_IDS
            total = total + nn.functional.cross_entropy(logits, targets, reduction="sum")
        rows, fields = with_noise.nonzero(as_tuple=True)
        _, starts, _, _, log_prob = self._noise_tables()
        targets = (labels[rows, fields] + starts[fields])[:, None]  # (M, 1)
        noise = self.sample_noise(fields) if noise_ids is None else noise_ids[rows, fields]
        scores = self.score(vectors[rows, fields], torch.cat([targets, noise], dim=1))
        losses = nce_loss(scores[:, 0], scores[:, 1:], log_prob[targets[:, 0]], log_prob[noise])
        return total + losses.sum()

    @torch.no_grad()
    def accuracy(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Share of masked features that rank first among all real values of their field."""
        hits = torch.zeros((), device=labels.device)
        for field in range(len(self.field_sizes)):
            masked = labels[:, field] != IGNORE_INDEX
            best = self.field_logits(vectors[masked, field], field).argmax(-1)
            hits += (best + NUM_RESERVED_IDS == labels[masked, field]).sum()
        return hits / (labels != IGNORE_INDEX).sum().clamp(min=1)


class FlipFusion(nn.Module):
    """The joint logit `alpha * logit_id + (1 - alpha) * logit_plm` (paper eq. 15).

    `scalar`: one alpha, a sigmoid that starts at 0.5. `gate`: each row its own alpha from both towers' states and from which
    of its ids are unknown (a scalar cannot turn to the text when the ids are new). `raw`: the release's unbounded scalar,
    which starts at 0.
    """

    def __init__(self, config: FlipConfig, id_dim: int, text_dim: int):
        super().__init__()
        self.kind = config.fusion
        if self.kind == "gate":
            self.id_norm, self.text_norm = nn.LayerNorm(id_dim), nn.LayerNorm(text_dim)
            self.gate = ZeroLinear(id_dim + text_dim + len(config.field_sizes), 1)
        else:
            self.alpha = nn.Parameter(torch.zeros(1))

    def init_flip_weights(self, config: FlipConfig) -> None:
        if self.kind != "gate":
            init.zeros_(self.alpha)

    def forward(self, id_logits, text_logits, id_hidden_state, text_pooled, feature_ids):
        if self.kind == "gate":
            unknown = (feature_ids == UNK_ID).to(text_pooled.dtype)
            states = [self.id_norm(id_hidden_state), self.text_norm(text_pooled), unknown]
            alpha = self.gate(torch.cat(states, dim=-1)).float().sigmoid()  # (B, 1)
        else:
            alpha = self.alpha if self.kind == "raw" else self.alpha.sigmoid()
        return alpha * id_logits + (1 - alpha) * text_logits, alpha


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.zeros_(self.weight)
        init.zeros_(self.bias)


# --- models --------------------------------------------------------------------------------------------------------


class FlipPreTrainedModel(PreTrainedModel):
    config_class = FlipConfig
    base_model_prefix = "flip"
    main_input_name = "feature_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # heads of the other classes, and branches that a strategy does not use: loads between heads are silent
    _keys_to_ignore_on_load_unexpected = [
        r"^mlm_head\.", r"^mtm_head\.", r"^logit_scale$", r"^id_classifier\.", r"^first_order\.",
        r"^text_classifier\.", r"^fusion\.", r"^(flip\.)?(text_encoder|text_projection|id_tower|id_projection)\.",
    ]  # fmt: skip

    def _init_weights(self, module):
        if hasattr(module, "init_flip_weights"):
            module.init_flip_weights(self.config)
        else:
            super()._init_weights(module)
        if module is self and getattr(self, "logit_scale", None) is not None:
            init.constant_(self.logit_scale, -math.log(self.config.icl_temperature))

    @classmethod
    def from_text_pretrained(cls, text_model_name_or_path: str, config: FlipConfig, **kwargs) -> "FlipPreTrainedModel":
        """A new FLIP model around a pretrained text encoder: its weights are loaded, all else is newly initialised.

        Args:
            text_model_name_or_path: any encoder that `AutoModel` loads, as a path or hub id.
            config: the other settings; its `text_config` is replaced by the encoder's.
            kwargs: passed to `from_pretrained` (`attn_implementation`, `dtype`, `revision`, `token`, ...).

        [`FlipForPretraining`] also takes over the encoder's own MLM head where the checkpoint has one.
        """
        config = copy.deepcopy(config)
        mlm_model = None
        if issubclass(cls, FlipForPretraining) and config.mlm_weight > 0:
            mlm_model = _load_with_mlm_head(text_model_name_or_path, **kwargs)
        text_encoder = mlm_model.base_model if mlm_model else AutoModel.from_pretrained(text_model_name_or_path, **kwargs)
        config.text_config = text_encoder.config
        config.text_config._name_or_path = ""  # a local path would be published with the checkpoint
        model = cls(config, text_encoder=text_encoder)
        if mlm_model is not None and not model.mlm_head.load_plm_head(mlm_model):
            logger.warning(f"the MLM head of {type(mlm_model).__name__} has another form; FLIP's is newly initialised.")
        return model

    def get_input_embeddings(self) -> nn.Module:
        text_encoder = self.base_model.text_encoder
        if text_encoder is None:
            raise NotImplementedError(f"this {type(self).__name__} is ID-only: it has no token embeddings.")
        return text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.get_input_embeddings()  # an ID-only model has none: say so
        self.base_model.text_encoder.set_input_embeddings(value)


def _load_with_mlm_head(name: str, **kwargs) -> PreTrainedModel | None:
    """The PLM with its MLM head, or None where the checkpoint or its architecture has none."""
    # DeBERTa-v3 checkpoints keep their head under names that only `legacy=False` reads
    config = kwargs.get("config")
    for legacy in (None, False):
        if legacy is False:
            from transformers import AutoConfig

            hub_kwargs = {k: v for k, v in kwargs.items() if k in ("revision", "token", "cache_dir", "trust_remote_code")}
            config = AutoConfig.from_pretrained(name, **hub_kwargs)
            if not getattr(config, "legacy", False):
                return None
            config.legacy = False
            kwargs["config"] = config
        try:
            model, info = AutoModelForMaskedLM.from_pretrained(name, output_loading_info=True, **kwargs)
        except ValueError as error:
            if "AutoModelForMaskedLM" not in str(error):
                raise
            return None  # an architecture without a masked language model
        if not any(not key.startswith(model.base_model_prefix + ".") for key in info["missing_keys"]):
            return model
    return None


class FlipModel(FlipPreTrainedModel):
    """The two towers without heads: ID tower, PLM, and the projections that ICL compares.

    Args:
        config: without a `text_config` the model has only the ID tower.
        text_encoder: a loaded PLM to use instead of a new one of `config.text_config`.
        use_id, use_text, use_projection: which parts to build.
    """

    def __init__(self, config: FlipConfig, text_encoder: PreTrainedModel | None = None, use_id: bool = True,
                 use_text: bool = True, use_projection: bool = True):  # fmt: skip
        super().__init__(config)
        self.text_encoder = self.id_tower = self.id_projection = self.text_projection = None
        if use_id:
            self.id_tower = build_id_tower(config)
        if use_text and config.text_config is not None:
            if text_encoder is None:
                # the implementation must be named again: from_config would fall back to eager attention
                attn_implementation = config.text_config._attn_implementation
                text_encoder = AutoModel.from_config(config.text_config, attn_implementation=attn_implementation)
            if getattr(text_encoder, "pooler", None) is not None:
                text_encoder.pooler = None  # never used: its gradients would be missed by DDP
            self.text_encoder = text_encoder
        if use_projection and self.id_tower is not None and self.text_encoder is not None:
            dims = config.projection_dim, config.projection_dropout
            self.id_projection = FlipProjection(self.id_tower.output_dim, *dims)
            self.text_projection = FlipProjection(config.text_config.hidden_size, *dims)
        self.post_init()

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> last hidden states `(B, L, H)`."""
        if input_ids is None:
            raise ValueError("`input_ids` is needed: this model reads the textual view.")
        return self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def pool(self, text_hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`(B, L, H)` -> the pooled state `(B, H)`: first token or mean over the tokens."""
        if self.config.text_pooling == "cls":
            return text_hidden_states[:, 0]
        mask = attention_mask[..., None].to(text_hidden_states.dtype)
        return (text_hidden_states * mask).sum(1) / mask.sum(1)

    def project(self, hidden: torch.Tensor, projection: FlipProjection) -> torch.Tensor:
        embeds = projection(hidden)
        return nn.functional.normalize(embeds, dim=-1) if self.config.icl_similarity == "cosine" else embeds

    def get_id_features(self, feature_ids: torch.Tensor) -> torch.Tensor:
        """Feature ids `(B, F)` -> `(B, projection_dim)`."""
        return self.project(self.id_tower(feature_ids), self.id_projection)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> `(B, projection_dim)`."""
        pooled = self.pool(self.encode_text(input_ids, attention_mask), attention_mask)
        return self.project(pooled, self.text_projection)

    def forward(
        self,
        feature_ids: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipModelOutput | tuple:
        """Either view may be left out.

        Args:
            feature_ids: `(B, F)` local feature ids.
            input_ids, attention_mask: `(B, L)` token ids, and 1 for tokens, 0 for padding.
        """
        output = FlipModelOutput()
        if self.id_tower is not None and feature_ids is not None:
            output["id_hidden_state"] = self.id_tower(feature_ids)
            if self.id_projection is not None:
                output["id_embeds"] = self.project(output.id_hidden_state, self.id_projection)
        if self.text_encoder is not None and input_ids is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            output["text_hidden_states"] = self.encode_text(input_ids, attention_mask)
            output["text_pooled"] = self.pool(output.text_hidden_states, attention_mask)
            if self.text_projection is not None:
                output["text_embeds"] = self.project(output.text_pooled, self.text_projection)
        return _return(output, self.config, return_dict)


def _return(output: ModelOutput, config: FlipConfig, return_dict: bool | None):
    return_dict = config.return_dict if return_dict is None else return_dict
    return output if return_dict else output.to_tuple()


class FlipForPretraining(FlipPreTrainedModel):
    """FLIP's pretraining (paper section 3.2): masked language, masked tabular and instance-level contrastive learning.

    Raises:
        ValueError: the configuration has no PLM, or all three weights are 0.
    """

    def __init__(self, config: FlipConfig, text_encoder: PreTrainedModel | None = None):
        super().__init__(config)
        if config.text_config is None:
            raise ValueError("FlipForPretraining aligns two towers: `config.text_config` must name a PLM.")
        if not (config.mlm_weight or config.mtm_weight or config.icl_weight):
            raise ValueError("FlipForPretraining: mlm_weight, mtm_weight and icl_weight are all 0; nothing to learn.")
        self.flip = FlipModel(config, text_encoder, use_projection=config.icl_weight > 0)
        id_dim, text_dim = self.flip.id_tower.output_dim, config.text_config.hidden_size
        self.mlm_head = self.mtm_head = self.logit_scale = None
        if config.mlm_weight > 0:
            tokens = self.flip.text_encoder.get_input_embeddings()
            self.mlm_head = FlipMLMHead(config.text_config, id_dim, tokens.weight.shape[1], tokens.weight.shape[0])
            name = next(name for name, module in self.named_modules() if module is tokens)
            self._tied_weights_keys = {"mlm_head.decoder.weight": f"{name}.weight"}
        if config.mtm_weight > 0:
            self.mtm_head = FlipMTMHead(config, id_dim, text_dim)
        if config.icl_weight > 0 and config.icl_similarity == "cosine":
            self.logit_scale = nn.Parameter(torch.zeros(()))
        self.post_init()

    def get_output_embeddings(self):
        return self.mlm_head.decoder if self.mlm_head is not None else None

    def set_output_embeddings(self, new_embeddings):
        self.mlm_head.decoder = new_embeddings

    def set_feature_counts(self, counts: torch.Tensor) -> None:
        """Gives MTM the training counts of all features, see [`FlipMTMHead.set_feature_counts`]."""
        if self.mtm_head is not None:
            self.mtm_head.set_feature_counts(counts)

    def icl_scale(self) -> torch.Tensor | float:
        """What similarities are multiplied by: 1 / temperature."""
        if self.logit_scale is None:
            return 1 / self.config.icl_temperature
        return self.logit_scale.exp().clamp(max=self.config.icl_max_scale)

    def forward(
        self,
        feature_ids: torch.LongTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor,
        masked_input_ids: torch.LongTensor | None = None,
        mlm_labels: torch.LongTensor | None = None,
        masked_feature_ids: torch.LongTensor | None = None,
        mtm_labels: torch.LongTensor | None = None,
        noise_ids: torch.LongTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipForPretrainingOutput | tuple:
        """Two PLM passes and two ID tower passes, the clean and the masked view each in one concatenated forward.

        Args:
            feature_ids, masked_feature_ids: `(B, F)` local feature ids, and with masked fields.
            input_ids, attention_mask, masked_input_ids: `(B, L)`.
            mlm_labels: `(B, L)` token ids at masked positions, -100 elsewhere.
            mtm_labels: `(B, F)` local feature ids of masked fields, -100 elsewhere.
            noise_ids: `(B, F, k)` noise for MTM; drawn from the training counts when not given.

        Raises:
            ValueError: a view that an objective needs is missing.
        """
        config = self.config
        needed = {
            "mlm_weight": {"masked_input_ids": masked_input_ids, "mlm_labels": mlm_labels},
            "mtm_weight": {"masked_feature_ids": masked_feature_ids, "mtm_labels": mtm_labels},
        }
        for weight, views in needed.items():
            missing = [name for name, view in views.items() if view is None]
            if getattr(config, weight) > 0 and missing:
                raise ValueError(f"{' and '.join(missing)} needed while config.{weight} is {getattr(config, weight)}.")
        use_mlm, use_mtm, use_icl = config.mlm_weight > 0, config.mtm_weight > 0, config.icl_weight > 0

        texts = [input_ids] * (use_mtm or use_icl) + [masked_input_ids] * use_mlm
        states = self.flip.encode_text(torch.cat(texts), attention_mask.repeat(len(texts), 1)).chunk(len(texts))
        rows = [feature_ids] * (use_mlm or use_icl) + [masked_feature_ids] * use_mtm
        id_states = self.flip.id_tower(torch.cat(rows)).chunk(len(rows))

        output = FlipForPretrainingOutput(loss=torch.zeros((), device=input_ids.device))
        if use_mlm:
            self._masked_language_modelling(output, states[-1], id_states[0], mlm_labels)
        if use_mtm:
            self._masked_tabular_modelling(output, id_states[-1], states[0], attention_mask, mtm_labels, noise_ids)
        if use_icl:
            id_embeds = self.flip.project(id_states[0], self.flip.id_projection)
            text_embeds = self.flip.project(self.flip.pool(states[0], attention_mask), self.flip.text_projection)
            output["icl_loss"], output["icl_accuracy"] = contrastive_loss(id_embeds, text_embeds, self.icl_scale())
            output["loss"] = output.loss + config.icl_weight * output.icl_loss
        return _return(output, config, return_dict)

    def _masked_language_modelling(self, output, masked_states, id_state, labels):
        rows, positions = (labels != IGNORE_INDEX).nonzero(as_tuple=True)  # the head runs at masked positions only
        tokens, targets = masked_states[rows, positions], labels[rows, positions]
        logits = self.mlm_head(tokens, id_state[rows])
        count = max(len(targets), 1)
        output["mlm_loss"] = nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / count
        output["mlm_accuracy"] = (logits.argmax(-1) == targets).sum() / count
        output["num_mlm_targets"] = torch.tensor(len(targets), device=labels.device)
        output["loss"] = output.loss + self.config.mlm_weight * output.mlm_loss
        if not self.training:
            shuffled = self.mlm_head(tokens, id_state.roll(1, 0)[rows])
            output["mlm_shuffled_accuracy"] = (shuffled.argmax(-1) == targets).sum() / count

    def _masked_tabular_modelling(self, output, masked_id_state, text_states, attention_mask, labels, noise_ids):
        vectors = self.mtm_head.represent(masked_id_state, text_states, attention_mask)
        count = (labels != IGNORE_INDEX).sum()
        output["mtm_loss"] = self.mtm_head.loss(vectors, labels, noise_ids) / count.clamp(min=1)
        output["num_mtm_targets"] = count
        output["loss"] = output.loss + self.config.mtm_weight * output.mtm_loss
        if not self.training:
            output["mtm_accuracy"] = self.mtm_head.accuracy(vectors, labels)
            other = self.mtm_head.represent(masked_id_state, text_states.roll(1, 0), attention_mask.roll(1, 0))
            output["mtm_shuffled_accuracy"] = self.mtm_head.accuracy(other, labels)


class FlipForCTR(FlipPreTrainedModel):
    """Click prediction (paper section 3.3) with `config.strategy`: `id` (FLIP_ID), `plm` (FLIP_PLM) or `joint` (FLIP).

    Only the towers that the strategy uses are built or loaded; an `id` model holds no PLM, in its configuration neither.

    Raises:
        ValueError: the strategy needs a PLM and `config.text_config` is null.
    """

    def __init__(self, config: FlipConfig, text_encoder: PreTrainedModel | None = None):
        use_id, use_text = config.strategy in ("id", "joint"), config.strategy in ("plm", "joint")
        if config.strategy == "id":
            config = copy.deepcopy(config)
            config.text_config = None
        super().__init__(config)
        config.check()
        if use_text and config.text_config is None:
            raise ValueError(f"FlipForCTR: strategy {config.strategy!r} needs a PLM, and `config.text_config` is null.")
        self.flip = FlipModel(config, text_encoder, use_id, use_text, use_projection=False)
        self.id_classifier = self.first_order = self.text_classifier = self.fusion = None
        if use_id:
            id_dim = self.flip.id_tower.output_dim
            self.id_classifier = TowerLinear(id_dim, 1)
            if self.flip.id_tower.has_first_order:
                self.first_order = FeatureEmbedding(config.field_sizes, 1)
        if use_text:
            text_dim = config.text_config.hidden_size
            self.dropout = nn.Dropout(config.classifier_dropout)
            self.text_classifier = nn.Linear(text_dim, 1)
        if use_id and use_text:
            self.fusion = FlipFusion(config, id_dim, text_dim)
        self.post_init()

    def forward(
        self,
        feature_ids: torch.LongTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        sample_weight: torch.FloatTensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipForCTROutput | tuple:
        """A view that the strategy does not use may be left out.

        Args:
            feature_ids: `(B, F)` local feature ids.
            input_ids, attention_mask: `(B, L)` token ids, and 1 for tokens, 0 for padding.
            labels: `(B,)`, 1 for a click, 0 for none. `joint` sums the losses of the joint logit and of both towers.
            sample_weight: `(B,)` weights of the rows in the loss.
        """
        output = FlipForCTROutput()
        if self.id_classifier is not None:
            if feature_ids is None:
                raise ValueError(f"`feature_ids` is needed by strategy {self.config.strategy!r}.")
            id_state = self.flip.id_tower(feature_ids)
            output["id_logits"] = self.id_classifier(id_state).float()
            if self.first_order is not None:
                output["id_logits"] = output.id_logits + self.first_order(feature_ids).float().sum(1)
        if self.text_classifier is not None:
            if attention_mask is None and input_ids is not None:
                attention_mask = torch.ones_like(input_ids)
            pooled = self.flip.pool(self.flip.encode_text(input_ids, attention_mask), attention_mask)
            output["text_logits"] = self.text_classifier(self.dropout(pooled)).float()
        if self.fusion is not None:
            output["logits"], output["id_weight"] = self.fusion(
                output.id_logits, output.text_logits, id_state, pooled, feature_ids
            )
        else:
            output["logits"] = output.id_logits if self.id_classifier is not None else output.text_logits
        if labels is not None:
            heads = [output.logits] if self.fusion is None else [output.logits, output.id_logits, output.text_logits]
            output["loss"] = sum(click_loss(logits, labels, sample_weight) for logits in heads)
        return _return(output, self.config, return_dict)


__all__ = ["FlipPreTrainedModel", "FlipModel", "FlipForPretraining", "FlipForCTR"]
