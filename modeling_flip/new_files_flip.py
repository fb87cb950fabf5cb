# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Files of a checkpoint that take the places of others all together."""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch

logger = logging.getLogger("flip_ctr")

PARTIAL = ".saving-"  # how names begin of what is being written


def partial_prefix(prefix: str) -> str:
    """How the name begins of what this process is writing: it says whose it is."""
    return f"{prefix}{os.getpid()}@{socket.gethostname()}-"


def is_abandoned(name: str, prefix: str) -> bool:
    """Whether something was being written by a process of this machine that has ended."""
    pid, _, host = name.removeprefix(prefix).rpartition("-")[0].partition("@")
    return name.startswith(prefix) and pid.isdecimal() and host == socket.gethostname() and not is_alive(int(pid))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


@contextmanager
def new_files(folder: str | os.PathLike, last: str, replaced: Sequence[str] = ()) -> Iterator[str]:
    """Yields an empty folder; what is written there takes the places of a checkpoint's files when all is done.

    Args:
        folder: of the checkpoint.
        last: the file that comes last. Its checksums are of those before it, so that a mix of files, where a process
            is killed on the way, is refused when it is loaded.
        replaced: patterns of files that go where there are no new ones.
    """
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        if is_abandoned(name, PARTIAL):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
            logger.warning(f"removed {os.path.join(folder, name)}, which a killed process left")
    with tempfile.TemporaryDirectory(dir=folder, prefix=partial_prefix(PARTIAL)) as partial:
        yield partial
        new = sorted(os.listdir(partial), key=lambda name: (name == last, name))
        for name in new:
            with open(os.path.join(partial, name), "rb") as file:
                os.fsync(file.fileno())  # a machine that goes down must not leave a name without its bytes
        for name in new:
            os.replace(os.path.join(partial, name), os.path.join(folder, name))
    for name in os.listdir(folder):
        if name not in new and any(fnmatch(name, pattern) for pattern in replaced):
            os.remove(os.path.join(folder, name))
