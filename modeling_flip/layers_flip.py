# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Layers that ID towers and target attention are built from, and the matrix product under them."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig


def has_onednn() -> bool:
    """Whether oneDNN multiplies faster than MKL, to which torch gives products of float32 on a CPU: MKL leaves AVX-512
    unused on processors that are not Intel's (on a core of an EPYC 94 and 220 GFLOP/s). Its kernel is no public one of
    torch's, so it is tried: a checkpoint's code meets many versions."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    x, weight = torch.ones(2, 3, device="cpu"), torch.ones(4, 3, device="cpu")
    try:
        product = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return torch.equal(product, torch.full((2, 4), 3.0, device="cpu"))


HAS_ONEDNN = has_onednn()
LEAST_SIZE = 16  # rows, inputs and outputs of a product that is worth oneDNN's start
ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "tanh": torch.tanh}


class OneDNNLinear(torch.autograd.Function):
    """`activation(x W^T + b)` as one kernel: `(N, in)`, `(out, in)` and `(out,)` -> `(N, out)`."""

    @staticmethod
    def forward(ctx, x, weight, bias, activation):
        # what is cut out of a larger tensor is copied, the gradient below too: of a weight with gaps between its rows
        # oneDNN has the reference kernel alone, which takes some 1,000 times as long
        x, weight = x.contiguous(), weight.contiguous()
        output = _onednn_product(x, weight, bias, activation)
        ctx.activation, ctx.has_bias = activation, bias is not None
        ctx.save_for_backward(x, weight, None if activation == "none" else output)
        return output

    @staticmethod
    def backward(ctx, gradient):
        x, weight, output = ctx.saved_tensors
        gradient = gradient.contiguous()
        if ctx.activation == "relu":
            gradient = torch.ops.aten.threshold_backward(gradient, output, 0)
        elif ctx.activation == "tanh":
            gradient = torch.ops.aten.tanh_backward(gradient, output)
        # a second derivative is taken of torch's products: the kernel has none
        product = torch.nn.functional.linear if torch.is_grad_enabled() else _onednn_product
        of_x = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = product(gradient.t(), x.t()) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, gradient.sum(0) if ctx.has_bias else None, None


def _onednn_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "none"
) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: str = "none"
) -> torch.Tensor:
    """`activation(x W^T + b)`: `(..., in)`, `(out, in)` and `(out,)` -> `(..., out)`; `none`, `relu` or `tanh`."""
    if not _suits_onednn(x, weight):
        return ACTIVATIONS[activation](nn.functional.linear(x, weight, bias))
    if x.ndim == 2:
        return OneDNNLinear.apply(x, weight, bias, activation)
    return OneDNNLinear.apply(x.flatten(0, -2), weight, bias, activation).unflatten(0, x.shape[:-1])


def _suits_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if not HAS_ONEDNN or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        type(x) is torch.Tensor  # and no share of one, or one without values
        and type(weight) in (torch.Tensor, nn.Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and min(*weight.shape, x.shape[:-1].numel()) >= LEAST_SIZE
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


class TowerLinear(nn.Linear):
    """A linear layer initialised as CTR models are (Xavier): the 0.02 of language models lets a DNN's signal fade."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.xavier_normal_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, hidden: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """`(..., in)` -> `(..., out)`, after an activation: `none`, `relu` or `tanh`."""
        return linear(hidden, self.weight, self.bias, activation)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.zeros_(self.weight)
        init.zeros_(self.bias)


def log_odds(layer: nn.Linear, state: torch.Tensor) -> torch.Tensor:
    """What a linear click layer says of `(B, H)`, `(B, 1)`, in float32 whatever the precision: bf16 has steps of 1/64
    between 2 and 4, in which many rows would be level."""
    return (state.float() * layer.weight[0].float()).sum(-1, keepdim=True) + layer.bias.float()
