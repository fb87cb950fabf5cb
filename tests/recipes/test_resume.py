"""A run that is killed goes on as if nothing had happened: the same weights, bit for bit."""

import json
import os
import random
import resource as rlimit
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import past
import pytest
import tiny
import torch
import warm_python
from safetensors.torch import load_file

from flip_ctr import FlipForCTR
from flip_ctr.data.outputs import claimed
from flip_ctr.modeling_flip.new_files_flip import PARTIAL
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.loop import resume, run
from flip_ctr.train.loop.resume import PREEMPTED, step_checkpoints
from flip_ctr.train.outputs import checkpoint

# 6 variants of 3 kills each: 18 random moments
KILLS = 3
VARIANTS = {
    "pretrain, 0 workers": ("pretrain", {"dataloader_num_workers": 0, "icl_weight": 1.0}),
    "pretrain, 2 workers": (
        "pretrain",
        {
            "dataloader_num_workers": 2,
            "gradient_accumulation_steps": 2,
            "checkpointing_steps": "1",
            "embedding_optimizer": "lazy_adam",
            "grad_cache_chunk_size": 6,
        },
    ),
    "finetune with histories, 0 workers": (
        "finetune",
        {
            "strategy": "joint",
            "fusion": "gate",
            "prompts": "entity",
            "plm_every": 3,
            "unk_rate": 0.2,
            "short_history_rate": 0.4,
            "dataloader_num_workers": 0,
        },
    ),
    "finetune, 2 workers": (
        "finetune",
        {
            "strategy": "joint",
            "use_lora": True,
            "lora_dropout": 0.1,
            "dataloader_num_workers": 2,
            "embedding_optimizer": "rowwise_adagrad",
        },
    ),
    "pretrain, 4 steps for one of the PLM": (
        "pretrain",
        {"prompts": "entity", "plm_every": 4, "plm_dropout": 0.1, "dataloader_num_workers": 0},
    ),
    "pretrain, streamed, 2 workers": (
        "pretrain",
        {
            "streaming": True,
            "dataloader_num_workers": 2,
            "gradient_accumulation_steps": 2,
            "checkpointing_steps": "1",
        },
    ),
}
# 20 steps, or 10 of two batches each: more than twice as many as the kills wait for
LONG = {
    "max_train_samples": 80,
    "max_eval_samples": 32,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "eval_steps": 8,
    "logging_steps": 5,
    "seed": 5,
    "checkpointing_steps": "2",
    "checkpoints_total_limit": 2,
    "resume_from_checkpoint": "latest",
}


SCRIPT = """
import json, multiprocessing, sys, tiny, torch
torch.set_num_threads(1)
multiprocessing.set_start_method("fork", force=True)  # loader workers need not import all again
recipe, paths, options = json.loads(sys.argv[1])
getattr(tiny, recipe)(*paths, **options)
"""


def start(recipe, paths, options) -> warm_python.Process:
    return warm_python.Process(["-c", SCRIPT, json.dumps([recipe, list(map(str, paths)), options])])


def finish(recipe, paths, options) -> int:
    process = start(recipe, paths, options)
    process.join(300)
    return process.exitcode


def same_results(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    first, second = (json.loads((folder / "history.json").read_text()) for folder in (one, other))
    for entry in first + second:
        del entry["seconds"]
    assert first == second
    first, second = (json.loads((folder / "all_results.json").read_text()) for folder in (one, other))
    del first["train_seconds"], second["train_seconds"]
    assert first == second


def newest(folder: Path) -> int:
    return max((int(Path(path).name.split("-")[1]) for path in step_checkpoints(str(folder))), default=0)


needs_forks = pytest.mark.skipif(warm_python.WARM is None, reason="needs pidfd_open, which Linux has")


@needs_forks
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_random_moments(tmp_path, dataset_dir, plm, variant):
    recipe, options = VARIANTS[variant]
    if "short_history_rate" in options:
        dataset_dir = past.write_past_dataset(tmp_path / "d", 80)
    generator = random.Random(variant)
    options = LONG | options
    untouched = {name: value for name, value in options.items() if "checkpoint" not in name}
    assert finish(recipe, (dataset_dir, plm, tmp_path / "whole"), untouched) == 0
    folder, reached = tmp_path / "killed", []
    for kill in range(KILLS):
        process, begun = start(recipe, (dataset_dir, plm, folder), options), newest(folder)
        if kill == 0:
            time.sleep(
                generator.uniform(0, 0.5)
            )  # while it starts; the others come after some more step checkpoints and a moment
        else:
            goal = begun + int(options["checkpointing_steps"]) * generator.randint(1, 2)
            while newest(folder) < goal:
                assert process.is_alive()
                time.sleep(0.002)
            time.sleep(generator.uniform(0, 0.05))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        reached.append(newest(folder))
        assert (
            len(step_checkpoints(str(folder))) <= 3
        )  # two are kept; a third one where the kill came before the oldest went
    assert finish(recipe, (dataset_dir, plm, folder), options) == 0
    same_results(tmp_path / "whole", folder)
    assert reached[1:] == sorted(set(reached[1:])) and len(reached) == KILLS  # it did go on, each time from further on
    assert not [name for name in os.listdir(folder) if name.startswith((PARTIAL, ".saving"))]


@needs_forks
def test_a_preempted_run_saves_and_says_so(tmp_path, dataset_dir, plm):
    options = LONG | {"strategy": "plm", "checkpointing_steps": "1000"}
    paths = (dataset_dir, plm, tmp_path / "m")
    process = start("finetune", paths, options)
    while not (tmp_path / "m" / "history.json").exists():  # it trains
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == PREEMPTED == 75
    assert len(step_checkpoints(str(tmp_path / "m"))) == 1
    assert finish("finetune", paths, options) == 0
    whole = {name: value for name, value in options.items() if "checkpoint" not in name}
    assert finish("finetune", (dataset_dir, plm, tmp_path / "whole"), whole) == 0
    same_results(tmp_path / "whole", tmp_path / "m")


# --- one run, in this process


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, dataset_dir):
    """An ID-only run of 6 steps with a step checkpoint after each."""
    folder = tmp_path_factory.mktemp("stopped") / "m"
    tiny.finetune(dataset_dir, None, folder, checkpointing_steps="1")
    return folder


