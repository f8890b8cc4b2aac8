"""Make the comparison of training.md: the circles learned on the embedded base, one thing changed at a time.

    python docs/training_comparison.py RUNS

The trainings are kept in the folder RUNS: about a quarter of an hour on an idle core the first time, some seconds from
then on; one that was stopped goes on. The table goes into the page, between the comments that name it. Run it again
when the base has changed.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlnet.data.circles import write_circles
from controlnet.evaluation.convergence import find_convergence
from controlnet.training.config import TrainConfig
from controlnet.training.record import column_of, history_of, read_rows
from controlnet.training.run import METRICS, train

PAGE = Path(__file__).with_name("training.md")
BEGIN, END = "<!-- comparison -->\n", "<!-- end -->"
SIDE = 128
UNSEEN, SEED = 32, 1_000_003  # pairs that measure, of a seed that no training has
EVERY = 25  # steps between validations: how finely convergence is seen
MOST = 10_000  # pairs drawn


@dataclass(frozen=True)
class Case:
    """A training: how long, and what it has that the first one has not."""

    steps: int
    pairs: int = 1000
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "batch 16": Case(100),
    "batch 4": Case(200, options={"train_batch_size": 4}),
    "50 pairs": Case(100, 50),
    "half of the prompts empty": Case(100, options={"proportion_empty_prompts": 0.5}),
    "only the middle": Case(150, options={"only_mid_control": True}),
    "unlocked": Case(100, options={"sd_unlocked": True}),
    "batch 64 by accumulation": Case(50, options={"gradient_accumulation_steps": 4}),
    "200 pairs": Case(100, 200),
    "unlocked, its rate 1e-3": Case(100, options={"sd_unlocked": True, "learning_rate_unlocked": 1e-3}),
    "10,000 pairs": Case(100, MOST),
}
COLUMNS = (
    *("", "converged at step", "after seconds", "after pairs"),
    *("steps in all", "held-out loss", "hint gain", "fidelity", "text accuracy"),
)


def trained(runs: Path, name: str, case: Case) -> Path:
    """The run's folder. What is encoded is shared by all."""
    out, cache = runs / name, runs / "cache"
    out.mkdir(exist_ok=True)
    cache.mkdir(exist_ok=True)
    if not (out / "cache").is_symlink():
        (out / "cache").symlink_to(cache.resolve())
    told: dict[str, Any] = {"train_batch_size": 16, **case.options}
    train(
        TrainConfig(
            data=runs / "circles",
            validation_data=runs / "unseen",
            out=out,
            condition="circle",
            max_train_samples=case.pairs,
            max_train_steps=case.steps,
            validation_steps=EVERY,
            num_validation_images=8,
            report_to="csv",
            **told,
        )
    )
    return out


def figures(run: Path, name: str, case: Case) -> list[str]:
    """A row of the table. The speed is the best of ten steps: what else the machine does meanwhile is left out."""
    rows = read_rows(run / METRICS)
    history = history_of(rows)
    at_once = case.options.get("train_batch_size", 16) * case.options.get("gradient_accumulation_steps", 1)
    speed = max(value for _, value in column_of(rows, "images_per_second"))
    convergence, last = find_convergence(history), history[-1]
    reached = ["not yet", "", ""]
    if convergence:
        pairs = convergence.step * at_once
        reached = [str(convergence.step), f"{pairs / speed:.0f}", f"{pairs:,}"]
    measured = (f"{value:.2f}" for value in (last.hint_gain, last.fidelity, last.text_accuracy) if value is not None)
    return [name, *reached, str(last.step), f"{last.loss:.4f}", *measured]


def write(rows: Sequence[Sequence[str]]) -> None:
    """Put the table between its comments in the page."""
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + rest[rest.index(END) :], encoding="utf-8")


if __name__ == "__main__":
    RUNS = Path(sys.argv[1])
    write_circles(RUNS / "circles", count=MOST, size=SIDE, seed=0, processes=1)
    write_circles(RUNS / "unseen", count=UNSEEN, size=SIDE, seed=SEED, processes=1)
    rows = []
    for name, case in CASES.items():
        rows.append(figures(trained(RUNS, name, case), name, case))
        write(rows)
