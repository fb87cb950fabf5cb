"""Runs that are killed at moments of chance: by time, and before their k-th change of a file. What is there afterwards
is the old or the new, and the next run to the same place ends as if nothing had happened.

    make attack ARGS='--kinds kills --count 48 --seed 0'
    make attack ARGS='--kinds kills --only prepare --seed 17 --count 1'
"""

import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import outcomes
from bench import Bench, content, names_below, same_scores, weights_differ
from outcomes import Ended, Tally, again

# Failures that are known, by a pattern of `KIND, killed WHEN: DETAIL`: why.
KNOWN: dict[str, str] = {}
Ending = tuple[str, str]  # outcome and detail


@dataclass
class Whole:
    """A run of a scene that nobody killed.

    Attributes:
        changes: of files, a line each.
        seconds: that it took.
        result: what the scene compares others with.
    """

    changes: list[str]
    seconds: float
    result: object


class Scene:
    """Something that is killed, over and over. Its `prepare` makes a new place for it, `argv` is the command, `below`
    are the folders whose changes count, `seen` is what is there afterwards."""

    name: str
    kills = 1  # of one run
    fitting = re.compile(r"config\.json|\.safetensors|vocabularies|tokenizer\.json|os\.rename (new|old|D)\b")

    def __init__(self, bench: Bench):
        self.bench = bench
        self._whole: Whole | None = None

    def prepare(self) -> Path:
        raise NotImplementedError

    def start(self, place: Path, **more):
        raise NotImplementedError

    def below(self, place: Path) -> list[Path]:
        return [place]

    def seen(self, place: Path):
        """What a whole run leaves."""
        raise NotImplementedError

    def after_kill(self, place: Path) -> Ending | None:
        """What is not right before the next run; None where nothing is."""
        return None

    def difference(self, place: Path, whole: object) -> str | None:
        """Between what the next run left and what a whole one leaves."""
        seen = self.seen(place)
        return None if seen == whole else f"{_apart(seen, whole)}"

    @property
    def whole(self) -> Whole:
        if self._whole is None:
            place = self.prepare()
            count = place.parent / f"{place.name}.count"
            armed = {"below": [str(one) for one in self.below(place)], "at": None, "happens": "kill", "target": ""}
            command = self.start(place, arm=armed | {"count": str(count)})
            code = command.end()
            assert code == 0, f"{self.name}: exit code {code}: {command.text[-2000:]}"
            changes = count.read_text().splitlines() if count.exists() else []
            self._whole = Whole(changes, time.monotonic() - command.begun, self.seen(place))
        return self._whole

    def attack(self, rng: random.Random) -> tuple[str, Ending]:
        """When it was killed, and the outcome."""
        whole, place, moments, refused = self.whole, self.prepare(), [], ""
        for _ in range(rng.randint(1, self.kills)):
            at = self.chosen(rng, whole.changes) if whole.changes and rng.random() < 0.6 else None
            armed = {"below": [str(one) for one in self.below(place)], "at": at, "happens": "kill", "target": ""}
            command = self.start(place, arm=armed)
            if at is None:
                wait = rng.uniform(0.05, 1) * whole.seconds
                if command.end(wait) is None:
                    os.kill(command.pid, signal.SIGKILL)
                moments.append(f"after {wait:.2f} s")
            else:
                moments.append(f"before change {at} of {len(whole.changes)}")
            code = command.end()
            if code not in (0, -signal.SIGKILL):
                return ", ".join(moments), outcomes.judged_command(code, command.text, command.argv[0], [place.name])
            ending = self.after_kill(place)
            if ending is not None and ending[0] == "named":
                refused = ending[1]
            elif ending is not None:
                return ", ".join(moments), ending
        return ", ".join(moments), self.next_run(place, whole, refused)

    def chosen(self, rng: random.Random, changes: list[str]) -> int:
        """The number of a change; often of a file that must fit others."""
        most = [number for number, line in enumerate(changes, 1) if self.fitting.search(line)]
        return rng.choice(most) if most and rng.random() < 0.7 else rng.randint(1, len(changes))

    def next_run(self, place: Path, whole: Whole, refused: str) -> Ending:
        command = self.start(place)
        if command.end() != 0:
            return "unhelpful", f"the next run ends with exit code {command.process.exitcode}: {command.last_line}"
        apart = self.difference(place, whole.result)
        if apart is not None:
            return ("unhelpful" if apart.startswith("left behind") else "wrong"), f"after the next run: {apart}"
        return ("named", refused) if refused else ("right", "")


