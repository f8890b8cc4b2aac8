"""What is where: ADE20K's 150 classes in the colours that the segmentation controls were trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.ade20k import PALETTE
from controlnet.annotators.annotator import Meaning, NetworkAnnotator
from controlnet.errors import UserError
from controlnet.images import Rgb

if TYPE_CHECKING:
    from controlnet.annotators.dense_network import DenseNetwork

UNIFORMER = "upernet_global_small.pth"  # the original's weights
COLOURS_AT_ONCE = 65536  # compared with the palette in one go


@dataclass(frozen=True, kw_only=True)
class Segmentation(NetworkAnnotator):
    """The class of each pixel, by UperNet (Xiao et al. 2018), in ADE20K's colours; road and skyscraper share one."""

    meaning: ClassVar[Meaning] = Meaning(
        "seg",
        polarity="none",
        values="the colour of one of ADE20K's 150 classes",
        models=("lllyasviel/sd-controlnet-seg", "lllyasviel/control_v11p_sd15_seg"),
    )

    @cached_property
    def network(self) -> "DenseNetwork":
        from controlnet.annotators.dense_network import DenseNetwork
        from controlnet.annotators.tensors import placed

        try:
            return placed(DenseNetwork("upernet", self.weights_dir), self)
        except UserError as error:
            if self.weights_dir is None or not (self.weights_dir / UNIFORMER).exists():
                raise
            raise UserError(
                f"{self.weights_dir / UNIFORMER} has the original's UniFormer, a network that no library here has; "
                f"UperNet knows the same 150 classes in the same colours: {error}"
            ) from error

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        return list(to_colours(self.classify(pictures_bhwc)))

    def annotate_detailed(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[tuple[Rgb, NDArray[np.uint8]]]:
        """The hints, each with its class indices (h, w), which know roads from skyscrapers."""
        return [(to_colours(indices), indices) for indices in self.classify(pictures_bhwc)]

    def classify(self, pictures_bhwc: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pictures (b, h, w, 3) -> the index of each pixel's class (b, h, w), 0 to 149."""
        return self.network.look(pictures_bhwc)[..., 0].astype(np.uint8)


def to_colours(indices: NDArray[np.integer]) -> Rgb:
    """Class indices (..., h, w) -> palette picture (..., h, w, 3). UserError for an index beyond the 150."""
    if indices.size and not 0 <= indices.min() <= indices.max() < len(PALETTE):
        raise UserError(
            f"class indices from {indices.min()} to {indices.max()}; expected 0 to {len(PALETTE) - 1} "
            "(ADE20K's own files count from 1: subtract 1)"
        )
    return PALETTE[indices]


def snap(picture: Rgb) -> tuple[NDArray[np.uint8], int]:
    """A palette picture (h, w, 3) from elsewhere -> class indices (h, w), and how many pixels were off the palette.

    These get the class whose colour is nearest in RGB. The grey that road and skyscraper share becomes road.
    """
    packed = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    different, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([different >> 16, different >> 8 & 255, different & 255], axis=-1).astype(np.float32)
    nearest = np.concatenate([_nearest(part) for part in _parts(colours)])
    is_off = (PALETTE[nearest] != colours).any(axis=-1)
    return nearest[places].reshape(picture.shape[:2]), int(counts[is_off].sum())


def _parts(colours: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [colours[start : start + COLOURS_AT_ONCE] for start in range(0, len(colours), COLOURS_AT_ONCE)]


def _nearest(colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours (n, 3) -> indices of the nearest of the palette (n,), the first of equals."""
    palette = PALETTE.astype(np.float32)
    # |c - p|^2 without |c|^2, which is the same for all p; whole numbers below 2^24, so exact
    return ((palette**2).sum(-1) - 2 * colours @ palette.T).argmin(axis=-1).astype(np.uint8)
