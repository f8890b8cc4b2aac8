"""What judges a base's pictures must itself be right: about true pictures, and about false ones."""

from dataclasses import replace

import numpy as np
import pytest

from controlnet.data.shapes import SHAPES, Scene, draw_scene, mask, render
from controlnet.evaluation.text_accuracy import Accuracy, judge, recognise

SCENES = [draw_scene(np.random.default_rng([3, number])) for number in range(60)]


def test_true_pictures_are_judged_right_wherever_they_are():
    assert judge(SCENES, [render(scene, 128) for scene in SCENES]) == Accuracy(1.0, 1.0, 1.0)


def test_softened_and_noisy_pictures_are_judged_right():
    random = np.random.default_rng(0)
    noisy = [np.clip(render(s, 128) + random.normal(0, 4, (128, 128, 3)), 0, 255).astype(np.uint8) for s in SCENES]
    accuracy = judge(SCENES, noisy)
    assert min(accuracy.background, accuracy.colour, accuracy.shape) >= 0.95


def test_other_pictures_are_judged_wrong():
    accuracy = judge(SCENES, [render(scene, 128) for scene in SCENES[1:] + SCENES[:1]])
    assert accuracy.background <= 0.2
    assert accuracy.colour <= 0.2
    assert accuracy.shape <= 0.4


def test_swapped_colours_are_wrong_though_the_shape_is_right():
    swapped = [replace(scene, colour=scene.background, background=scene.colour) for scene in SCENES]
    assert judge(SCENES, [render(scene, 128) for scene in swapped]) == Accuracy(0.0, 0.0, 1.0)


def test_a_flat_picture_has_at_most_a_background():
    scene = Scene("circle", "red", "blue", 0.5, 0.5, 0.3)
    assert judge([scene], [np.full((128, 128, 3), (0, 0, 255), np.uint8)]) == Accuracy(1.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [0.11, 0.25, 0.39])
def test_every_shape_is_recognised_between_the_grid(shape: str, radius: float):
    assert recognise(mask(Scene(shape, "", "", 0.43, 0.57, radius), 128) > 127) == shape


def test_scattered_pixels_are_no_shape():
    assert recognise(np.random.default_rng(0).random((128, 128)) < 0.1) is None
