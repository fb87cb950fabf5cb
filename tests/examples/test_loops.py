"""The scripts of `examples/`: what they report is what their checkpoints score, and the loops are one training."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from transformers import AutoModel, AutoProcessor

from flip_ctr import DatasetSchema, FlipCollator, FlipConfig, FlipForCTR, FlipProcessor
from flip_ctr.train import evaluate_ctr, prepare
from flip_ctr.train.arguments import EvaluateArguments

EXAMPLES = Path(__file__).parents[2] / "examples"
LOOPS = ("pytorch_loop", "accelerate_loop", "trainer")
REPORTED = re.compile(r"AUC (\d\.\d{4}), LogLoss (\d\.\d{4})")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Of `datasets`, for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


def run(script: str, *arguments) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")


def best_of(printed: str) -> tuple[float, float]:
    """AUC and LogLoss of the evaluation with the best LogLoss among those that a script has printed."""
    found = [(float(auc), float(logloss)) for auc, logloss in REPORTED.findall(printed)]
    return min(found, key=lambda one: one[1])


def check_scores(printed: str, dataset_dir, folder) -> None:
    """`flip-ctr evaluate` and the Auto classes take the checkpoint, and validation scores as the script said."""
    results = evaluate_ctr.run(EvaluateArguments(str(folder), str(dataset_dir), split="validation"))
    assert best_of(printed) == pytest.approx((results["eval_auc"], results["eval_logloss"]), abs=6e-5)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, FlipForCTR) and processor(tiny.ml_rows(dataset_dir))["feature_ids"].shape[0] == 10
    assert not model.untrained


def test_three_loops_on_ids_are_one_training(dataset_dir, tmp_path, monkeypatch, capsys):
    """With one order of the rows, and no ids dropped at random, the three end with the same weights."""
    orders = []

    def randperm(size, **kwargs):
        orders.append(size)
        return torch.from_numpy(np.random.default_rng(len(orders)).permutation(size))

    monkeypatch.setattr(torch, "randperm", randperm)
    monkeypatch.setattr(FlipCollator, "drop_keys", lambda self, batch: None)
    weights = []
    for loop in LOOPS:
        orders.clear()
        run(loop, dataset_dir, tmp_path / loop, "--epochs", 3, "--batch_size", 64)
        assert len(orders) == 6  # two an epoch, of which one is used
        check_scores(capsys.readouterr().out, dataset_dir, tmp_path / loop)
        weights.append(AutoModel.from_pretrained(tmp_path / loop).state_dict())
    for name, weight in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_with_a_plm(loop, dataset_dir, plm, tmp_path, capsys):
    run(loop, dataset_dir, tmp_path / "m", "--plm", plm, "--epochs", 1, "--batch_size", 128)
    check_scores(capsys.readouterr().out, dataset_dir, tmp_path / "m")
    assert AutoModel.from_pretrained(tmp_path / "m").config.strategy == "joint"


def test_accelerate_on_two_processes(dataset_dir, tmp_path, warm):
    command = [warm, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [EXAMPLES / "accelerate_loop.py", dataset_dir, tmp_path / "m", "--epochs", 2, "--batch_size", 31]
    environment = {
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHON_EXEC": warm,
        "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE),
    }
    done = subprocess.run(
        [*command, *map(str, arguments)], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(REPORTED.findall(done.stdout)) == 2  # one process prints
    check_scores(done.stdout, dataset_dir, tmp_path / "m")


def test_rows_with_histories_take_the_items_along(tmp_path):
    """As the page of the loops says."""
    raw = tiny.write_raw_100k(tmp_path / "raw")
    prepare.run(prepare.PrepareArguments("ml-100k", str(tmp_path / "D"), str(raw), history=5))
    rows = datasets.load_dataset(str(tmp_path / "D"))["validation"]
    processor = FlipProcessor.from_dataset(rows, DatasetSchema.load(tmp_path / "D"))
    items = pd.read_parquet(tmp_path / "D" / "items.parquet")
    rows = rows.map(processor, batched=True, remove_columns=rows.column_names, fn_kwargs={"items": items})
    batch = FlipCollator(processor)([rows[row] for row in range(8)])
    assert batch["history_ids"].shape[:2] == (8, 5)
    model = FlipForCTR(FlipConfig(fields=processor.fields, strategy="id"))
    assert model(**batch).loss.isfinite()


def test_a_trainer_pretrains(dataset_dir, plm, tmp_path, capsys):
    """The parts of the loss are in its logs; a click model starts from what it saves."""
    run("trainer_pretrain", dataset_dir, tmp_path / "p", plm, "--epochs", 1)
    printed = capsys.readouterr().out
    assert all(f"'eval_{part}_loss'" in printed for part in ("mlm", "mtm", "icl"))
    started = FlipForCTR.from_pretrained(tmp_path / "p", strategy="joint")
    assert started.untrained and all(not name.startswith("flip.") for name in started.untrained)


def test_a_search(dataset_dir, tmp_path, capsys):
    pytest.importorskip("optuna")
    run("trainer_search", dataset_dir, tmp_path / "s", "--trials", 2, "--epochs", 1, "--batch_size", 64)
    assert re.search(r"LogLoss \d\.\d{4} with \{'id_dropout': .*'learning_rate': ", capsys.readouterr().out)
