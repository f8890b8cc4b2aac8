"""OpenPose's hand network (Simon et al. 2017): a VGG and six stages, with the names of `hand_pose_model.pth`."""

# b hands, c channels, h w crop size / 8
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlnet.annotators.openpose import BOX_HEIGHT, SCALES, upsampled
from controlnet.annotators.openpose_network import TRUNK, Convolutions, Layer
from controlnet.annotators.skeleton import HAND_POINTS
from controlnet.annotators.tensors import run

HEATS = HAND_POINTS + 1  # and "none of them"
FEATURES = 128
STAGES = 6

# VGG-19 up to conv5_2, of which the body's network has the first three groups; pooled after those
HAND_TRUNK: tuple[tuple[Layer, ...], ...] = (
    *TRUNK[:3],
    (
        ("conv4_1", 256, 512, 3),
        *((f"conv4_{number}", 512, 512, 3) for number in (2, 3, 4)),
        ("conv5_1", 512, 512, 3),
        ("conv5_2", 512, 512, 3),
        ("conv5_3_CPM", 512, FEATURES, 3),
    ),
)


def stage(number: int) -> tuple[Layer, ...]:
    """The layers of stage `number`, 1 to 6; the later ones see the one before, and the features."""
    if number == 1:
        return (("conv6_1_CPM", FEATURES, 512, 1), ("conv6_2_CPM", 512, HEATS, 1))
    names = [f"Mconv{layer}_stage{number}" for layer in range(1, 8)]
    widths = [HEATS + FEATURES, *[128] * 6, HEATS]
    return tuple(zip(names, widths[:-1], widths[1:], [7, 7, 7, 7, 7, 1, 1], strict=True))


def all_layers() -> Iterator[Layer]:
    for group in HAND_TRUNK:
        yield from group
    for number in range(1, STAGES + 1):
        yield from stage(number)


class HandNetwork(Convolutions):
    """BGR (b, 3, 8h, 8w) in [-0.5, 0.5] -> heat of 21 joints and of none (b, 22, h, w)."""

    def __init__(self) -> None:
        super().__init__(all_layers())

    def look(self, hands: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Square pictures of hands, RGB -> heat (h, w, 22) of each at its size, the mean over OpenPose's scales."""
        if not hands:
            return []
        heats = [self._look_at(hands, int(scale * BOX_HEIGHT)) for scale in SCALES]
        return [np.mean(of_scales, axis=0) for of_scales in zip(*heats, strict=True)]

    def _look_at(self, hands: Sequence[NDArray[np.uint8]], side: int) -> list[NDArray[np.float32]]:
        """`side` is a multiple of 8, so that no hand needs padding."""
        seen = np.stack([cv2.resize(hand, (side, side), interpolation=cv2.INTER_CUBIC) for hand in hands])
        heat_bhwc = np.moveaxis(run(self, seen[..., ::-1] / np.float32(256) - np.float32(0.5)), 1, -1)
        return [upsampled(heat, (side, side), hand.shape[:2]) for heat, hand in zip(heat_bhwc, hands, strict=True)]

    def forward(self, bgr_bchw: Tensor) -> Tensor:
        features = self.features(HAND_TRUNK, bgr_bchw)
        heat = self.through(stage(1), features)
        for number in range(2, STAGES + 1):
            heat = self.through(stage(number), torch.cat([heat, features], dim=1))
        return heat
