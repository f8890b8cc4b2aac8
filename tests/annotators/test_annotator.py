"""What every annotator is: options with ranges, hints of pictures in any form, and the original's resolution."""

import pickle
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from controlnet.annotators.annotator import Annotator, Meaning, Option, Range, options
from controlnet.annotators.canny import Canny
from controlnet.annotators.resolution import pixel_perfect, size_at, to_resolution, to_size
from controlnet.errors import UserError
from controlnet.images import Rgb, encode_png
from parity.annotators import original

NOISE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Dim(Annotator):
    """Darker."""

    meaning: ClassVar[Meaning] = Meaning("dim")

    by: Annotated[float, Range(0, 1, 0.1)] = 0.5
    """How much."""
    side: Literal["left", "right"] = "left"
    """Which half."""

    def annotate(self, picture: Rgb) -> Rgb:
        return (picture * self.by).astype(np.uint8)


def test_options_are_the_fields_with_their_ranges_choices_and_docstrings():
    resolution, by, side = options(Dim)
    assert by == Option("by", float, 0.5, Range(0, 1, 0.1), (), "How much.")
    assert (side.choices, side.default, side.help) == (("left", "right"), "left", "Which half.")
    assert (resolution.name, resolution.default) == ("detect_resolution", 512)
    assert "pixel perfect" in resolution.help


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"by": 1.5}, "dim: by is 1.5; expected a number from 0 to 1"),
        ({"by": "much"}, "by is 'much'"),
        ({"side": "top"}, "side is 'top'; expected one of: left, right"),
        ({"detect_resolution": 0.5}, "detect_resolution is 0.5; expected a whole number from 0 to 2048"),
        ({"detect_resolution": True}, "detect_resolution is True"),
        ({"by": 2, "side": "top"}, "by is 2.*side is 'top'"),
    ],
)
def test_values_out_of_range_are_user_errors_with_value_and_range(values, said):
    with pytest.raises(UserError, match=said):
        Dim(**values)


@given(st.floats(0, 1), st.integers(0, 2048))
def test_every_value_in_range_is_taken(by, resolution):
    assert Dim(by=by, detect_resolution=resolution).by == by


def test_a_file_its_bytes_an_image_and_an_array_give_the_same_hint(tmp_path):
    encode_png(NOISE, tmp_path / "noise.png")
    expected = Canny()(NOISE)
    for source in (tmp_path / "noise.png", (tmp_path / "noise.png").read_bytes(), Image.fromarray(NOISE)):
        assert np.array_equal(Canny()(source), expected)


def test_a_batch_of_several_sizes_gives_the_hints_one_by_one_in_order():
    pictures = [NOISE, NOISE[:, :30], NOISE[::-1], NOISE[:40]]
    for hint, picture in zip(Canny().batch(pictures), pictures, strict=True):
        assert np.array_equal(hint, Canny()(picture))


def test_no_picture_gives_no_hint():
    assert Canny().batch([]) == []


def test_an_annotator_travels_to_another_process():
    assert pickle.loads(pickle.dumps(Dim(by=0.25))) == Dim(by=0.25)


@pytest.mark.parametrize("resolution", [256, 320])
def test_pictures_are_resized_as_the_originals_are(resolution):
    assert np.array_equal(to_resolution(original("image"), resolution), original(f"resize.{resolution}"))


def test_a_picture_at_its_resolution_is_left_as_it_is():
    assert np.array_equal(to_resolution(original("image"), 512), original("image"))


@given(st.integers(1, 3000), st.floats(1, 16), st.booleans(), st.sampled_from([64, 512, 1000, 2048]))
def test_sides_become_multiples_of_64_near_the_resolution_and_keep_the_aspect(shorter, aspect, is_tall, resolution):
    longer = round(shorter * aspect)
    low, high = sorted(size_at(resolution, (shorter, longer) if is_tall else (longer, shorter)))
    assert low % 64 == high % 64 == 0
    assert abs(low - resolution) <= 32
    assert abs(high - resolution * longer / shorter) <= 32


def test_the_longer_side_of_an_extreme_strip_ends_at_sixteen_times_the_resolution():
    assert to_resolution(np.zeros((20, 7000, 3), np.uint8), 512).shape == (64, 8192, 3)
    assert to_resolution(np.zeros((1, 1, 3), np.uint8), 512).shape == (512, 512, 3)


@pytest.mark.parametrize(
    ("picture", "target", "fit", "resolution"),
    [
        ((1000, 500), (512, 512), "crop", 512),  # the shorter side fills the target
        ((1000, 500), (512, 512), "fill", 256),  # the longer side does
        ((500, 1000), (768, 512), "crop", 768),
        ((640, 640), (640, 640), "crop", 640),
    ],
)
def test_pixel_perfect_is_the_shorter_side_at_the_scale_of_the_target(picture, target, fit, resolution):
    # round(k min(w, h)), k the larger or the smaller of the sides' ratios
    assert pixel_perfect(picture, target, fit) == resolution


def test_a_detect_resolution_of_zero_looks_at_the_picture_as_it_is():
    assert np.array_equal(Dim(detect_resolution=0, by=1.0)(NOISE), NOISE)


def test_only_smooth_hints_get_new_values_when_they_are_resized():
    lines = Canny()(original("image"))
    assert set(np.unique(to_size(lines, (700, 900), is_smooth=False))) == {0, 255}
    assert len(np.unique(to_size(lines, (700, 900), is_smooth=True))) > 2
