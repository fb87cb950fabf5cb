"""Several runs at once, what appears meanwhile, full disks, and less rights, files or room than a run needs. Each ends
as if nothing had happened, or in an error that names the file, and what was there before stays.

    make attack ARGS='--kinds concurrency --count 48 --seed 0'
    make attack ARGS='--kinds concurrency --only "two trainings" --seed 3 --count 1'
"""

import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import outcomes
from attack_kills import left_behind
from bench import PATIENCE, PRECIOUS, Bench, Command, content, names_below, same_scores, weights_differ
from outcomes import Ended, Tally, again
from small_disks import can_mount, for_reading, size_of, small_disk

# Failures that are known, by a pattern of `SITUATION: DETAIL`: why.
KNOWN: dict[str, str] = {}
Ending = tuple[str, str]  # outcome and detail
Situation = Callable[[Bench, random.Random], Ending]
SITUATIONS: dict[str, Situation] = {}
NEEDS: dict[str, Callable[[], bool]] = {}


def situation(name: str, when: Callable[[], bool] = lambda: True) -> Callable[[Situation], Situation]:
    """Decorator; `when` says whether it can be tried here."""

    def keep(function: Situation) -> Situation:
        SITUATIONS[name] = function
        NEEDS[name] = when
        return function

    return keep


def ends(command: Command, names: list[str]) -> Ending | None:
    """The outcome of a command that failed; None where it did not."""
    code = command.end()
    if code is None:
        os.kill(command.pid, signal.SIGKILL)
        return "unhelpful", f"no end in {PATIENCE} s"
    return None if code == 0 else outcomes.judged_command(code, command.text, command.argv[0], names)


@cache
def reference(bench: Bench, kind: str, number: int) -> Path:
    """What a run alone leaves, in a folder of its own. There are two of each kind, whose results differ."""
    place = bench.place()
    bench.run(*argv_of(bench, kind, place, number))
    return place


def argv_of(bench: Bench, kind: str, place: Path, number: int, *more) -> list:
    if kind == "prepare":
        return bench.prepare(place / "D", *more, seed=number)
    if kind.startswith("predict"):
        model = bench.id_model if number == 1 else bench.other_id_model
        return bench.predict(model, place / f"scores{kind.removeprefix('predict ')}", *more)
    data = bench.data if number == 1 else bench.other_data
    return bench.finetune(kind, data, place / "M", *more)


def unlike(kind: str, place: Path, whole: Path) -> str | None:
    """What differs from what a run alone leaves."""
    if kind == "prepare":
        return None if content(place / "D") == content(whole / "D") else "another dataset"
    if kind.startswith("predict"):
        file = f"scores{kind.removeprefix('predict ')}"
        same = (place / file).exists() and (place / file).read_bytes() == (whole / file).read_bytes()
        return None if same else "another output"
    if not (place / "M" / "all_results.json").exists():
        return "no results"
    return weights_differ(place / "M", whole / "M")


# --- several at once


def two_runs(bench: Bench, rng: random.Random, kind: str, overwrite: bool) -> Ending:
    flag = [] if not overwrite else ["--overwrite_output" if kind.startswith("predict") else "--overwrite_output_dir"]
    wholes, place = [reference(bench, kind, number) for number in (1, 2)], bench.place()
    if overwrite:
        shutil.copytree(wholes[0], place, dirs_exist_ok=True)
    commands = []
    for number in (1, 2):
        commands.append(bench.command(*argv_of(bench, kind, place, number, *flag)))
        time.sleep(rng.uniform(0, 0.6) if rng.random() < 0.7 else 0)
    names = ["D", "M", "scores"]
    found = [ends(command, [str(place / name) for name in names]) for command in commands]
    bad = [one for one in found if one is not None and one[0] != "named"]
    if bad:
        return bad[0]
    done = [number for number, one in enumerate(found) if one is None]
    if not done:
        return "unhelpful", f"both were refused: {found[0][1]} / {found[1][1]}"
    if len(done) == 2 and not overwrite:
        return "wrong", "both say that they wrote it, though none may overwrite the other's"
    apart = [unlike(kind, place, wholes[number]) for number in done]
    if None not in apart:
        return "wrong", f"what is there is of neither run: {apart}"
    behind = left_behind(names_below(place), names_below(wholes[0]))
    if behind:
        return "unhelpful", behind
    return ("right", "") if len(done) == 2 else ("named", next(one[1] for one in found if one is not None))


