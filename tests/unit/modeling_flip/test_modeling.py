"""Models: construction, outputs, saving and loading through the Auto classes, moving between heads."""

import json
from itertools import product

import pytest
import tiny
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

import flip_ctr  # noqa: F401  registers the Auto classes
from flip_ctr import FlipConfig, FlipForCTR, FlipForPretraining, FlipModel, FlipProcessor

TOWERS = ["dcnv2", "deepfm", "autoint"]
STRATEGIES = ["id", "plm", "joint", "frozen"]
FUSIONS = ["scalar", "gate", "raw"]
VIEWS = ("feature_ids", "input_ids", "attention_mask")


@pytest.fixture
def views(batch):
    return {name: batch[name] for name in VIEWS}


def click_model(processor, text_config, **settings) -> FlipForCTR:
    return tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, **settings))).eval()


def saved_keys(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def check_same(model, again, views) -> None:
    """Same class, same weights to the bit, same outputs to the bit."""
    assert type(again) is type(model)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)
    expected, got = model(**views), again.eval()(**views)
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


def load(auto_class, folder):
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


# --- save and load


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(
    ("strategy", "fusion"), [("id", "scalar"), ("plm", "scalar"), ("frozen", "scalar"), *product(["joint"], FUSIONS)]
)
def test_click_models_survive_saving(tmp_path, processor, text_config, views, tower, strategy, fusion):
    model = click_model(processor, text_config, id_tower=tower, strategy=strategy, fusion=fusion)
    model.save_pretrained(tmp_path)
    for auto_class in (AutoModel, AutoModelForSequenceClassification):
        check_same(model, load(auto_class, tmp_path), views)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, FlipConfig) and config.architectures == ["FlipForCTR"]
    assert (config.strategy, config.fusion, config.id_tower, config.num_labels) == (strategy, fusion, tower, 1)


@pytest.mark.parametrize("tower", TOWERS)
def test_pretraining_models_survive_saving(tmp_path, processor, text_config, batch, tower):
    model = FlipForPretraining(tiny.flip_config(processor.fields, text_config, id_tower=tower))
    model.set_feature_counts(torch.arange(sum(model.config.field_sizes)))
    tiny.shake(model).eval().save_pretrained(tmp_path)
    for auto_class in (AutoModel, AutoModelForPreTraining):
        check_same(model, load(auto_class, tmp_path), batch)


@pytest.mark.parametrize("with_text", [True, False])
def test_bare_models_survive_saving(tmp_path, processor, text_config, views, with_text):
    model = tiny.shake(FlipModel(tiny.flip_config(processor.fields, text_config if with_text else None))).eval()
    model.save_pretrained(tmp_path)
    check_same(model, load(AutoModel, tmp_path), views)


