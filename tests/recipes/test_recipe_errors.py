"""What a user may get wrong: the promised errors, before any work is lost."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from safetensors.torch import load_file, save_file

from flip_ctr.data.prepare.dataset_folder import shard_path
from flip_ctr.train import evaluate_ctr, predict, prepare
from flip_ctr.train.finetune import FinetuneArguments


@pytest.fixture(scope="module")
def other_dataset(tmp_path_factory):
    """The same rows, the age in the prompt only."""
    folder = tmp_path_factory.mktemp("other")
    raw = tiny.write_raw_100k(folder / "ml-100k")
    prepare.run(prepare.PrepareArguments("ml-100k", str(folder / "data"), str(raw)))
    schema = json.loads((folder / "data" / "schema.json").read_text())
    next(field for field in schema["fields"] if field["name"] == "age")["sides"] = ["text"]
    (folder / "data" / "schema.json").write_text(json.dumps(schema))
    return folder / "data"


@pytest.mark.parametrize("recipe", [tiny.pretrain, tiny.finetune])
def test_an_output_folder_with_files_is_left_alone(tmp_path, dataset_dir, plm, recipe):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="--output_dir .* is not empty; choose another or add --overwrite_output_dir"):
        recipe(dataset_dir, plm, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwriting_is_possible_and_deletes_nothing_else(tmp_path, dataset_dir):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        tiny.finetune(dataset_dir, None, tmp_path, overwrite_output_dir=True, num_train_epochs=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_checkpoint_of_other_fields_is_refused(tmp_path, other_dataset, pretrained, finetuned):
    with pytest.raises(
        ValueError,
        match=r"the dataset's fields \[.*age \(int, categorical\),.* are not those of the checkpoint .*age \(int, "
        r"categorical, id\)",
    ):
        tiny.finetune(other_dataset, pretrained, tmp_path / "m")
    with pytest.raises(ValueError, match="the dataset's fields"):
        evaluate_ctr.run(evaluate_ctr.EvaluateArguments(str(finetuned["id"][0]), str(other_dataset)))


@pytest.mark.parametrize("strategy", ["plm", "joint"])
def test_a_plm_strategy_without_a_plm(strategy):
    with pytest.raises(
        ValueError, match=f"--strategy {strategy} needs a PLM or a FLIP checkpoint: --model_name_or_path"
    ):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy=strategy)


def test_an_id_strategy_with_a_bare_plm(tmp_path, dataset_dir, plm):
    with pytest.raises(ValueError, match="--strategy id uses no PLM.*leave out --model_name_or_path"):
        tiny.finetune(dataset_dir, plm, tmp_path / "m", strategy="id")


@pytest.mark.parametrize("strategy", ["plm", "joint"])
def test_a_plm_strategy_with_an_id_checkpoint(tmp_path, dataset_dir, finetuned, strategy):
    with pytest.raises(ValueError, match=f"--strategy {strategy} needs a PLM, and .* has none"):
        tiny.finetune(dataset_dir, finetuned["id"][0], tmp_path / "m", strategy=strategy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_tower": "deepfm"}, "--id_tower deepfm does not fit .*, which has dcnv2; leave the flag out"),
        ({"id_embedding_size": 8}, "--id_embedding_size 8 does not fit .*, which has 4"),
        ({"id_hidden_dims": [9]}, r"--id_hidden_dims \[9\] does not fit .*, which has \[8\]"),
        ({"text_pooling": "mean"}, "--text_pooling mean does not fit"),
        ({"id_tower_kwargs": '{"low_rank": 9}'}, "--id_tower_kwargs .* does not fit"),
    ],
)
def test_another_shape_than_the_checkpoints(tmp_path, dataset_dir, pretrained, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.finetune(dataset_dir, pretrained, tmp_path / "m", **options)


@pytest.mark.parametrize("strategy", ["id", "joint"])
def test_a_checkpoint_without_some_of_its_weights_is_not_scored(tmp_path, dataset_dir, finetuned, strategy):
    """With a weight drawn at random, scores would be of nothing."""
    shutil.copytree(finetuned[strategy][0], tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    lost = weights.pop("id_classifier.weight")
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    tiny.changed_on_purpose(tmp_path / "m", "model.safetensors")
    assert lost.numel() > 0
    with pytest.raises(ValueError, match="m: 1 weights are missing that its configuration asks for: id_classifier.we"):
        evaluate_ctr.run(evaluate_ctr.EvaluateArguments(str(tmp_path / "m"), str(dataset_dir)))


@pytest.mark.parametrize("kind", ["pretrained", "plm"])
def test_only_click_models_are_evaluated_and_predict(tmp_path, dataset_dir, request, kind):
    folder = str(request.getfixturevalue(kind))
    message = {"pretrained": "FlipForPretraining", "plm": "BertForMaskedLM"}[kind] + ", not a fine-tuned click model"
    with pytest.raises(ValueError, match=message):
        evaluate_ctr.run(evaluate_ctr.EvaluateArguments(folder, str(dataset_dir)))
    with pytest.raises(ValueError, match=message):
        predict.run(predict.PredictArguments(folder, "rows.csv", str(tmp_path / "out.csv")))


def test_an_unknown_split(dataset_dir, finetuned):
    with pytest.raises(ValueError, match="--split must be one of train, validation, test; got 'dev'"):
        evaluate_ctr.run(evaluate_ctr.EvaluateArguments(str(finetuned["id"][0]), str(dataset_dir), split="dev"))


def test_pretraining_starts_from_a_plm(tmp_path, dataset_dir, pretrained):
    with pytest.raises(ValueError, match="is a FLIP checkpoint; pretraining starts from a PLM"):
        tiny.pretrain(dataset_dir, pretrained, tmp_path / "p")


def test_mlm_needs_a_mask_token(tmp_path, dataset_dir):
    tokenizer = tiny.gpt2()
    tiny.save_bert(tmp_path / "bert", tokenizer)
    with pytest.raises(ValueError, match="no mask token; pretraining masks tokens"):
        tiny.pretrain(dataset_dir, tmp_path / "bert", tmp_path / "p")


def test_all_objectives_off(tmp_path, dataset_dir, plm):
    with pytest.raises(ValueError, match="--mlm_weight, --mtm_weight and --icl_weight are all 0: nothing to learn"):
        tiny.pretrain(dataset_dir, plm, tmp_path / "p", mlm_weight=0.0, mtm_weight=0.0, icl_weight=0.0)


@pytest.mark.parametrize("kwargs", ["{low_rank: 3}", "[3]"])
def test_tower_arguments_that_are_no_json_object_name_the_flag(tmp_path, dataset_dir, kwargs):
    with pytest.raises(ValueError, match="--id_tower_kwargs"):
        tiny.finetune(dataset_dir, None, tmp_path / "m", id_tower_kwargs=kwargs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id_tower": "bert"}, "--id_tower must be one of dcnv2, .*; got 'bert'"),
        (
            {"id_tower_kwargs": '{"depth": 3}'},
            "may hold num_cross_layers, low_rank, num_experts, full_matrix, structure; got depth",
        ),
        ({"early_stopping_patience": 0}, "--early_stopping_patience"),
        ({"max_train_samples": 0}, "--max_train_samples"),
        ({"lr_scheduler_type": "sawtooth"}, "sawtooth"),
    ],
)
def test_wrong_options_of_a_run(tmp_path, dataset_dir, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.finetune(dataset_dir, None, tmp_path / "m", **options)


def test_a_wrong_option_leaves_no_output_folder(tmp_path, dataset_dir):
    """So that the corrected command can run without --overwrite_output_dir."""
    with pytest.raises(ValueError):
        tiny.finetune(dataset_dir, None, tmp_path / "m", id_tower="bert")
    assert not (tmp_path / "m").exists()


def change_split(dataset_dir, folder, split, change):
    """A copy of a dataset folder, with one split changed."""
    shutil.copytree(dataset_dir, folder)
    path = shard_path(folder, split)
    pq.write_table(change(pq.read_table(path)), path)
    return folder


def with_label(value):
    return lambda table: table.set_column(
        table.column_names.index("label"), "label", pa.array([value] * len(table), pa.int64())
    )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:0], "the split '{}' has no rows"),
        (with_label(1), r"split '{}': all \d+ rows that were read have the label 1; both classes are needed"),
        (with_label(3), "split '{}', .*parquet: column 'label', row 0: a label must be 0 or 1, got 3"),
        (lambda table: table.drop_columns("label"), "split '{}' has no column 'label' to learn from"),
    ],
)
def test_splits_that_nothing_can_be_learnt_from(tmp_path, dataset_dir, split, change, message):
    folder = change_split(dataset_dir, tmp_path / "d", split, change)
    with pytest.raises(ValueError, match=message.format(split)):
        tiny.finetune(folder, None, tmp_path / "m")
    assert not (tmp_path / "m").exists()