def _apart(seen, whole) -> str:
    if isinstance(seen, dict) and isinstance(whole, dict):
        names = sorted(name for name in seen.keys() | whole.keys() if seen.get(name) != whole.get(name))
        return f"{len(names)} differ: {names[:5]}"
    return f"{str(seen)[:200]} instead of {str(whole)[:200]}"


def left_behind(seen: set[str], whole: set[str]) -> str | None:
    """Names that only one of them has."""
    if seen - whole:
        return f"left behind: {', '.join(sorted(seen - whole)[:5])}"
    return f"missing: {', '.join(sorted(whole - seen)[:5])}" if whole - seen else None


# --- training


class Training(Scene):
    """A run with step checkpoints, which goes on."""

    kills = 2

    def __init__(self, bench: Bench, name: str, argv: Callable[[Bench, Path], list]):
        super().__init__(bench)
        self.name, self.argv = name, argv

    def prepare(self) -> Path:
        return self.bench.place()

    def start(self, place: Path, **more):
        steps = ["--checkpointing_steps", 2, "--checkpoints_total_limit", 2, "--resume_from_checkpoint", "latest"]
        return self.bench.command(*self.argv(self.bench, place / "M"), *steps, **more)

    def seen(self, place: Path):
        return place / "M"

    def difference(self, place: Path, whole) -> str | None:
        ours = place / "M"
        apart = weights_differ(ours, whole)
        return apart or left_behind(names_below(ours.parent), names_below(whole.parent))


# --- a checkpoint over another


class SavingOver(Scene):
    """A checkpoint that takes the place of another one."""

    def __init__(self, bench: Bench, name: str, old: str, start: Callable):
        super().__init__(bench)
        self.name, self.old, self.starts = name, old, start

    def prepare(self) -> Path:
        place = self.bench.place()
        shutil.copytree(getattr(self.bench, self.old), place / "M")
        return place

    def start(self, place: Path, **more):
        return self.starts(self.bench, place / "M", more)

    def seen(self, place: Path):
        return self.bench.scores(place / "M"), names_below(place)

    def after_kill(self, place: Path) -> Ending | None:
        found, old = self.bench.scores(place / "M"), self.bench.scores(getattr(self.bench, self.old))
        if any(same_scores(found, one) for one in (old, self.whole.result[0])):
            return None
        if "scores" in found:
            return "wrong", "a mix: scores of neither the old nor the new checkpoint"
        names = ["M", *(path.name for path in (place / "M").glob("*"))]
        return outcomes.judged(found["kinds"], found["text"], [name for name in names if name])

    def difference(self, place: Path, whole) -> str | None:
        found, names = self.seen(place)
        if not same_scores(found, whole[0]):
            return f"other scores: {str(found)[:200]}"
        return left_behind(names, whole[1])


def train_over(kind: str) -> Callable:
    return lambda bench, target, more: bench.command(
        *bench.finetune(kind, bench.other_data, target, "--overwrite_output_dir"), **more
    )


def save_over(source: str) -> Callable:
    return lambda bench, target, more: bench.call("save_over", getattr(bench, source), target, **more)


# --- datasets, outputs, caches


class Preparing(Scene):
    """A dataset folder that takes the place of another one."""

    name = "prepare over another dataset folder"

    def prepare(self) -> Path:
        place = self.bench.place()
        shutil.copytree(self._old, place / "D")
        return place

    @property
    def _old(self) -> Path:
        if not hasattr(self.bench, "prepared"):
            self.bench.prepared = self.bench.place() / "D"
            self.bench.run(*self.bench.prepare(self.bench.prepared))
        return self.bench.prepared

    def start(self, place: Path, **more):
        return self.bench.command(*self.bench.prepare(place / "D", "--overwrite_output_dir", seed=2), **more)

    def seen(self, place: Path):
        return content(place)

    def after_kill(self, place: Path) -> Ending | None:
        found = content(place / "D")
        new = {name.removeprefix("D/"): digest for name, digest in self.whole.result.items()}
        if found in (content(self._old), new):
            return None
        return "wrong", "neither the old nor the new dataset is there" if found is None else "a mix of two datasets"

    def difference(self, place: Path, whole) -> str | None:
        found = self.seen(place)
        return left_behind(set(found), set(whole)) or (None if found == whole else _apart(found, whole))


