"""What people give as a picture, a hint or a mask -> pixels in [0, 1], at the size of the picture to be made.

Shapes: c channels, H W size of a picture.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from controlnet.annotators.inpaint import MARK, says_inpaint
from controlnet.annotators.resolution import size_at
from controlnet.errors import UserError
from controlnet.images import decode, decode_with_alpha, to_hint

Picture = Path | str | Image.Image | NDArray[Any] | Tensor
Size = tuple[int, int]  # (height, width)
Resize = Literal["crop", "fill", "stretch", "original"]
RESIZES: tuple[Resize, ...] = ("crop", "fill", "stretch", "original")

DRAWN = 160  # colours, at most, of what was drawn and must not be blurred: a segmentation has up to 150


def read(picture: Picture, channels: int = 3) -> Tensor:
    """One picture -> (c, H, W) float32. A grey array (H, W) has its values in all `channels`.

    UserError for what can't be read, for another number of channels and for values outside [0, 1].
    """
    pixels_chw = _to_pixels(picture, channels)
    shape = tuple(pixels_chw.shape)
    if len(shape) != 3 or shape[0] != channels:
        raise UserError(f"a picture of shape {shape}; expected ({channels} channels, H, W)")
    low, high = pixels_chw.min().item(), pixels_chw.max().item()
    if not (low >= 0 and high <= 1):
        raise UserError(f"a picture with values from {low:.3g} to {high:.3g}; expected 0 to 1, or uint8")
    return pixels_chw


def read_hint(hint: Picture, channels: int = 3) -> Tensor:
    """As `read`; hints for inpainting, files that say so and arrays (H, W, 4), keep their alpha: (4, H, W)."""
    if channels != 3:
        return read(hint, channels)
    if isinstance(hint, str | Path) and Path(hint).is_file() and says_inpaint(Path(hint)):
        return read(decode_with_alpha(Path(hint)), 4)
    return read(hint, 4 if isinstance(hint, np.ndarray) and hint.ndim == 3 and hint.shape[2] == 4 else 3)


def marked(pixels_chw: Tensor) -> Tensor:
    """What a network sees of a hint (c, H, W): with alpha, as (4, H, W), the colours, and -1 where transparent."""
    return torch.where(pixels_chw[3:] < 0.5, MARK.item(), pixels_chw[:3]) if len(pixels_chw) == 4 else pixels_chw


def _to_pixels(picture: Picture, channels: int) -> Tensor:
    match picture:
        case Tensor():
            return picture.float() / (255 if picture.dtype == torch.uint8 else 1)
        case np.ndarray():
            deep = np.repeat(picture[:, :, None], channels, axis=2) if picture.ndim == 2 else picture
            return _to_pixels(torch.from_numpy(np.ascontiguousarray(deep)).movedim(-1, 0), channels)
        case _:
            pixels_chw = torch.from_numpy(to_hint(decode(picture))).movedim(-1, 0)
            return pixels_chw.mean(0, keepdim=True) if channels == 1 else pixels_chw


def several(given: Picture | Sequence[Picture]) -> list[Picture]:
    """One for each picture to be made, or the one for all: a list, a tensor (n, c, H, W), or a single picture."""
    if isinstance(given, Tensor) and given.ndim == 4:
        return list(given)
    return list(given) if isinstance(given, list | tuple) else [given]  # type: ignore[list-item]


def original_size(size: Size, resolution: int) -> Size:
    """The original's rule: the shorter side near `resolution`, both sides multiples of 64."""
    width, height = size_at(resolution, (size[1], size[0]))
    return height, width


def fit(pixels_chw: Tensor, size: Size, how: Resize, smooth: bool | None = None, frame: Size | None = None) -> Tensor:
    """Pixels at `size`: cropped or filled up around the centre at their aspect, or stretched.

    What fills is the median of each channel along the border. `frame` is the size whose aspect holds, where it is not
    the pixels' own: that of the picture that a hint was annotated from. Where they grow, smooth pixels are
    interpolated and drawn ones are not; by default few colours tell a drawing.
    """
    height, width = size
    scaled = _scaled(frame or size_of(pixels_chw), size, how)
    if size_of(pixels_chw) != scaled:
        pixels_chw = _resize(pixels_chw, scaled, _is_smooth(pixels_chw) if smooth is None else smooth)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    if how == "fill" and scaled != size:
        return _filled(pixels_chw, size, -top, -left)
    return pixels_chw[:, top : top + height, left : left + width]


def _scaled(frame: Size, size: Size, how: Resize) -> Size:
    """The size of the whole picture before it is cut or filled up."""
    if how in ("stretch", "original"):
        return size
    scales = [target / side for target, side in zip(size, frame, strict=True)]
    scale = max(scales) if how == "crop" else min(scales)
    height, width = (round(side * scale) for side in frame)
    return max(1, height), max(1, width)


def _resize(pixels_chw: Tensor, size: Size, smooth: bool) -> Tensor:
    grows = size[0] * size[1] > pixels_chw[0].numel()
    if grows and not smooth:
        return interpolate(pixels_chw[None], size, mode="nearest-exact")[0]
    return interpolate(pixels_chw[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _filled(pixels_chw: Tensor, size: Size, top: int, left: int) -> Tensor:
    height, width = size_of(pixels_chw)
    border = torch.cat(
        [pixels_chw[:, 0], pixels_chw[:, -1], pixels_chw[:, 1:-1, 0], pixels_chw[:, 1:-1, -1]], dim=1
    ).median(dim=1)
    edges = (left, size[1] - width - left, top, size[0] - height - top)
    inside = pad(torch.ones(1, height, width, dtype=torch.bool), edges)
    return torch.where(inside, pad(pixels_chw, edges), border.values[:, None, None])


def _is_smooth(pixels_chw: Tensor) -> bool:
    levels = (pixels_chw * 255).round().long().flatten(1)
    colours = sum((level * 256**place for place, level in enumerate(levels[:7])), torch.zeros_like(levels[0]))
    return len(colours.unique()) > DRAWN


def size_of(pixels_chw: Tensor) -> Size:
    return pixels_chw.shape[1], pixels_chw.shape[2]


def to_pictures(pixels_nchw: Tensor) -> NDArray[np.uint8]:
    """Pixels in [0, 1], or -1, which is shown black -> (n, H, W, c) uint8."""
    return (pixels_nchw * 255).round().clamp(0).to("cpu", torch.uint8).movedim(1, -1).numpy()
