"""Rules over pictures; what they leave out keeps its reason. And the size of what is kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from PIL import Image

from controlnet.annotators.annotator import Range
from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE
from controlnet.build.stage import Context, Stage, Work, each
from controlnet.images import Rgb, decode, encoded

SHARPNESS_SIDE = 512  # pixels, at which sharpness is measured, so that sizes compare


@dataclass(frozen=True, kw_only=True)
class Resolution(Stage):
    """Leaves out pictures that are small, huge, or long strips."""

    min_side: Annotated[int, Range(1, 16384)] = 256
    """Pixels along the shorter side."""
    max_pixels: Annotated[int, Range(1, 10**9)] = 10**8
    max_aspect: Annotated[float, Range(1, 100)] = 2.5
    """Longer over shorter side."""

    def setup(self, context: Context) -> Work:
        return each(self.judge)

    def judge(self, row: Row) -> Row:
        width, height = row.values["width"], row.values["height"]
        for reason, is_so in self._rules(width, height):
            if is_so:
                return row.dropped(reason, f"{width}x{height}")
        return row

    def _rules(self, width: int, height: int) -> Iterator[tuple[str, bool]]:
        yield f"side under {self.min_side}", min(width, height) < self.min_side
        yield f"more than {self.max_pixels} pixels", width * height > self.max_pixels
        yield f"aspect over {self.max_aspect:g}", max(width, height) > self.max_aspect * min(width, height)


@dataclass(frozen=True, kw_only=True)
class Sharpness(Stage):
    """Leaves out blurred pictures, by the variance of their Laplacian (Pech-Pacheco et al. 2000)."""

    least: Annotated[float, Range(0, 10**6)] = 30.0
    """Under this it is blurred; photographs in focus have hundreds."""

    def setup(self, context: Context) -> Work:
        return each(self.judge)

    def judge(self, row: Row) -> Row:
        value = sharpness(decode(row.files[IMAGE]))
        row = row.having(sharpness=value)
        return row if value >= self.least else row.dropped("blurred", f"sharpness {value:.1f}")


def sharpness(rgb: Rgb) -> float:
    """Variance of the Laplacian of the grey picture, its longer side brought down to 512 pixels."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if (scale := SHARPNESS_SIDE / max(grey.shape)) < 1:
        grey = np.asarray(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


@dataclass(frozen=True, kw_only=True)
class Resize(Stage):
    """Brings pictures to the size that is trained on."""

    size: Annotated[int, Range(64, 4096, 8)] = 512
    """Pixels along the shorter side."""
    mode: Literal["crop", "shorter"] = "crop"
    """crop: a square from the middle; shorter: the whole picture, its shorter side at `size`."""
    format: Literal["jpg", "png", "webp"] = "jpg"
    """jpg and webp at quality 95, png without loss."""
    enlarge: bool = False
    """Whether smaller pictures are made larger; else they are left out."""

    def setup(self, context: Context) -> Work:
        return each(self.resize)

    def resize(self, row: Row) -> Row:
        rgb = decode(row.files[IMAGE])
        height, width = rgb.shape[:2]
        if min(height, width) < self.size and not self.enlarge:
            return row.dropped(f"side under {self.size}", f"{width}x{height}")
        resized = np.asarray(Image.fromarray(rgb).resize(self._target(width, height), Image.Resampling.LANCZOS))
        if self.mode == "crop":
            resized = _middle(resized, self.size)
        known = {"format": self.format, "original_width": width, "original_height": height}
        size = {"width": resized.shape[1], "height": resized.shape[0]}
        return row.having({IMAGE: encoded(resized, self.format)}, **known, **size)

    def _target(self, width: int, height: int) -> tuple[int, int]:
        scale = self.size / min(width, height)
        return max(self.size, round(width * scale)), max(self.size, round(height * scale))


def _middle(rgb: Rgb, size: int) -> Rgb:
    top, left = (rgb.shape[0] - size) // 2, (rgb.shape[1] - size) // 2
    return rgb[top : top + size, left : left + size]
