"""`flip-ctr train`: the stages, what is kept of them, and how a killed run goes on."""

import json
import re
import shutil

import pytest
import tiny
import torch
from transformers import AutoModel, AutoProcessor

import flip_ctr
from flip_ctr.train import cli, finetune, pretrain, train_model
from flip_ctr.train.arguments import TrainArguments
from flip_ctr.train.loop.resume import Preempted, StepCheckpoints, step_checkpoints
from flip_ctr.train.stages import STAGES, stage_arguments

SMALL = {
    "all": {"id_embedding_size": 4, "id_hidden_dims": [8], "num_train_epochs": 1},
    "map": {"projection_dim": 8},
    "align": {"projection_dim": 8},
}
FEW = {"max_train_samples": 96, "max_eval_samples": 64}
NAMES = [stage.name for stage in STAGES]


def options(folder, dataset_dir, plm, **more) -> TrainArguments:
    return TrainArguments(
        **{
            "dataset_dir": str(dataset_dir),
            "output_dir": str(folder),
            "model_name_or_path": plm and str(plm),
            "stages": SMALL,
        }
        | FEW
        | more
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset_dir, plm, drawing):
    folder = tmp_path_factory.mktemp("train") / "m"
    with drawing():
        return folder, flip_ctr.train_model(dataset_dir, folder, str(plm), stages=SMALL, **FEW)


def test_every_stage_is_run_and_the_best_is_kept(trained, dataset_dir):
    folder, report = trained
    assert list(report["stages"]) == NAMES and json.loads((folder / "train.json").read_text()) == report
    scores = {
        name: done["results"]["eval_auc"] - done["results"]["eval_logloss"]
        for name, done in report["stages"].items()
        if name not in ("map", "align")
    }
    assert report["kept"] == max(scores, key=scores.get)
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    kept = AutoModel.from_pretrained(folder / "stages" / report["kept"]).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert model(**processor(tiny.ml_rows(dataset_dir))).logits.shape == (10, 1)
    assert not any(step_checkpoints(str(path)) for path in (folder / "stages").iterdir())
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    card = (folder / "README.md").read_text()
    assert "## Stages of `flip-ctr train`" in card and card.count("| ID-only |") == 1 and str(folder) not in card


def test_stages_start_from_each_other(trained):
    folder, report = trained

    def record(name):
        return json.loads((folder / "stages" / name / "training_args.json").read_text())

    assert record("align")["id_tower_from"] == record("map")
    assert record("id")["started_from"] == record("align")
    assert record("plm")["started_from"] == record("joint")["started_from"] == record("align")
    best = train_model.best(report, ["id_only", "id"])
    assert record("joint")["id_tower_from"] == record("fused")["id_tower_from"] == record(best)
    assert AutoModel.from_pretrained(folder / "stages" / "plm").config.prompts == "entity"


def test_the_report_says_what_each_stage_gave(trained):
    folder, report = trained
    lines = train_model.table(report).splitlines()
    cells = {
        row[0].strip("* "): row[1:] for row in ([one.strip() for one in line.split("|")[1:-1]] for line in lines[2:9])
    }
    assert list(cells) == [stage.title for stage in STAGES]
    results = report["stages"]["joint"]["results"]
    shown = [f"{results[name]:.4f}" for name in ("eval_auc", "eval_logloss", "test_auc", "test_logloss")]
    minutes, auc, logloss, gain, *test = cells["FLIP, tuned together"]
    assert [auc, logloss, *test] == shown
    first = report["stages"]["id_only"]["results"]
    expected = results["eval_auc"] - results["eval_logloss"] - first["eval_auc"] + first["eval_logloss"]
    assert float(gain) == pytest.approx(expected, abs=1e-4)
    assert cells["MAP: ids recovered from ids"][1:] == [""] * 5 and cells["ID-only"][3] == ""
    assert sum(line.startswith("| **") for line in lines) == 1


def test_a_run_that_is_done_says_so_again(trained, dataset_dir, plm, monkeypatch, capsys):
    folder, report = trained
    for recipe in (pretrain, finetune):
        monkeypatch.setattr(recipe, "run", None)
    assert train_model.run(options(folder, dataset_dir, plm)) == report
    assert f"kept in {folder}: {report['kept']}" in capsys.readouterr().out


