"""Pictures, rows and recipes for the tests of builds."""

from pathlib import Path

import numpy as np

from controlnet.build.pictures import inspected
from controlnet.build.rows import Row, identify
from controlnet.data.shapes import draw_scene, render
from controlnet.images import encoded


def picture(seed: int, size: int = 64, format: str = "png") -> bytes:
    """A file with a shape on a ground."""
    return encoded(render(draw_scene(np.random.default_rng(seed)), size), format)


def row(seed: int, **values: object) -> Row:
    return inspected(Row(identify(f"row {seed}"), {"caption": f"shape {seed}", **values}), picture(seed))


def folder(path: Path, count: int, size: int = 64) -> Path:
    """A folder of pictures with captions beside them."""
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number:03d}.png").write_bytes(picture(number, size))
        (path / f"{number:03d}.txt").write_text(f"shape {number}")
    return path
