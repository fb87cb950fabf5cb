"""Entity prompts in the recipes: every way from the dataset to scores, and what is refused."""

import csv
import json

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from flip_ctr import FlipConfig, FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.data.batches import samplers
from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train import evaluate_ctr, fuse, predict
from flip_ctr.train.arguments import EvaluateArguments, FinetuneArguments, FuseArguments, PredictArguments
from flip_ctr.train.loop.loaders import training_loader
from flip_ctr.train.loop.run import make_accelerator


@pytest.fixture(scope="module")
def pretrained_by_entity(tmp_path_factory, dataset_dir, plm):
    folder = tmp_path_factory.mktemp("entity") / "p"
    results = tiny.pretrain(dataset_dir, plm, folder, prompts="entity", plm_every=2)
    return folder, results


@pytest.fixture(scope="module")
def click_models(tmp_path_factory, dataset_dir, pretrained_by_entity):
    """Strategy -> folder and results."""
    folder = tmp_path_factory.mktemp("clicks")
    options = {"joint": {"fusion": "gate", "plm_every": 2}, "plm": {"plm_every": 3}, "id": {}}
    return {
        strategy: (
            folder / strategy,
            tiny.finetune(dataset_dir, pretrained_by_entity[0], folder / strategy, strategy=strategy, **more),
        )
        for strategy, more in options.items()
    }


def test_pretraining_says_what_was_learned_of_each_entity(pretrained_by_entity):
    folder, results = pretrained_by_entity
    for objective in ("mlm", "mtm"):
        for entity in ("user", "item"):
            assert 0 <= results[f"eval_{objective}_{entity}_accuracy"] <= 1
            assert 0 <= results[f"eval_{objective}_{entity}_shuffled_accuracy"] <= 1
    assert {"eval_icl_user_accuracy", "eval_icl_item_accuracy", "eval_icl_within_user_accuracy"} <= results.keys()
    model = FlipForPretraining.from_pretrained(folder)
    assert model.config.prompts == "entity" and model.flip.text_interaction is not None
    history = json.loads((folder / "history.json").read_text())
    assert all(np.isfinite(entry["grad_norm"]) for entry in history if "grad_norm" in entry)


@pytest.mark.parametrize("strategy", ["joint", "plm"])
def test_every_way_to_scores_gives_the_same(tmp_path, dataset_dir, click_models, strategy):
    folder, results = click_models[strategy]
    again = evaluate_ctr.run(
        EvaluateArguments(dataset_dir=str(dataset_dir), model_name_or_path=str(folder), max_eval_samples=64)
    )
    assert again["test_auc"] == pytest.approx(results["test_auc"], abs=1e-6)
    rows = tiny.ml_rows(dataset_dir, 30)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict.run(
        PredictArguments(
            model_name_or_path=str(folder), input=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "scores.csv")
        )
    )
    with open(tmp_path / "scores.csv") as file:
        predicted = [float(row["click_probability"]) for row in csv.DictReader(file)]
    scorer = pipeline("click-through-rate", model=str(folder))
    by_pipeline = [answer["click_probability"] for answer in scorer(rows, batch_size=7)]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        by_hand = model(**FlipProcessor.from_pretrained(folder)(rows)).logits.sigmoid()[:, 0].tolist()
    assert predicted == pytest.approx(by_hand, abs=1e-5) and by_pipeline == pytest.approx(by_hand, abs=1e-5)


def test_towers_that_were_trained_apart_are_fused(tmp_path, dataset_dir, click_models):
    fuse.run(
        FuseArguments(
            dataset_dir=str(dataset_dir),
            id_model=str(click_models["id"][0]),
            plm_model=str(click_models["plm"][0]),
            output_dir=str(tmp_path / "fused"),
            max_eval_samples=64,
        )
    )
    fused, plm = (FlipForCTR.from_pretrained(folder).eval() for folder in (tmp_path / "fused", click_models["plm"][0]))
    inputs = FlipProcessor.from_pretrained(tmp_path / "fused")(tiny.ml_rows(dataset_dir, 8))
    with torch.no_grad():
        torch.testing.assert_close(fused(**inputs).text_logits, plm(**inputs).logits)