def go_on(dataset_dir, folder, **options):
    return tiny.finetune(
        dataset_dir, None, folder, checkpointing_steps="1", **{"resume_from_checkpoint": "latest"} | options
    )


def test_what_a_step_checkpoint_holds(stopped):
    assert [Path(path).name for path in step_checkpoints(str(stopped))] == [
        f"checkpoint-{step}" for step in range(1, 7)
    ]
    folder = stopped / "checkpoint-3"
    assert {path.name for path in folder.iterdir()} == {"training_state.pt", "process_0.pt", "progress.json"}
    state = torch.load(folder / "training_state.pt", weights_only=True)  # no code is run by reading it
    assert state["loop"]["step"] == 3 and state["optimizer"]["state"] and state["scheduler"]["last_epoch"] == 3


def test_from_any_step_to_the_same_end(tmp_path, stopped, dataset_dir):
    for step in (1, 3, 5):
        go_on(dataset_dir, tmp_path / str(step), resume_from_checkpoint=str(stopped / f"checkpoint-{step}"))
        same_results(stopped, tmp_path / str(step))


def test_what_a_killed_run_kept_beyond_the_limit_goes(tmp_path, stopped, dataset_dir):
    shutil.copytree(stopped, tmp_path / "m")
    go_on(dataset_dir, tmp_path / "m", checkpoints_total_limit=2)  # all steps are done
    assert [Path(path).name for path in step_checkpoints(str(tmp_path / "m"))] == ["checkpoint-5", "checkpoint-6"]
    same_results(stopped, tmp_path / "m")


@pytest.mark.parametrize("kind", ["frozen", "frozen by entity", "map", "locked"])
def test_every_kind_of_run_goes_on(tmp_path, dataset_dir, plm, kind):
    alone = {"mlm_weight": 0.0, "icl_weight": 0.0, "mtm_text_dropout": 1.0}
    options = {
        "frozen": {"strategy": "frozen"},
        "frozen by entity": {"strategy": "frozen", "prompts": "entity", "per_device_train_batch_size": 8},
        "map": alone,
        "locked": {"id_model": str(tmp_path / "start")},
    }[kind]
    if kind == "locked":
        tiny.pretrain(dataset_dir, None, tmp_path / "start", max_train_steps=1, **alone)
    recipe, model = tiny.finetune if "frozen" in kind else tiny.pretrain, None if kind == "map" else plm
    recipe(dataset_dir, model, tmp_path / "whole", checkpointing_steps="1", **options)
    start = str(tmp_path / "whole" / "checkpoint-2")
    recipe(dataset_dir, model, tmp_path / "m", checkpointing_steps="1", resume_from_checkpoint=start, **options)
    same_results(tmp_path / "whole", tmp_path / "m")


