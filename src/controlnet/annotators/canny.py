"""Canny's edges (Canny 1986), the original's first condition."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import cv2
import numpy as np

from controlnet.annotators.annotator import Annotator, Meaning, Range
from controlnet.images import Rgb, three_channels


@dataclass(frozen=True, kw_only=True)
class Canny(Annotator):
    """Edges one pixel wide, where the picture's gradient is steep."""

    meaning: ClassVar[Meaning] = Meaning(
        "canny",
        values="255 on an edge, else 0",
        models=("lllyasviel/sd-controlnet-canny", "lllyasviel/control_v11p_sd15_canny"),
    )

    low: Annotated[int, Range(1, 255)] = 100
    """Steepness with which an edge goes on."""
    high: Annotated[int, Range(1, 255)] = 200
    """Steepness with which an edge begins."""

    def annotate(self, picture: Rgb) -> Rgb:
        return three_channels(np.asarray(cv2.Canny(picture, self.low, self.high)))
