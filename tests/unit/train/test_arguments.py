"""Flags over YAML over preset over defaults, and the command's errors in one line."""

import json
import re

import pytest

from flip_ctr.train import cli
from flip_ctr.train.arguments import PRESETS, parse_arguments, with_preset
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.prepare import PrepareArguments
from flip_ctr.train.pretrain import PretrainArguments

NEEDED = ["--dataset_dir", "d", "--output_dir", "o", "--model_name_or_path", "m"]


def pretrain_arguments(*flags: str) -> PretrainArguments:
    return parse_arguments(PretrainArguments, [*NEEDED, *flags])


@pytest.fixture
def write(tmp_path):
    def write_yaml(text: str) -> list[str]:
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        return ["--config", str(tmp_path / "c.yaml")]

    return write_yaml


def error_of(capsys, parse, *args) -> str:
    with pytest.raises(SystemExit) as exit_:
        parse(*args)
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_defaults():
    args = pretrain_arguments()
    assert (args.id_tower, args.mtm_noise) == (
        None,
        "field",
    )  # the tower: a checkpoint's own, or the configuration's default
    assert args.lr_scheduler_type == "cosine" and args.plm_learning_rate == 1e-4
    assert parse_arguments(FinetuneArguments, NEEDED).lr_scheduler_type == "linear"


def test_yaml_fills_in_and_satisfies_required_options(write):
    args = parse_arguments(
        PretrainArguments,
        write(
            "dataset_dir: d\noutput_dir: o\nmodel_name_or_path: m\nid_hidden_dims: [16, 8]\noverwrite_output_dir: "
            "true\n"
        ),
    )
    assert (args.dataset_dir, args.id_hidden_dims, args.overwrite_output_dir) == ("d", [16, 8], True)


@pytest.mark.parametrize("number", ["1e-3", "0.001", "1.0e-3", "'1e-3'"])
def test_yaml_numbers_are_numbers(write, number):
    args = pretrain_arguments(*write(f"learning_rate: {number}\nnum_train_epochs: 3\nper_device_train_batch_size: 8\n"))
    assert args.learning_rate == 0.001 and isinstance(args.learning_rate, float)
    assert args.num_train_epochs == 3.0 and args.per_device_train_batch_size == 8


def test_a_single_number_may_stand_for_a_list(write):
    assert pretrain_arguments(*write("id_hidden_dims: 16\n")).id_hidden_dims == [16]


def test_null_in_yaml_is_none(write):
    assert (
        parse_arguments(FinetuneArguments, [*NEEDED, *write("early_stopping_patience: null\n")]).early_stopping_patience
        is None
    )


def test_yaml_of_its_own_kind(write):
    """A plain `no` is a boolean there, a mapping needs no quotes, and null is what an option that may be left out is
    without."""
    given = write(
        "dataset_dir: d\noutput_dir: o\nmodel_name_or_path: m\nmixed_precision: no\nmlm_vocabulary: "
        "null\nid_tower_kwargs: {num_cross_layers: 2}\n"
    )
    args = parse_arguments(PretrainArguments, given)
    assert (args.mixed_precision, args.mlm_vocabulary, json.loads(args.id_tower_kwargs)) == (
        "no",
        "dataset",
        {"num_cross_layers": 2},
    )


def test_a_mistyped_option_is_told_from_the_others(capsys, write):
    for argv, hint in (
        (["--epochs", "3"], "--num_train_epochs"),
        (["--learning-rte", "3"], "--learning_rate"),
        (["--zzz"], None),
    ):
        with pytest.raises(SystemExit):
            parse_arguments(FinetuneArguments, ["--dataset_dir", "d", "--output_dir", "o", *argv], "flip-ctr finetune")
        message = capsys.readouterr().err
        assert message.startswith("flip-ctr finetune: error: unrecognized arguments: --") and message.count("\n") == 1
        assert (f"; did you mean {hint}?" in message) == (hint is not None)


def test_flags_win_over_yaml_over_preset_over_defaults(write):
    config = write("preset: paper\nfusion: gate\nseed: 7\n")
    args = parse_arguments(FinetuneArguments, [*NEEDED, *config, "--seed", "9"])
    assert (args.unk_rate, args.fusion, args.seed) == (0.0, "gate", 9)
    args = parse_arguments(FinetuneArguments, [*NEEDED, *config, "--fusion", "scalar", "--unk_rate", "0.5"])
    assert (args.unk_rate, args.fusion, args.seed) == (0.5, "scalar", 7)


@pytest.mark.parametrize("arguments", [FinetuneArguments, PretrainArguments])
def test_the_paper_preset_sets_what_the_recipe_has(arguments):
    args = parse_arguments(arguments, [*NEEDED, "--preset", "paper"])
    assert all(getattr(args, name) == value for name, value in PRESETS["paper"].items() if hasattr(args, name))
    assert sum(hasattr(args, name) for name in PRESETS["paper"]) >= 3