for _kind in ("prepare", "id", "joint", "predict .csv", "predict .parquet"):
    for _overwrite in (False, True):
        _name = {"id": "trainings", "joint": "trainings with a PLM"}.get(_kind, f"runs of {_kind}")
        situation(f"two {_name} into one output{', which overwrite' * _overwrite}")(
            lambda bench, rng, kind=_kind, overwrite=_overwrite: two_runs(bench, rng, kind, overwrite)
        )


@situation("two runs that encode the same rows")
def _(bench: Bench, rng: random.Random) -> Ending:
    whole, data = reference(bench, "joint", 1), bench.place() / "D"
    shutil.copytree(bench.data, data, ignore=shutil.ignore_patterns(".cache"))
    places, commands = [bench.place(), bench.place()], []
    for place in places:
        commands.append(bench.command(*bench.finetune("joint", data, place / "M")))
        time.sleep(rng.choice([0, rng.uniform(0, 0.3)]))
    for place, command in zip(places, commands):
        ending = ends(command, [str(data), "M"])
        if ending is not None:
            return ending
        if apart := unlike("joint", place, whole):
            return "wrong", apart
    return "right", ""


@situation("a checkpoint is read while a run replaces it")
def _(bench: Bench, rng: random.Random) -> Ending:
    return read_meanwhile(bench, rng, lambda target: bench.command(
        *bench.finetune("joint", bench.other_data, target, "--overwrite_output_dir", "--num_train_epochs", 1)
    ))  # fmt: skip


@situation("a checkpoint is read while save_pretrained replaces it")
def _(bench: Bench, rng: random.Random) -> Ending:
    return read_meanwhile(bench, rng, lambda target: bench.call("save_over", bench.other_joint_model, target))


def read_meanwhile(bench: Bench, rng: random.Random, write: Callable[[Path], Command]) -> Ending:
    target, out = bench.place() / "M", bench.place() / "found.json"
    shutil.copytree(bench.joint_model, target)
    reader = bench.call("read_again", target, bench.rows, out, 6)
    time.sleep(rng.uniform(0.3, 1.0))
    writer = write(target)
    if writer.end() != 0:
        return "unhelpful", f"the writer ended with exit code {writer.end()}: {writer.last_line}"
    reader.end()
    old, new = bench.scores(bench.joint_model), bench.scores(target)
    for one in json.loads(out.read_text()):
        if "scores" in one and not any(same_scores(one, other) for other in (old, new)):
            return "wrong", "scores of neither the old nor the new checkpoint"
        if "kinds" in one:
            ending = outcomes.judged(one["kinds"], one["text"], [str(target)])
            if ending[0] != "named":
                return ending
    return "right", ""


@situation("a dataset is read while prepare replaces it")
def _(bench: Bench, rng: random.Random) -> Ending:
    from moments import digest_of_splits

    wholes, place, out = [reference(bench, "prepare", number) for number in (1, 2)], bench.place(), bench.place() / "f"
    shutil.copytree(wholes[0] / "D", place / "D")
    reader = bench.call("read_dataset_again", place / "D", out, 4)
    time.sleep(rng.uniform(0.1, 0.5))
    writer = bench.run(*bench.prepare(place / "D", "--overwrite_output_dir", seed=2))
    del writer
    reader.end()
    known = [digest_of_splits(str(one / "D")) for one in wholes]
    for one in json.loads(out.read_text()):
        if "rows" in one and one["rows"] not in known:
            return "wrong", "rows of neither the old nor the new dataset together"
        if "kinds" in one:
            ending = outcomes.judged(one["kinds"], one["text"], [str(place / "D")])
            if ending[0] != "named":
                return ending
    return "right", ""


# --- what appears or goes meanwhile


def changes(bench: Bench, kind: str, *more) -> int:
    """The number of the last change of a file by which a run alone puts its output in place."""
    return _changes(bench, kind, more)


