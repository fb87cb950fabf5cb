"""Training on datasets that lack a split."""

import pytest
import tiny
from raw_table import event_rows, run, write_csv


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
    results = tiny.finetune(tmp_path / "train", None, tmp_path / "c", **options)
    assert not any("auc" in name for name in results) and (tmp_path / "c" / "model.safetensors").is_file()
    with pytest.raises(
        ValueError, match="--early_stopping_patience needs validation rows, which .*no-validation has not"
    ):
        tiny.finetune(tmp_path / "no-validation", None, tmp_path / "d", early_stopping_patience=2, **options)
    results = tiny.pretrain(tmp_path / "train", plm, tmp_path / "p", max_train_steps=1)
    assert results["train_steps"] == 1 and (tmp_path / "p" / "model.safetensors").is_file()
