"""The small world: its colours can be told apart, its shapes fill what their words say."""

import math

import numpy as np
import pytest

from controlnet.data.colours import NAMES, RGB, difference
from controlnet.data.shapes import CONTRAST, SHAPES, Scene, contrasting, draw_scene, mask, render

AREAS = {  # of a shape of radius 1
    "circle": math.pi,
    "ring": math.pi * (1 - 0.6**2),
    "square": (2 * 0.85) ** 2,
    "diamond": 2 * 0.7,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": 10 * 0.5 * 0.45 * math.sin(math.pi / 5),
}


def test_there_are_the_140_names_of_html_and_aqua_is_cyan():
    assert len(set(NAMES)) == 140
    assert RGB["pale golden rod"] == (238, 232, 170)
    assert RGB["aqua"] == RGB["cyan"]
    assert RGB["fuchsia"] == RGB["magenta"]


def test_the_difference_of_colours_is_ciede2000():
    # Sharma, Wu and Dalal 2005 give pairs in Lab; black to white is 100 by definition of its axes
    assert difference(np.array([0, 0, 0]), np.array([255, 255, 255])) == pytest.approx(100, abs=0.1)
    assert difference(np.array([10, 20, 30]), np.array([10, 20, 30])) == 0


def test_no_scene_hides_its_shape():
    for number in range(300):
        scene = draw_scene(np.random.default_rng(number))
        assert difference(np.array(RGB[scene.colour]), np.array(RGB[scene.background])) >= CONTRAST
        assert scene.background in contrasting()[NAMES.index(scene.colour)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_area(shape: str):
    covered = mask(Scene(shape, "red", "blue", 0.5, 0.5, 0.3), 1024).astype(float).sum() / 255
    assert covered == pytest.approx(AREAS[shape] * (0.3 * 1024) ** 2, rel=0.02)


def test_a_picture_has_its_two_colours_where_the_mask_says():
    scene = Scene("star", "burly wood", "orange", 0.4, 0.6, 0.3)
    picture, inside = render(scene, 128), mask(scene, 128)
    assert (picture[inside == 255] == RGB["burly wood"]).all()
    assert (picture[inside == 0] == RGB["orange"]).all()
    assert scene.caption == "burly wood star with orange background"
