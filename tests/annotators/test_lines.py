"""Drawings without a network: straight lines where there are some, line art darker than its surroundings."""

import cv2
import numpy as np
import pytest

from controlnet.annotators.lines import LineartStandard, Lines


def drawing(*lines: tuple[tuple[int, int], tuple[int, int]], light: int = 230, dark: int = 30) -> np.ndarray:
    picture = np.full((512, 512, 3), light, np.uint8)
    for start, end in lines:
        cv2.line(picture, start, end, (dark, dark, dark), 5)
    return picture


def test_a_straight_line_is_found_where_it_is():
    hint = Lines()(drawing(((60, 100), (450, 300))))[..., 0]
    rows, columns = np.nonzero(hint)
    assert len(rows) > 390
    assert np.all(abs(rows - (100 + (columns - 60) * 200 / 390)) < 6)
    assert set(np.unique(hint)) == {0, 255}


def test_short_lines_are_left_out():
    picture = drawing(((60, 100), (450, 300)), ((60, 400), (100, 400)))
    assert Lines(shortest=20)(picture)[380:].any()
    assert not Lines(shortest=100)(picture)[380:].any()
    assert Lines(shortest=100)(picture).any()


@pytest.mark.parametrize("contrast", [60, 200])
def test_line_art_is_bright_on_the_line_whatever_its_contrast_and_black_far_from_it(contrast):
    hint = LineartStandard()(drawing(((60, 256), (450, 256)), light=230, dark=230 - contrast))
    assert hint[256, 200].min() > 100
    assert not hint[300:].any()


def test_line_art_of_light_on_dark_leaves_the_line_itself_black():
    assert LineartStandard()(drawing(((60, 256), (450, 256)), light=30, dark=230))[256, 200].max() == 0
