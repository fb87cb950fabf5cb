"""The Accelerate configs that are shipped start the recipes, as far as CPUs go; FSDP2 and ZeRO-2 learn what one process
does."""

import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import sharded_child
import tiny
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from flip_ctr.train import cli, finetune
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.launch import CONFIGS, LAUNCHED, config_names
from flip_ctr.train.loop import run as run_module
from flip_ctr.train.loop.distributed import check_accelerator, check_launch, check_run
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.models import build

EXPECTED = {  # name -> kind, processes, machines
    "single_gpu": ("NO", 1, 1),
    "multi_gpu": ("MULTI_GPU", 8, 1),
    "multi_node": ("MULTI_GPU", 16, 2),
    "fsdp2": ("FSDP", 8, 1),
    "deepspeed_zero2": ("DEEPSPEED", 8, 1),
}
# 65 rows of validation: of the last batch one process has no row
SHARED = {
    "max_train_samples": 96,
    "max_eval_samples": 65,
    "num_train_epochs": 2,
    "per_device_eval_batch_size": 32,
    "warmup_ratio": 0.0,
    "seed": 1,
}
ALIKE = {
    "finetune": {
        "strategy": "joint",
        "unk_rate": 0.1,
        "early_stopping_patience": None,
        "gradient_checkpointing": True,
        "max_grad_norm": 0.02,
        "embedding_l2": 0.01,
    },
    "gate": {
        "strategy": "joint",
        "fusion": "gate",
        "id_tower": "deepfm",
        "id_tower_kwargs": "{}",
        "early_stopping_patience": None,
        "gradient_accumulation_steps": 2,
        "freeze_plm_layers": 1,
    },
    "pretrain": {"eval_steps": 2, "checkpointing_steps": "2"},  # weights are looked at after an evaluation
}
BF16 = {"bf16": {"strategy": "joint", "mixed_precision": "bf16", "max_train_steps": 2, "logging_steps": 1}}


def resumed(out: Path) -> dict:
    """Runs with dropout: each process has a random state of its own."""
    whole = {"strategy": "joint", "id_dropout": 0.2, "checkpointing_steps": "2"}
    return {"whole": whole, "resumed": whole | {"resume_from_checkpoint": str(out / "whole" / "checkpoint-2")}}


# --- the files


@pytest.mark.parametrize("name", EXPECTED)
def test_a_config_loads_and_says_nothing_that_accelerate_would_ignore(name):
    path = str(CONFIGS / f"{name}.yaml")
    config = load_config_from_file(path)  # refuses unknown keys, of the first level only
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == EXPECTED[name]
    assert config.mixed_precision is None  # the recipe's --mixed_precision counts
    parser = accelerate_launch.launch_command_parser()
    known = vars(parser.parse_args(["script.py"]))
    for section in (config.fsdp_config, config.deepspeed_config):
        assert set(section or {}) <= known.keys() - {"gradient_accumulation_steps", "gradient_clipping"}
    machine = ["--machine_rank", "0", "--main_process_ip", "127.0.0.1"] if config.num_machines > 1 else []
    args, *_ = accelerate_launch._validate_launch_command(
        parser.parse_args(["--config_file", path, *machine, "script.py"])
    )
    assert args.num_processes == EXPECTED[name][1]
    assert (args.use_fsdp, args.use_deepspeed) == (name == "fsdp2", name == "deepspeed_zero2")
    if name == "fsdp2":
        assert args.fsdp_version == 2
    if name == "deepspeed_zero2":
        assert args.zero_stage == 2


def test_the_configs_are_those_named_and_are_packaged():
    assert config_names() == sorted(EXPECTED)
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "flip_ctr.train"
    ]
    for path in (root / "train" / "accelerate_configs").iterdir():
        assert any(fnmatch(f"accelerate_configs/{path.name}", pattern) for pattern in patterns), path


