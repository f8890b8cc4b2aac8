"""Sudden convergence: the step at which a ControlNet begins to obey, read from the history of its validations.

For hundreds or thousands of steps a new ControlNet does nothing visible; then, within few steps, it follows its hint
(Zhang et al. 2023, section 4.2 and figure 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, stdev

GAIN = 0.15  # measured on circles: within 0.001 of zero while nothing is heard, then 0.2, 0.5, 0.6 at 100 steps each
NOISES = 5.0  # deviations of the quiet start that the gain must exceed, for conditions whose gain is noisy
QUIET = 0.05  # validations under this gain belong to the quiet start


@dataclass(frozen=True)
class Validation:
    """What was measured after `step` optimizer steps, on held-out pairs at fixed noise and timesteps."""

    step: int
    loss: float
    hint_gain: float
    fidelity: float | None = None
    """Only for conditions that have a measure and whose annotator is at hand."""
    base_loss: float | None = None
    """The same loss of the locked base alone, without control."""
    text_accuracy: float | None = None
    """On the embedded base: the share of what texts say that is painted with the control under an empty hint."""


@dataclass(frozen=True)
class Convergence:
    """The first validation at which the hint was obeyed; fidelity at the one before it and at the one after."""

    step: int
    fidelity_before: float | None
    fidelity_after: float | None

    def __str__(self) -> str:
        told = f"converged at step {self.step}"
        if self.fidelity_before is None or self.fidelity_after is None:
            return told
        return f"{told}: fidelity {self.fidelity_before:.2f} -> {self.fidelity_after:.2f}"


def find_convergence(history: Sequence[Validation]) -> Convergence | None:
    """The first validation from which hint gain is high at two validations in a row; None while there is none."""
    bar = _bar(history)
    for index, (now, following) in enumerate(pairwise(history)):
        if now.hint_gain >= bar and following.hint_gain >= bar:
            return Convergence(now.step, history[max(0, index - 1)].fidelity, following.fidelity)
    return None


def newly_converged(history: Sequence[Validation]) -> Convergence | None:
    """The convergence that the last validation revealed, so that it is announced once."""
    return None if find_convergence(history[:-1]) else find_convergence(history)


def _bar(history: Sequence[Validation]) -> float:
    """The gain that counts as obeying: GAIN, or more where the quiet start is noisy."""
    quiet: list[float] = []
    for validation in history:
        if validation.hint_gain >= QUIET:
            break
        quiet.append(validation.hint_gain)
    if len(quiet) < 3:
        return GAIN
    return max(GAIN, median(quiet) + NOISES * stdev(quiet))