class PreparingAnew(Preparing):
    """A dataset folder where there was none."""

    name = "prepare"

    def prepare(self) -> Path:
        return self.bench.place()

    def start(self, place: Path, **more):
        return self.bench.command(*self.bench.prepare(place / "D", seed=2), **more)

    def after_kill(self, place: Path) -> Ending | None:
        return None if content(place / "D") is None else super().after_kill(place)

    def next_run(self, place: Path, whole: Whole, refused: str) -> Ending:
        if (place / "D").exists():  # it was done before it was killed
            shutil.rmtree(place / "D")
        return super().next_run(place, whole, refused)


class Predicting(Scene):
    """An output file that takes the place of another one."""

    def __init__(self, bench: Bench, suffix: str):
        super().__init__(bench)
        self.name, self.file = f"predict over another {suffix}", f"scores{suffix}"

    def prepare(self) -> Path:
        place = self.bench.place()
        (place / self.file).write_bytes(b"old")
        return place

    def start(self, place: Path, **more):
        argv = self.bench.predict(self.bench.id_model, place / self.file, "--overwrite_output")
        return self.bench.command(*argv, **more)

    def seen(self, place: Path):
        return {path.name: path.read_bytes() for path in place.iterdir()}

    def after_kill(self, place: Path) -> Ending | None:
        found = self.seen(place).get(self.file)
        if found in (b"old", self.whole.result[self.file]):
            return None
        return "wrong", "no output" if found is None else f"an output of {len(found)} bytes, neither old nor new"

    def difference(self, place: Path, whole) -> str | None:
        found = self.seen(place)
        return left_behind(set(found), set(whole)) or (None if found == whole else _apart(found, whole))


class Caching(Scene):
    """The encoded rows of a dataset."""

    name = "encoding the rows"

    def prepare(self) -> Path:
        place = self.bench.place()
        shutil.copytree(self.bench.data, place / "D", ignore=shutil.ignore_patterns(".cache"))
        return place

    def start(self, place: Path, **more):
        return self.bench.command(
            *self.bench.finetune("joint", place / "D", place / "M", "--overwrite_output_dir"), **more
        )

    def below(self, place: Path) -> list[Path]:
        return [place / "D"]

    def seen(self, place: Path):
        caches = {
            str(path.relative_to(place))
            for path in (place / "D" / ".cache").rglob("*")
            if path.parent.name == "encoded"
        }
        return place / "M", len(caches), len(list((place / "D" / ".cache").rglob("*")))

    def difference(self, place: Path, whole) -> str | None:
        ours = self.seen(place)
        apart = weights_differ(ours[0], whole[0])
        return apart or (None if ours[1:] == whole[1:] else f"left behind: {ours[2] - whole[2]} files in the cache")


def scenes(bench: Bench) -> list[Scene]:
    long = ("--num_train_epochs", 2, "--eval_steps", 2)
    return [
        Training(bench, "finetune, ID alone", lambda b, out: b.finetune("id", b.data, out, *long)),
        Training(bench, "finetune, joint", lambda b, out: b.finetune("joint", b.data, out, *long)),
        SavingOver(bench, "finetune over another checkpoint", "joint_model", train_over("joint")),
        Preparing(bench),
        SavingOver(bench, "save_pretrained over another", "id_model", save_over("other_id_model")),
        Predicting(bench, ".csv"),
        Training(bench, "pretrain", lambda b, out: b.pretrain(b.data, out, *long)),
        SavingOver(bench, "an ID-only model over a joint one", "joint_model", train_over("id")),
        Caching(bench),
        Training(bench, "finetune, LoRA", lambda b, out: b.finetune("lora", b.data, out, *long)),
        PreparingAnew(bench),
        Predicting(bench, ".parquet"),
        SavingOver(bench, "an adapter over a model", "joint_model", train_over("lora")),
        SavingOver(
            bench, "save_pretrained of a joint model over another", "joint_model", save_over("other_joint_model")
        ),
    ]


def attack(count: int, seed: int, only: str | None = None, place: Bench | None = None) -> list[Tally]:
    """So many kills from a seed on, of each kind in turn.

    Args:
        only: the name of a kind, or a part of names.
        place: where; a new one when not given.
    """
    tally = Tally("kills")
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        kinds = scenes(place or Bench(Path(folder)))
        kinds = [one for one in kinds if one.name == only] or [one for one in kinds if only is None or only in one.name]
        for number in range(seed, seed + count):
            scene = kinds[number % len(kinds)]
            when, (outcome, detail) = scene.attack(random.Random(f"{scene.name} {number}"))
            detail = detail.replace(folder, "…")
            ended = Ended(outcome, f"{scene.name}, killed {when}", detail, again("kills", scene.name, number))
            tally.ends.append(outcomes.unless_known(ended, KNOWN))
    return [tally]
