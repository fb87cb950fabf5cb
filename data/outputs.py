# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Outputs: one run at a time writes a file or folder, which appears whole or not at all.

What is written lies beside its place, as `.NAME.saving-…`, until all of it is on the disk. While a run writes, it holds
a lock; whatever carries such a name when another run holds the lock was left by one that was killed.
"""

import contextlib
import ctypes
import errno
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from flip_ctr.modeling_flip.new_files_flip import is_alive

logger = logging.getLogger("flip_ctr")

LOCK, OWNER = ".lock", ".lock-owner"  # the second says who holds the first
ORPHANS_LIVE = 30  # seconds; workers of a killed run end soon after it, and hold its lock until then
LIMITS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def claimed(place: Path, lock: Path | None = None) -> Iterator[None]:
    """Inside, no other run writes to a file or folder.

    Args:
        place: what is written.
        lock: the file that is locked; beside the place when not given.

    Raises:
        FileExistsError: another run writes there; names its process.
        OSError: the folder of the lock cannot be written.
    """
    lock = place.with_name(f".{place.name}{LOCK}") if lock is None else lock
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        _acquire(held, place, lock)
    except NotImplementedError:
        held = None
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        if error.errno not in NO_LOCKS:
            raise OSError(f"{place} cannot be written: {error.strerror or error}") from error
        held = None
    if held is None:
        logger.warning(f"{lock.parent} has no locks: nothing keeps two runs from writing {place} at once")
        yield
        return
    try:
        yield
    finally:
        for path in (_owner_file(lock), lock):  # while it is held: nobody else has it
            with contextlib.suppress(OSError):
                path.unlink()
        held.release()


def _acquire(held: FileLock, place: Path, lock: Path) -> None:
    try:
        held.acquire()
    except Timeout:
        owner = _owner(lock)
        try:
            if not owner or owner["host"] != socket.gethostname() or is_alive(owner["pid"]):
                raise Timeout(lock)
            held.acquire(timeout=ORPHANS_LIVE)
        except Timeout:
            who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "another process"
            raise FileExistsError(
                f"{place} is being written by {who}; wait until it has ended, or name another place"
            ) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    _owner_file(lock).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))


def _owner_file(lock: Path) -> Path:
    """Says whose a lock is. A file of its own: filelock before 4 empties a lock that it tries."""
    return lock.with_name(f"{lock.name}-owner")


def _owner(lock: Path) -> dict | None:
    try:
        return json.loads(_owner_file(lock).read_text())
    except (OSError, ValueError):
        return None


def beside(place: Path) -> str:
    """How names begin of what lies beside a place while it is written."""
    return f".{place.name}.saving-"


def remove_leftovers(place: Path) -> None:
    """Removes what a killed run left beside a place, and brings back what it had moved aside; says so. Who calls it has
    claimed the place."""
    for path in sorted(place.parent.glob("*")) if place.parent.is_dir() else []:
        if not path.name.startswith(beside(place)):
            continue
        replaced = path / "old"
        if not place.exists() and replaced.exists():
            replaced.rename(place)
            logger.warning(f"{place} was brought back: a killed run had moved it to {replaced}")
        remove(path)
        logger.warning(f"removed {path}, which a killed run left")


def remove(path: Path) -> None:
    """Removes a file or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def naming_limits(place: Path) -> Iterator[None]:
    """Inside, an error of a full disk, a quota or a largest size of files names what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in LIMITS or str(place) in str(error):
            raise
        raise OSError(f"{place} could not be written: {error.strerror or error}") from error


@contextlib.contextmanager
def new_folder(place: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yields a path to make a folder at; it takes the place of `place`, and of what lay there, when all is done.

    Raises:
        FileExistsError: another run writes it, or it appeared meanwhile and `overwrite` is off.
    """
    with claimed(place), naming_limits(place):
        remove_leftovers(place)
        # a sibling, so that a rename stays within one file system
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=beside(place)) as temporary:
            new, replaced = Path(temporary, "new"), Path(temporary, "old")
            yield new
            sync(new)
            if overwrite:
                put_in_place(new, place, replaced)
            else:
                with _saying_what_appeared(place):
                    new.rename(place)  # an empty folder may have been there


@contextlib.contextmanager
def new_file(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yields a path to write a file at; it takes the place of `path` when all is done, at once.

    Raises:
        FileExistsError: another run writes it, or it appeared meanwhile and `overwrite` is off.
    """
    with claimed(path), naming_limits(path):
        remove_leftovers(path)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=beside(path))
        os.close(descriptor)
        partial = Path(name)
        try:
            os.chmod(partial, 0o666 & ~_umask())  # as of any new file
            yield partial
            sync(partial)
            if overwrite:
                os.replace(partial, path)
            else:
                with _saying_what_appeared(path):
                    _link(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _link(partial: Path, path: Path) -> None:
    """Gives a file a second name, which must be free; takes the first away where the file system has no links."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        open(path, "xb").close()
        os.replace(partial, path)


@contextlib.contextmanager
def _saying_what_appeared(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR):
            raise
        raise FileExistsError(f"{place} appeared while it was being made; it stays as it is") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all its files, is on the disk: a machine that goes down must not leave a
    name without its bytes."""
    for one in path.rglob("*") if path.is_dir() else []:
        if one.is_file():
            sync_names(one)
    sync_names(path)


def sync_names(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows none of folders
            raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def put_in_place(new: Path, place: Path, replaced: Path) -> None:
    """Gives a folder its name; a folder that had it is moved to `replaced`. In one step where the system has one
    (Linux), else in two, between which a killed run leaves the old folder in `replaced`.

    Raises:
        OSError: it cannot be done; what was there is there.
    """
    if not place.exists():
        new.rename(place)
    elif _exchange(new, place):
        new.rename(replaced)
    else:
        place.rename(replaced)
        try:
            new.rename(place)
        except BaseException:
            replaced.rename(place)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at once; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_working_folder, exchange = -100, 2
    return renameat2(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), exchange) == 0
