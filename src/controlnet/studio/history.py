"""What a visitor has made, on disk: pictures/VISITOR/0001.png ..., and beside them inputs/, the hints that they name.

A visitor's name is drawn at random, kept in the browser alone, and too long to be guessed: who does not know it does
not see the folder. `controlnet generate --from 0001.png`, run in the folder, makes a picture again bit for bit.
"""

import re
import secrets
from functools import partial
from pathlib import Path
from threading import Lock

from controlnet.atomic import write_atomically
from controlnet.generation.picture_file import write_picture
from controlnet.studio.carried import with_asked
from controlnet.studio.making import Pictures, inputs_of

NAME = re.compile(r"[A-Za-z0-9_-]{22}")  # 128 bits
PICTURE = re.compile(r"(\d+)\.png")
_numbering = Lock()


def new_visitor() -> str:
    return secrets.token_urlsafe(16)


def is_visitor(name: object) -> bool:
    """Whether the browser has kept a name of ours."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def pictures_of(folder: Path) -> list[Path]:
    """The newest first."""
    numbered = [(int(match[1]), file) for file in folder.glob("*.png") if (match := PICTURE.fullmatch(file.name))]
    return [file for _, file in sorted(numbered, reverse=True)]


def keep(pictures: Pictures, folder: Path) -> list[Path]:
    """Write the pictures of a call, and the inputs that they name."""
    for place, data in inputs_of(pictures.asked, pictures.seen).items():
        if not (folder / place).exists():
            write_atomically(folder / place, partial(Path.write_bytes, data=data))
    return [_keep(pictures, number, folder) for number in range(len(pictures.made))]


def _keep(pictures: Pictures, number: int, folder: Path) -> Path:
    asked = pictures.asked.with_seed(pictures.asked.seed + number)
    with _numbering:
        last = next((int(file.stem) for file in pictures_of(folder)), 0)
        path = folder / f"{last + 1:04d}.png"
        write_picture(path, pictures.pixels_nhwc[number], pictures.made[number])
        png = with_asked(path.read_bytes(), asked)
        write_atomically(path, partial(Path.write_bytes, data=png))
    return path
