# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The parameters of a [`FlipClassifier`] that its checkpoint keeps."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.options import published_values


def published_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as they may be published, and as JSON with [`json_value`] holds them: no path of this machine, of a
    PLM's folder its name, and no random state but a number."""
    given = parameters | published_values(FinetuneArguments, {"model_name_or_path": parameters["model_name_or_path"]})
    fields, seed = given["fields"], given.pop("random_state")
    given["fields"] = fields and [one.to_dict() if isinstance(one, FlipField) else one for one in fields]
    given["settings"] = published_settings(given["settings"])
    return given | ({"random_state": seed} if seed is None or isinstance(seed, Integral) else {})


def published_settings(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The `settings` of these; of a stranger's checkpoint those that name no file."""
    return settings and published_values(FinetuneArguments, settings)


def json_value(value: Any) -> Any:
    """A value that JSON does not hold as one that it does: a number of numpy as Python's, all else as text."""
    return value.item() if hasattr(value, "item") else str(value)
