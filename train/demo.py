# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Demo: the whole pipeline, offline on a generated catalogue with a small BERT made on the spot, or on real data.

    flip-ctr demo --output_dir runs/demo
    flip-ctr demo --dataset ml-100k --data_dir ml-100k.zip --model_name_or_path PLM --output_dir runs/ml-100k

It prepares a random and a cold-item split. On each it runs `flip-ctr train`, and trains what FLIP is compared with. The
same as `make demo`.
"""

import contextlib
import copy
import json
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModel, AutoProcessor

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.datasets.public_datasets import PUBLIC_DATASETS
from flip_ctr.data.datasets.synthetic import (
    DATASET,
    THEMES,
    CatalogueSettings,
    TinyPlmSettings,
    generate_catalogue,
    generate_texts,
    make_tiny_plm,
    write_catalogue,
)
from flip_ctr.data.outputs import LOCK, OWNER, claimed
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.fields_flip import UNK_ID
from flip_ctr.train import finetune, prepare
from flip_ctr.train.arguments import DemoArguments, FinetuneArguments
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.outputs.plots import COMPARISON_FILE, CURVES_FILE, plot_comparison
from flip_ctr.train.outputs.run_log import set_up_logging
from flip_ctr.train.stages import STAGES
from flip_ctr.train.train_model import train_model

SPLITS = {"random": "random split", "cold_items": "cold items"}
RESAMPLES = 200
# the generated catalogue's two splits run side by side, a process each: models so small cannot use threads
PARALLEL = True
MARKER = "demo.json"  # lies in every folder that a demo wrote; only such a folder is ever replaced
OWN_ENTRIES = {
    MARKER,
    "plm",
    "data",
    "models",
    "logs",
    "results.json",
    "results.md",
    COMPARISON_FILE,
    "curves_pretraining.png",
    "curves_finetuning.png",
}


@dataclass(frozen=True)
class Method:
    """A row of the table: a stage of `flip-ctr train`, or a strategy that is fine-tuned around the PLM without
    pretraining; and whether it reads histories."""

    name: str
    folder: str
    strategy: str | None = None
    histories: bool = False

    def data(self, folder: Path, split: str) -> Path:
        """The dataset folder in the demo's folder that it learns from."""
        return folder / "data" / (f"{split}_histories" if self.histories else split)

    @property
    def stage(self) -> str | None:
        return None if self.strategy else Path(self.folder).name

    @property
    def group(self) -> str:
        """Its group in the picture, see `plots.GROUPS`."""
        if self.stage is not None:
            return next(stage.group for stage in STAGES if stage.name == self.stage)
        return {"plm": "PLM-only", "joint": "ID+PLM"}[self.strategy]


HISTORY_LENGTH = 20
BY_ENTITY = {"prompts": "entity", "plm_every": 4}  # whose text side reads histories
METHODS = (
    Method("ID-only", "flip/stages/id_only"),
    Method("PLM-only", "plm_only", "plm"),
    Method("PLM-only with histories", "plm_only_histories", "plm", histories=True),
    Method("joint, not pretrained", "joint_unaligned", "joint"),
    Method("FLIP_ID", "flip/stages/id"),
    Method("FLIP_PLM", "flip/stages/plm"),
    Method("FLIP, tuned together", "flip/stages/joint"),
    Method("FLIP, tuned apart, fused", "flip/stages/fused"),
)

# Settings of the stages, and of the strategies without pretraining. Those of the generated catalogue were chosen on its
# validation splits.
GENERATED: dict[str, dict] = {
    "all": {
        "id_hidden_dims": [64, 64],
        "id_embedding_size": 16,
        "text_pooling": "mean",
        "unk_rate": 0.1,
        "per_device_train_batch_size": 128,
        "logging_steps": 25,
        "weight_decay": 0.01,
        "learning_rate": 2e-3,
    },
    "id_only": {"num_train_epochs": 4},
    "map": {"num_train_epochs": 3},
    "align": {
        "num_train_epochs": 2,
        "plm_learning_rate": 2e-3,
        "id_learning_rate": 2e-3,
        "projection_dim": 64,
        "prompts": "row",
    },
    "id": {"num_train_epochs": 4},
    "plm": {"num_train_epochs": 3, "plm_learning_rate": 3e-3, "prompts": "row"},
    "joint": {
        "num_train_epochs": 3,
        "plm_learning_rate": 3e-3,
        "id_learning_rate": 2e-3,
        "prompts": "row",
        "fusion": "gate",
    },
    "fused": {"fusion": "gate"},
}
REAL: dict[str, dict] = {"all": {"unk_rate": 0.05}, "plm": {}, "joint": {"fusion": "gate"}}


