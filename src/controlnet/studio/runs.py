"""Trainings as processes of their own: started, stopped and continued here; they go on when browser and studio end.

Beside the folder of a run, runs/NAME, lie NAME.json, its command and process, and NAME.log, what it said.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import psutil

from controlnet.atomic import write_atomically
from controlnet.errors import UserError
from controlnet.evaluation.convergence import Convergence, Validation, find_convergence
from controlnet.studio.limits import LIMITS, Limits
from controlnet.studio.offer import RECORD, Offer, chosen
from controlnet.training.record import Row, column_of, history_of, read_rows

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOG_SHOWN = 2000  # bytes of its end

State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True, kw_only=True)
class RunAsked:
    """What the Train tab asks for."""

    name: str
    data: str
    base: str = "embedded"
    steps: int = 500
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 0.0
    """0 takes the one that suits the base."""
    condition: str = "auto"
    validation_steps: int = 50
    validation_images: int = 8
    checkpointing_steps: int = 100
    seed: int = 0

    def problems(self, limits: Limits) -> Iterator[str]:
        if not NAME.fullmatch(self.name):
            yield f"the name {self.name!r}; expected letters, digits, dots, dashes"
        if not 1 <= self.steps <= limits.training_steps:
            yield f"{self.steps} steps; expected 1 to {limits.training_steps:,}"
        if not re.fullmatch(r"[A-Za-z0-9][\w -]{0,39}", self.condition):
            yield f"the condition {self.condition!r}; expected a word, such as canny"
        small = {"batch size": self.batch_size, "accumulation": self.accumulation}
        often = {"steps between validations": self.validation_steps, "between checkpoints": self.checkpointing_steps}
        small |= {"validation pictures": self.validation_images}
        for what, value in {**small, **often}.items():
            if not 1 <= value <= 100_000:
                yield f"{what} {value}; expected 1 or more"
        if not 0 <= self.learning_rate < 1:
            yield f"learning rate {self.learning_rate}; expected 0 (as suits the base) to 1"

    def command(self, offer: Offer) -> list[str]:
        """UserError for what is not offered."""
        options = {
            "data": chosen("data set", self.data, offer.data_sets).resolve(),
            "out": (offer.out / "runs" / self.name).resolve(),
            "base": chosen("base", self.base, offer.bases),
            "max-train-steps": self.steps,
            "train-batch-size": self.batch_size,
            "gradient-accumulation-steps": self.accumulation,
            "condition": self.condition,
            "validation-steps": self.validation_steps,
            "num-validation-images": self.validation_images,
            "checkpointing-steps": self.checkpointing_steps,
            "seed": self.seed,
            "device": offer.device,
            "dtype": offer.dtype,
            **({"learning-rate": self.learning_rate} if self.learning_rate else {}),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "controlnet", "train", *words]


@dataclass(frozen=True)
class Run:
    """A training, of any age, by whomever started."""

    name: str
    folder: Path
    record: Path
    """NAME.json; there is none of a run that was started elsewhere."""

    @cached_property
    def rows(self) -> list[Row]:
        return read_rows(self.folder / "metrics.csv")

    @property
    def history(self) -> list[Validation]:
        return history_of(self.rows)

    @property
    def losses(self) -> list[tuple[int, float]]:
        return column_of(self.rows, "loss")

    @property
    def step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def convergence(self) -> Convergence | None:
        return find_convergence(self.history)

    @property
    def grids(self) -> list[Path]:
        """Pictures of the validations, the newest first."""
        return sorted((self.folder / "samples").glob("step-*.png"), reverse=True)

    @property
    def asked_steps(self) -> int | None:
        """What it was started for; None of one that has not begun."""
        steps = _json(self.folder / RECORD).get("max_train_steps")
        return steps if isinstance(steps, int) else None

    @property
    def process(self) -> psutil.Process | None:
        """The one that trains it, if it lives: not another that got its number."""
        said = _json(self.record)
        try:
            process = psutil.Process(int(str(said["pid"])))
            is_it = abs(process.create_time() - float(str(said["created"]))) < 1
            return process if is_it and process.status() != psutil.STATUS_ZOMBIE else None
        except (psutil.Error, LookupError, ValueError):
            return None

    @property
    def state(self) -> State:
        if self.process is not None:
            return "running"
        from controlnet.training.checkpoint import checkpoints  # Lightning, a second that the first page does not need

        saved = checkpoints(self.folder)
        return "finished" if saved and self.asked_steps and saved[-1][0] >= self.asked_steps else "stopped"

    @property
    def log(self) -> str:
        """The end of what it said, without the terminal's colours."""
        path = self.record.with_suffix(".log")
        text = path.read_bytes()[-LOG_SHOWN:].decode("utf-8", "replace") if path.is_file() else ""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").strip()


class Trainings:
    """Of a studio: one runs at a time."""

    def __init__(self, offer: Offer, limits: Limits = LIMITS) -> None:
        self.offer, self.limits = offer, limits
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def runs(self) -> dict[str, Run]:
        """All that can be followed, and those that have been started and have no folder yet."""
        self._children = [child for child in self._children if child.poll() is None]  # else the ended stay as zombies
        folder = self.offer.out / "runs"
        begun = {file.stem: folder / file.stem for file in folder.glob("*.json")}
        found = dict(self.offer.runs) | {name: place for name, place in begun.items() if name not in self.offer.runs}
        return {name: Run(name, place, folder / f"{name}.json") for name, place in found.items()}

    def run(self, name: str | None) -> Run:
        return chosen("run", name, self.runs)

    def start(self, asked: RunAsked) -> Run:
        """UserError with all that is wrong; and if another is running, for they would slow each other down."""
        problems = list(asked.problems(self.limits))
        if asked.name in self.runs:
            problems.append(f"there is a run {asked.name}; continue it, or choose another name")
        if problems:
            raise UserError("\n".join(problems))
        return self._begin(asked.name, asked.command(self.offer))

    def resume(self, name: str, steps: int) -> Run:
        """The same command again, to `steps` in all. UserError for a run that was not started here."""
        run = self.run(name)
        command = _json(run.record).get("command")
        if not isinstance(command, list) or "--max-train-steps" not in command:
            raise UserError(f"the run {name} was not started here; continue it by the command that started it")
        if not 1 <= steps <= self.limits.training_steps:
            raise UserError(f"{steps} steps; expected 1 to {self.limits.training_steps:,}")
        if run.state == "finished" and steps <= run.step:
            raise UserError(f"the run {name} is finished: {run.step} steps; ask for more")
        again = [str(word) for word in command]
        again[again.index("--max-train-steps") + 1] = str(steps)
        return self._begin(name, again)

    def stop(self, name: str) -> Run:
        """It finishes its step and saves. UserError if it does not run."""
        run = self.run(name)
        process = run.process
        if process is None:
            raise UserError(f"the run {name} is not running")
        process.send_signal(signal.SIGTERM)
        return run

    def _begin(self, name: str, command: Sequence[str]) -> Run:
        if running := [run.name for run in self.runs.values() if run.process is not None]:
            raise UserError(f"the run {running[0]} is running; stop it first, or wait for its end")
        record = self.offer.out / "runs" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.with_suffix(".log").open("ab") as log:
            # a session of its own: what ends the studio does not end it
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ)
            )
        self._children.append(child)
        said = {"command": list(command), "pid": child.pid, "created": psutil.Process(child.pid).create_time()}
        write_atomically(record, lambda temporary: temporary.write_text(json.dumps(said, indent=2)))
        return self.run(name)


def _json(path: Path) -> Mapping[str, object]:
    """Empty where there is none yet, or a torn one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
