"""Weights of locked layers in eight bits: int8 codes with a scale for each output channel, turned back when used.

A code is off by at most half a step, 1/254 of the channel's largest weight. Only the layer at work is ever whole.

Shapes: o output channels, ... what each of them sees.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

STEPS = 127  # codes are -127 to 127: symmetric, so that zero stays zero


class EightBitLinear(nn.Linear):
    """`weight` holds codes, so that names and shapes stay what they are."""

    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, decoded(self.weight, self.scale, x.dtype), self.bias)


class EightBitConv2d(nn.Conv2d):
    """Likewise."""

    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, decoded(self.weight, self.scale, x.dtype), self.bias)


KINDS: dict[type[nn.Module], Any] = {nn.Linear: EightBitLinear, nn.Conv2d: EightBitConv2d}


@torch.no_grad()
def store_in_eight_bits(module: nn.Module) -> None:
    """Every linear layer and convolution inside, for good; what it was is forgotten. Biases and norms stay whole."""
    for layer in module.modules():
        kind = KINDS.get(type(layer))
        if kind is not None:
            assert isinstance(layer.weight, nn.Parameter)
            codes, scale = encoded(layer.weight)
            layer.weight = nn.Parameter(codes, requires_grad=False)
            layer.register_buffer("scale", scale, persistent=False)
            layer.__class__ = kind


def encoded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes like the weight, int8, and the size of their steps (o, 1, ...) float32."""
    largest = weight.detach().flatten(1).abs().amax(1).float().clamp(min=torch.finfo(torch.float32).tiny)
    scale = (largest / STEPS).reshape(-1, *[1] * (weight.ndim - 1))
    return (weight.detach() / scale).round().to(torch.int8), scale


def decoded(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (o, ...) in `dtype`, as near as its codes are."""
    return (codes * scale).to(dtype)


def is_in_eight_bits(module: nn.Module) -> bool:
    return any(isinstance(layer, EightBitLinear | EightBitConv2d) for layer in module.modules())
