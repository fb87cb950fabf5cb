"""Options of the commands: flags over YAML over preset over defaults by case; what is checked, and what help says."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import get_scheduler

from flip_ctr.data.batches import collators
from flip_ctr.data.datasets.public_datasets import PUBLIC_DATASETS
from flip_ctr.data.prepare.splits import RATIOS, SEED, SPLIT_RULES
from flip_ctr.modeling_flip.calibration_flip import CALIBRATIONS
from flip_ctr.modeling_flip.configuration_flip import FUSIONS, SETTINGS, STRATEGIES, FlipConfig
from flip_ctr.modeling_flip.id_tower import BUILT_IN_TOWERS
from flip_ctr.train import arguments, cli, option_groups, options, prepare_arguments
from flip_ctr.train.arguments import (
    EvaluateArguments,
    FinetuneArguments,
    PredictArguments,
    PrepareArguments,
    PretrainArguments,
)
from flip_ctr.train.options import DEFAULTS, Options, by_case, option, required
from flip_ctr.train.parser import make_parser, parse_arguments

NEEDED = ["--dataset_dir", "d", "--output_dir", "o", "--model_name_or_path", "m"]
GIVEN = {"dataset_dir": "d", "output_dir": "o", "model_name_or_path": "m"}
COMMANDS = {name: cli.arguments_of(name) for name in cli.COMMANDS}


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
    said = capsys.readouterr().err
    assert exit_.value.code == 2 and said.count("\n") == 1
    return said


# --- where a value comes from


def test_defaults():
    args = pretrain_arguments()
    # the tower: a checkpoint's own, or the configuration's default
    assert (args.id_tower, args.mtm_noise) == (None, "field")
    assert args.lr_scheduler_type == "cosine" and args.plm_learning_rate == 1e-4
    assert parse_arguments(FinetuneArguments, NEEDED).lr_scheduler_type == "linear"


def test_defaults_depend_on_the_case():
    def rates(**given):
        args = FinetuneArguments(**GIVEN | given)
        return args.learning_rate, args.plm_learning_rate, args.embedding_learning_rate

    assert rates() == (3e-3, 1e-4, None)
    assert rates(model_name_or_path=None, strategy="id") == (3e-3, 1e-4, None)
    assert rates(strategy="id") == (1e-3, 1e-4, None)
    assert rates(use_lora=True, embedding_optimizer="rowwise_adagrad") == (3e-3, 1e-3, 0.3)
    assert rates(preset="paper") == (5e-5, 5e-5, None) and rates(preset="paper", use_lora=True) == (5e-5, 1e-3, None)
    aligned = PretrainArguments(**GIVEN, id_model="i")
    assert (aligned.id_learning_rate, aligned.mlm_vocabulary, aligned.plm_dropout) == (0.0, "dataset", 0.0)
    paper = PretrainArguments(**GIVEN, id_model="i", preset="paper")
    assert (paper.id_learning_rate, paper.mlm_vocabulary, paper.plm_dropout) == (None, "plm", -1.0)
    assert PretrainArguments(**GIVEN, streaming=True).mlm_vocabulary == "plm"
    assert PretrainArguments(**GIVEN, streaming=True, mlm_weight=0.0).mlm_vocabulary is None


def test_yaml_fills_in_and_satisfies_required_options(write):
    config = write("dataset_dir: d\noutput_dir: o\nmodel_name_or_path: m\nid_hidden_dims: [16, 8]\nstreaming: true\n")
    args = parse_arguments(PretrainArguments, config)
    assert (args.dataset_dir, args.id_hidden_dims, args.streaming) == ("d", [16, 8], True)


@pytest.mark.parametrize("number", ["1e-3", "0.001", "1.0e-3", "'1e-3'"])
def test_yaml_numbers_are_numbers(write, number):
    args = pretrain_arguments(*write(f"learning_rate: {number}\nnum_train_epochs: 3\nper_device_train_batch_size: 8\n"))
    assert args.learning_rate == 0.001 and isinstance(args.learning_rate, float)
    assert args.num_train_epochs == 3.0 and args.per_device_train_batch_size == 8


def test_a_single_value_may_stand_for_a_list(write):
    args = pretrain_arguments(*write("id_hidden_dims: 16\nprompt_fields: title\ncustom_code: a.py\n"))
    assert (args.id_hidden_dims, args.prompt_fields, args.custom_code) == ([16], ["title"], ["a.py"])
    assert FinetuneArguments(**GIVEN, use_lora=True, lora_target_modules="query").lora_target_modules == ["query"]


def test_null_in_yaml_is_none(write):
    args = parse_arguments(FinetuneArguments, [*NEEDED, *write("early_stopping_patience: null\n")])
    assert args.early_stopping_patience is None


def test_yaml_of_its_own_kind(write):
    """A plain `no` is a boolean there, a mapping needs no quotes, and null is what an option that may be left out is
    without."""
    config = write("mixed_precision: no\nmlm_vocabulary: null\nid_tower_kwargs: {num_cross_layers: 2}\n")
    args = pretrain_arguments(*config)
    assert (args.mixed_precision, args.mlm_vocabulary) == ("no", "dataset")
    assert json.loads(args.id_tower_kwargs) == {"num_cross_layers": 2}


def test_flags_win_over_yaml_over_preset_over_defaults(write):
    config = write("preset: paper\nfusion: gate\nseed: 7\n")
    args = parse_arguments(FinetuneArguments, [*NEEDED, *config, "--seed", "9"])
    assert (args.unk_rate, args.fusion, args.seed) == (0.0, "gate", 9)
    args = parse_arguments(FinetuneArguments, [*NEEDED, *config, "--fusion", "scalar", "--unk-rate=0.5"])
    assert (args.unk_rate, args.fusion, args.seed) == (0.5, "scalar", 7)


def test_flags_of_switches():
    for flags, value in (([], False), (["--streaming"], True), (["--streaming", "false"], False)):
        assert parse_arguments(FinetuneArguments, [*NEEDED, *flags]).streaming is value


@pytest.mark.parametrize("recipe", [FinetuneArguments, PretrainArguments])
def test_a_preset_from_python_is_that_of_the_command_line(recipe):
    args = recipe(**GIVEN, preset="paper")
    assert args == parse_arguments(recipe, [*NEEDED, "--preset", "paper"])
    assert (args.unk_rate, args.id_initializer_range) == (0.0, 1e-4)
    assert recipe(**GIVEN, preset="paper", unk_rate=0.5).unk_rate == 0.5
    with pytest.raises(ValueError, match="--preset must be one of paper; got 'nature'"):
        recipe(**GIVEN, preset="nature")


def test_the_preset_of_prepare():
    given = {"dataset": "ml-1m", "output_dir": "D"}
    assert PrepareArguments(**given, preset="paper").ids_in_prompt and not PrepareArguments(**given).ids_in_prompt
    assert not PrepareArguments(**given, preset="paper", ids_in_prompt=False).ids_in_prompt


def test_prepare_reads_yaml_too(write):
    args = parse_arguments(PrepareArguments, write("dataset: ml-1m\noutput_dir: o\ndrop_ratings: 3\nsplit_seed: 5\n"))
    assert (args.dataset, args.drop_ratings, args.split_seed) == ("ml-1m", "3", 5)


@pytest.mark.parametrize("name", [DEFAULTS, *options.preset_names()])
def test_the_files_of_presets_hold_options_whose_default_depends_on_the_case(name):
    recipes = {one.recipe: one for one in COMMANDS.values() if one.recipe}
    for section, cases in options.preset_file(name).items():
        of = [recipes[section]] if section != options.ALL else list(recipes.values())
        for setting in {setting for settings in cases.values() for setting in settings}:
            fields = [one for cls in of for one in dataclasses.fields(cls) if one.name == setting]
            assert fields and all(one.metadata.get("by_case") for one in fields), setting


def test_every_option_without_a_value_of_its_own_has_one_in_some_case():
    for cls in COMMANDS.values():
        for one in dataclasses.fields(cls):
            if one.metadata.get("by_case"):
                kind = options.option_types(cls)[one.name]
                assert options.shown_default(cls, one) or kind is bool or type(None) in get_args(kind), one.name


# --- `~`, and what is published


def test_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = EvaluateArguments("~/M", "~/D", output_dir=Path("~/O"), custom_code=["~/a.py", "b.py"])
    assert (args.dataset_dir, args.model_name_or_path) == (f"{tmp_path}/D", f"{tmp_path}/M")
    assert (args.output_dir, args.custom_code) == (f"{tmp_path}/O", [f"{tmp_path}/a.py", "b.py"])
    write("input: ~/r.csv\n")
    args = parse_arguments(PredictArguments, ["--config=~/c.yaml", "--model_name_or_path=~/M", "--output=~/s.csv"])
    assert (args.input, args.output) == ([f"{tmp_path}/r.csv"], f"{tmp_path}/s.csv")
    args = PrepareArguments("table", "~/D", "~/raw", schema="~/s.yaml", data_files=["~/x*.csv"])
    assert (args.schema, args.data_files, args.data_dir) == (
        f"{tmp_path}/s.yaml",
        [f"{tmp_path}/x*.csv"],
        f"{tmp_path}/raw",
    )


@pytest.mark.parametrize("command", [name for name, cls in COMMANDS.items() if cls is not PrepareArguments])
def test_what_is_published_holds_no_path(command, tmp_path):
    (tmp_path / "m").mkdir()
    cls, given = COMMANDS[command], {}
    for one in dataclasses.fields(cls):
        if one.metadata.get("path") or one.metadata.get("model"):
            kind = options.option_types(cls)[one.name]
            given[one.name] = [str(tmp_path / "m")] if options.is_list(kind) else str(tmp_path / "m")
        elif one.default is one.default_factory is dataclasses.MISSING:
            given[one.name] = "x"
    if command == "demo":
        given["dataset"] = "ml-100k"
    if command == "finetune":
        given["strategy"] = "id"  # which alone has a teacher
    published = cls(**given).published()
    assert str(tmp_path) not in json.dumps(published)
    if "id_model" in published:
        assert published["id_model"] == "m"


# --- what is wrong


@dataclasses.dataclass(kw_only=True)
class Declared(Options):
    count: int = option(1, "a count", at_least=1)
    share: float = option(0.5, "a share", above=0, below=1, also=(-1.0,))
    three: list[int] | None = option(None, "three", length=3, at_least=0)
    name: str = option("one", "a name", choices=("one", "two"))
    switch: bool = option(False, "a switch")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 0}, "--count must be at least 1; got 0"),
        ({"count": "many"}, "--count must be a whole number; got 'many'"),
        ({"count": 1.5}, "--count must be a whole number; got 1.5"),
        ({"count": True}, "--count must be a whole number; got True"),
        ({"share": 1}, "--share must be above 0 and below 1; got 1.0"),
        ({"share": "half"}, "--share must be a number; got 'half'"),
        ({"share": float("nan")}, "--share must be above 0 and below 1; got nan"),
        ({"three": [1, 2]}, "--three takes 3 values; got 2"),
        ({"three": [1, 2, -1]}, "--three must be at least 0; got -1"),
        ({"name": "tow"}, "--name must be one of one, two; got 'tow' (did you mean two?)"),
        ({"name": ["one"]}, "--name must be text; got ['one']"),
        ({"switch": "maybe"}, "--switch must be true or false; got 'maybe'"),
    ],
)
def test_values_are_checked_as_they_are_declared(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Declared(**given)
    assert Declared(share=-1).share == -1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "learning_rat: 1\nseeds: 2\n",
            "there is no option learning_rat (did you mean learning_rate?), seeds (did you mean seed?)",
        ),
        ("lr: 1\n", "there is no option lr (did you mean learning_rate?)"),
        ("- a\n- b\n", "expected `option: value` lines"),
        ("mlm_weight: null\n", "mlm_weight has no value; leave the line out"),
        ("learning-rte: 1\n", "there is no option learning-rte (did you mean learning_rate?)"),
        ("seed: [1\n", "c.yaml, line 2: no YAML in UTF-8: expected"),
        ("seed: 1.5\n", "c.yaml: --seed must be a whole number; got 1.5"),
        ("learning_rate: fast\n", "--learning_rate must be a number; got 'fast'"),
        ("mask_unit: fields\n", "--mask_unit must be one of field, entity, token; got 'fields' (did you mean field?)"),
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
    ("command", "flags", "message"),
    [
        ("pretrain", ["--config", "nowhere.yaml"], "--config nowhere.yaml: "),
        ("pretrain", ["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1; got 0"),
        ("pretrain", ["--learning_rate", "0"], "--learning_rate must be above 0; got 0.0"),
        ("finetune", ["--zzz"], "there is no option --zzz (flip-ctr finetune --help lists the options)"),
        ("finetune", ["-x"], "there is no option -x"),
        # by meaning
        ("finetune", ["--lr", "1"], "there is no option --lr; did you mean --learning_rate?"),
        ("finetune", ["--epochs=3"], "--epochs; did you mean --num_train_epochs?"),
        ("finetune", ["--batch-size", "3"], "--batch_size; did you mean --per_device_train_batch_size?"),
        ("evaluate", ["--batch_size", "3"], "--batch_size; did you mean --per_device_eval_batch_size?"),
        ("finetune", ["--data", "D"], "--data; did you mean --dataset_dir?"),
        ("prepare", ["--data", "D"], "--data; did you mean --data_dir?"),
        ("predict", ["--data", "D"], "--data; did you mean --input?"),
        ("finetune", ["--model", "M"], "--model; did you mean --model_name_or_path?"),
        ("fuse", ["--model", "M"], "--model; did you mean --id_model?"),
        ("finetune", ["--wd", "1"], "--wd; did you mean --weight_decay?"),
        ("finetune", ["--random_state", "1"], "--random_state; did you mean --seed?"),
        ("finetune", ["--fp16"], "--fp16; did you mean --mixed_precision?"),
        ("finetune", ["--gpus", "2"], "--gpus; did you mean --num_processes?"),
        # by spelling
        ("finetune", ["--learning-rte", "3"], "--learning_rte; did you mean --learning_rate?"),
        ("finetune", ["--seeds", "1"], "--seeds; did you mean --seed?"),
        # values
        ("finetune", ["--strategy", "ids"], "one of id, plm, joint, frozen; got 'ids' (did you mean id?)"),
        ("finetune", ["--id_tower", "dcn2"], "got 'dcn2' (did you mean dcnv2?)"),
        ("finetune", ["--id_tower", "DCNv2"], "got 'DCNv2' (did you mean dcnv2?)"),
        ("prepare", ["--split", "randm"], "got 'randm' (did you mean random?)"),
        ("prepare", ["--dataset", "ml-10k"], "got 'ml-10k' (did you mean ml-100k?)"),
        ("pretrain", ["--mask_unit", "word"], "--mask_unit must be one of field, entity, token; got 'word'"),
    ],
)
def test_wrong_flags_are_refused_and_the_one_that_was_meant_is_named(capsys, command, flags, message):
    needed = NEEDED if command in ("pretrain", "finetune") else []
    said = error_of(capsys, cli.parse, command, [*needed, *flags])
    assert said.startswith(f"flip-ctr {command}: error: ") and message in said


def test_every_synonym_is_of_an_option():
    known = {one.name for cls in COMMANDS.values() for one in dataclasses.fields(cls)} | {"num_processes"}
    assert set(options.SYNONYMS) <= known
    for cls in COMMANDS.values():  # what an option of a command is called is no word for another one of it
        names = {one.name for one in dataclasses.fields(cls)}
        assert all(options.nearest(name, names - {name}) != name for name in names)


def test_required_options_are_named(capsys):
    assert "--dataset_dir and --output_dir must be given" in error_of(capsys, parse_arguments, PretrainArguments, [])
    error = error_of(capsys, parse_arguments, PretrainArguments, NEEDED[:4])
    assert "an objective uses the PLM: --model_name_or_path must name it" in error


@pytest.mark.parametrize("strategy", ["plm", "joint"])
def test_a_strategy_with_a_plm_needs_one(capsys, strategy):
    error = error_of(capsys, parse_arguments, FinetuneArguments, [*NEEDED[:4], "--strategy", strategy])
    assert f"--strategy {strategy} needs a PLM" in error and "--model_name_or_path" in error


def test_what_a_preset_sets_is_not_refused_where_it_has_no_effect():
    assert FinetuneArguments(**GIVEN, strategy="id", preset="paper").fusion == "raw"
    with pytest.raises(ValueError, match="--fusion raw has no effect with --strategy id"):
        FinetuneArguments(**GIVEN, strategy="id", fusion="raw")


# --- one home a thing: lists that stand here, so that torch need not be imported, are those of the code


def test_choices_are_those_of_the_code():
    assert option_groups.STRATEGIES == STRATEGIES and option_groups.FUSIONS == FUSIONS
    assert tuple(collators.MASK_UNITS) == option_groups.MASK_UNITS
    assert set(option_groups.ID_TOWERS) == set(BUILT_IN_TOWERS)
    assert set(prepare_arguments.DATASETS) == {*PUBLIC_DATASETS, prepare_arguments.TABLE}
    assert tuple(SPLIT_RULES) == prepare_arguments.SPLITS
    assert tuple(CALIBRATIONS) == option_groups.CALIBRATIONS
    others = ("id_tower", "id_tower_kwargs", "calibration")
    for one in dataclasses.fields(PretrainArguments) + dataclasses.fields(FinetuneArguments):
        if (allowed := SETTINGS.get(one.name)) is not None and one.name not in others:
            bounds = {name: getattr(allowed, name) for name in options.BOUNDS if getattr(allowed, name) is not None}
            assert bounds == {name: one.metadata[name] for name in options.BOUNDS if name in one.metadata}, one.name
            assert tuple(one.metadata.get("choices", ())) == allowed.choices
            assert one.metadata.get("limit") == allowed.limit, one.name
    texts = {one.name: one.metadata["help"] for one in dataclasses.fields(PrepareArguments)}
    assert f"{SEED} when" in texts["split_seed"] and " ".join(map(str, RATIOS)) in texts["ratios"]


@pytest.mark.parametrize("schedule", option_groups.SCHEDULES)
def test_every_schedule_runs(schedule):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=1, num_training_steps=4)
    for _ in range(4):
        optimizer.step(), scheduler.step()


def test_objectives_are_those_of_the_model():
    weights = {"mlm_weight": (0.0, 1.0), "mtm_weight": (0.0, 1.0), "icl_weight": (0.0, 1.0)}
    shares = {"mlm_id_dropout": (0.0, 1.0), "mtm_text_dropout": (0.0, 1.0)}
    for values in itertools.product(*(weights | shares).values()):
        given = dict(zip(weights | shares, values))
        args, config = arguments.ObjectiveOptions(**given), FlipConfig(**given)
        for name in ("pretrains_text", "pretrains_id_tower", "aligns"):
            assert getattr(args, name) == getattr(config, name), (name, given)


# --- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_each_option_once_in_groups_of_a_screen(command):
    cls = COMMANDS[command]
    shown = make_parser(cls, f"flip-ctr {command}").format_help()
    flags = re.findall(r"^  (--\w+)", shown, re.M)
    assert sorted(flags) == sorted({*(f"--{one.name}" for one in dataclasses.fields(cls)), "--config", "--debug"})
    groups = re.split(r"\n\n(?=[A-Z][^\n]*:\n)", shown)[1:]
    assert all(len(group.splitlines()) <= 40 for group in groups), [len(group.splitlines()) for group in groups]
    assert max(map(len, shown.splitlines())) <= 100
    assert len(groups) == len({group.split("\n")[0] for group in groups})


def test_help_says_the_defaults_of_each_case_at_the_option():
    shown = " ".join(make_parser(FinetuneArguments).format_help().split())
    assert (
        "of the ID tower and all heads (default: 3e-3 (id, frozen, joint), 1e-3 (id from a checkpoint, plm); "
        "preset paper: 1e-3 (id, frozen), 5e-5 (plm, joint))" in shown
    )
    assert "of the PLM (default: 1e-4, 5e-4 (--plm_every above 1), 1e-3 (--use_lora); preset paper: 5e-5)" in shown
    assert "(required)" in shown and "None" not in shown
    shown = " ".join(make_parser(PretrainArguments).format_help().split())
    assert "(default: 0.0 (a PLM is aligned to --id_model); preset paper: none (a PLM is aligned" in shown


def test_fewer_steps_of_the_plm_are_larger():
    given = GIVEN | {"prompts": "entity", "strategy": "plm", "model_name_or_path": "plm"}
    rates = {every: FinetuneArguments(**given, plm_every=every).plm_learning_rate for every in (1, 2, 8, 64)}
    assert rates == {1: 1e-4, 2: 5e-4, 8: 5e-4, 64: 5e-4}
    assert FinetuneArguments(**given, plm_every=8, plm_learning_rate=1e-5).plm_learning_rate == 1e-5


def test_own_options_are_parsed_as_those_of_the_commands():
    @dataclasses.dataclass(kw_only=True)
    class Mine(Options):
        recipe = "finetune"
        folder: str = required("a folder", path=True)
        learning_rate: float = by_case("of all")
        names: list[str] = option(["a"], "names")

        def cases(self):
            return ["plm"]

    args = parse_arguments(Mine, ["--folder", "f", "--names", "x", "y"])
    assert (args.folder, args.learning_rate, args.names) == ("f", 1e-3, ["x", "y"])
    assert args.published() == {"learning_rate": 1e-3, "names": ["x", "y"]}
    assert args.changed() == {"names": {"value": ["x", "y"], "default": ["a"]}}
