# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What models may be given: the shape, the type and the range of each input.

Shapes and types are always checked: they are known without looking at a value. Values are checked on the CPU, and on
CUDA by assertions of the device, for which no step waits; in a graph (`torch.compile`, `torch.export`, a trace) and on
other devices they are not.
"""

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from .configuration_flip import FlipConfig
from .fields_flip import NUM_RESERVED_IDS

IGNORE_INDEX = -100
MOST_WEIGHT = 1e30  # a batch of such weights has a finite sum

# what a tensor holds: in words, and the types that do
INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
IDS = "whole numbers", INTEGERS
TOKENS = "whole numbers (int64 or int32)", {torch.int64, torch.int32}
TARGETS = "whole numbers (int64)", {torch.int64}
FLAGS = "0 or 1", INTEGERS | FLOATS | {torch.bool}
NUMBERS = "numbers", INTEGERS | FLOATS | {torch.bool}
STATES = "floating-point numbers", FLOATS
TRUTHS = "true or false (bool)", {torch.bool}

# each input's dimensions, and what it holds: B rows, S slots, n entries of a history, I slots of an item, k noise
# features, E prompts of a row, P distinct prompts, L tokens, H the PLM's hidden size. Letters stand for one size each.
INPUTS = {
    "feature_ids": ("BS", IDS),
    "masked_feature_ids": ("BS", IDS),
    "mtm_labels": ("BS", TARGETS),
    "noise_uniform": ("BSk", STATES),
    "history_ids": ("BnI", IDS),
    "history_outcomes": ("Bn", IDS),
    "prompt_index": ("BE", TOKENS),
    "input_ids": ("PL", TOKENS),
    "attention_mask": ("PL", FLAGS),
    "masked_input_ids": ("PL", TOKENS),
    "mlm_labels": ("PL", TARGETS),
    "mlm_pairs": ("BE", TRUTHS),
    "text_hidden_states": ("PLH", STATES),
    "masked_text_hidden_states": ("PLH", STATES),
    "text_pooled": ("PH", STATES),
    "labels": ("B", FLAGS),
    "soft_targets": ("B", STATES),
    "sample_weight": ("B", NUMBERS),
}
OF_IDS = {name for name, (dims, _) in INPUTS.items() if "S" in dims}
OF_TEXT = {name for name, (dims, _) in INPUTS.items() if "P" in dims or "E" in dims}
# what neither a tower's table nor the loss checks when it reads it
OF_VALUES = set(INPUTS) - {"history_ids", "labels", "soft_targets", "sample_weight", "mlm_pairs", "text_hidden_states"}
PROMPTS = ("input_ids", "attention_mask", "masked_input_ids", "mlm_labels")


def check_tensor(name: str, values: Any, dims: Sequence, holds: tuple[str, set[torch.dtype]]) -> None:
    """Raises `TypeError` where an input, whose dimensions are `dims`, is no dense tensor, or one of another type."""
    what, types = holds
    if not isinstance(values, torch.Tensor):
        raise TypeError(f"`{name}` must be a tensor {_shape(dims)} of {what}; got {type(values).__name__}.")
    if values.dtype not in types or values.layout != torch.strided:
        layout = "" if values.layout == torch.strided else f" ({values.layout})"
        raise TypeError(
            f"`{name}` must be a tensor {_shape(dims)} of {what}; got {values.dtype}{layout} of the shape "
            f"{tuple(values.shape)}."
        )


def sees_values(values: torch.Tensor) -> bool:
    """Whether there are values that can be looked at, or asserted, here."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(values) is not torch.Tensor:
        return False
    return values.device.type in ("cpu", "cuda", "meta") and values.numel() > 0


def check_range(
    name: str, values: torch.Tensor, low: float, high: float, wanted: str, ignored: int | None = None
) -> None:
    """Raises `ValueError`, with the first of them, where values are not from `low` to `high`, or not numbers.

    Args:
        ignored: a value that is right wherever it stands.
    """
    if values.dtype == torch.bool or not sees_values(values):
        return
    among = values if ignored is None else torch.where(values == ignored, int(low), values)
    if values.is_floating_point():
        most = torch.finfo(values.dtype).max
        low, high = max(low, -most), min(high, most)  # else infinity of a small type would be within
    smallest, largest = among.aminmax()  # NaN where one is
    if values.device.type != "cpu":
        torch._assert_async((smallest >= low) & (largest <= high), f"`{name}` must be {wanted}")
    elif not (smallest.item() >= low and largest.item() <= high):
        _refuse(name, values, ~((among >= low) & (among <= high)), wanted)


