"""The matrix product of the ID towers: oneDNN's kernel against torch's in double precision."""

import pytest
import torch

from flip_ctr.modeling_flip import layers_flip
from flip_ctr.modeling_flip.layers_flip import ACTIVATIONS, TowerLinear, linear, log_odds

SHAPES = {"rows": (40, 24), "fields": (20, 3, 24), "few rows": (4, 24), "no rows": (0, 24)}


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch"])
def onednn(request, monkeypatch) -> bool:
    """Whether the kernel is used, which oneDNN has for older processors too."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(layers_flip, "HAS_ONEDNN", request.param)
    return request.param


def inputs(*shape: int, transposed: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(24, 32).t() if transposed else torch.randn(32, 24)
    return tuple(part.requires_grad_() for part in (torch.randn(shape), weight, torch.randn(32)))


def kernel_calls(monkeypatch) -> list:
    """Filled with an entry for each call of the kernel."""
    calls, apply = [], layers_flip.OneDNNLinear.apply
    monkeypatch.setattr(layers_flip.OneDNNLinear, "apply", lambda *args: calls.append(args) or apply(*args))
    return calls


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients(onednn, shape, monkeypatch):
    calls = kernel_calls(monkeypatch)
    for activation, function in ACTIVATIONS.items():
        for transposed, with_bias in ((False, True), (True, False)):
            parts = inputs(*SHAPES[shape], transposed=transposed)[: 2 + with_bias]
            output = linear(*parts, activation=activation)
            doubles = [part.detach().double().requires_grad_() for part in parts]
            expected = function(torch.nn.functional.linear(*doubles))
            torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
            found = torch.autograd.grad(output.square().sum(), parts)
            for ours, theirs in zip(found, torch.autograd.grad(expected.square().sum(), doubles)):
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)
    assert len(calls) == (6 if onednn and shape in ("rows", "fields") else 0)


def test_what_is_cut_out_of_a_larger_tensor_is_copied(onednn, monkeypatch):
    """oneDNN has only a reference kernel for a weight with gaps between its rows."""
    gaps, product = [], layers_flip._onednn_product

    def noted(x, weight, *args):
        gaps.extend(not (part.is_contiguous() or part.t().is_contiguous()) for part in (x, weight))
        return product(x, weight, *args)

    monkeypatch.setattr(layers_flip, "_onednn_product", noted)
    x, weight, gradient = torch.randn(40, 2, 24), torch.randn(32, 2, 24), torch.randn(40, 2, 32)
    parts = [part.requires_grad_() for part in (x[:, 1], weight[:, 1])]
    found = torch.autograd.grad(linear(*parts), parts, gradient[:, 1])
    for one, expected in zip(found, (gradient[:, 1] @ weight[:, 1], gradient[:, 1].t() @ x[:, 1])):
        torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-4)
    assert gaps == [False] * 6 * onednn


def test_a_second_derivative(onednn):
    def of(parts, function) -> torch.Tensor:
        """The gradient, by the weight, of the size of the gradient by the input."""
        (first,) = torch.autograd.grad(function(*parts).pow(3).sum(), parts[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), parts[1])[0]

    parts = inputs(40, 24)
    doubles = [part.detach().double().requires_grad_() for part in parts]
    expected = of(doubles, lambda *parts: torch.nn.functional.linear(*parts).tanh())
    torch.testing.assert_close(
        of(parts, lambda *p: linear(*p, activation="tanh")).double(), expected, rtol=1e-3, atol=1e-3
    )


def test_what_the_kernel_is_not_for(onednn, monkeypatch):
    """Autocast, transforms and graphs have torch's product, which knows them."""
    calls = kernel_calls(monkeypatch)
    layer, x = TowerLinear(24, 32), torch.randn(40, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x, "relu").dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    layer.float()
    rows = torch.func.vmap(layer)(x.expand(3, 40, 24))
    traced = torch.jit.trace(layer, x, check_trace=False)(x)  # the check computes it eagerly
    exported = torch.export.export(layer, (x,)).module()(x)
    assert not calls
    for output in (*rows, traced, exported):
        torch.testing.assert_close(output, layer(x))
    assert bool(calls) == onednn


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_log_odds_of_similar_rows_differ_in_every_precision(kind):
    """In bf16 200 numbers between 2 and 2.2 would be 14."""
    layer = TowerLinear(1, 1).to(kind)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.constant_(layer.bias, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        scores = log_odds(layer, torch.linspace(0, 0.2, 200)[:, None])
    assert scores.dtype == torch.float32 and len(scores.unique()) == 200
