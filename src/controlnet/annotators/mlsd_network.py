"""The network of straight lines, M-LSD-large (Gu et al. 2022, "Towards Light-weight and Real-time Line Segment
Detection"): a MobileNetV2 and a decoder that joins its five depths, with the names of `mlsd_large_512_fp32.pth`.
"""

# b batch, c channels, h w size of the map, half of the picture's
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (expansion, channels, blocks, stride of the first), Sandler et al. 2018, table 2, as far as it is used
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
STEM = 32
FIRST_USED = 7  # of the sixteen maps: those before served training only


class SameConv2d(nn.Conv2d):
    """A convolution padded as in TensorFlow, where the weights are from: at stride 2 on the right and below only."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return super().forward(F.pad(x_bchw, (0, 1, 0, 1)) if self.stride == (2, 2) else x_bchw)


def light(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """What MobileNetV2 is made of."""
    return nn.Sequential(SameConv2d(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU6(True))


def plain(inputs: int, outputs: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """What the decoder is made of."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(True))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        widen = [light(inputs, inner, 1)] if expansion > 1 else []
        narrow = [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*widen, light(inner, inner, stride=stride, groups=inner), *narrow)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x_bchw: Tensor) -> Tensor:
        return x_bchw + self.conv(x_bchw) if self.is_residual else self.conv(x_bchw)


class Backbone(nn.Module):
    """(b, 4, 2h, 2w) -> the output of each stage, at 1/2, 1/4, 1/8, 1/16 and 1/16 of the picture's size."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(light(4, STEM, stride=2))
        inputs, self.ends = STEM, []
        for expansion, channels, blocks, stride in STAGES:
            for block in range(blocks):
                self.features.append(InvertedResidual(inputs, channels, stride if block == 0 else 1, expansion))
                inputs = channels
            self.ends.append(len(self.features) - 1)

    def forward(self, x_bchw: Tensor) -> list[Tensor]:
        outputs = []
        for index, feature in enumerate(self.features):
            x_bchw = feature(x_bchw)
            if index in self.ends:
                outputs.append(x_bchw)
        return outputs


class Join(nn.Module):
    """A shallow map beside a deep one, brought to the shallow one's size."""

    def __init__(self, shallow: int, deep: int) -> None:
        super().__init__()
        self.conv1 = plain(deep, 64, 1)
        self.conv2 = plain(shallow, 64, 1)

    def forward(self, shallow_bchw: Tensor, deep_bchw: Tensor) -> Tensor:
        shallow_bchw, deep_bchw = self.conv2(shallow_bchw), self.conv1(deep_bchw)
        if deep_bchw.shape != shallow_bchw.shape:
            deep_bchw = F.interpolate(deep_bchw, shallow_bchw.shape[-2:], mode="bilinear", align_corners=True)
        return torch.cat([shallow_bchw, deep_bchw], dim=1)


class Refine(nn.Module):
    """Two convolutions, the first residual: 128 channels -> 64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = plain(128, 128)
        self.conv2 = plain(128, 64)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.conv2(x_bchw + self.conv1(x_bchw))


class Predict(nn.Module):
    """64 channels -> the sixteen maps; its first convolution sees far."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = plain(64, 64, dilation=5)
        self.conv2 = plain(64, 64)
        self.conv3 = nn.Conv2d(64, 16, 1)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x_bchw)))


class MlsdNetwork(nn.Module):
    """RGB and a channel of ones, (b, 4, 2h, 2w), sides multiples of 16, colours in [-1, 1] -> (b, 9, h, w).

    Of the nine maps the first is the logit of "a line's centre is here", the next four are the displacements from it
    to the line's ends (x, y, x, y) in pixels of the map; the others served training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.block15, self.block16 = Join(64, 96), Refine()
        self.block17, self.block18 = Join(32, 64), Refine()
        self.block19, self.block20 = Join(24, 64), Refine()
        self.block21, self.block22 = Join(16, 64), Refine()
        self.block23 = Predict()

    def forward(self, x_bchw: Tensor) -> Tensor:
        at_2, at_4, at_8, at_16, deepest = self.backbone(x_bchw)
        x_bchw = self.block16(self.block15(at_16, deepest))
        x_bchw = self.block18(self.block17(at_8, x_bchw))
        x_bchw = self.block20(self.block19(at_4, x_bchw))
        x_bchw = self.block22(self.block21(at_2, x_bchw))
        return self.block23(x_bchw)[:, FIRST_USED:]
