"""Model cards: they validate, say what is true of the checkpoint, and their code runs."""

import json
import re
import shutil

import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoProcessor

import flip_ctr
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train import evaluate_ctr
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.outputs import card
from flip_ctr.train.outputs.record import UNKNOWN, read_record, tower_pretraining
from flip_ctr.train.pretrain import PretrainArguments


@pytest.fixture(scope="module")
def cards(finetuned, pretrained) -> dict[str, tuple]:
    """Strategy -> (card, folder, results); `pretraining` too."""
    folders = {name: folder for name, (folder, _) in finetuned.items()} | {"pretraining": pretrained}
    return {
        name: (ModelCard.load(folder / "README.md"), folder, json.loads((folder / "all_results.json").read_text()))
        for name, folder in folders.items()
    }


KINDS = ["id", "plm", "joint", "pretraining"]


@pytest.mark.parametrize("kind", KINDS)
def test_metadata(cards, kind):
    shown, _, results = cards[kind]
    data = shown.data.to_dict()
    assert data["library_name"] == "transformers" and "click-through-rate" in data["tags"]
    assert (data["license"], data["license_name"]) == ("other", "ml-100k") and data["license_link"].startswith(
        "https://"
    )
    assert yaml.safe_load(yaml.safe_dump(data)) == data  # plain YAML, as the Hub reads it
    if kind == "pretraining":
        assert "model-index" not in data
        return
    assert data["pipeline_tag"] == "tabular-classification"
    found = {(one.dataset_split, one.metric_type): one.metric_value for one in shown.data.eval_results}
    for split, prefix in (("test", "test"), ("validation", "eval")):
        for name, kind in (("auc", "roc_auc"), ("logloss", "log_loss"), ("ece", "expected_calibration_error")):
            assert found[split, kind] == pytest.approx(results[f"{prefix}_{name}"], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_filled(cards, kind):
    shown, folder, results = cards[kind]
    text = shown.text
    sections = re.findall(r"^## (.*)$", text, re.M)
    assert sections == [
        "Results",
        *["What the fields do"] * (kind != "pretraining"),
        "Use",
        "What it is",
        "Data",
        "Training",
        "Limits and personal data",
        "Licence",
        "Citation",
    ]
    assert not re.search(r"\{\{|\}\}(?!,)|\{%|\bNone\b.*\|", text.split("## Citation")[0]) and "Undefined" not in text
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (folder / picture).is_file()
    assert not re.search(r"[^\n]\n#", text.split("```")[0])  # a heading stands alone
    assert ("reliability.png" in text) == (kind != "pretraining")
    assert "a rating of at least 4 is a click" in text and "`random`, seed 42" in text
    if kind != "pretraining":
        assert f"| AUC | {results['eval_auc']:.4f} | {results['test_auc']:.4f} |" in text


def test_hyperparameters_that_differ_are_listed(cards):
    text = cards["joint"][0].text
    assert "| `learning_rate` | 0.02 | 0.003 |" in text and "| `fusion` | gate | scalar |" in text
    before = text.split("It started from a checkpoint of `flip-ctr pretrain`.")[1]
    assert "| `projection_dim` | 8 | 128 |" in before and "| `id_embedding_size` | 4 | 32 |" in before
    assert "dataset_dir" not in text and "output_dir" not in text


@pytest.mark.parametrize("cls", [FinetuneArguments, PretrainArguments])
def test_only_what_differs_counts_as_changed(cls):
    def arguments(**options):
        return cls(dataset_dir="d", output_dir="o", model_name_or_path="m", **options)

    assert arguments().changed() == {}
    assert (
        arguments(id_embedding_size=32, id_hidden_dims=[300, 300, 128]).changed() == {}
    )  # the model's own defaults, spelled out
    assert arguments(id_embedding_size=16, seed=1).changed() == {
        "id_embedding_size": {"value": 16, "default": 32},
        "seed": {"value": 1, "default": 42},
    }
    paper = arguments(preset="paper").changed()
    assert paper["preset"]["value"] == "paper" and paper["unk_rate"] == {"value": 0.0, "default": 0.01}
    assert arguments(push_to_hub=True, hub_model_id="org/m").changed() == {}


def test_personal_fields_are_named(cards):
    joint, only_id = cards["joint"][0].text, cards["id"][0].text
    assert "lists the values of these fields of users: `user_id`, `gender`, `age`, `occupation`, `zip_code`" in joint
    assert "contains these fields of users: `gender`, `age`, `occupation`." in joint
    assert "The prompt of a row" not in only_id


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_card_runs(cards, kind, monkeypatch):
    """As printed, with the package in the place of the repository's copy of the code."""
    shown, folder, _ = cards[kind]
    scope: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", shown.text, re.S)
    assert blocks
    for block in blocks:
        exec(block.replace("path/or/hub-id", str(folder)), scope)
    assert flip_ctr.__name__
    if kind == "pretraining":
        assert torch.isfinite(scope["views"].id_embeds).all()
        return
    with torch.no_grad():
        answer = scope["score"](scope["row"])
    assert answer["click_probability"] == pytest.approx(scope["probability"].item(), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_says_where_the_package_comes_from(cards, kind):
    """It is on no registry, so that `pip install flip-ctr` would fail."""
    assert "from a clone of its repository: `pip install .`" in cards[kind][0].text
    assert "pip install flip-ctr" not in cards[kind][0].text


def test_a_card_shows_only_vectors_that_the_model_has(tmp_path, dataset_dir, plm):
    """Without ICL there are no projections, and so no space that both views share."""
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", icl_weight=0.0)
    text, scope = (tmp_path / "p" / "README.md").read_text(), {}
    assert "views.id_hidden_state, views.text_pooled" in text and "id_embeds" not in text and "one space" not in text
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block.replace("path/or/hub-id", str(tmp_path / "p")), scope)
    assert scope["views"].id_embeds is None and torch.isfinite(scope["views"].text_pooled).all()


def test_every_run_in_the_chain_is_told(cards, tmp_path, dataset_dir):
    """Fine-tuned twice: still aligned in pretraining. From a checkpoint without a record: nothing is claimed."""
    joint = cards["joint"][1]
    tiny.finetune(dataset_dir, joint, tmp_path / "again", fusion="gate")
    text = ModelCard.load(tmp_path / "again" / "README.md").text
    assert "aligned in pretraining" in text and text.count("It started from a checkpoint of") == 2
    shutil.copytree(joint, tmp_path / "unknown", ignore=shutil.ignore_patterns("training_args.json"))
    tiny.finetune(dataset_dir, tmp_path / "unknown", tmp_path / "more", fusion="gate")
    text = ModelCard.load(tmp_path / "more" / "README.md").text
    assert (
        "fine-tuned from a FLIP checkpoint that does not say how it was made" in text
        and "language model unknown" not in text
    )


def test_what_an_id_tower_was_pretrained_by():
    def record(recipe, before=None, tower=None, **arguments):
        objectives = {"mlm_weight": 1.0, "mtm_weight": 1.0, "icl_weight": 1.0} if recipe == "pretrain" else {}
        return {"recipe": recipe, "started_from": before, "id_tower_from": tower, "arguments": objectives | arguments}

    alone = record("pretrain", mlm_weight=0.0, icl_weight=0.0, mtm_text_dropout=1.0)
    locked = record("pretrain", None, alone, id_model="MAP", id_learning_rate=0.0)
    whole = record("pretrain")
    assert tower_pretraining(record("finetune", locked, strategy="id")) == alone["arguments"]
    assert tower_pretraining(record("finetune", whole, strategy="joint")) == whole["arguments"]
    assert (
        tower_pretraining(
            record("fuse", record("finetune", whole, strategy="plm"), record("finetune", locked), id_model="I")
        )
        == alone["arguments"]
    )
    # a PLM alone has no tower to go on with, and plain MLM trains none
    assert tower_pretraining(record("finetune", record("finetune", whole, strategy="plm"), strategy="joint")) is None
    assert (
        tower_pretraining(
            record("finetune", record("pretrain", mtm_weight=0.0, icl_weight=0.0, mlm_id_dropout=1.0), strategy="joint")
        )
        is None
    )
    # a tower whose checkpoint has no record
    for one in (
        record("finetune", whole, strategy="joint", id_model="I"),
        record("finetune", record("pretrain", id_model="I", id_learning_rate=0.0)),
    ):
        assert tower_pretraining(one) is UNKNOWN


def test_a_plm_may_have_a_record_of_another_library(tmp_path, dataset_dir, plm):
    shutil.copytree(plm, tmp_path / "plm")
    for content in ({"learning_rate": 1e-4}, ["lr"]):
        (tmp_path / "plm" / "training_args.json").write_text(json.dumps(content))
        tiny.finetune(dataset_dir, tmp_path / "plm", tmp_path / "m", max_train_steps=1, overwrite_output_dir=True)
        record = read_record(str(tmp_path / "m"))
        assert record["plm"] == "plm" and record["started_from"] is None
        assert "plm, bert with" in (tmp_path / "m" / "README.md").read_text()


def test_a_metric_that_is_no_number_is_left_out(cards, tmp_path, dataset_dir):
    _, folder, results = cards["id"]
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    rows = SplitRows(dataset_dir, "train")
    path = card.write_card(
        str(tmp_path),
        read_record(str(folder)),
        model,
        processor,
        rows.schema,
        str(dataset_dir),
        rows,
        results | {"test_gauc": float("nan"), "eval_gauc": float("nan")},
    )
    text = ModelCard.load(path).content.split("## Citation")[0]
    assert "GAUC" not in text and not re.search(r"\bnan\b", text, re.I)


def test_rare_values_alone_give_an_example_too(tmp_path, dataset_dir):
    """No value is frequent enough for a vocabulary, and the user's fields are hashed: the row to try still works."""
    tiny.finetune(dataset_dir, None, tmp_path / "m", min_frequency=10_000, hash_user_values=True)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", ModelCard.load(tmp_path / "m" / "README.md").text, re.S):
        exec(block.replace("path/or/hub-id", str(tmp_path / "m")), scope)
    assert scope["row"]["user_id"] is None and scope["row"]["title"]


def test_nothing_of_a_former_run_is_left(tmp_path, dataset_dir, plm, pictures):
    tiny.finetune(dataset_dir, None, tmp_path / "m")
    (tmp_path / "m" / ".saving-killed").mkdir()
    tiny.pretrain(dataset_dir, plm, tmp_path / "m", overwrite_output_dir=True)
    assert not (tmp_path / "m" / "reliability.png").exists() and not (tmp_path / "m" / ".saving-killed").exists()
    assert "reliability" not in (tmp_path / "m" / "README.md").read_text()


def test_evaluation_does_not_replace_a_checkpoints_results(cards, dataset_dir):
    folder = str(cards["id"][1])
    with pytest.raises(ValueError, match="is a checkpoint, whose own results would be replaced"):
        evaluate_ctr.run(evaluate_ctr.EvaluateArguments(folder, str(dataset_dir), output_dir=folder))


def test_what_a_dataset_calls_itself_is_text(tmp_path, dataset_dir):
    """In a checkpoint's card, whatever the dataset's card says."""
    shutil.copytree(dataset_dir, tmp_path / "data")
    odd = {"pretty_name": "<script>x</script>\n---\n[a](javascript:b)", "license": "other", "license_name": "[c](d)"}
    front = yaml.safe_dump(odd | {"license_link": "javascript:alert(1)"})
    (tmp_path / "data" / "README.md").write_text(f"---\n{front}---\n")
    tiny.finetune(tmp_path / "data", None, tmp_path / "m", max_train_samples=64, num_train_epochs=1)
    shown = ModelCard.load(tmp_path / "m" / "README.md")
    assert "<script" not in shown.text and "](javascript" not in shown.text.replace("\\](", "")
    assert "# FLIP_ID for &lt;script>x&lt;/script> --- \\[a\\](javascript:b)" in shown.text
    assert "whose own terms (\\[c\\](d))" in shown.text  # no link
    assert shown.data.to_dict()["license_name"] == odd["license_name"]
    assert shown.data.eval_results[0].dataset_name == odd["pretty_name"]


def test_a_dataset_without_a_card_still_gives_one(tmp_path, dataset_dir):
    shutil.copytree(dataset_dir, tmp_path / "data")
    for name in ("README.md", "prepare_report.json"):
        (tmp_path / "data" / name).unlink()
    tiny.finetune(tmp_path / "data", None, tmp_path / "m")
    shown = ModelCard.load(tmp_path / "m" / "README.md")
    assert shown.data.license is None and "# FLIP_ID for ml-100k" in shown.text
