"""Preparation of inpainting: the picture with the part marked that is to be painted anew.

In memory and in a PNG the marked part is transparent, (H, W, 4); a network reads -1 there (`to_inpaint_hint`), as the
control of ControlNet 1.1 was trained.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, Range, WholePicture
from controlnet.annotators.hint_file import read_description
from controlnet.images import Rgb, Source, decode_with_alpha, four_channels, to_hint

MARK = np.float32(-1)  # of the control of ControlNet 1.1
OPAQUE_FROM = 128  # alpha
CONDITION = "inpaint"
SMALLEST_SHARE = 1e-9  # not 0, which no width divides


@dataclass(frozen=True, kw_only=True)
class Inpaint(WholePicture):
    """The picture, transparent where it is to be painted: where it is transparent itself, else in a random box."""

    meaning: ClassVar[Meaning] = Meaning(
        CONDITION,
        polarity="none",
        channel_order="RGBA",
        values="the picture's colours; transparent is -1 to the network: to be painted",
        models=("lllyasviel/control_v11p_sd15_inpaint",),
    )

    share: Annotated[float, Range(0, 1, 0.05)] = 0.25
    """Part of an opaque picture that its random box hides; 0 hides nothing."""
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Another seed puts the boxes elsewhere."""

    def read(self, picture: Rgb | Source) -> Rgb:
        return four_channels(picture) if isinstance(picture, np.ndarray) else decode_with_alpha(picture)

    def annotate(self, picture: Rgb) -> Rgb:
        hint = picture.copy()
        is_hidden = hint[..., 3] < OPAQUE_FROM
        if not is_hidden.any():
            is_hidden = self._box(picture)
        hint[..., 3] = np.where(is_hidden, 0, 255)
        return hint

    def _box(self, picture: Rgb) -> NDArray[np.bool_]:
        """A mask (h, w), True in a box that covers `share` of the picture; its pixels and the seed put it."""
        height, width = picture.shape[:2]
        random = np.random.default_rng((self.seed, zlib.crc32(picture.tobytes())))
        tallness = max(self.share, SMALLEST_SHARE) ** random.random()  # of the picture: as often tall as wide
        box_height, box_width = round(tallness * height), round(self.share / tallness * width)
        top, left = random.integers(height - box_height + 1), random.integers(width - box_width + 1)
        mask = np.zeros((height, width), bool)
        mask[top : top + box_height, left : left + box_width] = True
        return mask


def says_inpaint(path: Path) -> bool:
    """Whether a picture says of itself that it is a hint for inpainting, as those of `controlnet annotate` do."""
    return (read_description(path) or {}).get("condition") == CONDITION


def to_inpaint_hint(rgba: Rgb) -> NDArray[np.float32]:
    """(H, W, 4) uint8 -> (H, W, 3) float32: colours in [0, 1], -1 where transparent."""
    return np.where(rgba[..., 3:] < OPAQUE_FROM, MARK, to_hint(rgba[..., :3]))
