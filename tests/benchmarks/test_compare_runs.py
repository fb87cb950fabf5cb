"""Runs of `benchmarks/compare.py`: each made once, made anew when something changes, and reported when it fails."""

import csv
import json
import os
import subprocess
import sys
import threading
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml

from flip_ctr.benchmarks import compare
from flip_ctr.benchmarks.comparison.child import execute
from flip_ctr.benchmarks.comparison.grid import GridError, load_grid
from flip_ctr.benchmarks.comparison.predictions import Predictions
from flip_ctr.benchmarks.comparison.runs import RunFailed, Workshop
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.train import cli
from flip_ctr.train.options import DEFAULTS, preset_file

SMALL = {
    "id_embedding_size": 4,
    "id_hidden_dims": [8],
    "per_device_train_batch_size": 128,
    "num_train_epochs": 2,
    "mixed_precision": "no",  # in which validation is scored once more
}


@pytest.fixture
def grid(dataset_dir):
    """A grid on the small dataset folder."""
    return {
        "datasets": {"ml": {"dataset_dir": str(dataset_dir), "target_auc": 0.55}},
        "settings": {"plm": "org/bert"},
        "runs": {
            "pretrained": {"recipe": "pretrain", "model_name_or_path": "${plm}"},
            "flip": {"recipe": "finetune", "strategy": "joint", "model_name_or_path": "@pretrained"},
            "flip-id": {"recipe": "finetune", "strategy": "id", "model_name_or_path": "@pretrained"},
            "id": {"recipe": "finetune", "strategy": "id"},
            "both": {"recipe": "average", "models": ["@id", "@flip"]},
        },
        "methods": {"ID-only": {"run": "id", "baseline": True}, "FLIP_ID": "flip-id", "FLIP": "flip", "both": "both"},
    }


class Maker:
    """In the place of child processes: writes what a run leaves, and remembers it; better or worse by what it is told
    of a run."""

    def __init__(self, dataset_dir):
        table = {split: read_split(dataset_dir, split) for split in ("validation", "test")}
        self.labels = {split: rows["label"].to_numpy() for split, rows in table.items()}
        self.made, self.noise, self.failing = [], {}, set()

    def __call__(self, workshop, command, log, title):
        folder = Path(command[-1])
        described = json.loads((folder / "run.json").read_text())
        self.made.append(described["run"])
        if described["run"] in self.failing:
            raise RunFailed(f"{title}: exit code 1\n  it said so")
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
        generator = np.random.default_rng(int.from_bytes(blake2b(folder.name.encode(), digest_size=4).digest()))
        noise = self.noise.get(str(described["options"].get("learning_rate")), 1.0)
        for split, labels in self.labels.items():
            logits = (labels - 0.5 + noise * generator.normal(size=len(labels))).astype(np.float32)
            Predictions(labels, np.arange(len(labels)) % 7, logits).save(folder, split)
        history = [{"seconds": 4.0 * epoch, "epoch": epoch, "auc": 0.4 + epoch / 10, "logloss": 1} for epoch in (1, 2)]
        costs = {
            "train_seconds": 10.0,
            "history": history,
            "rows_per_second": 100.0,
            "threads": 1,
            "parameters": 5,
            "device": "cpu",
            "libraries": {},
        }
        (folder / "result.json").write_text(json.dumps(costs))


@pytest.fixture
def maker(monkeypatch, dataset_dir):
    made = Maker(dataset_dir)
    monkeypatch.setattr(Workshop, "child", lambda *given: made(*given))
    monkeypatch.setattr(compare, "draw", lambda *given: [])  # it would take most of the time
    return made


