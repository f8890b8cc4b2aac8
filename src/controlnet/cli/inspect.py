"""`controlnet inspect`: what a file or folder of weights is, and what it holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from controlnet.cli.common import size

if TYPE_CHECKING:
    from rich.table import Table

    from controlnet.checkpoints.inspection import FileOnDisk, Inspection

PARTS = {
    "unet": "U-Net",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "control": "ControlNet",
    "ema": "moving averages (EMA)",
    "other": "of no part",
}
LAYOUTS = {
    "ldm": "the original's, with a prefix for each part",
    "webui": "the original's, without a prefix",
    "diffusers": "diffusers'",
    "controlnet": "ours",
    "unknown": "of no layout that is read",
}
PREDICTIONS = {
    "epsilon": "the noise (epsilon)",
    "v_prediction": "the velocity (v_prediction)",
    None: "the file does not tell",
}
SAID = {True: "What the control was made for", False: "What its header says"}
SHOWN, LONGEST = 16, 240  # rows of a table, characters of a value


@dataclass(frozen=True)
class Inspect:
    """What a file or folder of weights is, what it holds and what to do with it. Nothing in it is ever executed.

    Of a file that is no model: what it is instead, and what to do.
    """

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """A file, a folder (a base or a control in diffusers layout, a run) or a name: embedded, circle, sd15, canny."""
    json: bool = False
    """Print JSON for another program."""
    hash: bool = True
    """Also compute the SHA-256, for which all of the file is read."""
    keys: bool = False
    """Also list every tensor with its shape and type."""

    def __call__(self) -> None:
        from controlnet.checkpoints.inspection import inspect

        found = inspect(_place(self.source), _sha256_with_a_bar if self.hash else None)
        if self.json:
            print(found.to_json(self.keys))
            return
        _print(found)
        for name, tensor in found.keys.items() if self.keys else ():
            print(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _place(source: str) -> Path:
    """The file or folder that is meant; UserError if there is none."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    from controlnet.base import EMBEDDED, base_place
    from controlnet.checkpoints.control_file import find_control
    from controlnet.checkpoints.model_table import BASES
    from controlnet.checkpoints.models import locate

    if source == EMBEDDED:
        return base_place(source)
    return locate(source) if source in BASES else find_control(source)


def _sha256_with_a_bar(path: Path) -> str:
    from controlnet.checkpoints.models import sha256
    from controlnet.cli.progress import bytes_bar

    with bytes_bar(f"SHA-256 of {path.name}") as progress:
        return sha256(path, progress)


def _print(found: "Inspection") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text.assemble((found.contents.title, "bold"), f": {found.path}"), soft_wrap=True)
    console.print(_table("", _about(found)))
    console.print(_parts(found))
    for title, rows in (
        ("Files", [(_inside(found, file), f"{file.format}, {size(file.size)}") for file in found.files]),
        (SAID["control" in found.contents.parts], _said(found)),
        ("What else stands in its header", list(found.metadata.items())),
        ("What else it holds", list(found.others.items())),
        ("Objects of classes that were not loaded", [(name, f"{n:,}") for name, n in found.placeholders.items()]),
    ):
        if rows and (title != "Files" or found.path.is_dir()):
            console.print(_table(title, rows))
    if hashes := [f"{file.sha256}  {_inside(found, file)}" for file in found.files if file.sha256]:
        console.print(Text("\n".join(["SHA-256", *hashes])), soft_wrap=True)
    for problem in found.problems:
        console.print(Text.assemble(("not usable as it is: ", "bold red"), problem), soft_wrap=True)


def _said(found: "Inspection") -> list[tuple[str, str]]:
    return [(name.replace("_", " "), _words(value)) for name, value in found.said.items() if value != {}]


def _inside(found: "Inspection", file: "FileOnDisk") -> str:
    return file.path.relative_to(found.path).as_posix() if found.path.is_dir() else file.path.name


def _about(found: "Inspection") -> list[tuple[str, str]]:
    from controlnet.checkpoints.contents import KINDS

    contents = found.contents
    rows = [] if found.path.is_dir() else [("file", f"{found.files[0].format}, {size(found.files[0].size)}")]
    rows.append(("names", LAYOUTS[contents.layout]))
    if {"unet", "control"} & set(contents.parts):
        rows.append(("predicts", PREDICTIONS[contents.prediction]))
    if "unet" in contents.parts:
        rows.append(
            ("EMA", "moving averages beside the weights: --ema takes them" if "ema" in contents.parts else "none")
        )
    rows.append(("what to do", KINDS[contents.kind].remedy))
    return rows


def _parts(found: "Inspection") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("part")
    for title in ("parameters", "tensors"):
        table.add_column(title, justify="right")
    table.add_column("precision")
    for name, part in found.parts.items():
        table.add_row(PARTS.get(name, name), f"{part.parameters:,}", f"{part.tensors:,}", ", ".join(part.dtypes))
    return table


def _table(title: str, rows: list[tuple[str, str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows[:SHOWN]:
        shown = value if len(value) <= LONGEST else value[: LONGEST - 3] + "..."
        table.add_row(Text(_printable(name)), Text(_printable(shown)))
    if rows[SHOWN:]:
        table.add_row(Text(f"and {len(rows) - SHOWN:,} more"), Text("--json shows all"))
    return table


def _printable(text: str) -> str:
    """Without what a stranger's file could tell the terminal to do."""
    return "".join(character if character.isprintable() else " " for character in text)


def _words(value: object) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{name.replace('_', ' ')} {_words(inner)}" for name, inner in value.items())
        case list() | tuple():
            return ", ".join(map(_words, value))
        case bool():
            return "yes" if value else "no"
        case str() if re.fullmatch("[0-9a-f]{64}", value):
            return f"{value[:16]}..."
    return "unknown" if value is None else str(value)
