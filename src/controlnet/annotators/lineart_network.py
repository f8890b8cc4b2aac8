"""The two networks of line drawings, with the names of `sk_model.pth`, `sk_model2.pth` and of `netG.pth`."""

# b batch, c channels, h w picture size
import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions beside the identity (Johnson et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)]
        other_half = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3), nn.InstanceNorm2d(channels)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(True), *other_half)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return x_bchw + self.conv_block(x_bchw)


class LineartNetwork(nn.Module):
    """RGB (b, 3, h, w) in [0, 1], sides multiples of 4 -> drawing (b, h, w) float32 in [0, 1], dark strokes on white.

    The generator of Chan et al. 2022, "Learning to generate line drawings that convey geometry and semantics".
    """

    def __init__(self) -> None:
        super().__init__()
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 64, 7), nn.InstanceNorm2d(64), nn.ReLU(True))
        self.model1 = nn.Sequential(*_halve(64, 128), *_halve(128, 256))
        self.model2 = nn.Sequential(*(Residual(256) for _ in range(3)))
        self.model3 = nn.Sequential(*_double(256, 128), *_double(128, 64))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(64, 1, 7))

    def forward(self, rgb_bchw: Tensor) -> Tensor:
        x_bchw = self.model1(self.model0(rgb_bchw))
        return self.model4(self.model3(self.model2(x_bchw))).float().sigmoid()[:, 0]


def _halve(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.InstanceNorm2d(outputs), nn.ReLU(True)]


def _double(inputs: int, outputs: int) -> list[nn.Module]:
    conv = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return [conv, nn.InstanceNorm2d(outputs), nn.ReLU(True)]


WIDTHS = (64, 128, 256, 512, 512, 512, 512, 512)  # pix2pix's U-Net for multiples of 256 (Isola et al. 2017)


class Level(nn.Module):
    """One level of the U-Net with all those below it: half the size, go deeper, double, and stand beside the input.

    `inputs` channels -> twice as many; the outermost level gives its drawing alone.
    """

    def __init__(self, depth: int, inputs: int, outputs: int) -> None:
        super().__init__()
        width = WIDTHS[depth]
        self.is_outermost, is_innermost = depth == 0, depth == len(WIDTHS) - 1
        down: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(inputs, width, 4, 2, 1), nn.InstanceNorm2d(width)]
        up = [nn.ReLU(True), nn.ConvTranspose2d(2 * width, outputs, 4, 2, 1), nn.InstanceNorm2d(outputs)]
        if self.is_outermost:
            down, up = down[1:2], up[:2]
        if is_innermost:
            down, up = down[:2], [up[0], nn.ConvTranspose2d(width, outputs, 4, 2, 1), up[2]]
        deeper = [] if is_innermost else [Level(depth + 1, width, width)]
        self.model = nn.Sequential(*down, *deeper, *up)

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = self.model(x_bchw)
        return y_bchw if self.is_outermost else torch.cat([x_bchw, y_bchw], dim=1)


class AnimeNetwork(nn.Module):
    """RGB (b, 3, h, w) in [-1, 1], sides multiples of 256 -> drawing (b, h, w) float32, dark strokes on white."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Level(0, 3, 1)

    def forward(self, rgb_bchw: Tensor) -> Tensor:
        return self.model(rgb_bchw).float().tanh()[:, 0]
