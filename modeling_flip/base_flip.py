# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What all FLIP models share: how they are loaded, saved with their code, and built around a PLM."""

import copy
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME, logging

from .configuration_flip import FlipConfig
from .fields_flip import read_fields
from .fingerprint_flip import HUB_ARGUMENTS, INDEX, WEIGHT_FILES, add_checksums, check_checkpoint, state_of
from .id_tower import FeatureEmbedding, build_id_tower
from .mlm_head_flip import FlipMLMHead
from .mtm_head_flip import FlipMTMHead
from .new_files_flip import new_files
from .numbers_flip import FlipTextNumbers
from .tower_code_flip import save_tower_code

logger = logging.get_logger(__name__)

ALIGNMENT = 64  # bytes; what torch's own CPU allocator gives


def require_config(config: Any) -> None:
    """Raises `TypeError` where a model is given something else in the place of its configuration, and `ValueError`
    where a setting is not allowed."""
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(
            f"`config` must be a FlipConfig; got {config!r}. `from_pretrained` loads a checkpoint by its name."
        )
    config.check()  # again, as attributes can be set


class FlipPreTrainedModel(PreTrainedModel):
    config: FlipConfig
    base_model: Any  # a FlipModel
    mlm_head: FlipMLMHead | None
    config_class = FlipConfig
    base_model_prefix = "flip"
    main_input_name = "feature_ids"
    _auto_class = "AutoModel"  # `save_pretrained` copies the code beside the weights
    # a Trainer divides the loss by the accumulation steps: the losses are means of their own
    accepts_loss_kwargs = False
    _takes_mlm_head = False  # whether `from_text_pretrained` takes over the PLM's MLM head
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # heads of the other classes, and branches that a strategy does not use: loads between heads are silent
    _keys_to_ignore_on_load_unexpected = [
        r"^mlm_head\.",
        r"^mtm_head\.",
        r"^logit_scale$",
        r"^id_classifier\.",
        r"^first_order\.",
        r"^text_classifier\.",
        r"^text_numbers\.",
        r"^fusion\.",
        r"^(flip\.)?(text_encoder|text_projection|text_interaction|text_field|id_tower|id_projection)\.",
    ]

    def _init_weights(self, module):
        if hasattr(module, "init_flip_weights"):
            module.init_flip_weights(self.config)
        else:
            super()._init_weights(module)
        if module is self and getattr(self, "logit_scale", None) is not None:
            init.constant_(self.logit_scale, -math.log(self.config.icl_temperature))

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As in transformers, from safetensors only (no pickle on the way); see [`_align_memory`] for what is added.

        Raises:
            OSError: there is no such checkpoint, its file of weights is damaged, or another took its place meanwhile.
            ValueError: files are damaged or not of this checkpoint, see [`check_checkpoint`]; or weights are of other
                shapes than its configuration says, or missing.
        """
        kwargs.setdefault("use_safetensors", True)
        wants_info = kwargs.pop("output_loading_info", False)
        name = str((args[0] if args else kwargs.get("pretrained_model_name_or_path")) or "")
        hub = {one: kwargs[one] for one in HUB_ARGUMENTS if one in kwargs}
        before = state_of(name)
        read = sha = check_checkpoint(name, CONFIG_NAME, hub)
        config = kwargs.get("config")
        if config is not None and str(config.name_or_path) == name:  # `AutoModel` has just read it
            read = config._saved_sha256
        try:
            with naming_weights(name):
                loaded: Any = super().from_pretrained(*args, **kwargs, output_loading_info=True)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):  # the shapes stand in a report that is only logged
                raise
            raise ValueError(f"{name}: {cls._mismatch(*args, **kwargs)}") from None
        except OSError as error:
            if os.path.isfile(os.path.join(name, "adapter_config.json")):
                raise OSError(
                    f"{name} is a LoRA adapter without its base; load it with flip_ctr.train.models.lora.load_adapter."
                ) from error
            raise
        model, info = loaded
        if state_of(name) != before or read != sha:
            raise OSError(f"{name} was replaced while it was read; load it again.")
        if info["missing_keys"]:
            model._check_missing(name, info["missing_keys"], hub)
        _align_memory(model)
        if model.base_model.text_field is not None:  # loading makes parameters anew
            model.base_model.text_encoder.requires_grad_(False)
        return (model, info) if wants_info else model

    def _check_missing(self, name: str, missing: Collection[str], hub: dict[str, Any]) -> None:
        """Raises `ValueError` where weights are missing that the checkpoint's own model has; a new head is what others
        are for."""
        saved = FlipConfig.from_pretrained(name, **hub)
        classes = {one.__name__: one for one in _classes(FlipPreTrainedModel)}
        cls = classes.get((saved.architectures or [""])[0])
        if cls is None:
            return
        with torch.device("meta"):
            lost = sorted(set(missing) & set(cls(saved).state_dict()))
        if lost:
            raise ValueError(
                f"{name}: {len(lost)} weights are missing that its configuration asks for: {', '.join(lost[:5])}. "
                "Download or save the checkpoint again."
            )
        weights = dict(self.named_parameters())
        self._new_weights = [(one, weights[one], weights[one]._version) for one in sorted(missing) if one in weights]

    @property
    def untrained(self) -> list[str]:
        """Names of the weights that loading drew at random, as the checkpoint has none, and nothing has changed."""
        return [name for name, weight, version in getattr(self, "_new_weights", ()) if weight._version == version]

    @classmethod
    def _mismatch(cls, *args, **kwargs) -> str:
        """What weights of a checkpoint have other shapes than its configuration says."""
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        loaded: Any = super().from_pretrained(*args, **kwargs)
        keys = sorted(loaded[1]["mismatched_keys"])
        shown = "; ".join(f"{name} is {list(have)}, not {list(wanted)}" for name, have, wanted in keys[:3])
        return (
            f"{len(keys)} weights have other shapes than config.json says (`vocab_size` of its fields, sizes of the "
            f"ID tower): {shown}. They are not of this configuration."
        )

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the checkpoint carries its code, a user's own tower too, and `AutoModel` gives this
        class."""
        push_to_hub = kwargs.pop("push_to_hub", False)
        if kwargs.get("is_main_process", True):
            others = kwargs.get("variant") is not None  # the weights of other variants stay
            with new_files(save_directory, CONFIG_NAME, () if others else (*WEIGHT_FILES, INDEX)) as partial:
                self.save_tower_code(partial)
                super().save_pretrained(partial, *args, **kwargs)
                add_checksums(partial, beside=save_directory if others else None)
        if push_to_hub:  # only now is all there
            names = ("commit_message", "private", "token", "create_pr", "max_shard_size", "revision", "tags")
            more = {name: kwargs[name] for name in names if name in kwargs}
            self.push_to_hub(kwargs.get("repo_id", os.path.basename(os.path.abspath(save_directory))), **more)

    def save_tower_code(self, folder) -> None:
        """Writes what the copies of this package's own files do not bring into a checkpoint: a user's tower, the
        `auto_map`."""
        os.makedirs(folder, exist_ok=True)
        self.config.entry_module = save_tower_code(self.base_model.id_tower, folder)
        self.config.auto_map["AutoModel"] = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"

    def _get_files_timestamps(self, working_dir):
        # of files older than the save only changed ones are pushed, and a tower's code has just been written
        return {
            name: time for name, time in super()._get_files_timestamps(working_dir).items() if not name.endswith(".py")
        }

    @classmethod
    def from_text_pretrained(cls, text_model_name_or_path: str, config: FlipConfig, **kwargs) -> "FlipPreTrainedModel":
        """A new FLIP model around a pretrained PLM: its weights are loaded, all else is newly initialised.

        Args:
            text_model_name_or_path: any encoder or decoder of text that `AutoModel` loads, as a path or hub id.
            config: the other settings; its `text_config` is replaced by the PLM's, which also decides `text_pooling`
                where that is None.
            kwargs: passed to `from_pretrained` (`attn_implementation`, `dtype`, `revision`, `token`, ...); `dtype` is
                float32 when not given, as that of the new weights, in whatever type the PLM was published.

        [`FlipForPretraining`] also takes over the PLM's own MLM head where the checkpoint has one.

        Raises:
            OSError: there is no such PLM, or its file of weights is damaged.
            ValueError: it is a FLIP checkpoint.
        """
        config = copy.deepcopy(config)
        kwargs.setdefault("dtype", torch.float32)
        mlm_model = None
        with naming_weights(str(text_model_name_or_path)):
            if cls._takes_mlm_head and config.mlm_weight > 0:
                mlm_model = _load_with_mlm_head(text_model_name_or_path, **kwargs)
            text_encoder: Any = (
                mlm_model.base_model if mlm_model else AutoModel.from_pretrained(text_model_name_or_path, **kwargs)
            )
        if text_encoder.config.model_type == FlipConfig.model_type:
            raise ValueError(
                f"{text_model_name_or_path} is a FLIP checkpoint, not a PLM; {cls.__name__}.from_pretrained loads it."
            )
        config.text_config = text_encoder.config
        model = cls(config, text_encoder=text_encoder)
        if mlm_model is not None and not model.mlm_head.load_plm_head(mlm_model):
            logger.warning(f"the MLM head of {type(mlm_model).__name__} has another form; FLIP's is newly initialised.")
        _align_memory(model)
        return model

    @torch.no_grad()
    def grow(self, fields: Sequence) -> None:
        """Gives every table of features, MTM's output tables too, the rows of values that [`FlipProcessor.grow`] has
        added. A new row starts as its field's `[UNK]` row, so that all scores stay as they are, bit for bit. Do so
        before the optimizer is made.

        Args:
            fields: `processor.fields`.

        Raises:
            ValueError: these are other fields than the model's, or one has fewer values; or an own tower has a table
                that is no [`FeatureEmbedding`], and cannot be grown.
        """
        old, new = (
            {field.name: field.vocab_size for field in read_fields(some) if field.on_id_side}
            for some in (self.config.fields, fields)
        )
        if list(old) != list(new):
            raise ValueError(f"the model has the ID-side fields {', '.join(old)}, and was given {', '.join(new)}.")
        if new == old:
            return
        fewer = [name for name in old if new[name] < old[name]]
        if fewer:
            raise ValueError(
                f"field '{fewer[0]}' has {old[fewer[0]]:,} ids in the model and was given {new[fewer[0]]:,}; a "
                "vocabulary never shrinks."
            )
        for module in self.modules():
            if isinstance(module, FeatureEmbedding | FlipMTMHead | FlipTextNumbers):
                module.grow(list(new.values()))
        for field in self.config.fields:
            field["vocab_size"] = new.get(field["name"])
        self.config.fingerprint = getattr(fields, "fingerprint", None)
        tower = self.base_model.id_tower
        if tower is None:
            return
        with torch.device("meta"):
            expected = build_id_tower(self.config).state_dict()
        for name, tensor in tower.state_dict().items():
            if tensor.shape != expected[name].shape:
                raise ValueError(
                    f"{type(tower).__name__}: `{name}` has the shape {list(tensor.shape)}, and a tower of the grown "
                    f"vocabulary {list(expected[name].shape)}; make it a FeatureEmbedding."
                )

    def get_input_embeddings(self) -> nn.Module:
        text_encoder = self.base_model.text_encoder
        if text_encoder is None:
            raise NotImplementedError(f"this {type(self).__name__} is ID-only: it has no token embeddings.")
        return text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.get_input_embeddings()  # an ID-only model has none: say so
        self.base_model.text_encoder.set_input_embeddings(value)


