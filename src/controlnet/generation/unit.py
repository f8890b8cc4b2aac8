"""A unit: one ControlNet, its hint, and how strongly it acts.

Shapes: n pictures, c channels, H W picture size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.images import decode, to_hint

Hint = Path | str | Image.Image | NDArray[np.uint8] | NDArray[np.floating] | Tensor


@dataclass(frozen=True, eq=False)
class Unit:
    """At generation: who controls (`control`), by what (`hint`), how strongly (`strength`; 0 is not run at all).

    A hint is a picture or its path; an array (H, W, c) or (H, W), uint8 or float in [0, 1]; or a tensor (c, H, W), or
    (n, c, H, W) for n pictures that have a hint each.
    """

    control: ControlNet
    hint: Hint
    strength: float = 1.0

    @cached_property
    def pixels(self) -> Tensor:
        """The hint as the network sees it: (1 or n, c, H, W) float32 in [0, 1]. UserError if it can't be read so."""
        channels = next(self.control.hint_encoder.parameters()).shape[1]
        pixels_nchw = _to_pixels(self.hint, channels)
        shape = tuple(pixels_nchw.shape)
        if len(shape) != 4 or shape[1] != channels:
            raise UserError(f"a hint of shape {shape}; this control expects (pictures, {channels} channels, H, W)")
        low, high = pixels_nchw.min().item(), pixels_nchw.max().item()
        if not (low >= 0 and high <= 1):
            raise UserError(f"a hint with values from {low:.3g} to {high:.3g}; expected 0 to 1, or uint8")
        return pixels_nchw

    def of(self, pictures: Sequence[int]) -> "Unit":
        """The unit for some pictures of a call: with their own hints, or with the one for all."""
        return self if len(self.pixels) == 1 else replace(self, hint=self.pixels[list(pictures)])


def _to_pixels(hint: Hint, channels: int) -> Tensor:
    match hint:
        case Tensor():
            pixels = hint if hint.ndim == 4 else hint[None]
            return pixels / 255 if hint.dtype == torch.uint8 else pixels.float()
        case np.ndarray():
            grey_or_colour = np.repeat(hint[:, :, None], channels, axis=2) if hint.ndim == 2 else hint
            return _to_pixels(torch.from_numpy(np.ascontiguousarray(grey_or_colour)).permute(2, 0, 1), channels)
        case _:
            return torch.from_numpy(to_hint(decode(hint))).permute(2, 0, 1)[None]
