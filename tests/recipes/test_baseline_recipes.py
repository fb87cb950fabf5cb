"""Baselines, ablations and late fusion through the recipes."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel

from flip_ctr import FlipForCTR, FlipForPretraining, FlipModel, FlipProcessor
from flip_ctr.data.prepare.dataset_folder import read_split, shard_path
from flip_ctr.modeling_flip.heads_flip import FlipFusion
from flip_ctr.modeling_flip.losses_flip import click_loss
from flip_ctr.train import evaluate_ctr, fuse, predict
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.models import build
from flip_ctr.train.models.warm_start import join_ids
from flip_ctr.train.outputs.hub import without_heads
from flip_ctr.train.pretrain import PretrainArguments

MAP = {"mlm_weight": 0.0, "icl_weight": 0.0, "mtm_text_dropout": 1.0, "mask_unit": "entity"}
PLAIN_MLM = {"mtm_weight": 0.0, "icl_weight": 0.0, "mlm_id_dropout": 1.0}


@pytest.fixture(scope="module")
def map_model(tmp_path_factory, dataset_dir):
    """A checkpoint of MTM without text, and its results."""
    folder = tmp_path_factory.mktemp("map") / "p"
    return folder, tiny.pretrain(dataset_dir, None, folder, **MAP)


def embeddings(folder) -> torch.Tensor:
    return AutoModel.from_pretrained(folder).base_model.id_tower.embeddings.weight


def card(folder) -> str:
    return " ".join((folder / "README.md").read_text().split())


# --- self-supervision of one view


def test_ids_alone(tmp_path, dataset_dir, map_model):
    folder, results = map_model
    assert (
        "eval_mtm_accuracy" in results
        and "eval_mtm_shuffled_accuracy" not in results
        and "eval_icl_loss" not in results
    )
    assert FlipProcessor.from_pretrained(folder).id_only
    assert "trained to recover masked ids of a row from its other ids (MAP)" in card(folder)
    tiny.finetune(dataset_dir, folder, tmp_path / "m", strategy="id")
    text = card(tmp_path / "m")
    assert "pretrained without labels on its own view" in text and "aligned" not in text
    with pytest.raises(
        ValueError,
        match="--strategy joint needs a PLM, and .* has none; name a PLM .* and this checkpoint with --id_model",
    ):
        tiny.finetune(dataset_dir, folder, tmp_path / "j")
    assert "views.id_hidden_state    # the ids of the row" in (folder / "README.md").read_text()


def test_text_alone(tmp_path, dataset_dir, plm):
    results = tiny.pretrain(dataset_dir, plm, tmp_path / "p", **PLAIN_MLM)
    assert (
        "eval_mlm_accuracy" in results
        and "eval_mlm_shuffled_accuracy" not in results
        and "eval_mtm_loss" not in results
    )
    assert "trained on rows as sentences by masked language modelling" in card(tmp_path / "p")
    tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "m", strategy="plm")
    assert "pretrained without labels" in card(tmp_path / "m")
    with pytest.raises(ValueError, match="has no ID tower of ids alone"):
        tiny.finetune(dataset_dir, plm, tmp_path / "j", id_model=str(tmp_path / "p"))
    # it has no tower yet, so that its own may be of any kind
    tiny.finetune(dataset_dir, None, tmp_path / "fm", id_tower="fm", id_tower_kwargs=None)
    tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "fm-j", id_model=str(tmp_path / "fm"), learning_rate=1e-30)
    torch.testing.assert_close(embeddings(tmp_path / "fm-j"), embeddings(tmp_path / "fm"))
    tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "lr-j", id_tower="lr")
    assert AutoModel.from_pretrained(tmp_path / "lr-j").config.id_tower == "lr"
    with pytest.raises(ValueError, match="--strategy id: .* has no ID tower"):
        tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "j", strategy="id")
    # as it is published, without its head: no tower appears from nowhere
    (tmp_path / "public").mkdir()
    for name, content in without_heads(
        tmp_path / "p", json.loads((tmp_path / "p" / "config.json").read_text())
    ).items():
        (tmp_path / "public" / name).write_bytes(content)
    assert AutoModel.from_pretrained(tmp_path / "public").id_tower is None
    with pytest.raises(ValueError, match="has no ID tower of ids alone"):
        tiny.finetune(dataset_dir, plm, tmp_path / "j", id_model=str(tmp_path / "public"))


def test_contrast_alone(tmp_path, dataset_dir, plm):
    results = tiny.pretrain(dataset_dir, plm, tmp_path / "p", mlm_weight=0.0, mtm_weight=0.0)
    assert results["eval_loss"] == pytest.approx(results["eval_icl_loss"]) and "aligned on the same rows" in card(
        tmp_path / "p"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_name_or_path": "m", **MAP}, "--model_name_or_path m has no effect as no objective uses the PLM"),
        ({**MAP, "mtm_text_dropout": 0.5}, "an objective uses the PLM: --model_name_or_path must name it"),
        (
            {"model_name_or_path": "m", "id_model": "x", **PLAIN_MLM},
            "--id_model x has no effect as no objective",
        ),
        (
            {"model_name_or_path": "m", "mtm_text_dropout": 0.5, "mtm_weight": 0.0},
            "--mtm_text_dropout 0.5 has no effect with --mtm_weight 0",
        ),
        (
            {"model_name_or_path": "m", "mlm_id_dropout": 0.5, "mlm_weight": 0.0},
            "--mlm_id_dropout 0.5 has no effect with --mlm_weight 0",
        ),
        (
            {"model_name_or_path": "m", "mlm_vocabulary": "plm", "mlm_weight": 0.0},
            "--mlm_vocabulary plm has no effect with --mlm_weight 0",
        ),
        (
            {"model_name_or_path": "m", "mlm_vocabulary": "dataset", "streaming": True},
            "--mlm_vocabulary dataset needs the rows encoded",
        ),
        (
            {"model_name_or_path": "m", "mlm_id_dropout": -0.1},
            "--mlm_id_dropout must be at least 0 and at most 1; got -0.1",
        ),
    ],
)
def test_objectives_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        PretrainArguments(dataset_dir="d", output_dir="o", **settings)


# --- starting from another ID tower


def test_pretraining_goes_on_from_an_id_tower(tmp_path, dataset_dir, plm, map_model):
    # no step: what is saved is what the run started with
    tiny.pretrain(
        dataset_dir, plm, tmp_path / "p", id_model=str(map_model[0]), learning_rate=1e-30, mtm_text_dropout=0.5
    )
    assert torch.equal(embeddings(tmp_path / "p"), embeddings(map_model[0]))
    ours, theirs = (FlipForPretraining.from_pretrained(folder).mtm_head for folder in (tmp_path / "p", map_model[0]))
    assert torch.equal(ours.embeddings.weight, theirs.embeddings.weight)
    assert "Its ID tower started from a checkpoint of `flip-ctr pretrain`" in card(tmp_path / "p")
    assert str(map_model[0]) not in (tmp_path / "p" / "training_args.json").read_text()


def test_fine_tuning_starts_from_an_id_tower(tmp_path, dataset_dir, plm, map_model, finetuned):
    settings = {"learning_rate": 1e-30, "embedding_l2": 0.0, "num_train_epochs": 1}
    tiny.finetune(dataset_dir, plm, tmp_path / "a", id_model=str(map_model[0]), **settings)
    assert torch.equal(embeddings(tmp_path / "a"), embeddings(map_model[0]))
    tiny.finetune(dataset_dir, plm, tmp_path / "b", id_model=str(finetuned["id"][0]), **settings)
    ours, theirs = (
        FlipForCTR.from_pretrained(folder).id_classifier.weight for folder in (tmp_path / "b", finetuned["id"][0])
    )
    assert torch.equal(ours, theirs)  # a trained click layer comes along
    text = card(tmp_path / "b")
    assert "language model was not pretrained; the ID tower was aligned with the other view in pretraining" in text
    assert (
        "Its ID tower started from a checkpoint of `flip-ctr finetune`" in text
        and "Its ID tower started from a checkpoint of `flip-ctr pretrain`" in text
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embedding_optimizer": "rowwise_adagrad"},
        {"use_lora": True},
        {"grad_cache_chunk_size": 16},
    ],
)
def test_a_tower_whose_rate_is_0_stays_as_it_is(tmp_path, dataset_dir, plm, map_model, options):
    def tower(folder):
        return AutoModel.from_pretrained(folder).base_model.id_tower.state_dict()

    start = {"id_model": str(map_model[0]), "max_train_steps": 3}
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", **start, **options)  # 0 is the default there
    before, after = tower(map_model[0]), tower(tmp_path / "p")
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()
    ours, theirs = (FlipForPretraining.from_pretrained(folder).mtm_head for folder in (tmp_path / "p", map_model[0]))
    assert not torch.equal(ours.embeddings.weight, theirs.embeddings.weight)
    if "grad_cache_chunk_size" not in options:
        tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "m", id_learning_rate=0.0, **start, **options)
        after = tower(tmp_path / "m")
        assert all(torch.equal(before[name], after[name]) for name in before)
        text = card(tmp_path / "m")
        assert "The language model was aligned with the other view in pretraining; the ID tower was pretrained" in text
        assert "pretrained without labels on its own view. It predicts" in text
        tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "i", strategy="id", max_train_steps=1)
        assert "pretrained without labels on its own view. It predicts" in card(tmp_path / "i")
    assert "The language model was aligned to the ID tower without labels" in card(tmp_path / "p")
    assert "the tower stayed as it was" in card(tmp_path / "p")


@pytest.mark.parametrize("tower", ["afn", "deepfm"])
def test_a_tower_that_stays_as_it_is_counts_and_drops_nothing(tmp_path, dataset_dir, plm, tower):
    """AFN's batch norm counts nothing, and DeepFM's weights of single features stay too."""
    new = {"strategy": "id", "id_tower": tower, "id_tower_kwargs": None, "id_dropout": 0.5, "max_train_steps": 2}
    tiny.finetune(dataset_dir, None, tmp_path / "i", **new)
    tiny.finetune(
        dataset_dir, plm, tmp_path / "j", id_model=str(tmp_path / "i"), id_learning_rate=0.0, max_train_steps=2
    )
    before, after = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("i", "j"))
    for name in before:
        assert torch.equal(before[name], after[name]) == (not name.startswith("id_classifier")), name
    model = AutoModel.from_pretrained(tmp_path / "j")
    build.lock_id_tower(model)
    assert (
        not any(module.training for module in model.train().flip.id_tower.modules())
        and model.flip.text_encoder.training
    )


def test_an_id_tower_goes_on_learning_where_no_plm_is_aligned_to_it(tmp_path, dataset_dir, plm, map_model):
    for folder, model, options in (("a", None, MAP), ("b", plm, {"id_learning_rate": 0.01})):
        tiny.pretrain(dataset_dir, model, tmp_path / folder, id_model=str(map_model[0]), max_train_steps=3, **options)
        assert not torch.equal(embeddings(tmp_path / folder), embeddings(map_model[0]))


def test_a_rate_of_the_tower_that_has_no_effect():
    folders = {"dataset_dir": "d", "output_dir": "o", "model_name_or_path": "m"}
    for new in ({}, {"id_learning_rate": 0.0}):
        with pytest.raises(ValueError, match="--id_learning_rate 0.* has no effect as no objective uses the ID tower"):
            PretrainArguments(**folders, **PLAIN_MLM, **({"id_learning_rate": 0.01} | new))
    with pytest.raises(ValueError, match="--id_learning_rate 0 would leave a new ID tower as it was drawn"):
        PretrainArguments(**folders, id_learning_rate=0.0)
    with pytest.raises(ValueError, match="--id_learning_rate 0 would leave a new ID tower as it was drawn"):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", id_learning_rate=0.0)
    with pytest.raises(ValueError, match="--embedding_l2 0.01 has no effect on a tower that stays as it is"):
        PretrainArguments(**folders, id_model="i", embedding_l2=1e-2)
    odd = {
        "id_model": "i",
        "icl_weight": 0.0,
        "mlm_id_dropout": 1.0,
        "mtm_text_dropout": 1.0,
    }  # no objective sees both views
    assert (
        PretrainArguments(**folders, **odd).id_learning_rate is None
        and PretrainArguments(**folders, id_model="i").id_learning_rate == 0
    )
    with pytest.raises(ValueError, match="--id_learning_rate 0.01 has no effect with --strategy plm"):
        FinetuneArguments(**folders, strategy="plm", id_learning_rate=0.01)
    with pytest.raises(ValueError, match="--id_learning_rate must be at least 0; got -1"):
        FinetuneArguments(**folders, id_learning_rate=-1.0)


def test_ids_that_mean_other_things(tmp_path):
    """Buckets that add up to the same number are not the same ids."""
    sizes = [(16, 8), (12, 12)]
    fields = [
        [{"name": name, "kind": "hashed", "num_buckets": size} for name, size in zip("ab", pair)] for pair in sizes
    ]
    rows = [{"a": "x", "b": "y", "label": 1}]
    ours, theirs = (FlipProcessor.from_dataset(rows, one).feature_extractor for one in fields)
    join_ids(ours, ours, "here")
    with pytest.raises(ValueError, match="the ids of there are not those of this run: field 1, a string hashed 1 16"):
        join_ids(ours, theirs, "there")


def test_an_id_tower_that_does_not_fit(tmp_path, dataset_dir, plm, map_model, finetuned):
    start = {"id_model": str(map_model[0])}
    with pytest.raises(ValueError, match="--id_embedding_size 8 does not fit .*, which has 4; leave the flag out"):
        tiny.finetune(dataset_dir, plm, tmp_path / "m", id_embedding_size=8, **start)
    id_only, _ = finetuned["id"]
    tiny.finetune(dataset_dir, None, tmp_path / "other", max_train_samples=48)
    with pytest.raises(ValueError, match="the ids of .* are not those of this run: field 1, user_id, has other values"):
        tiny.finetune(dataset_dir, id_only, tmp_path / "m", id_model=str(tmp_path / "other"), strategy="id")
    with pytest.raises(ValueError, match="is a bert, not a FLIP checkpoint with an ID tower"):
        tiny.finetune(dataset_dir, plm, tmp_path / "m", id_model=str(plm))
    with pytest.raises(ValueError, match="has no ID tower of ids alone"):
        tiny.finetune(dataset_dir, plm, tmp_path / "m", id_model=str(finetuned["plm"][0]))
    with pytest.raises(ValueError, match="--id_model x has no effect with --strategy plm, which has no ID tower"):
        FinetuneArguments(dataset_dir="d", output_dir="o", model_name_or_path="m", strategy="plm", id_model="x")


# --- text embeddings and prompts


def test_frozen_text_embeddings(tmp_path, dataset_dir, plm):
    settings = {"strategy": "frozen", "prompt_fields": ["title", "genre"], "text_pooling": "mean"}
    results = tiny.finetune(dataset_dir, plm, tmp_path / "m", **settings)
    before, after = (AutoModel.from_pretrained(folder) for folder in (plm, tmp_path / "m"))
    state = after.flip.text_encoder.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in before.state_dict().items() if "pooler" not in name)
    processor = FlipProcessor.from_pretrained(tmp_path / "m")
    assert [field.name for field in processor.text_fields] == ["title", "genre"]
    again = evaluate_ctr.run(evaluate_ctr.EvaluateArguments(str(tmp_path / "m"), str(dataset_dir), max_eval_samples=64))
    assert again["test_auc"] == pytest.approx(results["test_auc"])
    source, output = shard_path(dataset_dir, "test"), tmp_path / "scores.parquet"
    predict.run(predict.PredictArguments(str(tmp_path / "m"), str(source), str(output)))
    with torch.no_grad():
        expected = after.eval()(**processor(read_split(dataset_dir, "test"))).logits[:, 0].sigmoid()
    scores = torch.tensor(read_scores(output))
    torch.testing.assert_close(scores, expected)
    assert "with the text embedding of a frozen language model as one more field" in card(tmp_path / "m")


def test_a_frozen_plm_reads_a_prompt_once_a_batch(finetuned, dataset_dir, monkeypatch):
    model = FlipForCTR.from_pretrained(finetuned["frozen"][0]).eval()
    rows = FlipProcessor.from_pretrained(finetuned["frozen"][0])(read_split(dataset_dir, "test").slice(0, 12))
    prompts = {name: values.repeat(3, 1) for name, values in rows.items() if name != "labels"}
    read = []
    real = FlipModel.encode_text

    def encode_text(self, input_ids, attention_mask):
        read.append(len(input_ids))
        return real(self, input_ids, attention_mask)

    monkeypatch.setattr(FlipModel, "encode_text", encode_text)
    logits = model(**prompts).logits
    assert read[0] == len(set(map(tuple, rows["input_ids"].tolist()))) <= 12
    assert torch.equal(logits[:12], logits[12:24])


def read_scores(path) -> list[float]:
    import pyarrow.parquet as pq

    return pq.read_table(path)["click_probability"].to_numpy().astype(np.float32)


def test_frozen_starts_from_a_plm(tmp_path, dataset_dir, pretrained, finetuned):
    with pytest.raises(ValueError, match="the ID tower of .* is of another form than that of --strategy frozen"):
        tiny.finetune(dataset_dir, pretrained, tmp_path / "m", strategy="frozen")
    with pytest.raises(ValueError, match="the ID tower of .* is of another form than that of --strategy joint"):
        tiny.finetune(dataset_dir, finetuned["frozen"][0], tmp_path / "m")
    again = AutoModel.from_pretrained(
        finetuned["frozen"][0]
    )  # it is frozen after loading too: DDP would wait for its gradients
    assert not any(parameter.requires_grad for parameter in again.flip.text_encoder.parameters())
    with pytest.raises(ValueError, match="--use_lora has no effect with --strategy frozen"):
        FinetuneArguments(dataset_dir="d", output_dir="o", model_name_or_path="m", strategy="frozen", use_lora=True)


def test_ids_in_the_prompt_are_an_argument(tmp_path, dataset_dir, plm, caplog):
    names = ["user_id", "movie_id", "title"]
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", prompt_fields=names)
    processor = FlipProcessor.from_pretrained(tmp_path / "p")
    assert [field.name for field in processor.text_fields] == names
    with caplog.at_level("INFO"):
        tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "m")
    assert (
        "prompts have the checkpoint's fields user_id, movie_id, title; the dataset's schema puts gender" in caplog.text
    )
    with pytest.raises(ValueError, match="--prompt_fields: the prompts of .* have its own fields"):
        tiny.finetune(dataset_dir, tmp_path / "p", tmp_path / "n", prompt_fields=names)
    with pytest.raises(ValueError, match="--prompt_fields user_id .* has no effect with --strategy id"):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", prompt_fields=names)
    with pytest.raises(ValueError, match="--prompt_fields actor: the dataset's fields are user_id, gender"):
        tiny.pretrain(dataset_dir, plm, tmp_path / "q", prompt_fields=["actor"])


# --- late fusion


def fuse_models(dataset_dir, finetuned, folder, **options) -> dict:
    paths = {"id_model": str(finetuned["id"][0]), "plm_model": str(finetuned["plm"][0])} | options
    return fuse.run(
        fuse.FuseArguments(dataset_dir=str(dataset_dir), output_dir=str(folder), max_eval_samples=64, **paths)
    )


@pytest.mark.parametrize("fusion", ["scalar", "gate", "raw"])
def test_fused_models_keep_their_towers(tmp_path, dataset_dir, finetuned, fusion):
    results = fuse_models(dataset_dir, finetuned, tmp_path / "m", fusion=fusion)
    model, processor = FlipForCTR.from_pretrained(tmp_path / "m").eval(), FlipProcessor.from_pretrained(tmp_path / "m")
    rows = read_split(dataset_dir, "test")
    with torch.no_grad():
        output = model(**processor(rows))
        for strategy, logits in (("id", output.id_logits), ("plm", output.text_logits)):
            alone = FlipForCTR.from_pretrained(finetuned[strategy][0]).eval()
            torch.testing.assert_close(
                alone(**FlipProcessor.from_pretrained(finetuned[strategy][0])(rows)).logits, logits
            )
    assert (model.config.strategy, model.config.fusion) == ("joint", fusion)
    for strategy, tower in (("id", "id"), ("plm", "text")):
        assert results[f"test_{tower}_auc"] == pytest.approx(finetuned[strategy][1]["test_auc"])
    again = evaluate_ctr.run(evaluate_ctr.EvaluateArguments(str(tmp_path / "m"), str(dataset_dir), max_eval_samples=64))
    assert again["test_auc"] == pytest.approx(results["test_auc"])
    assert json.loads((tmp_path / "m" / "all_results.json").read_text()) == results
    text = card(tmp_path / "m")
    assert (
        "`flip-ctr fuse`" in text
        and "the weights of the towers were fitted on 64 of validation" in text
        and "cross-fitted" in text
    )
    assert (
        "aligned in pretraining by" in text and "steps" not in text.split("`flip-ctr fuse`")[1].split("It started")[0]
    )


def test_fusing_over_another_run_leaves_nothing_of_it(tmp_path, dataset_dir, finetuned, pictures):
    tiny.finetune(dataset_dir, None, tmp_path / "m", checkpointing_steps="2")
    assert (tmp_path / "m" / "history.json").exists() and list((tmp_path / "m").glob("checkpoint-*"))
    (tmp_path / "m" / "notes.txt").write_text("mine")
    fuse_models(dataset_dir, finetuned, tmp_path / "m", overwrite_output_dir=True)
    names = {path.name for path in (tmp_path / "m").iterdir()}
    assert not names & {"history.json", "training.png"} and not [
        name for name in names if name.startswith("checkpoint-")
    ]
    assert "notes.txt" in names and "training.png" not in card(tmp_path / "m")


def test_a_plm_model_without_a_record_can_be_fused(tmp_path, dataset_dir, finetuned):
    shutil.copytree(finetuned["plm"][0], tmp_path / "plm", ignore=shutil.ignore_patterns("training_args.json"))
    fuse_models(dataset_dir, finetuned, tmp_path / "m", plm_model=str(tmp_path / "plm"))
    assert (tmp_path / "m" / "README.md").exists()


def test_the_towers_of_joint_models_can_be_fused(tmp_path, dataset_dir, finetuned):
    folder = str(finetuned["joint"][0])
    results = fuse_models(dataset_dir, finetuned, tmp_path / "m", id_model=folder, plm_model=folder)
    assert results["test_id_auc"] == pytest.approx(finetuned["joint"][1]["test_id_auc"])


def test_models_that_cannot_be_fused(tmp_path, dataset_dir, finetuned, pretrained):
    plm_model = str(finetuned["plm"][0])
    for options, message in (
        ({"id_model": plm_model}, "has no ID tower of ids alone"),
        ({"plm_model": str(finetuned["frozen"][0])}, "has strategy 'frozen': its PLM does not predict"),
        ({"plm_model": str(finetuned["id"][0])}, "has strategy 'id': its PLM does not predict"),
        ({"id_model": str(pretrained)}, "is a FlipForPretraining, not a fine-tuned click model"),
        ({"per_device_eval_batch_size": 0}, "--per_device_eval_batch_size must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fuse_models(dataset_dir, finetuned, tmp_path / "m", **options)
    assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="is --plm_model: the new checkpoint would take the place"):
        fuse_models(dataset_dir, finetuned, plm_model, overwrite_output_dir=True)
    with pytest.raises(ValueError, match="is not empty; choose another or add --overwrite_output_dir"):
        fuse_models(dataset_dir, finetuned, str(pretrained))


def fusion_rows(count: int, processor, text_config, kind: str):
    """A fusion, and inputs where the ID tower is right in rows of the first half of its states' sign, the PLM in the
    others."""
    generator = torch.Generator().manual_seed(0)
    config = tiny.flip_config(processor.fields, text_config, fusion=kind)
    state, pooled = torch.randn(count, 6, generator=generator), torch.randn(count, 5, generator=generator)
    labels = (torch.rand(count, generator=generator) < 0.5).long()
    right, noise = (labels * 2.0 - 1)[:, None] * 2, torch.randn(count, 2, generator=generator) * 2
    knows = state[:, :1] > 0
    id_logits = torch.where(knows, right, noise[:, :1])
    text_logits = torch.where(knows, noise[:, 1:], right)
    ids = torch.full((count, config.num_slots), 5)
    return FlipFusion(config, 6, 5), [id_logits, text_logits, state, pooled, ids], labels


def test_a_scalar_is_fitted_to_its_optimum(processor, text_config):
    fusion, inputs, labels = fusion_rows(600, processor, text_config, "scalar")
    inputs[0] = inputs[0] * 1.5
    fuse.fit(fusion, inputs, labels, fuse.folds(None, 600, 0))
    weights = torch.linspace(0.01, 0.99, 99)
    losses = torch.stack([click_loss(weight * inputs[0] + (1 - weight) * inputs[1], labels) for weight in weights])
    assert fusion.alpha.sigmoid().item() == pytest.approx(weights[losses.argmin()].item(), abs=0.011)


def test_a_gate_finds_who_knows_and_cross_fitted_scores_are_of_others(processor, text_config):
    scalar, gate = ({}, {})
    for kind, kept in (("scalar", scalar), ("gate", gate)):
        fusion, inputs, labels = fusion_rows(1500, processor, text_config, kind)
        kept["logits"], kept["penalty"] = fuse.fit(fusion, inputs, labels, fuse.folds(None, 1500, 0))
        kept["loss"] = click_loss(torch.from_numpy(kept["logits"])[:, None], labels).item()
        kept["fitted"] = click_loss(fusion(*inputs)[0], labels).item()
    assert gate["loss"] < scalar["loss"] - 0.1 and gate["penalty"] in fuse.PENALTIES
    assert gate["fitted"] < gate["loss"]  # on its own rows a gate looks better than it is
    # labels that nothing tells: cross-fitted scores of a gate do not pretend to know them
    fusion, inputs, _ = fusion_rows(300, processor, text_config, "gate")
    labels = torch.arange(300) % 2
    logits, _ = fuse.fit(fusion, inputs, labels, fuse.folds(None, 300, 1))
    assert click_loss(torch.from_numpy(logits)[:, None], labels) > 0.69


def test_folds_keep_a_users_rows_together():
    users = np.array([3, 3, 7, -1, 3, 9, -1, 7] * 20)
    fold = fuse.folds(users, len(users), 0)
    assert all(len(set(fold[users == user])) == 1 for user in (3, 7, 9)) and len(set(fold[users == -1])) == fuse.FOLDS
    assert sorted(np.bincount(fuse.folds(None, 100, 0))) == [20] * 5
