"""The network of soft edges: a VGG that is asked for edges at five depths (Xie and Tu 2015, "Holistically-Nested Edge
Detection"), in the shape and with the names of `ControlNetHED.pth`.
"""

# b batch, c channels, h w picture size
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions), VGG-16's


class Block(nn.Module):
    """Convolutions at one size, and what they make of edges there."""

    def __init__(self, inputs: int, channels: int, layers: int) -> None:
        super().__init__()
        widths = (inputs, *[channels] * layers)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.projection = nn.Conv2d(channels, 1, 1)

    def forward(self, x_bchw: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x_bchw = F.relu(conv(x_bchw), inplace=True)
        return x_bchw, self.projection(x_bchw)


class HedNetwork(nn.Module):
    """RGB (b, 3, h, w) in [0, 255], sides of at least 16 -> probability of an edge (b, h, w) float32 in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))  # learned mean colour
        inputs = 3
        for number, (channels, layers) in enumerate(BLOCKS, start=1):
            self.add_module(f"block{number}", Block(inputs, channels, layers))
            inputs = channels

    def forward(self, rgb_bchw: Tensor) -> Tensor:
        x_bchw, sides = rgb_bchw - self.norm, []
        for number in range(1, len(BLOCKS) + 1):
            x_bchw, side_bchw = self.get_submodule(f"block{number}")(x_bchw if number == 1 else F.max_pool2d(x_bchw, 2))
            sides.append(F.interpolate(side_bchw.float(), rgb_bchw.shape[-2:], mode="bilinear"))
        return torch.stack(sides).mean(0).sigmoid()[:, 0]
