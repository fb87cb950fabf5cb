"""Where each loss's gradient goes, and that no parameter is without one (DDP waits for every parameter)."""

import pytest
import tiny
import torch

from flip_ctr import FlipForCTR, FlipForPretraining

WEIGHTS = ("mlm_weight", "mtm_weight", "icl_weight")
TOWERS = ["dcnv2", "deepfm", "autoint"]


def pretraining_model(processor, text_config, **settings) -> FlipForPretraining:
    # noise and full softmax both occur: age has 7 values, movie_id 9
    config = tiny.flip_config(processor.fields, text_config, **{"mtm_full_softmax_size": 7} | settings)
    model = FlipForPretraining(config)
    model.set_feature_counts(torch.ones(sum(config.field_sizes)))
    return tiny.shake(model, 0.1).eval()


def reached(model, part: str) -> list[bool]:
    """Whether each parameter of a part has a gradient that is not zero."""
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in model.named_parameters() if part in n]


def only(weight: str) -> dict[str, float]:
    return {name: float(name == weight) for name in WEIGHTS}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_each_objective_reaches_both_towers(processor, batch, text_config, weight):
    model = pretraining_model(processor, text_config, **only(weight))
    model(**batch).loss.backward()
    assert all(reached(model, "id_tower"))  # embeddings, cross layers, DNN
    names = [n for n, _ in model.named_parameters() if "text_encoder" in n and "key.bias" not in n]
    gradients = dict(model.named_parameters())  # (softmax is blind to a key's bias)
    assert names and all(gradients[name].grad.abs().sum() > 0 for name in names)


def test_mtm_reaches_the_plm_through_the_clean_text_and_mlm_the_tower_through_the_clean_ids(
    processor, batch, text_config
):
    """Changing the other view's masked copy changes nothing."""
    mtm, mlm = (pretraining_model(processor, text_config, **only(weight)) for weight in ("mtm_weight", "mlm_weight"))
    expected = mtm(**batch).loss
    assert torch.equal(mtm(**batch | {"masked_input_ids": batch["input_ids"]}).loss, expected)
    assert not torch.equal(mtm(**batch | {"input_ids": batch["masked_input_ids"]}).loss, expected)
    expected = mlm(**batch).loss
    assert torch.equal(mlm(**batch | {"masked_feature_ids": batch["feature_ids"]}).loss, expected)
    assert not torch.equal(mlm(**batch | {"feature_ids": batch["masked_feature_ids"]}).loss, expected)


def test_masked_targets_get_no_gradient_from_their_own_input(processor, batch, text_config):
    """A masked feature's input embedding is not read: only `[mask]`'s is."""
    model = pretraining_model(processor, text_config, **only("mtm_weight"))
    alone = batch | {
        "masked_feature_ids": torch.ones_like(batch["feature_ids"]),
        "mtm_labels": batch["feature_ids"].where(batch["feature_ids"] > 3, -100),
    }
    model(**alone).loss.backward()
    table = model.flip.id_tower.embeddings
    rows = table.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert rows == [start + 1 for start in table.offsets.tolist()]


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("off", [(), *((weight,) for weight in WEIGHTS), WEIGHTS[:2], WEIGHTS[1:], WEIGHTS[::2]])
def test_pretraining_has_no_unused_parameters(processor, batch, text_config, off, tower):
    settings = dict.fromkeys(off, 0.0) | {"id_tower": tower}
    model = pretraining_model(processor, text_config, **settings)
    output = model(**batch)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert {f"{name.removesuffix('_weight')}_loss" in output for name in off} <= {False}


@pytest.mark.parametrize("strategy", ["id", "plm", "joint"])
@pytest.mark.parametrize("fusion", ["scalar", "gate", "raw"])
@pytest.mark.parametrize("tower", TOWERS)
def test_click_models_have_no_unused_parameters(processor, batch, text_config, strategy, fusion, tower):
    settings = {"strategy": strategy, "fusion": fusion, "id_tower": tower}
    model = tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, **settings)), 0.1)
    views = {name: batch[name] for name in ("feature_ids", "input_ids", "attention_mask")}
    model(**views, labels=torch.arange(24) % 2).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_gradient_checkpointing_changes_nothing(processor, batch, text_config):
    losses, gradients = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = pretraining_model(processor, text_config, **only("icl_weight"))
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.flip.text_encoder.is_gradient_checkpointing
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in model.flip.text_encoder.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss)
        gradients.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
