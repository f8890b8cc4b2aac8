"""All pictures of a list of jobs on one sheet, each row behind the hint that it obeys."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from controlnet.generation.recipe import Recipe
from controlnet.images import LARGEST_AREA, Rgb, decode, encode_png, grid


def write_sheet(pictures: Sequence[tuple[Path, Recipe]], path: Path) -> None:
    """A row for each hint, pictures of one hint side by side; without hints as nearly square as can be."""
    rows: dict[str | None, list[Path | str]] = {}
    for picture, recipe in pictures:
        about = next((unit.hint or unit.image for unit in recipe.units), recipe.image)
        rows.setdefault(about, [about] if about is not None else []).append(picture)
    if None in rows and len(rows) == 1:
        [every] = rows.values()
        width = max(1, round(len(every) ** 0.5))
        cells = [every[start : start + width] for start in range(0, len(every), width)]
    else:
        cells = list(rows.values())
    largest = (LARGEST_AREA / max(1, len(cells) * max(map(len, cells), default=1))) ** 0.5
    encode_png(grid([[_small(cell, round(largest)) for cell in row] for row in cells]), path)


def _small(place: Path | str, side: int) -> Rgb:
    image = Image.fromarray(decode(place))
    image.thumbnail((side, side))
    return np.asarray(image)
