"""Convolutions of few positions with gradients, as matrix products: the same numbers, but for rounding, sooner.

At 8x8 positions and fewer torch spends most of its time on putting the weights in another order, three times in a step:
forward, for the input's gradient and for the weights'. Weights that are channels last are a matrix as they lie.

Shapes: b batch, c channels, o channels of the output, h w size, n positions of the output (b h w), k taps.
"""

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from controlnet.devices import has_fast_bfloat16
from controlnet.speed import QuickConv2d, as_matrix, neighbours, times_large, turn_convolutions

FEW = 128  # positions: up to two pictures of 8x8; a forward pass of four is no faster than torch's
# the output has more channels than this times its positions: with fewer, torch's own way is as fast
CHANNELS = {torch.float32: 1, torch.bfloat16: 8}


def quicken(*models: nn.Module) -> None:
    """Let the models' convolutions be as quick as they can, with gradients and without."""
    turn_convolutions(TrainedConv2d, *models)


class TrainedConv2d(QuickConv2d):
    """A convolution that is a matrix product, in both directions, where it has few positions.

    On a CPU alone, in float32 or in bfloat16 where that is fast; elsewhere it is torch's, or, without gradients, the
    quick one.
    """

    def forward(self, input: Tensor) -> Tensor:
        is_mixed = torch.is_autocast_enabled("cpu")
        precision = torch.get_autocast_dtype("cpu") if is_mixed else input.dtype
        if not (self._suits(input, precision) and (is_mixed or self.weight.dtype == precision)):
            return super().forward(input)  # where gradients are wanted that is torch's own
        bias = None if self.bias is None else self.bias.to(precision)
        out_bohw: Tensor = Product.apply(input.to(precision), self.weight.to(precision), bias, self.stride[0])  # type: ignore[no-untyped-call]
        return out_bohw

    def _suits(self, x_bchw: Tensor, precision: torch.dtype) -> bool:
        positions = x_bchw.numel() // (x_bchw.shape[1] * self.stride[0] * self.stride[1])
        return (
            x_bchw.device.type == "cpu"
            and (precision == torch.float32 or (precision == torch.bfloat16 and has_fast_bfloat16(x_bchw.device)))
            and not torch.compiler.is_compiling()
            and positions <= FEW
            and positions * CHANNELS[precision] < self.out_channels
            and self.kernel_size == (3, 3)
            and self.padding == self.dilation == (1, 1)
            and self.stride[0] == self.stride[1]
            and self.groups == 1
            and self.padding_mode == "zeros"
        )


class Product(torch.autograd.Function):
    """The convolution of 3x3 taps with a frame of one zero; gradients are computed of what wants them alone."""

    @staticmethod
    def forward(ctx: Any, x_bchw: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.stride, ctx.shape = stride, x_bchw.shape
        ctx.save_for_backward(x_bchw if weight.requires_grad else None, weight)
        around_bhwkc = neighbours(x_bchw, stride)
        weight_ok = as_matrix(weight)
        out_no = times_large(around_bhwkc.reshape(-1, weight_ok.shape[1]), weight_ok, bias)
        return out_no.view(*around_bhwkc.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_bohw: Tensor) -> tuple[Tensor | None, ...]:
        x_bchw, weight = ctx.saved_tensors
        gradient_bhwo = gradient_bohw.permute(0, 2, 3, 1)
        gradient_no = gradient_bhwo.reshape(-1, gradient_bhwo.shape[-1])
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            around_nk = gradient_no @ as_matrix(weight)
            of_x = add_up(around_nk.view(*gradient_bhwo.shape[:3], 3, 3, -1), ctx.shape, ctx.stride)
        if ctx.needs_input_grad[1]:
            around_nk = neighbours(x_bchw, ctx.stride).reshape(len(gradient_no), -1)
            of_weight = (gradient_no.T @ around_nk).view(weight.shape[0], 3, 3, -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            of_bias = gradient_no.sum(0)
        return of_x, of_weight, of_bias, None


def add_up(around_bhwkkc: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """Transpose of `neighbours`: what the taps say of each position, added up to the input's shape (b, c, h, w)."""
    batch, channels, height, width = shape
    out_height, out_width = around_bhwkkc.shape[1:3]
    framed_bhwc = around_bhwkkc.new_zeros(batch, height + 2, width + 2, channels)
    for row, column in product(range(3), repeat=2):
        seen_bhwc = framed_bhwc[:, row::stride, column::stride][:, :out_height, :out_width]
        seen_bhwc += around_bhwkkc[:, :, :, row, column]
    return framed_bhwc[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