# --- the command


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--accelerate_config", "fdsp2"],
            "--accelerate_config fdsp2: no such file, and not one of deepspeed_zero2, fsdp2, multi_gpu, multi_node, "
            "single_gpu (did you mean fsdp2?)",
        ),
        (["--num-processes", "2"], "--num_processes has no effect without --accelerate_config"),
        (
            ["--accelerate_config", "multi_node", "--machine_rank", "1"],
            "multi_node is for several machines and needs --main_process_ip",
        ),
        (
            ["--accelerate_config", "multi_node", "--main_process_ip", "::1"],
            "multi_node is for several machines and needs --machine_rank",
        ),
        (["--accelerate_config", __file__], "is no Accelerate config"),
    ],
)
def test_what_cannot_be_launched_is_said(argv, message, capsys):
    assert cli.main(["finetune", "--dataset_dir", "d", "--output_dir", "o", "--strategy", "id", *argv]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", LAUNCHED)
def test_help_shows_the_configs(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--accelerate_config NAME_OR_PATH" in shown and all(name in shown for name in EXPECTED)


@pytest.mark.parametrize("command", LAUNCHED)
def test_a_command_is_handed_to_accelerate_launch(command, monkeypatch, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text((CONFIGS / "multi_gpu.yaml").read_text())
    launched = []
    monkeypatch.setattr(accelerate_launch, "launch_command", launched.append)
    rest = ["--dataset_dir", "D", "--seed", "3", "--model_name_or_path", "M"] + ["--output_dir", "O"] * (
        command != "evaluate"
    )
    if command in ("predict", "rank"):
        rest = ["--input", "r.csv", "--output", "s.csv", "--model_name_or_path", "M"]
    if command == "fuse":
        rest = ["--dataset_dir", "D", "--id_model", "I", "--plm_model", "T", "--output_dir", "O"]
    if command == "rank":
        rest[:2] = ["--users", "u.csv", "--items", "i.csv"]
    assert cli.main([command, *rest[:2], "--accelerate_config", str(mine), "--num_processes=4", *rest[2:]]) == 0
    (args,) = launched
    assert (args.config_file, args.num_processes, args.main_process_port) == (str(mine), 4, None)
    assert (
        args.module and args.training_script == "flip_ctr.train.cli" and args.training_script_args == [command, *rest]
    )


# --- what does not fit is refused before anything is loaded


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "give the recipe --mixed_precision bf16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "give the recipe --gradient_accumulation_steps 4"),
    ],
)
def test_settings_of_the_launcher_that_contradict_the_recipe(variable, value, message, monkeypatch):
    check_launch("no")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        make_accelerator("no")


@pytest.mark.parametrize(
    ("has_bf16", "device", "told", "expected"),
    [
        (True, "cpu", None, "bf16"),
        (True, "cpu", "no", "bf16"),
        (False, "cpu", None, "no"),
        (True, "cuda", None, "no"),
        (False, "cpu", "bf16", "bf16"),
        (True, "cuda", "fp16", "fp16"),
        (True, "cpu", "fp16", "fp16"),
    ],
)
def test_precision_that_nobody_named(has_bf16, device, told, expected, monkeypatch):
    monkeypatch.setattr(run_module, "multiplies_bf16", lambda: has_bf16)
    monkeypatch.setattr(run_module, "PartialState", lambda cpu: SimpleNamespace(device=torch.device(device)))
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if told is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    assert run_module.default_precision() == expected


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_of_one_step_serves_the_next():
    """More than glibc keeps by itself, in blocks larger than any that it takes from the heap."""
    resource = pytest.importorskip("resource")

    def pages_of_a_step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(10**7) for _ in range(3)]  # 40 MB each
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    make_accelerator("no")
    assert min(pages_of_a_step() for _ in range(4)) < 1000  # of 30,000


def fake(kind: DistributedType, processes: int = 2, **state) -> SimpleNamespace:
    return SimpleNamespace(
        mixed_precision="no",
        distributed_type=kind,
        num_processes=processes,
        state=SimpleNamespace(**state),
        deepspeed_plugin=state.get("deepspeed_plugin"),
    )


