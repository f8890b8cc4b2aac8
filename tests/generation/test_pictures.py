"""A picture may come in many forms and sizes; what becomes of it is one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from controlnet.errors import UserError
from controlnet.generation.pictures import RESIZES, Picture, Resize, fit, original_size, read, several, to_pictures

RGB = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
EXPECTED = torch.from_numpy(RGB.astype(np.float32) / 255).permute(2, 0, 1)


@pytest.mark.parametrize(
    "picture",
    [
        RGB,
        RGB.astype(np.float64) / 255,
        Image.fromarray(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        EXPECTED,
        EXPECTED.double(),
    ],
    ids=["uint8", "float64", "PIL", "uint8 tensor", "chw", "float64 tensor"],
)
def test_every_form_becomes_the_same_pixels(picture: Picture):
    pixels = read(picture)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, EXPECTED, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_becomes_the_same_pixels(tmp_path: Path, kind: type):
    Image.fromarray(RGB).save(tmp_path / "ring.png")
    assert torch.equal(read(kind(tmp_path / "ring.png")), EXPECTED)


def test_a_grey_array_is_seen_in_as_many_channels_as_asked_for():
    assert torch.equal(read(RGB[:, :, 0]), EXPECTED[:1].repeat(3, 1, 1))
    assert torch.equal(read(RGB[:, :, 0], channels=1), EXPECTED[:1])
    assert torch.equal(read(RGB[:, :, 0] > 127, channels=1), (EXPECTED[:1] > 0.5).float())


@pytest.mark.parametrize("picture", [EXPECTED * 2 - 1, EXPECTED * 255, EXPECTED * float("nan")])
def test_values_outside_zero_to_one_are_refused(picture: Picture):
    with pytest.raises(UserError, match="expected 0 to 1, or uint8"):
        read(picture)


@pytest.mark.parametrize("picture", [EXPECTED[:2], EXPECTED[None], EXPECTED[0]], ids=["2 channels", "4d", "2d"])
def test_another_shape_is_refused(picture: Picture):
    with pytest.raises(UserError, match=r"expected \(3 channels, H, W\)"):
        read(picture)


def test_several_are_a_list_or_a_tensor_of_four_dimensions():
    assert several(RGB) == [RGB]
    assert several("ring.png") == ["ring.png"]
    assert several([RGB, "ring.png"]) == [RGB, "ring.png"]
    assert [each.shape for each in several(torch.zeros(2, 3, 8, 8))] == [(3, 8, 8)] * 2


def test_pixels_become_the_picture_that_they_were():
    assert np.array_equal(to_pictures(EXPECTED[None])[0], RGB)


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((512, 512), 512, (512, 512)),
        ((333, 500), 512, (512, 768)),
        ((1000, 400), 256, (640, 256)),
        ((90, 90), 16, (64, 64)),
    ],
)
def test_the_originals_rule_brings_the_shorter_side_near_and_both_to_multiples_of_64(size, resolution, expected):
    assert original_size(size, resolution) == expected


@pytest.mark.parametrize("how", RESIZES)
def test_pixels_of_the_size_stay_as_they_are(how: Resize):
    assert torch.equal(fit(EXPECTED, (16, 24), how), EXPECTED)


SIDES = st.integers(8, 40)


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(RESIZES), st.booleans())
def test_every_way_gives_the_size_and_keeps_the_range(height, width, to_height, to_width, how, smooth):
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height + width))
    fitted = fit(pixels, (to_height, to_width), how, smooth)
    assert fitted.shape == (3, to_height, to_width)
    assert 0 <= fitted.min() <= fitted.max() <= 1


def halves() -> torch.Tensor:
    """Left black, right white, twice as wide as high."""
    pixels = torch.zeros(3, 16, 32)
    pixels[:, :, 16:] = 1
    return pixels


def test_crop_keeps_the_aspect_and_cuts_the_sides_around_the_centre():
    squares = torch.zeros(1, 16, 32)
    squares[:, :, 8:24] = 1
    assert fit(squares, (16, 16), "crop").min() == 1
    assert torch.equal(fit(squares, (32, 32), "crop"), torch.ones(1, 32, 32))


def test_stretch_keeps_all_and_not_the_aspect():
    assert torch.equal(fit(halves(), (16, 16), "stretch", smooth=False).mean((0, 1)).round(), halves()[0, 0, ::2])


def test_fill_keeps_all_at_its_aspect_between_bars_of_the_borders_median():
    pixels = torch.full((1, 16, 32), 0.25)
    pixels[:, 8, 16] = 1
    fitted = fit(pixels, (32, 32), "fill")
    assert torch.equal(fitted[:, 8:24], pixels)
    assert (fitted[:, :8] == 0.25).all()
    assert (fitted[:, 24:] == 0.25).all()


def test_the_frame_says_the_aspect_of_a_hint_that_was_stretched_a_little():
    stretched = fit(halves(), (64, 64), "stretch")
    assert torch.equal(
        fit(stretched, (64, 128), "crop", smooth=False, frame=(16, 32)), fit(halves(), (64, 128), "crop")
    )


def test_drawings_grow_without_new_colours_and_smooth_pictures_with_them():
    drawn = halves()
    assert set(fit(drawn, (40, 80), "crop").unique().tolist()) == {0, 1}
    smooth = torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))
    assert len(fit(smooth, (40, 80), "crop").unique()) > len(smooth.unique())


def test_thin_lines_survive_shrinking():
    line = torch.zeros(1, 64, 64)
    line[:, :, 13] = 1
    assert fit(line, (16, 16), "crop")[0, :, 2:5].sum(1).min() > 0.2