def test_an_id_checkpoint_holds_nothing_of_a_plm(tmp_path, processor, text_config):
    model = click_model(processor, text_config, strategy="id")
    model.save_pretrained(tmp_path)
    processor.without_tokenizer().save_pretrained(tmp_path)
    assert not any("text" in key for key in saved_keys(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["text_config"] is None
    assert AutoConfig.from_pretrained(tmp_path).text_config is None
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, FlipProcessor) and loaded.id_only
    assert not list(tmp_path.glob("*token*"))
    with pytest.raises(NotImplementedError, match="ID-only"):
        model.get_input_embeddings()


def test_a_plm_checkpoint_holds_no_id_tower(tmp_path, processor, text_config):
    click_model(processor, text_config, strategy="plm").save_pretrained(tmp_path)
    assert not any("id_" in key or "fusion" in key for key in saved_keys(tmp_path))


def test_tied_weights_are_saved_once(tmp_path, processor, text_config):
    FlipForPretraining(tiny.flip_config(processor.fields, text_config)).save_pretrained(tmp_path)
    assert "mlm_head.decoder.weight" not in saved_keys(tmp_path)


def test_no_local_path_is_published(tmp_path, plm, processor):
    FlipForCTR.from_text_pretrained(str(plm), tiny.flip_config(processor.fields)).save_pretrained(tmp_path)
    assert str(plm) not in (tmp_path / "config.json").read_text()


# --- from pretraining to clicks

NEW_PARTS = {
    "id": {"id_classifier"},
    "plm": {"text_classifier"},
    "joint": {"id_classifier", "text_classifier", "fusion"},
}


@pytest.mark.parametrize("strategy", NEW_PARTS)
def test_a_pretrained_checkpoint_lacks_only_the_new_head(tmp_path, processor, text_config, strategy):
    pretrained = tiny.shake(FlipForPretraining(tiny.flip_config(processor.fields, text_config)))
    pretrained.save_pretrained(tmp_path)
    model, info = FlipForCTR.from_pretrained(tmp_path, strategy=strategy, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == NEW_PARTS[strategy]
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    state = pretrained.state_dict()
    kept = [name for name in model.state_dict() if name.startswith("flip.")]
    assert kept and all(torch.equal(model.state_dict()[name], state[name]) for name in kept)
    assert (model.flip.text_encoder is None, model.flip.id_tower is None) == (strategy == "id", strategy == "plm")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_missing_mtm_head_is_initialised(tmp_path, processor, text_config, batch):
    """Buffers of a part that is not in the checkpoint are made on the meta device: garbage unless filled."""
    config = tiny.flip_config(processor.fields, text_config, mtm_weight=0)
    FlipForPretraining(config).save_pretrained(tmp_path)
    model = FlipForPretraining.from_pretrained(tmp_path, mtm_weight=1.0)
    assert (model.mtm_head.feature_counts == 0).all()
    model.set_feature_counts(torch.ones(sum(config.field_sizes)))
    assert model(**batch).loss.isfinite()


# --- construction and inputs


def test_only_what_is_used_is_built(processor, text_config):
    config = tiny.flip_config(processor.fields, text_config, icl_weight=0, mlm_weight=0)
    model = FlipForPretraining(config)
    assert model.mlm_head is model.logit_scale is model.flip.id_projection is model.flip.text_projection is None
    assert FlipForPretraining(tiny.flip_config(processor.fields, text_config, mtm_weight=0)).mtm_head is None


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (FlipForPretraining, {"text_config": None}, "an objective uses the PLM, and `config.text_config` is null"),
        (FlipForPretraining, {"mlm_weight": 0, "mtm_weight": 0, "icl_weight": 0}, "all 0; nothing to learn"),
        (FlipForCTR, {"text_config": None, "strategy": "plm"}, "strategy 'plm' needs a PLM"),
        (FlipForCTR, {"text_config": None}, "strategy 'joint' needs a PLM"),
    ],
)
def test_impossible_models_are_refused(text_config, cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(tiny.flip_config(tiny.sized_fields(8), **{"text_config": text_config} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "both"}, "`strategy` must be one of 'id', 'plm', 'joint', 'frozen'; got 'both'"),
        ({"fusion": "mean"}, "`fusion` must be one of"),
        ({"mtm_noise": "batch"}, "`mtm_noise` must be one of"),
        ({"icl_similarity": "l2"}, "`icl_similarity` must be one of"),
        ({"text_pooling": "max"}, "`text_pooling` must be one of"),
        ({"icl_weight": -1}, "`icl_weight` must be a number of at least 0; got -1"),
        ({"icl_temperature": 0.0}, "`icl_temperature` must be a number above 0"),
        ({"id_dropout": 5}, "`id_dropout` must be a number of at least 0 and below 1; got 5"),
        ({"id_dropout": True}, "`id_dropout` must be a number .*; got True"),
        ({"id_embedding_size": 8.0}, "`id_embedding_size` must be a whole number of at least 1; got 8.0"),
        (
            {"id_hidden_dims": 64},
            "`id_hidden_dims` must be a list of at least one entry, each a whole number of at least 1",
        ),
        ({"id_hidden_dims": [64, 0]}, "`id_hidden_dims` must be a list .*; got .64, 0."),
        ({"id_tower": None}, "`id_tower` must be text; got None"),
        ({"id_tower_kwargs": [3]}, "`id_tower_kwargs` must be a mapping"),
        ({"mtm_num_noise": "25"}, "`mtm_num_noise` must be a whole number of at least 1; got '25'"),
        ({"text_config": {"hidden_size": 8}}, "`text_config` has no `model_type`"),
        ({"fields": [{"name": "age"}, {"name": "age"}]}, "column.s. age are named by more than one field"),
        ({"fields": [{"name": "age", "typ": "int"}]}, "field 'age': unknown key.s. typ"),
        ({"fields": [{"name": "age", "type": "date"}]}, "field 'age': `type` must be one of"),
        (
            {"fields": [{"name": "age", "sides": ["ids"]}]},
            "field 'age': `sides` must be a list of .* one of 'id', 'text'",
        ),
        ({"fields": [{"name": "age", "sides": []}]}, "field 'age': `sides` must be a list of at least one entry"),
        ({"fields": [{"name": "age", "key": "yes"}]}, "field 'age': `key` must be true or false; got 'yes'"),
        ({"fields": [{"name": "age", "entity": 3}]}, "field 'age': `entity` must be text; got 3"),
    ],
)
def test_wrong_configurations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FlipConfig(**settings)


