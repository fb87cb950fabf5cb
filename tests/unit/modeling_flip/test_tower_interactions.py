"""The ID towers against independent slow computations: loops over rows, fields and pairs, from the papers' formulas."""

import itertools
import math

import pytest
import tiny
import torch

from flip_ctr import FlipForCTR, IdTower
from flip_ctr.modeling_flip.id_tower import build_id_tower

SIZES = (7, 5, 9)
FEATURE_IDS = torch.tensor([[4, 4, 8], [6, 2, 1], [3, 4, 5]])
PAIRS = list(itertools.combinations(range(len(SIZES)), 2))


def tower(name: str, **kwargs) -> IdTower:
    config = tiny.flip_config(tiny.sized_fields(*SIZES), id_tower=name, id_tower_kwargs=kwargs)
    return tiny.shake(build_id_tower(config), 0.4).double()


def embeds_of(model: IdTower, table: str = "embeddings") -> torch.Tensor:
    """Field f's feature i lies at row (sizes before f) + i of the table."""
    weight = getattr(model, table).weight
    rows = [[weight[sum(SIZES[:f]) + int(i)] for f, i in enumerate(row)] for row in FEATURE_IDS]
    return torch.stack([torch.stack(row) for row in rows])


def relu(vector: torch.Tensor) -> torch.Tensor:
    return torch.clamp(vector, min=0)


def linear(layer, vector: torch.Tensor) -> torch.Tensor:
    """One unit after the other."""
    units = [sum(w * v for w, v in zip(weights, vector)) for weights in layer.weight]
    return torch.stack(units) + (0 if layer.bias is None else layer.bias)


def layers_of(dnn, hidden: torch.Tensor) -> torch.Tensor:
    """A DNN over rows of inputs."""
    for layer in dnn.layers:
        hidden = torch.stack([relu(linear(layer, row)) for row in hidden])
    return hidden


def deep_of(model: IdTower) -> torch.Tensor:
    return layers_of(model.dnn, embeds_of(model).flatten(1))


