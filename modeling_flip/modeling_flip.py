# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FLIP (arXiv 2310.19453): an ID-based CTR model and a pretrained language model (PLM), aligned on the same rows.

Shapes below: B rows, F fields of the tabular view and their S slots in `feature_ids` (S = F while each field has one
value), L tokens, H the PLM's hidden size, D_id the size of `h_id`.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

# A checkpoint carries what this file imports, and transformers before 5.9 follows no imports of imports: every file is
# named here.
# isort: off
from .base_flip import FlipPreTrainedModel
from .columns_flip import Column  # noqa: F401
from .configuration_flip import FlipConfig, is_decoder
from .feature_extraction_flip import FlipFeatureExtractor  # noqa: F401
from .fields_flip import FlipField  # noqa: F401
from .gather_flip import share_of_total
from .heads_flip import FlipFusion, FlipMLMHead, FlipMTMHead, FlipProjection, TextField, contrastive_logits
from .id_tower import FeatureEmbedding, TowerLinear, build_id_tower
from .id_tower_afm import AFM  # noqa: F401
from .id_tower_afn import AFN  # noqa: F401
from .id_tower_autoint import AutoInt  # noqa: F401
from .id_tower_dcn import DCN  # noqa: F401
from .id_tower_dcnv2 import DCNv2  # noqa: F401
from .id_tower_deepfm import DeepFM  # noqa: F401
from .id_tower_fibinet import FiBiNET  # noqa: F401
from .id_tower_finalmlp import FinalMLP  # noqa: F401
from .id_tower_fm import FM  # noqa: F401
from .id_tower_gdcn import GDCN  # noqa: F401
from .id_tower_lr import LR  # noqa: F401
from .id_tower_masknet import MaskNet  # noqa: F401
from .id_tower_pnn import PNN  # noqa: F401
from .id_tower_widedeep import WideDeep  # noqa: F401
from .id_tower_xdeepfm import XDeepFM  # noqa: F401
from .losses_flip import (
    IGNORE_INDEX,
    click_loss,
    contrastive_accuracy,
    contrastive_loss,
    masked_language_loss,
    masked_tabular_loss,
)
from .outputs_flip import FlipForCTROutput, FlipForPretrainingOutput, FlipModelOutput, returned
from .pipeline_flip import ClickThroughRatePipeline  # noqa: F401
from .processing_flip import FlipProcessor  # noqa: F401
from .tower_code_flip import save_tower_code  # noqa: F401
# isort: on

MLM_POSITIONS_MULTIPLE = 64


