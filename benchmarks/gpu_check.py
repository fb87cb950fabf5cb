# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What can be checked on a GPU only, in one run of at most ten minutes: `benchmarks/gpu_check.sh` starts it.

    benchmarks/gpu_check.sh --output_dir runs/gpu_check
    benchmarks/gpu_check.sh --output_dir runs/cpu_check --device cpu --small    # the same on a CPU, in minutes

It needs the checkout and an environment that can import it; nothing is fetched. The data is the catalogue of the demo,
the PLM a BERT of base size with random weights. Each part runs in a process of its own that ends at its time limit;
what fails or cannot run here is named, and the other parts go on. `gpu_check.json` and `gpu_check.md` in the output
folder say what came out.
"""

import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from flip_ctr.benchmarks.children import CHILD, answer
from flip_ctr.benchmarks.recipe_step import RecipeStep
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.prepare.markdown import code, markdown_table, plain
from flip_ctr.data.readers.dataset_schema import SPLITS
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.heads_flip import RowDropout
from flip_ctr.serve.ranker import FlipRanker
from flip_ctr.train import finetune, pretrain
from flip_ctr.train.arguments import FinetuneArguments, PretrainArguments, TrainingOptions
from flip_ctr.train.loop.prompt_states import merge_prompts
from flip_ctr.train.loop.training_loop import grouped
from flip_ctr.train.models.build import new_click_model, new_processor
from flip_ctr.train.options import Options, option
from flip_ctr.train.parser import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("torch", "transformers", "accelerate", "peft", "numpy", "triton", "flash-attn", "ibis-framework", "duckdb")
NEEDED = 20  # seconds: less does not even import what a part needs
TO_MAKE_DATA = ("ibis", "duckdb")
MS = 1000.0
TOLERANCE = 1e-3  # of two devices, or of two runs: a few steps move a weight by more


class Skipped(Exception):
    """Something that cannot be measured here; says why."""


@dataclass(kw_only=True)
class CheckArguments(Options):
    output_dir: str = option("runs/gpu_check", "folder for the report and what the parts write", path=True)
    inputs_dir: str | None = option(
        None,
        "folder of the data: made where it is not there, which needs ibis and duckdb; OUTPUT_DIR/inputs",
        path=True,
    )
    device: str = option("cuda", "where to run", choices=("cuda", "cpu"))
    small: bool = option(False, "a tiny PLM and few steps: whether it runs, not how fast")
    minutes: float = option(10.0, "the whole run ends after so many minutes", above=0)
    parts: list[str] | None = option(None, "the parts to run, in this order; all when not given")


@dataclass(frozen=True)
class Sizes:
    """Of the PLM, a step and what is timed; `--small` has the second ones."""

    plm: dict
    users: int = 300
    items: int = 2000
    rows: int = 20_000
    batch: int = 256
    seconds: float = 3.0  # that a step is timed for
    steps: int = 50  # that are timed at most
    resume_steps: int = 6
    requests: int = 50
    candidates: int = 1000


BASE = Sizes({"vocab_size": 30_522, "max_position_embeddings": 512})  # all else are BertConfig's own numbers
SMALL = Sizes(
    {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 600},
    users=40,
    items=60,
    rows=600,
    batch=16,
    seconds=0.3,
    steps=3,
    resume_steps=2,
    requests=5,
    candidates=50,
)


@dataclass(frozen=True)
class Place:
    """Where a part runs, and on what."""

    device: str
    small: bool
    inputs: str
    folder: str

    @property
    def sizes(self) -> Sizes:
        return SMALL if self.small else BASE

    @property
    def plm(self) -> str:
        return str(Path(self.inputs, "plm-small" if self.small else "plm"))

    def data(self, history: bool = False) -> str:
        return str(Path(self.inputs, f"data{'-small' * self.small}{'-history' * history}"))

    def needs_cuda(self) -> None:
        if self.device != "cuda":
            raise Skipped("no CUDA")


# --- data and PLM


def make_inputs(place: Place) -> None:
    """The dataset folders, a tokenizer, and a BERT with random weights for it, what is not there already.

    Raises:
        Skipped: there is no data, and what makes it is not installed.
    """
    sizes, tokenizer = place.sizes, Path(place.inputs, "tokenizer")
    if not all(Path(folder).exists() for folder in (place.data(), place.data(True), tokenizer)):
        missing = [name for name in TO_MAKE_DATA if importlib.util.find_spec(name) is None]
        if missing:
            raise Skipped(
                f"{' and '.join(missing)} not installed, which make the data; bring a folder that another machine has "
                "made (--inputs_dir)"
            )
        from flip_ctr.data.datasets.synthetic import (
            CatalogueSettings,
            generate_catalogue,
            generate_texts,
            make_tokenizer,
            write_catalogue,
        )

        settings = CatalogueSettings(sizes.users, sizes.items, sizes.rows)
        clicks = generate_catalogue(settings)
        for history in (None, 10):
            if not Path(place.data(history is not None)).exists():
                write_catalogue(place.data(history is not None), clicks, "random", settings, 0, history=history)
        make_tokenizer(generate_texts(), BASE.plm["max_position_embeddings"]).save_pretrained(tokenizer)
    if not Path(place.plm).exists():
        torch.manual_seed(0)
        BertForMaskedLM(BertConfig(**sizes.plm)).save_pretrained(place.plm)
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(place.plm)


# --- one training step, as the recipes make it

# name -> the recipe's arguments; all but the ID tower alone read the PLM
RECIPES: dict[str, dict] = {
    "pretrain, row prompts": {"prompts": "row"},
    "pretrain, entity prompts, K=1": {"prompts": "entity", "plm_every": 1},
    "pretrain, entity prompts, K=8": {"prompts": "entity", "plm_every": 8},
    "finetune id": {"strategy": "id"},
    "finetune plm, row prompts": {"strategy": "plm", "prompts": "row"},
    "finetune plm, entity prompts, K=1": {"strategy": "plm", "prompts": "entity", "plm_every": 1},
    "finetune plm, entity prompts, K=8": {"strategy": "plm", "prompts": "entity", "plm_every": 8},
    "finetune joint, row prompts": {"strategy": "joint", "prompts": "row"},
    "finetune joint, entity prompts, K=1": {"strategy": "joint", "prompts": "entity", "plm_every": 1},
    "finetune joint, entity prompts, K=8": {"strategy": "joint", "prompts": "entity", "plm_every": 8},
    "finetune joint, histories, K=8": {"strategy": "joint", "prompts": "entity", "plm_every": 8, "history": True},
}
OF_FINETUNING = {"strategy": "joint", "prompts": "row"}
SWITCHES: dict[str, dict] = {
    "float32": {"mixed_precision": "no"},
    "bf16": {},
    "fp16": {"mixed_precision": "fp16"},
    "eager": {"attn_implementation": "eager"},
    "sdpa": {"attn_implementation": "sdpa"},
    "flash_attention_2": {"attn_implementation": "flash_attention_2"},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "lazy_adam": {"embedding_optimizer": "lazy_adam"},
}
RESUMED: dict[str, dict] = {
    "finetune joint, row prompts, float32": OF_FINETUNING | {"mixed_precision": "no"},
    "finetune joint, row prompts, bf16": OF_FINETUNING | {"mixed_precision": "bf16"},
    "finetune joint, row prompts, fp16": OF_FINETUNING | {"mixed_precision": "fp16"},
    "pretrain, row prompts, fp16": {"mixed_precision": "fp16"},
    "pretrain, entity prompts, K=2, bf16": {"prompts": "entity", "plm_every": 2, "mixed_precision": "bf16"},
}
COMPILED: dict[str, dict] = {
    "finetune joint, row prompts": OF_FINETUNING,
    "pretrain, entity prompts, K=8": RECIPES["pretrain, entity prompts, K=8"],
}


def recipe_arguments(place: Place, output_dir: str = "", history: bool = False, **options) -> TrainingOptions:
    """Arguments of `pretrain`, or with a `strategy` of `finetune`, on the check's data."""
    strategy = options.pop("strategy", None)
    plm = None if strategy == "id" else place.plm
    options = {"per_device_train_batch_size": place.sizes.batch, "id_tower": "dcnv2"} | options
    options |= {"dataset_dir": place.data(history), "model_name_or_path": plm, "output_dir": output_dir}
    return PretrainArguments(**options) if strategy is None else FinetuneArguments(strategy=strategy, **options)


