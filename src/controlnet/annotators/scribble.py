"""Scribbles: a drawing taken as it is, a picture turned into one, soft edges thinned into one; all light on dark."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Annotator, Meaning, Range
from controlnet.images import Rgb, three_channels

Plane = NDArray[np.uint8]  # (h, w)

MIDDLE = 127  # grey levels; of the original
SIGMA = 3.0  # pixels, of the original's fake scribble
FAINT = 4  # grey levels; of the original: all that its last blur has touched
FINE, COARSE = 0.5, 5.0  # pixels; sigmas of the extension for A1111's web UI
LINES = tuple(  # the four lines of 3 pixels through the middle
    np.array(line, np.uint8)
    for line in (
        [[0, 0, 0], [1, 1, 1], [0, 0, 0]],
        [[0, 1, 0], [0, 1, 0], [0, 1, 0]],
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    )
)
MEANING = Meaning(
    "scribble",
    values="255 on a stroke, else 0",
    models=("lllyasviel/sd-controlnet-scribble", "lllyasviel/control_v11p_sd15_scribble"),
)


@dataclass(frozen=True, kw_only=True)
class Scribble(Annotator):
    """The strokes of a drawing, dark on light; a drawing light on dark is recognised."""

    meaning: ClassVar[Meaning] = MEANING

    strokes: Literal["auto", "dark", "light"] = "auto"
    """Whether the strokes are darker or lighter than the paper; auto: what covers less than half is stroke."""

    def annotate(self, picture: Rgb) -> Rgb:
        is_dark = darkest(picture) < MIDDLE  # a stroke of any colour: one channel is enough
        if self.strokes == "light" or (self.strokes == "auto" and is_dark.mean() > 0.5):
            is_dark = darkest(255 - picture) < MIDDLE  # of the inverted drawing
        return three_channels(is_dark * np.uint8(255))


@dataclass(frozen=True, kw_only=True)
class ScribbleXdog(Annotator):
    """A sketch of a photograph by a difference of Gaussians, without a network."""

    meaning: ClassVar[Meaning] = MEANING

    threshold: Annotated[int, Range(1, 64)] = 32
    """How much darker than its surroundings a stroke is: less draws more."""

    def annotate(self, picture: Rgb) -> Rgb:
        exact = picture.astype(np.float32)
        fine, coarse = (cv2.GaussianBlur(exact, (0, 0), sigma) for sigma in (FINE, COARSE))
        darker = 255 - (255 - darkest(coarse - fine)).clip(0, 255).astype(np.uint8).astype(np.int32)
        return three_channels((2 * darker > self.threshold) * np.uint8(255))


def scribble_of_soft_edges(edges: Plane) -> Plane:
    """Soft edges (h, w) uint8 as strokes of one width, 0 or 255: the original's fake scribble."""
    blurred = cv2.GaussianBlur(thin(edges), (0, 0), SIGMA)
    return np.where(blurred > FAINT, np.uint8(255), np.uint8(0))


def thin(edges: Plane, threshold: float = MIDDLE, sigma: float = SIGMA) -> Plane:
    """Soft edges (h, w) reduced to their ridges, 0 or 255: non-maximum suppression of the blurred edges.

    A ridge is as large as the largest along any of the four lines of 3 pixels through it, and above the threshold.
    """
    blurred = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), sigma)
    is_ridge = np.zeros(edges.shape, bool)
    for line in LINES:
        is_ridge |= cv2.dilate(blurred, line) == blurred
    return np.where(is_ridge & (blurred > threshold), np.uint8(255), np.uint8(0))


def darkest(x_hwc: NDArray[Any]) -> NDArray[Any]:
    """The least of three channels, (h, w): as `x_hwc.min(axis=2)`, which takes eighty times as long."""
    return np.minimum(np.minimum(x_hwc[..., 0], x_hwc[..., 1]), x_hwc[..., 2])