def run(
    args: DemoArguments, catalogue: CatalogueSettings = CatalogueSettings(), plm: TinyPlmSettings = TinyPlmSettings()
) -> dict:
    """Runs everything and returns what `results.json` holds.

    Raises:
        FileExistsError: the output folder is taken.
        ValueError: an argument, the raw data or the PLM does not fit.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output_dir {folder} is a file; name a folder.")
    with claimed(folder, folder / LOCK):
        return _run(args, folder, catalogue, plm)


def _run(args: DemoArguments, folder: Path, catalogue: CatalogueSettings, plm: TinyPlmSettings) -> dict:
    # 1. The output folder
    started = time.perf_counter()
    empty_output_dir(args, folder)
    set_up_logging(make_accelerator(args.mixed_precision))
    with one_thread(args.dataset == DATASET):
        # 2. Data, with both splits, and the PLM
        plm_path = prepare_data(args, folder, catalogue, plm)

        # 3. On each split: the stages of `flip-ctr train`, and what they are compared with
        if PARALLEL and args.dataset == DATASET and not torch.cuda.is_available():
            with ProcessPoolExecutor(len(SPLITS), mp_context=get_context("spawn")) as pool:
                futures = {split: pool.submit(train_methods, args, folder, split, plm_path) for split in SPLITS}
                measured = {split: future.result() for split, future in futures.items()}
        else:
            measured = {split: train_methods(args, folder, split, plm_path) for split in SPLITS}

        # 4. One table, and the pictures
        results = compare(folder, measured, args)
        text = f"{table(results)}\n\n{caption(results)}\n"
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (folder / "results.md").write_text(text, encoding="utf-8")
        pictures = draw(folder, results)

        # 5. What was kept on the cold-item split, loaded as any user of transformers would
        checkpoint = folder / "models" / "cold_items" / "flip"
        print(f"\n{text}\nAutoModel.from_pretrained({str(checkpoint)!r}) scores one user's rows:\n")
        print(score_rows(checkpoint, sample_rows(folder, args.dataset), args.dataset) + "\n")
    for title, path in {
        "pictures": ", ".join(map(str, pictures)),
        "results": folder / "results.json",
        "models": folder / "models",
        "logs": folder / "logs",
    }.items():
        print(f"{title:<10}  {path}")
    print(f"{time.perf_counter() - started:.0f} seconds")
    return results


# --- steps


def empty_output_dir(args: DemoArguments, folder: Path) -> None:
    """Leaves an empty output folder with the marker of a demo in it; a former demo's folder is emptied where that was
    asked for.

    Raises:
        FileExistsError: the folder holds files and is not to be overwritten, is no former demo's, or holds other files
            too.
    """
    entries = {path.name for path in folder.iterdir()} - {LOCK, OWNER}
    if entries:
        if not args.overwrite_output_dir:
            raise FileExistsError(
                f"--output_dir {folder} is not empty; name another folder, or replace it with --overwrite_output_dir."
            )
        if MARKER not in entries:
            raise FileExistsError(
                f"--output_dir {folder} was not written by a demo (it has no {MARKER}), so --overwrite_output_dir does "
                "not replace it; name another folder."
            )
        if entries - OWN_ENTRIES:
            raise FileExistsError(
                f"--output_dir {folder} also holds {', '.join(sorted(entries - OWN_ENTRIES)[:5])}, which are no "
                "demo's; move them away, or name another folder."
            )
        for name in entries - {MARKER}:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / MARKER).write_text(json.dumps(asdict(args), indent=2) + "\n", encoding="utf-8")


def prepare_data(args: DemoArguments, folder: Path, catalogue: CatalogueSettings, plm: TinyPlmSettings) -> str:
    """Writes `data/random` and `data/cold_items`, the same rows in both, each once more with histories, and returns the
    PLM's name or path."""
    folders = {
        one.data(folder, split): (split, HISTORY_LENGTH if one.histories else None)
        for split in SPLITS
        for one in METHODS
    }
    if args.dataset != DATASET:
        for output_dir, (split, history) in folders.items():
            step(f"preparing {args.dataset}, {SPLITS[split]}{', with histories' if history else ''}")
            given = {"split": split, "split_seed": args.seed, "history": history}
            prepare.run(prepare.PrepareArguments(args.dataset, str(output_dir), args.data_dir, **given))
        return args.model_name_or_path
    step(f"generating a catalogue: {catalogue.users:,} users, {catalogue.items:,} items, {catalogue.rows:,} rows")
    clicks = generate_catalogue(catalogue, args.seed)
    for output_dir, (split, history) in folders.items():
        write_catalogue(output_dir, clicks, split, catalogue, args.seed, history=history)
    if args.model_name_or_path is not None:
        return args.model_name_or_path
    step(f"training a small BERT and its tokenizer on generated text: {plm.steps} steps")
    return str(make_tiny_plm(folder / "plm", generate_texts(seed=args.seed), args.seed, plm))


