"""Line drawings, of photographs and in the manner of anime."""

# b batch, h w picture size
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, NetworkAnnotator
from controlnet.images import Rgb, three_channels

if TYPE_CHECKING:
    from torch import Tensor

    from controlnet.annotators.lineart_network import AnimeNetwork, LineartNetwork

ANIME_MULTIPLE = 256  # its network halves eight times


@dataclass(frozen=True, kw_only=True)
class Lineart(NetworkAnnotator):
    """Line drawings of photographs, white on black (Chan et al. 2022)."""

    meaning: ClassVar[Meaning] = Meaning(
        "lineart",
        values="0 to 255, how dark a stroke is",
        models=("lllyasviel/control_v11p_sd15_lineart",),
        is_smooth=True,
    )

    coarse: bool = False
    """Fewer, bolder lines, by the weights that were made for that."""

    @cached_property
    def network(self) -> "LineartNetwork":
        from controlnet.annotators.lineart_network import LineartNetwork
        from controlnet.annotators.tensors import loaded

        name = "lineart_coarse" if self.coarse else "lineart"
        return loaded(LineartNetwork(), name, self)

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        from controlnet.annotators.tensors import run, to_bytes

        drawings = run(self.network, pictures_bhwc / np.float32(255))
        return [three_channels(255 - to_bytes(255 * drawing)) for drawing in drawings]


@dataclass(frozen=True, kw_only=True)
class LineartAnime(NetworkAnnotator):
    """Line drawings in the manner of anime, white on black."""

    meaning: ClassVar[Meaning] = Meaning(
        "lineart_anime",
        values="0 to 255, how dark a stroke is",
        models=("lllyasviel/control_v11p_sd15s2_lineart_anime",),
        is_smooth=True,
    )

    @cached_property
    def network(self) -> "AnimeNetwork":
        from controlnet.annotators.lineart_network import AnimeNetwork
        from controlnet.annotators.tensors import loaded

        return loaded(AnimeNetwork(), "lineart_anime", self, _from_parallel)

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        from controlnet.annotators.tensors import run, to_bytes

        height, width = pictures_bhwc.shape[1:3]
        inner_size = tuple(-(-side // ANIME_MULTIPLE) * ANIME_MULTIPLE for side in (width, height))
        inner = np.stack([_stretched(picture, inner_size) for picture in pictures_bhwc])
        drawings = run(self.network, inner / np.float32(127.5) - 1)
        greys = (_stretched(drawing, (width, height)) for drawing in 127.5 * drawings + 127.5)
        return [three_channels(255 - to_bytes(grey)) for grey in greys]


def _stretched(picture: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A picture (h, w, ...) at `size` (width, height)."""
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC))


def _from_parallel(tensors: "Mapping[str, Tensor]") -> "Mapping[str, Tensor]":
    """The file was written by torch's DataParallel, which begins all names with `module.`"""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