def test_processes_that_do_not_know_of_each_other(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_accelerator(fake(DistributedType.MULTI_GPU))
    with pytest.raises(ValueError, match="one of 2 processes, but Accelerate found no GPU .* ACCELERATE_USE_CPU=1"):
        check_accelerator(fake(DistributedType.NO, processes=1))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_that_is_not_in_use(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(
        ValueError, match=f"asked for {name} and runs without it .MULTI_CPU.: it has {name} on GPUs only"
    ):
        check_accelerator(fake(DistributedType.MULTI_CPU))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fsdp_version": 1}, "fsdp_version is 1 in the Accelerate config; it must be 2"),
        ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading is true"),
        ({"auto_wrap_policy": "SIZE_BASED_WRAP"}, "fsdp_auto_wrap_policy must be TRANSFORMER_BASED_WRAP"),
    ],
)
def test_fsdp_settings_that_do_not_fit(settings, message, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # the plugin sets it
    right = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    check_accelerator(fake(DistributedType.FSDP, fsdp_plugin=FullyShardedDataParallelPlugin(**right)))
    with pytest.raises(ValueError, match=message):
        check_accelerator(fake(DistributedType.FSDP, fsdp_plugin=FullyShardedDataParallelPlugin(**right | settings)))


@pytest.mark.parametrize(
    ("kind", "stage", "options", "message"),
    [
        ("FSDP", None, {"use_lora": True}, "--use_lora does not run under FSDP"),
        ("FSDP", None, {"strategy": "id"}, "--strategy id does not run under FSDP"),
        ("DEEPSPEED", 2, {"use_lora": True}, "--use_lora does not run under DEEPSPEED"),
        ("DEEPSPEED", 2, {"checkpointing_steps": "epoch"}, "--checkpointing_steps does not run under DeepSpeed"),
        ("DEEPSPEED", 2, {"resume_from_checkpoint": "latest"}, "--resume_from_checkpoint does not run under DeepSpeed"),
    ],
)
def test_runs_that_do_not_fit(kind, stage, options, message):
    settings = {"dataset_dir": "D", "output_dir": "O", "model_name_or_path": "P"}
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"gradient_accumulation_steps": "auto"})
    accelerator = fake(DistributedType(kind), deepspeed_plugin=plugin)
    check_run(accelerator, FinetuneArguments(**settings))
    check_run(fake(DistributedType.MULTI_GPU), FinetuneArguments(**settings, **options))
    with pytest.raises(ValueError, match=message):
        check_run(accelerator, FinetuneArguments(**settings, **options))


@pytest.mark.parametrize(
    ("stage", "steps", "message"),
    [(0, 1, "zero_stage is 0"), (3, 1, "zero_stage is 3"), (2, 4, "gradient_accumulation_steps is 4")],
)
def test_deepspeed_settings_that_do_not_fit(stage, steps, message):
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"gradient_accumulation_steps": steps})
    with pytest.raises(ValueError, match=message):
        check_run(
            fake(DistributedType.DEEPSPEED, deepspeed_plugin=plugin),
            FinetuneArguments(dataset_dir="D", output_dir="O", model_name_or_path="P"),
        )


def test_ddp_does_not_send_buffers():
    assert make_accelerator("no").ddp_handler.broadcast_buffers is False