@pytest.mark.parametrize("stops_in", ["map", "joint"])
def test_a_killed_run_goes_on_to_the_same_weights(trained, dataset_dir, plm, tmp_path, monkeypatch, stops_in, caplog):
    """It is told to stop in the first step of a stage."""
    whole, report = trained
    folder, seen = tmp_path / "m", []

    def stopping(real):
        def run(args):
            seen.append(args.output_dir.rsplit("/")[-1])
            with pytest.MonkeyPatch.context() as patch:
                if seen[-1] == stops_in and seen.count(stops_in) == 1:
                    patch.setattr(StepCheckpoints, "_any_asked_to_stop", lambda self: True)
                return real(args)

        return run

    for recipe in (pretrain, finetune):
        monkeypatch.setattr(recipe, "run", stopping(recipe.run))
    with pytest.raises(Preempted):
        train_model.run(options(folder, dataset_dir, plm))
    assert step_checkpoints(str(folder / "stages" / stops_in)) and not (folder / "config.json").exists()
    assert re.search(r"saved at step \d+; the same command goes on", caplog.text)  # there is no option for it
    gone_on, place = train_model.run(options(folder, dataset_dir, plm)), NAMES.index(stops_in)
    assert seen == [*NAMES[: place + 1], *NAMES[place:-1]], "fuse has a recipe of its own"
    assert gone_on["kept"] == report["kept"]
    one, two = (AutoModel.from_pretrained(path).state_dict() for path in (whole, folder))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ids_alone(dataset_dir, tmp_path):
    report = train_model.run(options(tmp_path / "m", dataset_dir, None))
    assert list(report["stages"]) == ["id_only", "map", "id"]
    assert AutoModel.from_pretrained(tmp_path / "m").config.strategy == "id"


def test_stages_can_be_left_out(dataset_dir, plm, tmp_path):
    stages = SMALL | {"map": None, "align": None, "plm": None, "joint": {"prompts": "row", "max_train_steps": 2}}
    report = train_model.run(options(tmp_path / "m", dataset_dir, plm, stages=stages))
    assert list(report["stages"]) == ["id_only", "joint"]
    record = json.loads((tmp_path / "m" / "stages" / "joint" / "training_args.json").read_text())
    assert record["plm"] == plm.name and record["arguments"]["max_train_steps"] == 2


def test_time_is_shared_out(dataset_dir, plm, tmp_path, monkeypatch):
    given = {}

    def run(args, real):
        given[args.output_dir.rsplit("/")[-1]] = args.max_minutes
        return real(args)

    for recipe in (pretrain, finetune):
        monkeypatch.setattr(recipe, "run", lambda args, real=recipe.run: run(args, real))
    report = train_model.run(options(tmp_path / "m", dataset_dir, plm, max_minutes=13))
    left, shares = 13.0, {stage.name: stage.share for stage in STAGES if stage.share}
    for name, minutes in given.items():
        assert minutes == pytest.approx(left * shares[name] / sum(shares.values()))
        left -= report["stages"][name]["minutes"]
        del shares[name]
    assert not shares
    # when the time is over there is a model, and nothing more is begun
    monkeypatch.setattr(train_model, "minutes_for", lambda *given: 0.0)
    report = train_model.run(options(tmp_path / "short", dataset_dir, plm, max_minutes=1))
    assert list(report["stages"]) == ["id_only"] and report["kept"] == "id_only"
    done = report["stages"]["id_only"]["results"]
    assert done["train_steps"] == 1 < done["planned_steps"]
    assert f", {1 / done['planned_steps']:.0%} of its steps |" in train_model.table(report)


