"""A student of ids alone that learns from a teacher: `flip-ctr finetune --teacher`."""

import json
import math
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from scipy.special import expit

from flip_ctr import FlipField, FlipForCTR, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.prepare.dataset_folder import shard_path
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train import evaluate_ctr, prepare
from flip_ctr.train.arguments import EvaluateArguments, FinetuneArguments
from flip_ctr.train.loop.resume import step_checkpoints
from flip_ctr.train.loop.teacher import digest_of, load_teacher, teach

FIELDS = [
    FlipField("user_id", "int", entity="user", key=True, sides=("id",)),
    FlipField("age", "int", entity="user", max_tokens=4),
    FlipField("item_id", "int", entity="item", key=True, sides=("id",)),
    FlipField("title", entity="item", max_tokens=4),
]
WHOLE = {"max_train_samples": None, "max_eval_samples": None}


def rows_of(count: int, seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    users, items = generator.integers(0, 24, count), generator.integers(0, 16, count)
    log_odds = np.where(users % 2 == items % 2, 1.0, -1.0) + np.where(items % 2, 1.0, -1.0)
    return pa.table(
        {
            "user_id": users,
            "age": 20 + users % 2 * 9,
            "item_id": items,
            "title": np.array(["film", "crime"])[items % 2],
            "label": (generator.random(count) < expit(log_odds)).astype(np.int64),
        }
    )


def write(folder, fields=FIELDS, **schema):
    (folder / "data").mkdir(parents=True)
    DatasetSchema("planted", fields, user_column="user_id", **schema).save(folder)
    for number, (split, count) in enumerate({"train": 1500, "validation": 400, "test": 400}.items()):
        pq.write_table(rows_of(count, number), shard_path(folder, split))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("planted") / "data")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, folder, plm):
    """A joint model with entity prompts, calibrated."""
    path = tmp_path_factory.mktemp("teacher") / "T"
    options = WHOLE | {
        "prompts": "entity",
        "plm_every": 4,
        "max_train_steps": 30,
        "calibration": "platt",
        "plm_learning_rate": 3e-3,
    }
    tiny.finetune(folder, plm, path, strategy="joint", learning_rate=0.02, per_device_train_batch_size=64, **options)
    return path


@pytest.fixture(scope="module")
def unvalidated(tmp_path_factory, folder):
    """The folder without validation rows: the last model is kept."""
    copy = tmp_path_factory.mktemp("unvalidated") / "data"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("validation-*"))
    return copy


def student(folder, output, teacher, **options):
    settings = WHOLE | {"id_tower": "fm", "id_tower_kwargs": None, "per_device_train_batch_size": 64, "unk_rate": 0.0}
    settings |= {"num_train_epochs": 6, "learning_rate": 0.03, "embedding_l2": 0.0, "logging_steps": 50}
    return tiny.finetune(folder, None, output, teacher=str(teacher), **settings | options)


def log_odds(path, rows: pa.Table) -> np.ndarray:
    model, processor = FlipForCTR.from_pretrained(path).eval(), FlipProcessor.from_pretrained(path)
    inputs = processor(rows.drop_columns("label"))
    inputs.pop("token_fields", None)
    with torch.no_grad():
        return model(**inputs).logits[:, 0].numpy()


def test_a_student_approaches_its_teacher(tmp_path, unvalidated, teacher):
    results = student(unvalidated, tmp_path / "S", teacher, teacher_weight=1.0, pairs_per_row=6)
    rows = rows_of(400, 7)  # of all pairs of a user and an item, as the pairs are
    theirs, ours = log_odds(teacher, rows), log_odds(tmp_path / "S", rows)
    assert np.corrcoef(theirs, ours)[0, 1] > 0.97 and np.abs(expit(theirs) - expit(ours)).mean() < 0.05
    assert results["train_rows"] == 1500
    # an ordinary ID-only checkpoint, whose card and record say who the teacher was
    config = json.loads((tmp_path / "S" / "config.json").read_text())
    assert config["strategy"] == "id" and config["text_config"] is None and config["calibration"] is None
    assert FlipProcessor.from_pretrained(tmp_path / "S").id_only
    record = json.loads((tmp_path / "S" / "training_args.json").read_text())
    assert record["arguments"]["teacher"] == "T" and record["teacher"]["arguments"]["strategy"] == "joint"
    card = (tmp_path / "S" / "README.md").read_text()
    assert "It was distilled: it learned from the log odds of a teacher, `T`." in card
    assert "weight 1 from the log odds of the teacher `T`" in card and "on 9,000 pairs" in card
    assert "Its teacher is a checkpoint of `flip-ctr finetune`." in card and "Another split" not in card


