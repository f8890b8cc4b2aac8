"""The resolution at which pictures are looked at, and the way back to a picture's size.

Source: `resize_image` of the original; "pixel perfect" of the extension for A1111's web UI.
"""

from typing import Literal

import cv2
import numpy as np

from controlnet.images import LARGEST_ASPECT, Rgb

MULTIPLE = 64  # of the original: what its networks and its U-Net take

Fit = Literal["crop", "fill"]  # the picture covers the target and is cut, or lies inside it and is padded


def to_resolution(rgb: Rgb, resolution: int) -> Rgb:
    """The picture stretched a little to `size_at` the resolution: Lanczos where it grows, else mean over areas."""
    height, width = rgb.shape[:2]
    size = size_at(resolution, (width, height))
    if size == (width, height):
        return rgb
    grows = resolution > min(height, width)
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA))


def size_at(resolution: int, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) at which a picture of `size` is looked at: multiples of 64, the shorter near `resolution`.

    Of pictures beyond an aspect of 16, which no file may have, the longer side ends at 16 times the resolution.
    """
    scale = min(resolution / min(size), LARGEST_ASPECT * max(resolution, MULTIPLE) / max(size))
    width, height = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in size)
    return width, height


def to_size(hint: Rgb, size: tuple[int, int], is_smooth: bool) -> Rgb:
    """The hint at a picture's `size` (width, height): interpolated where it is smooth, else each value kept as it is.

    Lines, classes and skeletons are not smooth: between two of their values lies none that means something.
    """
    if hint.shape[1::-1] == size:
        return hint
    return np.asarray(cv2.resize(hint, size, interpolation=cv2.INTER_LINEAR if is_smooth else cv2.INTER_NEAREST))


def pixel_perfect(picture_size: tuple[int, int], target_size: tuple[int, int], fit: Fit = "crop") -> int:
    """The detect resolution at which one pixel of the hint is one of the target; sizes are (width, height)."""
    scales = [target / side for target, side in zip(target_size, picture_size, strict=True)]
    return round((max(scales) if fit == "crop" else min(scales)) * min(picture_size))
