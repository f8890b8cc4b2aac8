"""A Hugging Face data set read as it comes, for those that no disk holds."""

import os
from typing import Any

from controlnet.data.formats.hub import open_rows, picture_columns, row_record
from controlnet.data.formats.records import Columns, Record, Records
from controlnet.errors import UserError


class Stream(Records):
    """Rows in their own order. One after the other they come at once; a step back begins anew and skips."""

    def __init__(self, place: str, columns: Columns) -> None:
        self.place, self.stream = place, f"{place} {columns}"
        self.rows = open_rows(place, columns)
        self.names = picture_columns(self.rows, place, columns)
        self.length = columns.length or _known_length(self.rows, columns.split)
        if not self.length:
            raise UserError(f"nobody knows how many rows {place} has; say how many to take: --max-train-samples")
        self._next, self._process = 0, -1
        self._iterator: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_iterator": None, "_process": -1}

    def __len__(self) -> int:
        return self.length or 0

    def record(self, index: int) -> Record:
        row = self._row(index)
        return row_record(row, f"row {index + 1}", *self.names)

    def prompt(self, index: int) -> str:
        return self.record(index).prompt

    def where(self, index: int) -> tuple[int, str]:
        return index + 1, f"row {index + 1}"

    def _row(self, index: int) -> dict[str, Any]:
        if self._process != os.getpid() or index != self._next:  # what another process opened is not shared
            self._iterator, self._process = iter(self.rows.skip(index)), os.getpid()
        self._next = index + 1
        row: dict[str, Any] | None = next(self._iterator, None)
        if row is None:
            raise UserError(f"{self.place} ended before its row {index + 1}; take fewer: --max-train-samples {index}")
        return row


def _known_length(rows: Any, split: str) -> int | None:
    known = getattr(rows.info, "splits", None) or {}
    return known[split].num_examples if split in known else None
