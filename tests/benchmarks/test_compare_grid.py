"""The grid of `benchmarks/compare.py`: what is wrong in it is said before anything runs, and the committed grids are
right."""

from pathlib import Path

import pytest
import yaml

from flip_ctr.benchmarks.comparison.grid import GridError, Split, load_grid

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

GRID = {
    "datasets": {"made": {"catalogue": {"users": 40, "items": 50, "rows": 1500}}},
    "splits": [
        {"split": "random", "split_seed": 1},
        {"split": "random", "split_seed": 2},
        {"split": "cold_items", "split_seed": 1},
    ],
    "settings": {"plm": None, "rate": 0.01},
    "common": {"mixed_precision": "bf16"},
    "runs": {
        "pretrained": {"recipe": "pretrain", "model_name_or_path": "${plm}"},
        "flip": {"recipe": "finetune", "strategy": "joint", "model_name_or_path": "@pretrained"},
        "id": {
            "recipe": "finetune",
            "strategy": "id",
            "learning_rate": "${rate}",
            "search": {"embedding_l2": ["1e-4", 1e-3]},
        },
        "both": {"recipe": "average", "models": ["@id", "@flip"]},
    },
    "methods": {"ID-only": {"run": "id", "baseline": True}, "FLIP": "flip", "both": "both"},
}


def changed(**sections) -> dict:
    """The grid with other values of some runs, or of whole sections."""
    runs = sections.pop("runs", {})
    return {**GRID, **sections, "runs": {**GRID["runs"], **runs}}


def load(tmp_path, content, only=None, splits=None, **settings):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_grid(path, settings, only, splits)


def test_a_grid_is_read(tmp_path):
    grid = load(tmp_path, GRID, plm="org/bert")
    assert grid.runs["id"].options == {"mixed_precision": "bf16", "strategy": "id", "learning_rate": 0.01}
    assert [trial["embedding_l2"] for trial in grid.runs["id"].trials()] == ["1e-4", 1e-3]
    assert grid.runs["both"].inputs == ["id", "flip"] and "mixed_precision" not in grid.runs["both"].options
    assert grid.needed(grid.methods) == {"id", "flip", "pretrained", "both"}
    assert grid.needed(grid.methods[:1]) == {"id"}
    assert [(split.name, split.kind) for split in grid.datasets[0].splits] == [
        ("random-1", "random"),
        ("random-2", "random"),
        ("cold_items-1", "cold_items"),
    ]


def test_only_some_methods_need_only_their_settings(tmp_path):
    assert [method.label for method in load(tmp_path, GRID, ["ID-only"]).methods] == ["ID-only"]
    with pytest.raises(GridError, match="the setting plm has no value; give one with --set plm=VALUE"):
        load(tmp_path, GRID)