class Step(RecipeStep):
    """A recipe's training step, with all that makes its batches."""

    def __init__(self, place: Place, **options):
        self.place, args = place, recipe_arguments(place, **options)
        self.every = args.plm_every
        super().__init__(args)

    def groups(self) -> Iterator[list[dict]]:
        for epoch in range(1_000_000):
            self.loader.set_epoch(epoch)
            yield from grouped(self.loader, 1)

    def measure(self) -> dict:
        """Rows a second, peak memory, and at how many places of the code a step waits for the GPU."""
        sizes, cuda = self.place.sizes, self.place.device == "cuda"
        windows, seconds, rows, losses = self.step.windows(self.groups(), 10**9), 0.0, 0, []

        def window() -> int:
            taken = 0
            for _ in range(self.every):
                group = next(windows)
                taken += len(group[0]["feature_ids"])
                self.model.train()
                losses.append(self.step.backward(group)[0]["loss"])
                self.step.update()
            return taken

        window(), window()  # kernels are chosen and compiled, states of the optimizer made
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started, timed = time.perf_counter(), 0
        while timed == 0 or (timed < sizes.steps and seconds < sizes.seconds):
            rows += window()
            timed += self.every
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        numbers = {"rows_per_second": rows / seconds, "ms_per_step": MS * seconds / timed}
        if cuda:
            numbers["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                window()
                torch.cuda.set_sync_debug_mode("default")
            waits = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
            numbers |= {"waits_per_step": len(waits) / self.every, "waits_at": sorted(set(waits))}
        if not all(torch.stack(losses).isfinite().tolist()):
            raise FloatingPointError("a loss is not finite")
        return numbers


def precision(place: Place) -> str:
    return "bf16" if place.device == "cuda" else "no"


# --- the parts: each gives (what, how to measure it)

Work = Iterator[tuple[str, Callable[[], dict]]]


def throughput(place: Place) -> Work:
    """Every recipe's training step."""
    for name, options in RECIPES.items():
        yield name, lambda: Step(place, mixed_precision=precision(place), **options).measure()


def switches(place: Place) -> Work:
    """Precisions, attention implementations and what saves memory, of a joint model with row prompts."""
    for name, options in SWITCHES.items():

        def one() -> dict:
            if options.get("mixed_precision") == "fp16":
                place.needs_cuda()
            if name == "flash_attention_2":
                place.needs_cuda()
                if importlib.util.find_spec("flash_attn") is None:
                    raise Skipped("flash_attn not installed")
            return Step(place, **{"mixed_precision": precision(place)} | OF_FINETUNING | options).measure()

        yield name, one


def compilation(place: Place) -> Work:
    """Steps with `--torch_compile`; compiling is in their `seconds`."""
    for name, options in COMPILED.items():
        settings = {"mixed_precision": precision(place), "torch_compile": True}
        yield name, lambda: Step(place, **options | settings).measure()


def resume(place: Place) -> Work:
    """Runs that go on from a step checkpoint, beside runs that were never interrupted, with deterministic kernels:
    equal bit for bit, or how far apart the weights are."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    for number, (name, options) in enumerate(RESUMED.items()):

        def one() -> dict:
            if options["mixed_precision"] == "fp16":
                place.needs_cuda()
            steps = place.sizes.resume_steps * options.get("plm_every", 1)
            common = options | {
                "max_train_steps": 2 * steps,
                "eval_steps": 2 * steps,  # the weights that are kept are the last
                "max_train_samples": 2 * steps * place.sizes.batch,
                "max_eval_samples": 256,
                "checkpointing_steps": str(steps),
            }
            recipe = finetune if "strategy" in options else pretrain
            first, second = (str(Path(place.folder, f"resume-{number}-{turn}")) for turn in ("whole", "resumed"))
            recipe.run(recipe_arguments(place, first, overwrite_output_dir=True, **common))
            step = str(Path(first, f"checkpoint-{steps}"))
            again = {"overwrite_output_dir": True, "resume_from_checkpoint": step}
            recipe.run(recipe_arguments(place, second, **again, **common))
            whole, resumed = (load_file(Path(folder, "model.safetensors")) for folder in (first, second))
            apart = max(float((whole[key].float() - resumed[key].float()).abs().max()) for key in whole)
            if not apart <= TOLERANCE:
                raise AssertionError(f"the resumed run's weights are {apart:g} from those of the whole run")
            return {"equal": all(torch.equal(whole[key], resumed[key]) for key in whole), "max_difference": apart}

        yield name, one


def equality(place: Place) -> Work:
    """One batch of tiny models on the CPU and on the GPU, in float32 without dropout: losses, gradients and scores
    agree."""

    def compared(options: dict) -> dict:
        place.needs_cuda()
        step = Step(replace(place, small=True), **options)
        model, batch = step.accelerator.unwrap_model(step.model), next(step.groups())[0]
        if step.step.by_entity:
            (batch,) = merge_prompts([batch]).batches
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(module, RowDropout):
                module.share = 0.0
        found = {}
        for device in ("cpu", "cuda"):
            model.to(device).train().zero_grad()
            on_device = {name: values.to(device) for name, values in batch.items()}
            loss = model(**on_device)["loss"]
            loss.backward()
            gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
            with torch.no_grad():
                scored = model.eval()(**on_device)
            found[device] = loss.item(), gradients, scored["logits" if "logits" in scored else "loss"].cpu()
        (loss, gradients, scores), (other_loss, others, other_scores) = found.values()
        largest = max(float(one.abs().max()) for one in gradients.values())
        numbers = {
            "loss_difference": abs(loss - other_loss),
            "gradient_difference": max(float((gradients[n] - others[n]).abs().max()) for n in gradients) / largest,
            "eval_difference": float((scores - other_scores).abs().max()),
        }
        if gradients.keys() != others.keys() or not max(numbers.values()) <= TOLERANCE:
            raise AssertionError(f"CPU and GPU differ by more than {TOLERANCE:g}: {numbers}")
        return numbers

    for name, options in RECIPES.items():
        if options.get("plm_every", 1) == 1 or "history" in options:
            yield name, lambda: compared(options)


def ranking(place: Place) -> Work:
    """Latency of a request to a ranker on the device."""
    made: dict[str, tuple] = {}
    strategies = {"id": {"strategy": "id"}, "joint, entity prompts": {"strategy": "joint", "prompts": "entity"}}
    for name, options in strategies.items():
        for dtype in (None, torch.float16) if place.device == "cuda" and "prompts" in options else (None,):

            def one() -> dict:
                if name not in made:
                    args = recipe_arguments(place, **options)
                    rows = SplitRows(args.dataset_dir, "train", None, args.seed)
                    processor = new_processor(rows, rows.schema, args, args.model_name_or_path)
                    made[name] = new_click_model(processor, args).eval(), processor
                model, processor = made[name]
                started = time.perf_counter()
                ranker = FlipRanker(model, processor, catalogue_items(place), device=place.device, dtype=dtype)
                ready = time.perf_counter() - started
                users = read_split(place.data(), "test").slice(0, place.sizes.requests + 3).to_pylist()
                keys = list(ranker.catalogue.answers)
                seconds, generator = [], np.random.default_rng(0)
                for user in users:
                    asked = generator.choice(keys, min(len(keys), place.sizes.candidates), replace=False).tolist()
                    fields = {field.name: user[field.name] for field in ranker.user_fields}
                    started = time.perf_counter()
                    ranker.rank(fields, candidates=asked)
                    seconds.append(MS * (time.perf_counter() - started))
                return {
                    "candidates": len(asked),
                    "items_read_seconds": ready,
                    "median_ms": float(np.median(seconds[3:])),
                    "p95_ms": float(np.percentile(seconds[3:], 95)),
                }

            yield f"{name}, {'float32' if dtype is None else 'float16'} states", one


def catalogue_items(place: Place):
    """The items of the check's catalogue, from the rows of all splits."""
    names = ["item_id", "title", "genre"]
    rows = pa.concat_tables([read_split(place.data(), split).select(names) for split in SPLITS])
    return list({row["item_id"]: row for row in rows.to_pylist()}.values())


def tests(place: Place) -> Work:
    """The tests with the mark `gpu`."""

    def run_tests() -> dict:
        place.needs_cuda()
        if importlib.util.find_spec("pytest") is None:
            raise Skipped("pytest not installed")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests/gpu")]
        result = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        lines = result.stdout.strip().splitlines()
        if result.returncode:
            raise AssertionError("\n".join(lines[-30:]))
        return {"pytest": lines[-1]}

    yield "pytest -m gpu", run_tests


# part -> what it does, and its seconds; what one leaves of them, those behind it may have
PARTS: dict[str, tuple[Callable[[Place], Work], int]] = {
    "tests": (tests, 90),
    "equality": (equality, 60),
    "throughput": (throughput, 130),
    "resume": (resume, 110),
    "ranking": (ranking, 40),
    "switches": (switches, 60),
    "compilation": (compilation, 100),
}


# --- running them


def child(part: str, place: dict, output: str) -> dict:
    """Measures what a part gives, and appends each outcome to a file as a line of JSON."""
    here = Place(**place)
    torch.manual_seed(0)
    for what, one in PARTS[part][0](here):
        started = time.perf_counter()
        row = {"what": what, "status": "ok"}
        try:
            row |= one()
        except Skipped as reason:
            row["status"] = f"skipped: {reason}"
        except Exception as error:
            row |= {"status": f"failed: {type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        with open(output, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"seconds": time.perf_counter() - started}) + "\n")
        if here.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return {}


def run_part(part: str, place: Place, limit: float) -> dict:
    """A part in a process of its own: `seconds`, and a row for each thing measured."""
    output, started = Path(place.folder, f"{part}.jsonl"), time.perf_counter()
    output.unlink(missing_ok=True)
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1"}
    if place.device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).resolve()), CHILD, json.dumps([part, asdict(place), str(output)])]
    ended = None
    with open(output.with_suffix(".log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            if process.wait(max(limit, 1)):
                ended = f"failed: the part's process ended with {process.returncode}; see {output.stem}.log"
        except subprocess.TimeoutExpired:
            ended = f"failed: stopped at the part's limit of {limit:.0f} seconds"
        finally:
            stop(process)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    if ended:
        rows.append({"what": "(the rest)", "status": ended})
    return {"seconds": time.perf_counter() - started, "limit": limit, "rows": rows}


def stop(process: subprocess.Popen) -> None:
    """Ends a part's process with all that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"cuda": torch.version.cuda or "none"}


def in_words(row: dict) -> str:
    """The numbers of a row."""
    if row["status"] != "ok":
        return plain(row["status"].splitlines()[0])
    units = {
        "rows_per_second": "{:,.0f} rows/s",
        "ms_per_step": "{:.1f} ms a step",
        "peak_gb": "{:.2f} GB",
        "waits_per_step": "{:g} waits a step",
        "median_ms": "median {:.2f} ms",
        "p95_ms": "95th percentile {:.2f} ms",
        "candidates": "{:,} candidates",
        "items_read_seconds": "items read in {:.1f} s",
        "max_difference": "largest difference {:g}",
        "loss_difference": "loss {:.1e}",
        "gradient_difference": "gradients {:.1e}",
        "eval_difference": "eval {:.1e}",
        "pytest": "{}",
    }
    parts = ["equal bit for bit" if row["equal"] else "not equal bit for bit"] if "equal" in row else []
    return ", ".join(parts + [form.format(row[name]) for name, form in units.items() if name in row])


def report(results: dict) -> str:
    """The results as a page of Markdown."""
    rows = [
        [part, plain(row["what"]), in_words(row), f"{row.get('seconds', 0):.0f}"]
        for part, one in results["parts"].items()
        for row in one["rows"]
    ]
    said = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"# GPU check\n\n{plain(results['device'])}{', small' * results['small']}; {said}; "
        f"{results['seconds']:.0f} s in all. {code('gpu_check.json')} has all numbers.\n\n"
        f"{markdown_table(['part', 'what', 'result', 'seconds'], rows, right=False)}\n"
    )


def run(args: CheckArguments) -> dict:
    """Runs the parts, and writes and returns their results."""
    started = time.perf_counter()
    unknown = [name for name in args.parts or () if name not in PARTS]
    if unknown:
        raise ValueError(f"--parts {unknown[0]}: there is no such part; there are {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; --device cpu --small tries the check itself")
    folder = Path(args.output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    inputs = Path(args.inputs_dir).resolve() if args.inputs_dir else folder / "inputs"
    place = Place(args.device, args.small, str(inputs), str(folder))
    results: dict = {
        "versions": versions(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "small": args.small,
        "threads": torch.get_num_threads(),
        "parts": {},
    }
    missing = None
    try:
        for size in {args.small, True}:  # `equality` is of tiny models
            make_inputs(replace(place, small=size))
    except Skipped as reason:
        missing = f"skipped: {reason}"
    parts = list(args.parts or PARTS)
    for number, part in enumerate(parts):
        left = 60 * args.minutes - (time.perf_counter() - started)
        if missing and part != "tests":  # these make their own
            outcome = {"seconds": 0.0, "rows": [{"what": part, "status": missing}]}
        elif left < NEEDED:
            outcome = {"seconds": 0.0, "rows": [{"what": part, "status": "skipped: no time is left"}]}
        else:
            later = sum(PARTS[name][1] for name in parts[number + 1 :])
            outcome = run_part(part, place, max(min(PARTS[part][1], left), left - later))
        results["parts"][part] = outcome
        for row in outcome["rows"]:
            print(f"{part}: {row['what']}: {in_words(row)}", flush=True)
        results["seconds"] = time.perf_counter() - started
        (folder / "gpu_check.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (folder / "gpu_check.md").write_text(report(results), encoding="utf-8")
    return results


def failures(results: dict) -> int:
    return sum(row["status"].startswith("failed") for part in results["parts"].values() for row in part["rows"])


if __name__ == "__main__" and not answer(child):
    sys.exit(1 if failures(run(parse_arguments(CheckArguments, description=__doc__))) else 0)