@cache
def _changes(bench: Bench, kind: str, more: tuple) -> int:
    place, count = bench.place(), bench.place() / "count"
    armed = {"below": [str(place)], "at": None, "happens": "kill", "target": "", "count": str(count)}
    bench.run(*argv_of(bench, kind, place, 1, *more), arm=armed)
    lines = count.read_text().splitlines()
    return max(number for number, line in enumerate(lines, 1) if line.startswith(("os.rename", "os.link")))


def meanwhile(bench: Bench, rng: random.Random, kind: str, happens: str, overwrite: bool = False) -> Ending:
    """Something else puts a file or folder where the output comes."""
    flag = [] if not overwrite else ["--overwrite_output" if kind.startswith("predict") else "--overwrite_output_dir"]
    whole, total = reference(bench, kind, 1), changes(bench, kind)
    place = bench.place()
    if overwrite:
        shutil.copytree(whole, place, dirs_exist_ok=True)
    target = place / {"prepare": "D", "predict .csv": "scores.csv"}.get(kind, "M")
    armed = {
        "below": [str(place)],
        "at": rng.randint(1, total),
        "happens": happens,
        "target": str(target),
        "marker": str(bench.place() / "it happened"),
    }
    command = bench.command(*argv_of(bench, kind, place, 1, *flag), arm=armed)
    ending = ends(command, [str(target)])
    kept = [path for path in (target, *place.rglob(PRECIOUS)) if path.is_file() and path.read_bytes() == b"of another"]
    if happens != "make_empty_folder" and not kept and Path(armed["marker"]).exists():
        return "wrong", f"what another had put there before change {armed['at']} of {total} is gone"
    if ending is not None:
        return ending
    apart = None if kept and kept[0] == target else unlike(kind, place, whole)
    return ("right", "") if apart is None else ("wrong", f"it says that it is done, and there is {apart}")


for _kind, _happens, _overwrite in [
    ("prepare", "make_folder", False),
    ("prepare", "make_empty_folder", False),
    ("prepare", "make_file", False),
    ("prepare", "make_folder", True),
    ("id", "make_folder", False),
    ("id", "make_file", False),
    ("predict .csv", "make_file", False),
    ("predict .csv", "make_folder", False),
]:
    _what = {"make_folder": "a folder", "make_empty_folder": "an empty folder", "make_file": "a file"}[_happens]
    _name = {"id": "finetune"}.get(_kind, _kind)
    situation(f"{_what} appears {'in' if _overwrite else 'as'} the output of {_name}")(
        lambda bench, rng, a=_kind, b=_happens, c=_overwrite: meanwhile(bench, rng, a, b, c)
    )


def parent_goes(bench: Bench, rng: random.Random, kind: str) -> Ending:
    whole, total, place = reference(bench, kind, 1), changes(bench, kind), bench.place()
    parent = place / "parent"
    parent.mkdir()
    at = rng.randint(1, total)
    armed = {"below": [str(place)], "at": at, "happens": "remove", "target": str(parent)}
    ending = ends(bench.command(*argv_of(bench, kind, parent, 1), arm=armed), [str(parent)])
    if ending is not None:
        return ending
    apart = unlike(kind, parent, whole)
    return ("right", "") if apart is None else ("wrong", f"it says that it is done, and there is {apart}")


for _kind in ("prepare", "id", "predict .csv"):
    situation(f"the parent of the output of {_kind.replace('id', 'finetune')} goes")(
        lambda bench, rng, kind=_kind: parent_goes(bench, rng, kind)
    )

# --- full disks


def full_disk(bench: Bench, rng: random.Random, kind: str, *more) -> Ending:
    """The output's disk is too small, or just not; what lay there stays."""
    whole, flag = reference(bench, kind, 1), "--overwrite_output" + "_dir" * (not kind.startswith("predict"))
    old = reference(bench, kind, 2)
    size = int((size_of(old) + size_of(whole)) * rng.uniform(0.55, 1.1))
    with small_disk(bench.place(), size) as place:
        shutil.copytree(old, place, dirs_exist_ok=True)
        return kept_or_done(bench, place, kind, bench.command(*argv_of(bench, kind, place, 1, flag, *more)))


