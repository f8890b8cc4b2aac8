"""Inception v3 (Szegedy et al. 2015) as the Fréchet Inception Distance uses it: pictures -> 2048 features.

No library here has it without torchvision. Its weights are those of TensorFlow's network of December 2015, which every
published FID is measured with, as PyTorch ports have them: a file of tensors named `Mixed_5b.branch1x1.conv.weight` and
so on, such as pytorch-fid's pt_inception-2015-12-05-6726825d.pth. That network differs from the paper's: its average
pools leave the border out of the count, and its last block pools by the maximum.

Shapes: b pictures, c channels, h w size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from controlnet.checkpoints.strict import check_fit
from controlnet.checkpoints.tensor_file import open_tensors
from controlnet.images import Rgb

SIDE = 299  # pixels of what it sees
EPSILON = 1e-3  # of its batch norms
NOT_USED = ("fc.", "AuxLogits.")  # the classifiers'
TOGETHER = 32  # pictures

Kernel = int | tuple[int, int]


class Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=EPSILON)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.bn(self.conv(x_bchw)).relu()


class Block(nn.Module):
    """Branches side by side, their channels one after another. A branch is convolutions one behind the other.

    The last steps of a branch may stand side by side too, as `3x3_2a` and `3x3_2b`: both see what is before them.
    """

    def __init__(self, branches: dict[str, Sequence[Convolution]], pooled: str = "") -> None:
        """Branches by name; `pooled` is "average" or "maximum" where there is a branch of the pooled input."""
        super().__init__()
        self.order = {name: list(_names(name, parts)) for name, parts in branches.items()}
        self.pooled = pooled
        for name, parts in branches.items():
            for part_name, part in zip(self.order[name], parts, strict=True):
                self.add_module(part_name, part)

    def forward(self, x_bchw: Tensor) -> Tensor:
        outputs = [self._branch(names, self._input(name, x_bchw)) for name, names in self.order.items()]
        if self.pooled == "reduction":
            outputs.append(max_pool2d(x_bchw, 3, stride=2))
        return torch.cat(outputs, dim=1)

    def _input(self, name: str, x_bchw: Tensor) -> Tensor:
        if name != "branch_pool":
            return x_bchw
        if self.pooled == "maximum":
            return max_pool2d(x_bchw, 3, stride=1, padding=1)
        return avg_pool2d(x_bchw, 3, stride=1, padding=1, count_include_pad=False)

    def _branch(self, names: Sequence[str], x_bchw: Tensor) -> Tensor:
        behind = [name for name in names if name[-1] not in "ab"]
        beside = [name for name in names if name[-1] in "ab"]
        for name in behind:
            x_bchw = self.get_submodule(name)(x_bchw)
        return torch.cat([self.get_submodule(name)(x_bchw) for name in beside], dim=1) if beside else x_bchw


def _names(name: str, parts: Sequence[Convolution]) -> Iterator[str]:
    """As the published weights name a branch's convolutions: one alone has the branch's name, and of kernels 1x3 and
    3x1 at the end one is a, the other b, of the same number."""
    if len(parts) == 1:
        yield name
        return
    forked = name.startswith("branch3x3") and parts[-1].conv.kernel_size == (3, 1)
    for number in range(1, len(parts) + 1 - 2 * forked):
        yield f"{name}_{number}"
    if forked:
        yield from (f"{name}_{len(parts) - 1}{letter}" for letter in "ab")


C = Convolution


def _small(channels: int, pool: int) -> Block:
    return Block(
        {
            "branch1x1": [C(channels, 64, 1)],
            "branch5x5": [C(channels, 48, 1), C(48, 64, 5, padding=2)],
            "branch3x3dbl": [C(channels, 64, 1), C(64, 96, 3, padding=1), C(96, 96, 3, padding=1)],
            "branch_pool": [C(channels, pool, 1)],
        },
        "average",
    )


def _wide(inner: int) -> Block:
    across, down = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
    double = [C(inner, inner, **down), C(inner, inner, **across), C(inner, inner, **down), C(inner, 192, **across)]  # type: ignore[arg-type]
    return Block(
        {
            "branch1x1": [C(768, 192, 1)],
            "branch7x7": [C(768, inner, 1), C(inner, inner, **across), C(inner, 192, **down)],  # type: ignore[arg-type]
            "branch7x7dbl": [C(768, inner, 1), *double],
            "branch_pool": [C(768, 192, 1)],
        },
        "average",
    )


def _forked(channels: int, pooled: str) -> Block:
    def fork() -> list[Convolution]:
        return [C(384, 384, (1, 3), padding=(0, 1)), C(384, 384, (3, 1), padding=(1, 0))]

    return Block(
        {
            "branch1x1": [C(channels, 320, 1)],
            "branch3x3": [C(channels, 384, 1), *fork()],
            "branch3x3dbl": [C(channels, 448, 1), C(448, 384, 3, padding=1), *fork()],
            "branch_pool": [C(channels, 192, 1)],
        },
        pooled,
    )


class Inception(nn.Module):
    """Pictures (b, 3, SIDE, SIDE) in [0, 1] -> features (b, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = C(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = C(32, 32, 3)
        self.Conv2d_2b_3x3 = C(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = C(64, 80, 1)
        self.Conv2d_4a_3x3 = C(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _small(192, 32), _small(256, 64), _small(288, 64)
        double = [C(288, 64, 1), C(64, 96, 3, padding=1), C(96, 96, 3, stride=2)]
        self.Mixed_6a = Block({"branch3x3": [C(288, 384, 3, stride=2)], "branch3x3dbl": double}, "reduction")
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _wide(128), _wide(160), _wide(160), _wide(192)
        self.Mixed_7a = Block(
            {
                "branch3x3": [C(768, 192, 1), C(192, 320, 3, stride=2)],
                "branch7x7x3": [
                    C(768, 192, 1),
                    C(192, 192, (1, 7), padding=(0, 3)),
                    C(192, 192, (7, 1), padding=(3, 0)),
                    C(192, 192, 3, stride=2),
                ],
            },
            "reduction",
        )
        self.Mixed_7b, self.Mixed_7c = _forked(1280, "average"), _forked(2048, "maximum")

    def forward(self, pixels_bchw: Tensor) -> Tensor:
        x_bchw = 2 * pixels_bchw - 1
        for name, layer in self.named_children():
            x_bchw = layer(x_bchw)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x_bchw = max_pool2d(x_bchw, 3, stride=2)
        return x_bchw.mean(dim=(2, 3))


def open_inception(path: Path, device: torch.device) -> Inception:
    """With the weights of a file. UserError if there are none or they are another network's."""
    with torch.device("meta"):
        network = Inception()
    tensors = {name: it for name, it in open_tensors(path).tensors.items() if not name.startswith(NOT_USED)}
    wanted = network.state_dict()
    counters = {name: torch.zeros((), dtype=torch.long) for name in wanted if name.endswith("num_batches_tracked")}
    check_fit(str(path), counters | tensors, wanted)
    network.load_state_dict(counters | tensors, assign=True)
    return network.to(device, torch.float32).eval().requires_grad_(False)


@torch.inference_mode()
def inception_features(network: Inception, pictures: Sequence[Rgb], device: torch.device) -> NDArray[np.float64]:
    """Of pictures (H, W, 3) of any sizes, (n, 2048)."""
    parts = []
    for start in range(0, len(pictures), TOGETHER):
        seen = [_seen(picture) for picture in pictures[start : start + TOGETHER]]
        parts.append(network(torch.cat(seen).to(device)).cpu().double().numpy())
    return np.concatenate(parts)


def _seen(picture: Rgb) -> Tensor:
    """(1, 3, SIDE, SIDE) in [0, 1]."""
    pixels_bchw = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    return interpolate(pixels_bchw, (SIDE, SIDE), mode="bilinear", align_corners=False)
