"""LoRA on the PLM: what trains, what is saved, and that every way back gives the same predictions."""

import json
import shutil

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoProcessor, BertConfig, BertForMaskedLM

from flip_ctr import FlipConfig, FlipForCTR, FlipForPretraining
from flip_ctr.data.datasets.synthetic import (
    CatalogueSettings,
    TinyPlmSettings,
    generate_catalogue,
    generate_texts,
    make_tiny_plm,
    write_catalogue,
)
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.train import evaluate_ctr, predict
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.models import lora
from flip_ctr.train.options import public_name

LORA = {"use_lora": True, "lora_r": 4, "plm_learning_rate": 0.02, "learning_rate": 0.02, "num_train_epochs": 2}


def arguments(**options) -> FinetuneArguments:
    return FinetuneArguments(dataset_dir="d", output_dir="o", model_name_or_path="m", use_lora=True, **options)


def trainable(model) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("names", "layers"), [(["query", "value"], [(16, 16)] * 2), (None, [(16, 16)] * 4 + [(16, 24), (24, 16)])]
)
@pytest.mark.parametrize("cls", [FlipForCTR, FlipForPretraining])
def test_what_trains(processor, text_config, cls, names, layers):
    model = cls(tiny.flip_config(processor.fields, text_config))
    outside = {name for name, _ in model.named_parameters() if "text_encoder" not in name}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    wrapped = lora.add_lora(model, arguments(lora_r=4, lora_target_modules=names))
    found = trainable(wrapped)
    updates = {name: size for name, size in found.items() if ".lora_" in name}
    assert all(".text_encoder.encoder.layer.0." in name for name in updates) and len(updates) == 2 * len(layers)
    assert sum(updates.values()) == sum(4 * (rows + columns) for rows, columns in layers)
    others = {name.removeprefix(lora.PREFIX): size for name, size in found.items() if name not in updates}
    assert others == {name: sizes[name] for name in outside}


@pytest.mark.parametrize("kind", tiny.PLM_CONFIGS)
def test_every_encoder_is_adapted_and_nothing_else(kind):
    config = tiny.flip_config(tiny.sized_fields(8, 9), tiny.PLM_CONFIGS[kind]())
    wrapped = lora.add_lora(FlipForPretraining(config), arguments())
    updates = [name for name in trainable(wrapped) if ".lora_" in name]
    assert len(updates) >= 8 and all(".text_encoder." in name for name in updates)


def test_unknown_layers_and_models_without_a_plm_are_refused(processor, text_config):
    with pytest.raises(
        ValueError, match="--lora_target_modules q_proj: the PLM has no linear layer .* it has: dense, key, query"
    ):
        lora.add_lora(
            FlipForCTR(tiny.flip_config(processor.fields, text_config)), arguments(lora_target_modules=["q_proj"])
        )
    with pytest.raises(ValueError, match="--use_lora adapts the PLM, and an ID-only model has none"):
        lora.add_lora(FlipForCTR(tiny.flip_config(processor.fields, strategy="id")), arguments(strategy="id"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_lora": False, "lora_adapter_only": True}, "--lora_adapter_only has no effect without --use_lora"),
        ({"use_lora": False, "lora_target_modules": ["query"]}, "--lora_target_modules query has no effect"),
        ({"lora_r": 0}, "--lora_r must be at least 1"),
        ({"lora_dropout": 1.0}, "--lora_dropout must be at least 0 and below 1"),
    ],
)
def test_wrong_flags_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        arguments(**options) if "use_lora" not in options else FinetuneArguments(
            dataset_dir="d", output_dir="o", model_name_or_path="m", **options
        )


# --- whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, dataset_dir, pretrained):
    """The same LoRA run twice: as a merged checkpoint, and as an adapter."""
    folder = tmp_path_factory.mktemp("lora")
    results = {
        name: tiny.finetune(
            dataset_dir, pretrained, folder / name, fusion="gate", lora_adapter_only=name == "adapter", **LORA
        )
        for name in ("merged", "adapter")
    }
    return folder, results


@pytest.fixture
def inputs(runs, dataset_dir):
    return AutoProcessor.from_pretrained(runs[0] / "merged")(tiny.ml_rows(dataset_dir, 50))


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model.eval()(**inputs).logits


def test_a_merged_checkpoint_is_like_any_other(runs, inputs):
    folder = runs[0] / "merged"
    assert not list(folder.glob("adapter*"))
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is FlipForCTR and not info["missing_keys"] and not info["unexpected_keys"]
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())


def test_an_adapter_holds_all_but_the_plm(runs, pretrained):
    folder = runs[0] / "adapter"
    assert not (folder / "model.safetensors").exists()
    state = load_file(folder / lora.ADAPTER_WEIGHTS)
    inner = {name.removeprefix(lora.PREFIX) for name in state}
    own = FlipForCTR(FlipConfig.from_pretrained(folder)).state_dict()
    assert {name for name in inner if "text_encoder" not in name} == {
        name for name in own if "text_encoder" not in name
    }
    assert all(".lora_" in name for name in inner if "text_encoder" in name)
    config = json.loads((folder / lora.ADAPTER_CONFIG).read_text())
    assert config["base_model_name_or_path"] == pretrained.name  # of a local base its name, not where it lies