def test_a_lora_adapter_and_a_frozen_plm(tmp_path, dataset_dir, plm):
    options = {"strategy": "plm", "prompts": "entity", "num_train_epochs": 1}
    tiny.finetune(dataset_dir, plm, tmp_path / "lora", use_lora=True, plm_every=2, **options)
    tiny.finetune(dataset_dir, plm, tmp_path / "frozen", freeze_plm=True, **options)
    before = FlipForCTR.from_text_pretrained(plm, FlipConfig.from_pretrained(tmp_path / "frozen"))
    weights = [
        FlipForCTR.from_pretrained(tmp_path / name).flip.text_encoder.state_dict() for name in ("lora", "frozen")
    ]
    own = before.flip.text_encoder.state_dict()
    assert all(torch.equal(weights[1][name], own[name]) for name in own)
    assert any(not torch.equal(weights[0][name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plm_every": 2}, "--plm_every 2 is for models with entity prompts"),
        ({"prompts": "row", "plm_every": 2}, "--plm_every 2 is for --prompts entity"),
        ({"prompts": "entity", "mixed_precision": "fp16"}, "fp16 does not run with --prompts entity; choose bf16"),
        ({"freeze_plm": True, "use_lora": True}, "--use_lora has no place beside --freeze_plm"),
        ({"prompts": "entities"}, "--prompts must be one of row, entity"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, dataset_dir, plm, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.finetune(dataset_dir, plm, tmp_path / "m", strategy="plm", **options)
    assert not (tmp_path / "m").exists()


def test_a_checkpoint_brings_its_own_prompts(tmp_path, dataset_dir, pretrained_by_entity):
    with pytest.raises(ValueError, match="--prompts row does not fit .* which has entity"):
        tiny.finetune(dataset_dir, pretrained_by_entity[0], tmp_path / "m", strategy="plm", prompts="row")


def test_id_only_reads_no_prompts():
    with pytest.raises(ValueError, match="--prompts entity has no effect with --strategy id"):
        FinetuneArguments(dataset_dir="d", output_dir="m", strategy="id", prompts="entity")


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"strategy": "plm"}, True),
        ({"strategy": "plm", "freeze_plm": True}, False),
        ({"strategy": "plm", "plm_every": 1}, False),
        ({"strategy": "joint"}, False),  # its ID tower learns from all items in turn
    ],
)
def test_rows_that_share_prompts_are_together_where_a_plm_trains_alone(
    dataset_dir, pretrained_by_entity, monkeypatch, options, shares
):
    monkeypatch.setattr(samplers, "PROMPTS_OF_A_BLOCK", 4)
    options = {
        "model_name_or_path": "m",
        "prompts": "entity",
        "plm_every": 3,
        "per_device_train_batch_size": 8,
    } | options
    args = FinetuneArguments(dataset_dir=str(dataset_dir), output_dir="o", **options)
    processor = FlipProcessor.from_pretrained(pretrained_by_entity[0])
    dataset = EncodedDataset(processor, SplitRows(str(dataset_dir), "train"))
    loader = training_loader(dataset, FlipCollator(processor), make_accelerator("no"), args)

    of_item = [fields[0].entity for fields in processor.prompt_fields].index("item")
    items = dataset.encoded.prompts.index[:, of_item]

    def items_of_windows(batches):
        rows = [np.concatenate(batches[start : start + 3]) for start in range(0, len(batches) - 3, 3)]
        return np.mean([len(np.unique(items[window])) for window in rows])

    plain = items_of_windows(list(samplers.GlobalBatchSampler(len(dataset), 8, args.seed)))
    assert (items_of_windows(list(loader.batch_sampler)) < 0.6 * plain) == shares
    assert sorted(row for batch in loader.batch_sampler for row in batch) == list(range(len(dataset)))
