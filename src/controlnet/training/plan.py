"""`controlnet train --plan`: how much gradient accumulation a budget is worth, once the sudden convergence is known.

The reasoning is the original's (its docs/train.md). The sudden convergence comes after as many optimizer steps whether
each step has seen few pairs or many, and what has seen more pairs until then is better from then on. So steps before
it are worth making larger; but what is trained after it counts too, and beyond 256 pairs a step little is gained. A
first, cheap run finds the step; the plan is for the run that is meant.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from controlnet.errors import UserError
from controlnet.evaluation.convergence import find_convergence
from controlnet.training.record import history_of, read_rows

GOOD = (64, 128)  # pairs per optimizer step, with which "many complicated conditions" were solved
MOST = 256  # beyond it more is "not very meaningful"
LARGEST_SHARE = 0.75  # of the budget before the convergence: a quarter at least is left for after it


@dataclass(frozen=True)
class Course:
    """One way to spend the budget."""

    name: str
    accumulation: int
    before: int
    """Optimizer steps until the sudden convergence."""
    after: int
    """Optimizer steps from there."""


@dataclass(frozen=True)
class Plan:
    """Ways to spend `budget` batches of `batch_size` pairs, and the one that is proposed."""

    convergence: int
    budget: int
    batch_size: int
    courses: tuple[Course, ...]
    """Without accumulation; all of the budget before the convergence; what is proposed."""

    @property
    def proposed(self) -> Course:
        return self.courses[-1]

    def __str__(self) -> str:
        lines = [
            f"sudden convergence at step {self.convergence:,}; {self.budget:,} batches of {self.batch_size} pairs:"
        ]
        lines += [f"  {course.name}: {self._told(course)}" for course in self.courses]
        steps = self.proposed.before + self.proposed.after
        return "\n".join(
            [*lines, f"--gradient-accumulation-steps {self.proposed.accumulation} --max-train-steps {steps}"]
        )

    def _told(self, course: Course) -> str:
        each = course.accumulation
        return (
            f"{each}x accumulation, {each * self.batch_size:,} pairs a step: {course.before:,} steps until it "
            f"({course.before * each:,} batches), then {course.after:,} ({course.after * each:,} batches)"
        )


def plan(run: Path, budget: int, batch_size: int = 0) -> Plan:
    """The plan for the next run, from the convergence that was detected in `run`; `batch_size` 0 is the run's.

    UserError while there is no convergence.
    """
    rows = read_rows(run / "metrics.csv")
    if not rows:
        raise UserError(
            f"{run} has no metrics.csv, so it is no run; a plan needs one that came to its sudden convergence: train "
            "first, with --gradient-accumulation-steps 1 and --validation-steps small"
        )
    convergence = find_convergence(history_of(rows))
    if convergence is None:
        raise UserError(
            f"no sudden convergence in {run}, {rows[-1]['step']} steps so far; a plan needs its step: train on "
            "(usually 3,000 to 10,000 steps for Stable Diffusion), or see docs/troubleshooting.md"
        )
    if not batch_size:
        batch_size = json.loads((run / "config.json").read_text(encoding="utf-8"))["train_batch_size"]
    return propose(convergence.step, budget, batch_size)


def propose(convergence: int, budget: int, batch_size: int) -> Plan:
    """The courses for a convergence after so many optimizer steps and a budget of batches of `batch_size` pairs.

    UserError for a budget that ends before the convergence.
    """
    convergence = max(1, convergence)  # step 0 if the control was trained before
    if budget < convergence:
        raise UserError(
            f"a budget of {budget:,} batches ends before the sudden convergence, which came at step {convergence:,}; "
            f"give at least {math.ceil(convergence / LARGEST_SHARE):,}"
        )
    largest = max(1, MOST // batch_size)
    courses = (
        _course("without accumulation", 1, convergence, budget),
        _course("all before it", min(budget // convergence, largest), convergence, budget),
        _course("proposed", _shared(convergence, budget, batch_size), convergence, budget),
    )
    return Plan(convergence, budget, batch_size, courses)


def _shared(convergence: int, budget: int, batch_size: int) -> int:
    """The accumulation that spends half of the budget before the convergence, brought to 64 to 128 pairs a step.

    Fewer where 64 would not leave a quarter of the budget for after.
    """
    low, high = math.ceil(GOOD[0] / batch_size), GOOD[1] // batch_size
    half = max(low, min(high, budget // (2 * convergence)))
    return max(1, min(half, int(LARGEST_SHARE * budget / convergence)))


def _course(name: str, accumulation: int, convergence: int, budget: int) -> Course:
    return Course(name, accumulation, convergence, budget // accumulation - convergence)