def test_adapter_and_merge_predict_the_same(runs, inputs, pretrained, tmp_path):
    """adapter -> reload; adapter -> merge -> save -> reload; and the run that merged by itself."""
    folder = runs[0]
    from_run = logits(AutoModel.from_pretrained(folder / "merged"), inputs)
    base = FlipForCTR.from_pretrained(pretrained, config=FlipConfig.from_pretrained(folder / "adapter"))
    adapter = logits(PeftModel.from_pretrained(base, folder / "adapter"), inputs)  # PEFT's own way
    merged = lora.load_adapter(str(folder / "adapter"), str(pretrained))
    assert type(merged) is FlipForCTR and not any("lora" in name for name in merged.state_dict())
    merged.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(logits(again, inputs), logits(merged, inputs))
    for other in (from_run, logits(merged, inputs)):
        torch.testing.assert_close(other, adapter, atol=2e-6, rtol=1e-5)
    untrained = logits(
        FlipForCTR.from_pretrained(pretrained, config=FlipConfig.from_pretrained(folder / "adapter")), inputs
    )
    assert (untrained - adapter).abs().max() > 0.05  # training changed something


def test_both_ways_have_the_same_results(runs):
    merged, adapter = (runs[1][name] for name in ("merged", "adapter"))
    for name in ("eval_auc", "test_auc", "test_logloss"):
        assert merged[name] == pytest.approx(adapter[name], abs=1e-5)


def test_the_plm_itself_is_left_as_it_was(runs, pretrained):
    before = {
        name: tensor
        for name, tensor in AutoModel.from_pretrained(pretrained).state_dict().items()
        if "text_encoder" in name
    }
    after = AutoModel.from_pretrained(runs[0] / "merged").state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and all(name.endswith("weight") and ("dense" in name or "self" in name) for name in changed)


def test_recipes_take_an_adapter_with_its_base(runs, pretrained, dataset_dir, tmp_path):
    folder, results = runs
    common = {"model_name_or_path": str(folder / "adapter"), "base_model_name_or_path": str(pretrained)}
    found = evaluate_ctr.run(
        evaluate_ctr.EvaluateArguments(dataset_dir=str(dataset_dir), split="test", max_eval_samples=64, **common)
    )
    assert found["test_auc"] == pytest.approx(results["adapter"]["test_auc"], abs=1e-5)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny.ml_rows(dataset_dir)))
    scored = predict.run(predict.PredictArguments(input=str(rows), output=str(tmp_path / "s.csv"), **common))
    assert scored == {"rows": 10, "scored": 10}
    with pytest.raises(
        OSError, match=f"LoRA adapter of '{public_name(str(pretrained))}', which is neither a folder here nor"
    ):
        lora.load_adapter(str(folder / "adapter"))


def test_an_adapter_without_its_weights_is_named(runs, pretrained, tmp_path):
    """A run that was killed while an adapter took a model's place leaves this."""
    folder = shutil.copytree(runs[0] / "merged", tmp_path / "adapter")
    shutil.copy(runs[0] / "adapter" / lora.ADAPTER_CONFIG, folder)
    with pytest.raises(OSError, match=f"lacks {lora.ADAPTER_WEIGHTS}"):
        lora.load_adapter(str(folder), str(pretrained))


def test_another_base_is_refused(runs, finetuned):
    with pytest.raises(ValueError, match="is not the base of the LoRA adapter .* other weights"):
        lora.load_adapter(str(runs[0] / "adapter"), str(finetuned["joint"][0]))


def test_a_base_of_another_shape_is_refused(runs, dataset_dir, tmp_path):
    tokenizer = tiny.wordpiece()
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": len(tokenizer),
    }
    plm = tmp_path / "plm"
    BertForMaskedLM(BertConfig(**sizes, max_position_embeddings=320)).save_pretrained(plm)
    tokenizer.save_pretrained(plm)
    tiny.pretrain(dataset_dir, plm, tmp_path / "p", max_train_steps=1)
    for base in (plm, tmp_path / "p"):
        with pytest.raises(ValueError, match="is not the base of the LoRA adapter"):
            lora.load_adapter(str(runs[0] / "adapter"), str(base))


def test_a_bare_plm_is_a_base_too(tmp_path, dataset_dir, plm):
    tiny.finetune(dataset_dir, plm, tmp_path / "a", strategy="plm", lora_adapter_only=True, **LORA)
    tiny.finetune(dataset_dir, plm, tmp_path / "m", strategy="plm", **LORA)
    inputs = AutoProcessor.from_pretrained(tmp_path / "m")(tiny.ml_rows(dataset_dir))
    loaded = lora.load_adapter(str(tmp_path / "a"), str(plm))
    torch.testing.assert_close(
        logits(loaded, inputs), logits(AutoModel.from_pretrained(tmp_path / "m"), inputs), atol=2e-6, rtol=1e-5
    )


