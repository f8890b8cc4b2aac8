"""Straight lines by M-LSD (Gu et al. 2022), found by their centres."""

# b batch, c maps, h w size of the maps, half of the picture's, n lines
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Meaning, NetworkAnnotator, Range
from controlnet.images import Rgb

if TYPE_CHECKING:
    from torch import Tensor

    from controlnet.annotators.mlsd_network import MlsdNetwork

Floats = NDArray[np.float32]

MOST_LINES = 200
PEAK_SIZE = 3  # a centre is the highest of 3 x 3
MAP_SCALE = 2  # pixels of the picture to one of the maps
WHITE = 255


@dataclass(frozen=True, kw_only=True)
class Mlsd(NetworkAnnotator):
    """Straight lines, white, one pixel wide: for buildings and rooms."""

    meaning: ClassVar[Meaning] = Meaning(
        "mlsd", models=("lllyasviel/sd-controlnet-mlsd", "lllyasviel/control_v11p_sd15_mlsd")
    )

    score_threshold: Annotated[float, Range(0.01, 2, 0.01)] = 0.1
    """Lines surer than this are drawn; from 1 on, none is."""
    distance_threshold: Annotated[float, Range(0.01, 20, 0.01)] = 0.1
    """Lines longer than this are drawn, in units of two pixels."""

    @cached_property
    def network(self) -> "MlsdNetwork":
        from controlnet.annotators.mlsd_network import MlsdNetwork
        from controlnet.annotators.tensors import loaded

        return loaded(MlsdNetwork(), "mlsd", self, _with_counters)

    def lines(self, pictures_bhwc: NDArray[np.uint8]) -> list[Floats]:
        """The lines of each picture: (n, 4) of x, y of one end and x, y of the other, in pixels of the picture."""
        from controlnet.annotators.tensors import run

        with_ones = np.pad(pictures_bhwc, [(0, 0)] * 3 + [(0, 1)], constant_values=1)
        maps_bchw = run(self.network, with_ones / np.float32(127.5) - 1)  # the original scales its ones like colours
        return [decode_lines(maps_chw, self.score_threshold, self.distance_threshold) for maps_chw in maps_bchw]

    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        size = pictures_bhwc.shape[1:3]
        return [draw_lines(lines, size) for lines in self.lines(pictures_bhwc)]


def decode_lines(maps_chw: Floats, score_threshold: float, distance_threshold: float) -> Floats:
    """The network's maps -> the lines (n, 4), surest first, as `Mlsd.lines` says; at most 200.

    A line longer than `distance_threshold` is one of that many pixels of the maps.
    """
    scores_hw = np.exp(-np.logaddexp(0, -maps_chw[0]))  # the sigmoid, without overflow
    is_peak = scores_hw == cv2.dilate(scores_hw, np.ones((PEAK_SIZE, PEAK_SIZE), np.uint8))
    y, x = np.nonzero(is_peak)
    surest = np.argsort(-scores_hw[y, x], kind="stable")[:MOST_LINES]
    y, x = y[surest], x[surest]
    ends_n4 = maps_chw[1:5, y, x].T
    lengths = np.linalg.norm(ends_n4[:, :2] - ends_n4[:, 2:], axis=1)
    is_line = (scores_hw[y, x] > score_threshold) & (lengths > distance_threshold)
    centres_n4 = np.stack([x, y, x, y], axis=1).astype(np.float32)
    return MAP_SCALE * (centres_n4 + ends_n4)[is_line]


def draw_lines(lines_n4: Floats, size: tuple[int, ...]) -> Rgb:
    """Lines, white on black, in a picture of `size` (height, width); what lies beyond is cut off."""
    canvas: Rgb = np.zeros((*size, 3), np.uint8)
    for x, y, other_x, other_y in lines_n4.astype(int).tolist():
        cv2.line(canvas, (x, y), (other_x, other_y), (WHITE, WHITE, WHITE), thickness=1)
    return canvas


def _with_counters(tensors: "Mapping[str, Tensor]") -> "Mapping[str, Tensor]":
    """Files may lack the counters of batches that norms keep in training."""
    import torch

    norms = [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]
    return {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms} | dict(tensors)
