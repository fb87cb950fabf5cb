# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Making the runs of a grid, each once, each in a child process with a log; what is finished is not made again.

    RUNS/<dataset>/<split>-<digest>/data                 the dataset folder
    RUNS/<dataset>/<split>-<digest>/<run>-s<seed>-<digest>/
        run.json         what it is, as its identity is made of
        log.txt          all that it said
        model/           the recipe's own output
        validation.npz, test.npz
        result.json      what it cost; written last: a run that has it is finished

A run's identity is its dataset's content, its recipe and options, its seed, and the identities of the runs that it
starts from. Of the options count those that are given, and defaults that depend on the case (learning rates, say); code
does not count.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers.dynamic_module_utils import get_relative_import_files

from flip_ctr.benchmarks.comparison.child import execute
from flip_ctr.benchmarks.comparison.grid import SPLIT_SEED, Dataset, Grid, RunPlan, Split, references
from flip_ctr.benchmarks.comparison.predictions import Predictions
from flip_ctr.benchmarks.comparison.recipes import MODEL, RECIPES, flags
from flip_ctr.data.datasets.synthetic import CatalogueSettings, generate_catalogue, write_catalogue
from flip_ctr.data.prepare.splits import SEED
from flip_ctr.data.readers.dataset_schema import SCHEMA_NAME
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train.options import default_of, is_private, public_name

RUN_FILE, RESULT_FILE, LOG_FILE = "run.json", "result.json", "log.txt"
CHILD = Path(__file__).with_name(
    "child.py"
)  # as a file: importing the package takes seconds, in which the parent may go
WEIGHTS = ("*.safetensors", "*.bin", "checkpoint*")  # what is large in a recipe's output, step checkpoints too
TAIL_LINES = 15  # of the log of a run that failed


class RunFailed(Exception):
    """A run that cannot be had; says which, and how its log ends."""


def digest(content: Any, size: int = 8) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=size).hexdigest()


def folder_digest(folder: Path) -> str:
    """Of the names and bytes of all files in a folder."""
    result = blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        result.update(str(path.relative_to(folder)).encode())
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                result.update(part)
    return result.hexdigest()


def keys_and_labels(folder: Path, split: str) -> pa.Table:
    """What tells the rows of a dataset folder apart."""
    rows = SplitRows(folder, split)
    names = [field.name for field in rows.schema.fields if field.key] + [rows.schema.label]
    return pa.concat_tables(part for _, part in rows.parts(names))


@dataclass(frozen=True)
class Data:
    """A dataset folder of the grid, one split of one dataset, and where the runs on it lie; `identity` tells its
    content."""

    dataset: Dataset
    split: Split
    folder: Path
    runs: Path
    identity: str

    def __str__(self) -> str:
        return f"{self.dataset.name}, {self.split.name}"


@dataclass(frozen=True)
class Finished:
    """A finished run; of a searched one the trial that validation chose, with the folders of all trials."""

    plan: RunPlan
    folder: Path
    identity: str
    inputs: tuple["Finished", ...]
    trials: tuple[Path, ...] = ()

    @property
    def costs(self) -> dict:
        return read_costs(self.folder)

    @property
    def options(self) -> dict:
        return json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))["options"]

    def predictions(self, split: str) -> Predictions:
        return Predictions.load(self.folder, split)

    def before(self) -> dict[str, "Finished"]:
        """All runs that this one starts from, by identity, theirs too."""
        found: dict[str, Finished] = {}
        for one in self.inputs:
            found |= {one.identity: one} | one.before()
        return found


