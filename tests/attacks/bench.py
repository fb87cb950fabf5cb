"""What runs are killed on and against each other: small datasets, checkpoints and tables, and commands in processes of
their own."""

import json
import time
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import outcomes
import pyarrow.parquet as pq
import raw_table
import tiny
import victims
import warm_python
from attack_checkpoints import TOLERANCE, Loader
from safetensors.torch import load_file

SCRIPT = """
import multiprocessing, sys, moments
multiprocessing.set_start_method("fork", force=True)  # loader workers need not import all again
sys.exit(moments.run(sys.argv[1]))
"""
MODULES = [*warm_python.MODULES, "transformers.pipelines", "loading_routes", "moments", "flip_ctr.train.prepare"]
PATIENCE = 120  # seconds
PRECIOUS = "precious.txt"  # of somebody else


class Command:
    """A command, or a function of `moments`, that runs.

    Args:
        said: file for what it prints.
        argv: of `flip-ctr`.
        more: see [`moments.run`].
    """

    def __init__(self, said: Path, argv: list | None = None, environment: dict | None = None, **more):
        self.said, self.argv, self.begun = said, [str(one) for one in argv or []], time.monotonic()
        said.unlink(missing_ok=True)
        task = json.dumps({"argv": self.argv} | more)
        self.process = warm_python.Process(["-c", SCRIPT, task], said, environment=outcomes.PATHS | (environment or {}))

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, seconds: float = PATIENCE) -> int | None:
        """The exit code; negative for a signal, None where there is no end in time."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def text(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace")

    @property
    def last_line(self) -> str:
        return next((line for line in reversed(self.text.strip().splitlines())), "")


class Bench:
    """All below one folder; each thing is made when it is asked for."""

    def __init__(self, folder: Path):
        self.folder, self._number = folder, 0
        self.loader = Loader(self.place())

    def place(self) -> Path:
        """A new empty folder."""
        self._number += 1
        path = self.folder / f"p{self._number}"
        path.mkdir(parents=True)
        return path

    def command(self, *argv, **more) -> Command:
        self._number += 1
        return Command(self.folder / f"said-{self._number}.txt", list(argv), **more)

    def call(self, name: str, *arguments, **more) -> Command:
        return self.command(
            call=name, arguments=[str(one) if isinstance(one, Path) else one for one in arguments], **more
        )

    def run(self, *argv, **more) -> Command:
        """A command that must succeed."""
        done = self.command(*argv, **more)
        assert done.end() == 0, f"{argv}: exit code {done.process.exitcode}: {done.text[-2000:]}"
        return done

    # --- what there is

    @cached_property
    def plm(self) -> Path:
        return tiny.save_bert(self.place() / "plm", tiny.wordpiece())

    @cached_property
    def data(self) -> Path:
        return tiny.write_dataset(self.place() / "D", tiny.toy_rows(48), tiny.FIELDS)

    @cached_property
    def other_data(self) -> Path:
        """Of the same sizes, and other values."""
        return tiny.write_dataset(self.place() / "D", victims.others(tiny.toy_rows(48)), tiny.FIELDS)

    @cached_property
    def rows(self) -> Path:
        """Rows to score, of both datasets."""
        path = self.place() / "rows.json"
        rows = tiny.toy_rows()
        path.write_text(json.dumps(victims.unknown(rows) + victims.unknown(victims.others(rows))))
        return path

    @cached_property
    def lines(self) -> Path:
        """The same as JSON lines."""
        path = self.place() / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in json.loads(self.rows.read_text())))
        return path

    @cached_property
    def raw(self) -> Path:
        """The schema of a table."""
        place = self.place()
        raw_table.write_csv(place / "clicks.csv", raw_table.event_rows())
        return raw_table.write_schema(place)

    @cached_property
    def id_model(self) -> Path:
        return self.trained("id", self.data)

    @cached_property
    def other_id_model(self) -> Path:
        return self.trained("id", self.other_data)

    @cached_property
    def joint_model(self) -> Path:
        return self.trained("joint", self.data)

    @cached_property
    def other_joint_model(self) -> Path:
        return self.trained("joint", self.other_data)

    def trained(self, kind: str, data: Path) -> Path:
        target = self.place() / "M"
        self.run(*self.finetune(kind, data, target))
        return target

    # --- commands

    def finetune(self, kind: str, data: Path, output: Path, *more) -> list:
        """`kind`: `id`, `joint`, or `lora`, which gives an adapter."""
        small = {"id_embedding_size": 4, "id_hidden_dims": 8, "per_device_train_batch_size": 16, "num_train_epochs": 1}
        options = [word for name, value in small.items() for word in (f"--{name}", value)]
        strategy = "id" if kind == "id" else "joint"
        options += ["--strategy", strategy, "--learning_rate", 0.02, "--logging_steps", 1]
        options += [] if kind == "id" else ["--model_name_or_path", self.plm]
        options += ["--use_lora", "--lora_adapter_only"] if kind == "lora" else []
        return ["finetune", "--dataset_dir", data, "--output_dir", output, *options, *more]

    def pretrain(self, data: Path, output: Path, *more) -> list:
        options = ["--model_name_or_path", self.plm, "--projection_dim", 8, "--id_embedding_size", 4]
        options += ["--id_hidden_dims", 8, "--per_device_train_batch_size", 16, "--num_train_epochs", 1]
        return ["pretrain", "--dataset_dir", data, "--output_dir", output, *options, *more]

    def prepare(self, output: Path, *more, seed: int = 1) -> list:
        options = ["--dataset", "table", "--schema", self.raw, "--output_dir", output, "--split_seed", seed]
        return ["prepare", *options, *more]

    def predict(self, model: Path, output: Path, *more) -> list:
        return ["predict", "--model_name_or_path", model, "--input", self.lines, "--output", output, *more]

    # --- what became of it

    def scores(self, folder: Path) -> dict:
        """What loading a checkpoint gives, see [`loading_routes.attempt`]."""
        base = self.plm if (folder / "adapter_config.json").exists() else None
        found = self.loader.load(folder, victims.Victim("", folder, folder, self.rows, base), False)
        return found["AutoModel" if base is None else "load_adapter"]


def same_scores(one: dict, other: dict) -> bool:
    if "scores" not in one or "scores" not in other:
        return False
    pairs = list(zip(one["scores"], other["scores"], strict=True))
    return all(abs(first - second) <= TOLERANCE for first, second in pairs)


def weights_differ(one: Path, other: Path) -> str | None:
    """What is not bit for bit the same in the results of two runs."""
    import torch

    for file in ("model.safetensors", "adapter_model.safetensors"):
        there = [(folder / file).exists() for folder in (one, other)]
        if there[0] != there[1]:
            return f"one run has {file}, the other one has not"
        if there[0]:
            first, second = load_file(one / file), load_file(other / file)
            apart = [name for name in first.keys() | second.keys() if not torch.equal(first[name], second[name])]
            if apart:
                return f"{len(apart)} tensors differ: {sorted(apart)[:3]}"
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (one, other)]
    for values in results:
        values.pop("train_seconds", None)
    return None if results[0] == results[1] else "all_results.json differs"


def names_below(folder: Path) -> set[str]:
    """All files and folders, without the caches of datasets."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".cache" not in path.parts}


def content(folder: Path) -> dict[str, str] | None:
    """A dataset folder's files and their digests; None where there is none. Of Parquet the rows count."""
    if not folder.exists():
        return None
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".cache" not in path.parts and path.name != PRECIOUS:
            data = path.read_bytes()
            if path.suffix == ".parquet" and path.parent.name == "data":
                data = repr(pq.read_table(path).to_pylist()).encode()
            found[str(path.relative_to(folder))] = sha256(data).hexdigest()[:16]
    return found
