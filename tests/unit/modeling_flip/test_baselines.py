"""Baselines and ablations of the models: objectives without the other view, a text embedding as a field, row
dropout."""

import dataclasses

import pytest
import tiny
import torch

from flip_ctr import FlipConfig, FlipForCTR, FlipForPretraining, FlipModel
from flip_ctr.modeling_flip.heads_flip import RowDropout, TextField

VIEWS = ("feature_ids", "input_ids", "attention_mask")
MAP = {"mlm_weight": 0.0, "icl_weight": 0.0, "mtm_text_dropout": 1.0}
PLAIN_MLM = {"mtm_weight": 0.0, "icl_weight": 0.0, "mlm_id_dropout": 1.0}


def pretraining_model(processor, text_config, **settings) -> FlipForPretraining:
    model = FlipForPretraining(tiny.flip_config(processor.fields, text_config, **settings))
    model.set_feature_counts(torch.ones(sum(model.config.field_sizes)))
    return tiny.shake(model)


# --- objectives without the other view


def test_mtm_without_text_needs_no_plm(tmp_path, processor, text_config, batch):
    model = pretraining_model(processor, text_config, **MAP).eval()
    assert model.config.text_config is None and model.flip.text_encoder is None and model.mtm_head.query is None
    output = model(
        masked_feature_ids=batch["masked_feature_ids"],
        mtm_labels=batch["mtm_labels"],
        noise_uniform=batch["noise_uniform"],
    )
    assert (
        output.loss > 0
        and output.mtm_accuracy is not None
        and output.mtm_shuffled_accuracy is None
        and output.icl_loss is None
    )
    assert torch.equal(output.loss, model(**batch).loss)  # what it does not need makes no difference
    model.save_pretrained(tmp_path)
    click = FlipForCTR.from_pretrained(tmp_path, strategy="id")
    assert torch.equal(click.flip.id_tower.embeddings.weight, model.flip.id_tower.embeddings.weight)


def test_plain_mlm_needs_no_ids(tmp_path, processor, text_config, batch):
    model = pretraining_model(processor, text_config, **PLAIN_MLM).eval()
    assert model.flip.id_tower is None and model.mlm_head.fuse_id is None
    views = {name: batch[name] for name in ("masked_input_ids", "mlm_labels", "attention_mask")}
    output = model(**views)
    assert output.loss > 0 and output.mlm_shuffled_accuracy is None and torch.equal(output.loss, model(**batch).loss)
    model.save_pretrained(tmp_path)
    click = FlipForCTR.from_pretrained(tmp_path, strategy="plm")
    name = "flip.text_encoder.embeddings.word_embeddings.weight"
    assert torch.equal(click.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize(("off", "view"), [("mtm_text_dropout", "input_ids"), ("mlm_id_dropout", "feature_ids")])
def test_an_objective_that_does_not_see_the_other_view_does_not_depend_on_it(processor, text_config, batch, off, view):
    kind = off[:3]
    for share, depends in ((0.0, True), (1.0, False)):
        model = pretraining_model(processor, text_config, **{off: share}).eval()
        other = (
            batch
            | {view: batch[view].roll(1, 0)}
            | ({"attention_mask": batch["attention_mask"]} if view == "input_ids" else {})
        )
        if view == "input_ids":  # rows of the same length, whose values are others
            other["input_ids"] = torch.where(
                batch["attention_mask"] == 1, (batch["input_ids"] * 7 + 3) % 60 + 1, batch["input_ids"]
            )
        losses = [model(**one)[f"{kind}_loss"] for one in (batch, other)]
        assert (losses[0] != losses[1]) == depends


def test_objectives_say_what_they_need(processor, text_config, batch):
    model = pretraining_model(processor, text_config)
    for name, setting in (("input_ids", "mtm_weight"), ("feature_ids", "mlm_weight"), ("mlm_labels", "mlm_weight")):
        with pytest.raises(ValueError, match=f"{name} needed while config.{setting} is 1.0"):
            model(**{key: value for key, value in batch.items() if key != name})


@pytest.mark.parametrize("name", ["mlm_id_dropout", "mtm_text_dropout"])
def test_shares_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a number of at least 0 and at most 1; got 1.5"):
        FlipConfig(**{name: 1.5})


def test_row_dropout_drops_whole_rows_while_training_only():
    rows = torch.rand(4000, 3) + 1
    dropout = RowDropout(0.3)
    dropped = dropout(rows)
    gone = (dropped == 0).all(1)
    assert gone.float().mean().item() == pytest.approx(0.3, abs=0.03) and torch.equal(dropped[~gone], rows[~gone])
    assert dropout.eval()(rows) is rows and RowDropout(0.0)(rows) is rows


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_mtm_head_goes_on_from_one_without_text(processor, text_config, share):
    before = pretraining_model(processor, None, **MAP)
    after = pretraining_model(processor, text_config, mtm_text_dropout=share)
    after.mtm_head.start_from(before.mtm_head)
    h_id = torch.randn(5, before.flip.id_tower.output_dim)
    states = torch.zeros(5, 7, text_config.hidden_size)  # nothing is read from such a text
    vectors = after.mtm_head.represent(h_id, states, torch.ones(5, 7), torch.arange(5)[:, None])
    torch.testing.assert_close(vectors, before.mtm_head.represent(h_id))
    assert torch.equal(after.mtm_head.embeddings.weight, before.mtm_head.embeddings.weight)


def test_an_mtm_head_does_not_take_over_how_another_one_reads_text(processor, text_config):
    before, after = (pretraining_model(processor, text_config) for _ in range(2))
    with torch.no_grad():
        before.mtm_head.project.weight.add_(1.0)
    kept = after.mtm_head.project.weight.clone()
    after.mtm_head.start_from(before.mtm_head)
    size = after.flip.id_tower.output_dim
    assert torch.equal(after.mtm_head.project.weight[:, :size], before.mtm_head.project.weight[:, :size])
    assert torch.equal(after.mtm_head.project.weight[:, size:], kept[:, size:])


# --- frozen: the text embedding as a field


def frozen_model(processor, text_config, **settings) -> FlipForCTR:
    return tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, strategy="frozen", **settings)))