def test_a_continuation_elsewhere_without_the_best_model_is_refused(tmp_path, stopped, dataset_dir):
    shutil.copytree(stopped / "checkpoint-5", tmp_path / "moved" / "checkpoint-5")  # after an evaluation
    with pytest.raises(
        ValueError, match="the best model of that run so far is not in .*moved, where it was saved; put it there"
    ):
        go_on(dataset_dir, tmp_path / "m", resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-5"))
    assert not (tmp_path / "m").exists()


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "training_state.pt": (flip_bit, "training_state.pt is damaged"),
    "process_0.pt": (Path.unlink, "process_0.pt is missing"),
    "progress.json": (lambda path: path.write_text(path.read_text()[:-20]), "progress.json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_step_checkpoint_is_left_out(tmp_path, stopped, dataset_dir, name, caplog):
    change, named = DAMAGES[name]
    shutil.copytree(stopped, tmp_path / "m")
    last, one_before = tmp_path / "m" / "checkpoint-6", tmp_path / "m" / "checkpoint-5"
    change(last / name)
    with pytest.raises(ValueError, match=f"--resume_from_checkpoint {last}: {named}"):
        go_on(dataset_dir, tmp_path / "m", resume_from_checkpoint=str(last))
    if name == "training_state.pt":
        go_on(dataset_dir, tmp_path / "m")
        same_results(stopped, tmp_path / "m")
        log = (tmp_path / "m" / "train.log").read_text()
        assert f"{last} is left out: {named}" in log and f"going on from {one_before}" in log
        for folder in step_checkpoints(str(tmp_path / "m")):
            flip_bit(Path(folder, name))
        with pytest.raises(ValueError, match="no step checkpoint is whole .*start from the beginning"):
            go_on(dataset_dir, tmp_path / "m")


@pytest.mark.parametrize("killed_after", [0, 1, 2])
def test_a_checkpoint_over_another_is_never_a_mix(tmp_path, stopped, dataset_dir, killed_after, monkeypatch):
    """A run that is killed while it puts its files in place: what it leaves is refused, and the next run finishes."""
    shutil.copytree(stopped, tmp_path / "m")
    replace, done = os.replace, []

    def killed(*paths):
        if (tmp_path / "m" / ".saved").exists():
            done.append(paths)
        if len(done) > killed_after:
            raise KeyboardInterrupt
        replace(*paths)

    options = {"num_train_epochs": 1, "id_embedding_size": 4}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny.finetune(dataset_dir, None, tmp_path / "m", overwrite_output_dir=True, **options)
    new = FlipForCTR.from_pretrained(tmp_path / "m" / ".saved").state_dict()
    if killed_after == 0:  # the files of the old one, still
        FlipForCTR.from_pretrained(tmp_path / "m")
    else:
        with pytest.raises(ValueError, match=r"m.*was stopped here.*load .*\.saved"):
            FlipForCTR.from_pretrained(tmp_path / "m")
    run.claim_output_dir(SimpleNamespace(output_dir=str(tmp_path / "m"), overwrite_output_dir=True))
    run._held.close()
    assert not [name for name in os.listdir(tmp_path / "m") if name.startswith(".")]
    found = FlipForCTR.from_pretrained(tmp_path / "m").state_dict()
    assert found.keys() == new.keys() and all(torch.equal(found[name], new[name]) for name in new)


def test_half_of_what_was_put_in_place_is_no_checkpoint(tmp_path, stopped, monkeypatch):
    shutil.copytree(stopped, tmp_path / "m")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "m").glob("*.*") if path.is_file()}
    saved = tmp_path / "m" / ".saved"
    saved.mkdir()
    for name in whole:
        shutil.copy(tmp_path / "m" / name, saved)

    def killed(folder):
        Path(folder, "config.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.place_saved(str(tmp_path / "m"))
    checkpoint.clear_leftovers(str(tmp_path / "m"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").glob("*.*") if path.is_file()} == whole


def test_two_runs_into_one_folder(tmp_path, dataset_dir):
    with claimed(tmp_path / "m", tmp_path / "m" / ".lock"):
        with pytest.raises(FileExistsError, match=f"m is being written by process {os.getpid()}"):
            tiny.finetune(dataset_dir, None, tmp_path / "m", max_train_steps=1)
    tiny.finetune(dataset_dir, None, tmp_path / "m", max_train_steps=1)
    assert not list((tmp_path / "m").glob(".*"))


def test_the_number_of_workers_may_change(tmp_path, stopped, dataset_dir):
    go_on(dataset_dir, tmp_path / "m", resume_from_checkpoint=str(stopped / "checkpoint-2"), dataloader_num_workers=1)
    same_results(stopped, tmp_path / "m")


def test_latest_without_a_checkpoint_starts_anew(tmp_path, stopped, dataset_dir):
    go_on(dataset_dir, tmp_path / "m")
    same_results(stopped, tmp_path / "m")


def test_a_run_that_does_not_go_on_clears_the_steps_of_another(tmp_path, dataset_dir):
    tiny.finetune(dataset_dir, None, tmp_path / "m", checkpointing_steps="epoch")
    assert [Path(path).name for path in step_checkpoints(str(tmp_path / "m"))] == ["checkpoint-3", "checkpoint-6"]
    tiny.finetune(dataset_dir, None, tmp_path / "m", overwrite_output_dir=True)
    assert not step_checkpoints(str(tmp_path / "m"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.1}, "is of a run with other arguments: --learning_rate was 0.003 and is 0.1"),
        ({"num_train_epochs": 9}, "--num_train_epochs was 2.0 and is 9.0"),
        (
            {"resume_from_checkpoint": "nowhere"},
            "--resume_from_checkpoint nowhere: not a step checkpoint: it has no progress.json",
        ),
    ],
)
def test_another_run_is_refused(stopped, dataset_dir, options, message):
    with pytest.raises(ValueError, match=message):
        go_on(dataset_dir, stopped, **options)


def test_other_rows_are_refused(stopped, dataset_dir, monkeypatch):
    monkeypatch.setattr(resume, "fingerprint", lambda dataset: 0)
    with pytest.raises(ValueError, match="is of a run on other training rows than"):
        go_on(dataset_dir, stopped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"checkpointing_steps": "0"},
            "--checkpointing_steps must be a number of steps of at least 1, or `epoch`; got 0",
        ),
        ({"checkpointing_steps": "each"}, "got each"),
        ({"checkpoints_total_limit": 2}, "--checkpoints_total_limit has no effect without --checkpointing_steps"),
        ({"checkpointing_steps": "1", "checkpoints_total_limit": 0}, "--checkpoints_total_limit must be at least 1"),
    ],
)
def test_wrong_flags_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", **options)


