"""Decoders as the PLM: the pooled state is the last token's, padding changes nothing, and checkpoints survive."""

import copy
import json

import pytest
import tiny
import torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer

from flip_ctr import FlipConfig, FlipForCTR, FlipForPretraining, FlipModel, FlipProcessor
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.models import lora
from flip_ctr.train.models.build import freeze_layers, set_dropout

DECODERS = tiny.DECODER_CONFIGS
# a decoder with a tokenizer of its own kind
PAIRS = {"qwen3": tiny.qwen, "llama": tiny.llama2, "gemma3_text": tiny.gemma}


@pytest.fixture(scope="module", params=PAIRS)
def plm_folder(request, tmp_path_factory):
    return tiny.save_decoder(tmp_path_factory.mktemp("plm") / request.param, request.param, PAIRS[request.param]())


def decoder(kind: str, **settings):
    return DECODERS[kind](vocab_size=tiny.VOCAB, **settings)


# --- pooling


def test_the_pooled_state_follows_from_the_plm():
    for kind in DECODERS:
        assert FlipConfig(text_config=decoder(kind)).text_pooling == "last"
        assert FlipConfig(text_config=decoder(kind).to_dict()).text_pooling == "last"
        assert FlipConfig(text_config=decoder(kind), text_pooling="mean").text_pooling == "mean"
    for kind in tiny.PLM_CONFIGS:
        assert FlipConfig(text_config=tiny.PLM_CONFIGS[kind]()).text_pooling == "cls"
    # a decoder's architecture that reads both ways, as some text embedding models have it
    assert FlipConfig(text_config=decoder("gemma3_text", use_bidirectional_attention=True)).text_pooling == "cls"
    assert FlipConfig(text_config=decoder("llama", is_causal=False)).text_pooling == "cls"
    assert FlipConfig().text_pooling is None


def test_a_configuration_keeps_its_pooling(tmp_path):
    for settings, stored in (({}, "last"), ({"text_pooling": "cls"}, "cls")):
        FlipConfig(text_config=decoder("qwen3"), **settings).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["text_pooling"] == stored
        assert FlipConfig.from_pretrained(tmp_path).text_pooling == stored


def test_around_a_pretrained_plm_the_plm_decides(plm_folder, plm):
    open_config = tiny.flip_config(tiny.sized_fields(8, 9))
    for config, folder, pooling in (
        (open_config, plm_folder, "last"),
        (open_config, plm, "cls"),
        (tiny.flip_config(tiny.sized_fields(8, 9), text_pooling="mean"), plm_folder, "mean"),
    ):
        assert FlipForCTR.from_text_pretrained(folder, config).config.text_pooling == pooling
    assert open_config.text_pooling is None


def test_the_last_token_is_the_last_that_is_no_padding():
    model = FlipModel(tiny.flip_config(tiny.sized_fields(8, 9), decoder("llama")))
    states = torch.randn(4, 5, 16)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    expected = torch.stack([states[row, column] for row, column in enumerate((4, 1, 4, 0))])
    assert torch.equal(model.pool(states, mask), expected)


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_pooled_state_does_not_depend_on_padding(kind, attention, pooling):
    torch.manual_seed(0)
    config = tiny.flip_config(tiny.sized_fields(8, 9), decoder(kind), text_pooling=pooling)
    model = tiny.shake(FlipModel._from_config(config, attn_implementation=attention)).eval()
    assert model.text_encoder.config._attn_implementation == attention
    lengths = [12, 7, 1, 10]
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 50, (4, 12))
    pooled = model.pooled_text(ids, mask)
    for row, length in enumerate(lengths):  # alone, nothing is padded
        alone = model(input_ids=ids[row : row + 1, :length]).text_pooled
        torch.testing.assert_close(pooled[row], alone[0], atol=1e-5, rtol=1e-5)
    wider = torch.nn.functional.pad(ids, (0, 6), value=7), torch.nn.functional.pad(mask, (0, 6))
    torch.testing.assert_close(model.pooled_text(*wider), pooled, atol=1e-5, rtol=1e-5)
    changed = torch.where(torch.arange(12) == 0, ids % 40 + 7, ids)
    assert ((model.pooled_text(changed, mask) - pooled).abs().amax(1) > 1e-3).all()  # every token counts


# --- models


def test_a_plm_in_half_precision_gets_the_type_of_the_other_weights(tmp_path):
    AutoModel.from_config(decoder("qwen3")).to(torch.bfloat16).save_pretrained(tmp_path)
    model = FlipForCTR.from_text_pretrained(tmp_path, tiny.flip_config(tiny.sized_fields(8, 9)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_nothing_is_kept_that_only_generation_needs(plm_folder):
    config = tiny.flip_config(tiny.sized_fields(8, 9))
    model = FlipForCTR.from_text_pretrained(plm_folder, config).flip
    output = model.text_encoder(input_ids=torch.full((2, 3), 5), attention_mask=torch.ones(2, 3))
    assert output.past_key_values is None


@pytest.mark.parametrize("cls", [FlipForCTR, FlipForPretraining])
def test_a_checkpoint_gives_the_same_outputs(tmp_path, plm_folder, cls, rows):
    processor = FlipProcessor.from_dataset(rows, tiny.FIELDS, AutoTokenizer.from_pretrained(plm_folder))
    config = tiny.flip_config(processor.fields, mlm_weight=0.0)
    model = tiny.shake(cls.from_text_pretrained(plm_folder, config)).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    again, inputs = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)(plain)
    assert type(again) is cls and again.config.text_pooling == "last"
    with torch.no_grad():
        expected, got = model.flip(**processor(plain)), again.flip(**inputs)
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("kind", DECODERS)
def test_checkpointing_changes_no_gradient(kind):
    model = tiny.shake(FlipForCTR(tiny.flip_config(tiny.sized_fields(8, 9), decoder(kind), strategy="plm"))).train()
    ids, mask = torch.randint(5, 50, (4, 9)), (torch.arange(9) < torch.tensor([[9], [4], [7], [2]])).long()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 1, 0])).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_enable()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("kind", DECODERS)
def test_layers_are_frozen_dropouts_set_and_projections_adapted(kind):
    config = tiny.flip_config(tiny.sized_fields(8, 9), decoder(kind, attention_dropout=0.1))
    text_encoder = FlipModel(copy.deepcopy(config)).text_encoder
    set_dropout(text_encoder, 0.25)
    assert text_encoder.config.attention_dropout == text_encoder.layers[1].self_attn.attention_dropout == 0.25
    freeze_layers(text_encoder, 1)
    trained = [name for name, parameter in text_encoder.named_parameters() if parameter.requires_grad]
    assert {".".join(name.split(".")[:2]) for name in trained} == {"layers.1", "norm.weight"}
    arguments = FinetuneArguments(dataset_dir="d", output_dir="o", model_name_or_path="m", use_lora=True)
    wrapped = lora.add_lora(FlipForCTR(config), arguments)
    updates = [name for name, p in wrapped.named_parameters() if p.requires_grad and ".lora_" in name]
    assert len(updates) == 2 * 2 * 7 and all(".text_encoder.layers." in name for name in updates)
