"""What a run has measured, in RUN/metrics.csv: one row per log line and per validation."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from controlnet.atomic import write_atomically
from controlnet.errors import UserError
from controlnet.evaluation.convergence import Validation

FIELDS = (
    *("step", "loss", "images_per_second", "peak_memory"),  # the memory in bytes
    *("held_out_loss", "base_loss", "hint_gain", "fidelity", "text_accuracy"),
)

Row = dict[str, str]


class Record:
    """The rows of a run, in memory and on disk; a row's empty cells are what was not measured at its step."""

    def __init__(self, path: Path, until: int) -> None:
        """Take up the rows of a run that goes on from step `until`; what came after is measured anew."""
        self.path = path
        self.rows = [row for row in read_rows(path) if int(row["step"]) <= until]
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

    def add_validation(self, measured: Validation) -> None:
        figures = {field.name: getattr(measured, field.name) for field in fields(measured)}
        step, figures["held_out_loss"] = figures.pop("step"), figures.pop("loss")
        self.add(step, **figures)

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, mean training loss since the row before)."""
        return column_of(self.rows, "loss")

    @property
    def history(self) -> list[Validation]:
        return history_of(self.rows)

    def _as_text(self) -> str:
        return "".join([_line(FIELDS), *(_line(row.values()) for row in self.rows)])


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a metrics.csv; columns that an older version did not write are empty."""
    if not path.exists():
        return []
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    # a killed process may leave a torn last line: it lacks cells
    whole = [row for row in rows if None not in row.values() and row["step"]]
    return [dict.fromkeys(FIELDS, "") | {name: row[name] for name in FIELDS if name in row} for row in whole]


def column_of(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever a column has one."""
    return [(int(row["step"]), float(row[name])) for row in rows if row[name]]


def history_of(rows: Sequence[Row]) -> list[Validation]:
    """The validations among the rows."""
    return [
        Validation(
            int(row["step"]),
            float(row["held_out_loss"]),
            float(row["hint_gain"]),
            *(float(row[name]) if row[name] else None for name in ("fidelity", "base_loss", "text_accuracy")),
        )
        for row in rows
        if row["hint_gain"]
    ]


def _line(cells: Iterable[str]) -> str:
    return ",".join(cells) + "\n"  # numbers and names: nothing to quote