def train_methods(args: DemoArguments, folder: Path, split: str, plm_path: str) -> dict:
    """Trains all methods on one split, with the recipes' own output in `logs`; returns the results of the `methods` by
    name, and which of them `flip-ctr train` has `kept`."""
    stages, models = copy.deepcopy(GENERATED if args.dataset == DATASET else REAL), folder / "models" / split
    (folder / "logs").mkdir(exist_ok=True)

    shared = {
        "seed": args.seed,
        "max_train_samples": args.max_train_samples,
        "mixed_precision": args.mixed_precision,
    }
    for stage in STAGES:
        epochs = args.num_train_epochs if stage.predicts else args.num_pretrain_epochs
        if epochs and stage.share:
            stages.setdefault(stage.name, {})["num_train_epochs"] = epochs
    with one_thread(args.dataset == DATASET), open(folder / "logs" / f"{split}.txt", "w", encoding="utf-8") as log:
        step(f"{SPLITS[split]}: the stages of flip-ctr train")
        with quiet(log, args):
            report = train_model(folder / "data" / split, models / "flip", plm_path, stages=stages, **shared)
        results = {one.name: report["stages"][one.stage]["results"] for one in METHODS if one.stage is not None}
        for method in METHODS:
            if method.strategy is None:
                continue
            step(f"{SPLITS[split]}: {method.name}")
            given = stages["all"] | stages[method.strategy] | (BY_ENTITY if method.histories else {})
            with quiet(log, args):
                results[method.name] = finetune.run(
                    FinetuneArguments(
                        dataset_dir=str(method.data(folder, split)),
                        output_dir=str(models / method.folder),
                        model_name_or_path=plm_path,
                        strategy=method.strategy,
                        **shared | given,
                    )
                )
    kept = next(method.name for method in METHODS if method.stage == report["kept"])
    return {"methods": results, "kept": kept}


@contextlib.contextmanager
def one_thread(wanted: bool):
    """One thread inside: for models as small as the generated catalogue's, threads mostly wait for each other."""
    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def quiet(log, args: DemoArguments):
    """Standard output goes to the log; the short runs on the generated catalogue need no progress bars either."""
    with contextlib.redirect_stdout(log):
        with contextlib.redirect_stderr(log) if args.dataset == DATASET else contextlib.nullcontext():
            yield


def compare(folder: Path, measured: dict[str, dict], args: DemoArguments) -> dict:
    """The test metrics of all methods, and bootstrap intervals over the cold items: rows of one item are not
    independent."""
    path = folder / "data" / "cold_items"
    rows = read_split(path, "test")
    items = rows[item_column(args.dataset)].combine_chunks().dictionary_encode().indices
    items, labels = items.to_numpy(), rows["label"].to_numpy()
    generator, count = np.random.default_rng(args.seed), int(items.max()) + 1
    weights = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)[:, items]  # (RESAMPLES, rows)
    methods, resampled = [], {}
    for method in METHODS:
        warm, cold = (measured[split]["methods"][method.name] for split in ("random", "cold_items"))
        model, processor = load_click_model(str(folder / "models" / "cold_items" / method.folder))
        accelerator = make_accelerator(args.mixed_precision)
        test_rows = SplitRows(method.data(folder, "cold_items"), "test")  # the same in both folders
        dataset = EncodedDataset(processor, test_rows, prompts=not processor.id_only)
        logits = score(accelerator, model.to(accelerator.device), dataset, 512)["logits"]
        resampled[method.name] = np.array([roc_auc_score(labels, logits, sample_weight=one) for one in weights])
        methods.append(
            {
                "method": method.name,
                "group": method.group,
                "auc": warm["test_auc"],
                "logloss": warm["test_logloss"],
                "cold_item_auc": cold["test_auc"],
                "cold_item_auc_interval": interval(resampled[method.name]),
                "cold_item_logloss": cold["test_logloss"],
                "validation_auc": warm["eval_auc"],
                "cold_item_validation_auc": cold["eval_auc"],
            }
        )
    by_name, kept = {one["method"]: one for one in methods}, measured["cold_items"]["kept"]
    gains = {
        base: {
            "cold_item_auc": by_name[kept]["cold_item_auc"] - by_name[base]["cold_item_auc"],
            "interval": interval(resampled[kept] - resampled[base]),
        }
        for base in ("ID-only", "joint, not pretrained")
    }
    return {
        "dataset": args.dataset,
        "seed": args.seed,
        "test_rows": measured["random"]["methods"]["ID-only"]["test_rows"],
        "cold_item_rows": len(rows),
        "cold_items": count,
        "methods": methods,
        "kept": kept,
        "gain_of_kept": gains,
    }


