"""Every kind of masked language model: its head is taken over, tied, resized, and both tasks run on it."""

import json

import pytest
import tiny
import torch
import transformers
from packaging.version import Version
from transformers import AutoModel

from flip_ctr import FlipForCTR, FlipForPretraining
from flip_ctr.modeling_flip.base_flip import logger

KINDS = list(tiny.PLM_CONFIGS)
FIELDS = tiny.sized_fields(8, 9)
IDS = torch.randint(5, tiny.VOCAB, (4, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [1] * 7 + [0] * 2, [1] * 9, [1] * 4 + [0] * 5])
OLD = Version(transformers.__version__) < Version("5.17")  # 5.2 cannot load DeBERTa's new head, 5.17 can


def batch() -> dict[str, torch.Tensor]:
    masked = torch.arange(9) == 2
    return {
        "feature_ids": torch.tensor([[4, 5], [6, 7], [5, 8], [7, 4]]),
        "masked_feature_ids": torch.tensor([[1, 5], [6, 1], [1, 8], [7, 1]]),
        "mtm_labels": torch.tensor([[4, -100], [-100, 7], [5, -100], [-100, 4]]),
        "input_ids": IDS,
        "masked_input_ids": torch.where(masked, 4, IDS),
        "mlm_labels": torch.where(masked, IDS, -100),
        "attention_mask": MASK,
    }


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """A masked language model with its head, and its folder."""
    if OLD and request.param == "deberta-v2-new-head":
        pytest.skip("transformers 5.2 cannot load this head")
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny.random_mlm(request.param)
    model.save_pretrained(folder)
    return model, folder


def pretraining_model(folder, **kwargs) -> FlipForPretraining:
    model = FlipForPretraining.from_text_pretrained(str(folder), tiny.flip_config(FIELDS), **kwargs)
    model.set_feature_counts(torch.ones(17))
    return model


def mlm_logits(model: FlipForPretraining) -> torch.Tensor:
    """Of every token, with the ID tower's part at zero."""
    states = model.flip.encode_text(IDS, MASK)[MASK == 1]
    return model.mlm_head(states, torch.zeros(len(states), model.flip.id_tower.output_dim))


@torch.no_grad()
def test_the_plms_own_head_is_taken_over(checkpoint):
    plm, folder = checkpoint
    expected = plm(input_ids=IDS, attention_mask=MASK).logits[MASK == 1]
    model = pretraining_model(folder).eval()
    torch.testing.assert_close(mlm_logits(model), expected, atol=1e-5, rtol=1e-5)
    # the ID tower has its say from the start
    h_id = model.flip.id_tower(batch()["feature_ids"]) + 1
    assert model.mlm_head.fuse_id(h_id).abs().max() > 1e-3


@torch.no_grad()
def test_decoder_and_token_embeddings_stay_tied(checkpoint, tmp_path):
    model = pretraining_model(checkpoint[1])
    model.save_pretrained(tmp_path)
    for one in (model, FlipForPretraining.from_pretrained(tmp_path)):
        assert one.mlm_head.decoder.weight is one.get_input_embeddings().weight
        assert one.mlm_head.decoder.weight is one.get_output_embeddings().weight
    loaded = one.eval()
    assert loaded.mlm_head.decoder.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    assert torch.equal(mlm_logits(loaded), mlm_logits(model.eval()))


def test_the_vocabulary_can_grow(checkpoint, tmp_path):
    model = pretraining_model(checkpoint[1]).eval()
    before = mlm_logits(model).detach()
    model.resize_token_embeddings(tiny.VOCAB + 3, mean_resizing=False)
    assert model.get_input_embeddings().weight.shape[0] == tiny.VOCAB + 3 == model.config.text_config.vocab_size
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight
    assert mlm_logits(model).shape[1] == tiny.VOCAB + 3
    torch.testing.assert_close(mlm_logits(model)[:, : tiny.VOCAB], before)
    model.save_pretrained(tmp_path)
    again = FlipForPretraining.from_pretrained(tmp_path).eval()
    assert torch.equal(mlm_logits(again), mlm_logits(model))


def test_both_tasks_train_on_it(checkpoint):
    _, folder = checkpoint
    config = tiny.flip_config(FIELDS)
    joint = FlipForCTR.from_text_pretrained(str(folder), config)
    pretraining = pretraining_model(folder)
    views = {name: batch()[name] for name in ("feature_ids", "input_ids", "attention_mask")}
    for model, inputs in ((pretraining, batch()), (joint, views | {"labels": torch.tensor([0, 1, 1, 0])})):
        loss = model.train()(**inputs).loss
        loss.backward()
        assert loss.isfinite()
        unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not unused


