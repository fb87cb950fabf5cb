"""The ID towers against independent slow computations of their interactions."""

import itertools

import pytest
import tiny
import torch
from torch import nn

from flip_ctr import FlipForCTR, IdTower, register_id_tower
from flip_ctr.modeling_id_tower import ID_TOWERS, FeatureEmbedding, build_id_tower

SIZES = (7, 5, 9)
FEATURE_IDS = torch.tensor([[4, 4, 8], [6, 2, 1], [3, 4, 5]])


def tower(name: str, **kwargs) -> IdTower:
    config = tiny.flip_config(tiny.sized_fields(*SIZES), id_tower=name)
    config.id_tower_kwargs |= kwargs
    return tiny.shake(build_id_tower(config), 0.4).double()


def embeds_of(model: IdTower) -> torch.Tensor:
    """Field f's feature i lies at row (sizes before f) + i of the table."""
    rows = [[model.embeddings.weight[sum(SIZES[:f]) + int(i)] for f, i in enumerate(row)] for row in FEATURE_IDS]
    return torch.stack([torch.stack(row) for row in rows])


def deep_of(model: IdTower) -> torch.Tensor:
    hidden = embeds_of(model).flatten(1)
    for layer in model.dnn.layers:
        hidden = torch.clamp(hidden @ layer.weight.T + layer.bias, min=0)
    return hidden


def check(model: IdTower, interaction: torch.Tensor) -> None:
    expected = torch.cat([interaction, deep_of(model)], dim=1)
    assert model.output_dim == expected.shape[1]
    torch.testing.assert_close(model(FEATURE_IDS), expected)


def test_deepfm_sums_the_products_of_all_pairs():
    model = tower("deepfm")
    embeds = embeds_of(model)
    pairs = itertools.combinations(range(len(SIZES)), 2)
    check(model, sum(embeds[:, i] * embeds[:, j] for i, j in pairs))


def test_deepfm_adds_a_first_order_term_to_the_logit():
    model = tiny.shake(FlipForCTR(tiny.flip_config(tiny.sized_fields(*SIZES), id_tower="deepfm", strategy="id"))).eval()
    logits = model(FEATURE_IDS).logits
    for b, row in enumerate(FEATURE_IDS.tolist()):
        weights = [model.first_order.weight[sum(SIZES[:f]) + i, 0] for f, i in enumerate(row)]
        expected = model.id_classifier(model.flip.id_tower(FEATURE_IDS[b : b + 1]))[0, 0] + sum(weights)
        torch.testing.assert_close(logits[b, 0], expected)


def test_dcnv2_is_a_mixture_of_low_rank_cross_layers():
    model = tower("dcnv2", num_cross_layers=3)
    x0 = embeds_of(model).flatten(1)
    rows = []
    for row in x0:
        x = row
        for layer in model.cross:
            experts, rank, _ = layer.core.shape
            gates = (layer.gate.weight @ x).softmax(0)
            mixed = torch.zeros_like(x)
            for e in range(experts):
                part = slice(e * rank, (e + 1) * rank)
                low = torch.tanh(layer.down[:, part].T @ x)  # V^T x
                low = torch.tanh(layer.core[e].T @ low)  # C
                mixed = mixed + gates[e] * row * (layer.up[part].T @ low + layer.bias)  # U, x0 *
            x = x + mixed
        rows.append(x)
    check(model, torch.stack(rows))


def test_autoint_attends_over_the_fields():
    model = tower("autoint", num_heads=2)
    rows = []
    for fields in embeds_of(model):
        for layer in model.attention:
            query, key, value = (fields @ part.weight.T for part in (layer.query, layer.key, layer.value))
            size = query.shape[1] // 2
            attended = []
            for f in range(len(fields)):
                heads = []
                for head in (slice(0, size), slice(size, 2 * size)):
                    scores = torch.stack([query[f, head] @ key[g, head] / size**0.5 for g in range(len(fields))])
                    heads.append(sum(weight * value[g, head] for g, weight in enumerate(scores.softmax(0))))
                attended.append(torch.cat(heads))
            fields = torch.clamp(torch.stack(attended) + fields @ layer.residual.weight.T, min=0)
        rows.append(fields.flatten())
    check(model, torch.stack(rows))


@pytest.mark.parametrize("name", ["dcnv2", "deepfm", "autoint"])
def test_initial_weights(name):
    config = tiny.flip_config(tiny.sized_fields(400, 400), id_tower=name, strategy="id", id_initializer_range=1e-4)
    model = FlipForCTR(config).flip.id_tower
    assert model.embeddings.weight.std().item() == pytest.approx(1e-4, rel=0.1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_feature_ids_of_another_width_are_refused():
    with pytest.raises(ValueError, match="2 columns, the model has 3 slots of 3 ID-side fields"):
        FeatureEmbedding(list(SIZES), 4)(FEATURE_IDS[:, :2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id_tower": "xdeepfm"}, "`id_tower` must be one of autoint, dcnv2, deepfm.*'xdeepfm'"),
        ({"id_tower_kwargs": {"depth": 3}}, "'dcnv2' may hold num_cross_layers, low_rank, num_experts; got depth"),
        ({"id_tower": "deepfm", "id_tower_kwargs": {"depth": 3}}, "'deepfm' may hold nothing; got depth"),
        ({"id_tower": "autoint", "id_tower_kwargs": {"attention_size": 5}}, "attention_size 5 is not a multiple"),
        ({"fields": [{"name": "title", "sides": ["text"]}]}, "no field on the ID side"),
        ({"fields": [{"name": "title"}]}, "field 'title' has vocab_size None"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    fields = settings.pop("fields", tiny.sized_fields(*SIZES))
    with pytest.raises(ValueError, match=message):
        build_id_tower(tiny.flip_config(fields, **settings))


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
        config = tiny.flip_config(tiny.sized_fields(*SIZES), id_tower="sum", id_tower_kwargs={"factor": 3.0}, strategy="id")
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
    assert torch.equal(plain(SLOT_IDS[:, :4]), torch.nn.functional.embedding(SLOT_IDS[:, :4] + plain.offsets, plain.weight))


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
        torch.testing.assert_close(logits[b, 0], model.id_classifier(model.flip.id_tower(SLOT_IDS[b : b + 1]))[0, 0] + first_order)


@pytest.mark.parametrize("name", ["dcnv2", "deepfm", "autoint"])
def test_towers_see_fields_and_not_slots(tmp_path, name):
    """A field's values in another order, or further pad, are the same row; the tower is that of as many single-valued fields."""
    model = tiny.shake(FlipForCTR(tiny.flip_config(slotted_fields(), id_tower=name, strategy="id"))).eval()
    single = FlipForCTR(tiny.flip_config(tiny.sized_fields(8, 8, 8, 8), id_tower=name, strategy="id"))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in single.state_dict().items()}
    expected = model(SLOT_IDS).logits
    torch.testing.assert_close(model(SLOT_IDS[:, [2, 0, 1, 3, 4, 6, 5]]).logits, expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(FlipForCTR.from_pretrained(tmp_path).eval()(SLOT_IDS).logits, expected)  # built on the meta device
    compiled = torch.compile(model.flip.id_tower, backend="eager", fullgraph=True)
    assert torch.equal(compiled(SLOT_IDS), model.flip.id_tower(SLOT_IDS))


def test_another_number_of_slots_is_refused():
    with pytest.raises(ValueError, match="feature_ids has 4 columns, the model has 7 slots of 4 ID-side fields"):
        FeatureEmbedding([8] * 4, 5, SLOT_FIELDS)(SLOT_IDS[:, :4])
