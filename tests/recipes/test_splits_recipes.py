"""Training on datasets that lack a split."""

import json

import pytest
import tiny
from raw_table import event_rows, run, write_csv

from flip_ctr import train_model


def test_training_without_validation_or_test(tmp_path, plm):
    write_csv(tmp_path / "clicks.csv", event_rows())
    for name, ratios in (("no-validation", [8, 0, 2]), ("no-test", [8, 2, 0]), ("train", [1, 0, 0])):
        run(tmp_path, name, ratios=ratios)
    options = {"strategy": "id", "num_train_epochs": 2}
    results = tiny.finetune(tmp_path / "no-validation", None, tmp_path / "a", **options)
    assert results["best_epoch"] == 2 and "test_auc" in results and "eval_auc" not in results
    assert "| AUC" in (tmp_path / "a" / "README.md").read_text()
    results = tiny.finetune(tmp_path / "no-test", None, tmp_path / "b", **options)
    assert "eval_auc" in results and "test_auc" not in results
    said = "validation was best at the end of training: more --num_train_epochs may be better"
    for seed in (3, 9):  # of which one is best after the first epoch, the other after the second
        results = tiny.finetune(tmp_path / "no-test", None, tmp_path / f"seed{seed}", seed=seed, **options)
        log = (tmp_path / f"seed{seed}" / "train.log").read_text()
        assert (said in log) == (results["best_epoch"] == 2)
    results = tiny.finetune(tmp_path / "train", None, tmp_path / "c", **options)
    assert not any("auc" in name for name in results) and (tmp_path / "c" / "model.safetensors").is_file()
    with pytest.raises(
        ValueError, match="--early_stopping_patience needs validation rows, which .*no-validation has not"
    ):
        tiny.finetune(tmp_path / "no-validation", None, tmp_path / "d", early_stopping_patience=2, **options)
    results = tiny.pretrain(tmp_path / "train", plm, tmp_path / "p", max_train_steps=1)
    assert results["train_steps"] == 1 and (tmp_path / "p" / "model.safetensors").is_file()
    # all stages of train, and the fusion, without a test split; and nothing for a PLM to read
    stages = {"all": {"num_train_epochs": 1}, "map": None, "align": None}
    report = train_model(tmp_path / "no-test", tmp_path / "e", str(plm), stages=stages)
    assert list(report["stages"]) == ["id_only", "plm", "joint", "fused"]
    assert not any("test_auc" in done["results"] for done in report["stages"].values())
    with pytest.raises(ValueError, match="train chooses by validation rows, which .*no-validation has not"):
        train_model(tmp_path / "no-validation", tmp_path / "f")


def test_train_without_text_for_its_plm(tmp_path, plm):
    folder = tiny.write_dataset(tmp_path / "d", tiny.toy_rows(), tiny.FIELDS)
    schema = json.loads((folder / "schema.json").read_text())
    schema["fields"] = [field | {"sides": ["id"]} for field in schema["fields"]]
    (folder / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(ValueError, match="would read nothing: .* has no field on the text side"):
        train_model(folder, tmp_path / "m", str(plm))
