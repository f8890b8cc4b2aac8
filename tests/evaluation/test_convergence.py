import numpy as np
import pytest

from controlnet.evaluation.convergence import Validation, find_convergence, newly_converged
from controlnet.evaluation.curve import draw_curve


def history(*gains: float) -> list[Validation]:
    return [Validation(100 * index, 0.3, gain, round(0.2 + gain, 2)) for index, gain in enumerate(gains)]


def test_a_jump_is_announced_at_its_first_high_validation_with_fidelity_before_and_after() -> None:
    found = find_convergence(history(0.0, 0.0, 0.01, 0.31, 0.6, 0.7))
    assert str(found) == "converged at step 300: fidelity 0.21 -> 0.80"


def test_a_jump_is_announced_once() -> None:
    gains = (0.0, 0.0, 0.01, 0.31, 0.6, 0.7, 0.7)
    told = [newly_converged(history(*gains[: index + 1])) is not None for index in range(len(gains))]
    assert told == [False, False, False, False, True, False, False]


def test_one_high_validation_alone_is_no_convergence() -> None:
    assert find_convergence(history(0.0, 0.0, 0.4, 0.0, 0.0, 0.3, 0.01)) is None


def test_slow_growth_is_announced_when_it_passes_the_bar() -> None:
    found = find_convergence(history(0.0, 0.02, 0.05, 0.09, 0.13, 0.16, 0.2))
    assert found is not None
    assert found.step == 500


def test_without_fidelity_only_the_step_is_told() -> None:
    found = find_convergence([Validation(step, 0.3, gain) for step, gain in ((0, 0.0), (50, 0.3), (100, 0.4))])
    assert str(found) == "converged at step 50"


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.03])
def test_noise_around_zero_never_converges(noise: float) -> None:
    for seed in range(200):
        gains = np.random.default_rng(seed).normal(0, noise, 100)
        assert find_convergence(history(0.0, *gains)) is None


def test_the_bar_rises_above_a_noisy_start() -> None:
    noisy = (0.0, -0.2, 0.04, -0.25, 0.03, -0.3, 0.02)
    assert find_convergence(history(*noisy, 0.2, 0.2)) is None
    assert find_convergence(history(*noisy, 0.9, 0.9)) is not None


def test_the_curve_is_drawn_for_any_history(tmp_path: object) -> None:
    from pathlib import Path

    from PIL import Image

    folder = Path(str(tmp_path))
    for name, gains in {"none": (), "one": (0.0,), "jump": (0.0, 0.0, 0.5, 0.6)}.items():
        draw_curve(folder / f"{name}.png", [(0, 0.3), (10, 0.2)] if gains else [], history(*gains))
        assert Image.open(folder / f"{name}.png").size[0] > 400