def check_ids(
    name: str, ids: torch.Tensor, last: torch.Tensor, low: int = 0, ignored: int | None = None, whose: str = ""
) -> None:
    """Raises `ValueError` where ids are not those of their field.

    Args:
        ids: `(..., S)` local ids of S slots.
        last: `(S,)` the last id of each slot's field.
        low: the first id that is allowed.
        ignored: a value that is right wherever it stands.
        whose: a sentence on where ids must come from.
    """
    if not sees_values(ids):
        return
    among = ids if ignored is None else torch.where(ids == ignored, low, ids)
    # below 0 where one is too small, or too large: one look at the numbers where comparing would take four
    outside = ((among - low) | (last - among)).min()
    if ids.device.type != "cpu":
        torch._assert_async(outside >= 0, f"`{name}` must be ids of their field")
    elif outside.item() < 0:
        wrong = (among < low) | (among > last)
        *places, slot = wrong.nonzero()[0].tolist()
        of = f"row {places[0]}" + "".join(f", entry {place}" for place in places[1:])
        raise ValueError(
            f"`{name}`: {of} has {ids[(*places, slot)].item()} in column {slot}, of which the model has ids from {low} "
            f"to {last[slot].item()}.{whose}"
        )


def check_zero_or_one(name: str, values: torch.Tensor, wanted: str) -> None:
    """Raises `ValueError` where values are neither 0 nor 1."""
    if not values.is_floating_point():
        check_range(name, values, 0, 1, wanted)
    elif sees_values(values):
        right = (values == 0) | (values == 1)
        if values.device.type != "cpu":
            torch._assert_async(right.all(), f"`{name}` must be {wanted}")
        elif not right.all():
            _refuse(name, values, ~right, wanted)


def check_clicks(
    labels: torch.Tensor, sample_weight: torch.Tensor | None, rows: int, name_of_labels: str = "labels"
) -> None:
    """Raises where these are no clicks (as `soft_targets` no probabilities) and weights of so many rows: `TypeError`
    where they are no tensors of numbers, `ValueError` where they have another shape, are out of range, or there are no
    rows."""
    for name, values in ((name_of_labels, labels), ("sample_weight", sample_weight)):
        if values is None:
            continue
        check_tensor(name, values, [rows], INPUTS[name][1])
        if values.shape != (rows,):
            raise ValueError(f"`{name}` must have the shape ({rows},), one number a row; got {tuple(values.shape)}.")
    if rows == 0:
        raise ValueError(f"`{name_of_labels}` has the shape (0,): a loss needs at least one row.")
    if name_of_labels == "labels":
        check_zero_or_one("labels", labels, "0 (no click) or 1 (click)")
    else:
        check_range(name_of_labels, labels, 0, 1, "probabilities, from 0 to 1")
    if sample_weight is not None:
        check_range("sample_weight", sample_weight, 0, MOST_WEIGHT, f"from 0 to {MOST_WEIGHT:g}")


def _refuse(name: str, values: torch.Tensor, wrong: torch.Tensor, wanted: str) -> NoReturn:
    place = wrong.nonzero()[0].tolist()
    raise ValueError(
        f"`{name}` must be {wanted}; got {values[tuple(place)].item()} at {place} of the shape {tuple(values.shape)}."
    )


