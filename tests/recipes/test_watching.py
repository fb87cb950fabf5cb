"""What a user sees of a run: log, history, trackers, and where it stops."""

import json
import logging
import signal

import pytest
import tiny
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel

from flip_ctr.train.loop import training_loop
from flip_ctr.train.loop.resume import Preempted, StepCheckpoints, step_checkpoints
from flip_ctr.train.loop.step import TrainingStep


def test_the_log_holds_what_happened(tmp_path, dataset_dir):
    results = tiny.finetune(dataset_dir, None, tmp_path / "m", logging_steps=2)
    lines = (tmp_path / "m" / "train.log").read_text().splitlines()
    assert all(line[4] == line[7] == "-" for line in lines)  # each begins with its time
    log = "\n".join(lines)
    parameters = AutoModel.from_pretrained(tmp_path / "m").num_parameters()
    for part in (
        "finetune on 1 process(es), cpu, no",
        '"strategy": "id"',
        f"{parameters:,} parameters",
        "96 training rows",
        "step 2/6: epoch 0.6667 loss 0.",
        "step 6/6: epoch 2 eval_auc 0.",
    ):
        assert log.count(part) == 1, part
    assert json.loads(log.split("results: ")[1])["test_auc"] == results["test_auc"]
    assert str(tmp_path) not in log
    assert not [handler for handler in logging.getLogger("flip_ctr").handlers if hasattr(handler, "target")]


def test_a_new_run_begins_a_new_log_and_a_resumed_one_goes_on(tmp_path, dataset_dir):
    options = {"checkpointing_steps": "2", "early_stopping_patience": None}
    for _ in range(2):
        tiny.finetune(dataset_dir, None, tmp_path / "m", overwrite_output_dir=True, **options)
    log = (tmp_path / "m" / "train.log").read_text()
    assert log.count("results: ") == 1
    tiny.finetune(dataset_dir, None, tmp_path / "m", resume_from_checkpoint="latest", **options)
    grown = (tmp_path / "m" / "train.log").read_text()
    assert grown.startswith(log) and grown.count("results: ") == 2 and "going on from" in grown


@pytest.mark.parametrize("logging_steps", [1, 1000])
def test_a_loss_that_is_not_finite_stops_and_names_its_step(tmp_path, dataset_dir, monkeypatch, logging_steps):
    real, steps = TrainingStep.backward, []

    def backward(self, group):
        steps.append(len(steps))
        outputs = real(self, group)
        return [output | {"loss": output["loss"] * torch.nan} if len(steps) == 5 else output for output in outputs]

    monkeypatch.setattr(TrainingStep, "backward", backward)
    options = {"checkpointing_steps": "2", "num_train_epochs": 4, "logging_steps": logging_steps}
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 5 \(epoch 1.67\)..*checkpoint-4 and the best model. Lower"
    ):
        tiny.finetune(dataset_dir, None, tmp_path / "m", **options)
    assert [path.rsplit("/")[-1] for path in step_checkpoints(str(tmp_path / "m"))] == ["checkpoint-2", "checkpoint-4"]
    assert (tmp_path / "m" / "model.safetensors").exists()  # of step 3, the first epoch's evaluation
    log = (tmp_path / "m" / "train.log").read_text()
    assert "stopped by FloatingPointError" in log and "Traceback" in log


def test_a_gradient_that_is_not_finite_is_one_too(tmp_path, dataset_dir, monkeypatch):
    real, steps = TrainingStep.backward, []

    def backward(self, group):
        steps.append(len(steps))
        outputs = real(self, group)
        if len(steps) == 2:
            next(self.model.parameters()).grad[0] = torch.inf
        return outputs

    monkeypatch.setattr(TrainingStep, "backward", backward)
    with pytest.raises(FloatingPointError, match="not finite at step 2 .*nothing yet"):
        tiny.finetune(dataset_dir, None, tmp_path / "m", checkpointing_steps="2")
    assert not step_checkpoints(str(tmp_path / "m"))


