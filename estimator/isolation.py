# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a recipe changes in its process, kept from the process of others."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers.utils import logging as transformers_logging

from flip_ctr.train.outputs.run_log import logger

STATES = (PartialState, AcceleratorState, GradientState)


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, only warnings are said. Afterwards Accelerate, the random generators and the libraries' logs are as they
    were."""
    states = [dict(one._shared_state) for one in STATES]
    generators = random.getstate(), np.random.get_state()
    level, verbosity = logger.level, transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield
    finally:
        for one, state in zip(STATES, states):
            one._shared_state.clear()
            one._shared_state.update(state)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
