"""The small world that the embedded base knows: one flat shape on a flat ground, told in words."""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.data.colours import NAMES, RGB, difference

SHAPES = ("circle", "square", "triangle", "star", "diamond", "ring")

# All lengths are fractions of the picture's side.
RADIUS = (0.10, 0.40)  # from a shape that a latent cell of 1/16 can still show, to one that fills the picture
CENTRE = (0.15, 0.85)  # so that large shapes, and only these, are cut by the border
RING_HOLE = 0.6  # inner over outer radius
STAR_WAIST = 0.45  # inner over outer radius of the five-pointed star
DIAMOND_WIDTH = 0.7  # width over height
SQUARE_HALF = 0.85  # half a side over the radius: between a square in and a square around the circle
CONTRAST = 15.0  # CIEDE2000 between shape and ground, so that every shape can be seen
SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Scene:
    """One shape of one colour on one background; `x`, `y`, `radius` are fractions of the picture's side."""

    shape: str
    colour: str
    background: str
    x: float
    y: float
    radius: float

    @property
    def caption(self) -> str:
        return f"{self.colour} {self.shape} with {self.background} background"


@functools.cache
def contrasting() -> tuple[tuple[str, ...], ...]:
    """For each named colour, in the order of NAMES, the names that can be told from it at a glance."""
    rgb = np.array([RGB[name] for name in NAMES])
    apart = difference(rgb[:, None], rgb[None]) >= CONTRAST
    return tuple(tuple(name for name, far in zip(NAMES, row, strict=True) if far) for row in apart)


def draw_scene(random: np.random.Generator, shapes: tuple[str, ...] = SHAPES) -> Scene:
    """A scene drawn from the world's distribution."""
    background = int(random.integers(len(NAMES)))
    colours = contrasting()[background]
    x, y = random.uniform(*CENTRE, size=2)
    return Scene(
        shape=shapes[int(random.integers(len(shapes)))],
        colour=colours[int(random.integers(len(colours)))],
        background=NAMES[background],
        x=float(x),
        y=float(y),
        radius=float(random.uniform(*RADIUS)),
    )


def mask(scene: Scene, size: int) -> NDArray[np.uint8]:
    """(size, size) uint8, 255 where the shape is, anti-aliased at its edge."""
    canvas = np.zeros((size, size), np.uint8)
    scale = size * 2**SUBPIXEL_BITS
    centre, radius = (round(scene.x * scale), round(scene.y * scale)), round(scene.radius * scale)
    if scene.shape in ("circle", "ring"):
        cv2.circle(canvas, centre, radius, 255, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
        if scene.shape == "ring":
            cv2.circle(canvas, centre, round(radius * RING_HOLE), 0, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)
    else:
        points = np.round(np.array(centre) + radius * outline(scene.shape)).astype(np.int32)
        cv2.fillPoly(canvas, [points], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas


@functools.cache
def outline(shape: str) -> NDArray[np.float64]:
    """Corners (n, 2) of a polygon of the world, for radius 1 around the origin; y points down."""
    if shape == "square":
        return SQUARE_HALF * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    if shape == "diamond":
        return np.array([(0.0, -1.0), (DIAMOND_WIDTH, 0.0), (0.0, 1.0), (-DIAMOND_WIDTH, 0.0)])
    corners = {"triangle": 3, "star": 10}[shape]
    angles = -math.pi / 2 + np.arange(corners) * 2 * math.pi / corners
    radii = np.where(np.arange(corners) % 2 == 1, STAR_WAIST, 1.0) if shape == "star" else np.ones(corners)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def render(scene: Scene, size: int) -> NDArray[np.uint8]:
    """The scene as a picture, (size, size, 3) uint8 RGB."""
    covered = np.arange(256)[:, None]
    blend = (covered * np.array(RGB[scene.colour]) + (255 - covered) * np.array(RGB[scene.background]) + 127) // 255
    inside = mask(scene, size)
    return np.asarray(cv2.LUT(cv2.merge([inside] * 3), blend.astype(np.uint8)[None]), dtype=np.uint8)
