# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Corrects a click model's log odds: for non-clicks that the training rows lack, and by a fitted calibration.

Whoever keeps a share r of the non-clicks trains on odds that are 1 / r of the true ones, so `log r` is added to the log
odds. What then still differs from the clicks of rows at their natural rate is corrected by Platt's line (Platt,
"Probabilistic outputs for support vector machines", 1999) or by the steps of an isotonic regression (Zadrozny and
Elkan, KDD 2002), both as a function of log odds. Neither changes the order of the rows.
"""

import math
from typing import Any

import numpy as np
import torch

CALIBRATIONS = {"platt": {"slope", "intercept"}, "isotonic": {"log_odds", "calibrated"}}
# strategy -> the outputs of `FlipForCTR` that are log odds of their own; where one tower predicts, `logits` is its own
HEADS = {
    "id": ("id_logits",),
    "plm": ("text_logits",),
    "joint": ("logits", "id_logits", "text_logits"),
    "frozen": ("id_logits",),
}


def check_calibration(calibration: dict[str, Any] | None, strategy: str) -> None:
    """Raises `ValueError` where a calibration is none that the strategy's heads can be corrected by.

    Args:
        calibration: `kind`, and for each head either Platt's `slope` and `intercept`, or the knots of isotonic
            regression: lists of rising `log_odds` and of rising `calibrated` log odds, of one length.
    """
    if calibration is None:
        return
    heads = {name: numbers for name, numbers in calibration.items() if name != "kind"}
    parts = CALIBRATIONS.get(str(calibration.get("kind")))
    if parts is None or not set(HEADS[strategy]) <= set(heads) <= set(HEADS["joint"]):
        raise ValueError(
            f"FlipConfig: `calibration` must be a mapping with `kind`, one of {', '.join(map(repr, CALIBRATIONS))}, "
            f"and with {', '.join(HEADS[strategy])}, which strategy {strategy!r} has; got {calibration!r}."
        )
    for head, numbers in heads.items():
        if not isinstance(numbers, dict) or set(numbers) != parts or not _fits(calibration["kind"], numbers):
            right = {
                "platt": "`slope`, a number above 0, and `intercept`, a number",
                "isotonic": "`log_odds` and `calibrated`, lists of as many numbers, each rising in float32",
            }
            raise ValueError(
                f"FlipConfig: `calibration` must be a mapping whose {head} holds {right[calibration['kind']]}; got "
                f"{numbers!r}."
            )


def _fits(kind: str, numbers: dict[str, Any]) -> bool:
    listed = [one if kind == "isotonic" else [one] for one in numbers.values()]
    if not all(isinstance(one, list) and one and all(map(_is_number, one)) for one in listed):
        return False
    if kind == "platt":
        return numbers["slope"] > 0
    return len(listed[0]) == len(listed[1]) and all((np.diff(np.array(one, np.float32)) > 0).all() for one in listed)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30  # nor is NaN


def corrected(
    logits: torch.Tensor, head: str, negative_sampling_rate: float, calibration: dict[str, Any] | None
) -> torch.Tensor:
    """Log odds of one head, of any shape, corrected: finite where they are, and in the same order. Rows whose log odds
    differ by less than float32 can tell after the correction become ties.

    Isotonic knots are joined by straight lines; beyond the first and the last the correction is theirs.

    Args:
        head: one of `logits`, `id_logits` and `text_logits`.
        negative_sampling_rate: share of the non-clicks that was kept in the training rows.
        calibration: see [`check_calibration`]; None for none.
    """
    if negative_sampling_rate != 1:
        logits = logits + math.log(negative_sampling_rate)
    if calibration is None:
        return logits
    numbers = calibration[head]
    if calibration["kind"] == "platt":
        return logits * numbers["slope"] + numbers["intercept"]
    x, y = numbers["log_odds"], numbers["calibrated"]
    between = [(y[place + 1] - y[place]) / (x[place + 1] - x[place]) for place in range(len(x) - 1)]
    # of the segments before the first knot, between knots, and behind the last one
    slopes, starts, values, ends = [1.0, *between, 1.0], [x[0], *x], [y[0], *y], [*y, math.inf]

    def tensor(numbers: list[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=logits.dtype, device=logits.device)

    segment = (logits[..., None] > tensor(x)).sum(-1)
    line = tensor(values)[segment] + tensor(slopes)[segment] * (logits - tensor(starts)[segment])
    return torch.minimum(line, tensor(ends)[segment])  # rounding must not lift a row above the next knot
