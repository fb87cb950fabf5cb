# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What something was made by: a catalogue, exported graphs, the targets of a student."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import nn


def digest(said: dict[str, Any], parts: Sequence[nn.Module | None]) -> str:
    """Of what JSON can say and the weights of modules."""
    found = blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16)
    for part in parts:
        for tensor in [] if part is None else part.state_dict().values():
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