class InputChecks:
    """The checks of a model's inputs. What the model does not read is not checked.

    Args:
        config: of the model.
        has_id_tower, has_text: whether the model has the tower.
    """

    def __init__(self, config: FlipConfig, has_id_tower: bool, has_text: bool):
        self.text_config, self.prompts, self.entities = config.text_config, config.prompts, len(config.prompt_entities)
        self.has_history = has_text and config.history_entity is not None
        self.sizes = {"S": config.num_slots, "I": len(config.history_slots), "k": config.mtm_num_noise}
        if has_text:
            self.sizes["H"] = config.text_config.hidden_size
        if self.entities and not self.has_history:
            self.sizes["E"] = self.entities
        self.read = set(INPUTS)
        if not has_id_tower:
            self.read -= OF_IDS
        if not has_text:
            self.read -= OF_TEXT
        if not (has_id_tower and self.sizes["I"]):
            self.read -= {"history_ids"} | (set() if self.has_history else {"history_outcomes"})

    def dims(self, name: str, given: dict[str, Any]) -> str:
        """The letters of an input's dimensions, in the form that the prompts have."""
        dims = INPUTS[name][0]
        if not self.entities:
            return dims.replace("P", "B")
        in_rows = name in PROMPTS and given.get("prompt_index") is None and getattr(given[name], "ndim", 0) == 3
        return "BEL" if in_rows else dims

    def check(
        self, last_ids: torch.Tensor | None = None, needs_rows: bool = False, **given: torch.Tensor | None
    ) -> None:
        """Checks what a model is given, by the names of its arguments; None is what is left out.

        Args:
            last_ids: `(S,)` the last id of each slot's field, to look for ids beyond it.
            needs_rows: whether there must be at least one row.

        Raises:
            TypeError: an input is no dense tensor, or of another type (floating-point ids, say).
            ValueError: an input has another shape than the others or the configuration say, or a value that is out of
                its range.
        """
        known: dict[str, int] = dict(self.sizes)
        said: dict[str, str] = {}  # the input that a size is from
        present = {name: values for name, values in given.items() if values is not None and name in self.read}
        for name, values in present.items():
            dims = self.dims(name, present)
            check_tensor(name, values, dims, INPUTS[name][1])
            if name == "input_ids" or name == "masked_input_ids":
                self.check_form(name, values, present.get("prompt_index"))
            shape = values.shape
            if len(shape) != len(dims):
                self._refuse_shape(name, values, dims, known, said)
            for dim, size in zip(dims, shape):
                if known.setdefault(dim, size) != size:
                    self._refuse_shape(name, values, dims, known, said)
                said.setdefault(dim, name)
            if needs_rows and shape[0] == 0:
                raise ValueError(f"`{name}` has the shape {tuple(shape)}: a loss needs at least one row.")
            if dims[-1] == "L" and shape[-1] == 0 < shape[0]:
                raise ValueError(f"`{name}` has the shape {tuple(shape)}: a prompt has at least one token.")
        for name, values in present.items():
            if name in OF_VALUES:
                self.check_values(name, values, last_ids, known)

    def check_form(self, name: str, input_ids: torch.Tensor, prompt_index: torch.Tensor | None) -> None:
        """Raises `ValueError` where prompts are not in a form that `config.prompts` says."""
        if self.entities and prompt_index is None and input_ids.ndim == 3:
            given = input_ids.shape[1]
        else:
            given = 0 if prompt_index is None else prompt_index.shape[-1] if prompt_index.ndim else 0
        fits = given >= self.entities if self.has_history else given == self.entities
        if fits and input_ids.ndim == (3 if self.entities and prompt_index is None else 2):
            return
        number = f"{self.entities} + n" if self.has_history else self.entities
        wanted = f"one for each entity, (B, {number}, L), or (P, L) with a `prompt_index` (B, {number})"
        raise ValueError(
            f"this model's config has prompts={self.prompts!r}: `{name}` must be "
            f"{wanted if self.entities else 'of one prompt a row, (B, L), without `prompt_index`'}; got "
            f"{tuple(input_ids.shape)}{'' if prompt_index is None else f' with {tuple(prompt_index.shape)}'}. The "
            "processor must have the same `prompts`."
        )

    def check_values(
        self, name: str, values: torch.Tensor, last_ids: torch.Tensor | None, known: dict[str, int]
    ) -> None:
        """Raises `ValueError` where an input has values out of its range; what the towers and the loss check when they
        read it is not checked here too (`feature_ids` and `history_ids` without `last_ids`, `labels`)."""
        if name in ("feature_ids", "masked_feature_ids", "mtm_labels") and last_ids is not None:
            targets: dict[str, Any] = {"low": NUM_RESERVED_IDS, "ignored": IGNORE_INDEX} if name == "mtm_labels" else {}
            check_ids(name, values, last_ids, **targets)
        elif name in ("input_ids", "masked_input_ids", "mlm_labels"):
            assert self.text_config is not None
            last, ignored = self.text_config.vocab_size - 1, IGNORE_INDEX if name == "mlm_labels" else None
            check_range(name, values, 0, last, f"tokens of the PLM, from 0 to {last}", ignored)
        elif name == "attention_mask":
            check_zero_or_one(name, values, "0 (padding) or 1 (a token)")
            if sees_values(values):
                check_range(name, values.amax(-1), 1, 1, "1 for at least one token of each prompt")
        elif name == "prompt_index" and "P" in known:
            check_range(name, values, 0, known["P"] - 1, f"numbers of the {known['P']} prompts, from 0")
        elif name == "history_outcomes":
            check_range(name, values, 0, 2, "0 (no entry), 1 (not clicked) or 2 (clicked)")
        elif name == "noise_uniform":
            check_range(name, values, 0, 1, "from 0 to 1")
        elif name == "text_pooled":
            check_range(name, values, -math.inf, math.inf, "finite")

    def _refuse_shape(
        self, name: str, values: torch.Tensor, dims: str, known: dict[str, int], said: dict[str, str]
    ) -> NoReturn:
        here = _shape([known.get(dim, dim) for dim in dims])
        others = dict.fromkeys(
            f"`{said[dim]}`" for dim in dims if said.get(dim, name) != name and dim not in self.sizes
        )
        reason = f", as {' and '.join(others)} has it" if others else ""
        raise ValueError(
            f"`{name}` must have the shape {_shape(dims)}, here {here}{reason}; got {tuple(values.shape)}."
        )


def _shape(dims: Sequence) -> str:
    return f"({', '.join(map(str, dims))}{',' if len(dims) == 1 else ''})"
