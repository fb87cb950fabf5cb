# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FLIP configuration: the fields of a row, the ID tower, the PLM, pretraining and fusion, in one `config.json`."""

from typing import Any

import transformers

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 2):
    raise ImportError(f"FLIP needs transformers 5.2 or newer; this is {transformers.__version__}.")

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME, TRANSFORMERS_DYNAMIC_MODULE_NAME

from .calibration_flip import check_calibration
from .fields_flip import (
    MOST_IDS,
    NUM_RESERVED_IDS,
    Allowed,
    FlipField,
    as_python,
    fields_of_items,
    history_entity,
    history_field,
    read_fields,
    slot_fields,
)
from .fingerprint_flip import check_content

STRATEGIES = ("id", "plm", "joint", "frozen")
FUSIONS = ("scalar", "gate", "raw")
PROMPTS = ("row", "entity")

_SIZE = Allowed(int, at_least=1, limit=2**16)  # of a vector
_COUNT, _POSITIVE, _WEIGHT = Allowed(int, at_least=1), Allowed(float, above=0), Allowed(float, at_least=0)
_SHARE, _DROPOUT = Allowed(float, at_least=0, at_most=1), Allowed(float, at_least=0, below=1)
# what each setting of `FlipConfig` may be; the fields have theirs in `FlipField`
SETTINGS = {
    "id_tower": Allowed(str, empty=False),
    "id_embedding_size": _SIZE,
    "id_hidden_dims": Allowed(int, many=True, at_least=1, limit=2**16),
    "id_dropout": _DROPOUT,
    "id_embedding_dropout": _DROPOUT,
    "id_tower_kwargs": Allowed(dict),
    "id_initializer_range": _POSITIVE,
    "initializer_range": _POSITIVE,
    "prompts": Allowed(str, choices=PROMPTS),
    "text_pooling": Allowed(str, choices=("cls", "mean", "last"), optional=True),
    "text_numbers": Allowed(bool),
    "mlm_weight": _WEIGHT,
    "mtm_weight": _WEIGHT,
    "icl_weight": _WEIGHT,
    "mlm_id_dropout": _SHARE,
    "mtm_text_dropout": _SHARE,
    "mtm_num_noise": _COUNT,
    "mtm_noise": Allowed(str, choices=("field", "global")),
    "mtm_embedding_size": _SIZE,
    "mtm_full_softmax_size": Allowed(int, at_least=0, limit=MOST_IDS),
    "projection_dim": _SIZE,
    "projection_dropout": _DROPOUT,
    "icl_similarity": Allowed(str, choices=("cosine", "dot")),
    "icl_temperature": _POSITIVE,
    "icl_max_scale": _POSITIVE,
    "strategy": Allowed(str, choices=STRATEGIES),
    "fusion": Allowed(str, choices=FUSIONS),
    "classifier_dropout": _DROPOUT,
    "negative_sampling_rate": Allowed(float, above=0, at_most=1),
    "calibration": Allowed(dict, optional=True),
    "fingerprint": Allowed(dict, optional=True),
    "tie_word_embeddings": Allowed(bool),
}

# What a checkpoint's `config.json` says of the code beside it, for loading where the package is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_flip.FlipConfig",
    "AutoModel": "modeling_flip.FlipModel",  # the class that is saved takes this place
    "AutoModelForPreTraining": "modeling_flip.FlipForPretraining",
    "AutoModelForSequenceClassification": "modeling_flip.FlipForCTR",
    "AutoFeatureExtractor": "feature_extraction_flip.FlipFeatureExtractor",
    "AutoProcessor": "processing_flip.FlipProcessor",
}
# the module that loads a user's own tower, and then the models
CUSTOM_ENTRY = "modeling_flip_custom"
PIPELINE_TASK = "click-through-rate"
PIPELINES = {
    PIPELINE_TASK: {"impl": "pipeline_flip.ClickThroughRatePipeline", "pt": ["AutoModelForSequenceClassification"]}
}


def is_decoder(text_config: PreTrainedConfig) -> bool:
    """Whether a PLM reads from left to right, so that its last token alone has seen the whole text: a causal language
    model that is no masked one, and whose configuration does not make it read both ways."""
    # here, as a configuration without a PLM needs no list of models
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind, causal = text_config.model_type, getattr(text_config, "is_causal", True)
    both_ways = not causal or getattr(text_config, "use_bidirectional_attention", None) in (True, "all")
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return known and not both_ways


