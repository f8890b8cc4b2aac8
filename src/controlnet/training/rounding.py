"""Mixed precision on a CPU in half the bytes: weights are rounded once a step, and their gradients stay rounded.

Autocast gives the gradient of a weight, which it computed in bfloat16, as float32: twice the bytes and no more bits.
As long as nothing is added to it, it can stay what it is until the optimizer takes it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call


class Rounded(torch.autograd.Function):
    """A weight in bfloat16, whose gradient is passed on as it comes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.to(torch.bfloat16)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def can_round(device: torch.device) -> bool:
    """Whether gradients may be less precise than their parameters here: since torch 2.10, and on a CPU that is asked to
    mix bfloat16 in."""
    mixes = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return device.type == "cpu" and mixes and hasattr(Tensor, "grad_dtype")


def with_rounded_weights(module: nn.Module, trained: Mapping[str, nn.Parameter]) -> Callable[..., Any]:
    """`module` as a function that hears its trained weights, by name, rounded; their gradients come in bfloat16."""
    weights = {name: each for name, each in trained.items() if each.ndim > 1}  # what autocast would round
    for weight in weights.values():
        weight.grad_dtype = torch.bfloat16  # since torch 2.10
    rounded = {name: Rounded.apply(weight) for name, weight in weights.items()}  # type: ignore[no-untyped-call]
    return lambda *arguments: functional_call(module, rounded, arguments)