def interval(resampled: np.ndarray) -> list[float]:
    """The middle 95 % of resampled values."""
    return np.quantile(resampled, [0.025, 0.975]).tolist()


def table(results: dict) -> str:
    """The methods as a Markdown table that is also readable as plain text."""
    rows = [
        [
            one["method"],
            f"{one['auc']:.4f}",
            f"{one['logloss']:.4f}",
            f"{one['cold_item_auc']:.4f}",
            "{:.3f} to {:.3f}".format(*one["cold_item_auc_interval"]),
        ]
        for one in results["methods"]
    ]
    cells = [["Method", "AUC", "LogLoss", "Cold-item AUC", "95 % interval"], *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    sides = [str.ljust] + [str.rjust] * (len(widths) - 1)
    return "\n".join(
        f"| {' | '.join(side(cell, width) for side, cell, width in zip(sides, row, widths))} |" for row in cells
    )


def caption(results: dict) -> str:
    lines = [
        f"AUC and LogLoss: {results['test_rows']:,} test rows of a random split. Cold-item AUC: "
        f"{results['cold_item_rows']:,} test rows of {results['cold_items']:,} items that no training row has; "
        "intervals by resampling these items."
    ]
    lines.append(f"On the cold-item split flip-ctr train kept: {results['kept']}, by validation.")
    for base, gain in results["gain_of_kept"].items():
        shown = "{:+.4f} ({:+.3f} to {:+.3f})".format(gain["cold_item_auc"], *gain["interval"])
        lines.append(f"It minus {base}, cold items, the same resamples: {shown}.")
    return "\n".join(lines)


def draw(folder: Path, results: dict) -> list[Path]:
    """The comparison, and the curves of pretraining and of FLIP's fine-tuning; none where matplotlib is missing."""
    titles = {
        "auc": "AUC",
        "logloss": "LogLoss\n(lower is better)",
        "cold_item_auc": "AUC on new items",
    }
    note = f"New items: {results['cold_items']:,} that no training row has; lines: 95 %, resampling these items."
    if plot_comparison(results["methods"], str(folder), titles, note) is None:
        return []
    stages = folder / "models" / "random" / "flip" / "stages"
    for stage, name in (("align", "curves_pretraining.png"), ("joint", "curves_finetuning.png")):
        shutil.copyfile(stages / stage / CURVES_FILE, folder / name)
    return [folder / name for name in ("curves_pretraining.png", "curves_finetuning.png", COMPARISON_FILE)]


def sample_rows(folder: Path, dataset: str) -> list[dict]:
    """A training row of the cold-item split, and the same user with items that nobody has seen."""
    row = read_split(folder / "data" / "cold_items", "train").slice(0, 1).to_pylist()[0]
    words = [words.split() for words in THEMES.values()]
    titles = [f"The {first.capitalize()} and the {second.capitalize()} (2031)" for first, second, *_ in words]
    new = {"title": titles, item_column(dataset): range(10**6, 10**6 + len(titles))}
    return [row] + [row | {"genre": None} | dict(zip(new, values)) for values in zip(*new.values())]


def score_rows(checkpoint: Path, rows: list[dict], dataset: str) -> str:
    """Loads a checkpoint through the Auto classes, scores plain dicts, and returns the scores as text."""
    model, processor = AutoModel.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)
    inputs = processor(rows)
    with torch.no_grad():
        output = model(**inputs)
    extractor = processor.feature_extractor
    slots = [extractor.id_fields[field].name for field in extractor.slot_fields]
    known = inputs["feature_ids"][:, slots.index(item_column(dataset))] != UNK_ID
    weights = [""] * len(rows) if output.id_weight is None else [f"{1 - one:.2f}" for one in output.id_weight[:, 0]]
    lines = [f"{'user':>5}  {'title':<36}  {'item':<5}  click probability  weight of the text"]
    for row, seen, logit, weight in zip(rows, known, output.logits[:, 0], weights):
        item, title = "known" if seen else "new", (row["title"] or "")[:36]
        lines.append(f"{row['user_id']:>5}  {title:<36}  {item:<5}  {logit.sigmoid():>17.3f}  {weight:>18}")
    return "\n".join(lines)


def item_column(dataset: str) -> str:
    return "item_id" if dataset == DATASET else PUBLIC_DATASETS[dataset].item


def step(text: str) -> None:
    print(f"* {text}", flush=True)
