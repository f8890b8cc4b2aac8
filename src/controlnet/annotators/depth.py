"""Depth by a network: near is white, the first release's fifth condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, NetworkAnnotator, Range
from controlnet.devices import DType
from controlnet.images import Rgb, three_channels

if TYPE_CHECKING:
    from controlnet.annotators.dense_network import DenseNetwork


@dataclass(frozen=True, kw_only=True)
class OfDepth(NetworkAnnotator):
    """What annotators that look by a network of depth have in common."""

    detect_resolution: Annotated[int, Range(0, 2048, 64)] = 384
    """Shorter side in pixels of the picture that is looked at; 0 is pixel perfect: the picture's own. These networks
    lose the large forms beyond 512."""
    model: str = "dpt_hybrid"
    """Which network looks."""
    dtype: DType = "float32"
    """Precision of the network; in bfloat16 depth has steps, which slopes made of it show."""

    @cached_property
    def network(self) -> "DenseNetwork":
        from controlnet.annotators.dense_network import DenseNetwork
        from controlnet.annotators.tensors import placed

        return placed(DenseNetwork(self.model, self.weights_dir), self)


@dataclass(frozen=True, kw_only=True)
class Depth(OfDepth):
    """How near each pixel is: inverse depth, stretched from the farthest (0) to the nearest (255) of the picture."""

    meaning: ClassVar[Meaning] = Meaning(
        "depth",
        polarity="near is light",
        values="inverse depth from 0, the picture's farthest, to 255, its nearest",
        models=("lllyasviel/sd-controlnet-depth", "lllyasviel/control_v11f1p_sd15_depth"),
        is_smooth=True,
    )

    model: Literal["dpt_hybrid", "depth_anything"] = "dpt_hybrid"
    """dpt_hybrid is MiDaS 3.0 (Ranftl et al. 2021), the original's; depth_anything is Depth Anything V2 Small."""

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        return [depth_map(inverse_depth) for inverse_depth in self.network.look(pictures_bhwc)[..., 0]]


def depth_map(inverse_depth: NDArray[np.float32]) -> Rgb:
    """Inverse depth (h, w) -> hint (h, w, 3); all black where it is the same everywhere."""
    return three_channels((nearness(inverse_depth) * 255).astype(np.uint8))  # cut off, not rounded: the original's rule


def nearness(inverse_depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse depth -> [0, 1]: 0 is the farthest, 1 the nearest; 0 where all is as far."""
    from_farthest = inverse_depth - inverse_depth.min()
    nearest = from_farthest.max()
    return from_farthest / nearest if nearest > 0 else from_farthest
