"""The ID towers: what they share, their arguments, training, saving, and fields of several slots."""

import dataclasses
import re

import pytest
import tiny
import torch
from torch import nn

from flip_ctr import FlipForCTR, FlipForPretraining, IdTower, register_id_tower
from flip_ctr.modeling_flip.id_tower import ID_TOWERS, FeatureEmbedding, build_id_tower, own_arguments
from flip_ctr.modeling_flip.id_tower_dcnv2 import DCNv2
from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.loop.optimizer import feature_tables, use_sparse_tables
from flip_ctr.train.outputs.card import TOWERS

SIZES = (7, 5, 9)
FEATURE_IDS = torch.tensor([[4, 4, 8], [6, 2, 1], [3, 4, 5]])


def tower_config(form: str, fields=None, **settings):
    """Of a tower, or of another form of one."""
    name, kwargs = tiny.ALL_TOWERS[form]
    return tiny.flip_config(
        fields or tiny.sized_fields(*SIZES), id_tower=name, **{"id_tower_kwargs": kwargs, "strategy": "id"} | settings
    )


def test_every_tower_has_a_name_for_people_and_is_in_the_help():
    towers = set(ID_TOWERS) & set(tiny.TOWER_KWARGS)
    assert towers == set(tiny.TOWER_KWARGS) == set(TOWERS)
    text = next(field for field in dataclasses.fields(TrainingOptions) if field.name == "id_tower").metadata["help"]
    assert towers <= set(re.findall(r"\w+", text))


@pytest.mark.parametrize("form", tiny.ALL_TOWERS)
def test_initial_weights(form):
    config = tower_config(form, tiny.sized_fields(400, 400, 400), id_initializer_range=1e-4)
    model = FlipForCTR(config).flip.id_tower
    assert model.embeddings.weight.std().item() == pytest.approx(1e-4, rel=0.1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    matrices = [(name, parameter) for name, parameter in model.named_parameters() if parameter.ndim > 1]
    assert all(parameter.std() > 0 for _, parameter in matrices)  # none was left as it was made


@pytest.mark.parametrize("form", tiny.ALL_TOWERS)
def test_all_of_a_new_tower_learns(form):
    """No weight starts where it has no gradient, or where it keeps others from having one."""
    model = FlipForCTR(tower_config(form, tiny.sized_fields(9, 9, 9), id_hidden_dims=[16, 16]))
    model(torch.randint(0, 9, (64, 3)), labels=torch.arange(64) % 2).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0] == []


DEEP = {"dnn.layers.0.weight": (8, 12), "dnn.layers.0.bias": (8,)}
KEYS = {
    "deepfm": {},
    "dcnv2": {
        f"cross.{number}.{name}": shape
        for number in (0, 1)
        for name, shape in {
            "down": (12, 6),
            "core": (2, 3, 3),
            "up": (6, 12),
            "bias": (12,),
            "gate.weight": (2, 12),
        }.items()
    },
    "autoint": {
        f"attention.{number}.{name}.weight": (4, 4)
        for number in (0, 1)
        for name in ("query", "key", "value", "residual")
    },
}


@pytest.mark.parametrize("name", KEYS)
def test_names_of_weights_in_checkpoints(name):
    """Those of published checkpoints, which must go on loading."""
    state = FlipForCTR(tower_config(name)).flip.id_tower.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {"embeddings.weight": (21, 4)} | DEEP | KEYS[
        name
    ]


