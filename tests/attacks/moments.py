"""A command in a process in which something happens at its k-th change of a file, or which has less than it needs."""

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from pathlib import Path

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# what Python tells of: the event, and which of its arguments are paths
CHANGES = {
    "open": 1,
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.truncate": 1,
    "os.link": 2,
    "os.symlink": 2,
    "shutil.copyfile": 2,
}


def kill(target: str) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


# what somebody else puts there meanwhile, where it is not there already


def make_folder(target: str) -> bool:
    if os.path.isfile(target):
        return False
    os.makedirs(target, exist_ok=True)
    (Path(target) / "precious.txt").write_text("of another")
    return True


def make_empty_folder(target: str) -> bool:
    if os.path.exists(target):
        return False
    os.makedirs(target)
    return True


def make_file(target: str) -> bool:
    if os.path.exists(target):
        return False
    Path(target).write_text("of another")
    return True


def remove(target: str) -> bool:
    shutil.rmtree(target, ignore_errors=True)
    return True


HAPPENS = {one.__name__: one for one in (kill, make_folder, make_empty_folder, make_file, remove)}


def arm(
    below: list[str], at: int | None, happens: str, target: str, count: str | None = None, marker: str | None = None
) -> None:
    """From now on each change of a file below these folders is counted, and at that number it happens, before the
    change. A line on each is written to the file `count`, and a file `marker` says that it did happen."""
    done, busy = 0, False

    def hook(event: str, args: tuple) -> None:
        nonlocal done, busy
        if busy or event not in CHANGES:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
            return
        paths = [os.fspath(one) for one in args[: CHANGES[event]] if isinstance(one, str | os.PathLike)]
        # those relative to an open folder are of a tree that is removed
        if not any(not os.path.isabs(one) or one.startswith(tuple(below)) for one in paths):
            return
        done, busy = done + 1, True
        try:
            if count is not None:
                with open(count, "a") as file:
                    file.write(f"{event} {' '.join(map(os.path.basename, paths))}\n")
            if done == at:
                did = HAPPENS[happens](target)
                if did and marker is not None:
                    Path(marker).touch()
        finally:
            busy = False

    sys.addaudithook(hook)


def save_over(source: str, target: str) -> None:
    """What a user's own program does."""
    from flip_ctr import FlipForCTR, FlipProcessor

    model, processor = FlipForCTR.from_pretrained(source), FlipProcessor.from_pretrained(source)
    model.save_pretrained(target)
    processor.save_pretrained(target)


def read_again(folder: str, rows: str, out: str, seconds: float) -> None:
    """Loads a checkpoint over and over, and writes the scores or errors that it met."""
    import logging
    import time

    import loading_routes

    logging.disable(logging.CRITICAL)
    wanted, found, until = json.loads(Path(rows).read_text()), [], time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            one = {"scores": loading_routes.piped(folder, wanted, "")}
        except Exception as error:
            one = {"kinds": [kind.__name__ for kind in type(error).__mro__], "text": str(error)}
        if one not in found:
            found.append(one)
            Path(out).write_text(json.dumps(found))


def digest_of_splits(folder: str) -> str:
    """Of the rows of a dataset folder's training and test split, read as a run reads them."""
    from hashlib import sha256

    from flip_ctr.data.readers.shards import open_splits

    splits = open_splits(folder, dict.fromkeys(("train", "test")))
    rows = {name: [part.to_pylist() for _, part in rows.parts()] for name, rows in splits.items()}
    return sha256(repr(rows).encode()).hexdigest()


def read_dataset_again(folder: str, out: str, seconds: float) -> None:
    """Reads a dataset folder over and over, and writes the rows' digests or errors that it met."""
    import time

    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            one = {"rows": digest_of_splits(folder)}
        except Exception as error:
            one = {"kinds": [kind.__name__ for kind in type(error).__mro__], "text": str(error)}
        if one not in found:
            found.append(one)
            Path(out).write_text(json.dumps(found))


CALLS = {one.__name__: one for one in (save_over, read_again, read_dataset_again)}


def run(task: str) -> int:
    """Runs a command, or one of `CALLS`.

    Args:
        task: JSON of `argv`, or of `call` and `arguments`; and where wanted `arm`, the arguments of [`arm`]; `limits`,
            sizes by the name of what is limited.
    """
    what = json.loads(task)
    for name, size in what.get("limits", {}).items():
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (size, resource.getrlimit(number)[1]))
    if "FSIZE" in what.get("limits", {}):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python's own start does; writing fails then
    tempfile.tempdir = None  # where the server's are
    if "arm" in what:
        arm(**what["arm"])
    if "call" in what:
        CALLS[what["call"]](*what["arguments"])
        return 0
    from flip_ctr.train import cli

    return cli.main(what["argv"])
