"""The formulas against pictures whose likeness is known."""

import cv2
import numpy as np
import pytest

from controlnet.annotators.ade20k import PALETTE
from controlnet.annotators.skeleton import BODY, Keypoint, People, Person
from controlnet.evaluation.metrics import (
    BODY_DEVIATIONS,
    class_overlap,
    keypoint_similarity,
    line_f1,
    root_mean_square,
    same_direction,
    structural_similarity,
)

SIZE = 128
RANDOM = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def lines(*columns: int) -> np.ndarray:
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[:, list(columns)] = 255
    return picture


def person(x: float = 0.0, y: float = 0.0) -> Person:
    random = np.random.default_rng(1)
    places = random.uniform((20, 10), (60, 110), (len(BODY), 2))
    return Person(tuple(Keypoint(float(px + x), float(py + y)) for px, py in places))


@pytest.mark.parametrize("measure", [line_f1, structural_similarity, class_overlap])
def test_a_picture_is_wholly_like_itself(measure) -> None:  # type: ignore[no-untyped-def]
    assert measure(RANDOM, RANDOM) == pytest.approx(1)


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    assert line_f1(lines(10, 50), lines(10, 90)) == pytest.approx(0.5)
    assert line_f1(lines(10, 50, 90), lines(10)) == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))


def test_lines_may_be_off_by_the_tolerance_and_no_more() -> None:
    assert line_f1(lines(50), lines(51)) == 1  # 0.0075 of the diagonal of 128x128 is 1.36
    assert line_f1(lines(50), lines(53)) == 0
    large = cv2.resize(lines(50), (512, 512), interpolation=cv2.INTER_NEAREST)
    assert line_f1(large, np.roll(large, 5, axis=1)) == 1


def test_nothing_asked_and_nothing_drawn_agree_and_else_do_not() -> None:
    assert line_f1(lines(), lines()) == 1
    assert line_f1(lines(5), lines()) == line_f1(lines(), lines(5)) == 0


def test_classes_that_share_half_of_their_pixels_overlap_by_a_third() -> None:
    ground, first = (np.broadcast_to(PALETTE[index], (SIZE, SIZE, 3)).copy() for index in (0, 1))
    left, middle = ground.copy(), ground.copy()
    left[:, :64], middle[:, 32:96] = first[:, :64], first[:, 32:96]
    assert class_overlap(left, middle) == pytest.approx(1 / 3)
    third = left.copy()
    third[:] = PALETTE[7]
    assert class_overlap(left, third) == 0


def test_ssim_of_two_flat_pictures_is_the_term_of_luminance() -> None:
    dark, light = (np.full((SIZE, SIZE, 3), grey, np.uint8) for grey in (50, 200))
    constant = (0.01 * 255) ** 2
    assert structural_similarity(dark, light) == pytest.approx((2 * 50 * 200 + constant) / (50**2 + 200**2 + constant))


def test_ssim_falls_with_noise_and_is_negative_for_the_negative() -> None:
    wave = (128 + 60 * np.sin(np.indices((SIZE, SIZE)).sum(0) / 2)).astype(np.uint8)[..., None].repeat(3, axis=2)
    scores = [
        structural_similarity(
            np.clip(wave + np.random.default_rng(2).normal(0, s, wave.shape), 0, 255).astype(np.uint8), wave
        )
        for s in (0, 5, 20, 60)
    ]
    assert scores == sorted(scores, reverse=True)
    assert structural_similarity(255 - wave, wave) < -0.8


def test_ssim_and_rmse_look_only_where_they_are_told() -> None:
    other, where = RANDOM.copy(), np.zeros((SIZE, SIZE), bool)
    other[:, 64:] = 0
    where[:, :32] = True
    assert structural_similarity(other, RANDOM, where) == pytest.approx(1)
    assert root_mean_square(other, RANDOM, where) == 0


def test_rmse_of_a_constant_difference_is_that_difference() -> None:
    assert root_mean_square(np.full((4, 4, 3), 30, np.uint8), np.full((4, 4, 3), 47, np.uint8)) == 17


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 170])
def test_normals_are_as_like_as_the_cosine_of_their_angle(degrees: float) -> None:
    angle = np.deg2rad(degrees)
    first, second = ((0, 0, 1), (np.sin(angle), 0, np.cos(angle)))
    stored = [np.full((8, 8, 3), np.rint(127.5 * np.array(n) + 127.5), np.uint8) for n in (first, second)]
    assert same_direction(*stored) == pytest.approx(max(0, np.cos(angle)), abs=0.02)


def test_oks_of_one_joint_moved_by_its_own_scale_is_that_of_the_formula() -> None:
    asked = person()
    joint, places = 4, np.array([(p.x, p.y) for p in asked.body if p])
    scale = 0.53 * np.prod(np.ptp(places, axis=0))
    far = np.sqrt(2 * scale) * 2 * BODY_DEVIATIONS[joint]  # there exp(-1)
    moved = list(asked.body)
    moved[joint] = Keypoint(moved[joint].x + far, moved[joint].y)  # type: ignore[union-attr]
    found = People((SIZE, SIZE), (Person(tuple(moved)),))
    assert keypoint_similarity(found, People((SIZE, SIZE), (asked,))) == pytest.approx((17 + np.exp(-1)) / 18)


def test_people_are_matched_in_any_order_and_the_missing_count_nothing() -> None:
    two = (person(), person(60))
    size = (256, SIZE)
    assert keypoint_similarity(People(size, two[::-1]), People(size, two)) == pytest.approx(1)
    assert keypoint_similarity(People(size, two[:1]), People(size, two)) == pytest.approx(0.5, abs=0.01)
    assert keypoint_similarity(People(size), People(size, two)) == 0
    assert keypoint_similarity(People(size), People(size)) == 1
    assert keypoint_similarity(People(size, two), People(size)) == 0