@torch.no_grad()
def test_the_encoder_is_the_plms_own(checkpoint):
    plm, folder = checkpoint
    expected = plm.base_model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    for model in (pretraining_model(folder), FlipForCTR.from_text_pretrained(str(folder), tiny.flip_config(FIELDS))):
        got = model.eval().flip.encode_text(IDS, MASK)
        torch.testing.assert_close(got[MASK == 1], expected[MASK == 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_deberta_v3_checkpoint_does_not_say_that_its_head_is_new(tmp_path, monkeypatch):
    """Published DeBERTa-v3 checkpoints have the new head, and a configuration that knows nothing of `legacy`."""
    plm = tiny.random_mlm("deberta-v2-new-head")
    plm.save_pretrained(tmp_path)
    if OLD:  # the PLM is loaded without its head, and a warning says so
        said = []
        monkeypatch.setattr(logger, "warning", said.append)
        model = pretraining_model(tmp_path).train()
        assert "cannot load the MLM head" in said[0] and model(**batch()).loss.isfinite()
        return
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("legacy")
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = plm(input_ids=IDS, attention_mask=MASK).logits[MASK == 1]
    torch.testing.assert_close(mlm_logits(pretraining_model(tmp_path).eval()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "electra"])
def test_a_checkpoint_without_a_head_gets_a_new_one(tmp_path, kind):
    torch.manual_seed(0)
    encoder = AutoModel.from_config(tiny.PLM_CONFIGS[kind]())
    encoder.save_pretrained(tmp_path)
    model = pretraining_model(tmp_path).train()
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, encoder.get_input_embeddings().weight)
    assert (model.mlm_head.norm.weight == 1).all() and (model.mlm_head.decoder.bias == 0).all()
    assert model(**batch()).loss.isfinite()


def test_a_head_of_another_form_is_refused_with_a_warning(tmp_path, monkeypatch):
    tiny.random_mlm("bert").save_pretrained(tmp_path)
    said = []
    monkeypatch.setattr(logger, "warning", said.append)
    monkeypatch.setattr(
        "flip_ctr.modeling_flip.modeling_flip.FlipMLMHead.PLM_NAMES", {"dense": (), "norm": (), "decoder": ()}
    )
    pretraining_model(tmp_path)
    assert said and "newly initialised" in said[0]


# --- attention


@pytest.mark.parametrize(("asked", "expected"), [(None, "sdpa"), ("eager", "eager")])
def test_attention_stays_what_it_was(tmp_path, asked, expected):
    tiny.random_mlm("bert").save_pretrained(tmp_path / "plm")
    kwargs = {"attn_implementation": asked} if asked else {}
    for number, cls in enumerate((FlipForPretraining, FlipForCTR)):
        model = cls.from_text_pretrained(str(tmp_path / "plm"), tiny.flip_config(FIELDS), **kwargs)
        assert model.flip.text_encoder.config._attn_implementation == expected
        model.save_pretrained(tmp_path / str(number))
        loaded = cls.from_pretrained(tmp_path / str(number), **kwargs)
        assert loaded.flip.text_encoder.config._attn_implementation == expected
        attention = loaded.flip.text_encoder.encoder.layer[0].attention.self
        assert attention.config._attn_implementation == expected


def test_sdpa_is_what_runs(monkeypatch, tmp_path):
    tiny.random_mlm("bert").save_pretrained(tmp_path)
    FlipForCTR.from_text_pretrained(str(tmp_path), tiny.flip_config(FIELDS)).save_pretrained(tmp_path / "flip")
    model = FlipForCTR.from_pretrained(tmp_path / "flip").eval()
    calls, real = [], torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), real(*a, **k))[1]
    )
    model(**{name: batch()[name] for name in ("feature_ids", "input_ids", "attention_mask")})
    assert len(calls) == 2  # one a layer


def test_deberta_falls_back_to_eager(tmp_path):
    tiny.random_mlm("deberta-v2").save_pretrained(tmp_path / "plm")
    model = FlipForCTR.from_text_pretrained(str(tmp_path / "plm"), tiny.flip_config(FIELDS))
    model.save_pretrained(tmp_path / "flip")
    assert FlipForCTR.from_pretrained(tmp_path / "flip").flip.text_encoder.config._attn_implementation == "eager"
