"""The switches of memory and speed do what they say."""

import json
from itertools import groupby

import pytest
import tiny
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    GPT2Config,
    MegatronBertConfig,
    MPNetConfig,
    RobertaPreLayerNormConfig,
    XLMConfig,
)

from flip_ctr import FlipForCTR
from flip_ctr.train import finetune as finetune_recipe
from flip_ctr.train.loop.step import TrainingStep
from flip_ctr.train.models.build import freeze_layers, set_dropout


@pytest.fixture
def trained(tmp_path, dataset_dir, plm, monkeypatch):
    """Runs a recipe; returns the model as it was trained, and the folder."""

    def run(recipe=tiny.finetune, **options):
        seen = []
        real = TrainingStep.__init__

        def new(self, accelerator, model, *rest):
            seen.append(model)
            real(self, accelerator, model, *rest)

        monkeypatch.setattr(TrainingStep, "__init__", new)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        recipe(dataset_dir, plm, folder, **{"num_train_epochs": 1, "max_train_samples": 64} | options)
        monkeypatch.setattr(TrainingStep, "__init__", real)
        return seen[0], folder

    return run


@pytest.mark.parametrize("kind", tiny.PLM_CONFIGS)
@pytest.mark.parametrize("number", [1, 2])
def test_frozen_layers_are_the_lowest(kind, number):
    text_encoder = tiny.random_mlm(kind).base_model
    freeze_layers(text_encoder, number)
    trained = {name for name, parameter in text_encoder.named_parameters() if parameter.requires_grad}
    of_layer = {name for name in trained if ".1." in f".{name}"}
    assert (bool(of_layer), bool(trained)) == (number == 1, number == 1)
    assert trained - of_layer == ({"final_norm.weight"} if kind == "modernbert" and number == 1 else set())
    everything = {name for name, _ in text_encoder.named_parameters() if ".1." in f".{name}"}
    assert number == 2 or of_layer == everything


@pytest.mark.parametrize("recipe", [tiny.finetune, tiny.pretrain])
def test_a_frozen_plm_keeps_its_weights(trained, plm, recipe):
    before = AutoModel.from_pretrained(plm, add_pooling_layer=False).state_dict()
    _, folder = trained(recipe, freeze_plm_layers=1)  # it has one
    model = AutoModel.from_pretrained(folder)
    after = model.flip.text_encoder.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    fresh = type(model).from_text_pretrained(plm, model.config).flip.id_tower.state_dict()
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in model.flip.id_tower.state_dict().items())


@pytest.mark.parametrize(
    ("config", "after"),
    [
        (RobertaPreLayerNormConfig, {"LayerNorm.weight", "LayerNorm.bias"}),
        (MegatronBertConfig, {"encoder.ln.weight", "encoder.ln.bias"}),
        (MPNetConfig, set()),
    ],
)
def test_a_norm_after_the_last_layer_trains(config, after):
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 20,
    }
    text_encoder = AutoModel.from_config(config(**sizes))
    freeze_layers(text_encoder, 2)
    trained = {name for name, parameter in text_encoder.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".layer.2." not in name} == after and len(trained) > 10


@pytest.mark.parametrize("kind", tiny.PLM_CONFIGS)
def test_dropout_of_the_plm_is_what_was_asked_for(kind):
    text_encoder = tiny.random_mlm(kind).base_model.train()

    def varies() -> bool:
        states = [text_encoder(input_ids=torch.arange(5, 17).view(2, 6)).last_hidden_state for _ in range(2)]
        return not torch.equal(*states)

    set_dropout(text_encoder, 0.5)
    assert varies()
    set_dropout(text_encoder, 0.0)
    again = type(text_encoder)(text_encoder.config).train()  # from what is saved
    assert not varies()
    assert not any(module.p for module in again.modules() if isinstance(module, torch.nn.Dropout))
    set_dropout(again, 0.25)  # ModernBERT has no module for a dropout of 0
    rates = [
        [module.p for module in one.modules() if isinstance(module, torch.nn.Dropout)] for one in (text_encoder, again)
    ]
    assert set(rates[1]) == {0.25} and len(rates[0]) == len(rates[1])