def test_a_setting_that_became_wrong_is_refused_by_the_model(id_processor):
    config = tiny.flip_config(id_processor.fields, strategy="id")
    config.classifier_dropout = 2
    with pytest.raises(ValueError, match="`classifier_dropout` must be a number of at least 0 and below 1; got 2"):
        FlipForCTR(config)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"labels": torch.zeros(24, 1)},
            r"`labels` must have the shape \(B,\), here \(24,\), as `feature_ids` has it; got \(24, 1\)",
        ),
        ({"labels": torch.zeros(23)}, r"`labels` must have the shape \(B,\), here \(24,\), .* got \(23,\)"),
        ({"labels": torch.full((24,), 2)}, "`labels` must be 0 .no click. or 1 .click.; got 2"),
        ({"labels": torch.full((24,), float("nan"))}, "`labels` must be 0 .no click. or 1 .click.; got nan"),
        (
            {"labels": torch.zeros(24), "sample_weight": torch.ones(1)},
            r"`sample_weight` must have the shape \(B,\), here \(24,\)",
        ),
    ],
)
def test_labels_that_are_no_clicks_are_refused(id_processor, batch, inputs, message):
    model = FlipForCTR(tiny.flip_config(id_processor.fields, strategy="id"))
    with pytest.raises(ValueError, match=message):
        model(feature_ids=batch["feature_ids"], **inputs)


@pytest.mark.parametrize(
    ("strategy", "parts"), [("id", ["id_logits"]), ("joint", ["id_logits", "text_logits", "id_weight"])]
)
def test_outputs_start_with_the_loss_and_the_logits(processor, text_config, views, strategy, parts):
    model = click_model(processor, text_config, strategy=strategy)
    labels = torch.arange(24) % 2
    output = model(**views, labels=labels)
    assert list(output) == ["loss", "logits", *parts] and output[0] is output.loss and output[1] is output.logits
    assert list(model(**views)) == ["logits", *parts]
    loss, logits, *_ = model(**views, labels=labels, return_dict=False)
    assert loss.ndim == 0 and logits.shape == (24, 1)
    assert set(parts) <= set(model.config.keys_to_ignore_at_inference)


def test_pretraining_without_counts_says_what_to_call(processor, text_config, batch, rows):
    fields = list(processor.fields)  # as those of a processor that was loaded, which knows no counts
    model = FlipForPretraining(tiny.flip_config(fields, text_config, mtm_full_softmax_size=0))
    with pytest.raises(
        ValueError, match="of user_id, .* occurs in the training rows.*set_feature_counts.processor.count_features"
    ):
        model(**batch)
    model.set_feature_counts(processor.count_features(rows))
    assert model(**batch).mtm_loss.isfinite()
    # fields that are small enough for a softmax need none
    assert FlipForPretraining(tiny.flip_config(fields, text_config))(**batch).mtm_loss.isfinite()


def test_missing_views_are_named(processor, text_config, batch, views):
    model = FlipForPretraining(tiny.flip_config(processor.fields, text_config))
    with pytest.raises(ValueError, match="masked_input_ids and mlm_labels needed while config.mlm_weight is 1.0"):
        model(**views)
    joint = click_model(processor, text_config)
    with pytest.raises(ValueError, match="`feature_ids` is needed"):
        joint(input_ids=views["input_ids"])
    with pytest.raises(ValueError, match="`input_ids` is needed"):
        joint(feature_ids=views["feature_ids"])


