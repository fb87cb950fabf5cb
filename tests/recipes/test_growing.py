"""A model that lives on: the next day has new users and films, which get ids in what was trained before."""

import pytest
import tiny
import torch
from transformers import AutoModel

from flip_ctr import FlipProcessor
from flip_ctr.modeling_flip.fields_flip import UNK_ID, FlipField
from flip_ctr.train import fuse
from flip_ctr.train.fuse import FuseArguments
from flip_ctr.train.models.build import load_click_model

FIELDS = [FlipField("user_id", "int", entity="user", key=True, sides=("id",)), *tiny.KIND_FIELDS[2:]]
NEW = {"user_id": 5, "movie_id": 7}


def rows_of(day: int) -> list[dict]:
    rows = [{name: value for name, value in row.items() if name != "history"} for row in tiny.kind_rows(96)]
    return (
        [row | {"user_id": row["user_id"] + 5, "movie_id": row["movie_id"] + 7} for row in rows] if day == 2 else rows
    )


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("days")
    return [tiny.write_dataset(folder / str(day), rows_of(day), FIELDS) for day in (1, 2)]


@pytest.fixture(scope="module")
def models(tmp_path_factory, days, plm):
    """Of the first day: the folders of a joint model, one of ids alone and one of texts alone."""
    folder = tmp_path_factory.mktemp("models")
    for strategy, start in (("joint", plm), ("id", None), ("plm", plm)):
        tiny.finetune(days[0], start, folder / strategy, strategy=strategy, id_tower_kwargs=None)
    return folder


def sizes(folder) -> dict[str, int]:
    return {field["name"]: field["vocab_size"] for field in FlipProcessor.from_pretrained(folder).fields}


def grew(old, new) -> bool:
    """Whether the second model has the ids of the first and those of the second day, and these have learned."""
    (model, processor), before = load_click_model(str(new), str(old)), FlipProcessor.from_pretrained(old)
    words, now = before.feature_extractor.vocabularies, processor.feature_extractor.vocabularies
    assert all(later[: len(one)] == one for one, later in zip(words, now))
    table = model.flip.id_tower.embeddings.weight
    last = sizes(new)["user_id"] - 1
    assert not torch.equal(table[last], table[UNK_ID])
    return {name: size - sizes(old)[name] for name, size in sizes(new).items() if size != sizes(old)[name]} == NEW


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "joint"},
        {"strategy": "joint", "embedding_optimizer": "rowwise_adagrad", "streaming": True},
        {"strategy": "joint", "use_lora": True, "lora_adapter_only": True},
        {"strategy": "id", "embedding_optimizer": "lazy_adam"},
    ],
    ids=lambda options: ", ".join(options),
)
def test_the_next_day(tmp_path, days, models, options):
    tiny.finetune(days[1], models / "joint", tmp_path / "m", grow=True, learning_rate=0.02, **options)
    log = (tmp_path / "m" / "train.log").read_text()
    assert "new values that got ids: 5 of user_id, 7 of movie_id" in log
    assert "([UNK]), share of training rows: 0.00% user_id, 0.00% movie_id" in log
    assert grew(models / "joint", tmp_path / "m")
    base = {"base_model_name_or_path": str(models / "joint")} if "use_lora" in options else {}
    strategy = options["strategy"]
    third = tiny.finetune(days[1], tmp_path / "m", tmp_path / "again", grow=True, strategy=strategy, **base)
    assert "new values that got ids: none" in (tmp_path / "again" / "train.log").read_text() and third["test_auc"] > 0


def test_without_growing_the_share_of_unknown_keys_is_said(tmp_path, days, models):
    tiny.finetune(days[1], models / "id", tmp_path / "m", strategy="id", max_train_samples=96)
    unknown = sum(row["user_id"] > 7 for row in rows_of(2)) / 96, sum(row["movie_id"] > 108 for row in rows_of(2)) / 96
    log = (tmp_path / "m" / "train.log").read_text()
    assert f"([UNK]), share of training rows: {unknown[0]:.2%} user_id, {unknown[1]:.2%} movie_id" in log
    assert "([UNK]), share of test rows: " in log and sizes(tmp_path / "m") == sizes(models / "id")


def test_a_new_model_around_a_grown_tower(tmp_path, days, models, plm):
    """`--id_model` brings its ids, whatever rows come; with `--grow` those of the rows too."""
    tiny.finetune(days[1], models / "id", tmp_path / "grown", strategy="id", grow=True, learning_rate=0.02)
    tiny.finetune(days[0], plm, tmp_path / "joint", id_model=str(tmp_path / "grown"), strategy="joint")
    assert sizes(tmp_path / "joint") == sizes(tmp_path / "grown")
    tiny.pretrain(days[1], plm, tmp_path / "pretrained", id_model=str(models / "id"), grow=True, id_tower_kwargs=None)
    assert {name: sizes(tmp_path / "pretrained")[name] - sizes(models / "id")[name] for name in NEW} == NEW
    # a checkpoint of the first day, and the tower of the second
    tiny.finetune(days[1], models / "joint", tmp_path / "both", id_model=str(tmp_path / "grown"), strategy="joint")
    assert sizes(tmp_path / "both") == sizes(tmp_path / "grown")


def test_fuse_takes_one_that_has_grown(tmp_path, days, models):
    tiny.finetune(days[1], models / "id", tmp_path / "grown", strategy="id", grow=True, learning_rate=0.02)
    for id_model, plm_model, name in (
        (tmp_path / "grown", models / "plm", "first"),
        (models / "id", models / "joint", "second"),
    ):
        arguments = {"id_model": str(id_model), "plm_model": str(plm_model), "output_dir": str(tmp_path / name)}
        fuse.run(FuseArguments(dataset_dir=str(days[1]), **arguments))
        assert sizes(tmp_path / name) == sizes(id_model)
    inputs = FlipProcessor.from_pretrained(tmp_path / "grown")(rows_of(2))
    expected = AutoModel.from_pretrained(tmp_path / "grown").eval()(feature_ids=inputs["feature_ids"]).logits
    both = FlipProcessor.from_pretrained(tmp_path / "first")(rows_of(2))
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "first").eval()(**both).id_logits, expected)


def test_nothing_to_grow(tmp_path, days, plm, models):
    with pytest.raises(
        ValueError, match="--grow adds to the vocabulary of a FLIP checkpoint, and this run starts with"
    ):
        tiny.finetune(days[0], plm, tmp_path / "m", strategy="joint", grow=True)
    with pytest.raises(ValueError, match="--min_frequency 2 has no effect where .* brings its own vocabulary"):
        tiny.finetune(days[0], models / "id", tmp_path / "m", strategy="id", min_frequency=2)
