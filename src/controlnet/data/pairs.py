"""Pairs of picture, hint and prompt in the layout of the original's fill50k.

`prompt.json` has one JSON object a line, {"source": hint file, "target": picture file, "prompt": text}; files are
relative to its folder.
"""

import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from controlnet.errors import UserError
from controlnet.images import Rgb, decode, to_hint, to_target

MANIFEST = "prompt.json"
KEYS = ("source", "target", "prompt")
LAYOUT = 'a line such as {"source": "source/0.png", "target": "target/0.png", "prompt": "..."} for each pair'
TOLD = 5  # of many bad lines; `controlnet data check` tells them all


class Pair(TypedDict):
    """One training sample, as the original's data sets give it."""

    jpg: NDArray[np.float32]  # (H, W, 3) in [-1, 1]
    txt: str
    hint: NDArray[np.float32]  # (H, W, 3) in [0, 1]


@dataclass(frozen=True)
class Row:
    """A line of the manifest; the files are relative to its folder and do not leave it."""

    line: int  # counted from 1
    source: str
    target: str
    prompt: str


class Pairs:
    """The pairs of a folder, as an array: `len(pairs)`, `pairs[1234]`, `pairs[-1]`, `pairs[:8]`.

    Pictures are decoded when asked for. UserError for a folder that is no data set and for lines that are no pairs;
    PictureError, when the pair is asked for, for a picture that cannot be read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = find_manifest(Path(folder)).parent
        self.rows = _rows_or_error(self.folder / MANIFEST)

    def __repr__(self) -> str:
        return f"Pairs({str(self.folder)!r}): {len(self)} pairs"

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        target, hint, prompt = self.raw(index)
        return {"jpg": to_target(target), "txt": prompt, "hint": to_hint(hint)}

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def raw(self, index: int) -> tuple[Rgb, Rgb, str]:
        """Target and hint as they are on disk, (H, W, 3) uint8 RGB of one size, and the prompt."""
        row = self.row(index)
        target, hint = decode(self.folder / row.target), decode(self.folder / row.source)
        if problem := size_problem(target, hint, row):
            raise UserError(f"{self.folder / MANIFEST}, line {row.line}: {problem}; make the hint again at that size")
        return target, hint, row.prompt

    def prompt(self, index: int) -> str:
        """The prompt alone, without decoding a picture."""
        return self.row(index).prompt

    def row(self, index: int) -> Row:
        """The line of the manifest that pair `index` comes from. IndexError outside -len ... len - 1."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no pair {number}: {self.folder} has {len(self)} pairs")
        return self.rows[number]


def find_manifest(folder: Path) -> Path:
    """`prompt.json` in the folder, or in the one folder within it that has one (fill50k.zip unzipped into `folder`)."""
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST
    if not folder.is_dir():
        found = "a file" if folder.exists() else "not there"
        raise UserError(f"{folder} is {found}; expected the folder of a data set: {_described()}")
    within = sorted(folder.glob(f"*/{MANIFEST}"))
    if len(within) == 1:
        return within[0]
    if within:
        names = ", ".join(path.parent.name for path in within)
        raise UserError(f"{folder} has no {MANIFEST}, but several folders in it have one: {names}; name one of these")
    raise UserError(f"{folder} has no {MANIFEST}, so it is no data set; expected {_described()}")


def read_lines(manifest: Path) -> list[tuple[int, Row | str]]:
    """(line number, row or what is wrong with it), without the blank lines at the end. UserError without a line."""
    try:
        content = manifest.read_bytes()
    except OSError as error:
        raise UserError(f"{manifest} cannot be read: {error.strerror}; check the file") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").rstrip().splitlines()
    if not lines:
        raise UserError(f"{manifest} is empty; expected {LAYOUT}")
    return [(number, _parse(line, number)) for number, line in enumerate(lines, 1)]


def size_problem(target: Rgb, hint: Rgb, row: Row) -> str:
    """What to say of a hint whose size is not its picture's; empty if all is well."""
    if target.shape == hint.shape:
        return ""
    sizes = [f"{rgb.shape[1]}x{rgb.shape[0]}" for rgb in (hint, target)]
    return f"the hint {row.source} has {sizes[0]} pixels, the picture {row.target} {sizes[1]}"


def _parse(line: bytes, number: int) -> Row | str:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not in UTF-8"
    except ValueError as error:
        return f"no JSON ({error})" if line.strip() else "blank"
    if not isinstance(value, dict):
        return f"no JSON object but {'a list' if isinstance(value, list) else repr(value)}; expected {LAYOUT}"
    if missing := [key for key in KEYS if key not in value]:
        return f"lacks {', '.join(missing)}"
    if wrong := [f"{key} is {value[key]!r}" for key in KEYS if not isinstance(value[key], str)]:
        return f"{', '.join(wrong)}; expected text"
    if outside := [f"{key} {value[key]!r}" for key in ("source", "target") if not _stays_inside(value[key])]:
        return f"{', '.join(outside)} leaves the folder; expected a path within it"
    return Row(number, value["source"], value["target"], value["prompt"])


def _stays_inside(path: str) -> bool:
    """Of a relative path without "..", by the rules of POSIX and of Windows, so that a data set means one thing."""
    windows = PureWindowsPath(path)
    rooted = bool(windows.drive or windows.root) or PurePosixPath(path).is_absolute()
    return bool(path) and "\0" not in path and not rooted and ".." not in windows.parts


def _rows_or_error(manifest: Path) -> list[Row]:
    lines = read_lines(manifest)
    wrong = [f"line {number}: {row}" for number, row in lines if isinstance(row, str)]
    if wrong:
        more = [f"and {len(wrong) - TOLD} more"] if len(wrong) > TOLD else []
        raise UserError(
            f"{manifest} has lines that are no pairs; `controlnet data check` tells all; "
            + "; ".join([*wrong[:TOLD], *more])
        )
    return [row for _, row in lines if isinstance(row, Row)]


def _described() -> str:
    return f"{MANIFEST} with {LAYOUT}, and the pictures; `controlnet data circles OUT` makes one"
