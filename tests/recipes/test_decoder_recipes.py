"""Recipes around decoders: pretraining without MLM, fine-tuning, LoRA, and going on after a stop."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from flip_ctr.train.pretrain import PretrainArguments

FAST = {"max_train_samples": 64, "max_eval_samples": 32, "num_train_epochs": 1}


@pytest.fixture(scope="module")
def plms(tmp_path_factory):
    """Folders of three decoders, each with a tokenizer of its own kind."""
    folder = tmp_path_factory.mktemp("plms")
    kinds = {"qwen3": tiny.qwen, "llama": tiny.llama3, "gemma3_text": tiny.gemma}
    return {kind: tiny.save_decoder(folder / kind, kind, tokenizer()) for kind, tokenizer in kinds.items()}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, dataset_dir, plms):
    """A checkpoint that pretraining wrote around a decoder, with a step checkpoint on the way, and the results."""
    folder = tmp_path_factory.mktemp("aligned") / "p"
    return folder, tiny.pretrain(dataset_dir, plms["qwen3"], folder, checkpointing_steps=1, **FAST)


def test_pretraining_goes_without_mlm_and_says_so(aligned):
    folder, results = aligned
    assert {"eval_mtm_loss", "eval_icl_loss"} <= results.keys() and "eval_mlm_loss" not in results
    config = json.loads((folder / "config.json").read_text())
    assert (config["mlm_weight"], config["text_pooling"]) == (0.0, "last")
    assert not [name for name in load_file(folder / "model.safetensors") if name.startswith("mlm_head")]
    record = json.loads((folder / "training_args.json").read_text())
    assert record["arguments"]["mlm_weight"] == 0 and record["arguments"]["mlm_vocabulary"] is None
    log = (folder / "train.log").read_text()
    assert "the PLM is a decoder (qwen3), which is no masked language model: pretraining goes without MLM" in log


def test_a_stopped_run_goes_on(tmp_path, dataset_dir, plms, aligned):
    (tmp_path / "p").mkdir()
    (aligned[0] / "checkpoint-1").rename(tmp_path / "p" / "checkpoint-1")
    tiny.pretrain(
        dataset_dir, plms["qwen3"], tmp_path / "p", checkpointing_steps=1, resume_from_checkpoint="latest", **FAST
    )
    once, twice = (load_file(folder / "model.safetensors") for folder in (aligned[0], tmp_path / "p"))
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text"])  # whose tokenizers have no mask token, and have one
def test_mlm_cannot_be_asked_for(tmp_path, dataset_dir, plms, kind):
    with pytest.raises(ValueError, match=rf"--mlm_weight 1.0: .* is a decoder \({kind}\), .*leave the flag out"):
        tiny.pretrain(dataset_dir, plms[kind], tmp_path / "p", mlm_weight=1.0, **FAST)


def test_options_of_mlm_have_no_effect(tmp_path, dataset_dir, plms):
    with pytest.raises(ValueError, match="--mlm_vocabulary plm has no effect with --mlm_weight 0"):
        tiny.pretrain(dataset_dir, plms["llama"], tmp_path / "p", mlm_vocabulary="plm", **FAST)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (None, {"strategy": "joint", "fusion": "gate", "freeze_plm_layers": 1}),
        ("llama", {"strategy": "plm", "gradient_checkpointing": True, "text_pooling": "mean"}),
        ("gemma3_text", {"strategy": "joint", "use_lora": True, "lora_adapter_only": False}),
        ("llama", {"strategy": "frozen"}),
    ],
)
def test_finetuning(tmp_path, dataset_dir, plms, aligned, kind, options):
    """Around a decoder, or (`kind` None) from the pretrained checkpoint."""
    source = aligned[0] if kind is None else plms[kind]
    results = tiny.finetune(dataset_dir, source, tmp_path / "m", **FAST, **options)
    assert 0 <= results["test_auc"] <= 1
    model, processor = AutoModel.from_pretrained(tmp_path / "m").eval(), AutoProcessor.from_pretrained(tmp_path / "m")
    assert model.config.text_pooling == options.get("text_pooling", "last")
    rows = tiny.ml_rows(dataset_dir)
    with torch.no_grad():
        together = model(**processor(rows)).logits
        alone = torch.cat([model(**processor([row])).logits for row in rows])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


def test_the_weight_of_mlm_is_known_to_be_given():
    given = {"dataset_dir": "d", "output_dir": "o", "model_name_or_path": "m"}
    assert PretrainArguments(**given).mlm_weight == 1 and "mlm_weight" not in PretrainArguments(**given).given
    assert "mlm_weight" in PretrainArguments(**given, mlm_weight=1.0).given
