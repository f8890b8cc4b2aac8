"""Scribbles: the original's, bit for bit, from soft edges; drawings whatever their paper."""

import numpy as np
import pytest

from controlnet.annotators.scribble import Scribble, ScribbleXdog, darkest, scribble_of_soft_edges, thin
from parity.annotators import original

DRAWING = np.full((512, 512, 3), 255, np.uint8)
DRAWING[100:110, 50:400] = 0
DRAWING[300:310, 50:400] = (200, 30, 200)  # one dark channel is enough


def test_ridges_of_soft_edges_are_the_originals():
    assert np.array_equal(thin(original("hed.map")), original("fake_scribble.nms"))


def test_scribbles_of_soft_edges_are_the_originals():
    assert np.array_equal(scribble_of_soft_edges(original("hed.map")), original("fake_scribble.map"))


def test_without_edges_there_is_no_scribble():
    assert not scribble_of_soft_edges(np.zeros((64, 64), np.uint8)).any()


@pytest.mark.parametrize("level", [0, 126, 127, 255])
def test_a_stroke_is_what_is_darker_than_127(level):
    picture = np.full((512, 512, 3), 255, np.uint8)
    picture[100:110] = level
    assert np.all(Scribble()(picture)[100:110] == (255 if level < 127 else 0))


def test_strokes_of_a_drawing_are_white_on_black():
    hint = Scribble()(DRAWING)
    assert np.all(hint[100:110, 50:400] == 255)
    assert np.all(hint[300:310, 50:400] == 255)
    assert (hint > 0).sum() == 2 * 10 * 350 * 3


def test_a_drawing_light_on_dark_is_recognised():
    assert np.array_equal(Scribble()(255 - DRAWING), Scribble()(DRAWING))
    assert not np.array_equal(Scribble(strokes="dark")(255 - DRAWING), Scribble()(DRAWING))
    assert np.array_equal(Scribble(strokes="light")(255 - DRAWING), Scribble()(DRAWING))


def test_a_sketch_has_the_dark_lines_of_a_picture_and_a_lower_threshold_more_of_them():
    assert ScribbleXdog()(DRAWING)[104, 200].tolist() == [255] * 3
    few, many = (ScribbleXdog(threshold=threshold)(original("image")) for threshold in (48, 16))
    assert few.any()
    assert np.all(many[few > 0] == 255)
    assert many.sum() > few.sum()


def test_the_darkest_channel_is_the_least():
    picture = original("hed.map")[..., None] + np.arange(3, dtype=np.uint8)
    assert np.array_equal(darkest(picture), picture.min(axis=2))