def test_small_data_has_smaller_batches_and_the_plm_more_steps(dataset_dir, plm, tmp_path):
    args = options(tmp_path, dataset_dir, plm, stages=None)
    align, plm_stage = ({stage.name: stage for stage in STAGES}[name] for name in ("align", "plm"))
    sources = {"model_name_or_path": "x"}
    for rows, processes, batch, every in (
        (1_000, 1, 32, 1),
        (60_000, 1, 128, 11),
        (10**6, 1, 128, 32),
        (60_000, 4, 128, 2),
    ):
        made = stage_arguments(align, args, sources, rows, processes, None)
        assert (made.per_device_train_batch_size, made.plm_every) == (batch, every)
    given = options(tmp_path, dataset_dir, plm, stages={"all": {"plm_every": 4, "per_device_train_batch_size": 64}})
    made = stage_arguments(plm_stage, given, sources, 10**6, 1, None)
    assert (made.per_device_train_batch_size, made.plm_every) == (64, 4)
    id_only = stage_arguments(STAGES[0], given, {}, 10**6, 1, None)
    assert id_only.per_device_train_batch_size == 64, "and what is of the PLM alone is left out"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stages": {"mpa": {}}}, "there is no stage mpa (did you mean map?); there are id_only, map, align"),
        (
            {"stages": {"map": 3}},
            'map takes settings, such as {"num_train_epochs": 5}, or null, which leaves it out; got 3',
        ),
        ({"stages": {"all": None}}, 'all takes settings, such as {"num_train_epochs": 5}; got null'),
        ({"stages": {"plm": {"lr": 1}}}, "plm has no setting lr (did you mean learning_rate?)"),
        ({"stages": {"plm": {"strategy": "id"}}}, "plm has no setting strategy"),
        ({"stages": {"all": {"max_minutes": 1}}}, "all has no setting max_minutes"),
        ({"stages": {"plm": {"num_train_epochs": -1}}}, "stage plm: --num_train_epochs must be above 0; got -1"),
        ({"stages": {"plm": {"fusion": "gate"}}}, "stage plm: --fusion gate has no effect with --strategy plm"),
        ({"stages": "[1]"}, "--stages must be a JSON object such as"),
        ({"stages": dict.fromkeys(("id_only", "id", "plm", "joint", "fused"))}, "leaves out every stage that gives a"),
        ({"id_tower": "dcn2"}, "stage id_only: --id_tower must be one of"),
        ({"model_name_or_path": "nowhere"}, "--model_name_or_path nowhere: no model folder"),
        ({"max_minutes": 0}, "--max_minutes must be above 0; got 0"),
        ({"hub_model_id": "org/m"}, "--hub_model_id has no effect without --push_to_hub"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(dataset_dir, plm, tmp_path, more, message):
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        train_model.run(options(tmp_path / "m", dataset_dir, plm, **more))
    assert not (tmp_path / "m").exists()


def test_a_checkpoint_is_no_plm(trained, dataset_dir, tmp_path):
    with pytest.raises(ValueError, match="is a FLIP checkpoint, and train starts from a PLM"):
        train_model.run(options(tmp_path / "m", dataset_dir, trained[0]))


def test_without_validation_nothing_can_be_chosen(dataset_dir, tmp_path):
    folder = tmp_path / "d"
    shutil.copytree(dataset_dir, folder, ignore=lambda path, names: [name for name in names if "validation" in name])
    for name in ("prepare_report.json", "report.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="train chooses by validation rows, which .*d has not"):
        train_model.run(options(tmp_path / "m", folder, None))


def test_a_run_of_other_options_or_rows_is_not_gone_on_with(trained, dataset_dir, plm, tmp_path):
    folder, _ = trained
    for more in ({"seed": 1}, {"stages": None}, {"max_train_samples": 50}):
        name = "training rows" if "max_train_samples" in more else f"--{next(iter(more))}"
        with pytest.raises(ValueError, match=f"holds a run with other .*{name}.*: give what it had, and it goes on"):
            train_model.run(options(folder, dataset_dir, plm, **more))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty; choose another or add --overwrite_output_dir"):
        train_model.run(options(other, dataset_dir, None))


def test_overwriting_begins_again(dataset_dir, tmp_path):
    few = {"map": None, "all": SMALL["all"]}
    train_model.run(options(tmp_path / "m", dataset_dir, None, stages=few))
    (tmp_path / "m" / "notes.txt").write_text("mine")
    report = train_model.run(
        options(tmp_path / "m", dataset_dir, None, stages=few, seed=3, overwrite_output_dir=True, id_tower="lr")
    )
    assert report["options"]["seed"] == 3 and list(report["stages"]) == ["id_only"]
    assert AutoModel.from_pretrained(tmp_path / "m").config.id_tower == "lr"
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"


def test_settings_of_stages_stand_in_a_config_file(dataset_dir, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text("stages:\n  map:\n  all: {num_train_epochs: 1, learning_rate: 1e-3}\n")
    flags = [
        "--max_train_samples",
        "96",
        "--dataset_dir",
        str(dataset_dir),
        "--output_dir",
        str(tmp_path / "m"),
        "--config",
        str(config),
    ]
    assert cli.main(["train", *flags]) == 0
    assert "| **ID-only** |" in capsys.readouterr().out
    record = json.loads((tmp_path / "m" / "training_args.json").read_text())
    assert record["arguments"]["learning_rate"] == 1e-3
