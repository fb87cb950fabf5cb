"""The recipes on a few rows, from raw files to predictions; what they promise of training and of the test split."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import AutoModel

from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.prepare.dataset_folder import read_split, shard_path
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.configuration_flip import STRATEGIES
from flip_ctr.train import evaluate_ctr, finetune, predict
from flip_ctr.train.loop import calibration, run
from flip_ctr.train.loop.optimizer import FeatureTables, make_optimizer
from flip_ctr.train.loop.scoring import score


def read_json(folder, name):
    return json.loads((folder / name).read_text())


def check_files(folder, results: dict) -> list[dict]:
    """Results and history of a run; every number is finite. Returns the history."""
    history = read_json(folder, "history.json")
    assert read_json(folder, "all_results.json") == results
    numbers = [value for entry in [results, *history] for value in entry.values()]
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    assert any("loss" in entry for entry in history)
    return history


def evaluate(dataset_dir, model, **options) -> dict:
    return evaluate_ctr.run(evaluate_ctr.EvaluateArguments(str(model), str(dataset_dir), **options))


# --- the whole way


@pytest.mark.parametrize("off", [None, "mlm", "mtm", "icl"])
def test_pretraining(tmp_path, dataset_dir, plm, off, pictures):
    options = {f"{off}_weight": 0.0} if off else {}
    results = tiny.pretrain(dataset_dir, plm, tmp_path / "p", mask_unit="entity", **options)
    history = check_files(tmp_path / "p", results)
    assert (tmp_path / "p" / "training.png").stat().st_size > 5000
    on = {"mlm", "mtm", "icl"} - {off}
    assert {f"eval_{name}_loss" for name in on} <= set(results) and f"eval_{off}_loss" not in results
    shuffled = {f"eval_{name}_shuffled_accuracy" for name in on - {"icl"}}
    assert shuffled <= set(results) and results["train_rows"] == 96 and results["train_steps"] == 6
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [3, 6]
    model = AutoModel.from_pretrained(tmp_path / "p")
    assert isinstance(model, FlipForPretraining) and (model.mtm_head is None) == (off == "mtm")
    assert model.mtm_head is None or model.mtm_head.feature_counts.sum() == 96 * 8
    assert model.config.text_config.vocab_size == len(FlipProcessor.from_pretrained(tmp_path / "p").tokenizer)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fine_tuning_evaluation_and_prediction_agree(tmp_path, dataset_dir, finetuned, strategy):
    folder, results = finetuned[strategy]
    check_files(folder, results)
    assert (folder / "training.png").stat().st_size > 5000
    # 1. the test split's metrics are those of the saved checkpoint
    for split, prefix in (("test", "test"), ("validation", "eval")):
        again = evaluate(dataset_dir, folder, split=split, max_eval_samples=64, output_dir=str(tmp_path / split))
        names = [name for name in results if name.startswith(f"{prefix}_")]
        assert len(names) >= 6 and again[f"{prefix}_rows"] == 64
        assert {name: again[name] for name in names} == pytest.approx({name: results[name] for name in names}, abs=1e-6)
        assert (f"{prefix}_id_auc" in again) == (strategy == "joint")
        assert read_json(tmp_path / split, "all_results.json") == again
    # 2. predictions are the model's
    source, output = shard_path(dataset_dir, "test"), tmp_path / "scores.parquet"
    predict.run(predict.PredictArguments(str(folder), str(source), str(output)))
    scored, rows = pq.read_table(output), read_split(dataset_dir, "test")
    assert scored.select(rows.column_names).equals(rows)
    model, processor = FlipForCTR.from_pretrained(folder).eval(), FlipProcessor.from_pretrained(folder)
    with torch.no_grad():
        expected = model(**processor(rows)).logits[:, 0].sigmoid()
    torch.testing.assert_close(torch.tensor(scored["click_probability"].to_numpy().copy()).float(), expected)
    assert expected.std() > 1e-4
    assert (
        ("text_probability" in scored.column_names)
        == ("id_probability" in scored.column_names)
        == (strategy == "joint")
    )


def test_an_id_model_from_pretraining_needs_no_plm(finetuned):
    folder, _ = finetuned["id"]
    assert read_json(folder, "config.json")["text_config"] is None
    assert FlipProcessor.from_pretrained(folder).id_only


@pytest.mark.parametrize(
    ("strategy", "options"), [("joint", {"text_pooling": "mean"}), ("plm", {}), ("joint", {"id_tower": "autoint"})]
)
def test_without_pretraining(tmp_path, dataset_dir, plm, strategy, options):
    results = tiny.finetune(dataset_dir, plm, tmp_path / "m", strategy=strategy, num_train_epochs=1, **options)
    check_files(tmp_path / "m", results)


def test_a_click_model_can_be_trained_on(tmp_path, dataset_dir, finetuned):
    folder, _ = finetuned["id"]
    options = {"strategy": "id", "learning_rate": 1e-12, "max_train_steps": 1, "unk_rate": 0.0}
    results = tiny.finetune(dataset_dir, folder, tmp_path / "m", **options)
    again = evaluate(dataset_dir, folder, max_eval_samples=64)
    assert results["test_logloss"] == pytest.approx(again["test_logloss"], abs=1e-6)


@pytest.mark.parametrize("tower", ["dcnv2", "deepfm", "autoint"])
def test_a_planted_signal_is_learned(tmp_path, dataset_dir, tower):
    options = {
        "max_train_samples": None,
        "max_eval_samples": None,
        "per_device_train_batch_size": 64,
        "learning_rate": 0.02,
        "num_train_epochs": 4,
        "id_tower": tower,
        "id_tower_kwargs": None,
    }
    results = tiny.finetune(dataset_dir, None, tmp_path / "m", **options)
    train = evaluate(dataset_dir, tmp_path / "m", split="train")
    assert min(results["eval_auc"], results["test_auc"], train["train_auc"]) > 0.75
    assert results["test_gauc"] > 0.7 and abs(results["test_predicted_actual_ratio"] - 1) < 0.3


# --- promises of training


def test_bf16(tmp_path, dataset_dir, plm):
    options = {"mixed_precision": "bf16", "num_train_epochs": 1, "max_train_samples": 32}
    check_files(tmp_path / "p", tiny.pretrain(dataset_dir, plm, tmp_path / "p", **options))
    for strategy, fusion in (("id", {}), ("joint", {"fusion": "gate"})):
        results = tiny.finetune(
            dataset_dir, tmp_path / "p", tmp_path / strategy, strategy=strategy, **fusion, **options
        )
        check_files(tmp_path / strategy, results)
        model = FlipForCTR.from_pretrained(tmp_path / strategy)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # master weights


def test_the_same_seed_gives_the_same_weights(tmp_path, dataset_dir):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny.finetune(dataset_dir, None, tmp_path / name, seed=seed, id_dropout=0.1, num_train_epochs=1)
        weights.append(FlipForCTR.from_pretrained(tmp_path / name).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_gradient_accumulation_equals_the_large_batch(tmp_path, dataset_dir):
    """4 micro-batches of 16 rows are one batch of the same 64: one step an epoch, so that the rows are the same."""
    shared = {
        "max_train_samples": 64,
        "weight_decay": 0.0,
        "unk_rate": 0.0,
        "num_train_epochs": 3,
        "warmup_ratio": 0.0,
        "early_stopping_patience": None,
    }
    results = {}
    for name, batch, steps in (("large", 64, 1), ("small", 16, 4)):
        options = shared | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        results[name] = tiny.finetune(dataset_dir, None, tmp_path / name, **options)
    assert results["large"]["train_steps"] == results["small"]["train_steps"] == 3
    large, small = (FlipForCTR.from_pretrained(tmp_path / name).state_dict() for name in ("large", "small"))
    start = FlipForCTR(FlipForCTR.from_pretrained(tmp_path / "large").config).state_dict()
    for name in large:
        torch.testing.assert_close(small[name], large[name], atol=2e-5, rtol=1e-3)
    assert not torch.allclose(start["id_classifier.weight"], large["id_classifier.weight"], atol=1e-3)


@pytest.mark.parametrize("logging_steps", [2, 1000])
def test_early_stopping_keeps_the_best_checkpoint(tmp_path, dataset_dir, logging_steps):
    options = {"learning_rate": 0.05, "num_train_epochs": 30, "early_stopping_patience": 2, "max_train_samples": 64}
    options["logging_steps"] = logging_steps  # it may stop before the first entry of the history
    results = tiny.finetune(dataset_dir, None, tmp_path / "m", **options)
    entries = [entry for entry in read_json(tmp_path / "m", "history.json") if "eval_auc" in entry]
    quality = [entry["eval_auc"] - entry["eval_logloss"] for entry in entries]
    best = quality.index(max(quality))
    assert len(entries) == best + 1 + 2 < 30  # two without improvement, then it stops
    assert (results["best_step"], results["eval_auc"]) == (entries[best]["step"], entries[best]["eval_auc"])
    saved = evaluate(dataset_dir, tmp_path / "m", split="validation", max_eval_samples=64)
    assert saved["eval_auc"] == pytest.approx(max(zip(quality, (entry["eval_auc"] for entry in entries)))[1], abs=1e-6)
    assert saved["eval_logloss"] == pytest.approx(entries[best]["eval_logloss"], abs=1e-6)


def test_the_test_split_is_scored_once_at_the_end(tmp_path, dataset_dir, monkeypatch):
    """Its rows are only encoded before: whether they can be scored."""
    events = []
    real_train, real_score = finetune.train, finetune.score

    def score(accelerator, model, dataset, *args):
        events.append(dataset.rows.split)
        return real_score(accelerator, model, dataset, *args)

    for module in (finetune, calibration):  # (the latter scores the test split, before and after its correction)
        monkeypatch.setattr(module, "score", score)
    monkeypatch.setattr(finetune, "train", lambda *a, **k: (real_train(*a, **k), events.append("trained"))[0])
    tiny.finetune(dataset_dir, None, tmp_path / "m", num_train_epochs=1)
    assert events == ["validation", "trained", "test"]


def test_pretraining_does_not_read_the_test_split(tmp_path, dataset_dir, plm, monkeypatch):
    read, opened = [], SplitRows.__init__
    monkeypatch.setattr(
        SplitRows,
        "__init__",
        lambda rows, folder, split, *args: (read.append(split), opened(rows, folder, split, *args))[1],
    )
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", num_train_epochs=1)
    assert read == ["train", "validation"]


def test_vocabularies_come_from_the_training_split(tmp_path, dataset_dir):
    tiny.finetune(dataset_dir, None, tmp_path / "m", num_train_epochs=1, max_train_samples=50)
    table = read_split(dataset_dir, "train")
    rows = table.take(np.sort(np.random.default_rng(42).choice(len(table), 50, replace=False)))
    vocabulary = FlipProcessor.from_pretrained(tmp_path / "m").feature_extractor.vocabularies[0]
    assert sorted(map(int, vocabulary)) == sorted(set(rows["user_id"].to_pylist()))


def test_steps_and_evaluations_as_asked(tmp_path, dataset_dir):
    options = {"max_train_steps": 7, "eval_steps": 3, "logging_steps": 1, "early_stopping_patience": None}
    results = tiny.finetune(dataset_dir, None, tmp_path / "m", **options)
    history = read_json(tmp_path / "m", "history.json")
    assert [entry["step"] for entry in history if "eval_auc" in entry] == [3, 6, 7]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 8)) and results["train_steps"] == 7


def test_embedding_l2_is_the_sum_of_squares_of_the_whole_feature_tables(processor, text_config):
    model = tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, id_tower="deepfm")))
    tables = (model.flip.id_tower.embeddings.weight, model.first_order.weight)  # and no token embeddings
    sum(0.3 * table.square().sum() for table in tables).backward()
    expected = [table.grad.clone() for table in tables]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    FeatureTables(model, 0.3).add_l2()
    assert all(torch.allclose(table.grad, gradient) for table, gradient in zip(tables, expected))
    assert sum(bool(parameter.grad.any()) for parameter in model.parameters()) == 2


def test_embedding_l2_shrinks_the_tables(tmp_path, dataset_dir):
    norms = []
    for name, l2 in (("free", 0.0), ("bound", 10.0)):
        options = {"eval_steps": 30, "max_train_steps": 30}  # one evaluation, so that the last weights are kept
        tiny.finetune(dataset_dir, None, tmp_path / name, embedding_l2=l2, learning_rate=0.02, **options)
        norms.append(FlipForCTR.from_pretrained(tmp_path / name).flip.id_tower.embeddings.weight.norm().item())
    assert norms[1] < norms[0] / 2


def test_a_picture_is_drawn_only_where_matplotlib_is(tmp_path, dataset_dir, pictures, monkeypatch):
    monkeypatch.setattr("flip_ctr.train.outputs.plots.pyplot", lambda: None)
    tiny.finetune(dataset_dir, None, tmp_path / "m", num_train_epochs=1)
    assert not (tmp_path / "m" / "training.png").exists()


def test_every_parameter_has_its_rate_and_decay(processor, text_config):
    model = FlipForCTR(tiny.flip_config(processor.fields, text_config, id_tower="deepfm", fusion="gate"))
    rates = {"learning_rate": 0.1, "plm_learning_rate": 0.2, "weight_decay": 0.3}
    args = finetune.FinetuneArguments(dataset_dir="d", output_dir="o", model_name_or_path="m", **rates)
    groups = make_optimizer(model, args, torch.device("cpu")).param_groups
    found = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        table = (
            "embeddings.weight" in name
            and "LayerNorm" not in name
            or "_embeddings.weight" in name
            or "first_order" in name
        )
        rate = 0.2 if "text_encoder" in name else 0.1
        assert found[id(parameter)] == (rate, 0.3 if parameter.ndim > 1 and not table else 0.0), name


@pytest.mark.parametrize("logging_steps", [1, 1000])
def test_a_loss_that_is_not_finite_stops_training(tmp_path, dataset_dir, logging_steps):
    with pytest.raises(FloatingPointError, match="not finite at step .*nothing yet. Lower --learning_rate"):
        tiny.finetune(
            dataset_dir, None, tmp_path / "m", learning_rate=1e30, logging_steps=logging_steps, max_grad_norm=0.0
        )


def test_scores_are_in_the_rows_order_whatever_the_batches(processor, rows, text_config):
    from accelerate import Accelerator

    model = tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config)))
    dataset = EncodedDataset(processor, rows)
    with torch.no_grad():
        expected = model.eval()(**processor(rows)).logits[:, 0]
    for batch_size in (1, 5, 100):
        scores = score(Accelerator(), model, dataset, batch_size)
        assert set(scores) == {"logits", "id_logits", "text_logits"}
        torch.testing.assert_close(torch.from_numpy(scores["logits"]), expected, atol=1e-5, rtol=1e-5)


def test_recipes_of_different_precision_run_in_one_process(tmp_path, dataset_dir):
    few = {"strategy": "id", "num_train_epochs": 1, "max_eval_samples": None}
    trained = tiny.finetune(dataset_dir, None, tmp_path / "m", **few, mixed_precision="bf16")
    asked = {"dataset_dir": str(dataset_dir), "model_name_or_path": str(tmp_path / "m")}
    full = evaluate_ctr.run(evaluate_ctr.EvaluateArguments(**asked))
    assert trained["test_logloss"] == full["test_logloss"]  # a run scores the test split as it will be scored
    half = evaluate_ctr.run(evaluate_ctr.EvaluateArguments(**asked, mixed_precision="bf16"))
    assert full["test_logloss"] != half["test_logloss"] == pytest.approx(full["test_logloss"], abs=0.05)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_run_that_names_no_precision(has_bf16, tmp_path, dataset_dir, monkeypatch):
    monkeypatch.setattr(run, "multiplies_bf16", lambda: has_bf16)
    tiny.finetune(dataset_dir, None, tmp_path / "m", num_train_epochs=1, mixed_precision=None)
    record = json.loads((tmp_path / "m" / "training_args.json").read_text())
    assert record["arguments"]["mixed_precision"] == ("bf16" if has_bf16 else "no")
    assert "mixed_precision" not in record["changed"]


def test_vocabularies_too_large_for_json_go_the_whole_way(tmp_path, dataset_dir, plm, monkeypatch):
    few = {"max_train_steps": 4, "checkpointing_steps": "2", "seed": 3}
    as_json = tiny.finetune(dataset_dir, None, tmp_path / "a", **few)
    monkeypatch.setattr("flip_ctr.modeling_flip.feature_extraction_flip.MAX_JSON_VALUES", 5)
    results = tiny.finetune(dataset_dir, None, tmp_path / "b", **few)
    assert (tmp_path / "b" / "vocabularies.txt").exists() and not (tmp_path / "a" / "vocabularies.txt").exists()
    assert results["test_auc"] == as_json["test_auc"]
    shutil.rmtree(tmp_path / "b" / "checkpoint-4")
    assert (
        tiny.finetune(dataset_dir, None, tmp_path / "b", **few, resume_from_checkpoint="latest")["test_auc"]
        == results["test_auc"]
    )
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", max_train_steps=2)
    joint = tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "j", max_train_steps=2, max_eval_samples=None)
    assert evaluate(dataset_dir, tmp_path / "j")["test_auc"] == pytest.approx(joint["test_auc"], abs=1e-6)
