# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a run says: on the console from the main process alone, and with the time in the log file of its output
folder."""

import logging
from logging.handlers import MemoryHandler

from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

logger = logging.getLogger("flip_ctr")
# what goes to the log file alone: the console shows it in another form, or not at all
file_logger = logging.getLogger("flip_ctr.file")
file_logger.propagate = False
file_logger.addHandler(logging.NullHandler())

LOG_FILE = "train.log"
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def set_up_logging(accelerator: Accelerator) -> None:
    """Only the main process talks; the libraries' own progress bars and loading reports stay quiet."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def open_log(path: str, append: bool) -> None:
    """From now on everything that is logged is remembered, with the time, for that file, until [`close_log`]. It is
    written once the run has begun ([`write_log`]): one that is refused before leaves no file behind."""
    file = logging.FileHandler(path, mode="a" if append else "w", encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter(LOG_FORMAT))
    memory = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, target=file, flushOnClose=False)
    for one in (logger, file_logger):
        one.addHandler(memory)


def write_log() -> None:
    """Writes what was remembered for the log; what follows is written at once."""
    for handler in _log_handlers():
        handler.flush()
        handler.flushLevel = logging.NOTSET


def close_log() -> None:
    for handler in _log_handlers():
        handler.target.close()
        handler.close()
        for one in (logger, file_logger):
            one.removeHandler(handler)


def _log_handlers() -> list[MemoryHandler]:
    return [handler for handler in file_logger.handlers if isinstance(handler, MemoryHandler)]