def test_a_teacher_of_another_split_is_named(tmp_path, caplog):
    """It, and what a student of it starts, may know rows of validation and test."""
    split = {"split": "random", "split_rule": "each row by its digest", "split_seed": 42, "ratios": [8, 1, 1]}
    data = {fold: write(tmp_path / f"data{fold}", protocol=split | {"split_fold": fold}) for fold in (1, 2)}
    options = {"id_tower": "fm", "id_tower_kwargs": None, "unk_rate": 0.0, "max_train_steps": 2}
    for fold in (1, 2):
        tiny.finetune(data[fold], None, tmp_path / f"T{fold}", **options)
    student(data[1], tmp_path / "S", tmp_path / "T1", max_train_steps=2)
    assert "another split" not in caplog.text
    assert re.search(r"lacks \(\[UNK\]\), share of training rows: 0.00% user_id, 0.00% item_id", caplog.text)
    student(data[1], tmp_path / "S2", tmp_path / "T2", max_train_steps=2)
    told = "--teacher T2 was trained on another split than this dataset's (split_fold 2 there and 1 here)"
    assert told in caplog.text and told in (tmp_path / "S2" / "README.md").read_text().replace("\\", "")
    for run, name, what in (
        ({"model_name_or_path": str(tmp_path / "S2")}, "W", told),  # what its teacher knew, it may know too
        ({"model_name_or_path": str(tmp_path / "T2")}, "V", told.replace("--teacher", "--model_name_or_path")),
    ):
        caplog.clear()
        tiny.finetune(data[1], None, tmp_path / name, **options | run)
        assert what in caplog.text and caplog.text.count("another split") == 1
    caplog.clear()
    evaluate_ctr.run(EvaluateArguments(str(tmp_path / "T2"), str(data[1]), split="test"))
    assert "T2 was trained on another split" in caplog.text


def test_a_run_goes_on_with_the_same_teacher_only(tmp_path, unvalidated, teacher):
    options = {"teacher_weight": 0.7, "pairs_per_row": 2, "num_train_epochs": 3, "unk_rate": 0.1}
    student(unvalidated, tmp_path / "whole", teacher, checkpointing_steps="10", **options)
    assert len(step_checkpoints(str(tmp_path / "whole"))) > 3
    again = options | {"checkpointing_steps": "10"}
    student(unvalidated, tmp_path / "again", teacher, dataloader_num_workers=2, **again)
    halfway = tmp_path / "whole" / "checkpoint-40"  # within the second epoch, whose pairs are others
    student(unvalidated, tmp_path / "on", teacher, resume_from_checkpoint=str(halfway), **again)
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    for run in ("again", "on"):
        for name, values in load_file(tmp_path / run / "model.safetensors").items():
            assert torch.equal(values, weights[name]), f"{run}: {name}"
    # another one of the same name: the student itself, as a teacher of ids alone may be
    shutil.copytree(tmp_path / "whole", tmp_path / "other" / "T")
    with pytest.raises(ValueError, match="is of a run with another teacher than .*T is now"):
        student(unvalidated, tmp_path / "x", tmp_path / "other" / "T", resume_from_checkpoint=str(halfway), **again)


def taught(folder, teacher, rate: float = 1.0, **options):
    args = FinetuneArguments(
        dataset_dir=str(folder), output_dir="x", strategy="id", teacher=str(teacher), pairs_per_row=2, **options
    )
    rows = SplitRows(folder, "train")
    loaded = load_teacher(args, rows)
    dataset = EncodedDataset(FlipProcessor.from_dataset(rows, rows.schema), rows)
    return teach(Accelerator(), args, loaded, rows, dataset, rate), loaded, rows