def kept_or_done(bench: Bench, place: Path, kind: str, command: Command) -> Ending:
    """A run over an old output does it, or fails and leaves that."""
    old, whole = reference(bench, kind, 2), reference(bench, kind, 1)
    ending = ends(command, [str(place)])
    if ending is None:
        apart = unlike(kind, place, whole)
        return ("right", "") if apart is None else ("wrong", f"it says that it is done, and there is {apart}")
    if kind in ("id", "joint"):  # what a run says of its checkpoint goes before
        same = same_scores(bench.scores(place / "M"), bench.scores(old / "M"))
    else:
        same = unlike(kind, place, old) is None
    if not same:
        return "wrong", f"what lay there before is damaged; the error was: {ending[1]}"
    if ending[0] == "named":
        more = names_below(place) - names_below(old)
        # whole step checkpoints, from which the run can go on
        more = {name for name in more if not name.endswith(".log") and not name.startswith("M/checkpoint-")}
        if more:
            return "unhelpful", f"left behind: {sorted(more)[:5]}"
    return ending


def small_files(bench: Bench, rng: random.Random, kind: str, *more) -> Ending:
    """No file can become larger than some size."""
    whole, flag = reference(bench, kind, 1), "--overwrite_output" + "_dir" * (not kind.startswith("predict"))
    largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    place = bench.place()
    shutil.copytree(reference(bench, kind, 2), place, dirs_exist_ok=True)
    limits = {"FSIZE": int(largest * rng.uniform(0.02, 0.95))}
    command = bench.command(*argv_of(bench, kind, place, 1, flag, *more), limits=limits)
    return kept_or_done(bench, place, kind, command)


STEPS = ("--checkpointing_steps", 1)
for _kind, _more in [
    ("prepare", ()),
    ("id", ()),
    ("joint", ()),
    ("joint", STEPS),
    ("predict .csv", ()),
    ("predict .parquet", ()),
    ("predict .jsonl", ()),
]:
    _name = {"id": "finetune", "joint": "finetune with a PLM"}.get(_kind, _kind) + " and steps" * bool(_more)
    situation(f"a full disk for {_name}", can_mount)(
        lambda bench, rng, kind=_kind, more=_more: full_disk(bench, rng, kind, *more)
    )
    situation(f"small files alone for {_name}")(
        lambda bench, rng, kind=_kind, more=_more: small_files(bench, rng, kind, *more)
    )


@situation("a full disk for the encoded rows", can_mount)
def _(bench: Bench, rng: random.Random) -> Ending:
    whole = reference(bench, "joint", 1)
    with small_disk(bench.place(), size_of(bench.data) + rng.randint(0, 12) * 4096) as disk:
        shutil.copytree(bench.data, disk / "D", ignore=shutil.ignore_patterns(".cache"))
        place = bench.place()
        ending = ends(bench.command(*bench.finetune("joint", disk / "D", place / "M")), [str(disk)])
        if ending is not None:
            return ending
        apart = unlike("joint", place, whole)
        return ("right", "") if apart is None else ("wrong", apart)


@situation("a full disk for temporary files", can_mount)
def _(bench: Bench, rng: random.Random) -> Ending:
    kind = rng.choice(["prepare", "joint", "predict .csv"])
    with small_disk(bench.place(), rng.choice([4096, 16_384, 65_536])) as disk:
        place = bench.place()
        command = bench.command(*argv_of(bench, kind, place, 1), environment={"TMPDIR": str(disk)})
        return done_or_named(bench, kind, place, command, [str(disk), str(place)])


def done_or_named(bench: Bench, kind: str, place: Path, command: Command, names: list[str]) -> Ending:
    ending = ends(command, names)
    if ending is not None:
        return ending
    apart = unlike(kind, place, reference(bench, kind, 1))
    return ("right", "") if apart is None else ("wrong", f"it says that it is done, and there is {apart}")


# --- less rights, less files


@contextmanager
def read_only(bench: Bench, kind: str, number: int) -> Iterator[Path]:
    """A disk that cannot be written, with what a run alone leaves."""
    folder = bench.place()
    with small_disk(folder, 2**24) as place:
        shutil.copytree(reference(bench, kind, number), place, dirs_exist_ok=True)
        for_reading(place)
        yield place


