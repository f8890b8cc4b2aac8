"""Canny: the original's edges, bit for bit."""

import numpy as np
import pytest

from controlnet.annotators.canny import Canny
from parity.annotators import original


def test_edges_are_the_originals():
    assert np.array_equal(Canny()(original("image"))[..., 0], original("canny.100_200"))


def test_a_hint_is_black_and_white_and_grey_in_all_channels():
    hint = Canny()(original("image"))
    assert set(np.unique(hint)) == {0, 255}
    assert np.array_equal(hint[..., 0], hint[..., 1])
    assert np.array_equal(hint[..., 0], hint[..., 2])


def test_lower_thresholds_keep_every_edge_and_add_others():
    few, many = (Canny(low=low, high=high)(original("image"))[..., 0] for low, high in ((100, 200), (30, 60)))
    assert few.any()
    assert np.all(many[few > 0])
    assert many.sum() > few.sum()


@pytest.mark.parametrize("size", [(64, 64), (640, 512)])
def test_a_square_has_its_outline_and_nothing_else(size):
    picture = np.zeros((*size, 3), np.uint8)
    picture[16:48, 16:48] = 255
    rows, columns = np.nonzero(Canny(detect_resolution=0)(picture)[..., 0])
    assert len(rows) > 100
    assert np.all(np.minimum.reduce([abs(rows - 16), abs(rows - 47), abs(columns - 16), abs(columns - 47)]) <= 1)