class FlipModel(FlipPreTrainedModel):
    """The two towers without heads: ID tower, PLM, and the projections that ICL compares.

    Args:
        config: without a `text_config` the model has only the ID tower.
        text_encoder: a loaded PLM to use instead of a new one of `config.text_config`.
        use_id, use_text: which towers to build; None: the ID tower, where the configuration is not that of a
            pretraining without it.
        use_projection: whether to build the projections; where ICL has a weight when None.
    """

    def __init__(
        self,
        config: FlipConfig,
        text_encoder: PreTrainedModel | None = None,
        use_id: bool | None = None,
        use_text: bool = True,
        use_projection: bool | None = None,
    ):
        super().__init__(config)
        self.text_encoder = self.id_tower = self.id_projection = self.text_projection = self.text_field = None
        use_id = (config.pretrains_id_tower or config.mlm_weight == 0) if use_id is None else use_id
        if use_id:
            self.id_tower = build_id_tower(config)
        config.decide_text_pooling()
        if use_text and config.text_config is not None:
            if text_encoder is None:
                # the implementation must be named again: from_config would fall back to eager attention
                attn_implementation = config.text_config._attn_implementation
                text_encoder = AutoModel.from_config(config.text_config, attn_implementation=attn_implementation)
            if getattr(text_encoder, "pooler", None) is not None:
                text_encoder.pooler = None  # never used: its gradients would be missed by DDP
            if is_decoder(text_encoder.config):
                text_encoder.config.use_cache = False  # nothing is generated that would need past keys and values
            self.text_encoder = text_encoder
        if config.text_is_field and self.id_tower is not None and self.text_encoder is not None:
            self.text_encoder.requires_grad_(False).eval()
            self.text_field = TextField(config.text_config.hidden_size, config.id_embedding_size)
        use_projection = (
            config.icl_weight > 0 and not config.text_is_field if use_projection is None else use_projection
        )
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
        """`(B, L, H)` -> the pooled state `(B, H)`: first token, last token, or mean over the tokens."""
        if self.config.text_pooling == "cls":
            return text_hidden_states[:, 0]
        if self.config.text_pooling == "last":
            positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            last = (positions * (attention_mask != 0)).argmax(1)
            return text_hidden_states[torch.arange(len(last), device=last.device), last]
        mask = attention_mask[..., None].to(text_hidden_states.dtype)
        return (text_hidden_states * mask).sum(1) / mask.sum(1)

    def pooled_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> pooled states `(B, H)`."""
        return self.pool(self.encode_text(input_ids, attention_mask), attention_mask)

    def train(self, mode: bool = True) -> "FlipModel":
        """As in torch, but a tower of which nothing trains stays as it is: it has no dropout, and its batch norm counts
        nothing."""
        super().train(mode)
        for tower in (self.text_encoder, self.id_tower):
            if tower is not None and not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        if self.text_field is not None:
            self.text_encoder.eval()
        return self

    @torch.no_grad()
    def frozen_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> pooled states `(B, H)` without gradients; rows with the same prompt go through
        the PLM once."""
        length = input_ids.shape[1]
        rows = torch.cat([input_ids, attention_mask.to(input_ids.dtype)], dim=1)
        distinct, where = rows.unique(dim=0, return_inverse=True)
        return self.pooled_text(distinct[:, :length], distinct[:, length:])[where]

    def encode_ids(
        self,
        feature_ids: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Feature ids `(B, S)` -> `h_id` `(B, D_id)`; with strategy `frozen` of token ids and mask `(B, L)` too."""
        if self.text_field is None:
            return self.id_tower(feature_ids)
        if input_ids is None:
            raise ValueError("`input_ids` is needed by strategy 'frozen': the text is a field of the ID tower.")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.id_tower(feature_ids, self.text_field(self.frozen_text(input_ids, attention_mask)))

    def project(self, hidden: torch.Tensor, projection: FlipProjection) -> torch.Tensor:
        embeds = projection(hidden)
        return nn.functional.normalize(embeds, dim=-1) if self.config.icl_similarity == "cosine" else embeds

    def _check_projection(self, projection: FlipProjection | None) -> None:
        if projection is None:
            raise ValueError(
                "this model has no projections, which only contrastive learning trains (two towers, `icl_weight` above "
                "0, `strategy` other than frozen); the towers' own vectors are in the output of `forward`."
            )

    def get_id_features(self, feature_ids: torch.Tensor) -> torch.Tensor:
        """Feature ids `(B, S)` -> `(B, projection_dim)`. `ValueError` where the model has no projections (see
        `icl_weight`)."""
        self._check_projection(self.id_projection)
        return self.project(self.id_tower(feature_ids), self.id_projection)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> `(B, projection_dim)`. `ValueError` where the model has no projections."""
        self._check_projection(self.text_projection)
        return self.project(self.pooled_text(input_ids, attention_mask), self.text_projection)

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipModelOutput | tuple:
        """Either view may be left out.

        Args:
            feature_ids: `(B, S)` local feature ids.
            input_ids, attention_mask: `(B, L)` token ids, and 1 for tokens, 0 for padding.
        """
        id_embeds = text_embeds = id_state = text_states = pooled = None
        if self.text_encoder is not None and input_ids is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            text_states = self.encode_text(input_ids, attention_mask)
            pooled = self.pool(text_states, attention_mask)
            if self.text_projection is not None:
                text_embeds = self.project(pooled, self.text_projection)
        if self.id_tower is not None and feature_ids is not None:
            if self.text_field is None or pooled is None:
                id_state = self.encode_ids(feature_ids)
            else:
                id_state = self.id_tower(feature_ids, self.text_field(pooled.detach()))
            if self.id_projection is not None:
                id_embeds = self.project(id_state, self.id_projection)
        output = FlipModelOutput(id_embeds, text_embeds, id_state, text_states, pooled)
        return returned(output, self.config, return_dict)


class FlipForPretraining(FlipPreTrainedModel):
    """FLIP's modality alignment pretraining: masked language, masked tabular and instance-level contrastive learning.

    A tower that no objective uses is not built: with MTM from the ids alone (`mtm_text_dropout=1`, other weights 0)
    there is no PLM, in the configuration neither; with plain MLM (`mlm_id_dropout=1`, other weights 0) no ID tower.

    Raises:
        ValueError: an objective uses the PLM and the configuration has none, or all three weights are 0.
    """

    _takes_mlm_head = True

    def __init__(self, config: FlipConfig, text_encoder: PreTrainedModel | None = None):
        if not (config.mlm_weight or config.mtm_weight or config.icl_weight):
            raise ValueError("FlipForPretraining: mlm_weight, mtm_weight and icl_weight are all 0; nothing to learn.")
        if config.text_is_field:
            raise ValueError(
                f"FlipForPretraining: `strategy` {config.strategy!r} takes a PLM as it is; there is nothing to align."
            )
        use_id, use_text = config.pretrains_id_tower, config.pretrains_text
        if use_text and config.text_config is None:
            raise ValueError(
                "FlipForPretraining: an objective uses the PLM, and `config.text_config` is null; only MTM without the "
                "text (mtm_text_dropout=1, mlm_weight and icl_weight 0) does without one."
            )
        if not use_text:
            config = copy.deepcopy(config)
            config.text_config = None
        super().__init__(config)
        self.flip = FlipModel(config, text_encoder, use_id, use_text)
        id_dim = self.flip.id_tower.output_dim if use_id else None
        self.mlm_head = self.mtm_head = self.logit_scale = None
        if config.mlm_weight > 0:
            tokens: Any = self.flip.text_encoder.get_input_embeddings()
            size, dim = tokens.weight.shape
            self.mlm_head = FlipMLMHead(
                config.text_config, id_dim if config.mlm_uses_ids else None, dim, size, config.mlm_id_dropout
            )
            name = next(name for name, module in self.named_modules() if module is tokens)
            self._tied_weights_keys = {"mlm_head.decoder.weight": f"{name}.weight"}
        if config.mtm_weight > 0:
            self.mtm_head = FlipMTMHead(
                config, id_dim, config.text_config.hidden_size if config.mtm_uses_text else None
            )
        if config.icl_weight > 0 and config.icl_similarity == "cosine":
            self.logit_scale = nn.Parameter(torch.zeros(1))  # of one dimension: FSDP2 cannot split a scalar
        self.post_init()

    def push_to_hub(self, repo_id: str, *args, pretraining_heads: bool = False, **kwargs):  # type: ignore[override]
        """Publishes the two towers, as a [`FlipModel`], and the heads too where asked for: they can return a user's
        demographics from an id, and fine-tuning does not need them."""
        push = super().push_to_hub if pretraining_heads else self.flip.push_to_hub
        return push(repo_id, *args, **kwargs)  # type: ignore[arg-type]

    def get_output_embeddings(self):
        return self.mlm_head.decoder if self.mlm_head is not None else None

    def set_output_embeddings(self, new_embeddings):
        self.mlm_head.decoder = new_embeddings

    def set_feature_counts(self, counts: torch.Tensor) -> None:
        """Gives MTM the training counts of all features, see [`FlipMTMHead.set_feature_counts`]."""
        if self.mtm_head is not None:
            self.mtm_head.set_feature_counts(counts)

    def set_mlm_vocabulary(self, token_ids: torch.Tensor | None) -> None:
        """Gives MLM the tokens that its softmax is over, see [`FlipMLMHead.set_vocabulary`]."""
        if self.mlm_head is not None:
            self.mlm_head.set_vocabulary(token_ids)

    def icl_scale(self) -> torch.Tensor | float:
        """What similarities are multiplied by: 1 / temperature."""
        if self.logit_scale is None:
            return 1 / self.config.icl_temperature
        return self.logit_scale.exp().clamp(max=self.config.icl_max_scale)

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        masked_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        masked_feature_ids: torch.Tensor | None = None,
        mtm_labels: torch.Tensor | None = None,
        noise_uniform: torch.Tensor | None = None,
        reduction: str = "mean",
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipForPretrainingOutput | tuple:
        """Two PLM passes and two ID tower passes, the clean and the masked view each in one concatenated forward.

        Args:
            feature_ids, masked_feature_ids: `(B, S)` local feature ids, and with masked fields.
            input_ids, attention_mask, masked_input_ids: `(B, L)`.
            mlm_labels: `(B, L)` token ids at masked positions, -100 elsewhere.
            mtm_labels: `(B, S)` local feature ids of masked fields, -100 elsewhere.
            noise_uniform: `(B, S, k)` float64 numbers in [0, 1) to draw MTM's noise with; random when not given.
            reduction: `mean`: `loss` is the weighted sum of the objectives, each a mean over the targets of all
                processes. `sum`: for rows that are a part of a larger batch. `mlm_loss` and `mtm_loss` are sums over
                the targets of these rows; `loss` and `icl_loss` are None, as ICL compares all rows of the whole batch:
                `id_embeds` and `text_embeds` are what it compares. The clean view then has a forward of its own, the
                same as [`FlipModel`]'s.

        Raises:
            ValueError: a view that an objective needs is missing; or MTM has no counts to draw noise from, see
                `set_feature_counts`.
        """
        config = self.config
        parts: dict[str, torch.Tensor] = {}
        use_mlm, use_mtm, use_icl = config.mlm_weight > 0, config.mtm_weight > 0, config.icl_weight > 0
        if config.pretrains_text and attention_mask is None:
            given = input_ids if input_ids is not None else masked_input_ids
            attention_mask = None if given is None else torch.ones_like(given)
        needed = {
            "mlm_weight": {"masked_input_ids": masked_input_ids, "mlm_labels": mlm_labels}
            | ({"feature_ids": feature_ids} if config.mlm_uses_ids else {}),
            "mtm_weight": {"masked_feature_ids": masked_feature_ids, "mtm_labels": mtm_labels}
            | ({"input_ids": input_ids} if config.mtm_uses_text else {}),
            "icl_weight": {"feature_ids": feature_ids, "input_ids": input_ids},
        }
        for setting, views in needed.items():
            missing = [name for name, view in views.items() if view is None and getattr(config, setting) > 0]
            if missing:
                raise ValueError(
                    f"{' and '.join(missing)} needed while config.{setting} is {getattr(config, setting)}."
                )

        text_states = masked_text_states = id_state = masked_id_state = None
        if reduction == "sum":
            clean = self.flip(feature_ids, input_ids, attention_mask, return_dict=True)
            text_states, id_state = clean.text_hidden_states, clean.id_hidden_state
            masked_text_states = self.flip.encode_text(masked_input_ids, attention_mask) if use_mlm else None
            masked_id_state = self.flip.id_tower(masked_feature_ids) if use_mtm else None
        else:
            texts = [input_ids] * (config.mtm_uses_text or use_icl) + [masked_input_ids] * use_mlm
            if texts:
                states = self.flip.encode_text(torch.cat(texts), attention_mask.repeat(len(texts), 1)).chunk(len(texts))
                text_states, masked_text_states = states[0], states[-1]
            rows = [feature_ids] * (config.mlm_uses_ids or use_icl) + [masked_feature_ids] * use_mtm
            if rows:
                id_states = self.flip.id_tower(torch.cat(rows)).chunk(len(rows))
                id_state, masked_id_state = id_states[0], id_states[-1]

        if use_mlm:
            parts |= self._masked_language_modelling(masked_text_states, id_state, mlm_labels)
        if use_mtm:
            parts |= self._masked_tabular_modelling(
                masked_id_state, text_states, attention_mask, mtm_labels, noise_uniform
            )
        if use_icl and reduction == "sum":
            parts |= {"id_embeds": clean.id_embeds, "text_embeds": clean.text_embeds}
        elif use_icl:
            id_embeds = self.flip.project(id_state, self.flip.id_projection)
            text_embeds = self.flip.project(self.flip.pool(text_states, attention_mask), self.flip.text_projection)
            similarities = contrastive_logits(id_embeds, text_embeds, self.icl_scale(), self.training)
            parts |= {"icl_loss": contrastive_loss(*similarities), "icl_accuracy": contrastive_accuracy(*similarities)}
        loss = None
        if reduction == "mean":
            loss = torch.zeros((), device=self.device)
            for objective in ("mlm", "mtm"):
                if f"{objective}_loss" in parts:
                    parts[f"{objective}_loss"] = parts[f"{objective}_loss"] / share_of_total(
                        parts[f"num_{objective}_targets"], self.training
                    )
            for objective in ("mlm", "mtm", "icl"):
                if f"{objective}_loss" in parts:
                    loss = loss + getattr(config, f"{objective}_weight") * parts[f"{objective}_loss"]
        return returned(FlipForPretrainingOutput(loss=loss, **parts), config, return_dict)

    def _masked_language_modelling(self, masked_states, id_state, labels) -> dict[str, torch.Tensor]:
        """The sum of the losses, the number of targets, and in eval mode the accuracies."""
        rows, positions = (labels != IGNORE_INDEX).nonzero(as_tuple=True)  # the head runs at masked positions only
        found = len(rows)
        count = torch.tensor(found, device=labels.device)
        # rounded up with ignored positions: a new size every step costs a new kernel, and memory that is never given
        # back
        padding = (0, -len(rows) % MLM_POSITIONS_MULTIPLE)
        rows, positions = nn.functional.pad(rows, padding), nn.functional.pad(positions, padding)
        tokens, targets = masked_states[rows, positions], labels[rows, positions]
        targets[found:] = IGNORE_INDEX
        candidates, targets = self.mlm_head.candidates(targets)
        row_vectors = None if self.mlm_head.fuse_id is None else self.mlm_head.row_dropout(id_state)[rows]
        logits = self.mlm_head(tokens, row_vectors, candidates)
        parts = {"mlm_loss": masked_language_loss(logits, targets), "num_mlm_targets": count}
        if not self.training:
            parts["mlm_accuracy"] = (logits.argmax(-1) == targets).sum() / count.clamp(min=1)
            if self.mlm_head.fuse_id is not None:
                shuffled = self.mlm_head(tokens, id_state.roll(1, 0)[rows], candidates)
                parts["mlm_shuffled_accuracy"] = (shuffled.argmax(-1) == targets).sum() / count.clamp(min=1)
        return parts

    def _masked_tabular_modelling(
        self, masked_id_state, text_states, attention_mask, labels, noise_uniform
    ) -> dict[str, torch.Tensor]:
        """The sum of the losses, the number of targets, and in eval mode the accuracies."""
        vectors = self.mtm_head.represent(masked_id_state, text_states, attention_mask)
        loss = masked_tabular_loss(self.mtm_head.scores(vectors, labels, noise_uniform))
        parts = {"mtm_loss": loss, "num_mtm_targets": (labels != IGNORE_INDEX).sum()}
        if not self.training:
            parts["mtm_accuracy"] = self.mtm_head.accuracy(vectors, labels)
            if self.mtm_head.query is not None:
                other = self.mtm_head.represent(masked_id_state, text_states.roll(1, 0), attention_mask.roll(1, 0))
                parts["mtm_shuffled_accuracy"] = self.mtm_head.accuracy(other, labels)
        return parts


class FlipForCTR(FlipPreTrainedModel):
    """Click prediction, the paper's adaptive fine-tuning, with `config.strategy`: `id` (FLIP_ID), `plm` (FLIP_PLM) or
    `joint` (FLIP); or `frozen`, the ID tower with the text embedding of a frozen PLM as one more field.

    Only the towers that the strategy uses are built or loaded; an `id` model holds no PLM, in its configuration
    neither.

    Raises:
        ValueError: the strategy needs a PLM and `config.text_config` is null.
    """

    def __init__(self, config: FlipConfig, text_encoder: PreTrainedModel | None = None):
        use_id, use_text = config.strategy != "plm", config.strategy != "id"
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
                self.first_order = FeatureEmbedding(config.field_sizes, 1, config.slot_fields)
        if use_text and not config.text_is_field:
            text_dim = config.text_config.hidden_size
            self.dropout = nn.Dropout(config.classifier_dropout)
            self.text_classifier = nn.Linear(text_dim, 1)
        if config.strategy == "joint":
            self.fusion = FlipFusion(config, id_dim, text_dim)
        self.post_init()

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        sample_weight: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipForCTROutput | tuple:
        """A view that the strategy does not use may be left out.

        Args:
            feature_ids: `(B, S)` local feature ids.
            input_ids, attention_mask: `(B, L)` token ids, and 1 for tokens, 0 for padding.
            labels: `(B,)`, 1 for a click, 0 for none. `joint` sums the losses of the joint logit and of both towers.
            sample_weight: `(B,)` weights of the rows in the loss.
        """
        parts: dict[str, torch.Tensor] = {}
        if self.id_classifier is not None:
            if feature_ids is None:
                raise ValueError(f"`feature_ids` is needed by strategy {self.config.strategy!r}.")
            id_state = self.flip.encode_ids(feature_ids, input_ids, attention_mask)
            parts["id_logits"] = self.id_classifier(id_state).float()
            if self.first_order is not None:
                parts["id_logits"] = parts["id_logits"] + self.first_order(feature_ids).float().sum(1)
        if self.text_classifier is not None:
            if attention_mask is None and input_ids is not None:
                attention_mask = torch.ones_like(input_ids)
            pooled = self.flip.pooled_text(input_ids, attention_mask)
            parts["text_logits"] = self.text_classifier(self.dropout(pooled)).float()
        heads = list(parts.values())
        if self.fusion is None:
            logits = heads[0]
        else:
            logits, parts["id_weight"] = self.fusion(*heads, id_state, pooled, feature_ids)
            heads.insert(0, logits)
        loss = None if labels is None else click_loss(torch.cat(heads, dim=1), labels, sample_weight, self.training)
        return returned(FlipForCTROutput(loss=loss, logits=logits, **parts), self.config, return_dict)


__all__ = ["FlipPreTrainedModel", "FlipModel", "FlipForPretraining", "FlipForCTR"]
