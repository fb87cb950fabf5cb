"""Every setting has a type and a range: a new one without a rule fails here."""

import inspect
import json
import math

import numpy as np
import pytest
import tiny

from flip_ctr import FlipConfig, FlipField, FlipForCTR, FlipForPretraining, FlipModel
from flip_ctr.modeling_flip import configuration_flip, fields_flip
from flip_ctr.modeling_flip.id_tower import ID_TOWERS, own_arguments

HUGE = 10**30
# what no setting of a type takes; those that are optional take None, and text may be any
WRONG = {
    bool: ["no", 1, 0, [True]],
    int: [math.nan, math.inf, 1.5, "3", True, [3], -1, HUGE, np.float32(2.5), np.bool_(True)],
    float: [math.nan, math.inf, -math.inf, "0.1", True, [0.1], -1.0, HUGE * 10, 10**400, np.float32("nan"), np.inf],
    str: [3, ["a"], b"x", 1.5, True],
    dict: [3, [], "x", {3: 3}],
}
MANY = [[], [[3]], "ab", 3, [None]]


def wrong_of(allowed: fields_flip.Allowed) -> list:
    one = WRONG[allowed.kind] + [HUGE] * (allowed.kind is int) + ["nothing"] * (len(allowed.choices) > 0)
    one += [""] * (allowed.kind is str and (not allowed.empty or len(allowed.choices) > 0))
    one += [None] * (not allowed.optional)
    return one if not allowed.many else MANY + [[value] for value in one]


def settings_of(cls) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}


def test_every_setting_of_a_configuration_has_a_rule():
    assert settings_of(FlipConfig) == set(configuration_flip.SETTINGS) | {"text_config", "fields"}
    assert settings_of(FlipField) == set(fields_flip.SETTINGS) | {"name", "null_values"}


DEFAULTED = ("id_hidden_dims", "id_tower_kwargs", "icl_temperature")  # None: what then holds is decided


@pytest.mark.parametrize("name", configuration_flip.SETTINGS)
def test_a_wrong_setting_is_named(name):
    for value in wrong_of(configuration_flip.SETTINGS[name]):
        if value is None and name in DEFAULTED:
            continue
        with pytest.raises(ValueError, match=f"FlipConfig: `{name}` must be"):
            FlipConfig(fields=tiny.sized_fields(9), **{name: value})
        config = FlipConfig(fields=tiny.sized_fields(9), strategy="id")
        setattr(config, name, value)  # which says nothing, as in all configurations
        for model in (FlipForCTR, FlipModel, FlipForPretraining):
            with pytest.raises(ValueError, match=f"FlipConfig: `{name}` must be"):
                model(config)


@pytest.mark.parametrize("name", [*fields_flip.SETTINGS, "name", "null_values"])
def test_a_wrong_attribute_of_a_field_is_named(name):
    kind = {"max_values": "multi-valued", "num_buckets": "hashed"}.get(name, "categorical")
    if name in fields_flip.SETTINGS:
        wrong = wrong_of(fields_flip.SETTINGS[name])
    else:
        wrong = [3, None, b"x", True] + ([""] if name == "name" else ["NULL", [3], [None]])
    for value in wrong:
        with pytest.raises(ValueError, match=f"`{name}`" if name != "name" else "needs the name of its column"):
            FlipField(**{"name": "a", "kind": kind} | {name: value})
        with pytest.raises(ValueError):
            FlipConfig(fields=[{"name": "a", "kind": kind} | {name: value}])


def test_sizes_are_refused_before_memory_is_asked_for():
    for name in ("id_embedding_size", "projection_dim", "mtm_embedding_size", "mtm_num_noise"):
        with pytest.raises(ValueError, match=f"`{name}` must be at most [0-9,]*; got 1000000000"):
            FlipConfig(**{name: 10**9})
    with pytest.raises(ValueError, match=r"`id_hidden_dims` must be at most 65,536; got \[1000000000\]"):
        FlipConfig(id_hidden_dims=[10**9])
    with pytest.raises(ValueError, match="field 'a': `vocab_size` must be at most 2,147,483,647; got 10000000000"):
        FlipConfig(fields=[{"name": "a", "vocab_size": 10**10}])


def test_numbers_of_numpy_are_numbers():
    settings = {"id_embedding_size": np.int64(8), "id_dropout": np.float32(0.5), "id_hidden_dims": np.array([8, 4])}
    settings |= {"tie_word_embeddings": np.bool_(True), "strategy": np.str_("id"), "mlm_weight": np.float64(2)}
    field = {"name": "a", "vocab_size": np.int32(9), "max_tokens": np.uint8(4), "key": np.bool_(True)}
    config = FlipConfig(
        fields=[field], id_tower_kwargs={"low_rank": np.int64(2), "num_experts": np.int8(1)}, **settings
    )
    assert config.id_hidden_dims == [8, 4] and type(config.id_embedding_size) is int and config.id_dropout == 0.5
    saved = json.loads(config.to_json_string(use_diff=False))
    assert saved["fields"][0]["vocab_size"] == 9 and saved["id_tower_kwargs"] == {"low_rank": 2, "num_experts": 1}
    assert FlipForCTR(config).id_classifier is not None


@pytest.mark.parametrize(
    "text",
    [
        3,
        "bert",
        {"hidden_size": 8},
        {"model_type": 3},
        {"model_type": "flip"},
        {"model_type": "bert", "hidden_size": -3},
        {"model_type": "bert", "hidden_size": "x"},
        {"model_type": "bert", "vocab_size": 0},
        {"model_type": "bert", "num_hidden_layers": math.nan},
        {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3},
    ],
)
def test_a_plm_that_cannot_be_is_named(text):
    with pytest.raises(ValueError, match="`text_config`"):
        FlipForCTR(FlipConfig(text, fields=tiny.sized_fields(9), strategy="plm"))


# what a tower's arguments take of these, beside what is wrong for all of them
TRIED = [math.nan, math.inf, -1, 0, 1.5, "x", True, None, [], [0], {}, [3], ["f0"], [1.5], ["zz"], 10**9]
FLAGS = {"use_dnn", "full_matrix", "feature_selection"}
RIGHT = {"cin_sizes": [[3]], "second_hidden_dims": [[3]], "reduction_ratio": [1.5]}
RIGHT |= {"first_context": [["f0"]], "second_context": [["f0"]]} | {name: [True] for name in FLAGS}


@pytest.mark.parametrize("tower", sorted(tiny.TOWER_KWARGS))
def test_wrong_arguments_of_a_tower_are_named(tower):
    for name in own_arguments(ID_TOWERS[tower]):
        for value in TRIED:
            if value is None or value in RIGHT.get(name, []):  # None is a default of some
                continue
            config = tiny.flip_config(tiny.sized_fields(9, 9, 9, 9), strategy="id", id_tower=tower)
            config.id_tower_kwargs = {name: value}
            with pytest.raises(ValueError, match=name):
                FlipForCTR(config)
