"""A table of pairs, JSON lines or CSV, whose columns name the files of picture and hint, beside the prompt.

Also the `metadata.jsonl` or `metadata.csv` of a folder of pictures as the hub has it: `file_name` is the column
`image`, and `X_file_name` the column `X`.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from controlnet.data.formats.records import USUAL, Columns, Problem, Record, Records, Stored, stays_inside
from controlnet.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".tsv")
IN_FOLDER = ("metadata.jsonl", "metadata.csv", "train/metadata.jsonl", "train/metadata.csv")
FILE_NAME = "file_name"
IMAGE = "image"

Line = tuple[int, Mapping[str, Any] | str]  # number, its cells or what is wrong with it


class Table(Records):
    """The pairs of a table; its files are relative to its folder and do not leave it, unless written in full."""

    def __init__(self, place: str, columns: Columns = USUAL) -> None:
        path = find_table(Path(place))
        assert path is not None, f"{place} is not recognised as a table"
        self.place, self.folder = str(path), path.parent
        lines = list(_read(path))
        names = list(dict.fromkeys(name for _, cells in lines if not isinstance(cells, str) for name in cells))
        found = columns.find(names)
        if not found[0] or not found[2]:
            raise UserError(
                f"{path} has the columns {', '.join(names) or '(none)'}; expected one of the picture (image), one of "
                "the hint (conditioning_image) and one of the prompt (text); name others by --image-column, "
                "--conditioning-image-column and --caption-column"
            )
        self.has_hints = bool(found[1])
        rows = [(number, self._row(cells, found)) for number, cells in lines]
        self.rows = [(number, row) for number, row in rows if not isinstance(row, str)]
        self.problems = [Problem(number, f"line {number}", row) for number, row in rows if isinstance(row, str)]

    @staticmethod
    def recognises(place: str) -> bool:
        return find_table(Path(place)) is not None

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        number, (target, hint, prompt) = self.rows[index]
        stored = Stored(hint, self.folder / hint) if self.has_hints else None
        return Record(f"line {number}", Stored(target, self.folder / target), stored, prompt)

    def prompt(self, index: int) -> str:
        return self.rows[index][1][2]

    def where(self, index: int) -> tuple[int, str]:
        return self.rows[index][0], f"line {self.rows[index][0]}"

    def _row(self, cells: Mapping[str, Any] | str, names: tuple[str, str, str]) -> tuple[str, str, str] | str:
        """Picture, hint and prompt of a line, or what is wrong with it."""
        if isinstance(cells, str):
            return cells
        wanted = [name for name in names if name]
        if missing := [name for name in wanted if cells.get(name) is None]:
            return f"lacks {', '.join(missing)}"
        if wrong := [f"{name} is {cells[name]!r}" for name in wanted if not isinstance(cells[name], str)]:
            return f"{', '.join(wrong)}; expected text"
        target, hint, prompt = (cells[name] if name else "" for name in names)
        files = [target, hint] if self.has_hints else [target]
        if outside := [file for file in files if not stays_inside(file) and not Path(file).is_absolute()]:
            return f"{', '.join(map(repr, outside))} leaves the folder; expected a path within it, or one in full"
        return target, hint, prompt


def find_table(path: Path) -> Path | None:
    """The table that a path is, or that a folder has."""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return path
    return next((path / name for name in IN_FOLDER if (path / name).is_file()), None)


def _read(path: Path) -> Iterator[Line]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected text in UTF-8") from error
    yield from _json_lines(text) if path.suffix.lower() == ".jsonl" else _cells(text, path.suffix.lower())


def _json_lines(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.rstrip().splitlines(), 1):
        try:
            value = json.loads(line)
        except ValueError as error:
            yield number, f"no JSON ({error})" if line.strip() else "blank"
            continue
        yield number, _as_columns(value) if isinstance(value, dict) else f"no JSON object but {value!r}"


def _cells(text: str, suffix: str) -> Iterator[Line]:
    reader = csv.DictReader(text.splitlines(), delimiter="\t" if suffix == ".tsv" else ",", restkey="")
    for cells in reader:
        too_many = "" in cells
        yield reader.line_num, "has more cells than the first line" if too_many else _as_columns(cells)


def _as_columns(cells: Mapping[str, Any]) -> Mapping[str, Any]:
    """`file_name` is called `image`, and `X_file_name` X, as `datasets` calls them."""
    return {_column(name): value for name, value in cells.items()}


def _column(name: str) -> str:
    return IMAGE if name == FILE_NAME else name.removesuffix(f"_{FILE_NAME}")
