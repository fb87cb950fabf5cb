# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the models of `modeling_flip` share: their outputs, and the class that loads and saves them.

Shapes below: B rows, L tokens, H the PLM's hidden size, D_id the size of `h_id`.
"""

import copy
import math
import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .configuration_flip import FlipConfig
from .modeling_id_tower import save_tower_code

logger = logging.get_logger(__name__)

ALIGNMENT = 64  # bytes; what torch's own CPU allocator gives


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
        loss: weighted sum of the three losses.
        mlm_loss, mtm_loss: means over the masked tokens and over the masked features.
        icl_loss: symmetric InfoNCE.
        icl_accuracy: share of rows whose own counterpart is the most similar of the batch.
        mlm_accuracy, mtm_accuracy: share of masked tokens, and of masked features among all values of their field, ranked first, or
            among the first n where n values of the field were masked (in eval mode only: ranking costs as much as a layer).
        mlm_shuffled_accuracy, mtm_shuffled_accuracy: the same with the other modality's rows shifted by one (in eval
            mode only): what is recovered without the counterpart. Only the gap to the true accuracy is alignment. None where the
            objective does not see the other modality.
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


def returned(output: ModelOutput, config: FlipConfig, return_dict: bool | None) -> ModelOutput | tuple:
    """The output as it was asked for: itself, or as a tuple of what is not None."""
    return_dict = config.return_dict if return_dict is None else return_dict
    return output if return_dict else output.to_tuple()


# --- base ----------------------------------------------------------------------------------------------------------


class FlipPreTrainedModel(PreTrainedModel):
    config_class = FlipConfig
    base_model_prefix = "flip"
    main_input_name = "feature_ids"
    _auto_class = "AutoModel"  # `save_pretrained` copies the code beside the weights
    _takes_mlm_head = False  # whether `from_text_pretrained` takes over the PLM's MLM head
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # heads of the other classes, and branches that a strategy does not use: loads between heads are silent
    _keys_to_ignore_on_load_unexpected = [
        r"^mlm_head\.", r"^mtm_head\.", r"^logit_scale$", r"^id_classifier\.", r"^first_order\.",
        r"^text_classifier\.", r"^fusion\.", r"^(flip\.)?(text_encoder|text_projection|text_field|id_tower|id_projection)\.",
    ]  # fmt: skip

    def _init_weights(self, module):
        if hasattr(module, "init_flip_weights"):
            module.init_flip_weights(self.config)
        else:
            super()._init_weights(module)
        if module is self and getattr(self, "logit_scale", None) is not None:
            init.constant_(self.logit_scale, -math.log(self.config.icl_temperature))

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, from safetensors only (no pickle on the way); see [`align`] for what is added."""
        kwargs.setdefault("use_safetensors", True)
        try:
            loaded = super().from_pretrained(*args, **kwargs)
        except OSError as error:
            if args and os.path.isfile(os.path.join(str(args[0]), "adapter_config.json")):
                raise OSError(f"{args[0]} is a LoRA adapter without its base; load it with flip_ctr.train.lora.load_adapter.") from error
            raise
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        align(model)
        if model.base_model.text_field is not None:  # loading makes parameters anew
            model.base_model.text_encoder.requires_grad_(False)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the checkpoint carries its code, a user's own tower too, and `AutoModel` gives this class."""
        self.save_tower_code(save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def save_tower_code(self, folder) -> None:
        """Writes what the copies of this package's own files do not bring into a checkpoint: a user's tower, the `auto_map`."""
        # code is copied along such imports: this one brings the pipeline into the checkpoint
        from .pipeline_flip import ClickThroughRatePipeline  # noqa: F401

        os.makedirs(folder, exist_ok=True)
        tower = self.base_model.id_tower
        self.config.entry_module = None if tower is None else save_tower_code(tower, folder)
        self.config.auto_map["AutoModel"] = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"

    def _get_files_timestamps(self, working_dir):
        # of files older than the save only changed ones are pushed, and a tower's code has just been written
        return {name: time for name, time in super()._get_files_timestamps(working_dir).items() if not name.endswith(".py")}

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
        if cls._takes_mlm_head and config.mlm_weight > 0:
            mlm_model = _load_with_mlm_head(text_model_name_or_path, **kwargs)
        text_encoder = mlm_model.base_model if mlm_model else AutoModel.from_pretrained(text_model_name_or_path, **kwargs)
        config.text_config = text_encoder.config
        model = cls(config, text_encoder=text_encoder)
        if mlm_model is not None and not model.mlm_head.load_plm_head(mlm_model):
            logger.warning(f"the MLM head of {type(mlm_model).__name__} has another form; FLIP's is newly initialised.")
        align(model)
        return model

    def get_input_embeddings(self) -> nn.Module:
        text_encoder = self.base_model.text_encoder
        if text_encoder is None:
            raise NotImplementedError(f"this {type(self).__name__} is ID-only: it has no token embeddings.")
        return text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.get_input_embeddings()  # an ID-only model has none: say so
        self.base_model.text_encoder.set_input_embeddings(value)


def align(model: nn.Module) -> None:
    """Copies tensors that lie unaligned on the CPU, as they do in a loaded file, to aligned memory: vector kernels sum unaligned
    ones in another order, and scores would differ in the last bit from those before saving."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def _load_with_mlm_head(name: str, **kwargs) -> PreTrainedModel | None:
    """The PLM with its MLM head, or None where the checkpoint or its architecture has none."""
    hub_kwargs = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "trust_remote_code") if key in kwargs}
    configs = [AutoConfig.from_pretrained(name, **hub_kwargs)]
    if getattr(configs[0], "legacy", False):  # DeBERTa-v3 checkpoints keep their head under names that only False reads
        configs.append(copy.deepcopy(configs[0]))
        configs[1].legacy = False
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a checkpoint without a head is reported as corrupted
    try:
        for config in configs:
            model, info = AutoModelForMaskedLM.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
            if all(key.startswith(model.base_model_prefix + ".") for key in info["missing_keys"]):
                return model
    except ValueError as error:
        if "AutoModelForMaskedLM" not in str(error):  # it says so for an architecture without a masked language model
            raise
    finally:
        logging.set_verbosity(verbosity)
    logger.info(f"{name} has no MLM head; FLIP's is newly initialised.")
    return None