def onto_read_only(bench: Bench, rng: random.Random, kind: str) -> Ending:
    reference(bench, kind, 1)
    flag = "--overwrite_output" + "_dir" * (not kind.startswith("predict"))
    with read_only(bench, kind, 2) as place:
        if rng.random() < 0.5:  # what is there cannot be replaced
            return kept_or_done(bench, place, kind, bench.command(*argv_of(bench, kind, place, 1, flag)))
        new = place / "new"
        ending = ends(bench.command(*argv_of(bench, kind, new, 1)), [str(new)])
        return ending or ("wrong", "it says that it is done, and cannot be written")


for _kind in ("prepare", "id", "joint", "predict .csv"):
    situation(
        f"{_kind.replace('id', 'finetune').replace('joint', 'finetune with a PLM')} onto a disk for reading", can_mount
    )(lambda bench, rng, kind=_kind: onto_read_only(bench, rng, kind))


@situation("a dataset on a disk for reading", can_mount)
def _(bench: Bench, rng: random.Random) -> Ending:
    place = bench.place()
    reference(bench, "joint", 1)
    with small_disk(bench.place(), 2**24) as disk:
        shutil.copytree(bench.data, disk / "D", ignore=shutil.ignore_patterns(".cache"))
        for_reading(disk)
        temporary = {"TMPDIR": str(bench.place())}
        command = bench.command(*bench.finetune("joint", disk / "D", place / "M"), environment=temporary)
        return done_or_named(bench, "joint", place, command, [str(disk), str(place)])


@situation("a checkpoint that cannot be read", lambda: os.geteuid() != 0)
def _(bench: Bench, rng: random.Random) -> Ending:
    model, place = bench.place() / "M", bench.place()
    shutil.copytree(bench.id_model, model)
    file = rng.choice(["config.json", "processor_config.json", "model.safetensors"])
    (model / file).chmod(0)
    command = bench.command(*bench.predict(model, place / "scores.csv"))
    return ends(command, [file]) or ("wrong", f"{file} was read, which nobody may")


@situation("a home that cannot be written")
def _(bench: Bench, rng: random.Random) -> Ending:
    kind, home, place = rng.choice(["id", "joint", "predict .csv", "prepare"]), bench.place() / "home", bench.place()
    home.write_text("a file")
    names = ("HOME", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    command = bench.command(*argv_of(bench, kind, place, 1), environment={name: str(home) for name in names})
    return done_or_named(bench, kind, place, command, [str(home), str(place)])


@situation("no folder for temporary files")
def _(bench: Bench, rng: random.Random) -> Ending:
    kind, place = rng.choice(["id", "joint", "predict .csv", "prepare"]), bench.place()
    command = bench.command(*argv_of(bench, kind, place, 1), environment={"TMPDIR": str(place / "nowhere")})
    return done_or_named(bench, kind, place, command, [str(place)])


@situation("few open files")
def _(bench: Bench, rng: random.Random) -> Ending:
    kind, place = rng.choice(["id", "joint", "predict .csv", "prepare"]), bench.place()
    reference(bench, kind, 1)
    command = bench.command(*argv_of(bench, kind, place, 1), limits={"NOFILE": rng.randint(8, 40)})
    return done_or_named(bench, kind, place, command, [place.name, "open files"])


# --- many of them


def attack(count: int, seed: int, only: str | None = None, place: Bench | None = None) -> list[Tally]:
    """So many situations from a seed on, each in turn.

    Args:
        only: the name of one, or a part of names.
        place: where; a new one when not given.
    """
    tally = Tally("several at once, full disks")
    some = [name for name in SITUATIONS if NEEDS[name]()]
    names = [name for name in some if only in (None, name)] or [name for name in some if only in name]
    random.Random(0).shuffle(names)
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        place = place or Bench(Path(folder))
        for number in range(seed, seed + count):
            name = names[number % len(names)]
            outcome, detail = SITUATIONS[name](place, random.Random(f"{name} {number}"))
            detail = detail.replace(folder, "…")
            ended = Ended(outcome, name, detail, again("concurrency", name, number))
            tally.ends.append(outcomes.unless_known(ended, KNOWN))
    return [tally]