class Workshop:
    """Makes dataset folders and runs in an output folder.

    Args:
        grid: what there is to make.
        folder: where all of it lies.
        peer_python: interpreter for the runs of other libraries.
        make: whether what is missing is made; if not, it counts as failed.
        jobs: how many runs are made at a time; each gets its share of the cores, unless OMP_NUM_THREADS says otherwise.
    """

    def __init__(self, grid: Grid, folder: Path, peer_python: str = sys.executable, make: bool = True, jobs: int = 1):
        self.grid, self.folder, self.peer_python, self.make = grid, folder.resolve(), peer_python, make
        self._known: dict[tuple, Finished | RunFailed] = {}
        self._digests: dict[str, str] = {}
        self.failures: list[RunFailed] = []
        self._processes: set[subprocess.Popen] = set()
        self._catalogue_lock = threading.Lock()
        self._share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else makes runs in the folder meanwhile. `ValueError` where somebody does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"--output_dir {self.folder}: another comparison is making runs there") from None
            yield

    # --- data

    def data(self, dataset: Dataset, split: Split) -> Data:
        """The dataset folder, made where it is not there. `RunFailed` where that fails."""
        if dataset.source == "dataset_dir":
            folder = Path(dataset.options).resolve()
            identity = self.content(folder)
            return Data(dataset, split, folder, self.folder / dataset.name / f"{split.name}-{identity[:8]}", identity)
        given = digest(
            [
                dataset.source,
                {name: self.of_file(value) for name, value in (dataset.options or {}).items()},
                split.options,
            ],
            4,
        )
        runs = self.folder / dataset.name / f"{split.name}-{given}"
        folder, title = runs / "data", f"{dataset.name}, {split.name}: the dataset folder"
        if not (folder / SCHEMA_NAME).exists():
            self.check_making(title)
            print(f"{title} …", flush=True)
            runs.mkdir(parents=True, exist_ok=True)
            if dataset.source == "catalogue":
                settings, seed = CatalogueSettings(**dataset.options or {}), split.options.get(SPLIT_SEED, SEED)
                with self._catalogue_lock:  # DuckDB's connection is one for all threads
                    write_catalogue(
                        folder, generate_catalogue(settings), split.options.get("split", "random"), settings, seed
                    )
            else:
                argv = [
                    "-m",
                    "flip_ctr.train.cli",
                    "prepare",
                    *flags(dataset.options | split.options | {"output_dir": folder}),
                ]
                self.child([sys.executable, *argv], runs / "prepare.log", title)
        return Data(dataset, split, folder, runs, self.content(folder))

    def other_columns(self, data: Data, options: dict, title: str) -> Data:
        """The same rows as a run asks for them. `RunFailed` where the folder cannot be made, or has other rows."""
        other = self.data(replace(data.dataset, options=data.dataset.options | options), data.split)
        for split in ("train", "validation", "test"):
            ours, theirs = (keys_and_labels(one.folder, split) for one in (data, other))
            if not ours.equals(theirs):
                raise RunFailed(f"{title}: with {options} `prepare` makes other rows of {split} than without")
        return other

    def content(self, folder: Path) -> str:
        """Of the rows and the schema, wherever they lie."""
        rows = [SplitRows(folder, split).content_digest() for split in ("train", "validation", "test")]
        return digest([*rows, json.loads((folder / SCHEMA_NAME).read_text(encoding="utf-8"))])

    # --- runs

    def produce(self, name: str, data: Data, seed: int, weights: bool = False) -> Finished:
        """The finished run of that name, made with all that it starts from where it is not there.

        Args:
            weights: whether its model is needed, and not its predictions alone.

        Raises:
            RunFailed: it, or one that it starts from, failed; now or before in this process.
        """
        key = (name, data.runs, seed)
        known = self._known.get(key)
        if isinstance(known, RunFailed):
            raise known
        if known is None or (weights and not weight_files(known.folder)):
            try:
                self._known[key] = self._produce(self.grid.runs[name], data, seed, weights)
            except RunFailed as failure:
                self._known[key] = failure
                self.failures.append(failure)
                raise
        return self._known[key]

    def _produce(self, plan: RunPlan, data: Data, seed: int, weights: bool) -> Finished:
        title = f"{data}, seed {seed}: {plan.name}"
        try:
            inputs = {name: self.produce(name, data, seed) for name in plan.inputs}
        except RunFailed as failure:
            raise RunFailed(
                f"{title}: not made, as it starts from what failed ({str(failure).splitlines()[0]})"
            ) from None
        if plan.prepare:
            data = self.other_columns(data, plan.prepare, title)
        options = plan.trials()
        identities = [self.identity(plan, one, data, seed, inputs) for one in options]
        folders = [self.run_folder(plan, data, seed, identity) for identity in identities]
        for number, folder in enumerate(folders):
            restore(folder)
            if not (folder / RESULT_FILE).exists():
                trial = f", trial {number + 1} of {len(folders)}" if plan.search else ""
                self.make_run(plan, options[number], data, seed, inputs, folder, title + trial)
        best = 0
        if plan.search:
            best = int(np.argmax([Predictions.load(folder, "validation").criterion() for folder in folders]))
        if weights and not weight_files(folders[best]):
            with replacing(folders[best]):
                self.make_run(
                    plan, options[best], data, seed, inputs, folders[best], f"{title}, whose weights were deleted"
                )
        return Finished(plan, folders[best], identities[best], tuple(inputs.values()), tuple(folders))

    def run_folder(self, plan: RunPlan, data: Data, seed: int, identity: str) -> Path:
        """Where a run lies, or is to lie; one that was made under another name is the same."""
        name = f"-s{seed + plan.seed_offset}-{identity}"
        return next(
            (path.parent for path in data.runs.glob(f"*{name}/{RESULT_FILE}")), data.runs / f"{plan.name}{name}"
        )

    def identity(self, plan: RunPlan, options: dict, data: Data, seed: int, inputs: dict[str, Finished]) -> str:
        """A digest of all that a run is known by, see above."""
        recipe = RECIPES[plan.recipe]
        args = recipe.parse(flags(fill(options, dict.fromkeys(inputs, "@")) | {"dataset_dir": "", "output_dir": ""}))
        counted = {}
        for one in dataclasses.fields(args):
            value = getattr(args, one.name)
            if is_private(one):
                continue
            if one.name in options:
                counted[one.name] = self.of_file(value)
            elif one.name != "seed" and value != default_of(one):
                counted[one.name] = value  # depends on the case
        if own := getattr(args, "custom_code", None):
            counted["custom_code"] = [custom_code_digest(one) for one in own]
        started_from = {
            name: [one.identity for key, one in inputs.items() if key in references(value)]
            for name, value in options.items()
        }
        started_from = {name: found for name, found in started_from.items() if found}
        return digest([data.identity, plan.recipe, counted | started_from, seed + plan.seed_offset])

    def of_file(self, value: Any) -> Any:
        """A value, in place of a path that is there what lies there: a folder may move, and must not change."""
        path = Path(value) if isinstance(value, str) and os.path.isabs(value) else None
        if path is None or not path.exists():
            return value
        if value not in self._digests:
            self._digests[value] = (
                folder_digest(path) if path.is_dir() else blake2b(path.read_bytes(), digest_size=16).hexdigest()
            )
        return self._digests[value]

    def make_run(
        self, plan: RunPlan, options: dict, data: Data, seed: int, inputs: dict[str, Finished], folder: Path, title: str
    ) -> None:
        """Makes a run in its folder. `RunFailed` where that fails."""
        self.check_making(title)
        recipe = RECIPES[plan.recipe]
        if recipe.of_package:  # an average needs no more than predictions
            inputs = {name: self.produce(name, data, seed, weights=True) for name in inputs}
        resumes = "checkpointing_steps" in options and (folder / MODEL).exists()
        if folder.exists() and not resumes:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        given = {"dataset_dir": str(data.folder), "output_dir": str(folder / MODEL)}
        given |= {"seed": seed + plan.seed_offset} if "seed" in recipe.options else {}
        given |= {"resume_from_checkpoint": "latest"} if resumes else {}
        filled = fill(options, {name: str(one.folder / MODEL) for name, one in inputs.items()})
        shown = {name: shown_value(value) for name, value in options.items()}
        content = {
            "run": plan.name,
            "recipe": plan.recipe,
            "options": shown,
            "seed": seed + plan.seed_offset,
            "argv": flags(given | filled),
        }
        (folder / RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(f"{title} …", flush=True)
        if recipe.quick:
            execute(folder)
        else:
            python = sys.executable if recipe.library is None else self.peer_python
            self.child([python, str(CHILD), str(folder)], folder / LOG_FILE, title)
        costs = read_costs(folder)
        said = f"{costs['train_seconds']:.0f} s"
        if recipe.predicts:
            metrics = Predictions.load(folder, "validation").metrics()
            said += f", validation AUC {metrics['auc']:.4f}, LogLoss {metrics['logloss']:.4f}"
        print(f"{title}: {said}", flush=True)

    def child(self, command: list[str], log: Path, title: str) -> None:
        """Runs a command with its output in a log. `RunFailed` with the log's last lines where it fails."""
        environment = self._share | os.environ
        with (
            open(log, "w", encoding="utf-8") as file,
            subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,  # Ctrl-C is for the comparison, which ends its runs
            ) as process,
        ):
            self._processes.add(process)
            if not self.make:  # `end` came before
                process.kill()
            code = process.wait()
            self._processes.discard(process)
        if code and not self.make:
            raise RunFailed(f"{title}: ended")
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()[-TAIL_LINES:]
            print(f"{title}: failed", flush=True)
            raise RunFailed(
                "\n".join([f"{title}: exit code {code}", f"  {log} ends with", *(f"    {line}" for line in tail)])
            )

    def end(self) -> None:
        """Ends the runs in progress, and makes no other."""
        self.make = False
        for process in list(self._processes):
            process.kill()

    def check_making(self, title: str) -> None:
        """`RunFailed` where nothing is to be made."""
        if not self.make:
            raise RunFailed(f"{title}: not finished")

    def delete_weights(self, data: Data, seed: int, kept: set[str]) -> None:
        """Deletes the weights of all runs on that data but those of the names to keep; what they predicted and cost
        stays. Of a searched run only the trial that was chosen is kept."""
        for (name, runs, of_seed), run in list(self._known.items()):
            if runs == data.runs and of_seed == seed and isinstance(run, Finished):
                for trial in run.trials if name not in kept else [trial for trial in run.trials if trial != run.folder]:
                    for path in weight_files(trial):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()


