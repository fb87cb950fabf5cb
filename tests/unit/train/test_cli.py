"""The `flip-ctr` command: its errors in one line, and what it does not import."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import tiny

from flip_ctr.train import cli

NEEDED = ["--dataset_dir", "d", "--output_dir", "o"]
ROOT = Path(__file__).parents[3]  # of the checkout, after what is installed
COMMAND = """
import gc, sys
gc.disable()  # while it imports, which takes most of the time
sys.path.append({root!r})
from flip_ctr_command import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
{then}
large = ("torch", "transformers", "pandas", "ibis", "duckdb", "pyspark")
print("imported:", *[name for name in large if name in sys.modules])
sys.exit(code)
"""


def flip_ctr(*argv, python: str = sys.executable, then: str = "", **environment) -> subprocess.CompletedProcess:
    """The command as it is installed, and a line of code, in a process of its own; its last line of output says what
    that has imported."""
    return subprocess.run(
        [python, "-c", COMMAND.format(root=str(ROOT), then=then), *map(str, argv)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


# --- usage


def test_usage(capsys):
    assert cli.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in cli.COMMANDS)
    assert cli.main([]) == 2


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"flip-ctr {version('flip-ctr')}\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("finetun", "finetune"),
        ("fit", "train"),
        ("tune", "finetune"),
        ("eval", "evaluate"),
        ("preprocess", "prepare"),
        ("shap", "explain"),
        ("zzz", None),
    ],
)
def test_an_unknown_command_is_named(capsys, word, meant):
    assert cli.main([word]) == 2
    hint = f"; did you mean {meant}?" if meant else ""
    assert capsys.readouterr().err == f"flip-ctr: there is no command {word}{hint} (flip-ctr --help lists them)\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0 and shown.startswith(f"usage: flip-ctr {command} ")


# --- errors


WRONG = [
    (["pretrain", "--dataset_dir", "nowhere", "--output_dir", "{tmp}/o", "--model_name_or_path", "m"], "nowhere"),
    (["evaluate", "--dataset_dir", "{data}", "--model_name_or_path", "{tmp}/nowhere"], "nowhere"),
    (["predict", "--model_name_or_path", "m", "--input", "r.txt", "--output", "o.tsv"], "o.tsv: expected a file that"),
    (["finetune", *NEEDED, "--strategy", "id", "--seeds", "1"], "--seeds"),
    (["finetune", *NEEDED], "--strategy joint needs a PLM"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG)
def test_what_a_user_did_wrong_is_one_line_and_exit_code_2(tmp_path, dataset_dir, capsys, argv, message):
    argv = [part.format(tmp=tmp_path, data=dataset_dir) for part in argv]
    try:
        code = cli.main(argv)
    except SystemExit as exit_:
        code = exit_.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message in lines[-1] and "Traceback" not in "".join(lines)
    assert lines[-1].startswith(f"flip-ctr {argv[0]}: error: ")


@pytest.mark.parametrize(
    ("argv", "file"),
    [
        (["evaluate", "--dataset_dir", "nowhere", "--model_name_or_path", "m"], "shards.py"),
        (["finetune", *NEEDED], "arguments.py"),
    ],
)
def test_debug_shows_where_an_error_arose(capsys, argv, file):
    def said(*more) -> list[str]:
        try:
            assert cli.main([*argv, *more]) == 2
        except SystemExit as exit_:
            assert exit_.code == 2
        return capsys.readouterr().err.splitlines()

    lines = said("--debug")
    assert "Traceback (most recent call last):" in lines and any(file in line for line in lines)
    assert lines[-1] == said()[-1]


# --- what is not imported


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--help"], 0, "usage: flip-ctr COMMAND"),
        (["--version"], 0, "flip-ctr "),
        (["finetun"], 2, "did you mean finetune?"),
        (["finetune", "--help"], 0, "usage: flip-ctr finetune"),
        (["prepare", "--help"], 0, "usage: flip-ctr prepare"),
        (["pretrain", "--lr", "1"], 2, "did you mean --learning_rate?"),
        (["pretrain", *NEEDED], 2, "--model_name_or_path must name it"),
        (["finetune", *NEEDED, "--strategy", "ids"], 2, "did you mean id?"),
        (["finetune", "--accelerate_config", "none", *NEEDED, "--strategy", "id"], 2, "no such file, and not one of"),
    ],
)
def test_help_and_wrong_options_import_nothing_large(argv, code, text):
    ended = flip_ctr(*argv)
    assert ended.returncode == code and text in ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "imported:"


def test_prepare_imports_neither_torch_nor_transformers(tmp_path):
    raw = tiny.write_raw_100k(tmp_path / "raw")
    ended = flip_ctr("prepare", "--dataset", "ml-100k", "--data_dir", raw, "--output_dir=~/D", HOME=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    imported = ended.stdout.splitlines()[-1].split()
    assert not {"torch", "transformers"} & set(imported) and "ibis" in imported
    assert (tmp_path / "D" / "schema.json").is_file()


def test_the_command_trains_and_scores_in_the_home_folder(tmp_path, dataset_dir, warm):
    """The package's `__init__` has run before a recipe that loads a model: it is known to transformers. No recipe but
    `prepare` needs an engine."""
    (tmp_path / "D").symlink_to(dataset_dir)
    small = ["--max_train_samples=64", "--max_eval_samples=32", "--num_train_epochs=1", "--id_hidden_dims", "8"]
    ended = flip_ctr(
        "finetune", "--dataset_dir=~/D", "--strategy", "id", *small, "--output_dir=~/M", HOME=str(tmp_path), python=warm
    )
    assert ended.returncode == 0 and (tmp_path / "M" / "model.safetensors").is_file(), ended.stderr
    scored = ["--dataset_dir=~/D", "--model_name_or_path=~/M", "--max_eval_samples=32", "--output_dir=~/E"]
    others = "import flip_ctr.train.finetune, flip_ctr.train.pretrain, flip_ctr.train.predict"
    ended = flip_ctr("evaluate", *scored, HOME=str(tmp_path), then=others)
    assert ended.returncode == 0, ended.stderr
    imported = set(ended.stdout.splitlines()[-1].split())
    assert "torch" in imported and not {"ibis", "duckdb", "pyspark"} & imported
    assert (tmp_path / "E" / "all_results.json").is_file()
