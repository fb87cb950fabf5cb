"""Two processes on the CPU learn what one with twice the batch learns, and score every row once."""

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import AutoModel

from flip_ctr.train import fuse
from flip_ctr.train.launch import CONFIGS

# 65 rows of validation: of the last batch one process has no row
SHARED = {
    "max_train_samples": 96,
    "max_eval_samples": 65,
    "num_train_epochs": 2,
    "per_device_eval_batch_size": 32,
    "warmup_ratio": 0.0,
    "seed": 1,
}
RUNS = {
    "finetune": {"strategy": "joint", "unk_rate": 0.1, "early_stopping_patience": None},
    "rows": {
        "strategy": "joint",
        "early_stopping_patience": None,
        "embedding_optimizer": "lazy_adam",
        "embedding_l2": 0.01,
    },
    "lora": {"strategy": "joint", "early_stopping_patience": None, "use_lora": True, "plm_learning_rate": 0.01},
    # without ICL: the dropout of its projections differs between processes
    "mlm": {"icl_weight": 0.0, "mtm_weight": 0.0},
    "mtm": {"icl_weight": 0.0, "mlm_weight": 0.0},
    "entity": {"strategy": "joint", "early_stopping_patience": None, "prompts": "entity", "plm_every": 2},
    "taught": {
        "strategy": "id",
        "early_stopping_patience": None,
        "teacher": "OUT/entity",
        "teacher_weight": 0.6,
        "pairs_per_row": 1,
    },
    "entity mlm": {"icl_weight": 0.0, "mtm_weight": 0.0, "prompts": "entity", "plm_every": 2},
    "entity mtm": {"icl_weight": 0.0, "mlm_weight": 0.0, "prompts": "entity", "freeze_plm": True},
    "frozen": {"strategy": "frozen", "early_stopping_patience": None},
    "map": {"icl_weight": 0.0, "mlm_weight": 0.0, "mtm_text_dropout": 1.0},
    "locked": {"icl_weight": 0.0, "id_model": "OUT/map"},
    # with dropout: each process has a random state of its own
    "whole": {"strategy": "joint", "id_dropout": 0.2, "checkpointing_steps": "2"},
    "resumed": {
        "strategy": "joint",
        "id_dropout": 0.2,
        "checkpointing_steps": "2",
        "resume_from_checkpoint": "OUT/whole/checkpoint-2",
    },
    "streamed": {"strategy": "joint", "streaming": True, "unk_rate": 0.1, "checkpointing_steps": "2"},
    "streamed resumed": {
        "strategy": "joint",
        "streaming": True,
        "unk_rate": 0.1,
        "checkpointing_steps": "2",
        "resume_from_checkpoint": "OUT/streamed/checkpoint-2",
    },
    "all": {"max_train_steps": 2},
    # nothing learnt: the same model is evaluated
    "measured": {"max_train_steps": 1, "learning_rate": 1e-12, "plm_learning_rate": 1e-12},
}
SCRIPT = """
import sys, tiny, torch
from flip_ctr import train_model
from flip_ctr.train.fuse import FuseArguments, run as fuse
from flip_ctr.train.loop.run import part_processes
from test_distributed import fusing
data, plm, out, runs, shared = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4]), eval(sys.argv[5])
for name, options in runs.items():
    recipe = tiny.finetune if "strategy" in options else tiny.pretrain
    options = {key: value.replace("OUT", out) if isinstance(value, str) else value for key, value in options.items()}
    recipe(data, None if name in ("map", "taught") else plm, f"{out}/{name}", **shared, **options)
for name in ("finetune", "entity"):
    tiny.predicted(f"{out}/{name}", f"{data}/data/*.parquet", f"{out}/{name}.parquet")
fuse(FuseArguments(dataset_dir=data, output_dir=f"{out}/fused", **fusing(out)))
train_model(data, f"{out}/train", max_minutes=2, max_train_samples=96, max_eval_samples=65, stages={
    "all": {"num_train_epochs": 1, "per_device_train_batch_size": 16}, "map": {"projection_dim": 8}
})
part_processes()
"""


