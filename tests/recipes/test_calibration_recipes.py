"""Probabilities that mean clicks, from end to end: training rows that lack non-clicks, a calibration on validation, and
all that scores."""

import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import pipeline

from flip_ctr import FlipConfig, FlipField, FlipForCTR
from flip_ctr.data.prepare.dataset_folder import REPORT_NAME, shard_path
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.train import calibrate, evaluate_ctr, fuse
from flip_ctr.train.arguments import CalibrateArguments, EvaluateArguments, FuseArguments, PredictArguments
from flip_ctr.train.loop import calibration, spark_scoring
from flip_ctr.train.loop.calibration import NotCalibrated
from flip_ctr.train.models.lora import ADAPTER_CONFIG

RATE = 0.05
FIELDS = [
    FlipField("user_id", "int", entity="user", key=True, sides=("id",)),
    FlipField("item_id", "int", entity="item", key=True, max_tokens=4),
]


def rows_of(count: int, seed: int, rate: float = 1.0, base: float = -4.0) -> pa.Table:
    """Rows of which 3 in 100 are clicks (by `base`), by user and item; of the others the share `rate` is kept."""
    generator = np.random.default_rng(seed)
    users, items = generator.integers(0, 40, count), generator.integers(0, 12, count)
    log_odds = base + 0.06 * (users - 20) + 0.12 * (items - 6)
    labels = generator.random(count) < 1 / (1 + np.exp(-log_odds))
    kept = labels | (generator.random(count) < rate)
    columns = {"user_id": users, "item_id": items, "label": labels.astype(np.int64)}
    return pa.table({name: values[kept] for name, values in columns.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset folder whose training rows have a twentieth of the non-clicks."""
    tables = {"train": rows_of(20_000, 0, RATE), "validation": rows_of(20_000, 1), "test": rows_of(20_000, 2)}
    return write(tmp_path_factory.mktemp("sampled") / "data", tables)


def write(folder, tables: dict[str, pa.Table], **schema):
    (folder / "data").mkdir(parents=True)
    DatasetSchema("sampled", FIELDS, user_column="user_id", **schema).save(folder)
    for split, table in tables.items():
        pq.write_table(table, shard_path(folder, split))
    report = {"splits": {split: {"rows": len(table)} for split, table in tables.items()}}
    (folder / REPORT_NAME).write_text(json.dumps(report))
    return folder


SETTINGS = {"max_train_samples": None, "max_eval_samples": None, "num_train_epochs": 6, "learning_rate": 0.02}
SETTINGS |= {"id_tower": "lr", "id_tower_kwargs": None, "per_device_eval_batch_size": 8192}


@pytest.fixture(scope="module")
def models(tmp_path_factory, folder, plm, drawing):
    """`id`: of ids alone, calibrated; `plm`: of texts alone, and of all non-clicks as far as it knows."""
    made = tmp_path_factory.mktemp("models")
    with drawing():
        results = tiny.finetune(
            folder, None, made / "id", negative_sampling_rate=RATE, calibration="isotonic", **SETTINGS
        )
    options = {"max_train_samples": None, "max_train_steps": 8, "max_eval_samples": 512}
    tiny.finetune(folder, plm, made / "plm", strategy="plm", **options)
    return made, results


def config_of(path) -> FlipConfig:
    return FlipConfig.from_pretrained(path)


def evaluated(path, folder, **options) -> dict:
    return evaluate_ctr.run(
        EvaluateArguments(str(path), dataset_dir=str(folder), per_device_eval_batch_size=8192, **options)
    )


def test_a_run_whose_training_rows_lack_non_clicks(tmp_path, folder, models, pictures):
    made, results = models
    config = config_of(made / "id")
    assert config.negative_sampling_rate == RATE and config.calibration["kind"] == "isotonic"
    assert set(config.calibration) == {"kind", "id_logits"}
    for split in ("eval", "test"):
        assert results[f"{split}_predicted_actual_ratio"] == pytest.approx(1, abs=0.1)
        assert results[f"{split}_uncalibrated_predicted_actual_ratio"] > 8
        assert results[f"{split}_ece"] < 0.01 < 0.2 < results[f"{split}_uncalibrated_ece"]
    assert results == pytest.approx(json.loads((made / "id" / "all_results.json").read_text()))
    found = evaluated(made / "id", folder, output_dir=str(tmp_path / "e"))
    test = {name: value for name, value in results.items() if name.startswith("test_")}
    assert {name: found[name] for name in test} == pytest.approx(test, rel=1e-5)
    assert (tmp_path / "e" / "reliability.png").is_file() and (made / "id" / "reliability.png").is_file()
    # epochs are chosen by log odds at the natural rate
    history = json.loads((made / "id" / "history.json").read_text())
    assert all(entry["eval_logloss"] < 0.2 for entry in history if "eval_logloss" in entry)
    card = (made / "id" / "README.md").read_text()
    assert "| correction of the log odds | training rows have 0.05 of the non-clicks: -2.996, then `isotonic`" in card
    assert "| expected calibration error, before the correction | 0." in card and "are cross-fitted: each row" in card


def test_one_click_in_a_thousand_on_a_million_rows(tmp_path):
    """Training rows have 1 % of the non-clicks; validation and test are a million rows each."""
    count, rate, base = 1_000_000, 0.01, -7.1
    tables = {"train": rows_of(count, 0, rate, base), "validation": rows_of(count, 1, base=base)}
    folder = write(tmp_path / "data", tables | {"test": rows_of(count, 2, base=base)})
    clicks = tables["validation"]["label"].to_numpy().mean()
    assert 0.0008 < clicks < 0.0012 and tables["train"]["label"].to_numpy().mean() > 0.08
    options = SETTINGS | {"num_train_epochs": 2, "per_device_eval_batch_size": 2**17}
    results = tiny.finetune(
        folder, None, tmp_path / "m", negative_sampling_rate=rate, calibration="platt", eval_steps=10**6, **options
    )
    assert results["test_rows"] == count
    assert results["test_uncalibrated_predicted_actual_ratio"] > 50
    assert results["test_predicted_actual_ratio"] == pytest.approx(1, abs=0.1)  # a thousand clicks: ±6 % in each split
    assert results["eval_predicted_actual_ratio"] == pytest.approx(1, abs=0.01)
    assert results["test_ece"] < 0.0002 < 0.05 < results["test_uncalibrated_ece"]


def test_all_that_scores_has_the_correction(tmp_path, folder, models):
    path = models[0] / "id"
    rows = pq.read_table(shard_path(folder, "test")).slice(0, 64)
    pq.write_table(rows.drop_columns("label"), tmp_path / "rows.parquet")
    model = FlipForCTR.from_pretrained(path)
    config, model.config.negative_sampling_rate, model.config.calibration = config_of(path), 1.0, None
    score = pipeline("click-through-rate", model=str(path))
    before = np.array(
        [
            one["click_probability"]
            for one in pipeline("click-through-rate", model=model, processor=score.processor)(rows)
        ]
    )
    knots = config.calibration["id_logits"]
    expected = np.log(before / (1 - before)) + math.log(RATE)
    inside = (expected > knots["log_odds"][0]) & (expected < knots["log_odds"][-1])
    expected = 1 / (1 + np.exp(-np.interp(expected, knots["log_odds"], knots["calibrated"])))
    found = np.array([one["click_probability"] for one in score(rows)])
    assert inside.sum() > 40
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4)
    written = tiny.predicted(path, tmp_path / "rows.parquet")["click_probability"].to_numpy()
    np.testing.assert_allclose(written, found, rtol=1e-6)
    args = PredictArguments(str(path), [str(tmp_path / "rows.parquet")], "o.parquet", engine="pyspark")
    batches = pq.read_table(tmp_path / "rows.parquet").to_batches()
    of_spark = pa.Table.from_batches(spark_scoring._score(args, iter(batches)))["click_probability"].to_numpy()
    np.testing.assert_allclose(of_spark, found, rtol=1e-6)
    pq.write_table(pq.read_table(shard_path(folder, "test")), tmp_path / "labelled.parquet")
    of_file = evaluate_ctr.run(EvaluateArguments(str(path), input=[str(tmp_path / "labelled.parquet")], label="label"))
    assert of_file["eval_ece"] == pytest.approx(models[1]["test_ece"], rel=1e-4)
    assert of_file["eval_uncalibrated_ece"] == pytest.approx(models[1]["test_uncalibrated_ece"], rel=1e-4)


def test_a_finished_checkpoint_is_calibrated(tmp_path, folder, models, caplog):
    """Also one of rows that lacked non-clicks, without a word of it; its weights stay."""
    start = FlipForCTR.from_pretrained(models[0] / "id", calibration=None)
    start.config.negative_sampling_rate = 1.0
    tiny_folder = tmp_path / "start"
    pipeline("click-through-rate", model=str(models[0] / "id")).processor.save_pretrained(tiny_folder)
    start.save_pretrained(tiny_folder)
    options = {"model_name_or_path": str(tiny_folder), "dataset_dir": str(folder)}
    results = calibrate.run(CalibrateArguments(**options, output_dir=str(tmp_path / "platt")))
    config = config_of(tmp_path / "platt")
    assert config.calibration["kind"] == "platt" and config.negative_sampling_rate == 1
    assert config.calibration["id_logits"]["intercept"] == pytest.approx(math.log(RATE), abs=1)
    assert results["test_uncalibrated_ece"] > 0.2 > 0.01 > results["test_ece"]
    assert torch.equal(FlipForCTR.from_pretrained(tmp_path / "platt").id_classifier.bias, start.id_classifier.bias)
    card = (tmp_path / "platt" / "README.md").read_text()
    assert "the calibration was fitted on 20,000 of validation" in card and "the calibration alone is new" in card
    # once more, in the place of the first
    options["model_name_or_path"] = str(tmp_path / "platt")
    again = calibrate.run(CalibrateArguments(**options, calibration="isotonic", output_dir=str(tmp_path / "again")))
    assert config_of(tmp_path / "again").calibration["kind"] == "isotonic"
    assert again["eval_uncalibrated_ece"] == pytest.approx(results["eval_uncalibrated_ece"])
    with pytest.raises(ValueError, match="is --model_name_or_path: the new checkpoint would take the place"):
        calibrate.run(CalibrateArguments(**options, output_dir=str(tmp_path / "platt"), overwrite_output_dir=True))
    evaluated(tmp_path / "platt", folder, split="validation")
    assert "was fitted on validation, which these numbers flatter" in caplog.text


def test_training_goes_on_from_a_calibrated_checkpoint(tmp_path, folder, models, caplog):
    """Its calibration is of other weights; its share of the non-clicks stays, or another one starts from the same
    probabilities."""
    options = SETTINGS | {"id_tower": None, "strategy": "id", "num_train_epochs": 1, "learning_rate": 1e-9}
    tiny.finetune(folder, models[0] / "id", tmp_path / "same", **options)
    assert "is left out, as it is of the weights that are there; --calibration isotonic fits one" in caplog.text
    assert config_of(tmp_path / "same").calibration is None
    assert config_of(tmp_path / "same").negative_sampling_rate == RATE
    results = tiny.finetune(folder, models[0] / "id", tmp_path / "other", **options, negative_sampling_rate=0.5)
    assert "was trained on 0.05 of the non-clicks, this run on 0.5" in caplog.text
    assert config_of(tmp_path / "other").negative_sampling_rate == 0.5
    first = evaluated(tmp_path / "same", folder)
    assert results["test_logloss"] == pytest.approx(first["test_logloss"], rel=1e-4)
    assert results["test_uncalibrated_logloss"] < first["test_uncalibrated_logloss"] / 2
    # the rows are of another share than is said
    assert "of the training rows are clicks, which is a natural rate of" in caplog.text
    said = float(re.search("lack non-clicks, --negative_sampling_rate ([0-9.]+) fits", caplog.text)[1])
    assert said == pytest.approx(RATE, rel=0.3)


def test_weights_can_make_up_for_non_clicks(tmp_path, caplog):
    """Then no share is said, and the click rates are those of the weights."""
    tables = {"train": rows_of(20_000, 0, RATE), "validation": rows_of(20_000, 1)}
    for split, table in tables.items():
        lacking = 1 - table["label"].to_numpy() if split == "train" else np.zeros(len(table))
        tables[split] = table.append_column("weight", pa.array(1 + lacking * (1 / RATE - 1)))
    folder = write(tmp_path / "data", tables, weight_column="weight")
    results = tiny.finetune(folder, None, tmp_path / "m", **SETTINGS)
    assert results["eval_predicted_actual_ratio"] == pytest.approx(1, abs=0.5)  # not 14, as without weights
    assert "natural rate" not in caplog.text and "eval_uncalibrated_ece" not in results
    tiny.finetune(folder, None, tmp_path / "twice", **SETTINGS | {"num_train_epochs": 1}, negative_sampling_rate=RATE)
    assert "which is a natural rate of" in caplog.text


def test_towers_of_different_shares_are_fused(tmp_path, folder, models):
    made, _ = models
    arguments = {"id_model": str(made / "id"), "plm_model": str(made / "plm"), "dataset_dir": str(folder)}
    results = fuse.run(FuseArguments(**arguments, output_dir=str(tmp_path / "m"), calibration="platt"))
    config = config_of(tmp_path / "m")
    assert config.negative_sampling_rate == 1 and set(config.calibration) == {
        "kind",
        "logits",
        "id_logits",
        "text_logits",
    }
    for split in ("eval", "test"):
        assert results[f"{split}_predicted_actual_ratio"] == pytest.approx(1, abs=0.1)
        assert results[f"{split}_ece"] < results[f"{split}_uncalibrated_ece"]
    rows = pq.read_table(shard_path(folder, "test")).slice(0, 16)
    answers = pipeline("click-through-rate", model=str(tmp_path / "m"))(rows)
    plain = FlipForCTR.from_pretrained(made / "id", calibration=None)
    score = pipeline(
        "click-through-rate", model=plain, processor=pipeline("click-through-rate", model=str(made / "id")).processor
    )
    line = config.calibration["id_logits"]
    for answer, alone in zip(answers, score(rows)):
        log_odds = math.log(alone["click_probability"] / (1 - alone["click_probability"]))
        expected = 1 / (1 + math.exp(-line["slope"] * log_odds - line["intercept"]))
        assert answer["id_probability"] == pytest.approx(expected, rel=1e-4)


def test_an_id_tower_of_another_share_starts_a_model(tmp_path, folder, plm, models):
    """Its click layer's bias takes up the difference."""
    tiny.finetune(
        folder,
        plm,
        tmp_path / "joint",
        strategy="joint",
        id_model=str(models[0] / "id"),
        negative_sampling_rate=0.5,
        id_learning_rate=0,
        max_train_samples=64,
        max_eval_samples=512,
        max_train_steps=1,
        learning_rate=1e-9,
    )
    here, there = (
        FlipForCTR.from_pretrained(path).id_classifier.bias for path in (tmp_path / "joint", models[0] / "id")
    )
    assert (here - there).item() == pytest.approx(math.log(RATE / 0.5), abs=1e-4)


def test_an_adapter_is_calibrated(tmp_path, folder, plm):
    """With the run, and once it is finished: then as the merged model."""
    options = {"max_train_samples": 512, "max_eval_samples": 2048, "max_train_steps": 2, "streaming": True}
    options |= {"strategy": "plm", "use_lora": True, "lora_adapter_only": True, "negative_sampling_rate": RATE}
    results = tiny.finetune(folder, plm, tmp_path / "m", **options, calibration="isotonic")
    assert (tmp_path / "m" / ADAPTER_CONFIG).is_file() and set(config_of(tmp_path / "m").calibration) == {
        "kind",
        "text_logits",
    }
    found = evaluated(tmp_path / "m", folder, max_eval_samples=2048, base_model_name_or_path=str(plm))
    assert found["test_ece"] == pytest.approx(results["test_ece"], rel=1e-3)
    assert found["test_predicted_actual_ratio"] == pytest.approx(1, abs=0.4) and results["eval_uncalibrated_ece"] > 0.1
    options = {"model_name_or_path": str(tmp_path / "m"), "base_model_name_or_path": str(plm)}
    options |= {"dataset_dir": str(folder), "max_eval_samples": 2048, "calibration": "isotonic"}
    again = calibrate.run(CalibrateArguments(**options, output_dir=str(tmp_path / "whole")))
    assert (tmp_path / "whole" / "model.safetensors").is_file() and again["test_ece"] == pytest.approx(
        found["test_ece"], rel=1e-3
    )


def test_a_calibration_that_cannot_be_is_said_before_training(tmp_path, folder, plm):
    options = SETTINGS | {"negative_sampling_rate": RATE}
    with pytest.raises(ValueError, match="--calibration platt: the 100 validation rows .* have . clicks, and at least"):
        tiny.finetune(folder, None, tmp_path / "m", calibration="platt", **options | {"max_eval_samples": 100})
    assert not (tmp_path / "m" / "config.json").exists()
    with pytest.raises(ValueError, match="--negative_sampling_rate must be above 0 and at most 1; got 0"):
        tiny.finetune(folder, None, tmp_path / "m", **options | {"negative_sampling_rate": 0})


def test_a_line_that_falls_loses_no_run(tmp_path, folder, models, monkeypatch, caplog):
    """What was trained stays, without a calibration, and the log says so."""
    options = SETTINGS | {"negative_sampling_rate": RATE, "max_train_steps": 2, "learning_rate": 1e-9}

    def falls(*_):
        raise NotCalibrated("Platt's slope is -1")

    monkeypatch.setattr(calibration, "fit_platt", falls)
    results = tiny.finetune(folder, None, tmp_path / "m", calibration="platt", **options)
    assert config_of(tmp_path / "m").calibration is None and "test_ece" in results
    assert "The checkpoint is not calibrated" in caplog.text
    caplog.clear()
    made, _ = models
    arguments = {"id_model": str(made / "id"), "plm_model": str(made / "plm"), "dataset_dir": str(folder)}
    results = fuse.run(FuseArguments(**arguments, output_dir=str(tmp_path / "f"), calibration="platt"))
    assert config_of(tmp_path / "f").calibration is None and "test_auc" in results
    assert "The checkpoint is not calibrated" in caplog.text