# outputs that are parts of a result, and no prediction of their own
PARTS = ["id_logits", "text_logits", "id_weight", "num_mlm_targets", "num_mtm_targets"]
PARTS += [f"{objective}_{number}" for objective in ("mlm", "mtm", "icl") for number in ("loss", "accuracy")]
PARTS += ["mlm_shuffled_accuracy", "mtm_shuffled_accuracy", "by_entity"]


class FlipConfig(PreTrainedConfig):
    r"""
    Configuration of [`FlipModel`], [`FlipForPretraining`] and [`FlipForCTR`].

    Args:
        text_config (`dict` or `PreTrainedConfig`, *optional*): configuration of the PLM; `None` for an ID-only model.
        fields (`list[dict]`): the fields of a row in order, see [`FlipField`]; those on the ID side need a
            `vocab_size`.
        id_tower (`str`, defaults to `"dcnv2"`): ID-based backbone: `lr`, `fm`, `afm`, `widedeep`, `deepfm`, `pnn`,
            `fibinet`, `dcn`, `dcnv2`, `gdcn`, `xdeepfm`, `autoint`, `afn`, `masknet`, `finalmlp`, or one that
            `register_id_tower` has named.
        id_embedding_size (`int`, defaults to 32): size of a feature embedding.
        id_hidden_dims (`list[int]`, defaults to `[300, 300, 128]`): layers of the tower's DNN.
        id_dropout (`float`, defaults to 0.0): dropout inside the ID tower's DNN.
        id_embedding_dropout (`float`, defaults to 0.0): dropout on the feature embeddings.
        id_tower_kwargs (`dict`, *optional*): arguments of that tower alone (its class documents them).
        id_initializer_range (`float`, defaults to 0.02): standard deviation of new feature embeddings.
        initializer_range (`float`, defaults to 0.02): standard deviation of the other new weights.
        prompts (`str`, defaults to `"row"`): one prompt a `row` (the paper's), or one for each `entity` of a row (user,
            item, ...), which the PLM reads once for all rows of a batch that share it.
        text_pooling (`str`, *optional*): the PLM's pooled state: first token (`cls`), `last` token that is not padding,
            or `mean` over the tokens. When None it follows from the PLM: `last` for a decoder (Qwen3, Llama, Gemma,
            ...), `cls` for others.
        text_numbers (`bool`, defaults to `False`): whether the PLM's click layer (strategies `plm` and `joint`) reads
            the numbers too that no prompt says: `numeric` fields of the ID side alone, such as click rates.
        mlm_weight, mtm_weight, icl_weight (`float`, default to 1.0): weights of the three pretraining losses. A weight
            of 0 builds no head.
        mlm_id_dropout (`float`, defaults to 0.0): share of the rows whose `h_id` MLM does not see while training; 1:
            plain masked language modelling.
        mtm_text_dropout (`float`, defaults to 0.0): share of the rows whose text MTM does not see while training, so
            that masked ids are recovered from the other ids; 1: never (MAP, plain self-supervision). A tower that no
            objective uses is not built.
        mtm_num_noise (`int`, defaults to 25): noise features per target of noise-contrastive estimation, k.
        mtm_noise (`str`, defaults to `"field"`): noise is drawn from the target's own field, or `global` (the paper's).
        mtm_embedding_size (`int`, defaults to 32): size of the output embeddings of MTM.
        mtm_full_softmax_size (`int`, defaults to 128): fields with at most so many values use the full softmax instead
            of noise; not with `mtm_noise="global"`.
        projection_dim (`int`, defaults to 128): size of the space in which ICL compares rows.
        projection_dropout (`float`, defaults to 0.2): dropout of the two projections.
        icl_similarity (`str`, defaults to `"cosine"`): `cosine` with a learnable scale, as CLIP, or `dot`: inner
            products of the LayerNormed projections over a fixed temperature (the release).
        icl_temperature (`float`, *optional*): start of the temperature (cosine: 0.07) or the fixed one (dot: 0.7).
        icl_max_scale (`float`, defaults to 100.0): upper bound of the learnable scale, 1 / temperature.
        strategy (`str`, defaults to `"joint"`): which towers of [`FlipForCTR`] predict: `id`, `plm` or `joint`; or
            `frozen`: the ID tower, with the pooled state of a frozen PLM as one more field (a text embedding in a CTR
            model).
        fusion (`str`, defaults to `"scalar"`): how `joint` weighs the towers: one sigmoid `scalar`, a per-row `gate`,
            or the `raw` unbounded scalar of the release, which starts at 0.
        classifier_dropout (`float`, defaults to 0.0): dropout before the PLM's linear click layer.
        negative_sampling_rate (`float`, defaults to 1.0): share of the non-clicks that was kept in the training rows,
            for which [`FlipForCTR`] corrects its log odds in eval mode; the loss, and all in training, is of the
            training rows as they are.
        calibration (`dict`, *optional*): further correction of the log odds in eval mode, fitted on rows at their
            natural click rate: `kind` (`platt` or `isotonic`), and for each head (`id_logits`, `text_logits`, of
            `joint` also `logits`) Platt's `slope` and `intercept`, or isotonic knots, rising `log_odds` and
            `calibrated` log odds.
        fingerprint (`dict`, *optional*): of the processor that gives the model its inputs; comes with
            `FlipProcessor.fields`.

    Raises:
        ValueError: a value is not among the allowed ones; the message names it and them.

    Example:

    ```python
    >>> from flip_ctr import FlipConfig
    >>> config = FlipConfig(fields=[{"name": "movie_id", "entity": "item", "vocab_size": 1686}])  # ID-only
    ```
    """

    model_type = "flip"
    sub_configs = {"text_config": AutoConfig}
    # of an output what stands behind `loss` and `logits`: a Trainer's predictions are then one array
    keys_to_ignore_at_inference = PARTS

    # an `__init__`, as before transformers 5.9 the base is no dataclass
    def __init__(
        self,
        text_config: dict | PreTrainedConfig | None = None,
        fields: list | None = None,
        id_tower: str = "dcnv2",
        id_embedding_size: int = 32,
        id_hidden_dims: list | None = None,
        id_dropout: float = 0.0,
        id_embedding_dropout: float = 0.0,
        id_tower_kwargs: dict | None = None,
        id_initializer_range: float = 2e-2,
        initializer_range: float = 0.02,
        prompts: str = "row",
        text_pooling: str | None = None,
        text_numbers: bool = False,
        mlm_weight: float = 1.0,
        mtm_weight: float = 1.0,
        icl_weight: float = 1.0,
        mlm_id_dropout: float = 0.0,
        mtm_text_dropout: float = 0.0,
        mtm_num_noise: int = 25,
        mtm_noise: str = "field",
        mtm_embedding_size: int = 32,
        mtm_full_softmax_size: int = 128,
        projection_dim: int = 128,
        projection_dropout: float = 0.2,
        icl_similarity: str = "cosine",
        icl_temperature: float | None = None,
        icl_max_scale: float = 100.0,
        strategy: str = "joint",
        fusion: str = "scalar",
        classifier_dropout: float = 0.0,
        tie_word_embeddings: bool = True,
        negative_sampling_rate: float = 1.0,
        calibration: dict | None = None,
        fingerprint: dict | None = None,
        **kwargs,
    ):
        if isinstance(text_config, dict):
            text_config = as_python(text_config)
            kind = text_config.get("model_type")
            if kind is None:
                raise ValueError("FlipConfig: `text_config` has no `model_type`, such as 'bert'.")
            try:
                text_config = AutoConfig.for_model(**text_config)
            except ValueError as error:
                if "Unrecognized model identifier" not in str(error):
                    raise ValueError(f"FlipConfig: `text_config`: {' '.join(str(error).split())}") from error
                raise ValueError(
                    f"FlipConfig: `text_config` is of the `model_type` {kind!r}, which "
                    f"transformers {transformers.__version__} does not know."
                ) from None
            except Exception as error:  # of transformers' own checks, which have types of their own
                raise ValueError(f"FlipConfig: `text_config`: {' '.join(str(error).split())}") from error
        self.text_config = text_config
        self._check_text_config()  # before transformers reads it; None stays None: a default one would be a BERT
        self.fields = [field.to_dict() for field in read_fields(fields)]
        self.fingerprint = getattr(fields, "fingerprint", fingerprint)
        kwargs.pop("sha256", None)  # of saved files, and checked before
        self._saved_sha256: str | None = None
        # from a processor to a new model, and no further: never saved
        self._feature_counts = getattr(fields, "feature_counts", None)
        self.id_hidden_dims = list(id_hidden_dims) if isinstance(id_hidden_dims, tuple) else id_hidden_dims
        if id_hidden_dims is None:
            self.id_hidden_dims = [300, 300, 128]
        self.id_tower_kwargs = {} if id_tower_kwargs is None else id_tower_kwargs
        self.icl_temperature = icl_temperature
        if icl_temperature is None:
            self.icl_temperature = 0.07 if icl_similarity == "cosine" else 0.7
        self.id_tower = id_tower
        self.id_embedding_size = id_embedding_size
        self.id_dropout = id_dropout
        self.id_embedding_dropout = id_embedding_dropout
        self.id_initializer_range = id_initializer_range
        self.initializer_range = initializer_range
        self.prompts = prompts
        self.text_pooling = text_pooling
        self.text_numbers = text_numbers
        self.mlm_weight = mlm_weight
        self.mtm_weight = mtm_weight
        self.icl_weight = icl_weight
        self.mlm_id_dropout = mlm_id_dropout
        self.mtm_text_dropout = mtm_text_dropout
        self.mtm_num_noise = mtm_num_noise
        self.mtm_noise = mtm_noise
        self.mtm_embedding_size = mtm_embedding_size
        self.mtm_full_softmax_size = mtm_full_softmax_size
        self.projection_dim = projection_dim
        self.projection_dropout = projection_dropout
        self.icl_similarity = icl_similarity
        self.icl_max_scale = icl_max_scale
        self.strategy = strategy
        self.fusion = fusion
        self.classifier_dropout = classifier_dropout
        self.tie_word_embeddings = tie_word_embeddings
        self.negative_sampling_rate = negative_sampling_rate
        self.calibration = calibration
        if kwargs.get("id2label") is None:
            kwargs.setdefault("num_labels", 1)  # one logit a row: the click
        kwargs["auto_map"] = AUTO_MAP | (kwargs.get("auto_map") or {})
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            # in the package neither is used: it registers the pipeline itself, and saving writes what belongs to what
            # is saved
            kwargs.pop("custom_pipelines", None)
            kwargs["auto_map"] |= {
                name: AUTO_MAP[name] for name, at in kwargs["auto_map"].items() if at.startswith(f"{CUSTOM_ENTRY}.")
            }
        kwargs["tie_word_embeddings"] = tie_word_embeddings
        super().__init__(**kwargs)
        self.decide_text_pooling()
        self.check()

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As in transformers. `ValueError` where the configuration there is that of another model."""
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = values.get("model_type", cls.model_type) if isinstance(values, dict) else None
        if kind != cls.model_type:
            what = "no configuration" if kind is None else f"the configuration of a {kind!r} model"
            raise ValueError(
                f"{pretrained_model_name_or_path}: its config.json holds {what}, not that of a {cls.model_type!r} one."
            )
        check_content(values, CONFIG_NAME, str(pretrained_model_name_or_path))
        return values, kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers. `ValueError` where a saved configuration is damaged."""
        folder = kwargs.get("name_or_path") or config_dict.get("_name_or_path") or ""
        check_content(config_dict, CONFIG_NAME, str(folder))
        loaded = super().from_dict(config_dict, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config._saved_sha256 = (config_dict.get("sha256") or {}).get(CONFIG_NAME)  # of what was read; never saved
        return loaded

    def decide_text_pooling(self) -> None:
        """Sets `text_pooling` by the PLM where it was left open and there is a `text_config`."""
        if self.text_pooling is None and self.text_config is not None:
            self.text_pooling = "last" if is_decoder(self.text_config) else "cls"

    def check(self) -> None:
        """Raises `ValueError`, naming the setting and what is right, where one is not allowed; models do so again, as
        attributes can be set. Numbers of numpy become Python's."""
        for name, allowed in SETTINGS.items():
            setattr(self, name, as_python(getattr(self, name)))
            allowed.check("FlipConfig", name, getattr(self, name))
        read_fields(self.fields)
        check_calibration(self.calibration, self.strategy)
        self._check_text_config()

    def _check_text_config(self) -> None:
        text = self.text_config
        if text is None:
            return
        if not isinstance(text, PreTrainedConfig) or text.model_type == self.model_type:
            raise ValueError(
                "FlipConfig: `text_config` must be the configuration of a PLM, or None for an ID-only model; got "
                f"{type(text).__name__}."
            )
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            if hasattr(text, name):
                _COUNT.check("FlipConfig: `text_config`", name, getattr(text, name))

    @property
    def text_is_field(self) -> bool:
        """Whether the ID tower has the frozen PLM's text embedding as one more field, after those of `id_fields`."""
        return self.strategy == "frozen"

    @property
    def mlm_uses_ids(self) -> bool:
        """Whether MLM sees `h_id`."""
        return self.mlm_weight > 0 and self.mlm_id_dropout < 1

    @property
    def mtm_uses_text(self) -> bool:
        """Whether MTM sees the text."""
        return self.mtm_weight > 0 and self.mtm_text_dropout < 1

    @property
    def pretrains_id_tower(self) -> bool:
        """Whether an objective of pretraining uses the ID tower."""
        return self.mtm_weight > 0 or self.icl_weight > 0 or self.mlm_uses_ids

    @property
    def pretrains_text(self) -> bool:
        """Whether an objective of pretraining uses the PLM."""
        return self.mlm_weight > 0 or self.icl_weight > 0 or self.mtm_uses_text

    @property
    def aligns(self) -> bool:
        """Whether an objective of pretraining sees both views."""
        return self.mlm_uses_ids or self.mtm_uses_text or self.icl_weight > 0

    @property
    def id_fields(self) -> list[FlipField]:
        """Fields of the tabular view, in order; each has one column of `feature_ids`, a multi-valued one
        `max_values`."""
        return [field for field in read_fields(self.fields) if field.on_id_side]

    @property
    def prompt_entities(self) -> list[str]:
        """The entities that have a prompt of their own, in the order of their first fields; none with `row` prompts."""
        entities = [field.entity for field in read_fields(self.fields) if field.on_text_side]
        return list(dict.fromkeys(entities)) if self.prompts == "entity" else []

    @property
    def history_slots(self) -> list[int]:
        """The slots of `feature_ids` that describe an item of the history; none where the ID side reads no history."""
        fields = read_fields(self.fields)
        history, of_item = history_field(fields), fields_of_items(fields)
        if history is None or "id" not in history.sides:
            return []
        id_fields = [field for field in fields if field.on_id_side]
        return [slot for slot, field in enumerate(slot_fields(id_fields)) if id_fields[field] in of_item]

    @property
    def history_entity(self) -> int | None:
        """The number, among `prompt_entities`, of the items of the history; None where the text side reads no
        history."""
        return history_entity(read_fields(self.fields), self.prompt_entities)

    @property
    def number_slots(self) -> list[int]:
        """The slots of `feature_ids` whose fields are numbers that no prompt says."""
        fields = self.id_fields
        of_text = [field.kind == "numeric" and not field.on_text_side for field in fields]
        return [slot for slot, field in enumerate(slot_fields(fields)) if of_text[field]]

    @property
    def numbers(self) -> dict[int, FlipField]:
        """The fields whose `bucket_numbers` the ID tower reads, by their number in `id_fields`."""
        return {number: field for number, field in enumerate(self.id_fields) if field.bucket_numbers is not None}

    @property
    def slot_fields(self) -> list[int]:
        """For each slot (column) of `feature_ids` the position of its field in `id_fields`."""
        return slot_fields(self.id_fields)

    @property
    def num_slots(self) -> int:
        """Number of columns of `feature_ids`; that of `id_fields` while all fields have one value."""
        return len(self.slot_fields)

    @property
    def field_sizes(self) -> list[int]:
        """Number of feature ids of each field of the tabular view. `ValueError` where a field has no vocabulary yet."""
        for field in self.id_fields:
            if field.vocab_size is None or field.vocab_size < NUM_RESERVED_IDS:
                raise ValueError(
                    f"FlipConfig: field '{field.name}' has vocab_size {field.vocab_size}; it must count the "
                    f"{NUM_RESERVED_IDS} reserved ids and the values. `FlipProcessor.fields` gives fields with sizes."
                )
        return [field.vocab_size for field in self.id_fields]

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        for name in ("_feature_counts", "_saved_sha256"):
            values.pop(name, None)
        if values.get("text_config") is not None:
            values["text_config"].pop("_name_or_path", None)  # a local path would be published with the checkpoint
        entry = values.pop("entry_module", None)
        if entry is not None:  # a user's own tower: this module registers it and holds the models
            heads = [head for head in values["auto_map"] if head.startswith("AutoModel")]
            values["auto_map"] |= {head: f"{entry}.{values['auto_map'][head].split('.')[-1]}" for head in heads}
        # rewritten, as `pipeline` replaces the names in it by classes, which JSON cannot say
        values.pop("custom_pipelines", None)
        return values | ({"custom_pipelines": PIPELINES} if "FlipForCTR" in (self.architectures or []) else {})

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        return self.text_config if self.text_config is not None else self


__all__ = ["FlipConfig", "FlipField"]