def fusing(out) -> dict:
    """Arguments of `fuse`: both towers of a joint model, weighed anew."""
    models = {"id_model": f"{out}/finetune", "plm_model": f"{out}/finetune"}
    return models | {"fusion": "gate", "max_eval_samples": 65, "per_device_eval_batch_size": 32}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, dataset_dir, calm_plm, warm):
    """Folder of the checkpoints that two processes wrote, each with batches of 16."""
    out = tmp_path_factory.mktemp("two")
    shared = str(SHARED | {"per_device_train_batch_size": 16})
    command = [
        warm,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / "multi_gpu.yaml"),
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    (out / "script.py").write_text(SCRIPT)
    paths = [str(dataset_dir), str(calm_plm), str(out)]
    path = os.pathsep.join(
        [str(Path(tiny.__file__).parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    environment["PYTHON_EXEC"] = warm
    done = subprocess.run(
        [*command, str(out / "script.py"), *paths, str(RUNS), shared],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (out / "printed").write_text(done.stdout + done.stderr)
    return out


@pytest.mark.parametrize(
    "name",
    [
        "finetune",
        "rows",
        "lora",
        "entity",
        "taught",
        "entity mlm",
        "entity mtm",
        "mlm",
        "mtm",
        "frozen",
        "map",
        "locked",
    ],
)
def test_two_processes_learn_what_one_does(tmp_path, dataset_dir, calm_plm, two_processes, name):
    recipe = tiny.finetune if "strategy" in RUNS[name] else tiny.pretrain
    options = {
        key: value.replace("OUT", str(two_processes)) if isinstance(value, str) else value
        for key, value in RUNS[name].items()
    }
    recipe(
        dataset_dir,
        None if name in ("map", "taught") else calm_plm,
        tmp_path / name,
        **SHARED,
        **options,
        per_device_train_batch_size=32,
    )
    one, two = (AutoModel.from_pretrained(folder / name).state_dict() for folder in (tmp_path, two_processes))
    logged = [
        [entry["loss"] for entry in json.loads((folder / name / "history.json").read_text()) if "loss" in entry]
        for folder in (tmp_path, two_processes)
    ]
    assert (
        logged[1] == pytest.approx(logged[0], rel=1e-4) and len(logged[0]) > 1
    )  # the mean over all rows, not the first process's
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["finetune", "entity"])
def test_two_processes_share_the_files_that_predict_scores(dataset_dir, two_processes, tmp_path, name):
    """Three files, which are the parts that are shared out: an odd number."""
    one = tiny.predicted(two_processes / name, dataset_dir / "data" / "*.parquet", tmp_path / "one.parquet")
    two = pq.read_table(two_processes / f"{name}.parquet")
    assert len(two) == sum(pq.read_metadata(path).num_rows for path in (dataset_dir / "data").glob("*.parquet"))
    column = "click_probability"
    assert two.select(["user_id", "movie_id"]) == one.select(["user_id", "movie_id"])
    assert two[column].to_pylist() == pytest.approx(one[column].to_pylist(), abs=1e-6)


def test_two_processes_fuse_as_one_does(dataset_dir, two_processes, tmp_path):
    one = fuse.run(
        fuse.FuseArguments(dataset_dir=str(dataset_dir), output_dir=str(tmp_path / "m"), **fusing(two_processes))
    )
    two = json.loads((two_processes / "fused" / "all_results.json").read_text())
    assert two["num_processes"] == 2 and two["eval_rows"] == two["test_rows"] == 65
    measured = [name for name in one if name.startswith(("eval_", "test_", "id_weight", "penalty"))]
    assert [two[name] for name in measured] == pytest.approx([one[name] for name in measured], rel=1e-3)


def test_two_processes_share_the_stages_of_train(two_processes):
    state = json.loads((two_processes / "train" / "train.json").read_text())
    assert list(state["stages"]) == ["id_only", "map", "id"] and state["options"]["num_processes"] == 2
    assert all(done["results"]["num_processes"] == 2 for done in state["stages"].values())
    assert AutoModel.from_pretrained(two_processes / "train").config.strategy == "id"


@pytest.mark.parametrize("names", [("whole", "resumed"), ("streamed", "streamed resumed")])
def test_two_processes_go_on_where_they_were(two_processes, names):
    assert (two_processes / names[0] / "checkpoint-2" / "process_1.pt").exists()
    whole, resumed = (AutoModel.from_pretrained(two_processes / name).state_dict() for name in names)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    whole, resumed = (json.loads((two_processes / name / "history.json").read_text()) for name in names)
    whole, resumed = ([entry["loss"] for entry in history if "loss" in entry] for history in (whole, resumed))
    assert resumed == pytest.approx(whole, rel=1e-6)


def test_alignment_is_measured_on_every_row_once(tmp_path, dataset_dir, calm_plm, two_processes):
    tiny.pretrain(dataset_dir, calm_plm, tmp_path / "m", **SHARED, **RUNS["measured"], per_device_train_batch_size=32)
    one, two = (
        json.loads((folder / "all_results.json").read_text()) for folder in (tmp_path / "m", two_processes / "measured")
    )
    assert one["eval_rows"] == two["eval_rows"] == 65
    # but for those with shuffled rows, which are of the process's own batch
    names = [f"eval_{kind}_{what}" for kind in ("mlm", "mtm", "icl") for what in ("loss", "accuracy")]
    assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-5)


def test_only_the_main_process_talks(two_processes):
    printed = (two_processes / "printed").read_text()
    runs = sum("strategy" in options for options in RUNS.values())
    assert printed.count("\ntest_auc ") == runs + 3 and printed.count("\neval_mlm_loss ") == 5
    strategies = [options["strategy"] for options in RUNS.values() if "strategy" in options]
    for strategy in {*strategies} - {"id"}:  # which the stages of train have too
        assert printed.count(f"\n{strategy}: 96 training rows") == strategies.count(strategy)


def test_all_objectives_run_on_two_processes(two_processes):
    assert (two_processes / "all" / "all_results.json").exists()
    weights = AutoModel.from_pretrained(two_processes / "all").state_dict().values()
    assert all(weight.isfinite().all() for weight in weights)
