"""What holds for every annotator that needs no weights, whatever the picture."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from controlnet import images
from controlnet.annotators.annotator import NetworkAnnotator
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.images import four_channels, three_channels
from parity.annotators import original

PICTURE = original("resize.256")
DRAWINGS = {"canny", "scribble_xdog", "lines", "lineart_standard"}  # of which a picture of one colour has none
COLOURS = {"shuffle", "tile", "inpaint", "none"}  # whose hints have the picture's own
CONDITIONS = [condition for condition in ANNOTATORS if not issubclass(load(condition), NetworkAnnotator)]
every = pytest.mark.parametrize("condition", CONDITIONS)


def rgb(hint: np.ndarray) -> np.ndarray:
    return hint[..., :3]


def test_those_without_a_network_are_all_here():
    assert {"canny", "scribble", "scribble_xdog", "lines", "grey", *DRAWINGS, *COLOURS} == set(CONDITIONS)


@every
@settings(max_examples=12)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([0, 64, 128]), st.integers(0, 2**32 - 1))
def test_a_hint_has_the_size_that_was_looked_at_in_bytes(condition, height, width, resolution, seed):
    annotator = load(condition)(detect_resolution=resolution)
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = picture.copy()
    hint = annotator(picture)
    assert hint.dtype == np.uint8
    assert hint.shape[:2] == annotator.at_resolution(picture).shape[:2]
    assert hint.shape[2] == (4 if condition == "inpaint" else 3)
    assert np.array_equal(picture, before)


@every
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (7000, 20, 3), (33, 1, 3)])
def test_extreme_sizes_are_annotated(condition, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for resolution in (0, 128):
        assert load(condition)(detect_resolution=resolution)(picture).size


@every
@given(st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=12)
def test_a_picture_of_one_colour_has_no_lines_and_keeps_its_colour(condition, colour):
    picture = np.full((70, 90, 3), colour, np.uint8)
    hint = rgb(load(condition)(detect_resolution=64)(picture))
    if condition in DRAWINGS:
        assert not hint.any()
    if condition in COLOURS:
        assert np.all(hint == colour)
    assert np.all(hint == hint[0, 0])


@every
def test_grey_in_one_channel_is_grey_in_three(condition):
    annotator, grey = load(condition)(), np.ascontiguousarray(PICTURE[..., 0])
    expected = annotator(three_channels(grey))
    assert np.array_equal(annotator(grey), expected)
    assert np.array_equal(annotator(grey[..., None]), expected)


@every
def test_an_opaque_alpha_changes_nothing(condition):
    assert np.array_equal(load(condition)()(four_channels(PICTURE)), load(condition)()(PICTURE))


@pytest.mark.parametrize("condition", sorted(set(CONDITIONS) - {"inpaint"}))
def test_what_is_transparent_counts_as_white(condition):
    rgba = four_channels(PICTURE).copy()
    rgba[:128, :, 3] = 0
    white = PICTURE.copy()
    white[:128] = 255
    assert np.array_equal(load(condition)()(rgba), load(condition)()(white))


@every
def test_a_camera_held_sideways_changes_nothing(condition):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # EXIF 2.32: a quarter clockwise to be upright
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(PICTURE))).save(buffer, "PNG", exif=exif)
    assert np.array_equal(load(condition)()(buffer.getvalue()), load(condition)()(PICTURE))


@every
def test_the_resolution_changes_the_size_and_little_else(condition):
    small, large = (load(condition)(detect_resolution=resolution)(PICTURE) for resolution in (256, 512))
    assert large.shape[0] == 2 * small.shape[0]
    share_small, share_large = ((rgb(hint) > 127).mean() for hint in (small, large))
    assert abs(share_small - share_large) < 0.25