def test_some_splits_only(tmp_path):
    grid = load(tmp_path, GRID, ["ID-only"], ["random-2", "cold_items-1"])
    assert [split.name for split in grid.datasets[0].splits] == ["random-2", "cold_items-1"]
    assert [grid.datasets[0].target(kind) for kind in ("random", "cold_items")] == [None, None]
    for given, expected in ((".7", [0.7, 0.7]), ({"cold_items": 0.6}, [None, 0.6])):
        content = GRID | {"datasets": {"made": GRID["datasets"]["made"] | {"target_auc": given}}}
        assert [
            load(tmp_path, content, plm="m").datasets[0].target(kind) for kind in ("random", "cold_items")
        ] == expected
    fold = Split({"split": "cold_items", "split_fold": 3})
    assert (fold.name, fold.kind) == ("cold_items-3", "cold_items")
    with_ratios = Split({"split": "cold_items", "ratios": [8, 1, 1], "split_seed": 2})
    assert (with_ratios.name, with_ratios.kind) == ("cold_items-8-1-1-2", "cold_items-8-1-1")
    two = GRID | {
        "datasets": GRID["datasets"]
        | {"other": GRID["datasets"]["made"] | {"splits": [{"split": "random", "split_seed": 3}]}}
    }
    assert [one.name for one in load(tmp_path, two, ["ID-only"], ["random-3"]).datasets] == ["other"]
    with pytest.raises(GridError, match="--splits random-4: no such split; there are random-1, random-2, cold_items-1"):
        load(tmp_path, GRID, ["ID-only"], ["random-4"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(metods={}), "unknown key metods; it may have datasets, splits"),
        (changed(methods={}), "methods: the grid needs at least one"),
        (changed(methods={"FLIP": "flop"}), "methods: FLIP: run must be one of pretrained, flip, id, both; got 'flop'"),
        (changed(methods={"FLIP": "pretrained"}), "the run pretrained makes no predictions"),
        (changed(methods={"FLIP": {"run": "flip", "base": True}}), "unknown key base"),
        (changed(runs={"id": {"recipe": "finetun"}}), "runs: id: recipe must be one of pretrain, finetune"),
        (
            changed(runs={"id": {"recipe": "finetune", "strategy": "id", "lerning_rate": 1}}),
            "runs: id: finetune has no option lerning_rate",
        ),
        (
            changed(runs={"id": {"recipe": "finetune", "strategy": "id", "learning_rate": -1}}),
            "runs: id: --learning_rate must be above 0",
        ),
        (changed(runs={"id": {"recipe": "finetune", "strategy": "both"}}), "--strategy must be one of"),
        (
            changed(runs={"id": {"recipe": "finetune", "strategy": "id", "seed": 1}}),
            "runs: id: seed is not for a run to say",
        ),
        (
            changed(runs={"id": {"recipe": "finetune", "strategy": "id", "search": {"learning_rate": 1}}}),
            "learning_rate must be a list",
        ),
        (
            changed(runs={"id": {"recipe": "finetune", "strategy": "id", "search": {"learning_rate": [1e-3, -1]}}}),
            "must be above 0",
        ),
        (
            changed(runs={"pretrained": {"recipe": "pretrain", "model_name_or_path": "x", "search": {"seed": [1]}}}),
            "search needs predictions",
        ),
        (
            changed(runs={"flip": {"recipe": "finetune", "model_name_or_path": "@pre"}}),
            "runs: flip: @pre: there is no such run",
        ),
        (changed(runs={"id": {"recipe": "average", "models": ["@both", "@flip"]}}), "id -> both -> id is a circle"),
        (
            changed(runs={"both": {"recipe": "average", "models": ["@id"]}}),
            "runs: both: --models must name at least two runs; got 1",
        ),
        (
            changed(runs={"id": {"recipe": "finetune", "strategy": "id", "learning_rate": "${lr}"}}),
            "{lr}: there is no such setting",
        ),
        (changed(common={"mixed_precison": "bf16"}), "common: no recipe of flip-ctr has an option mixed_precison"),
        (
            changed(methods={"FLIP": {"run": "flip", "baseline": "no"}}),
            "methods: FLIP: baseline must be true or false; got 'no'",
        ),
        (
            changed(methods={"FLIP": {"run": "flip", "group": "ours"}}),
            "methods: FLIP: group must be one of ID-only, PLM-only, ID+PLM, control, FLIP; got 'ours'",
        ),
        (changed(seeds=42), "seeds: expected a list of whole numbers, got 42"),
        (changed(seeds=[42, 42]), "seeds: two are the same"),
        (
            changed(datasets={"made": {"catalogue": {}, "target_auc": "high"}}),
            "datasets: made: target_auc: expected an AUC, a number above 0",
        ),
        (
            changed(datasets={"made": {"catalogue": {}, "target_auc": {"random": 0.8, "time": 0.7}}}),
            "target_auc: unknown key time; it may have random",
        ),
        (changed(datasets={"made": {"catalogue": {}, "target_auc": 86}}), "above 0 and below 1; got 86"),
        (
            changed(datasets={"made": {"prepare": {"dataset": "ml-2m"}}}),
            "datasets: made: prepare: --dataset must be one of ml-100k",
        ),
        (changed(datasets={"made": {"catalogue": {"rows": 10, "people": 3}}}), "people"),
        (changed(datasets={"made": {}}), "it needs one of prepare, catalogue, dataset_dir; got none"),
        (changed(datasets={"made": {"dataset_dir": "D", "splits": [{"split": "time"}]}}), "they cannot be made anew"),
        (changed(splits=[{"split": "random"}, {"split": "random"}]), "two are the same"),
        (
            changed(datasets={"made": {"prepare": {"dataset": "ml-1m"}, "splits": [{"split": "randm"}]}}),
            "--split must be one of random, time",
        ),
        (
            changed(datasets={"made": {"prepare": {"dataset": "table", "schema": "s"}, "splits": [{"split": "x"}]}}),
            "--split must be one of random",
        ),
        (
            changed(datasets={"made": {"prepare": {"dataset": "ml-1m"}, "splits": [{"split_sed": 1}]}}),
            "splits: unknown key split_sed; it may have",
        ),
        (changed(datasets={"made": {"prepare": {"datset": "ml-1m"}}}), "prepare: unknown key datset"),
        (
            changed(runs={"id": GRID["runs"]["id"] | {"prepare": {"statistics": None}}}),
            "runs: id: prepare: it is for datasets that `prepare` makes",
        ),
        (
            changed(
                datasets={"made": {"prepare": {"dataset": "ml-1m"}}},
                runs={"id": GRID["runs"]["id"] | {"prepare": {"statistcs": None}}},
            ),
            "runs: id: prepare: unknown key statistcs",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    with pytest.raises(GridError, match="grid.yaml: ") as error:
        load(tmp_path, content, plm="org/bert")
    assert message in str(error.value)


def test_settings_and_methods_from_the_command_line_are_known_ones(tmp_path):
    with pytest.raises(GridError, match="--set plan: there is no such setting; there are plm, rate"):
        load(tmp_path, GRID, plan="x")
    with pytest.raises(GridError, match="--only FLIPP: no such method; there are ID-only, FLIP, both"):
        load(tmp_path, GRID, ["FLIPP"], plm="x")


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_grids_are_right_and_hold_no_path(path):
    settings = yaml.safe_load(path.read_text())["settings"]
    assert all(value is None or "/" not in str(value) for value in settings.values())
    grid = load_grid(path, {name: "x" for name, value in settings.items() if value is None})
    assert any(method.baseline for method in grid.methods) and all(method.group for method in grid.methods)