def normalised(values: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    mean = sum(values.flatten()) / values.numel()
    variance = sum((value - mean) ** 2 for value in values.flatten()) / values.numel()
    return (values - mean) / (variance + eps) ** 0.5


def check(model: IdTower, *parts: torch.Tensor) -> None:
    """`h_id` is these parts side by side."""
    expected = torch.cat(parts, dim=1)
    assert model.output_dim == expected.shape[1]
    torch.testing.assert_close(model(FEATURE_IDS), expected)


# --- single features and pairs


def test_lr_is_the_embeddings():
    model = tower("lr")
    check(model, *(embeds_of(model)[:, f] for f in range(len(SIZES))))


def test_lr_gives_each_feature_one_weight():
    """Of rows that differ in one field, the difference of the logits does not depend on the other fields."""
    model = tiny.shake(FlipForCTR(tiny.flip_config(tiny.sized_fields(*SIZES), id_tower="lr", strategy="id"))).eval()
    logits = model(torch.tensor([[4, 4, 8], [5, 4, 8], [4, 3, 6], [5, 3, 6]])).logits[:, 0]
    torch.testing.assert_close(logits[1] - logits[0], logits[3] - logits[2])


@pytest.mark.parametrize("name", ["fm", "deepfm"])
def test_fm_and_deepfm_sum_the_products_of_all_pairs(name):
    model = tower(name)
    embeds = embeds_of(model)
    check(model, sum(embeds[:, i] * embeds[:, j] for i, j in PAIRS), *([deep_of(model)] if name == "deepfm" else []))


def test_the_logit_of_fm_with_even_weights_is_the_papers():
    model = tiny.shake(FlipForCTR(tiny.flip_config(tiny.sized_fields(*SIZES), id_tower="fm", strategy="id"))).eval()
    torch.nn.init.ones_(model.id_classifier.weight)
    embeds = embeds_of(model.flip.id_tower)
    for b, row in enumerate(FEATURE_IDS.tolist()):
        expected = model.id_classifier.bias[0] + sum(
            model.first_order.weight[sum(SIZES[:f]) + i, 0] for f, i in enumerate(row)
        )
        expected = expected + sum(embeds[b, i] @ embeds[b, j] for i, j in PAIRS)
        torch.testing.assert_close(model(FEATURE_IDS).logits[b, 0], expected)


def test_afm_attends_over_the_pairs():
    model = tower("afm", attention_size=3)
    rows = []
    for fields in embeds_of(model):
        products = [fields[i] * fields[j] for i, j in PAIRS]
        scores = [torch.exp(linear(model.score, relu(linear(model.attention, product)))) for product in products]
        rows.append(sum(score / sum(scores) * product for score, product in zip(scores, products)))
    check(model, torch.stack(rows))
    assert tower("afm").attention.out_features == 4  # as an embedding


def test_widedeep_is_the_dnn_and_the_first_order_term_is_in_the_logit():
    model = tower("widedeep")
    check(model, deep_of(model))


@pytest.mark.parametrize("name", ["deepfm", "fm", "afm", "widedeep", "xdeepfm", "fibinet"])
def test_a_first_order_term_in_the_logit(name):
    model = tiny.shake(FlipForCTR(tiny.flip_config(tiny.sized_fields(*SIZES), id_tower=name, strategy="id"))).eval()
    logits = model(FEATURE_IDS).logits
    for b, row in enumerate(FEATURE_IDS.tolist()):
        weights = [model.first_order.weight[sum(SIZES[:f]) + i, 0] for f, i in enumerate(row)]
        expected = model.id_classifier(model.flip.id_tower(FEATURE_IDS[b : b + 1]))[0, 0] + sum(weights)
        torch.testing.assert_close(logits[b, 0], expected)


@pytest.mark.parametrize("products", ["inner", "outer", "both"])
def test_pnn_is_a_dnn_over_embeddings_and_products(products):
    model = tower("pnn", products=products)
    rows = []
    for fields in embeds_of(model):
        row = [fields.flatten()]
        if products != "outer":
            row.append(torch.stack([sum(a * b for a, b in zip(fields[i], fields[j])) for i, j in PAIRS]))
        if products != "inner":
            row.append(sum(torch.outer(one, other) for one in fields for other in fields).flatten())
        rows.append(torch.cat(row))
    check(model, layers_of(model.dnn, torch.stack(rows)))


@pytest.mark.parametrize("bilinear", ["all", "each", "interaction"])
def test_fibinet_is_a_dnn_over_bilinear_products(bilinear):
    model = tower("fibinet", bilinear=bilinear, reduction_ratio=1)

    def products(layer, fields):
        numbers = {"all": lambda p, i: 0, "each": lambda p, i: i, "interaction": lambda p, i: p}
        return [(fields[i] @ layer.weight[numbers[bilinear](p, i)]) * fields[j] for p, (i, j) in enumerate(PAIRS)]

    rows, different = [], False
    for fields in embeds_of(model):
        means = torch.stack([sum(field) / len(field) for field in fields])
        weights = relu(linear(model.senet.excite, relu(linear(model.senet.squeeze, means))))
        different |= bool((weights > 0).any())
        weighed = [weight * field for weight, field in zip(weights, fields)]
        rows.append(torch.cat([*products(model.bilinear, fields), *products(model.senet_bilinear, weighed)]))
    assert different
    check(model, layers_of(model.dnn, torch.stack(rows)))


# --- cross layers


def crossed(model: IdTower, step) -> torch.Tensor:
    """Rows through the cross layers, `step(layer, x0, x)` each."""
    rows = []
    for x0 in embeds_of(model).flatten(1):
        x = x0
        for layer in model.cross:
            x = step(layer, x0, x)
        rows.append(x)
    return torch.stack(rows)


def check_crossed(model: IdTower, structure: str, cross: torch.Tensor) -> None:
    if structure == "parallel":
        check(model, cross, deep_of(model))
    else:
        check(model, layers_of(model.dnn, cross))


def test_dcn_crosses_with_a_vector():
    model = tower("dcn", num_cross_layers=3)

    def step(layer, x0, x):
        product = sum(w * value for w, value in zip(layer.weight.weight[0], x))
        return torch.stack([x0[d] * product + layer.bias[d] + x[d] for d in range(len(x))])

    check_crossed(model, "parallel", crossed(model, step))


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcnv2_is_a_mixture_of_low_rank_cross_layers(structure):
    model = tower("dcnv2", num_cross_layers=3, low_rank=3, num_experts=2, structure=structure)

    def step(layer, x0, x):
        gates, mixed = (layer.gate.weight @ x).softmax(0), torch.zeros_like(x)
        for e in range(2):
            part = slice(e * 3, (e + 1) * 3)
            low = torch.tanh(layer.down[:, part].T @ x)  # V^T x
            low = torch.tanh(layer.core[e].T @ low)  # C
            mixed = mixed + gates[e] * x0 * (layer.up[part].T @ low + layer.bias)  # U, x0 *
        return x + mixed

    check_crossed(model, structure, crossed(model, step))


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcnv2_with_full_matrices(structure):
    model = tower("dcnv2", num_cross_layers=3, full_matrix=True, structure=structure)
    check_crossed(model, structure, crossed(model, lambda layer, x0, x: x0 * linear(layer.linear, x) + x))


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_gdcn_gates_its_cross_layers(structure):
    model = tower("gdcn", num_cross_layers=2, structure=structure)

    def step(layer, x0, x):
        gate = torch.stack([1 / (1 + torch.exp(-value)) for value in linear(layer.gate, x)])
        return x0 * linear(layer.linear, x) * gate + x

    check_crossed(model, structure, crossed(model, step))


def test_xdeepfm_compresses_products_with_the_embeddings():
    model = tower("xdeepfm", cin_sizes=[5, 3])
    rows = []
    for fields in embeds_of(model):
        maps, pooled = fields, []
        for layer in model.cin.layers:
            weights = layer.weight.unflatten(1, (len(maps), len(fields)))
            maps = torch.stack(
                [
                    sum(weight[i, j] * maps[i] * fields[j] for i in range(len(maps)) for j in range(len(fields)))
                    for weight in weights
                ]
            )
            pooled += [sum(one) for one in maps]
        rows.append(torch.stack(pooled))
    check(model, torch.stack(rows), deep_of(model))


# --- attention, logarithms, masks, streams


@pytest.mark.parametrize("use_dnn", [True, False])
def test_autoint_attends_over_the_fields(use_dnn):
    model = tower("autoint", num_layers=2, attention_size=4, num_heads=2, use_dnn=use_dnn)
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
    check(model, torch.stack(rows), *([deep_of(model)] if use_dnn else []))


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("use_dnn", [False, True])
def test_afn_raises_embeddings_to_learned_powers(norm, use_dnn):
    model = tower("afn", num_neurons=6, norm=norm, use_dnn=use_dnn)

    def norm_of(layer, values):
        """`(B, n, D)`: of each row and field alone, or of a field over the rows."""
        if norm == "batch":
            columns = [
                normalised(column) * weight + bias
                for column, weight, bias in zip(values.unbind(1), layer.weight, layer.bias)
            ]
            return torch.stack(columns, dim=1)
        return torch.stack(
            [torch.stack([normalised(one) * layer.weight + layer.bias for one in row]) for row in values]
        )

    layer = model.logarithmic
    logs = norm_of(layer.log_norm, torch.log(embeds_of(model).abs()))
    # a power of a product, of what the normalised logarithms are the logarithms of
    neurons = [
        [math.prod(torch.exp(value) ** power for value, power in zip(row, powers)) for powers in layer.powers.weight]
        for row in logs
    ]
    neurons = norm_of(layer.exp_norm, torch.stack([torch.stack(row) for row in neurons]))
    parts = [layers_of(model.neurons_dnn, neurons.flatten(1))]
    if use_dnn:  # AFN+: its DNN has a table of its own
        parts.append(layers_of(model.dnn, embeds_of(model, "deep_embeddings").flatten(1)))
    check(model, *parts)


def test_afn_takes_powers_of_the_embeddings_themselves():
    layer = tower("afn", num_neurons=6).logarithmic
    layer.log_norm = layer.exp_norm = torch.nn.Identity()
    embeds = torch.randn(2, 3, 4, dtype=torch.double)
    embeds[0, 0, 0] = 0.0  # its logarithm is that of the smallest value
    smallest = embeds.abs().clamp(min=1e-5)
    for j, powers in enumerate(layer.powers.weight):
        torch.testing.assert_close(layer(embeds)[:, j], math.prod(smallest[:, f] ** powers[f] for f in range(3)))


@pytest.mark.parametrize("structure", ["serial", "parallel"])
def test_masknet_masks_by_the_row(structure):
    kwargs = {"num_blocks": 2, "block_size": 5} if structure == "parallel" else {}
    config = tiny.flip_config(
        tiny.sized_fields(*SIZES),
        id_tower="masknet",
        id_hidden_dims=[6, 5],
        id_tower_kwargs={"structure": structure, "reduction_ratio": 0.5} | kwargs,
    )
    model = tiny.shake(build_id_tower(config), 0.4).double()
    assert [block.aggregate.out_features for block in model.blocks] == ([6, 6] if structure == "parallel" else [6, 3])

    def block_of(block, embeds, hidden):
        mask = linear(block.project, relu(linear(block.aggregate, embeds)))
        return relu(normalised(linear(block.hidden, mask * hidden)) * block.norm.weight + block.norm.bias)

    rows = []
    for fields in embeds_of(model):
        hidden = torch.cat([normalised(field) for field in fields]) * model.norm.weight + model.norm.bias
        if structure == "parallel":
            rows.append(torch.cat([block_of(block, fields.flatten(), hidden) for block in model.blocks]))
            continue
        for block in model.blocks:
            hidden = block_of(block, fields.flatten(), hidden)
        rows.append(hidden)
    rows = torch.stack(rows)
    check(model, layers_of(model.dnn, rows) if structure == "parallel" else rows)


def streams_of(model: IdTower, contexts) -> list[torch.Tensor]:
    """FinalMLP's two streams; `contexts`: positions of the fields whose embeddings each gate sees, None for its own
    vector."""
    outputs = []
    for gate, dnn, context in zip((model.first_gate, model.second_gate), (model.dnn, model.second_dnn), contexts):
        rows = []
        for fields in embeds_of(model):
            if gate is None:
                rows.append(fields.flatten())
                continue
            seen = gate.vector if context is None else torch.cat([fields[f] for f in context])
            weights = linear(gate.gate, relu(linear(gate.hidden, seen)))
            rows.append(torch.stack([2 / (1 + torch.exp(-w)) * e for w, e in zip(weights, fields.flatten())]))
        outputs.append(layers_of(dnn, torch.stack(rows)))
    return outputs


@pytest.mark.parametrize(
    ("kwargs", "contexts"),
    [
        ({"num_heads": 2}, (None, None)),
        ({"first_context": ["f0"], "second_context": ["f2", "f1"], "second_hidden_dims": [6, 4]}, ([0], [2, 1])),
        ({"feature_selection": False, "num_heads": 4}, (None, None)),
    ],
)
def test_finalmlp_fuses_two_streams(kwargs, contexts):
    model = tower("finalmlp", **kwargs)
    first, second = streams_of(model, contexts)
    heads = kwargs.get("num_heads", 1)
    a, b = first.shape[1] // heads, second.shape[1] // heads
    fused = [
        [
            sum(one[h * a + x] * model.fusion[h, x, y] for x in range(a)) * other[h * b + y]
            for h in range(heads)
            for y in range(b)
        ]
        for one, other in zip(first, second)
    ]
    check(model, first, second, torch.stack([torch.stack(row) for row in fused]))


def test_the_logit_of_finalmlp_with_even_weights_is_the_papers():
    config = tiny.flip_config(
        tiny.sized_fields(*SIZES), id_tower="finalmlp", id_tower_kwargs={"num_heads": 2}, strategy="id"
    )
    model = tiny.shake(FlipForCTR(config), 0.4).double().eval()
    model.id_classifier.weight.data[:, -8:] = 1.0
    first, second = streams_of(model.flip.id_tower, (None, None))
    weights, logits = model.id_classifier.weight[0], model(FEATURE_IDS).logits[:, 0].double()
    for one, other, logit in zip(first, second, logits):
        expected = model.id_classifier.bias[0] + weights[:8] @ one + weights[8:16] @ other
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            expected = expected + one[part] @ model.flip.id_tower.fusion[head] @ other[part]
        torch.testing.assert_close(logit, expected, rtol=1e-5, atol=1e-5)
