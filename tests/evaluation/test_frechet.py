"""The distances against distributions whose distance is known."""

import numpy as np
import pytest

from controlnet.evaluation.frechet import frechet_distance, maximum_mean_discrepancy

RANDOM = np.random.default_rng(0)


def normal(count: int, mean: float, deviation: float, width: int = 6) -> np.ndarray:
    """With exactly this mean and covariance, not only nearly."""
    drawn = RANDOM.normal(size=(count, width))
    drawn -= drawn.mean(axis=0)
    drawn = drawn @ np.linalg.inv(np.linalg.cholesky(np.cov(drawn.T))).T
    return mean + deviation * drawn


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (2, 1), (0, 3), (-1, 0.5)])
def test_between_two_normal_clouds_it_is_that_of_the_formula(mean: float, deviation: float) -> None:
    """Of N(0, 1) and N(m, s^2) in d dimensions: d (m^2 + (1 - s)^2)."""
    found = frechet_distance(normal(500, 0, 1), normal(400, mean, deviation))
    assert found == pytest.approx(6 * (mean**2 + (1 - deviation) ** 2), abs=1e-6)


def test_it_is_the_same_in_any_rotation_and_in_both_directions() -> None:
    first, second = RANDOM.normal(size=(200, 5)), RANDOM.normal(size=(150, 5)) @ RANDOM.normal(size=(5, 5)) + 1
    rotation = np.linalg.qr(RANDOM.normal(size=(5, 5)))[0]
    expected = frechet_distance(first, second)
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(expected)
    assert frechet_distance(second, first) == pytest.approx(expected)


def test_it_is_what_scipys_root_of_the_product_gives() -> None:
    from scipy.linalg import sqrtm

    first, second = (RANDOM.normal(size=(300, 8)) @ RANDOM.normal(size=(8, 8)) for _ in range(2))
    one, other = np.cov(first.T), np.cov(second.T)
    mean = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    expected = mean + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert frechet_distance(first, second) == pytest.approx(float(expected))


def test_fewer_pictures_than_features_still_have_a_distance_and_to_themselves_none() -> None:
    few = RANDOM.normal(size=(5, 64))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 1) == pytest.approx(64)


def test_cmmd_is_zero_for_the_same_and_grows_with_the_angle_between_clouds() -> None:
    cloud = RANDOM.normal(size=(200, 16)) * 0.1
    axis, across = np.eye(16)[:2]
    moved = [
        maximum_mean_discrepancy(cloud + axis, cloud + np.cos(angle) * axis + np.sin(angle) * across)
        for angle in (0.0, 0.3, 1.0)
    ]
    assert moved[0] == pytest.approx(0, abs=1e-9)
    assert moved[0] < moved[1] < moved[2]


def test_cmmd_of_two_points_is_that_of_the_kernel() -> None:
    one, other = np.array([[1.0, 0.0]]), np.array([[0.0, 5.0]])
    assert maximum_mean_discrepancy(one, other) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / (2 * 10**2))))
