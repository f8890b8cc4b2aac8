"""Make the comparison of training.md: the circles learned on the embedded base, one thing changed at a time.

    python docs/training_comparison.py RUNS

Each case is a run of `controlnet train`, one after another, kept in the folder RUNS with a line of
RUNS/comparison.jsonl; an hour on one core the first time. Started again it goes on: finished cases are read,
a case that was stopped continues. The table goes into the page, between the comments that name it, after every case.
Run it with an empty folder when the base has changed.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlnet.data.circles import write_circles
from controlnet.evaluation.convergence import Validation, find_convergence
from controlnet.training.record import column_of, history_of, read_rows
from controlnet.training.run import METRICS

PAGE = Path(__file__).with_name("training.md")
BEGIN, END = "<!-- comparison -->\n", "<!-- end -->"
SIDE = 128
UNSEEN, SEED = 64, 1_000_003  # pairs that measure, of a seed that no training has
MOST = 10_000  # pairs drawn
PICTURES = 8  # made at each validation


@dataclass(frozen=True)
class Case:
    """A training, by what it has that the first one has not."""

    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: int = 1000
    stages: Sequence[tuple[int, int]] = ((60, 10),)
    """(until this step, steps between validations)"""

    @property
    def pairs_per_step(self) -> int:
        return int(self.options.get("train-batch-size", 16) * self.options.get("gradient-accumulation-steps", 1))


LONG = ((60, 10), (200, 70))  # until fifty pairs are known by heart
CASES = {
    "batch 16": Case(),
    "50 pairs": Case(pairs=50, stages=LONG),
    "unlocked": Case({"sd-unlocked": True}),
    "10,000 pairs": Case(
        {"cache": "off"}, pairs=MOST, stages=((100, 10),)
    ),  # of which a tenth is seen: not worth to encode
    "200 pairs": Case(pairs=200),
    "batch 64 by accumulation": Case({"gradient-accumulation-steps": 4}, stages=((20, 5),)),
    "batch 4": Case({"train-batch-size": 4}, stages=((240, 20),)),
    "half of the prompts empty": Case({"proportion-empty-prompts": 0.5}),
    "only the middle": Case({"only-mid-control": True}, stages=((160, 20),)),
    "another seed": Case({"seed": 1}),
    "rate 1e-4": Case({"learning-rate": 1e-4}),
    "rate 3e-3": Case({"learning-rate": 3e-3}),
    "unlocked, its rate 1e-3": Case({"sd-unlocked": True, "learning-rate-unlocked": 1e-3}),
}
COMPARED = 960  # pairs seen, by each case, at the figures of the table
COLUMNS = (
    *("", "converged at step", "after pairs", "after seconds"),
    *("after 960 pairs: held-out loss", "hint gain", "fidelity"),
)


def words(runs: Path, name: str, case: Case, until: int, every: int) -> list[str]:
    """The command of a case."""
    options: dict[str, Any] = {
        "base": "embedded",
        "data": runs / "circles",
        "validation-data": runs / "unseen",
        "out": runs / name.replace(" ", "-"),
        "condition": "circle",
        "max-train-samples": case.pairs,
        "train-batch-size": 16,
        "max-train-steps": until,
        "validation-steps": every,
        "num-validation-images": PICTURES,
        "report-to": "csv",
        **case.options,
    }
    told = ([f"--{option}"] if value is True else [f"--{option}", str(value)] for option, value in options.items())
    return ["train", *(word for each in told for word in each)]


def trained(runs: Path, name: str, case: Case) -> Path:
    """The run's folder. What is encoded is shared by all."""
    out, cache = runs / name.replace(" ", "-"), runs / "cache"
    out.mkdir(exist_ok=True)
    cache.mkdir(exist_ok=True)
    if not (out / "cache").is_symlink():
        (out / "cache").symlink_to(cache.resolve())
    for stage in case.stages:
        subprocess.run([sys.executable, "-m", "controlnet", *words(runs, name, case, *stage)], check=True)
    return out


def figures(run: Path, case: Case) -> dict[str, Any]:
    """What a case came to; seconds are of the training alone, at its best speed: what else the machine did is left
    out."""
    rows = read_rows(run / METRICS)
    history = history_of(rows)
    speed = max(value for _, value in column_of(rows, "images_per_second"))
    reached = find_convergence(history)
    pairs = reached and reached.step * case.pairs_per_step
    told: dict[str, Any] = {
        "converged_at_step": reached and reached.step,
        "after_pairs": pairs,
        "after_seconds": pairs and round(pairs / speed),
        "images_per_second": round(speed, 2),
        "pairs_per_step": case.pairs_per_step,
    }
    return {**told, "history": [vars(each) for each in history]}


def as_cells(name: str, told: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    history = [Validation(**each) for each in told["history"]]
    [then] = [each for each in history if each.step * told["pairs_per_step"] == COMPARED]
    reached = [told[each] for each in ("converged_at_step", "after_pairs", "after_seconds")]
    cells = [f"not in {history[-1].step}", "", ""] if reached[0] is None else [f"{value:,}" for value in reached]
    return [name, *cells, f"{then.loss:.4f}", f"{then.hint_gain:.2f}", f"{then.fidelity or 0:.2f}"]


def write(done: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the table between its comments in the page."""
    rows = [as_cells(name, done[name]) for name in CASES if name in done]
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + rest[rest.index(END) :], encoding="utf-8")


if __name__ == "__main__":
    RUNS = Path(sys.argv[1])
    write_circles(RUNS / "circles", count=MOST, size=SIDE, seed=0, processes=1)
    write_circles(RUNS / "unseen", count=UNSEEN, size=SIDE, seed=SEED, processes=1)
    RECORD = RUNS / "comparison.jsonl"
    LINES = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else []
    done = {told["case"]: told for told in map(json.loads, LINES)}
    for name, case in CASES.items():
        if name not in done:
            done[name] = {"case": name, **figures(trained(RUNS, name, case), case)}
            with RECORD.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[name]) + "\n")
        write(done)