@pytest.fixture
def no_room():
    """From its call on no file can grow beyond 32 kB: writing fails as on a full disk, in whatever library writes."""
    before = rlimit.getrlimit(rlimit.RLIMIT_FSIZE)
    yield lambda: rlimit.setrlimit(rlimit.RLIMIT_FSIZE, (32_768, before[1]))
    rlimit.setrlimit(rlimit.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_earlier_checkpoints(tmp_path, dataset_dir, monkeypatch, no_room):
    write, written = resume._write, []

    def full(path, content):
        written.append(path)
        if len(written) == 6:  # in the middle of the third checkpoint
            no_room()
        write(path, content)

    monkeypatch.setattr(resume, "_write", full)
    wide = {"id_embedding_size": 32}
    with pytest.raises(
        OSError, match="checkpoint-3 could not be saved .*File too large. Whole ones there: checkpoint-1, checkpoint-2"
    ):
        tiny.finetune(dataset_dir, None, tmp_path / "m", checkpointing_steps="1", **wide)
    assert not [name for name in os.listdir(tmp_path / "m") if name.startswith(PARTIAL)]
    rlimit.setrlimit(rlimit.RLIMIT_FSIZE, (rlimit.RLIM_INFINITY, rlimit.getrlimit(rlimit.RLIMIT_FSIZE)[1]))
    monkeypatch.setattr(resume, "_write", write)
    go_on(dataset_dir, tmp_path / "m", **wide)


def test_a_full_disk_leaves_the_best_model(tmp_path, dataset_dir, monkeypatch, no_room):
    saved = []

    def full(*args):
        saved.append(0)
        if len(saved) == 2:
            kept.update(
                {path: path.read_bytes() for path in (tmp_path / "m").iterdir() if not path.name.startswith(".")}
            )
            no_room()
        checkpoint_save(*args)

    kept = {}
    checkpoint_save = checkpoint._save
    monkeypatch.setattr(checkpoint, "_save", full)
    with pytest.raises(
        OSError, match="the checkpoint could not be saved in .*[Ff]ile too large.*What lay there is as it was"
    ):
        tiny.finetune(
            dataset_dir, None, tmp_path / "m", id_embedding_size=128, num_train_epochs=6, max_train_samples=400
        )
    weights = tmp_path / "m" / "model.safetensors"
    assert kept[weights] == weights.read_bytes() and len(kept[weights]) > 32_768
    assert {path.name for path in kept} == {path.name for path in (tmp_path / "m").iterdir()}


def test_an_early_stop_is_remembered(tmp_path, dataset_dir, pictures):
    """Stopped by patience, asked to go on: it stays stopped."""
    options = {"num_train_epochs": 20, "early_stopping_patience": 1, "learning_rate": 0.5}
    first = tiny.finetune(dataset_dir, None, tmp_path / "m", checkpointing_steps="1", **options)
    assert first["train_steps"] < 60
    again = go_on(dataset_dir, tmp_path / "m", **options)
    assert (tmp_path / "m" / "history.json").exists() and (tmp_path / "m" / "training.png").exists()
    assert {name: value for name, value in again.items() if "seconds" not in name} == {
        name: value for name, value in first.items() if "seconds" not in name
    }
