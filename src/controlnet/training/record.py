"""What a run has measured, in RUN/metrics.csv: one row per log line and per validation."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from controlnet.atomic import write_atomically
from controlnet.errors import UserError
from controlnet.evaluation.convergence import Validation

FIELDS = ("step", "loss", "images_per_second", "held_out_loss", "hint_gain", "fidelity")


class Record:
    """The rows of a run, in memory and on disk; a row's empty cells are what was not measured at its step."""

    def __init__(self, path: Path, until: int) -> None:
        """Take up the rows of a run that goes on from step `until`; what came after is measured anew."""
        self.path = path
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []
        # a killed process may leave a torn last line: it lacks cells
        whole = [row for row in rows if None not in row.values() and row["step"]]
        self.rows = [row for row in whole if int(row["step"]) <= until]
        write_atomically(path, lambda temporary: temporary.write_text(self._as_text(), encoding="utf-8"))

    def add(self, step: int, **measured: float | None) -> None:
        row = dict.fromkeys(FIELDS, "") | {"step": str(step)}
        row |= {name: f"{value:.6g}" for name, value in measured.items() if value is not None}
        self.rows.append(row)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row.values()))
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {os.strerror(error.errno or 0).lower()}; the last checkpoint is whole; "
                "make room, then run the same command to continue from it"
            ) from error

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, mean training loss since the row before)."""
        return [(int(row["step"]), float(row["loss"])) for row in self.rows if row["loss"]]

    @property
    def history(self) -> list[Validation]:
        return [
            Validation(
                int(row["step"]),
                float(row["held_out_loss"]),
                float(row["hint_gain"]),
                float(row["fidelity"]) if row["fidelity"] else None,
            )
            for row in self.rows
            if row["hint_gain"]
        ]

    def _as_text(self) -> str:
        return "".join([_line(FIELDS), *(_line(row.values()) for row in self.rows)])


def _line(cells: Iterable[str]) -> str:
    return ",".join(cells) + "\n"  # numbers and names: nothing to quote
