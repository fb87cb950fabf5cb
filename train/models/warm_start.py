# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The ID tower of another checkpoint as the start of a run (`--id_model`): pretraining of ids alone costs little, and a
click model that is in use has a tower already."""

import math

import torch
from transformers import AutoConfig

from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.modeling_flip.feature_extraction_flip import FlipFeatureExtractor
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR, FlipForPretraining, FlipPreTrainedModel
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.models.lora import is_adapter

# settings of the configuration that shape the ID tower
ID_SHAPE = ("id_tower", "id_tower_kwargs", "id_embedding_size", "id_hidden_dims")


def id_model_config(path: str) -> FlipConfig:
    """The configuration of the checkpoint whose ID tower is taken.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: it is no FLIP checkpoint, or has no ID tower of ids alone.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:  # (a path that is no name of a repository is a ValueError)
        raise OSError(f"--id_model {path}: {str(error).splitlines()[0]}") from error
    if config.model_type != FlipConfig.model_type:
        raise ValueError(f"--id_model {path} is a {config.model_type}, not a FLIP checkpoint with an ID tower")
    if not has_id_tower(config):
        raise ValueError(f"--id_model {path} has no ID tower of ids alone; its tower cannot be taken")
    return config


def has_id_tower(config: FlipConfig) -> bool:
    """Whether a checkpoint has an ID tower, and one of ids alone."""
    if FlipForCTR.__name__ in (config.architectures or []):
        return config.strategy not in ("plm", "frozen")
    return config.pretrains_id_tower


def check_same_fields(extractor: FlipFeatureExtractor, other: FlipFeatureExtractor, path: str) -> None:
    """Raises `ValueError` where two feature extractors read other fields; names the field."""

    def view(field):
        of_history = (f"of the last {field.max_values} {field.history_of}",) if field.is_history else ()
        return field.name, field.type, field.kind, field.num_slots, field.num_buckets, field.separator, *of_history

    ours, theirs = (
        [view(field) for field in one.all_fields if field.on_id_side or (field.is_history and "id" in field.sides)]
        for one in (extractor, other)
    )
    for number in range(max(len(ours), len(theirs))):
        mine, their = (views[number] if number < len(views) else ("nothing",) for views in (ours, theirs))
        if mine != their:
            raise ValueError(
                f"the ids of {path} are not those of this run: field {number + 1}, {' '.join(map(str, mine))}, is "
                f"{' '.join(map(str, their))} there"
            )


def ids_of(path: str) -> FlipFeatureExtractor:
    """What gives the rows their ids in the checkpoint of `--id_model`; errors as of [`id_model_config`]."""
    id_model_config(path)
    return FlipProcessor.from_pretrained(path).feature_extractor


def take_ids(processor: FlipProcessor, other: FlipFeatureExtractor, path: str) -> None:
    """Gives a new processor the ids of a checkpoint: its vocabularies, hashes and buckets.

    Raises:
        ValueError: the checkpoint has other fields.
    """
    ours = processor.feature_extractor
    check_same_fields(ours, other, path)
    names = ("vocabularies", "boundaries", "min_frequency", "hashed_fields", "hash_salt", "hash_check")
    taken = {name: getattr(other, name) for name in names}
    processor.feature_extractor = FlipFeatureExtractor(ours.fields, reading=ours.reading, **taken)


def join_ids(extractor: FlipFeatureExtractor, other: FlipFeatureExtractor, path: str) -> None:
    """Appends the values that only another extractor has, which was grown from the same one.

    Raises:
        ValueError: the two give a value different ids; names the field.
    """
    check_same_fields(extractor, other, path)
    hashes = [(one.hashed_fields, one.hash_salt, one.hash_check) for one in (extractor, other)]
    for number, field in enumerate(extractor.id_fields):
        ours, theirs = extractor.vocabularies[number], other.vocabularies[number]
        shared = min(len(ours), len(theirs))
        buckets = extractor.boundaries[number] == other.boundaries[number]
        if ours[:shared] != theirs[:shared] or not buckets or hashes[0] != hashes[1]:
            raise ValueError(
                f"the ids of {path} are not those of this run: field {number + 1}, {field.name}, has other values; "
                "train both on the same rows, with the same --min_frequency, --hash_user_values and key, or start the "
                "one with the other (--id_model)"
            )
        extractor.append(number, theirs[shared:])


@torch.no_grad()
def set_sampling_rate(model: FlipForCTR, rate: float) -> None:
    """Says of which share of the non-clicks a click model is trained. The biases of click layers that were trained on
    another share take up the difference: their corrected log odds stay as they are."""
    shift = math.log(model.config.negative_sampling_rate / rate)
    for name in ("id_classifier", "text_classifier"):
        if getattr(model, name) is not None and f"{name}.bias" not in model.untrained:
            getattr(model, name).bias += shift
    model.config.negative_sampling_rate = rate


def start_id_tower(model: FlipPreTrainedModel, processor: FlipProcessor, path: str) -> None:
    """Copies the ID tower of a checkpoint, and what of its heads belongs to the tower, into a new model.

    The click layer of a fine-tuned one, if the model has one; MTM's output table of a pretrained one, if both have one.

    Args:
        processor: the model's; it has the ids of the checkpoint, see [`take_ids`] and [`join_ids`].

    Raises:
        ValueError: there is no tower to take, or it is of another shape.
    """
    config = id_model_config(path)
    if is_adapter(path):
        raise ValueError(f"--id_model {path} is a LoRA adapter; name a whole checkpoint (one that was merged)")
    for name in ID_SHAPE:
        if getattr(model.config, name) != getattr(config, name):
            raise ValueError(
                f"--id_model {path} has {name} {getattr(config, name)}, and the model that starts "
                f"{getattr(model.config, name)}"
            )
    pretrained = FlipForPretraining.__name__ in (config.architectures or [])
    other = FlipForPretraining.from_pretrained(path) if pretrained else FlipForCTR.from_pretrained(path, strategy="id")
    other.grow(processor.fields)
    tower = model.base_model.id_tower
    # the numbers of a tower that has read none start at zero
    of_numbers = {name: value for name, value in tower.state_dict().items() if name.startswith("numbers.")}
    tower.load_state_dict(of_numbers | other.base_model.id_tower.state_dict())
    if pretrained:
        if getattr(model, "mtm_head", None) is not None and other.mtm_head is not None:
            model.mtm_head.start_from(other.mtm_head)
    elif isinstance(model, FlipForCTR):
        set_sampling_rate(other, model.config.negative_sampling_rate)
        for name in ("id_classifier", "first_order"):
            if getattr(model, name) is not None:
                getattr(model, name).load_state_dict(getattr(other, name).state_dict())