def test_pretraining_with_lora_and_fine_tuning_from_it(tmp_path, dataset_dir, plm):
    """The merged checkpoint and the adapter of one pretraining run start fine-tuning from the same weights."""
    for name in ("merged", "adapter"):
        tiny.pretrain(dataset_dir, plm, tmp_path / name, use_lora=True, lora_adapter_only=name == "adapter", seed=3)
    with safe_open(tmp_path / "adapter" / lora.ADAPTER_WEIGHTS, "pt") as file:
        names = set(file.keys())
    assert f"{lora.PREFIX}logit_scale" in names and not any("decoder.weight" in name for name in names)
    whole = FlipForPretraining.from_pretrained(tmp_path / "merged").state_dict()
    loaded = lora.load_adapter(str(tmp_path / "adapter"), str(plm))
    assert type(loaded) is FlipForPretraining and loaded.state_dict().keys() == whole.keys()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5, msg=name)
    base = {"merged": None, "adapter": str(plm)}
    found = [
        tiny.finetune(
            dataset_dir,
            tmp_path / name,
            tmp_path / f"{name}-tuned",
            base_model_name_or_path=base[name],
            num_train_epochs=1,
        )
        for name in base
    ]
    assert found[0]["test_logloss"] == pytest.approx(found[1]["test_logloss"], abs=1e-5)


def test_gradient_checkpointing_reaches_the_updates(processor, text_config, batch):
    config = tiny.flip_config(processor.fields, text_config)
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = lora.add_lora(tiny.shake(FlipForPretraining(config)), arguments()).eval()
        tiny.shake(model, 0.05)
        if checkpointing:
            model.train()
            model.gradient_checkpointing_enable()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        model(**batch).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters() if ".lora_" in name})
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found[1].values())


def test_a_run_may_not_replace_its_own_base(tmp_path, dataset_dir, plm):
    tiny.finetune(dataset_dir, plm, tmp_path / "m", num_train_epochs=1)
    with pytest.raises(
        ValueError,
        match="--output_dir .* is --model_name_or_path: the new checkpoint would take the place of what",
    ):
        tiny.finetune(dataset_dir, tmp_path / "m", tmp_path / "m", overwrite_output_dir=True, **LORA)
    assert AutoModel.from_pretrained(tmp_path / "m")


def test_an_adapter_is_not_its_own_base(runs):
    folder = str(runs[0] / "adapter")
    with pytest.raises(ValueError, match="cannot be its own base"):
        lora.load_adapter(folder, folder)
    with pytest.raises(
        OSError, match="is a LoRA adapter without its base; load it with flip_ctr.train.models.lora.load_adapter"
    ):
        FlipForCTR.from_pretrained(folder)


def test_the_base_may_be_stored_in_half_precision(tmp_path, dataset_dir, plm):
    AutoModelForMaskedLM.from_pretrained(plm, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    tiny.wordpiece().save_pretrained(tmp_path / "half")
    results = tiny.finetune(dataset_dir, tmp_path / "half", tmp_path / "a", lora_adapter_only=True, **LORA)
    common = {"model_name_or_path": str(tmp_path / "a"), "base_model_name_or_path": str(tmp_path / "half")}
    found = evaluate_ctr.run(
        evaluate_ctr.EvaluateArguments(dataset_dir=str(dataset_dir), max_eval_samples=64, **common)
    )
    assert found["test_auc"] == pytest.approx(results["test_auc"], abs=1e-5)


def test_a_run_overwrites_a_checkpoint_of_another_kind(tmp_path, dataset_dir, pretrained):
    """No file of a former checkpoint is left to be loaded, or published, with the new one."""
    folder = tmp_path / "m"
    tiny.finetune(dataset_dir, pretrained, folder, lora_adapter_only=True, **LORA)
    (folder / "notes.txt").write_text("mine")
    tiny.finetune(dataset_dir, None, folder, overwrite_output_dir=True)
    names = {path.name for path in folder.iterdir()}
    assert not [name for name in names if "adapter" in name or "token" in name] and "notes.txt" in names
    assert AutoModel.from_pretrained(folder).config.strategy == "id"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue")
    settings = CatalogueSettings(users=120, items=100, rows=4500)
    data = write_catalogue(folder / "data", generate_catalogue(settings), "random", settings, 42)
    sizes = TinyPlmSettings(hidden_size=32, layers=1, heads=2, steps=60, batch_size=32)
    return data, make_tiny_plm(folder / "plm", generate_texts(600), 0, sizes)


def test_a_lora_run_learns_on_the_demo_data(tmp_path, catalogue):
    """Only the text tells, the PLM's own weights are frozen, and clicks are predicted far better than by chance."""
    data, plm = catalogue
    assert len(read_split(str(data), "test")) > 400
    options = {
        "strategy": "plm",
        "text_pooling": "mean",
        "per_device_train_batch_size": 64,
        "num_train_epochs": 4,
        "max_train_samples": None,
        "max_eval_samples": None,
        "learning_rate": 5e-3,
    }
    tuned = tiny.finetune(data, plm, tmp_path / "m", use_lora=True, plm_learning_rate=1e-2, **options)
    assert tuned["test_auc"] > 0.6