@pytest.mark.parametrize("recipe", [tiny.finetune, tiny.pretrain])
@pytest.mark.parametrize("options", [{"max_train_steps": 1}, {"eval_steps": 1}, {"checkpointing_steps": "1"}])
def test_an_update_that_diverges_is_not_kept(tmp_path, dataset_dir, plm, recipe, options):
    options = {"learning_rate": 1e30, "warmup_ratio": 0.0, "logging_steps": 1000} | options
    with pytest.raises(FloatingPointError, match="not finite at step 1 .*nothing yet"):
        recipe(dataset_dir, plm, tmp_path / "m", **options)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"train.log"}


def overflowing(monkeypatch, at):
    """Runs with a scaler, as in fp16, whose gradients overflow at these steps."""
    real, steps = TrainingStep.__init__, []

    def new(self, accelerator, model, optimizer, args):
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = AcceleratedOptimizer(optimizer.optimizer, scaler=accelerator.scaler)
        accelerator._optimizers = [optimizer]
        real(self, accelerator, model, optimizer, args)

    def backward(self, group):
        steps.append(len(steps) + 1)
        outputs = FORWARD(self, group)
        if steps[-1] in at:
            next(p for p in self.model.parameters() if not p.grad.is_sparse).grad.view(-1)[0] = torch.inf
        return outputs

    monkeypatch.setattr(TrainingStep, "__init__", new)
    monkeypatch.setattr(TrainingStep, "backward", backward)


FORWARD = TrainingStep.backward


@pytest.mark.parametrize("kind", ["dense", "lazy_adam"])
def test_a_step_that_a_scaler_skips_is_none_to_the_schedule(tmp_path, dataset_dir, monkeypatch, kind):
    overflowing(monkeypatch, at=(1, 2))
    options = {
        "max_train_steps": 6,
        "logging_steps": 1,
        "warmup_ratio": 0.0,
        "embedding_optimizer": kind,
        "early_stopping_patience": None,
    }
    tiny.finetune(dataset_dir, None, tmp_path / "m", learning_rate=0.6, **options)
    history = json.loads((tmp_path / "m" / "history.json").read_text())
    rates = [entry["learning_rate"] for entry in history if "loss" in entry]
    assert rates == pytest.approx([0.6, 0.6, 0.5, 0.4, 0.3, 0.2])


def test_gradients_that_always_overflow_stop_the_run(tmp_path, dataset_dir, monkeypatch):
    overflowing(monkeypatch, at=range(4, 1000))
    with pytest.raises(FloatingPointError, match="not finite at step 4 "):
        tiny.finetune(
            dataset_dir, None, tmp_path / "m", max_train_steps=60, logging_steps=10, early_stopping_patience=None
        )


def test_after_a_run_that_failed_all_is_as_before(tmp_path, dataset_dir, monkeypatch):
    finished = []
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", lambda self: finished.append(self))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FloatingPointError):
        tiny.finetune(
            dataset_dir, None, tmp_path / "m", learning_rate=1e30, checkpointing_steps="1", report_to="tensorboard"
        )
    assert signal.getsignal(signal.SIGTERM) == handler and len(finished) == 1


