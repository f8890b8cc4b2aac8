"""What the Annotate tab does: one picture's hint beside it, or those of many pictures in an archive."""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlnet.annotators.annotator import Detail
from controlnet.annotators.hint_file import description, encode, encode_detail
from controlnet.annotators.resolution import to_size
from controlnet.errors import UserError
from controlnet.studio.asked import Pixels
from controlnet.studio.models import Models
from controlnet.studio.parts import HERE
from controlnet.studio.units import known_options

MOST_FILES = 200  # of one batch
ARCHIVE = "hints.zip"
TOLD = 10  # of many pictures that cannot be read


@dataclass(frozen=True, eq=False)
class Hint:
    """A picture's hint at the picture's size, as a file, and what was found beyond it."""

    pixels: Pixels
    png: bytes
    detail: Detail


def annotate(picture: Pixels | bytes, name: str, options: Mapping[str, Any], models: Models) -> Hint:
    """UserError for a picture that cannot be read and for weights that are not there."""
    annotator = models.annotator(name, known_options(name, options))
    with models.annotating:
        rgb = annotator.read(picture)
        [(hint, detail)] = annotator.batch_detailed([picture])
    meaning = annotator.hint_meaning()
    sized = to_size(hint, rgb.shape[1::-1], meaning.is_smooth)
    return Hint(sized, encode(sized, json.dumps(description(annotator))), detail)


def annotate_files(
    files: Sequence[str], name: str, options: Mapping[str, Any], models: Models, folder: Path
) -> Iterator[tuple[int, list[str]]]:
    """Hints of many pictures into folder/hints.zip, as NAME.png, details beside them as NAME.json or NAME.classes.png.

    Tells how many are done, and which could not be: a broken picture does not end the rest. UserError for none at all,
    and for too many.
    """
    if not 0 < len(files) <= MOST_FILES:
        raise UserError(f"{len(files)} pictures; expected 1 to {MOST_FILES}; `controlnet annotate` takes whole folders")
    failed: list[str] = []
    partial = folder / f"{ARCHIVE}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(partial, "w") as archive:
        for number, file in enumerate(map(Path, files), 1):
            try:
                _add(archive, f"{number:03d}-{file.stem}", annotate(file.read_bytes(), name, options, models))
            except UserError as error:
                words = str(error)
                failed.append(words.replace(HERE, file.name) if HERE in words else f"{file.name}: {words}")
            yield number, failed
    if len(failed) == len(files):
        raise UserError("\n".join(failed[:TOLD]))
    partial.replace(folder / ARCHIVE)


def _add(archive: zipfile.ZipFile, stem: str, hint: Hint) -> None:
    archive.writestr(f"{stem}.png", hint.png)
    if hint.detail is not None:
        height, width = hint.pixels.shape[:2]
        suffix, data = encode_detail(hint.detail, (width, height))
        archive.writestr(f"{stem}{'.classes' if suffix == '.png' else ''}{suffix}", data)