def test_features_in_the_space_of_icl(processor, text_config, views):
    model = tiny.shake(FlipModel(tiny.flip_config(processor.fields, text_config))).eval()
    both = model(**views)
    assert torch.equal(both.id_embeds, model.get_id_features(views["feature_ids"]))
    assert torch.equal(both.text_embeds, model.get_text_features(views["input_ids"], views["attention_mask"]))
    assert both.id_embeds.shape == both.text_embeds.shape == (24, 8)
    assert model(feature_ids=views["feature_ids"]).text_embeds is None


def test_tuples_where_asked(processor, text_config, views):
    logits, *_ = click_model(processor, text_config)(**views, return_dict=False)
    assert logits.shape == (24, 1)


# --- padding


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "modernbert"])
def test_padding_is_never_attended(kind, pooling):
    torch.manual_seed(0)
    config = tiny.flip_config(tiny.sized_fields(8, 9), tiny.PLM_CONFIGS[kind](), text_pooling=pooling)
    pretraining, joint = (tiny.shake(cls(config)).eval() for cls in (FlipForPretraining, FlipForCTR))
    pretraining.set_feature_counts(torch.ones(17))
    mask = (torch.arange(10) < torch.tensor([[10], [6], [3], [8]])).long()
    ids = torch.randint(5, 50, (4, 10)) * mask
    mlm_labels = torch.where((torch.arange(10) == 1).expand(4, 10), ids, -100)
    rows = {
        "feature_ids": torch.randint(4, 8, (4, 2)),
        "masked_feature_ids": torch.ones(4, 2, dtype=torch.long),
        "mtm_labels": torch.full((4, 2), 5),
    }

    def outputs(ids, mask, labels):
        first = joint(rows["feature_ids"], ids, mask).logits
        texts = {"input_ids": ids, "masked_input_ids": ids, "attention_mask": mask, "mlm_labels": labels}
        second = pretraining(**rows, **texts)
        return torch.cat([first[:, 0], *(second[f"{name}_loss"][None] for name in ("mlm", "mtm", "icl"))])

    expected = outputs(ids, mask, mlm_labels)
    other = torch.where(mask == 1, ids, torch.randint(5, 50, ids.shape))
    torch.testing.assert_close(outputs(other, mask, mlm_labels), expected, atol=1e-5, rtol=1e-5)
    wider = [
        torch.nn.functional.pad(tensor, (0, 5), value=v) for tensor, v in ((ids, 0), (mask, 0), (mlm_labels, -100))
    ]
    torch.testing.assert_close(outputs(*wider), expected, atol=1e-4, rtol=1e-4)
    # the text does matter where it is no padding
    changed = torch.where(torch.arange(10) == 2, ids % 40 + 7, ids)
    assert not torch.allclose(outputs(changed, mask, mlm_labels), expected, atol=1e-3)


def test_without_a_mask_all_tokens_count(processor, text_config, views):
    model = click_model(processor, text_config)
    row = {name: tensor[:1] for name, tensor in views.items()}
    length = int(row["attention_mask"].sum())
    short = {"feature_ids": row["feature_ids"], "input_ids": row["input_ids"][:, :length]}
    torch.testing.assert_close(model(**short).logits, model(**row).logits, atol=1e-5, rtol=1e-5)


def test_unseen_and_null_values_predict(processor, text_config):
    model = click_model(processor, text_config)
    rows = [dict.fromkeys(field.name for field in tiny.FIELDS), *tiny.toy_rows(1)]
    rows[0] |= {"title": "A title from the future 🚀"}
    rows.append(
        rows[1] | {"user_id": 999, "movie_id": 999, "zip_code": "99999", "age": 77, "genre": "Noir", "title": "New"}
    )
    inputs = processor([{k: v for k, v in row.items() if k != "label"} for row in rows])
    assert inputs["feature_ids"][0].tolist() == [3, 3, 3, 3, 2, 3] and (inputs["feature_ids"][2] == 2).all()
    logits = model(**inputs).logits
    assert logits.isfinite().all() and len(set(logits[:, 0].tolist())) == 3
