"""The layout of the original's fill50k: `prompt.json` has one JSON object a line, {"source", "target", "prompt"}.

`source` is the hint's file, `target` the picture's; both are relative to the folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from controlnet.data.formats.records import USUAL, Columns, Problem, Record, Records, Stored, stays_inside
from controlnet.errors import UserError

MANIFEST = "prompt.json"
KEYS = ("source", "target", "prompt")
LAYOUT = 'a line such as {"source": "source/0.png", "target": "target/0.png", "prompt": "..."} for each pair'


@dataclass(frozen=True)
class Row:
    """A line of the manifest; the files are relative to its folder and do not leave it."""

    line: int  # counted from 1
    source: str
    target: str
    prompt: str


class PromptJson(Records):
    """The pairs of a folder with `prompt.json`, in it or in the one folder within it that has one."""

    def __init__(self, place: str, columns: Columns = USUAL) -> None:
        manifest = find_manifest(Path(place))
        self.folder, self.place = manifest.parent, str(manifest)
        lines = _read_lines(manifest)
        self.rows = [row for _, row in lines if isinstance(row, Row)]
        self.problems = [Problem(number, f"line {number}", row) for number, row in lines if isinstance(row, str)]

    @staticmethod
    def recognises(place: str) -> bool:
        path = Path(place)
        return path.is_dir() and ((path / MANIFEST).is_file() or bool(list(path.glob(f"*/{MANIFEST}"))))

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, index: int) -> Record:
        row = self.rows[index]
        target, hint = (Stored(name, self.folder / name) for name in (row.target, row.source))
        return Record(f"line {row.line}", target, hint, row.prompt)

    def prompt(self, index: int) -> str:
        return self.rows[index].prompt

    def where(self, index: int) -> tuple[int, str]:
        line = self.rows[index].line
        return line, f"line {line}"


def find_manifest(folder: Path) -> Path:
    """`prompt.json` in the folder, or in the one folder within it that has one (fill50k.zip unzipped into `folder`)."""
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST
    within = sorted(folder.glob(f"*/{MANIFEST}"))
    if len(within) == 1:
        return within[0]
    names = ", ".join(path.parent.name for path in within)
    raise UserError(f"{folder} has no {MANIFEST}, but several folders in it have one: {names}; name one of these")


def _read_lines(manifest: Path) -> list[tuple[int, Row | str]]:
    """(line number, row or what is wrong with it), without the blank lines at the end. UserError without a line."""
    try:
        content = manifest.read_bytes()
    except OSError as error:
        raise UserError(f"{manifest} cannot be read: {error.strerror}; check the file") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").rstrip().splitlines()
    if not lines:
        raise UserError(f"{manifest} is empty; expected {LAYOUT}")
    return [(number, _parse(line, number)) for number, line in enumerate(lines, 1)]


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
    if outside := [f"{key} {value[key]!r}" for key in ("source", "target") if not stays_inside(value[key])]:
        return f"{', '.join(outside)} leaves the folder; expected a path within it"
    return Row(number, value["source"], value["target"], value["prompt"])
