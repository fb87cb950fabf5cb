# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FLIP (arXiv 2310.19453): an ID-based CTR model and a pretrained language model (PLM), aligned on the same rows.

Shapes below: B rows, F fields of the tabular view and their S slots in `feature_ids` (S = F while each field has one
value), L tokens, H the PLM's hidden size, D_id the size of `h_id`.

Prompts come in one of three forms. Row prompts: `input_ids` `(B, L)`. Entity prompts (`config.prompts`), one for each
of E entities: in the row form `(B, E, L)`, or in the compact form, each distinct prompt once: `(P, L)`, and
`prompt_index` `(B, E)`. The row form is made compact at once, so that both give the same. Where the text side reads
histories of at most n entries, the prompts of their items stand behind those of the entities: E + n in place of E.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

# A checkpoint carries what this file imports, and transformers before 5.9 follows no imports of imports: every file is
# named here.
# isort: off
from .base_flip import FlipPreTrainedModel, require_config
from .calibration_flip import HEADS, corrected
from .columns_flip import Column  # noqa: F401
from .configuration_flip import FlipConfig, is_decoder
from .containers_flip import UnknownContainer  # noqa: F401
from .feature_extraction_flip import FlipFeatureExtractor  # noqa: F401
from .fields_flip import FlipField, check_choice  # noqa: F401
from .fingerprint_flip import check_checkpoint  # noqa: F401
from .gather_flip import share_of_total
from .heads_flip import FlipFusion, FlipProjection, TextField, contrastive_logits
from .histories_flip import Histories  # noqa: F401
from .id_tower import FeatureEmbedding, build_id_tower, columns_at
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
from .inputs_flip import InputChecks
from .layers_flip import TowerLinear, log_odds
from .losses_flip import (
    IGNORE_INDEX,
    WITHIN_USER,
    click_loss,
    contrastive_accuracy,
    contrastive_loss,
    entity_contrasts,
    masked_language_loss,
    masked_tabular_loss,
    soft_click_loss,
)
from .mlm_head_flip import FlipMLMHead
from .mtm_head_flip import FlipMTMHead
from .new_files_flip import new_files  # noqa: F401
from .numbers_flip import FlipTextNumbers
from .outputs_flip import FlipForCTROutput, FlipForPretrainingOutput, FlipModelOutput, returned
from .pipeline_flip import ClickThroughRatePipeline  # noqa: F401
from .processing_flip import FlipProcessor  # noqa: F401
from .prompt_tables_flip import PromptTable  # noqa: F401
from .prompts_flip import (
    EntityText,
    FlipTextInteraction,
    MaskedPairs,
    distinct_prompts,
    entity_slots,
    entity_views,
    integer_keys,
    prompt_keys,
)
from .rows_flip import RawRows  # noqa: F401
from .target_attention_flip import FlipTargetAttention  # noqa: F401
from .text_attention_flip import attend_to_tokens  # noqa: F401
from .tower_code_flip import save_tower_code  # noqa: F401
from .values_flip import Value  # noqa: F401
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
        require_config(config)
        super().__init__(config)
        self.entities, self.history_entity = config.prompt_entities, config.history_entity
        self.text_encoder = self.id_tower = self.id_projection = self.text_projection = self.text_field = None
        self.text_interaction = None
        use_id = (config.pretrains_id_tower or config.mlm_weight == 0) if use_id is None else use_id
        if use_id:
            self.id_tower = build_id_tower(config)
        config.decide_text_pooling()
        if use_text and config.text_config is not None:
            if text_encoder is None:
                # the implementation must be named again: from_config would fall back to eager attention
                attn_implementation = config.text_config._attn_implementation
                try:
                    text_encoder = AutoModel.from_config(config.text_config, attn_implementation=attn_implementation)
                except ValueError as error:  # such as a size that the heads do not divide
                    raise ValueError(f"FlipConfig: no PLM has this `text_config`: {error}") from error
            if getattr(text_encoder, "pooler", None) is not None:
                text_encoder.pooler = None  # never used: its gradients would be missed by DDP
            if is_decoder(text_encoder.config):
                text_encoder.config.use_cache = False  # nothing is generated that would need past keys and values
            self.text_encoder = text_encoder
            if config.prompts == "entity":
                self.text_interaction = FlipTextInteraction(
                    config.text_config.hidden_size, len(self.entities), self.history_entity
                )
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
        self.inputs = InputChecks(config, self.id_tower is not None, self.text_encoder is not None)
        self.post_init()

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> last hidden states `(B, L, H)`. `ValueError` where prompts are longer than
        what the PLM can read."""
        if input_ids is None:
            raise ValueError("`input_ids` is needed: this model reads the textual view.")
        if input_ids.shape[0] == 0:  # not every PLM takes none
            shape = (*input_ids.shape, self.config.text_config.hidden_size)
            return torch.zeros(shape, dtype=self.text_encoder.dtype, device=input_ids.device)
        try:
            return self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        except (IndexError, RuntimeError) as error:
            longest = getattr(self.config.text_config, "max_position_embeddings", None)
            if longest is None or input_ids.shape[1] <= longest:
                raise
            raise ValueError(
                f"`input_ids` has the shape {tuple(input_ids.shape)}, and the PLM has positions for {longest} tokens: "
                f"{error}"
            ) from error

    def pool(self, text_hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """`(B, L, H)` -> the pooled state `(B, H)`: first token, last token, or mean over the tokens."""
        if self.config.text_pooling == "cls":
            return text_hidden_states[:, 0]
        if self.config.text_pooling == "last":
            positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            last = (positions * (attention_mask != 0)).argmax(1)
            return text_hidden_states[torch.arange(last.shape[0], device=last.device), last]
        mask = attention_mask[..., None].to(text_hidden_states.dtype)
        return (text_hidden_states * mask).sum(1) / mask.sum(1)

    def pooled_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> pooled states `(B, H)`."""
        return self.pool(self.encode_text(input_ids, attention_mask), attention_mask)

    def compact_prompts(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Prompts in any form -> token ids and mask of those that the PLM reads, and of entity prompts the index
        `(B, E)`.

        Raises:
            ValueError: there are no prompts, or they are not of the kind that `config.prompts` says.
        """
        if input_ids is None:
            raise ValueError("`input_ids` is needed: this model reads the textual view.")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"`attention_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)}; got "
                f"{tuple(attention_mask.shape)}."
            )
        if self.config.prompts == "entity" and prompt_index is None and input_ids.ndim == 3:
            (input_ids, attention_mask), prompt_index = distinct_prompts(
                (input_ids, attention_mask.to(input_ids.dtype))
            )
        self.inputs.check_form("input_ids", input_ids, prompt_index)
        return input_ids, attention_mask, prompt_index

    def text_state(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
        text_pooled: torch.Tensor | None = None,
        history_outcomes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Prompts in any form, or their pooled states `(P, H)`, and the outcomes of the history's entries `(B, n)` ->
        the textual view of each row, `(B, H)`: the pooled state of its prompt, or the interaction of those of its
        entities and its history. `ValueError` where the history has another number of outcomes than of prompts."""
        if text_pooled is None:
            input_ids, attention_mask, prompt_index = self.compact_prompts(input_ids, attention_mask, prompt_index)
            text_pooled = self.pooled_text(input_ids, attention_mask)
        if prompt_index is None:
            return text_pooled
        prompts = prompt_index.shape[1] - len(self.entities)
        outcomes = 0 if history_outcomes is None else history_outcomes.shape[1]
        if self.history_entity is not None and prompts != outcomes:
            raise ValueError(
                f"a row has prompts of {prompts} entries of its history (`input_ids` or `prompt_index` behind those of "
                f"its {len(self.entities)} entities), and `history_outcomes` of {outcomes}."
            )
        return self.text_interaction(text_pooled, prompt_index, history_outcomes)

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

    def encode_ids(
        self,
        feature_ids: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
        text_pooled: torch.Tensor | None = None,
        history_ids: torch.Tensor | None = None,
        history_outcomes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Feature ids `(B, S)` and the history -> `h_id` `(B, D_id)`; with strategy `frozen` of the prompts too, as of
        `text_state`."""
        of_tower = {"feature_ids": feature_ids}
        if self.id_tower.history is not None:  # a tower of one's own need not know histories
            of_tower |= {"history_ids": history_ids, "history_outcomes": history_outcomes}
        if self.text_field is None:
            return self.id_tower(**of_tower)
        if input_ids is None and text_pooled is None:
            raise ValueError("`input_ids` is needed by strategy 'frozen': the text is a field of the ID tower.")
        if text_pooled is None:
            input_ids, attention_mask, prompt_index = self.compact_prompts(input_ids, attention_mask, prompt_index)
            text_pooled = self.frozen_text(input_ids, attention_mask)
        text_pooled = text_pooled.detach()
        state = self.text_state(prompt_index=prompt_index, text_pooled=text_pooled, history_outcomes=history_outcomes)
        return self.id_tower(**of_tower, text_embeds=self.text_field(state))

    @torch.no_grad()
    def frozen_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask `(B, L)` -> pooled states `(B, H)` without gradients; equal prompts go through the PLM
        once."""
        if torch.compiler.is_compiling():  # a graph has no number of prompts that depends on them
            return self.pooled_text(input_ids, attention_mask)
        (ids, mask), index = distinct_prompts((input_ids[:, None], attention_mask[:, None].to(input_ids.dtype)))
        return self.pooled_text(ids, mask)[index[:, 0]]

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

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Prompts in any form -> `(B, projection_dim)`. `ValueError` where the model has no projections."""
        self._check_projection(self.text_projection)
        self.inputs.check(prompt_index=prompt_index, input_ids=input_ids, attention_mask=attention_mask)
        return self.project(self.text_state(input_ids, attention_mask, prompt_index), self.text_projection)

    def forward(
        self,
        feature_ids: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
        history_ids: torch.Tensor | None = None,
        history_outcomes: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipModelOutput | tuple:
        """Either view may be left out.

        Args:
            feature_ids: `(B, S)` local feature ids.
            input_ids, attention_mask, prompt_index: prompts in any form (see the top of this file): token ids, 1 for
                tokens and 0 for padding, and which prompt each row has of each entity.
            history_ids, history_outcomes: of the history's entries `(B, n, slots of an item)` local feature ids, and
                `(B, n)` 1 not clicked, 2 clicked, 0 for no entry. Without them a history is empty.
        """
        self.inputs.check(
            feature_ids=feature_ids,
            prompt_index=prompt_index,
            input_ids=input_ids,
            attention_mask=attention_mask,
            history_ids=history_ids,
            history_outcomes=history_outcomes,
        )
        id_embeds = text_embeds = id_state = text_states = pooled = text_state = None
        if self.text_encoder is not None and input_ids is not None:
            row_form = prompt_index is None
            input_ids, attention_mask, prompt_index = self.compact_prompts(input_ids, attention_mask, prompt_index)
            text_states = self.encode_text(input_ids, attention_mask)
            pooled = self.pool(text_states, attention_mask)
            text_state = self.text_state(
                prompt_index=prompt_index, text_pooled=pooled, history_outcomes=history_outcomes
            )
            if self.text_projection is not None:
                text_embeds = self.project(text_state, self.text_projection)
        if self.id_tower is not None and feature_ids is not None:
            of_history = {"history_ids": history_ids, "history_outcomes": history_outcomes}
            id_state = self.encode_ids(feature_ids, prompt_index=prompt_index, text_pooled=pooled, **of_history)
            if self.id_projection is not None:
                id_embeds = self.project(id_state, self.id_projection)
        if prompt_index is not None and row_form:
            text_states, pooled = text_states[prompt_index], pooled[prompt_index]
        output = FlipModelOutput(id_embeds, text_embeds, id_state, text_states, pooled, text_state)
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
        require_config(config)
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
        if config.icl_weight == 0:
            self.flip.text_interaction = None  # rows are compared by ICL alone
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
            self._keys_to_ignore_on_save = ["mlm_head.decoder.weight"]  # a Trainer would miss it when it loads the best
        if config.mtm_weight > 0:
            self.mtm_head = FlipMTMHead(
                config, id_dim, config.text_config.hidden_size if config.mtm_uses_text else None
            )
        self.slots = entity_slots(config) if use_id else []
        self._slots: torch.Tensor | None = None
        # the views that ICL compares: of the row, and of each entity that both sides have
        self.icl_entities = [number for number, slots in enumerate(self.slots) if any(slots)]
        if config.icl_weight > 0 and config.icl_similarity == "cosine":
            self.logit_scale = nn.Parameter(torch.zeros(1))  # of one dimension: FSDP2 cannot split a scalar
        self.post_init()
        if self.mtm_head is not None and config._feature_counts is not None:
            self.mtm_head.start_with(torch.as_tensor(config._feature_counts))

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
        """Gives MTM the training counts of all features, see [`FlipMTMHead.set_feature_counts`]. A new model has those
        of `FlipConfig(fields=processor.fields)` where `FlipProcessor.from_dataset` has just counted rows in memory."""
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
        prompt_index: torch.Tensor | None = None,
        mlm_pairs: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
        masked_text_hidden_states: torch.Tensor | None = None,
        token_fields: torch.Tensor | None = None,
        reduction: str = "mean",
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipForPretrainingOutput | tuple:
        """Two PLM passes and two ID tower passes, the clean and the masked view each in one concatenated forward.

        With entity prompts the PLM reads each distinct prompt once. MLM predicts a masked prompt from the ids of its
        entity alone, all others masked; MTM attends to the tokens of all prompts of a row; ICL is the mean of a term
        for each entity, between the ids of that entity and its prompt, and of a term for rows, whose negatives are rows
        of the same user. The ID tower reads the views of single entities too.

        Args:
            feature_ids, masked_feature_ids: `(B, S)` local feature ids, and with masked fields.
            input_ids, attention_mask, masked_input_ids: `(B, L)`, or of entity prompts `(B, E, L)` or `(P, L)`.
            mlm_labels: token ids at masked positions, -100 elsewhere, of the shape of `input_ids`.
            mtm_labels: `(B, S)` local feature ids of masked fields, -100 elsewhere.
            noise_uniform: `(B, S, k)` float64 numbers in [0, 1) to draw MTM's noise with; random when not given.
            prompt_index: `(B, E)`, which of the P distinct prompts each row has of each entity.
            mlm_pairs: `(B, E)` bool, with `prompt_index`: whether MLM predicts the masked form of that prompt from the
                ids of that row; of every row and entity when not given.
            text_hidden_states, masked_text_hidden_states: `(P, L, H)` what `flip.encode_text` gives of the compact
                prompts and of their masked form, where it is known: the PLM then reads nothing.
            token_fields: not read. It is named as a `Trainer` keeps those columns alone that `forward` names, and
                [`FlipPretrainingCollator`] needs it.
            reduction: `mean`: `loss` is the weighted sum of the objectives, each a mean over the targets of all
                processes. `sum`: for rows that are a part of a larger batch. `mlm_loss` and `mtm_loss` are sums over
                the targets of these rows; `loss` and `icl_loss` are None, as ICL compares all rows of the whole batch:
                `id_embeds` and `text_embeds` are what it compares (see `contrast`). The clean view then has a forward
                of its own, the same as that of `contrastive_views`.

        Raises:
            ValueError: a view that an objective needs is missing; or MTM has no counts to draw noise from, see
                `set_feature_counts`; or `reduction` is another word.
        """
        config = self.config
        check_choice("FlipForPretraining", "reduction", reduction, ("mean", "sum"))
        table = None if self.flip.id_tower is None else getattr(self.flip.id_tower, "embeddings", None)
        self.flip.inputs.check(
            last_ids=getattr(table, "last_ids", None),
            needs_rows=True,
            feature_ids=feature_ids,
            prompt_index=prompt_index,
            input_ids=input_ids,
            attention_mask=attention_mask,
            masked_input_ids=masked_input_ids,
            mlm_labels=mlm_labels,
            masked_feature_ids=masked_feature_ids,
            mtm_labels=mtm_labels,
            noise_uniform=noise_uniform,
            mlm_pairs=mlm_pairs,
            text_hidden_states=text_hidden_states,
            masked_text_hidden_states=masked_text_hidden_states,
        )
        parts: dict[str, Any] = {}
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
        if config.prompts == "entity" and config.pretrains_text:
            of_masked = masked_input_ids, mlm_labels, mlm_pairs
            known = text_hidden_states, masked_text_hidden_states
            text = self._entity_text(input_ids, attention_mask, prompt_index, *of_masked, *known)
            of_ids = masked_feature_ids, mtm_labels, noise_uniform
            parts |= self._entity_objectives(feature_ids, *of_ids, text, reduction)
        else:
            text_states = masked_text_states = id_state = masked_id_state = None
            if reduction == "sum":
                clean = self.flip(feature_ids, input_ids, attention_mask, return_dict=True)
                text_states, id_state = clean.text_hidden_states, clean.id_hidden_state
                masked_text_states = self.flip.encode_text(masked_input_ids, attention_mask) if use_mlm else None
                masked_id_state = self.flip.id_tower(masked_feature_ids) if use_mtm else None
            else:
                texts = [input_ids] * (config.mtm_uses_text or use_icl) + [masked_input_ids] * use_mlm
                if texts:
                    together = self.flip.encode_text(torch.cat(texts), attention_mask.repeat(len(texts), 1))
                    states = together.chunk(len(texts))
                    text_states, masked_text_states = states[0], states[-1]
                rows = [feature_ids] * (config.mlm_uses_ids or use_icl) + [masked_feature_ids] * use_mtm
                if rows:
                    id_states = self.flip.id_tower(torch.cat(rows)).chunk(len(rows))
                    id_state, masked_id_state = id_states[0], id_states[-1]
            if use_mlm:
                parts |= self._masked_language_modelling(masked_text_states, id_state, mlm_labels)
            if use_mtm:
                rows_of_states = torch.arange(len(mtm_labels), device=mtm_labels.device)[:, None]
                tokens = text_states, attention_mask, rows_of_states
                parts |= self._masked_tabular_modelling(masked_id_state, *tokens, mtm_labels, noise_uniform)
            if use_icl and reduction == "sum":
                parts |= {"id_embeds": clean.id_embeds[:, None], "text_embeds": clean.text_embeds[:, None]}
            elif use_icl:
                id_embeds = self.flip.project(id_state, self.flip.id_projection)
                text_embeds = self.flip.project(self.flip.pool(text_states, attention_mask), self.flip.text_projection)
                parts |= self.contrast(id_embeds[:, None], text_embeds[:, None])
        loss = None
        if reduction == "mean":
            loss = torch.zeros((), device=self.device)
            for objective in ("mlm", "mtm", "icl"):
                if f"{objective}_loss" in parts:
                    if objective != "icl":
                        total = share_of_total(parts[f"num_{objective}_targets"], self.training)
                        parts[f"{objective}_loss"] = parts[f"{objective}_loss"] / total
                    loss = loss + getattr(config, f"{objective}_weight") * parts[f"{objective}_loss"]
        return returned(FlipForPretrainingOutput(loss=loss, **parts), config, return_dict)

    # --- instance-level contrastive learning

    def contrastive_views(
        self,
        feature_ids: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
        text_hidden_states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What ICL compares of each row, its V views: `(B, V, projection_dim)` of the ids and of the prompts.

        With row prompts V is 1, the row. With entity prompts the views are the row and each entity that has ids.
        Arguments as of `forward`.
        """
        if self.config.prompts == "row":
            output = self.flip(feature_ids, input_ids, attention_mask, return_dict=True)
            return output.id_embeds[:, None], output.text_embeds[:, None]
        self.flip.inputs.check(
            feature_ids=feature_ids,
            prompt_index=prompt_index,
            input_ids=input_ids,
            attention_mask=attention_mask,
            text_hidden_states=text_hidden_states,
        )
        text = self._entity_text(input_ids, attention_mask, prompt_index, text_hidden_states=text_hidden_states)
        id_state, entity_states, _ = self._entity_ids(feature_ids)
        return self._entity_views(id_state, entity_states, text)

    def view_keys(
        self,
        feature_ids: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        prompt_index: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """With entity prompts what tells which rows have the same ids, and the same prompt, of an entity: int64
        `(B, V - 1)` each, of the views behind the first. None with row prompts, where each row is its own."""
        if self.config.prompts == "row":
            return None
        input_ids, attention_mask, index = self.flip.compact_prompts(input_ids, attention_mask, prompt_index)
        views = entity_views(feature_ids, self._slots_on(feature_ids.device))
        of_ids, of_prompts = integer_keys(views).T, prompt_keys(input_ids, attention_mask)[index]
        return columns_at(of_ids, self.icl_entities), columns_at(of_prompts, self.icl_entities)

    def _slots_on(self, device: torch.device) -> torch.Tensor:
        """`entity_slots` as a tensor `(E, S)`, brought to a device once: it is waited for."""
        if self._slots is None or self._slots.device != device:
            self._slots = torch.tensor(self.slots, device=device)
        return self._slots

    def contrast(
        self,
        id_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        keys: tuple[torch.Tensor, torch.Tensor] | None = None,
        scale: torch.Tensor | float | None = None,
    ) -> dict[str, Any]:
        """ICL's loss and accuracy from the views of `contrastive_views` and the keys of `view_keys`.

        Args:
            scale: what similarities are multiplied by; `icl_scale()` when not given.
        """
        scale = self.icl_scale() if scale is None else scale
        if keys is None:
            similarities = contrastive_logits(id_embeds[:, 0], text_embeds[:, 0], scale, self.training)
            return {"icl_loss": contrastive_loss(*similarities), "icl_accuracy": contrastive_accuracy(*similarities)}
        names = [self.flip.entities[number] for number in self.icl_entities]
        terms = entity_contrasts(id_embeds, text_embeds, keys, names, scale, self.training)
        parts: dict[str, Any] = {"icl_loss": torch.stack([term.loss for term in terms.values()]).mean()}
        right = terms[WITHIN_USER if WITHIN_USER in terms else names[0]].right
        parts["icl_accuracy"] = right[0] / right[1].clamp(min=1)
        if not self.training:
            parts["by_entity"] = {f"icl_{name}_accuracy": term.right for name, term in terms.items()}
        return parts

    # --- entity prompts

    def _entity_text(
        self,
        input_ids,
        attention_mask,
        prompt_index,
        masked_input_ids=None,
        mlm_labels=None,
        mlm_pairs=None,
        text_hidden_states=None,
        masked_text_hidden_states=None,
    ) -> EntityText:
        """Prompts in either form, which the PLM reads where their states are not given. Arguments as of `forward`."""
        use_mlm = self.config.mlm_weight > 0 and masked_input_ids is not None
        ids = input_ids if input_ids is not None else masked_input_ids
        if prompt_index is None and ids.ndim == 3:  # the row form
            views = [ids, attention_mask.to(ids.dtype)] + [masked_input_ids] * use_mlm
            compact, prompt_index = distinct_prompts(views)
            ids, attention_mask = compact[:2]
            if use_mlm:
                masked_input_ids, mlm_pairs = compact[2], (mlm_labels != IGNORE_INDEX).any(-1)
                labels = torch.full_like(ids, IGNORE_INDEX)
                labels[prompt_index[mlm_pairs]] = mlm_labels[mlm_pairs]
                mlm_labels = labels
        self.flip.compact_prompts(ids, attention_mask, prompt_index)  # refuses other forms
        texts, pairs = [], None
        if (self.config.mtm_uses_text or self.config.icl_weight > 0) and text_hidden_states is None:
            texts.append((ids, attention_mask))
        if use_mlm:
            has_labels = (mlm_labels != IGNORE_INDEX).any(-1)[prompt_index]
            pair_rows, pair_entities = (has_labels if mlm_pairs is None else has_labels & mlm_pairs).nonzero(
                as_tuple=True
            )
            paired = prompt_index[pair_rows, pair_entities]
            if masked_text_hidden_states is None:
                texts.append((masked_input_ids[paired], attention_mask[paired]))
        if texts:
            together = self.flip.encode_text(*(torch.cat(parts) for parts in zip(*texts)))
            states = list(together.split([len(part) for part, _ in texts]))
        if use_mlm:
            known = masked_text_hidden_states is not None
            masked = masked_text_hidden_states[paired] if known else states.pop()
            pairs = MaskedPairs(masked, mlm_labels[paired], pair_rows, pair_entities)
        clean = states.pop() if texts and states else text_hidden_states
        return EntityText(ids, attention_mask, prompt_index, clean, pairs)

    def _entity_ids(self, feature_ids, masked_feature_ids=None):
        """`h_id` of the rows `(B, D_id)`, of each entity alone `(E, B, D_id)`, and of the masked rows."""
        config, views = self.config, []
        if self.flip.id_tower is None:
            return None, None, None
        use_icl = config.icl_weight > 0
        if use_icl:
            views.append(feature_ids[None])
        if use_icl or config.mlm_uses_ids:
            views.append(entity_views(feature_ids, self._slots_on(feature_ids.device)))
        if masked_feature_ids is not None:
            views.append(masked_feature_ids[None])
        if not views:
            return None, None, None
        together = torch.cat(views)
        states = self.flip.id_tower(together.flatten(0, 1)).unflatten(0, together.shape[:2])
        parts = list(states.split([len(view) for view in views]))
        masked = parts.pop()[0] if masked_feature_ids is not None else None
        return parts.pop(0)[0] if use_icl else None, parts.pop() if parts else None, masked

    def _entity_views(self, id_state, entity_states, text: EntityText) -> tuple[torch.Tensor, torch.Tensor]:
        """The views that ICL compares, see `contrastive_views`."""
        pooled = self.flip.pool(text.states, text.attention_mask)  # (P, H)
        interaction: Any = self.flip.text_interaction
        of_row = interaction(pooled, text.prompt_index)
        alone = [interaction.alone(pooled, number)[text.prompt_index[:, number]] for number in self.icl_entities]
        ids = torch.stack([id_state, *(entity_states[number] for number in self.icl_entities)], dim=1)
        texts = torch.stack([of_row, *alone], dim=1)
        return self.flip.project(ids, self.flip.id_projection), self.flip.project(texts, self.flip.text_projection)

    def _entity_objectives(
        self, feature_ids, masked_feature_ids, mtm_labels, noise_uniform, text: EntityText, reduction: str
    ) -> dict[str, Any]:
        config = self.config
        use_mtm = config.mtm_weight > 0
        parts: dict[str, Any] = {}
        by_entity: dict[str, torch.Tensor] = {}
        if reduction == "sum":  # the clean view first and alone, as in `contrastive_views`
            id_state, entity_states, _ = self._entity_ids(feature_ids)
            masked_id_state = self.flip.id_tower(masked_feature_ids) if use_mtm else None
        else:
            masked = masked_feature_ids if use_mtm else None
            id_state, entity_states, masked_id_state = self._entity_ids(feature_ids, masked)
        views = self._entity_views(id_state, entity_states, text) if config.icl_weight > 0 else None
        if text.masked is not None:
            order = text.masked.entities.argsort(stable=True)
            pairs = MaskedPairs(*(part[order] for part in text.masked))
            vectors = entity_states[pairs.entities, pairs.rows] if config.mlm_uses_ids else None
            if len(pairs.rows) == 0:
                # another process may have all pairs of a batch: one without a label keeps every weight in the graph
                states = pairs.states.new_zeros(1, 1, pairs.states.shape[-1])
                pairs = MaskedPairs(states, pairs.labels.new_full((1, 1), IGNORE_INDEX), *pairs[2:])
                vectors = None if vectors is None else entity_states.sum((0, 1))[None] * 0.0
            groups = None
            if not self.training:  # training asks for no accuracy of its entities, for which it would wait
                groups = torch.bincount(pairs.entities, minlength=len(self.flip.entities)).tolist()
                groups[0] += len(pairs.states) - len(pairs.entities)  # the one without a label
            mlm = self._masked_language_modelling(pairs.states, vectors, pairs.labels, groups)
            by_entity |= self._named("mlm", mlm.pop("by_group", {}))
            parts |= mlm
        if use_mtm:
            tokens = text.states, text.attention_mask, text.prompt_index
            parts |= self._masked_tabular_modelling(masked_id_state, *tokens, mtm_labels, noise_uniform)
            if not self.training:
                by_entity |= self._mtm_by_entity(masked_id_state, text, mtm_labels)
        if views is not None and reduction == "sum":
            parts |= dict(zip(("id_embeds", "text_embeds"), views))
        elif views is not None:
            keys = self.view_keys(feature_ids, text.input_ids, text.attention_mask, text.prompt_index)
            icl = self.contrast(*views, keys)
            by_entity |= icl.pop("by_entity", {})
            parts |= icl
        return parts | ({} if self.training else {"by_entity": by_entity})

    def _named(self, objective: str, by_group: dict[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Numbers of each entity, by the names that they have in the output."""
        names = self.flip.entities
        return {
            f"{objective}_{entity}_{kind}": value
            for kind, values in by_group.items()
            for entity, value in zip(names, values)
        }

    def _mtm_by_entity(self, masked_id_state, text: EntityText, labels) -> dict[str, torch.Tensor]:
        """MTM's accuracy on the fields of each entity, and with its prompts shifted by one row."""
        kinds = ["accuracy"] + ["shuffled_accuracy"] * self.config.mtm_uses_text
        right: dict[str, list[torch.Tensor]] = {kind: [] for kind in kinds}

        def count(index, kept) -> torch.Tensor:
            vectors = self.mtm_head.represent(masked_id_state, text.states, text.attention_mask, index)
            targets = (kept != IGNORE_INDEX).sum()
            return torch.stack([self.mtm_head.accuracy(vectors, kept) * targets, targets.float()])

        for number, slots in enumerate(self.slots):
            kept = torch.where(torch.tensor(slots, device=labels.device), labels, IGNORE_INDEX)
            right["accuracy"].append(count(text.prompt_index, kept))
            if self.config.mtm_uses_text:
                index = text.prompt_index.clone()
                index[:, number] = index[:, number].roll(1, 0)
                right["shuffled_accuracy"].append(count(index, kept))
        return self._named("mtm", right)

    # --- masked language and masked tabular modelling

    def _masked_language_modelling(self, masked_states, id_state, labels, groups=None) -> dict[str, Any]:
        """The sum of the losses, the number of targets, and in eval mode the accuracies.

        Args:
            masked_states, id_state, labels: `(n, L, H)`, `(n, D_id)` and `(n, L)`, of n masked prompts.
            groups: sizes of groups of neighbouring prompts; shuffled counterparts are of the same group, and the
                accuracies of each are `by_group`.
        """
        rows, positions = (labels != IGNORE_INDEX).nonzero(as_tuple=True)  # the head runs at masked positions only
        found = len(rows)
        count = labels.new_full((), found)
        # rounded up with ignored positions: a new size every step costs a new kernel, and memory that is never given
        # back
        padding = (0, (-len(rows)) % MLM_POSITIONS_MULTIPLE if found else MLM_POSITIONS_MULTIPLE)
        rows, positions = nn.functional.pad(rows, padding), nn.functional.pad(positions, padding)
        tokens, targets = masked_states[rows, positions], labels[rows, positions]
        targets[found:] = IGNORE_INDEX
        candidates, targets = self.mlm_head.candidates(targets)
        row_vectors = None if self.mlm_head.fuse_id is None else self.mlm_head.row_dropout(id_state)[rows]
        logits = self.mlm_head(tokens, row_vectors, candidates)
        parts: dict[str, Any] = {"mlm_loss": masked_language_loss(logits, targets), "num_mlm_targets": count}
        if not self.training:
            right = {"accuracy": logits.argmax(-1) == targets}
            if self.mlm_head.fuse_id is not None:
                parted = id_state.split([len(labels)] if groups is None else groups)
                others = torch.cat([part.roll(1, 0) for part in parted])
                shuffled = self.mlm_head(tokens, others[rows], candidates)
                right["shuffled_accuracy"] = shuffled.argmax(-1) == targets
            parts |= {f"mlm_{name}": hits.sum() / count.clamp(min=1) for name, hits in right.items()}
            if groups is not None:
                numbers = torch.arange(len(groups), device=rows.device)
                group_of = numbers.repeat_interleave(torch.tensor(groups, device=rows.device))[rows[:found]]
                parts["by_group"] = {
                    name: [
                        torch.stack([hits[:found][group_of == number].sum(), (group_of == number).sum()]).float()
                        for number in range(len(groups))
                    ]
                    for name, hits in right.items()
                }
        return parts

    def _masked_tabular_modelling(
        self, masked_id_state, text_states, attention_mask, prompt_index, labels, noise_uniform
    ) -> dict[str, torch.Tensor]:
        """The sum of the losses, the number of targets, and in eval mode the accuracies."""
        vectors = self.mtm_head.represent(masked_id_state, text_states, attention_mask, prompt_index)
        loss = masked_tabular_loss(self.mtm_head.scores(vectors, labels, noise_uniform))
        parts = {"mtm_loss": loss, "num_mtm_targets": (labels != IGNORE_INDEX).sum()}
        if not self.training:
            parts["mtm_accuracy"] = self.mtm_head.accuracy(vectors, labels)
            if self.mtm_head.query is not None:
                of_others = prompt_index.roll(1, 0)
                other = self.mtm_head.represent(masked_id_state, text_states, attention_mask, of_others)
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
        require_config(config)
        use_id, use_text = config.strategy != "plm", config.strategy != "id"
        if config.strategy == "id":
            config = copy.deepcopy(config)
            config.text_config = None
        super().__init__(config)
        if use_text and config.text_config is None:
            raise ValueError(f"FlipForCTR: strategy {config.strategy!r} needs a PLM, and `config.text_config` is null.")
        self.flip = FlipModel(config, text_encoder, use_id, use_text, use_projection=False)
        self.id_classifier = self.first_order = self.text_classifier = self.text_numbers = self.fusion = None
        if use_id:
            id_dim = self.flip.id_tower.output_dim
            self.id_classifier = TowerLinear(id_dim, 1)
            if self.flip.id_tower.has_first_order:
                self.first_order = FeatureEmbedding(config.field_sizes, 1, config.slot_fields)
        if use_text and not config.text_is_field:
            text_dim = config.text_config.hidden_size
            self.dropout = nn.Dropout(config.classifier_dropout)
            self.text_classifier = nn.Linear(text_dim, 1)
            if config.text_numbers:
                self.text_numbers = FlipTextNumbers(config, text_dim)
                self.flip.inputs.read.add("feature_ids")
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
        prompt_index: torch.Tensor | None = None,
        text_pooled: torch.Tensor | None = None,
        history_ids: torch.Tensor | None = None,
        history_outcomes: torch.Tensor | None = None,
        soft_targets: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> FlipForCTROutput | tuple:
        """A view that the strategy does not use may be left out. In eval mode the log odds are corrected as the
        configuration's `negative_sampling_rate` and `calibration` say; the loss is of the log odds before that.

        Args:
            feature_ids: `(B, S)` local feature ids.
            input_ids, attention_mask, prompt_index: prompts in any form, see [`FlipModel.forward`].
            text_pooled: `(P, H)` pooled states of the prompts that `prompt_index` names, where they are known: the PLM
                then reads nothing.
            history_ids, history_outcomes: of the history, see [`FlipModel.forward`].
            labels: `(B,)`, 1 for a click, 0 for none. `joint` sums the losses of the joint logit and of both towers.
            sample_weight: `(B,)` weights of the rows in the loss.
            soft_targets: `(B,)` floating-point, in the place of `labels`: probabilities of a click from 0 to 1, such as
                a teacher's, see [`soft_click_loss`].

        Raises:
            TypeError, ValueError: an input is missing, of another type or shape, or out of range; or there are `labels`
                and `soft_targets`.
        """
        if labels is not None and soft_targets is not None:
            raise ValueError("`soft_targets` stand in the place of `labels`; give one of both.")
        self.flip.inputs.check(
            # an ID tower checks what it reads
            last_ids=None
            if self.text_numbers is None or self.flip.id_tower is not None
            else self.text_numbers.last_ids,
            feature_ids=feature_ids,
            prompt_index=prompt_index,
            input_ids=input_ids,
            attention_mask=attention_mask,
            text_pooled=text_pooled,
            history_ids=history_ids,
            history_outcomes=history_outcomes,
            labels=labels,
            soft_targets=soft_targets,
            sample_weight=sample_weight,
        )
        id_state = text_state = None
        if self.id_classifier is not None:
            if feature_ids is None:
                raise ValueError(f"`feature_ids` is needed by strategy {self.config.strategy!r}.")
            id_state = self.flip.encode_ids(
                feature_ids, input_ids, attention_mask, prompt_index, text_pooled, history_ids, history_outcomes
            )
        if self.text_classifier is not None:
            text_state = self.flip.text_state(input_ids, attention_mask, prompt_index, text_pooled, history_outcomes)
        output = self._heads(feature_ids, id_state, text_state)
        targets, loss = (labels, click_loss) if soft_targets is None else (soft_targets, soft_click_loss)
        if targets is not None:
            names = ("logits",) if self.fusion is None else ("logits", "id_logits", "text_logits")
            heads = torch.cat([output[name] for name in names], dim=1)
            output = FlipForCTROutput(loss=loss(heads, targets, sample_weight, self.training), **output)
        return returned(self._correct(output), self.config, return_dict)

    def predict(
        self, feature_ids: torch.Tensor | None, id_state: torch.Tensor | None, text_state: torch.Tensor | None
    ) -> FlipForCTROutput:
        """The heads alone; in eval mode their log odds are corrected, as those of `forward`.

        Args:
            feature_ids: `(B, S)`, of a model with an ID tower, or with `config.text_numbers`.
            id_state: `h_id` `(B, D_id)`, where the strategy has an ID tower's head.
            text_state: the textual view `(B, H)`, where it has a PLM's.
        """
        return self._correct(self._heads(feature_ids, id_state, text_state))

    def _heads(self, feature_ids, id_state, text_state) -> FlipForCTROutput:
        parts: dict[str, torch.Tensor] = {}
        if self.id_classifier is not None:
            parts["id_logits"] = log_odds(self.id_classifier, id_state)
            if self.first_order is not None:
                parts["id_logits"] = parts["id_logits"] + self.first_order(feature_ids).float().sum(1)
        if self.text_numbers is not None:
            if feature_ids is None:
                raise ValueError("`feature_ids` is needed: `config.text_numbers` has the text side read numbers there.")
            text_state = self.text_numbers(text_state, feature_ids)
        if self.text_classifier is not None:
            parts["text_logits"] = log_odds(self.text_classifier, self.dropout(text_state))
        logits = next(iter(parts.values()))
        if self.fusion is not None:
            states = id_state, text_state, feature_ids
            logits, parts["id_weight"] = self.fusion(*parts.values(), *states)
        return FlipForCTROutput(logits=logits, **parts)

    def _correct(self, output: FlipForCTROutput) -> FlipForCTROutput:
        """In eval mode the output with log odds as `config.negative_sampling_rate` and `config.calibration` correct
        them; in training the output as it is."""
        if not self.training:
            config = self.config
            for name in HEADS[config.strategy]:
                output[name] = corrected(output[name], name, config.negative_sampling_rate, config.calibration)
            output.logits = output[HEADS[config.strategy][0]]
        return output


__all__ = ["FlipPreTrainedModel", "FlipModel", "FlipForPretraining", "FlipForCTR"]
