from controlnet.evaluation.convergence import Validation
from controlnet.evaluation.health import late, new_signs, not_preserved, overfitting, plateau, signs


def history(*losses: float, gains: tuple[float, ...] = ()) -> list[Validation]:
    gains = gains or (0.0, *(0.5,) * (len(losses) - 1))
    return [Validation(100 * n, loss, gain) for n, (loss, gain) in enumerate(zip(losses, gains, strict=True))]


def training(first: float, last: float, steps: int = 800) -> list[tuple[int, float]]:
    return [(step, first + (last - first) * step / steps) for step in range(0, steps, 10)]


TURNS = (0.20, 0.18, 0.16, 0.15, 0.16, 0.17, 0.18, 0.19)


def test_held_out_loss_that_rises_while_training_loss_falls_is_overfitting() -> None:
    told = overfitting(history(*TURNS), training(0.2, 0.05))
    assert told is not None
    assert "since step 300" in told
    assert "0.1500 -> 0.1900" in told


def test_both_losses_rising_is_no_overfitting() -> None:
    assert overfitting(history(*TURNS), training(0.05, 0.2)) is None


def test_a_falling_or_trembling_held_out_loss_is_no_overfitting() -> None:
    for losses in ((0.20, 0.18, 0.16, 0.15, 0.14, 0.13), (0.15, 0.151, 0.149, 0.151, 0.1505, 0.151)):
        assert overfitting(history(*losses), training(0.2, 0.05)) is None


def test_two_high_validations_are_not_yet_overfitting() -> None:
    assert overfitting(history(*TURNS[:6]), training(0.2, 0.05)) is None


def test_a_loss_and_a_gain_that_stay_after_the_convergence_are_a_plateau() -> None:
    told = plateau(history(0.2, 0.15, *(0.1501, 0.1499, 0.15, 0.1502, 0.15)), [])
    assert told is not None
    assert "since step 100" in told


def test_the_quiet_start_is_no_plateau_and_slow_progress_is_none() -> None:
    assert plateau(history(*(0.2,) * 12, gains=(0.0,) * 12), []) is None
    assert plateau(history(*(0.2 - 0.004 * n for n in range(12))), []) is None


def test_a_base_that_forgets_what_it_knew_is_not_preserved() -> None:
    before, after = Validation(0, 0.2, 0.0, text_accuracy=0.9), Validation(100, 0.1, 0.5, text_accuracy=0.6)
    told = not_preserved([before, after], [])
    assert told is not None
    assert "60%" in told
    assert not_preserved([before, Validation(100, 0.1, 0.5, text_accuracy=0.8)], []) is None


def test_a_control_that_stays_worse_than_none_does_harm() -> None:
    worse = [Validation(100 * n, 0.2 if n == 0 else 0.25, 0.0, base_loss=0.2) for n in range(4)]
    assert not_preserved(worse, [])
    assert not_preserved(worse[:3], []) is None, "two bad validations are chance"
    assert not_preserved([Validation(100 * n, 0.2, 0.0, base_loss=0.2) for n in range(9)], []) is None


def test_ten_thousand_quiet_steps_are_late() -> None:
    quiet = [Validation(1000 * n, 0.2, 0.001) for n in range(11)]
    assert late(quiet, [])
    assert late(quiet[:-1], []) is None
    assert late([*quiet[:5], *(Validation(1000 * n, 0.1, 0.5) for n in range(5, 12))], []) is None


def test_each_sign_is_told_once() -> None:
    whole, losses = history(*TURNS, 0.2, 0.21), training(0.2, 0.05, 1000)
    told = [len(new_signs(whole[: end + 1], losses)) for end in range(len(whole))]
    assert sum(told) == 1
    assert list(signs(whole, losses)) == ["overfitting"]
