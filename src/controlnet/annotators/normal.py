"""Where surfaces face: normals from a network's depth, the first release's sixth condition, or from a network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import pi
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, NetworkAnnotator, Range
from controlnet.annotators.depth import nearness
from controlnet.devices import DType
from controlnet.images import Rgb

if TYPE_CHECKING:
    from controlnet.annotators.dense_network import DenseNetwork


@dataclass(frozen=True, kw_only=True)
class Normal(NetworkAnnotator):
    """Which way each pixel's surface faces: to the left, up, and to the viewer."""

    meaning: ClassVar[Meaning] = Meaning(
        "normal",
        polarity="none",
        channel_order="BGR",
        values="unit normal (left, up, towards the viewer) as 127.5 n + 127.5; background faces the viewer",
        models=("lllyasviel/sd-controlnet-normal",),
        is_smooth=True,
    )

    detect_resolution: Annotated[int, Range(0, 2048, 64)] = 384
    """Shorter side in pixels of the picture that is looked at; 0 is pixel perfect: the picture's own."""
    model: Literal["dpt_hybrid", "depth_anything", "tipsv2"] = "dpt_hybrid"
    """dpt_hybrid (MiDaS, the original's) and depth_anything estimate depth, whose slopes are the normals; tipsv2
    estimates normals, whose axes are those of NYU Depth V2, on which it was trained."""
    background: Annotated[float, Range(0, 1, 0.01)] = 0.4
    """Of depth: pixels less near than this, from 0 (farthest) to 1 (nearest), face the viewer."""
    strength: Annotated[float, Range(0.1, 20, 0.1)] = 2 * pi
    """Of depth: how steep it is before normals lean away from the viewer, in the network's units; less is stronger."""
    channel_order: Literal["BGR", "RGB"] = "BGR"
    """BGR is what the first release's control was trained on; RGB (red faces left, green up, blue the viewer) is how
    it was shown, and what the control of 1.1, normalbae, takes."""
    dtype: DType = "float32"
    """Precision of the network; in bfloat16 depth has steps, which the normals show."""

    def hint_meaning(self) -> Meaning:
        models = self.meaning.models if self.channel_order == "BGR" else ("lllyasviel/control_v11p_sd15_normalbae",)
        return replace(self.meaning, channel_order=self.channel_order, models=models)

    @cached_property
    def network(self) -> "DenseNetwork":
        from controlnet.annotators.dense_network import DenseNetwork
        from controlnet.annotators.tensors import placed

        return placed(DenseNetwork(self.model, self.weights_dir), self)

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