def test_feature_ids_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"must have the shape \(B, 3\), .* 3 slots of 3 ID-side fields; got \(3, 2\)"):
        FeatureEmbedding(list(SIZES), 4)(FEATURE_IDS[:, :2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id_tower": "bert"}, "`id_tower` must be one of afm, afn, autoint, dcn, .* xdeepfm; got 'bert'"),
        (
            {"id_tower_kwargs": {"depth": 3}},
            "'dcnv2' may hold num_cross_layers, low_rank, num_experts, full_matrix, structure; got depth",
        ),
        ({"id_tower": "widedeep", "id_tower_kwargs": {"deep": False}}, "'widedeep' may hold nothing; got deep"),
        ({"id_tower": "deepfm", "id_tower_kwargs": {"depth": 3}}, "'deepfm' may hold nothing; got depth"),
        ({"id_tower": "autoint", "id_tower_kwargs": {"attention_size": 5}}, "attention_size 5 is not a multiple"),
        *(
            ({"id_tower": name, "id_tower_kwargs": kwargs}, message)
            for name, kwargs, message in (
                ("autoint", {"num_layers": 0}, "AutoInt: `num_layers` must be a whole number of at least 1; got 0"),
                ("autoint", {"use_dnn": "no"}, "AutoInt: `use_dnn` must be true or false; got 'no'"),
                ("afm", {"attention_size": 0}, "AFM: `attention_size` must be a whole number"),
                ("pnn", {"products": "cross"}, "PNN: `products` must be one of 'inner', 'outer', 'both'; got 'cross'"),
                ("fibinet", {"bilinear": "none"}, "FiBiNET: `bilinear` must be one of 'all', 'each', 'interaction'"),
                ("fibinet", {"reduction_ratio": 0.5}, "FiBiNET: `reduction_ratio` must be a whole number"),
                ("dcn", {"num_cross_layers": 0}, "DCN: `num_cross_layers` must be a whole number"),
                ("dcn", {"structure": "stacked"}, "'dcn' may hold num_cross_layers; got structure"),
                ("dcnv2", {"low_rank": "32"}, "DCNv2: `low_rank` must be a whole number"),
                ("dcnv2", {"full_matrix": True, "low_rank": 8}, "DCNv2: `low_rank` is of low-rank experts"),
                (
                    "dcnv2",
                    {"structure": "serial"},
                    "DCNv2: `structure` must be one of 'parallel', 'stacked'; got 'serial'",
                ),
                ("gdcn", {"structure": "serial"}, "GDCN: `structure` must be one of 'parallel', 'stacked'"),
                ("xdeepfm", {"cin_sizes": []}, "xDeepFM: `cin_sizes` must be a list of at least one size"),
                ("xdeepfm", {"cin_sizes": [10, 0]}, "xDeepFM: `cin_sizes` must be a whole number of at least 1; got 0"),
                ("afn", {"norm": "none"}, "AFN: `norm` must be one of 'layer', 'batch'"),
                ("masknet", {"structure": "stacked"}, "MaskNet: `structure` must be one of 'serial', 'parallel'"),
                ("masknet", {"num_blocks": 2}, "MaskNet: `num_blocks` is of structure 'parallel'"),
                ("masknet", {"reduction_ratio": 0}, "MaskNet: `reduction_ratio` must be a number above 0; got 0"),
                ("finalmlp", {"num_heads": 3}, "FinalMLP: a stream's last size 8 is not a multiple of num_heads 3"),
                ("finalmlp", {"second_hidden_dims": 8}, "FinalMLP: `second_hidden_dims` must be a list"),
                (
                    "finalmlp",
                    {"first_context": ["user"]},
                    "FinalMLP: `first_context` must name fields of the ID side, f0, f1, f2; got 'user'",
                ),
                (
                    "finalmlp",
                    {"second_context": "f0"},
                    "FinalMLP: `second_context` must be a list of fields' names; got 'f0'",
                ),
                (
                    "finalmlp",
                    {"feature_selection": False, "gate_size": 8},
                    "FinalMLP: `gate_size` is of the feature selection",
                ),
            )
        ),
        *(
            ({"id_tower": name, "fields": tiny.sized_fields(7)}, "pairs of fields need at least 2 fields")
            for name in ("fm", "afm", "pnn", "fibinet")
        ),
        ({"fields": [{"name": "title", "sides": ["text"]}]}, "no field on the ID side"),
        ({"fields": [{"name": "title"}]}, "field 'title' has vocab_size None"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    fields = settings.pop("fields", tiny.sized_fields(*SIZES))
    with pytest.raises(ValueError, match=message):
        build_id_tower(tiny.flip_config(fields, **settings))


# --- training


def planted(form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows of three fields, and labels: by one field for LR, else by whether two fields agree, which is in no field
    alone."""
    values = torch.cartesian_prod(*(torch.arange(4, size) for size in (8, 8, 6)))
    first, second = values[:, 0] % 2, values[:, 1] % 2
    return values, first if form == "lr" else (first == second).long()


@pytest.mark.parametrize("form", tiny.ALL_TOWERS)
def test_every_tower_learns_what_it_can_express(form):
    values, labels = planted(form)
    model = FlipForCTR(
        tower_config(form, tiny.sized_fields(8, 8, 6), id_hidden_dims=[16, 8], id_embedding_size=8)
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    losses = []
    while len(losses) < 150 and (not losses or losses[-1] > 0.02):
        optimizer.zero_grad()
        loss = model(values, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6 and losses[-1] < 0.1
    assert torch.equal(model.eval()(values).logits[:, 0] > 0, labels == 1)


def test_lr_cannot_express_an_interaction():
    values, labels = planted("")
    model = FlipForCTR(tower_config("lr", tiny.sized_fields(8, 8, 6)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(values, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss > 0.69  # log 2: it has learned nothing


@pytest.mark.parametrize("form", tiny.ALL_TOWERS)
def test_every_parameter_has_a_gradient(form, text_config):
    """In all three objectives, and in clicks; with sparse tables too."""
    config = tower_config(form, text_config=text_config, strategy="joint", id_hidden_dims=[8, 8])
    views = {
        "feature_ids": FEATURE_IDS,
        "input_ids": torch.randint(5, 30, (3, 6)),
        "attention_mask": torch.ones(3, 6, dtype=torch.long),
    }
    masked = {
        "masked_feature_ids": FEATURE_IDS.roll(1, 0),
        "masked_input_ids": views["input_ids"],
        "mlm_labels": views["input_ids"],
        "mtm_labels": FEATURE_IDS.where(FEATURE_IDS > 3, -100),
    }
    for sparse in (False, True):
        clicks, pretraining = (tiny.shake(cls(config), 0.1).train() for cls in (FlipForCTR, FlipForPretraining))
        pretraining.set_feature_counts(torch.ones(sum(SIZES)))
        for model, batch in ((clicks, views | {"labels": torch.tensor([0, 1, 1])}), (pretraining, views | masked)):
            if sparse:
                use_sparse_tables(model)
            model(**batch).loss.backward()
            parameters = dict(model.named_parameters())
            assert [name for name, parameter in parameters.items() if parameter.grad is None] == []
            # (SENet's two relus may both be shut for so few rows)
            dense = [n for n in parameters if "id_tower" in n and "senet" not in n and not parameters[n].grad.is_sparse]
            assert all(parameters[name].grad.abs().sum() > 0 for name in dense)
            tables = [name for name in feature_tables(model) if "id_tower" in name]
            assert len(tables) == (2 if form == "afn+" else 1) and all(
                parameters[name].grad.is_sparse == sparse for name in tables
            )


@pytest.mark.parametrize("form", tiny.ALL_TOWERS)
def test_every_tower_runs_in_bf16(form):
    model = tiny.shake(FlipForCTR(tower_config(form)), 0.1).eval()
    expected = model(FEATURE_IDS).logits
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = (output := model(FEATURE_IDS, labels=torch.tensor([0, 1, 1]))).loss, output.logits
        loss.backward()
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_registered_tower_works_and_survives_saving(tmp_path):
    @register_id_tower("sum")
    class SumTower(IdTower):
        """The sum of the embeddings, scaled."""

        def __init__(self, config, factor: float = 1.0):
            super().__init__(config)
            self.factor, self.extra = factor, nn.Linear(2, 2)
            self.output_dim += self.embedding_size

        def interact(self, embeds):
            return self.factor * embeds.sum(1)

    try:
        config = tiny.flip_config(
            tiny.sized_fields(*SIZES), id_tower="sum", id_tower_kwargs={"factor": 3.0}, strategy="id"
        )
        model = tiny.shake(FlipForCTR(config)).eval()
        assert model.flip.id_tower.factor == 3.0
        model.save_pretrained(tmp_path)
        again = FlipForCTR.from_pretrained(tmp_path).eval()
        assert torch.equal(model(FEATURE_IDS).logits, again(FEATURE_IDS).logits)
    finally:
        del ID_TOWERS["sum"]


# --- fields of several slots

SLOTS = [3, 1, 1, 2]  # of four fields
SLOT_FIELDS = [0, 0, 0, 1, 2, 3, 3]
SLOT_IDS = torch.tensor([[4, 6, 5, 7, 4, 5, 0], [2, 0, 0, 3, 2, 6, 6], [4, 4, 0, 1, 1, 1, 1], [3, 0, 0, 4, 5, 0, 0]])


def slotted_fields(slots=SLOTS) -> list[dict]:
    kinds = [{"kind": "multi-valued", "max_values": number} if number > 1 else {} for number in slots]
    return [{"name": f"f{number}", "vocab_size": 8} | kind for number, kind in enumerate(kinds)]


def slow_mean(table: torch.Tensor, row: list[int], field: int, slots=SLOTS) -> torch.Tensor:
    """The mean of a field's embeddings, one slot after the other."""
    start = sum(slots[:field])
    real = [table[8 * field + one] for one in row[start : start + slots[field]] if one != 0]
    return sum(real) / len(real) if real else torch.zeros_like(table[0])


@pytest.mark.parametrize("slots", [SLOTS, [1, 3], [2, 2, 3], [1, 3, 1]])
def test_a_field_of_several_slots_is_the_mean_of_its_values(slots):
    fields = [number for number, count in enumerate(slots) for _ in range(count)]
    model = tiny.shake(FeatureEmbedding([8] * len(slots), 5, fields)).double()
    embeds = model(SLOT_IDS[:, : len(fields)])
    assert embeds.shape == (4, len(slots), 5)
    for b, row in enumerate(SLOT_IDS.tolist()):
        for field in range(len(slots)):
            torch.testing.assert_close(embeds[b, field], slow_mean(model.weight, row, field, slots))


def test_single_valued_fields_are_looked_up_and_nothing_else():
    plain, slotted = FeatureEmbedding([8] * 4, 5), FeatureEmbedding([8] * 4, 5, [0, 1, 2, 3])
    assert plain.offsets.tolist() == slotted.offsets.tolist() == [0, 8, 16, 24]
    assert list(plain.state_dict()) == ["weight"]
    assert torch.equal(
        plain(SLOT_IDS[:, :4]), torch.nn.functional.embedding(SLOT_IDS[:, :4] + plain.offsets, plain.weight)
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_pad_gets_no_gradient_and_values_share_theirs(sparse):
    model = FeatureEmbedding([8] * 4, 5, SLOT_FIELDS)
    model.sparse = sparse
    model(SLOT_IDS[:1]).sum().backward()
    gradient = model.weight.grad.to_dense()[:, 0]
    expected = {4: 1 / 3, 6: 1 / 3, 5: 1 / 3, 8 + 7: 1, 16 + 4: 1, 24 + 5: 1}
    assert gradient.tolist() == pytest.approx([expected.get(row, 0.0) for row in range(32)])


def test_the_first_order_term_is_the_mean_too():
    model = tiny.shake(FlipForCTR(tiny.flip_config(slotted_fields(), id_tower="deepfm", strategy="id"))).eval()
    logits = model(SLOT_IDS).logits
    for b, row in enumerate(SLOT_IDS.tolist()):
        first_order = sum(slow_mean(model.first_order.weight, row, field)[0] for field in range(4))
        torch.testing.assert_close(
            logits[b, 0], model.id_classifier(model.flip.id_tower(SLOT_IDS[b : b + 1]))[0, 0] + first_order
        )


@pytest.mark.parametrize("form", tiny.ALL_TOWERS)
def test_towers_see_fields_and_not_slots(tmp_path, form):
    """A field's values in another order, or further pad, are the same row; the tower is that of as many single-valued
    fields."""
    model = tiny.shake(FlipForCTR(tower_config(form, slotted_fields()))).eval()
    single = FlipForCTR(tower_config(form, tiny.sized_fields(8, 8, 8, 8)))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in single.state_dict().items()}
    expected = model(SLOT_IDS).logits
    torch.testing.assert_close(model(SLOT_IDS[:, [2, 0, 1, 3, 4, 6, 5]]).logits, expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(
        FlipForCTR.from_pretrained(tmp_path).eval()(SLOT_IDS).logits, expected
    )  # built on the meta device
    torch._dynamo.reset()  # its limit of compilations is of all towers together
    compiled = torch.compile(model.flip.id_tower, backend="eager", fullgraph=True)
    assert torch.equal(compiled(SLOT_IDS), model.flip.id_tower(SLOT_IDS))


def test_another_number_of_slots_is_refused():
    with pytest.raises(ValueError, match=r"must have the shape \(B, 7\), .* 7 slots of 4 ID-side fields; got \(4, 4\)"):
        FeatureEmbedding([8] * 4, 5, SLOT_FIELDS)(SLOT_IDS[:, :4])


def test_a_name_of_this_package_is_not_taken():
    with pytest.raises(
        ValueError, match="'dcnv2'.: this package has a tower of that name; choose another one for Mine"
    ):
        register_id_tower("dcnv2")(type("Mine", (IdTower,), {}))
    with pytest.raises(ValueError, match="must be a class that inherits from IdTower"):
        register_id_tower("mine")(object)
    assert "mine" not in ID_TOWERS and ID_TOWERS["dcnv2"].__name__ == "DCNv2"


def test_arguments_are_passed_on():
    class Gained(DCNv2):
        def __init__(self, config, gain: float = 1.0, **kwargs):
            super().__init__(config, **kwargs)
            self.gain = gain

    assert own_arguments(Gained) == ["gain", *own_arguments(DCNv2)] and "num_cross_layers" in own_arguments(DCNv2)


def test_a_wrong_size_is_named(id_processor, rows):
    class Wrong(IdTower):
        def interact(self, embeds):
            return embeds.sum(1)  # and `output_dim` does not count it

    register_id_tower("wrong")(Wrong)
    model = FlipForCTR(tiny.flip_config(id_processor.fields, strategy="id", id_tower="wrong"))
    ID_TOWERS.pop("wrong")
    with pytest.raises(ValueError, match="Wrong: h_id has the size 12, and its `output_dim` says 8"):
        model(**id_processor(rows))