@pytest.mark.parametrize(
    "wrong", [{"dataset_dir": "/nowhere"}, {"resume_from_checkpoint": "/nowhere"}, {"id_tower": "bert"}]
)
def test_a_refused_run_neither_leaves_nor_takes_a_file(tmp_path, dataset_dir, wrong):
    options = {"num_train_epochs": 1, "checkpointing_steps": "1"}
    tiny.finetune(dataset_dir, None, tmp_path / "old", **options)
    for name in ("old", "new"):
        before = {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        with pytest.raises((ValueError, OSError)):
            tiny.finetune(
                wrong.get("dataset_dir", dataset_dir),
                None,
                tmp_path / name,
                overwrite_output_dir=True,
                report_to="tensorboard",
                **options | {key: value for key, value in wrong.items() if key != "dataset_dir"},
            )
        assert {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()} == before


def test_the_logged_rate_is_that_of_the_heads(tmp_path, dataset_dir):
    options = {
        "learning_rate": 0.02,
        "embedding_learning_rate": 0.5,
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
    }
    for kind in ("dense", "rowwise_adagrad"):
        tiny.finetune(dataset_dir, None, tmp_path / kind, embedding_optimizer=kind, num_train_epochs=1, **options)
        history = json.loads((tmp_path / kind / "history.json").read_text())
        assert {entry["learning_rate"] for entry in history if "loss" in entry} == {0.02}


def test_tensorboard_gets_the_history(tmp_path, dataset_dir, plm):
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", report_to="tensorboard", logging_steps=1)
    events = EventAccumulator(str(tmp_path / "p" / "flip-ctr-pretrain"))
    events.Reload()
    history = json.loads((tmp_path / "p" / "history.json").read_text())
    for name in ("loss", "mlm_loss", "mtm_loss", "icl_loss", "learning_rate", "grad_norm", "eval_mtm_accuracy"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [
            (entry["step"], pytest.approx(entry[name], rel=1e-5)) for entry in history if name in entry
        ], name


def test_fp16_on_a_cpu_is_refused(tmp_path, dataset_dir):
    """Accelerate would train in float32 and say nothing."""
    with pytest.raises(ValueError, match="--mixed_precision fp16 needs a GPU; on a CPU choose bf16 or no"):
        tiny.finetune(dataset_dir, None, tmp_path / "m", mixed_precision="fp16")


def test_a_tracker_that_is_not_installed_is_named(tmp_path, dataset_dir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError,
        match=r"--report_to trackio: the package trackio is not installed \(pip install 'flip-ctr\[trackio\]'\)",
    ):
        tiny.finetune(dataset_dir, None, tmp_path / "m", report_to="trackio")
    assert not (tmp_path / "m").exists()


def test_the_bar_shows_the_loss_parts_and_the_last_auc(tmp_path, dataset_dir, plm, capsys):
    tiny.finetune(dataset_dir, None, tmp_path / "m", num_train_epochs=3)
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "9/9" in bar and "loss=" in bar and "auc=" in bar
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", num_train_epochs=1)
    bar = capsys.readouterr().err.split("\r")[-1]
    assert all(f"{part}_loss=" in bar for part in ("mlm", "mtm", "icl"))


class Clock:
    """Takes a second whenever it is read."""

    def __init__(self, *given):
        self.seconds = 0

    def perf_counter(self):
        self.seconds += 1
        return self.seconds


def test_time_that_runs_out_ends_the_run_at_the_end_of_its_schedule(tmp_path, dataset_dir, monkeypatch):
    monkeypatch.setattr(training_loop, "time", Clock())
    options = {"logging_steps": 1, "num_train_epochs": 100, "max_minutes": 0.5, "learning_rate": 0.01}
    results = tiny.finetune(dataset_dir, None, tmp_path / "m", early_stopping_patience=None, **options)
    history = json.loads((tmp_path / "m" / "history.json").read_text())
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert 5 < results["train_steps"] < 12 and history[-1]["step"] == results["train_steps"], "of 300"
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 0.001 < rates[1] < 0.01, "after a warm-up"
    assert "eval_auc" in history[-1]


def test_a_run_that_goes_on_has_spent_what_it_had_spent(tmp_path, dataset_dir, monkeypatch):
    options = {"num_train_epochs": 100, "max_minutes": 0.5, "checkpointing_steps": "2"}
    options |= {"early_stopping_patience": None, "resume_from_checkpoint": "latest"}
    monkeypatch.setattr(training_loop, "time", Clock())
    whole = tiny.finetune(dataset_dir, None, tmp_path / "whole", **options)
    monkeypatch.setattr(training_loop, "time", Clock())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(StepCheckpoints, "_any_asked_to_stop", lambda self: True)
        tiny.finetune(dataset_dir, None, tmp_path / "m", **options)
    monkeypatch.setattr(training_loop, "time", Clock())
    gone_on = tiny.finetune(dataset_dir, None, tmp_path / "m", **options)
    assert abs(gone_on["train_steps"] - whole["train_steps"]) <= 1
