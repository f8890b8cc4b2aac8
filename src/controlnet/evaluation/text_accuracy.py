"""What a base of the small world knows from text alone: are the named colours and shape in its pictures?

Run: controlnet base evaluate
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from controlnet.base import Base
from controlnet.data.colours import RGB
from controlnet.data.shapes import CENTRE, RADIUS, SHAPES, Scene, draw_scene, mask
from controlnet.evaluation.fidelity import Pixels, colour_error, colour_errors, region
from controlnet.evaluation.metrics import Mask, overlap
from controlnet.generation.pipeline import Progress, generate_pixels
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit

FRESH = 1_000_000  # stream of the prompts that are asked, far from those of any training
SAME_COLOUR = 10.0  # CIEDE2000: another shade at most
COARSE = 32  # side of the templates that every shape is first matched with
FITTING = 0.6  # overlap with its template from which a region counts as a shape at all


@dataclass(frozen=True)
class Accuracy:
    """Shares of pictures, 0 to 1, that show what was named."""

    background: float
    colour: float
    shape: float

    @property
    def mean(self) -> float:
        return (self.background + self.colour + self.shape) / 3

    def __str__(self) -> str:
        return f"background colour {self.background:.1%}, shape's colour {self.colour:.1%}, shape {self.shape:.1%}"


def text_accuracy(
    base: Base,
    count: int = 500,
    seed: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
    units: Sequence[Unit] = (),
) -> tuple[Accuracy, NDArray[np.uint8]]:
    """Ask for `count` fresh scenes, 20 steps each; also gives their pictures (n, H, W, 3)."""
    scenes = [draw_scene(np.random.default_rng([FRESH, seed, number])) for number in range(count)]
    captions = [scene.caption for scene in scenes]
    pictures = generate_pixels(
        base, captions, range(count), units, settings or Settings(), batch_size=16, progress=progress
    )
    return judge(scenes, pictures), pictures


def judge(scenes: Sequence[Scene], pictures: Sequence[Pixels] | NDArray[np.uint8]) -> Accuracy:
    """How many pictures show their scenes' colours and shape, wherever and however large."""
    backgrounds, colours, shapes = [], [], []
    for scene, picture in zip(scenes, pictures, strict=True):
        found = region(picture)
        if found.any():
            colour, background = colour_errors(picture, found, RGB[scene.colour], RGB[scene.background])
        else:  # one flat colour can still be the background's
            colour, background = np.inf, colour_error(picture.reshape(-1, 3), RGB[scene.background])
        colours.append(colour <= SAME_COLOUR)
        backgrounds.append(background <= SAME_COLOUR)
        shapes.append(recognise(found) == scene.shape)
    return Accuracy(float(np.mean(backgrounds)), float(np.mean(colours)), float(np.mean(shapes)))


def recognise(found: Mask) -> str | None:
    """The shape whose template, at the best place and size, covers the region (h, w) best; None if none fits."""
    best = {shape: best_overlap(found, shape) for shape in SHAPES}
    shape = max(best, key=lambda name: best[name])
    return shape if best[shape] >= FITTING else None


def best_overlap(found: Mask, shape: str) -> float:
    """The largest overlap of the region with the shape, first over coarse templates, then from the best by steps."""
    size = len(found)
    small = found.reshape(COARSE, size // COARSE, COARSE, size // COARSE).mean(axis=(1, 3)).ravel().astype(np.float32)
    places, templates = coarse_templates(shape)
    common = templates @ small
    place = places[int(np.argmax(common / (templates.sum(axis=1) + small.sum() - common)))]

    def score(candidate: NDArray[np.float64]) -> float:
        return overlap(found, mask(Scene(shape, "", "", *candidate), size) > 127)

    value, step = score(place), 1 / COARSE
    while step > 0.25 / size:
        moves = step * np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)])
        better = max((place + move for move in moves), key=score)
        if score(better) > value:
            place, value = better, score(better)
        else:
            step /= 2
    return value


@cache
def coarse_templates(shape: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Places (n, 3) as x, y, radius on a grid, and the shape's masks there (n, COARSE * COARSE) in [0, 1]."""
    centres, radii = np.linspace(CENTRE[0] - 0.1, CENTRE[1] + 0.1, 15), np.linspace(*RADIUS, 8)
    places = np.array(list(product(centres, centres, radii)), dtype=np.float64)
    masks = np.stack([mask(Scene(shape, "", "", x, y, radius), COARSE) for x, y, radius in places])
    return places, np.asarray(masks.reshape(len(places), -1) / 255, dtype=np.float32)