@pytest.fixture
def run(tmp_path):
    """`compare.run` of a grid in one output folder."""

    def call(grid, **options):
        (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
        options = {"bootstrap_samples": 50} | options
        return compare.run(compare.CompareArguments(str(tmp_path / "grid.yaml"), str(tmp_path / "runs"), **options))

    return call


def test_a_run_is_made_once_for_all_that_use_it_and_not_again(run, grid, maker):
    run(grid)
    assert sorted(maker.made) == ["flip", "flip-id", "id", "pretrained"]  # an average needs no process
    before = run(grid)
    assert len(maker.made) == 4
    assert before["failures"] == []
    run(grid | {"seeds": [42, 43]})
    assert len(maker.made) == 8
    grid["runs"]["renamed"] = grid["runs"]["id"]
    results = run(grid | {"methods": {"ID-only": "renamed"}})
    assert len(maker.made) == 8 and len(results["comparisons"][0]["methods"][0]["runs"]) == 1


def test_what_changes_is_made_anew_with_what_starts_from_it(run, grid, maker, monkeypatch):
    run(grid)
    maker.made.clear()
    grid["runs"]["pretrained"]["icl_weight"] = 0.5
    run(grid)
    assert maker.made == ["pretrained", "flip-id", "flip"]
    maker.made.clear()
    grid["runs"]["id"]["learning_rate"] = "3e-3"  # the default
    run(grid)
    assert maker.made == []
    monkeypatch.setitem(preset_file(DEFAULTS)["finetune"]["id from a checkpoint"], "embedding_l2", 0.5)
    run(grid)
    assert maker.made == ["flip-id"]


def test_a_plm_may_move_but_not_change(run, grid, maker, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    run(grid, set=[f"plm={first}"], only=["FLIP"])
    run(grid, set=[f"plm={second}"], only=["FLIP"])
    assert maker.made == ["pretrained", "flip"]
    (second / "config.json").write_text("{ }")
    run(grid, set=[f"plm={second}"], only=["FLIP"])
    assert maker.made == ["pretrained", "flip"] * 2
    written = [path.read_text() for path in (tmp_path / "runs" / "results").iterdir()]
    assert written and not any(str(tmp_path) in text for text in written)


def test_a_half_finished_run_is_made_again_and_goes_on_where_it_saves_steps(run, grid, maker, tmp_path):
    grid["runs"]["flip"]["checkpointing_steps"] = "epoch"
    run(grid)
    maker.made.clear()
    for result in (tmp_path / "runs").rglob("result.json"):
        if result.parent.name.startswith(("id-", "flip-s")):
            result.unlink()
            (result.parent / "model" / "left").touch()
    run(grid)
    assert maker.made == ["id", "flip"]
    folders = {path.parent.name.split("-s")[0]: path.parent for path in (tmp_path / "runs").rglob("run.json")}
    assert not (folders["id"] / "model" / "left").exists() and (folders["flip"] / "model" / "left").exists()
    argv = {name: json.loads((folder / "run.json").read_text())["argv"] for name, folder in folders.items()}
    assert "--resume_from_checkpoint" in argv["flip"] and "--resume_from_checkpoint" not in argv["id"]


def test_a_failed_run_is_reported_and_the_others_are_made(run, grid, maker, monkeypatch, capsys, tmp_path):
    maker.failing = {"pretrained"}
    results = run(grid)
    assert sorted(maker.made) == ["id", "pretrained"]
    assert len(results["failures"]) == 4
    assert (
        "flip: not made, as it starts from what failed (ml, as-is, seed 42: pretrained: exit code 1)"
        in results["failures"][-2]
    )
    assert "it said so" in capsys.readouterr().err
    assert [len(one["runs"]) for one in results["comparisons"][0]["methods"]] == [1, 0, 0, 0]
    with pytest.raises(
        ValueError,
        match=r"--report_only: no run of .*grid.yaml is finished in --output_dir .*runs; nothing was written",
    ):
        run(grid, report_only=True, only=["FLIP"], results_dir=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(
        sys, "argv", ["compare", "--grid", str(tmp_path / "grid.yaml"), "--output_dir", str(tmp_path / "runs")]
    )
    assert compare.main() == 1
    with pytest.raises(RunFailed, match="pretrained"):
        run(grid, stop_on_error=True)
    maker.failing = set()
    assert run(grid)["failures"] == []
    assert compare.main() == 0


def test_nothing_is_made_for_a_report(run, grid, maker, tmp_path):
    run(grid, only=["ID-only"])
    results = run(grid, report_only=True)
    assert maker.made == ["id"]
    assert [len(one["runs"]) for one in results["comparisons"][0]["methods"]] == [1, 0, 0, 0]


def test_validation_chooses_among_trials(run, grid, maker, tmp_path):
    grid["runs"]["id"]["search"] = {"learning_rate": ["1e-2", "1e-3", "1e-4"]}
    maker.noise = {"1e-2": 2.0, "1e-3": 0.5, "1e-4": 1.0}
    method = run(grid, only=["ID-only"])["comparisons"][0]["methods"][0]
    assert maker.made == ["id"] * 3
    assert method["trials"] == 3
    with open(tmp_path / "runs" / "results" / "results.csv") as file:
        assert [line["chosen"] for line in csv.DictReader(file)] == ["learning_rate=1e-3"]
    assert method["runs"][0]["total_seconds"] == 30.0 and method["runs"][0]["train_seconds"] == 10.0
    assert method["costs"]["seconds_to_target"] == 8.0
    both = run(grid)["comparisons"][0]["methods"][-1]
    assert both["trials"] == 4 and both["runs"][0]["total_seconds"] == 50.0  # with FLIP and its pretraining
    flip = run(grid, only=["FLIP"])["comparisons"][0]["methods"][0]
    assert flip["costs"]["seconds_to_target"] == 10.0 + 8.0  # pretraining counts


def test_weights_go_when_nothing_needs_them_and_come_back_when_something_does(run, grid, maker, tmp_path):
    run(grid, only=["FLIP"], delete_weights=True)
    assert not list((tmp_path / "runs").rglob("*.safetensors"))
    run(grid, only=["FLIP"], delete_weights=True)
    assert maker.made == ["pretrained", "flip"]
    run(grid, only=["FLIP_ID"])
    assert maker.made == ["pretrained", "flip", "pretrained", "flip-id"]


def split_grid(grid, dataset_dir, number=3) -> dict:
    """The grid with several dataset folders."""
    return grid | {"datasets": {f"ml{n}": grid["datasets"]["ml"] for n in range(number)}}


def test_a_run_that_cannot_be_made_anew_keeps_what_it_had(run, grid, maker, tmp_path):
    run(grid, only=["ID-only"], delete_weights=True)
    folder = next((tmp_path / "runs").rglob("result.json")).parent
    before = (folder / "test.npz").read_bytes()
    for path in folder.rglob("model.safetensors"):
        path.unlink()
    grid["runs"]["started"] = {"recipe": "finetune", "strategy": "plm", "model_name_or_path": "@id"}
    grid["methods"] = {"started": "started"}
    maker.failing.add("id")
    assert "exit code 1" in run(grid)["failures"][0]
    assert (folder / "test.npz").read_bytes() == before and not list(folder.parent.glob("*.former"))
    folder.rename(folder.with_name(f"{folder.name}.former"))  # as a comparison leaves it that is killed meanwhile
    maker.failing.clear()
    assert run(grid)["failures"] == [] and maker.made == ["id", "id", "id", "started"]
    assert not list(folder.parent.glob("*.former"))


def test_a_tower_of_the_users_is_known_by_its_files(run, grid, maker, tmp_path, monkeypatch):
    """Two files may register a tower of the same name; the path is not the results' business."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"from .parts import x\nNAME = '{name}'")
        (tmp_path / name / "parts.py").write_text("x = 1")
        grid["runs"][name] = grid["runs"]["id"] | {
            "id_tower": "mine",
            "custom_code": [str(tmp_path / name / "mine.py")],
        }
    grid["runs"]["again"] = grid["runs"]["a"] | {"custom_code": "a/mine.py"}
    grid["methods"] = {name: {"run": name, "baseline": True} for name in ("a", "b", "again")}
    results = run(grid)
    assert maker.made == ["a", "b"]
    assert str(tmp_path) not in json.dumps(results)
    (tmp_path / "a" / "parts.py").write_text("x = 2")
    run(grid)
    assert maker.made == ["a", "b", "a"]


def test_catalogues_are_made_on_several_threads(tmp_path, monkeypatch):
    grid = {
        "datasets": {"made": {"catalogue": {"users": 30, "items": 30, "rows": 600}}},
        "splits": [{"split": "random", "split_seed": n} for n in range(4)],
        "runs": {"id": {"recipe": "finetune", "strategy": "id"}},
        "methods": {"ID-only": "id"},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    made = []
    monkeypatch.setattr(Workshop, "produce", lambda self, name, data, seed: made.append(data.split.name))
    monkeypatch.setattr(
        compare.Comparison, "numbers", lambda self: {"methods": [], "dataset": "made", "kind": "random"}
    )
    monkeypatch.setattr(compare, "tables", lambda results: "")
    monkeypatch.setattr(compare, "write_csv", lambda *given: None)
    monkeypatch.setattr(compare, "draw", lambda *given: [])
    compare.run(
        compare.CompareArguments(str(tmp_path / "grid.yaml"), str(tmp_path / "runs"), jobs=4, bootstrap_samples=50)
    )
    assert sorted(made) == [f"random-{number}" for number in range(4)]


def test_several_splits_at_a_time(run, grid, maker, dataset_dir, monkeypatch):
    at_once, barrier = [], threading.Barrier(2, timeout=30)

    def child(self, command, log, title):
        if not at_once:
            barrier.wait()  # passes when two runs are being made at once
            at_once.append(title)
        maker(self, command, log, title)

    monkeypatch.setattr(Workshop, "child", child)
    results = run(split_grid(grid, dataset_dir), jobs=2)
    assert at_once and len(maker.made) == 3 * 4 and results["failures"] == []
    assert [one["dataset"] for one in results["comparisons"]] == ["ml0", "ml1", "ml2"]
    maker.made.clear()
    assert run(split_grid(grid, dataset_dir), jobs=1) == results and maker.made == []
    with pytest.raises(ValueError, match="--jobs must be at least 1; got 0"):
        run(grid, jobs=0)
    with pytest.raises(ValueError, match="--bootstrap_samples must be at least 1; got 0"):
        run(grid, bootstrap_samples=0)
    with pytest.raises(ValueError, match="--peer_python no-such-python: there is no such program"):
        run(grid, peer_python="no-such-python")


def test_a_failure_that_stops_ends_the_runs_of_other_splits(run, grid, dataset_dir, monkeypatch, tmp_path):
    """Real child processes: one fails while the other sleeps."""
    real, started = Workshop.child, threading.Barrier(2, timeout=30)

    def child(self, command, log, title):
        started.wait()
        code = "raise SystemExit(3)" if title.startswith("ml0") else "import time; time.sleep(120)"
        real(self, [sys.executable, "-c", code], log, title)

    monkeypatch.setattr(Workshop, "child", child)
    before = time.monotonic()
    with pytest.raises(RunFailed, match="ml0, .*: exit code 3"):
        run(split_grid(grid, dataset_dir, 2), jobs=2, stop_on_error=True, only=["ID-only"])
    assert time.monotonic() - before < 60
    assert not list((tmp_path / "runs").rglob("result.json"))


def test_an_output_folder_has_one_comparison_at_a_time(grid, run, maker, tmp_path):
    run(grid, only=["ID-only"])
    with Workshop(compare.load_grid(tmp_path / "grid.yaml", {}), tmp_path / "runs").locked():
        with pytest.raises(ValueError, match="another comparison is making runs there"):
            run(grid)


def test_the_baseline_is_the_best_on_validation_and_pairs_share_samples(run, grid, maker, tmp_path):
    grid["runs"] |= {name: {"recipe": "finetune", "strategy": "id", "learning_rate": name} for name in ("1e-2", "1e-3")}
    grid["methods"] = {
        "good": {"run": "1e-3", "baseline": True},
        "bad": {"run": "1e-2", "baseline": True},
        "again": "1e-3",
    }
    maker.noise = {"1e-2": 5.0, "1e-3": 0.2}
    comparison = run(grid)["comparisons"][0]
    good, bad, again = comparison["methods"]
    (differences,) = comparison["differences"].values()
    assert list(comparison["differences"]) == ["good"] and list(differences) == ["bad", "again"]
    assert differences["again"]["auc"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    difference = differences["bad"]["auc"]["mean"]
    assert difference == pytest.approx(bad["runs"][0]["test"]["auc"] - good["runs"][0]["test"]["auc"])
    low, high = differences["bad"]["auc"]["interval"]
    assert low < difference < high < 0
    table = tmp_path / "runs" / "results" / "table.md"
    assert "to good, the baseline that is best on validation;" in table.read_text()
    other = run(grid, reference=["bad", "again"])["comparisons"][0]["differences"]
    assert list(other) == ["bad", "again"]
    assert other["bad"]["good"]["auc"]["interval"] == pytest.approx([-high, -low])
    assert other["again"]["bad"] == differences["bad"]
    text = table.read_text()
    assert "Differences are to bad; bold" in text and text.count("### Differences to again") == 1
    with pytest.raises(GridError, match="--reference best: the methods compared are good, bad, again"):
        run(grid, reference=["best"])


def test_a_comparison_from_end_to_end(tmp_path, plm, monkeypatch, capsys, warm):
    """Generated rows, a real child process for the ID-only run, and the other runs in this process."""
    processes = []

    def child(self, command, log, title):
        if "id-s42-" in command[-1]:
            processes.append(command)
            return real(self, [warm, *command[1:]], log, title)
        execute(Path(command[-1]))

    real = Workshop.child
    monkeypatch.setattr(Workshop, "child", child)
    label = "both, $a_{$ | b"  # neither a formula in the pictures nor a cell of its own in the table
    grid = {
        "datasets": {"made": {"catalogue": {"users": 40, "items": 50, "rows": 1500}, "target_auc": "5e-1"}},
        "splits": [{"split": "cold_items", "split_seed": 1}],
        "settings": {"plm": None},
        "runs": {
            "pretrained": {
                "recipe": "pretrain",
                "model_name_or_path": "${plm}",
                "projection_dim": 8,
                **SMALL,
                "num_train_epochs": 1,
            },
            "flip": {"recipe": "finetune", "strategy": "joint", "model_name_or_path": "@pretrained", **SMALL},
            "id": {"recipe": "finetune", "strategy": "id", **SMALL},
            "both": {"recipe": "average", "models": ["@id", "@flip"]},
        },
        "methods": {"ID-only": {"run": "id", "baseline": True}, "FLIP": "flip", label: "both"},
    }
    del grid["runs"]["flip"]["id_embedding_size"], grid["runs"]["flip"]["id_hidden_dims"]  # the checkpoint's
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    options = {"set": [f"plm={plm}"], "bootstrap_samples": 200, "results_dir": str(tmp_path / "results")}
    results = compare.run(compare.CompareArguments(str(tmp_path / "grid.yaml"), str(tmp_path / "runs"), **options))
    assert results["failures"] == [] and len(processes) == 1

    folders = {path.parent.name.split("-s42-")[0]: path.parent for path in (tmp_path / "runs").rglob("result.json")}
    comparison = results["comparisons"][0]
    id_only, flip, both = (method["runs"][0] for method in comparison["methods"])
    for name, run in (("id", id_only), ("flip", flip)):
        own = json.loads((folders[name] / "model" / "all_results.json").read_text())
        for metric in ("auc", "logloss", "gauc", "ece", "predicted_actual_ratio"):
            assert run["test"][metric] == pytest.approx(own[f"test_{metric}"], abs=1e-6)
            assert run["validation"][metric] == pytest.approx(own[f"eval_{metric}"], abs=1e-6)
        assert run["train_seconds"] == own["train_seconds"] and run["rows_per_second"] > 0
    assert flip["test"]["text_auc"] == pytest.approx(own["test_text_auc"], abs=1e-6)
    logits = [Predictions.load(folders[name], "test").logits for name in ("id", "flip", "both")]
    np.testing.assert_allclose(logits[2], (logits[0] + logits[1]) / 2, rtol=1e-5)
    assert (
        flip["before_seconds"] > 0 == id_only["before_seconds"]
        and flip["trained_parameters"] > flip["parameters"] > id_only["parameters"]
    )
    assert both["before_seconds"] == pytest.approx(
        id_only["train_seconds"] + flip["train_seconds"] + flip["before_seconds"]
    )
    split = comparison["splits"][0]
    assert (
        split["new_items"] == split["items"] > 0 and split["new_item_rows"] == split["rows"] and split["new_users"] == 0
    )
    assert (comparison["clusters"], comparison["clusters_are"]) == (split["items"], "items")  # that are new
    assert list(comparison["differences"]) == ["ID-only"]

    written = ["made-cold_items.png", "results.csv", "table.md"]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == written
    table = (tmp_path / "results" / "table.md").read_text()
    assert "of them not in training" in table and r"| both, $a_{$ \| b | 2 |" in table
    with open(tmp_path / "results" / "results.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["ID-only", "FLIP", label]
    assert float(lines[1]["test_auc"]) == flip["test"]["auc"]
    again = compare.run(compare.CompareArguments(str(tmp_path / "grid.yaml"), str(tmp_path / "runs"), **options))
    assert again == results and (tmp_path / "results" / "table.md").read_text() == table


def test_a_run_may_see_other_columns_of_the_same_rows(tmp_path, monkeypatch):
    def child(self, command, log, title):
        if "prepare" in command:
            assert cli.main(command[command.index("prepare") :]) == 0
        else:
            execute(Path(command[-1]))

    monkeypatch.setattr(Workshop, "child", child)
    prepare = {"dataset": "ml-100k", "data_dir": str(tiny.write_raw_100k(tmp_path / "raw")), "statistics": ["user_id"]}
    small = {"recipe": "finetune", "strategy": "id", **SMALL, "num_train_epochs": 1}
    runs = {"rates": small, "plain": small | {"prepare": {"statistics": None}}}
    runs["other"] = small | {"prepare": {"split_seed": 7}}
    grid = {"datasets": {"ml": {"prepare": prepare}}, "runs": runs, "methods": {name: name for name in runs}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    workshop = Workshop(load_grid(tmp_path / "grid.yaml", {}), tmp_path / "runs")
    dataset = workshop.grid.datasets[0]
    data = workshop.data(dataset, dataset.splits[0])
    folders = {name: workshop.produce(name, data, 42).folder for name in ("rates", "plain")}
    fields = {
        name: [field["name"] for field in json.loads((folder / "model" / "config.json").read_text())["fields"]]
        for name, folder in folders.items()
    }
    assert fields["rates"] == [*fields["plain"], "user_id_click_rate", "user_id_rows"]
    with pytest.raises(RunFailed, match="other: with {'split_seed': 7} `prepare` makes other rows of train"):
        workshop.produce("other", data, 42)


def test_the_end_of_a_childs_log_is_shown(tmp_path, grid, run, maker, monkeypatch):
    run(grid, only=["ID-only"])
    monkeypatch.undo()
    workshop = Workshop(compare.load_grid(tmp_path / "grid.yaml", {}), tmp_path / "runs")
    command = [sys.executable, "-c", "print('what went wrong'); raise SystemExit(3)"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 3
    with pytest.raises(RunFailed, match="a run: exit code 3\n.*log.txt ends with\n    what went wrong"):
        workshop.child(command, tmp_path / "log.txt", "a run")


def test_a_run_ends_with_its_comparison():
    """The parent is killed, and cannot end it itself."""
    waiting = (
        "import os, time; from child import end_with; end_with(os.getppid(), 0.1); print('started', "
        "flush=True); time.sleep(120)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {waiting!r}])"
    paths = os.pathsep.join([str(Path(compare.__file__).parent / "comparison"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    ) as process:
        assert process.stdout.readline() == b"started\n"
        process.kill()
        before = time.monotonic()
        assert process.stdout.read() == b""  # the end of it comes with that of the last process that holds it
    assert time.monotonic() - before < 60


def test_a_comparison_is_stopped_from_the_keyboard(monkeypatch, capsys):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run", stopped)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--grid", "g", "--output_dir", "o"])
    assert compare.main() == 130
    assert "finished runs are kept" in capsys.readouterr().err
