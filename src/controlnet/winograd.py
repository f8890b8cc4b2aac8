"""A convolution of 3x3 taps with a quarter of its multiplications, as matrix products.

Six inputs in a row and three taps are polynomials, whose product is known by its values at six points; four outputs are
read off those values (Winograd's F(4, 3), in both directions F(4x4, 3x3): Lavin and Gray, "Fast algorithms for
convolutional neural networks", 2016). So a tile of 4x4 outputs takes 36 products for each pair of channels in place of
144, and the ways to the points and back are small products themselves.

Shapes: b batch, c channels of the input, o of the output, h w size, y x rows and columns of tiles, i j a place in a
tile, n all tiles, p points, k taps.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.polynomial import polynomial
from torch import Tensor
from torch.nn.functional import pad

TAPS, OUTPUTS = 3, 4
INPUTS = OUTPUTS + TAPS - 1
# and infinity. In float32 SD 1.5's convolutions are off by 0.8 to 0.9e-6 of their norm with these, by 2.6 to 2.9e-6
# with the customary 0, 1, -1, 2, -2, and by 0.6 to 1.9e-6 computed directly; found by trying pairs of small fractions
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
AT_ONCE = 2**23  # values of tiles, or of taps, at their points: 32 MiB; all at once are a sixteenth sooner


def convolve(x_bchw: Tensor, weight_ochw: Tensor, bias_o: Tensor | None) -> Tensor:
    """`conv2d(x, weight, bias, padding=1)` in float32 (b, o, h, w), channels last."""
    batch, channels, height, width = x_bchw.shape
    outputs = len(weight_ochw)
    if bias_o is None:
        bias_o = x_bchw.new_zeros(outputs)
    rows, columns = -(-height // OUTPUTS), -(-width // OUTPUTS)
    some_rows = max(1, AT_ONCE // (INPUTS**2 * batch * columns * max(channels, outputs)))
    some_outputs = max(1, AT_ONCE // (INPUTS**2 * channels))
    _, taps_to_points, to_outputs = matrices()
    out_byixjo = x_bchw.new_empty(batch, rows, OUTPUTS, columns, OUTPUTS, outputs)
    for first, out in zip(range(0, rows, some_rows), torch.split(out_byixjo, some_rows, 1), strict=True):
        tiles_pnc = _at_points(x_bchw, first, first + out.shape[1])
        for start in range(0, outputs, some_outputs):
            some = slice(start, start + some_outputs)
            taps_okc = weight_ochw[some].permute(0, 2, 3, 1).flatten(1, 2)
            seen_pno = tiles_pnc @ (taps_to_points @ taps_okc).permute(1, 2, 0)
            by_rows_npo = seen_pno.view(INPUTS**2, batch * out.shape[1], -1).transpose(0, 1)  # a third faster so
            seen_byijxo = (to_outputs @ by_rows_npo).view(batch, -1, OUTPUTS, OUTPUTS, columns, len(taps_okc))
            torch.add(seen_byijxo.permute(0, 1, 2, 4, 3, 5), bias_o[some], out=out[..., some])
    out_bhwo = out_byixjo.flatten(3, 4).flatten(1, 2)[:, :height, :width].contiguous()
    return out_bhwo.permute(0, 3, 1, 2)


def _at_points(x_bchw: Tensor, first: int, last: int) -> Tensor:
    """Rows of tiles of 6x6 inputs, four apart and with zeros where the picture ends, at their points (p, n, c)."""
    height, width = x_bchw.shape[2:]
    top, below = first * OUTPUTS - 1, last * OUTPUTS + 1
    seen_bhwc = x_bchw[:, :, max(top, 0) : below].permute(0, 2, 3, 1)
    frame = (0, 0, 1, 1 + -width % OUTPUTS, max(-top, 0), max(below - height, 0))
    framed_bhwc = pad(seen_bhwc, frame).contiguous()
    tiles_byxcij = framed_bhwc.unfold(1, INPUTS, OUTPUTS).unfold(2, INPUTS, OUTPUTS)
    tiles_pm = tiles_byxcij.permute(4, 5, 0, 1, 2, 3).reshape(INPUTS**2, -1)
    return (matrices().to_points @ tiles_pm).view(INPUTS**2, -1, x_bchw.shape[1])


class Matrices(NamedTuple):
    """What leads a tile and the taps to their values at all pairs of points, and from products there to outputs."""

    to_points: Tensor  # (p, i j) of inputs
    taps_to_points: Tensor  # (p, k)
    to_outputs: Tensor  # (i j, p) of outputs


@cache
def matrices() -> Matrices:
    """In float32, for both directions at once."""
    others = [[point for point in POINTS if point != own] for own in POINTS]
    # transposed Toom-Cook: outputs are what the taps times a polynomial would be asked for, tiles its answer
    tiles = np.array([[*polynomial.polyfromroots(other), 0.0] for other in others] + [polynomial.polyfromroots(POINTS)])
    scales = np.array([np.prod(own - np.array(other)) for own, other in zip(POINTS, others, strict=True)])
    taps = np.vstack([np.vander(POINTS, TAPS, increasing=True) / scales[:, None], np.eye(TAPS)[-1:]])
    outputs = np.vstack([np.vander(POINTS, OUTPUTS, increasing=True), np.eye(OUTPUTS)[-1:]]).T
    with torch.inference_mode(False):  # kept, and so for what comes later, too
        return Matrices(*(torch.from_numpy(np.kron(each, each)).float() for each in (tiles, taps, outputs)))
