"""Drawings without a network: straight lines by OpenCV's detector, and line art by a difference of Gaussians."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import cv2
import numpy as np

from controlnet.annotators.annotator import Annotator, Meaning, Range
from controlnet.annotators.scribble import darkest
from controlnet.images import Rgb, three_channels

WHITE = (255, 255, 255)
SMALLEST_CONTRAST = 16  # grey levels; of the extension for A1111's web UI: a flat picture stays nearly black
TYPICAL_LINE = 127  # grey levels, of the same: what a line of median contrast becomes


@dataclass(frozen=True, kw_only=True)
class Lines(Annotator):
    """Straight lines, by the line segment detector of von Gioi et al. (2010) in OpenCV."""

    meaning: ClassVar[Meaning] = Meaning(
        "mlsd",
        values="255 on a straight line, one pixel wide, else 0",
        models=("lllyasviel/sd-controlnet-mlsd", "lllyasviel/control_v11p_sd15_mlsd"),
    )

    shortest: Annotated[float, Range(1, 256)] = 20
    """Length in pixels of the shortest line to keep, at the detect resolution."""

    def annotate(self, picture: Rgb) -> Rgb:
        found = cv2.createLineSegmentDetector().detect(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0]
        hint = np.zeros_like(picture)
        for x0, y0, x1, y1 in () if found is None else found.reshape(-1, 4):
            if np.hypot(x1 - x0, y1 - y0) >= self.shortest:
                cv2.line(hint, (round(x0), round(y0)), (round(x1), round(y1)), WHITE, 1)
        return hint


@dataclass(frozen=True, kw_only=True)
class LineartStandard(Annotator):
    """Line art of what is darker than its surroundings, without a network."""

    meaning: ClassVar[Meaning] = Meaning(
        "lineart",
        values="the strength of a line, 0 where there is none",
        models=("lllyasviel/control_v11p_sd15_lineart",),
        is_smooth=True,
    )

    sigma: Annotated[float, Range(0.1, 10, 0.1)] = 6.0
    """Size in pixels of the surroundings: more draws wider lines."""
    threshold: Annotated[int, Range(0, 16)] = 8
    """Contrast in grey levels that counts as a line when the typical one is measured."""

    def annotate(self, picture: Rgb) -> Rgb:
        exact = picture.astype(np.float32)
        darker = darkest(cv2.GaussianBlur(exact, (0, 0), self.sigma) - exact).clip(0, 255)
        lines = darker[darker > self.threshold]
        typical = max(SMALLEST_CONTRAST, float(np.median(lines)) if lines.size else 0)
        strength = (darker / typical * TYPICAL_LINE).clip(0, 255).astype(np.uint8)
        return three_channels(strength)