def former(folder: Path) -> Path:
    """Where a finished run lies while it is made anew."""
    return folder.with_name(f"{folder.name}.former")


def restore(folder: Path) -> None:
    """Puts a finished run back where making it anew has come to nothing."""
    if former(folder).exists() and not (folder / RESULT_FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        former(folder).rename(folder)


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """A finished run is made anew; where that fails, it is as it was."""
    folder.rename(former(folder))
    try:
        yield
    except BaseException:
        restore(folder)
        raise
    shutil.rmtree(former(folder))


def shown_value(value: Any) -> Any:
    """An option as results may have it: no folder of this machine."""
    return (
        public_name(value)
        if isinstance(value, str)
        else [shown_value(one) for one in value]
        if isinstance(value, list)
        else value
    )


def custom_code_digest(name: str) -> str:
    """Of a file of the user's own code, with the files beside it that it imports."""
    return digest([Path(path).read_text(encoding="utf-8") for path in sorted([name, *get_relative_import_files(name)])])


def read_costs(folder: Path) -> dict:
    """What a finished run cost, see `recipes`."""
    return json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))


def weight_files(folder: Path) -> list[Path]:
    return [path for pattern in WEIGHTS for path in (folder / MODEL).glob(pattern)]


def fill(options: dict, folders: dict[str, str]) -> dict:
    """Options with the folders of the runs that they refer to."""

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return folders[value[1:]] if isinstance(value, str) and value.startswith("@") else value

    return {name: filled(value) for name, value in options.items()}
