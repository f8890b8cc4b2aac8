"""OpenPose's body network (Cao et al. 2017, "Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields"):
a VGG and six stages of two branches, with the names of `body_pose_model.pth`.
"""

# b batch, c channels, h w picture size / 8
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from controlnet.annotators.openpose_decoding import AFFINITIES, HEATS

BRANCHES = {1: AFFINITIES, 2: HEATS}
STAGES = 6
FEATURES = 128

Layer = tuple[str, int, int, int]  # name, channels in, channels out, kernel

# VGG-19 up to conv4_2, then two that narrow it; pooled after each group but the last
TRUNK: tuple[tuple[Layer, ...], ...] = (
    (("conv1_1", 3, 64, 3), ("conv1_2", 64, 64, 3)),
    (("conv2_1", 64, 128, 3), ("conv2_2", 128, 128, 3)),
    (("conv3_1", 128, 256, 3), *((f"conv3_{number}", 256, 256, 3) for number in (2, 3, 4))),
    (
        ("conv4_1", 256, 512, 3),
        ("conv4_2", 512, 512, 3),
        ("conv4_3_CPM", 512, 256, 3),
        ("conv4_4_CPM", 256, FEATURES, 3),
    ),
)


def stage(number: int, branch: int) -> tuple[Layer, ...]:
    """The layers of one branch of stage `number`, 1 to 6; the later stages see the one before, and the features."""
    outputs = BRANCHES[branch]
    if number == 1:
        names = [f"conv5_{layer}_CPM_L{branch}" for layer in range(1, 6)]
        widths = [FEATURES, 128, 128, 128, 512, outputs]
        kernels = [3, 3, 3, 1, 1]
    else:
        names = [f"Mconv{layer}_stage{number}_L{branch}" for layer in range(1, 8)]
        widths = [AFFINITIES + HEATS + FEATURES, *[128] * 6, outputs]
        kernels = [7, 7, 7, 7, 7, 1, 1]
    return tuple(zip(names, widths[:-1], widths[1:], kernels, strict=True))


def all_layers() -> Iterator[Layer]:
    for group in TRUNK:
        yield from group
    for number in range(1, STAGES + 1):
        for branch in BRANCHES:
            yield from stage(number, branch)


class Convolutions(nn.ModuleDict):
    """The layers of one of OpenPose's networks, by their published names."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__({name: nn.Conv2d(a, b, k, padding=k // 2) for name, a, b, k in layers})

    def through(self, layers: tuple[Layer, ...], x_bchw: Tensor) -> Tensor:
        """The layers in order, rectified in between and not at the end."""
        for index, (name, *_) in enumerate(layers):
            x_bchw = self[name](x_bchw.relu_() if index else x_bchw)
        return x_bchw

    def features(self, trunk: tuple[tuple[Layer, ...], ...], bgr_bchw: Tensor) -> Tensor:
        """What the trunk sees, pooled after each of its groups but the last."""
        x_bchw = self.through(trunk[0], bgr_bchw).relu_()
        for group in trunk[1:]:
            x_bchw = self.through(group, F.max_pool2d(x_bchw, 2)).relu_()
        return x_bchw


class OpenPoseNetwork(Convolutions):
    """BGR (b, 3, 8h, 8w) in [-0.5, 0.5] -> heat and part affinities (b, 19 + 38, h, w)."""

    def __init__(self) -> None:
        super().__init__(all_layers())

    def forward(self, bgr_bchw: Tensor) -> Tensor:
        features = x_bchw = self.features(TRUNK, bgr_bchw)
        for number in range(1, STAGES + 1):
            affinity, heat = (self.through(stage(number, branch), x_bchw) for branch in BRANCHES)
            x_bchw = torch.cat([affinity, heat, features], dim=1)
        return torch.cat([heat, affinity], dim=1)