# --- real starts


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(python: str, command: list[str], log: Path, **environment: str) -> subprocess.Popen:
    """`python -m COMMAND`; the processes that it starts are of the same Python."""
    path = os.pathsep.join([str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"} | environment
    environment["PYTHON_EXEC"] = python
    with open(log, "w") as file:
        return subprocess.Popen([python, "-m", *command], env=environment, stdout=file, stderr=file)


def sharded(python: str, name: str, runs: dict, data, plm, out: Path, **environment: str) -> subprocess.Popen:
    """Two processes that run recipes under FSDP2 or DeepSpeed, started by `accelerate launch` with a shipped config."""
    arguments = [
        str(data),
        str(plm),
        str(out),
        json.dumps(runs),
        json.dumps(SHARED | {"per_device_train_batch_size": 16}),
    ]
    command = [
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / f"{name}.yaml"),
        "--num_processes",
        "2",
        "--main_process_port",
        free_port(),
        sharded_child.__file__,
        *arguments,
    ]
    return start(python, command, out / "log", ACCELERATE_USE_CPU="1", **environment)


def test_one_process_runs_in_the_command_itself(monkeypatch):
    """So that it hears SIGTERM, and its exit code is the command's."""
    seen = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(
        finetune,
        "run",
        lambda args: seen.append((os.getpid(), args.strategy, os.environ["ACCELERATE_MIXED_PRECISION"])),
    )
    flags = ["--dataset_dir", "d", "--output_dir", "o", "--strategy", "id"]
    assert cli.main(["finetune", "--accelerate_config", "single_gpu", *flags]) == 0
    assert seen == [(os.getpid(), "id", "no")]


def test_wrong_arguments_are_said_before_processes_start(monkeypatch, capsys):
    monkeypatch.setattr(accelerate_launch, "launch_command", None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(
            [
                "finetune",
                "--accelerate_config",
                "multi_gpu",
                "--dataset_dir",
                "d",
                "--output_dir",
                "o",
                "--strategy",
                "both",
            ]
        )
    assert "--strategy must be one of id, plm, joint, frozen; got 'both'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def started(tmp_path_factory, dataset_dir, calm_plm, warm):
    """All launches at once: output folder and the processes of each."""
    out = {name: tmp_path_factory.mktemp(name) for name in ("single_gpu", "multi_node", "fsdp2")}
    small = [
        "--max_train_samples",
        "64",
        "--max_eval_samples",
        "32",
        "--num_train_epochs",
        "1",
        "--id_hidden_dims",
        "8",
    ]

    def run(recipe, name, *options, folder, log="log", **environment):
        command = [
            "flip_ctr.train.cli",
            recipe,
            "--accelerate_config",
            name,
            *options,
            "--dataset_dir",
            str(dataset_dir),
            *small,
            "--output_dir",
            str(folder / "checkpoint"),
        ]
        return start(warm, command, folder / log, **environment)

    node = [
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        free_port(),
        "--num_processes",
        "2",
        "--strategy",
        "id",
    ]
    launches = {
        "fsdp2": lambda: [
            sharded(warm, "fsdp2", ALIKE | BF16 | resumed(out["fsdp2"]), dataset_dir, calm_plm, out["fsdp2"])
        ],
        "multi_node": lambda: [
            run(
                "finetune",
                "multi_node",
                "--machine_rank",
                rank,
                *node,
                folder=out["multi_node"],
                log=f"log{rank}",
                ACCELERATE_USE_CPU="1",
            )
            for rank in "01"
        ],
        "single_gpu": lambda: [
            run("pretrain", "single_gpu", "--model_name_or_path", str(calm_plm), folder=out["single_gpu"])
        ],
    }
    running = {name: Launch(out[name], launch) for name, launch in launches.items()}
    yield running
    for launch in running.values():
        launch.end()  # where a test gave up waiting


class Launch:
    """A launch in progress, with its logs in its output folder."""

    def __init__(self, folder: Path, start_all: Callable[[], list[subprocess.Popen]]):
        self.folder, self.start_all, self.crashes = folder, start_all, 0
        self.processes = start_all()

    def finished(self) -> Path:
        """The output folder, once all processes have ended well. One that crashed natively (gloo aborts once in many
        runs on CPUs) is started a second time, with a warning that says how it ended."""
        codes = [process.wait(200) for process in self.processes]
        if any(codes):
            logs = "".join(f"{log.name}:\n{log.read_text()[-20_000:]}" for log in sorted(self.folder.glob("log*")))
            crashed = re.search(r"exitcode\s*: -(6|11)\b", logs)
            assert crashed and not self.crashes, logs
            self.crashes += 1
            warnings.warn(
                f"{self.folder.name} crashed with signal {crashed[1]} and is started again; its logs end with\n{logs}",
                stacklevel=2,
            )
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            self.processes = self.start_all()
            return self.finished()
        return self.folder

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(("code", "starts"), [(-6, 2), (1, 1)])
def test_only_a_native_crash_is_started_again(code, starts, tmp_path):
    counted = tmp_path / "counted"

    def start_all():
        number = int(counted.read_text()) + 1 if counted.exists() else 1
        counted.write_text(str(number))
        program = f"import sys; print('exitcode  : {code} (pid: 7)'); sys.exit({int(number == 1)})"
        with open(tmp_path / "out" / "log", "w") as file:
            return [subprocess.Popen([sys.executable, "-c", program], stdout=file)]

    (tmp_path / "out").mkdir()
    launch = Launch(tmp_path / "out", start_all)
    if starts == 2:
        with pytest.warns(UserWarning, match="crashed with signal 6 and is started again"):
            assert launch.finished() == tmp_path / "out"
    else:
        with pytest.raises(AssertionError, match="exitcode"):
            launch.finished()
    assert counted.read_text() == str(starts)


# multi_gpu starts `test_distributed`
@pytest.mark.parametrize(("name", "processes"), [("single_gpu", 1), ("multi_node", 2)])
def test_a_config_starts_a_run(started, name, processes):
    folder = started[name].finished() / "checkpoint"
    assert json.loads((folder / "all_results.json").read_text())["num_processes"] == processes
    assert (folder / "model.safetensors").exists()


def same_as_one_process(name: str, folder: Path, tmp_path, dataset_dir, plm, monkeypatch) -> None:
    recipe = tiny.finetune if "strategy" in ALIKE[name] else tiny.pretrain
    monkeypatch.setattr(build, "new_config", sharded_child.without_projection_dropout())
    recipe(dataset_dir, plm, tmp_path / name, **SHARED, **ALIKE[name], per_device_train_batch_size=32)
    one, two = (load_file(parent / name / "model.safetensors") for parent in (tmp_path, folder))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    assert {path.name for path in (folder / name).iterdir()} == {path.name for path in (tmp_path / name).iterdir()}
    for file in ("config.json", "modeling_flip.py"):
        for parent in (folder, tmp_path):  # weights are equal but for rounding
            tiny.changed_on_purpose(parent / name, "model.safetensors")
        assert (folder / name / file).read_text() == (tmp_path / name / file).read_text()
    first, second = (json.loads((parent / name / "all_results.json").read_text()) for parent in (tmp_path, folder))
    metrics = [
        key for key in first if key.endswith(("auc", "logloss"))
    ]  # of pretraining, the losses depend on the processes' shares
    assert {key: second[key] for key in metrics} == pytest.approx({key: first[key] for key in metrics}, abs=2e-3)


@pytest.mark.parametrize("name", ALIKE)
def test_fsdp2_learns_what_one_process_does(started, name, tmp_path, dataset_dir, calm_plm, monkeypatch):
    folder = started["fsdp2"].finished()
    seen = json.loads((folder / f"{name}.json").read_text())
    # the PLM's blocks, its token embeddings (with the MLM decoder, which shares them) and the root
    roots = ["FSDPFlipForPretraining", "FSDPLinear"] if name == "pretrain" else ["FSDPFlipForCTR"]
    assert seen["kind"] == "FSDP" and seen["units"] == sorted(["FSDPBertLayer", "FSDPEmbedding", *roots])
    same_as_one_process(name, folder, tmp_path, dataset_dir, calm_plm, monkeypatch)


def rounded(numbers) -> bool:
    numbers = torch.as_tensor(numbers, dtype=torch.float32)
    return torch.equal(numbers.bfloat16().float(), numbers)


def bf16_rounds_no_result(folder: Path) -> None:
    """The checkpoint has the float32 weights that are trained, and losses keep their digits."""
    weights = load_file(folder / "bf16" / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert not any(rounded(weight) for weight in weights.values() if weight.numel() > 8)
    history = json.loads((folder / "bf16" / "history.json").read_text())
    assert not rounded([entry["loss"] for entry in history if "loss" in entry])


def test_fsdp2_in_bf16(started):
    bf16_rounds_no_result(started["fsdp2"].finished())


def test_fsdp2_goes_on_where_it_was(started):
    folder = started["fsdp2"].finished()
    assert (folder / "whole" / "checkpoint-2" / "process_1.pt").exists()
    whole, again = (load_file(folder / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_step_checkpoint_of_fsdp_does_not_go_on_without(started, tmp_path, dataset_dir, calm_plm):
    source = started["fsdp2"].finished() / "whole" / "checkpoint-2"
    manifest = json.loads((source / "progress.json").read_text()) | {"num_processes": 1}
    del manifest["manifest_sha256"], manifest["sha256"]
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "progress.json").write_text(json.dumps(manifest))
    options = resumed(tmp_path)["whole"] | {"resume_from_checkpoint": str(tmp_path / "checkpoint-2")}
    with pytest.raises(ValueError, match="is of a run with FSDP, this one is without it"):
        tiny.finetune(dataset_dir, calm_plm, tmp_path / "out", **SHARED, **options, per_device_train_batch_size=16)


def test_zero2_learns_what_one_process_does(tmp_path, dataset_dir, calm_plm, monkeypatch, warm):
    pytest.importorskip("deepspeed")
    out = tmp_path / "two"
    out.mkdir()
    process = sharded(warm, "deepspeed_zero2", ALIKE | BF16, dataset_dir, calm_plm, out, DS_ACCELERATOR="cpu")
    assert process.wait(300) == 0, (out / "log").read_text()[-4000:]
    for name in ALIKE:
        assert json.loads((out / f"{name}.json").read_text())["stage"] == 2
        same_as_one_process(name, out, tmp_path, dataset_dir, calm_plm, monkeypatch)
    bf16_rounds_no_result(out)
