"""Convolutions with fewer multiplications: exact in theory, as near to the truth as torch's own in float32."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from controlnet import winograd
from controlnet.speed import QuickConv2d
from controlnet.winograd import INPUTS, OUTPUTS, convolve, matrices
from parity.reference import relative_error


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_products_at_points_are_what_the_taps_see_of_a_tile():
    to_points, taps_to_points, to_outputs = (matrix.double() for matrix in matrices())
    tile, taps = drawn(INPUTS, INPUTS).double(), drawn(3, 3).double()
    seen = to_outputs @ ((to_points @ tile.flatten()) * (taps_to_points @ taps.flatten()))
    wanted = conv2d(tile[None, None], taps[None, None])
    torch.testing.assert_close(seen.view(OUTPUTS, OUTPUTS), wanted[0, 0], rtol=1e-6, atol=1e-6)  # thirds are rounded


def test_tiles_at_their_points_and_outputs_of_them_are_not_rounded():
    """All but the taps' matrix are fractions of powers of two, of few digits."""
    for matrix in (matrices().to_points, matrices().to_outputs):
        assert torch.equal((matrix * 2**18).round(), matrix * 2**18)


@pytest.mark.parametrize("size", [(24, 24), (23, 25), (1, 7)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution_in_several_parts_too_and_laid_out_channels_last(
    size: tuple[int, int], layout: torch.memory_format, bias: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(winograd, "AT_ONCE", 36 * 64 * 37)  # 37 of 160 outputs, one row of tiles
    x = drawn(2, 64, *size).contiguous(memory_format=layout)
    weight, bias_o = drawn(160, 64, 3, 3).contiguous(memory_format=layout), drawn(160) if bias else None
    out = convolve(x, weight, bias_o)
    truth = conv2d(x.double(), weight.double(), bias_o.double() if bias else None, padding=1)
    assert relative_error(out.double(), truth) < 1e-6
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what is convolved so from now on."""
    shapes = []
    monkeypatch.setattr("controlnet.speed.convolve", lambda x, *rest: shapes.append(x.shape) or convolve(x, *rest))
    return shapes


def test_a_quick_convolution_of_many_positions_takes_it_and_one_of_few_does_not(calls: list[torch.Size]):
    layer = QuickConv2d(128, 128, 3, padding=1)
    with torch.no_grad():
        for shape in ((1, 128, 24, 24), (1, 128, 8, 8)):
            x = drawn(*shape)
            assert relative_error(layer(x).double(), nn.Conv2d.forward(layer, x).double()) < 2e-6
    assert calls == [(1, 128, 24, 24)]


def test_where_it_learns_or_computes_in_bfloat16_it_is_torchs_own(calls: list[torch.Size]):
    layer, x = QuickConv2d(128, 128, 3, padding=1), drawn(1, 128, 24, 24)
    layer(x).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    with torch.no_grad():
        layer.bfloat16()(x.bfloat16())
    assert not calls
