"""Where surfaces face: normals from a network's depth, the first release's sixth condition, or from a network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi
from typing import Annotated, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, Range
from controlnet.annotators.depth import OfDepth, nearness
from controlnet.images import Rgb


@dataclass(frozen=True, kw_only=True)
class Normal(OfDepth):
    """Which way each pixel's surface faces: to the left, up, and to the viewer."""

    meaning: ClassVar[Meaning] = Meaning(
        "normal",
        polarity="none",
        values="unit normal (left, up, towards the viewer) as 127.5 n + 127.5; background faces the viewer",
        models=("lllyasviel/sd-controlnet-normal", "lllyasviel/control_v11p_sd15_normalbae"),
        is_smooth=True,
    )

    model: Literal["dpt_hybrid", "depth_anything", "tipsv2"] = "dpt_hybrid"
    """dpt_hybrid (MiDaS, the original's) and depth_anything estimate depth, whose slopes are the normals; tipsv2
    estimates normals, whose axes are those of NYU Depth V2, on which it was trained."""
    background: Annotated[float, Range(0, 1, 0.01)] = 0.4
    """Of depth: pixels less near than this, from 0 (farthest) to 1 (nearest), face the viewer."""
    strength: Annotated[float, Range(0.1, 20, 0.1)] = 2 * pi
    """Of depth: how steep it is before normals lean away from the viewer, in the network's units; less is stronger."""
    channel_order: Literal["RGB", "BGR"] = "RGB"
    """RGB (red faces left, green up, blue the viewer) is what every control takes once it is loaded here, those that
    learned otherwise too; BGR is for other tools, which feed the first release's control as it was trained."""

    def hint_meaning(self) -> Meaning:
        if self.channel_order == "RGB":
            return self.meaning
        return replace(self.meaning, channel_order="BGR", models=("lllyasviel/sd-controlnet-normal",))

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        return [self._hint(estimate) for estimate in self.network.look(pictures_bhwc)]

    def _hint(self, estimate_hwc: NDArray[np.float32]) -> Rgb:
        is_depth = estimate_hwc.shape[-1] == 1
        hint = normal_map(
            normals_of_depth(estimate_hwc[..., 0], self.background, self.strength) if is_depth else estimate_hwc
        )
        return np.ascontiguousarray(hint[..., ::-1]) if self.channel_order == "BGR" else hint


def normals_of_depth(
    inverse_depth: NDArray[np.float32], background: float = 0.4, strength: float = 2 * pi
) -> NDArray[np.float32]:
    """Inverse depth (h, w) -> normals (h, w, 3), not yet of length one: x to the left, y up, z towards the viewer.

    x and y are the slopes by Sobel's 3x3 filter of the unscaled depth, none in the background, and z is the strength
    (Zhang et al. 2023, the published annotator).
    """
    is_background = nearness(inverse_depth) < background
    slopes = [cv2.Sobel(inverse_depth, cv2.CV_32F, *axis, ksize=3) for axis in ((1, 0), (0, 1))]
    x, y = (np.where(is_background, np.float32(0), slope) for slope in slopes)
    return np.stack([x, y, np.full_like(x, strength)], axis=-1)


def normal_map(normals: NDArray[np.float32]) -> Rgb:
    """Normals (h, w, 3) of any length -> (h, w, 3) uint8 RGB; a normal of no length is grey."""
    lengths = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = normals / np.maximum(lengths, np.finfo(np.float32).tiny)
    return (unit * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