def test_dropouts_by_the_names_of_gpt2():
    text_encoder = AutoModel.from_config(
        GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, summary_first_dropout=0.1)
    )
    set_dropout(text_encoder, 0.25)
    config = text_encoder.config
    assert config.attn_pdrop == config.embd_pdrop == config.resid_pdrop == 0.25 and config.layer_norm_epsilon == 1e-5
    assert {module.p for module in text_encoder.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_dropout_of_the_plm_is_saved_with_the_checkpoint(trained):
    _, folder = trained(tiny.pretrain, plm_dropout=0.25, use_lora=True, lora_dropout=0.5)
    config = AutoModel.from_pretrained(folder).config.text_config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.25
    _, folder = trained(strategy="plm", plm_dropout=0.0)
    model = FlipForCTR.from_pretrained(folder)
    assert model.config.text_config.hidden_dropout_prob == 0 and model.config.classifier_dropout == 0
    _, folder = trained(strategy="plm")  # the default
    assert FlipForCTR.from_pretrained(folder).config.text_config.hidden_dropout_prob == 0
    _, folder = trained(strategy="plm", plm_dropout=-1.0)
    assert FlipForCTR.from_pretrained(folder).config.text_config.hidden_dropout_prob > 0  # the PLM's own
    with pytest.raises(ValueError, match="--plm_dropout must be at least 0 and below 1; got 1"):
        trained(plm_dropout=1.0)


@pytest.mark.parametrize(
    "config",
    [
        XLMConfig(vocab_size=20, emb_dim=8, n_layers=3, n_heads=2),
        AlbertConfig(
            vocab_size=20,
            hidden_size=8,
            embedding_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=8,
        ),
    ],
)
def test_layers_that_cannot_be_told_are_not_frozen(config):
    text_encoder = AutoModel.from_config(config)
    with pytest.raises(ValueError, match="--freeze_plm_layers 1: (XLM|Albert)Model has"):
        freeze_layers(text_encoder, 1)
    assert all(parameter.requires_grad for parameter in text_encoder.parameters())


def test_freezing_asks_for_layers_that_there_are(trained):
    with pytest.raises(ValueError, match="--freeze_plm_layers 2: BertModel has 1 layers"):
        trained(freeze_plm_layers=2)


@pytest.mark.parametrize(
    "option",
    [
        {"freeze_plm_layers": 1},
        {"gradient_checkpointing": True},
        {"torch_compile": True},
        {"plm_dropout": 0.0},
    ],
)
def test_switches_of_the_plm_need_one(tmp_path, dataset_dir, option):
    with pytest.raises(ValueError, match=f"--{next(iter(option))} is of the PLM, and an ID-only model has none"):
        tiny.finetune(dataset_dir, None, tmp_path / "m", **option)


def test_freezing_has_no_place_beside_lora():
    with pytest.raises(ValueError, match="--freeze_plm_layers has no place beside --use_lora"):
        finetune_recipe.FinetuneArguments(
            dataset_dir="d", output_dir="o", model_name_or_path="m", use_lora=True, freeze_plm_layers=1
        )


def test_gradient_checkpointing_is_on(trained):
    model, _ = trained(gradient_checkpointing=True)
    assert model.flip.text_encoder.is_activation_checkpointing
    model, _ = trained()
    assert not model.flip.text_encoder.is_activation_checkpointing


def test_bf16_trains_in_bf16_scores_test_in_float32_and_keeps_float32_weights(trained):
    seen = []
    real = FlipForCTR.forward

    def forward(self, *args, **kwargs):
        linear = next(module for module in self.flip.text_encoder.modules() if isinstance(module, torch.nn.Linear))
        hook = linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        try:
            return real(self, *args, **kwargs)
        finally:
            hook.remove()

    FlipForCTR.forward = forward
    try:
        model, folder = trained(mixed_precision="bf16")
    finally:
        FlipForCTR.forward = real
    assert [dtype for dtype, _ in groupby(seen)] == [torch.bfloat16, torch.float32]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert AutoModel.from_pretrained(folder).dtype == torch.float32


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attn_implementation_is_that_of_the_plm(trained, implementation):
    model, _ = trained(attn_implementation=implementation)
    assert model.flip.text_encoder.config._attn_implementation == implementation


def test_compiling_changes_no_result(trained, monkeypatch):
    real = torch.nn.Module.compile
    frames = []

    def compile(module, **kwargs):  # dynamo's own backend: a C++ compiler takes a minute
        real(module, backend=lambda graph, inputs: (frames.append(graph), graph.forward)[1], **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    results = []
    for compiled in (False, True):
        model, folder = trained(torch_compile=compiled)
        assert (model.flip.text_encoder._compiled_call_impl is not None) == compiled == bool(frames)
        results.append(json.loads((folder / "all_results.json").read_text()))
    assert results[0]["test_logloss"] == pytest.approx(results[1]["test_logloss"], rel=1e-5)