def test_every_preset_key_is_an_option_of_some_recipe():
    recipes = (PrepareArguments, PretrainArguments, FinetuneArguments)
    known = {name for arguments in recipes for name in arguments.__dataclass_fields__}
    assert all(set(preset) <= known for preset in PRESETS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "learning_rat: 1\nseeds: 2\n",
            "unknown option(s) learning_rat (did you mean learning_rate?), seeds (did you mean seed?)",
        ),
        ("- a\n- b\n", "expected `option: value` lines"),
        ("mlm_weight: null\n", "mlm_weight has no value; leave the line out"),
        ("learning-rte: 1\n", "unknown option(s) learning-rte (did you mean learning_rate?)"),
        ("seed: [1\n", "c.yaml: while parsing"),
        ("seed: 1.5\n", "argument --seed: invalid int value: '1.5'"),
        ("learning_rate: fast\n", "invalid float value: 'fast'"),
        ("mask_unit: word\n", "mask_unit: 'word' is not one of field, entity, token"),
        ("preset: nature\n", "--preset must be one of paper; got 'nature'"),
        ("unk_rate: 1.5\n", "--unk_rate must be at least 0 and below 1; got 1.5"),
    ],
)
def test_wrong_yaml_is_refused(write, capsys, text, message):
    config = write(text)
    with pytest.raises(SystemExit) as exit_:
        pretrain_arguments(*config)
    assert exit_.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "nature"], "--preset must be one of paper; got 'nature'"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: "),
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),
        (["--seeds", "1"], "--seeds"),
        (["--mask_unit", "word"], "invalid choice: 'word'"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1; got 0"),
        (["--learning_rate", "0"], "--learning_rate must be above 0; got 0.0"),
    ],
)
def test_wrong_flags_are_refused(capsys, flags, message):
    try:
        error = error_of(capsys, pretrain_arguments, *flags)
    except ValueError as one:  # of transformers, for unknown flags; the command prints it
        error = str(one)
    assert message in error


def test_required_options_are_named(capsys):
    error = error_of(capsys, parse_arguments, PretrainArguments, [])
    assert all(flag in error for flag in NEEDED[:4:2])
    error = error_of(capsys, parse_arguments, PretrainArguments, NEEDED[:4])
    assert "an objective uses the PLM: --model_name_or_path must name it" in error


@pytest.mark.parametrize("strategy", ["plm", "joint"])
def test_a_strategy_with_a_plm_needs_one(capsys, strategy):
    error = error_of(capsys, parse_arguments, FinetuneArguments, [*NEEDED[:4], "--strategy", strategy])
    assert f"--strategy {strategy} needs a PLM" in error and "--model_name_or_path" in error


def test_prepare_reads_yaml_too(write):
    args = parse_arguments(PrepareArguments, write("dataset: ml-1m\noutput_dir: o\ndrop_ratings: 3\nsplit_seed: 5\n"))
    assert (args.dataset, args.drop_ratings, args.split_seed) == ("ml-1m", "3", 5)


# --- the command


def test_usage(capsys):
    assert cli.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in ("prepare", "pretrain", "finetune", "evaluate", "predict"))
    assert cli.main([]) == 2


def test_an_unknown_command_is_named(capsys):
    assert cli.main(["train"]) == 2
    assert "no command 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prepare", "pretrain", "finetune", "evaluate", "predict"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0 and f"flip-ctr {command}" in shown
    if command in ("pretrain", "finetune"):  # what the paper's settings are, a line for each case
        assert "\n  paper: id_initializer_range 0.0001, " in shown and re.search(
            r"\n  (joint, )?--preset paper: \w+ ", shown
        )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretrain", "--dataset_dir", "nowhere", "--output_dir", "{tmp}/o", "--model_name_or_path", "m"], "nowhere"),
        (["evaluate", "--dataset_dir", "{data}", "--model_name_or_path", "{tmp}/nowhere"], "nowhere"),
        (
            ["predict", "--model_name_or_path", "m", "--input", "rows.txt", "--output", "o.tsv"],
            "o.tsv: expected a file that ends",
        ),
        (["finetune", *NEEDED[:4], "--strategy", "id", "--seeds", "1"], "--seeds"),
    ],
)
def test_what_a_user_did_wrong_is_one_line_and_exit_code_2(tmp_path, dataset_dir, capsys, argv, message):
    argv = [part.format(tmp=tmp_path, data=dataset_dir) for part in argv]
    try:
        code = cli.main(argv)
    except SystemExit as exit_:
        code = exit_.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message in lines[-1] and "Traceback" not in "".join(lines)
    assert lines[-1].startswith(f"flip-ctr {argv[0]}: error: ")


@pytest.mark.parametrize("arguments", [FinetuneArguments, PretrainArguments])
def test_a_preset_from_python_is_that_of_the_command_line(arguments):
    needed = {name.removeprefix("--"): value for name, value in zip(NEEDED[::2], NEEDED[1::2])}
    assert with_preset(arguments, "paper", **needed) == parse_arguments(arguments, [*NEEDED, "--preset", "paper"])
    assert with_preset(arguments, "paper", **needed, unk_rate=0.5).unk_rate == 0.5
    with pytest.raises(
        ValueError,
        match=rf"preset='paper' alone does not set .*unk_rate.*; in Python write with_preset\({arguments.__name__}",
    ):
        arguments(**needed, preset="paper")
    with pytest.raises(ValueError, match="--preset must be one of paper; got 'nature'"):
        arguments(**needed, preset="nature")


def test_the_preset_of_prepare_contradicts_nothing():
    given = {"dataset": "ml-1m", "output_dir": "D"}
    assert with_preset(PrepareArguments, "paper", **given).ids_in_prompt
    with pytest.raises(ValueError, match="--preset paper puts the ids into the prompt, and ids_in_prompt is False"):
        PrepareArguments(**given, preset="paper")
    with pytest.raises(ValueError, match="--preset must be one of paper; got 'nature'"):
        PrepareArguments(**given, preset="nature")
