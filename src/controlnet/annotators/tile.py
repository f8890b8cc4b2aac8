"""Hints that are the picture itself, whole or in part: made blurred, made grey, or as it is."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np

from controlnet.annotators.annotator import Meaning, Range, WholePicture
from controlnet.annotators.scribble import darkest
from controlnet.images import Rgb, three_channels


@dataclass(frozen=True, kw_only=True)
class Tile(WholePicture):
    """The picture with its details taken away, for a control that adds better ones."""

    meaning: ClassVar[Meaning] = Meaning(
        "tile",
        polarity="none",
        values="the picture's colours",
        models=("lllyasviel/control_v11f1e_sd15_tile",),
        is_smooth=True,
    )

    down: Annotated[float, Range(1, 16, 0.5)] = 1.0
    """How many times smaller the picture is made and stretched back: 1 keeps every detail."""

    def annotate(self, picture: Rgb) -> Rgb:
        if self.down == 1:
            return picture
        height, width = picture.shape[:2]
        small = (max(1, round(width / self.down)), max(1, round(height / self.down)))
        shrunk = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC))


@dataclass(frozen=True, kw_only=True)
class Grey(WholePicture):
    """The picture without its colours, for a control that finds them."""

    meaning: ClassVar[Meaning] = Meaning(
        "grey",
        polarity="none",
        values="lightness, 0 black to 255 white",
        models=("ioclab/control_v1p_sd15_brightness",),
        is_smooth=True,
    )

    by: Literal["luminance", "intensity"] = "luminance"
    """luminance: how light it looks (L of CIE Lab); intensity: its strongest channel (V of HSV)."""
    gamma: Annotated[float, Range(0.1, 2, 0.05)] = 1.0
    """Exponent of the lightness: under 1 is lighter."""

    def annotate(self, picture: Rgb) -> Rgb:
        is_luminance = self.by == "luminance"
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)[..., 0] if is_luminance else 255 - darkest(255 - picture)
        table = np.rint((np.arange(256) / 255) ** self.gamma * 255).astype(np.uint8)
        return three_channels(table[grey])


@dataclass(frozen=True, kw_only=True)
class Nothing(WholePicture):
    """The picture as it is, which is a hint already."""

    meaning: ClassVar[Meaning] = Meaning("none", polarity="unknown", values="those of the picture", is_smooth=True)

    def annotate(self, picture: Rgb) -> Rgb:
        return picture
