"""Hugging Face `datasets`: of the hub (owner/name), saved to disk, Parquet or Arrow files; any row at any time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controlnet.data.formats.records import USUAL, Columns, Record, Records, Stored
from controlnet.errors import UserError

SAVED = ("state.json", "dataset_dict.json")  # of `save_to_disk`
TABLES = {".parquet": "parquet", ".arrow": "arrow"}
ADVICE = "name others by --image-column, --conditioning-image-column and --caption-column"


class Hub(Records):
    """Rows of pictures and prompts; memory-mapped, its pictures as they are encoded."""

    def __init__(self, place: str, columns: Columns = USUAL) -> None:
        self.place = place
        self.rows = open_rows(place, columns)
        self.target, self.hint, self.text = picture_columns(self.rows, place, columns)
        self.prompts = self.rows.select_columns([self.text])

    @staticmethod
    def recognises(place: str) -> bool:
        path = Path(place)
        if not path.exists():
            return re.fullmatch(r"[\w.-]+/[\w.-]+", place) is not None and not path.parent.is_dir()
        return any((path / name).is_file() for name in SAVED) or bool(_table_files(path))

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        return row_record(self.rows[index], f"row {index + 1}", self.target, self.hint, self.text)

    def prompt(self, index: int) -> str:
        return str(self.prompts[index][self.text])

    def where(self, index: int) -> tuple[int, str]:
        return index + 1, f"row {index + 1}"


def picture_columns(rows: Any, place: str, columns: Columns) -> tuple[str, str, str]:
    """The columns of target, hint and prompt; from now on the pictures of `rows` come as they are encoded."""
    target, hint, text = columns.find(rows.features)
    if not target or not text:
        raise UserError(
            f"data set {place} has the columns {', '.join(rows.features)}; expected image, conditioning_image and "
            f"text; {ADVICE}"
        )
    return target, hint, text


def row_record(row: dict[str, Any], label: str, target: str, hint: str, text: str) -> Record:
    """A row of `datasets`, whose pictures are not decoded, as a record."""
    stored = _stored(row[hint], f"{hint} of {label}") if hint else None
    return Record(label, _stored(row[target], f"{target} of {label}"), stored, str(row[text] or ""))


def _stored(cell: Any, name: str) -> Stored:
    """Of an undecoded cell of pictures; without bytes it is a file, or nothing, which is no picture."""
    if isinstance(cell, str):
        return Stored(name, Path(cell))
    cell = cell or {}
    if cell.get("bytes"):
        return Stored(name, cell["bytes"])
    return Stored(name, Path(cell["path"])) if cell.get("path") else Stored(name, b"")


def undecoded(rows: Any) -> Any:
    """`rows` with pictures as bytes, for ours is the one decoder."""
    from datasets import Image

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def open_rows(place: str, columns: Columns) -> Any:
    """The rows of a data set, streamed if so. UserError where it cannot be opened."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    path, streaming = Path(place), columns.streaming
    try:
        if any((path / saved).is_file() for saved in SAVED) and not streaming:
            found = load_from_disk(place)
            rows = found[columns.split] if isinstance(found, DatasetDict) else found
        elif files := _table_files(path):
            kind = TABLES[files[0].suffix]
            rows = load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=streaming)
        else:
            rows = load_dataset(place, columns.configuration, split=columns.split, streaming=streaming)
    except Exception as error:  # datasets raises many types
        raise UserError(
            f"data set {place}: cannot be opened ({_first_line(error)}); check its name, and that it has a split "
            f"{columns.split}"
        ) from error
    return undecoded(rows)


def _table_files(path: Path) -> list[Path]:
    """Parquet or Arrow files that a path is or has, of one kind; those of `train` where a name says so."""
    if path.is_file():
        return [path] if path.suffix in TABLES else []
    for suffix in TABLES:
        files = list(_inside(path, suffix))
        named = [file for file in files if "train" in file.name]
        if files:
            return named or files
    return []


def _inside(path: Path, suffix: str) -> Iterator[Path]:
    yield from sorted(path.glob(f"*{suffix}"))
    yield from sorted(path.glob(f"*/*{suffix}"))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
