"""A hint may come in many forms; the network sees one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation.unit import Hint, Unit

RGB = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
EXPECTED = torch.from_numpy(RGB.astype(np.float32) / 255).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def control() -> ControlNet:
    return ControlNet.from_base(tiny.unet("sd1"))


@pytest.fixture(scope="module")
def edges() -> ControlNet:
    return ControlNet.from_base(tiny.unet("sd1"), hint_channels=1)


@pytest.mark.parametrize(
    "hint",
    [
        RGB,
        RGB.astype(np.float64) / 255,
        Image.fromarray(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        EXPECTED[0],
        EXPECTED,
        EXPECTED.double(),
    ],
    ids=["uint8", "float64", "PIL", "uint8 tensor", "chw", "nchw", "float64 tensor"],
)
def test_every_form_of_a_hint_becomes_the_same_pixels(control: ControlNet, hint: Hint):
    pixels = Unit(control, hint).pixels
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, EXPECTED, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_becomes_the_same_pixels(control: ControlNet, tmp_path: Path, kind: type):
    Image.fromarray(RGB).save(tmp_path / "ring.png")
    assert torch.equal(Unit(control, kind(tmp_path / "ring.png")).pixels, EXPECTED)


def test_a_grey_array_is_seen_in_as_many_channels_as_the_control_has(control: ControlNet, edges: ControlNet):
    grey = RGB[:, :, 0]
    assert torch.equal(Unit(control, grey).pixels, EXPECTED[:, :1].repeat(1, 3, 1, 1))
    assert torch.equal(Unit(edges, grey).pixels, EXPECTED[:, :1])


@pytest.mark.parametrize("hint", [EXPECTED * 2 - 1, EXPECTED * 255, EXPECTED * float("nan")])
def test_values_outside_zero_to_one_are_refused(control: ControlNet, hint: Hint):
    with pytest.raises(UserError, match="expected 0 to 1, or uint8"):
        _ = Unit(control, hint).pixels


@pytest.mark.parametrize("hint", [EXPECTED[:, :2], EXPECTED[None], EXPECTED[0, 0]], ids=["2 channels", "5d", "2d"])
def test_another_shape_is_refused(control: ControlNet, hint: Hint):
    with pytest.raises(UserError, match=r"this control expects \(pictures, 3 channels, H, W\)"):
        _ = Unit(control, hint).pixels


def test_some_pictures_of_a_call_have_their_own_hints_or_the_one_for_all(control: ControlNet):
    several = torch.arange(4).reshape(4, 1, 1, 1).expand(4, 3, 8, 8) / 4
    assert torch.equal(Unit(control, several).of([1, 3]).pixels, several[[1, 3]])
    one = Unit(control, several[0])
    assert one.of([1, 3]) is one