def test_the_teacher_says_corrected_log_odds_of_rows_and_pairs(folder, teacher):
    (plain, (model, processor), rows), (sampled, _, _) = taught(folder, teacher), taught(folder, teacher, 0.2)
    table = pa.concat_tables(part for _, part in rows.parts())
    numbers = np.arange(len(table))
    pairs = numbers + len(table)
    partners = plain.pairs.partners(pairs)
    crossed = table.take(partners).select(["item_id", "title"])
    crossed = (
        table.select(["user_id", "age"])
        .append_column("item_id", crossed["item_id"])
        .append_column("title", crossed["title"])
    )
    for some, at in ((table.drop_columns("label"), numbers), (crossed, pairs)):
        expected = log_odds(teacher, some.append_column("label", pa.nulls(len(some))))
        np.testing.assert_allclose(plain.probabilities[at], expit(expected), rtol=1e-4)
        # where the training rows have a fifth of the non-clicks the odds in them are five times as high
        np.testing.assert_allclose(sampled.probabilities[at], expit(expected - math.log(0.2)), rtol=1e-4)
    assert model.config.calibration is not None
    with torch.no_grad():
        digest = digest_of(model, processor)
        model.id_classifier.bias += 1e-6
    assert digest == plain.teacher != digest_of(model, processor)


def test_what_cannot_teach_is_refused(tmp_path, folder, teacher, plm):
    def refused(message, dataset=folder, error=ValueError, **options):
        with pytest.raises(error, match=message):
            student(dataset, tmp_path / "x", options.pop("teacher", teacher), **options)
        assert not (tmp_path / "x").exists()

    tiny.pretrain(folder, plm, tmp_path / "P", max_train_steps=1, **WHOLE)
    refused("--teacher .*P is a FlipForPretraining, not a fine-tuned click model", teacher=tmp_path / "P")
    refused("--teacher .* is a BertForMaskedLM, not a fine-tuned click model", teacher=plm)
    refused("--teacher .*nowhere: no model folder", teacher=tmp_path / "nowhere", error=OSError)
    refused(
        "--teacher is for --strategy id, an ID-only student; got --strategy joint",
        strategy="joint",
        model_name_or_path=str(plm),
    )
    refused("--streaming keeps none", streaming=True)
    fewer = write(tmp_path / "fewer", [field for field in FIELDS if field.name != "age"])
    refused(r"the dataset's fields \[.*\] are not those of the checkpoint .*T", fewer)
    moved = [FlipField("title", entity="film", max_tokens=4) if one.name == "title" else one for one in FIELDS]
    refused("title is of the item there, and of the film in the dataset", write(tmp_path / "moved", moved))
    no_key = [FlipField("item_id", "int", entity="item") if one.name == "item_id" else one for one in FIELDS]
    no_key = write(tmp_path / "no_key", no_key)
    refused("--pairs_per_row 10 draws items, and one key must be that of an item; keys in", no_key)
    alone = write(tmp_path / "alone", FIELDS[2:])
    refused("all fields are of the item, and a pair has others", alone)
    with pytest.raises(ValueError, match="--pairs_per_row 3 has no effect without --teacher"):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", pairs_per_row=3)
    with pytest.raises(ValueError, match="--teacher_weight must be above 0"):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", teacher="T", teacher_weight=0)
    student(no_key, tmp_path / "rows", teacher, pairs_per_row=0, max_train_steps=2)


def test_histories_and_statistics_are_the_users_and_the_items(tmp_path, plm):
    raw = str(tiny.write_raw_100k(tmp_path / "ml-100k"))
    what_came_before = {"history": 4, "statistics": ["user_id", "movie_id"]}
    prepare.run(prepare.PrepareArguments("ml-100k", str(tmp_path / "D"), raw, **what_came_before))
    options = {"prompts": "entity", "strategy": "joint", "max_train_steps": 2}
    tiny.finetune(tmp_path / "D", plm, tmp_path / "T", **options)
    options = {"teacher": str(tmp_path / "T"), "pairs_per_row": 2, "max_train_steps": 4}
    tiny.finetune(tmp_path / "D", None, tmp_path / "S", short_history_rate=0.5, **options)
    model, processor = (kind.from_pretrained(tmp_path / "S") for kind in (FlipForCTR, FlipProcessor))
    assert processor.history_field is not None and model.flip.id_tower.history is not None
    # such a number is of a user with a genre, and a drawn pair has none
    together = {"statistics": ["user_id+genre"]}
    prepare.run(prepare.PrepareArguments("ml-100k", str(tmp_path / "E"), raw, **together))
    with pytest.raises(ValueError, match="counts rows by several columns"):
        tiny.finetune(tmp_path / "E", None, tmp_path / "x", **options)