@pytest.mark.parametrize("form", tiny.ALL_TOWERS)
def test_every_tower_takes_the_text_as_a_field(text_config, form):
    name, kwargs = tiny.ALL_TOWERS[form]
    fields = tiny.sized_fields(9, 9, 9)
    model = tiny.shake(
        FlipForCTR(tiny.flip_config(fields, text_config, name, strategy="frozen", id_tower_kwargs=kwargs))
    )
    assert model.flip.id_tower.num_fields == 4
    ids, tokens = torch.randint(4, 9, (32, 3)), torch.randint(5, 50, (32, 6))
    first, second = (model.eval()(ids, tokens[rows]).logits for rows in (slice(None), torch.arange(32).roll(1)))
    assert (first - second).abs().max() > 1e-6  # the text matters
    model.train()(ids, tokens, labels=torch.arange(32) % 2).loss.backward()
    assert model.flip.text_field.weight.grad.abs().sum() > 0


def test_the_plm_is_frozen(processor, text_config, batch):
    model = frozen_model(processor, text_config, text_pooling="mean").train()
    assert not model.flip.text_encoder.training and model.flip.id_tower.training
    assert not any(parameter.requires_grad for parameter in model.flip.text_encoder.parameters())
    views = {name: batch[name] for name in VIEWS}
    assert torch.equal(model(**views).logits, model(**views).logits)  # no dropout anywhere
    model(**views, labels=torch.arange(len(batch["feature_ids"])) % 2).loss.backward()
    assert all(parameter.grad is None for parameter in model.flip.text_encoder.parameters())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_equal_prompts_go_through_the_plm_once(processor, text_config, batch, monkeypatch, pooling):
    model = frozen_model(processor, text_config, text_pooling=pooling).eval()
    twice = {name: batch[name].repeat(2, 1) for name in VIEWS}
    encode, seen = model.flip.encode_text, []
    monkeypatch.setattr(model.flip, "encode_text", lambda ids, mask: seen.append(len(ids)) or encode(ids, mask))
    logits = model(**twice).logits
    assert seen == [len(batch["input_ids"].unique(dim=0))] and seen[0] < len(twice["input_ids"])
    # row by row, in plain steps
    for row in range(0, len(logits), 7):
        ids, mask = (twice[name][row : row + 1] for name in ("input_ids", "attention_mask"))
        hidden = model.flip.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        pooled = hidden[0] if pooling == "cls" else hidden[mask[0] == 1].mean(0)
        h_id = model.flip.id_tower(twice["feature_ids"][row : row + 1], model.flip.text_field(pooled[None]))
        torch.testing.assert_close(logits[row], model.id_classifier(h_id)[0])


def test_a_text_field_starts_with_the_size_of_an_embedding(processor, text_config):
    config = tiny.flip_config(
        processor.fields, text_config, strategy="frozen", id_embedding_size=64, id_initializer_range=0.05
    )
    field = FlipForCTR(config).flip.text_field
    assert isinstance(field, TextField)
    assert field(torch.randn(500, text_config.hidden_size) * 9 + 4).std().item() == pytest.approx(0.05, rel=0.2)


def test_frozen_needs_the_text(processor, text_config, batch):
    with pytest.raises(ValueError, match="`input_ids` is needed by strategy 'frozen'"):
        frozen_model(processor, text_config)(batch["feature_ids"])


def test_a_bare_model_of_a_frozen_checkpoint_encodes_rows(tmp_path, processor, text_config, batch):
    model = frozen_model(processor, text_config).eval()
    model.save_pretrained(tmp_path)
    views = {name: batch[name] for name in VIEWS}
    bare, passes = FlipModel.from_pretrained(tmp_path).eval(), []
    bare.text_encoder.register_forward_hook(lambda *_: passes.append(1))
    output = bare(**views)
    assert len(passes) == 1
    for method, given in ((bare.get_id_features, ["feature_ids"]), (bare.get_text_features, VIEWS[1:])):
        with pytest.raises(ValueError, match="this model has no projections"):
            method(*(views[name] for name in given))
    assert (
        output.id_hidden_state.shape == (len(batch["input_ids"]), model.flip.id_tower.output_dim)
        and output.id_embeds is None
    )
    torch.testing.assert_close(model.id_classifier(output.id_hidden_state), model(**views).logits)


def test_prompts_of_some_fields_only():
    from flip_ctr.train.models.build import with_prompt_fields

    fields = [*tiny.FIELDS, dataclasses.replace(tiny.FIELDS[4], name="subtitle", sides=("text",))]
    chosen = with_prompt_fields(fields, ["title", "user_id"])
    assert [(field.name, field.sides) for field in chosen] == [
        ("user_id", ("id", "text")),
        ("age", ("id",)),
        ("zip_code", ("id",)),
        ("movie_id", ("id",)),
        ("title", ("id", "text")),
        ("genre", ("id",)),
    ]
    with pytest.raises(ValueError, match="--prompt_fields tilte: the dataset's fields are user_id, age"):
        with_prompt_fields(fields, ["title", "tilte"])