def _classes(base: type) -> Iterator[Any]:
    """All classes below one."""
    below: type
    for below in base.__subclasses__():
        yield below
        yield from _classes(below)


@contextmanager
def naming_weights(name: str) -> Iterator[None]:
    """Inside, a damaged file of weights is an `OSError` that names the checkpoint: safetensors' own names neither file
    nor folder."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # by name: safetensors is not imported here
            raise
        raise OSError(f"{name}: the weights (.safetensors) are damaged or cut off: {error}.") from error


def _align_memory(model: nn.Module) -> None:
    """Copies tensors that lie unaligned on the CPU, as they do in a loaded file, to aligned memory: vector kernels sum
    unaligned ones in another order, and scores would differ in the last bit from those before saving."""
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
    too_old = None
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
    except AttributeError as error:  # transformers 5.2 misses a weight of DeBERTa's new head that is not there
        if "LMPredictionHead" not in str(error):
            raise
        too_old = str(error)
    finally:
        logging.set_verbosity(verbosity)
    if too_old is not None:
        logger.warning(
            f"transformers {transformers.__version__} cannot load the MLM head of {name} ({too_old}), and newer "
            "versions can; FLIP's is newly initialised."
        )
        return None
    logger.info(f"{name} has no MLM head; FLIP's is newly initialised.")
    return None
