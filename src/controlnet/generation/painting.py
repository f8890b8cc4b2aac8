"""To start from a picture in place of noise alone, and to paint only a part of it.

Shapes: n pictures or one for all, b pictures of a batch, c channels, h w latent size, H W picture size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from controlnet.base import Base
from controlnet.checkpoints.parts import INPAINTING_CHANNELS
from controlnet.generation.sampling import Settle


@dataclass(frozen=True, eq=False)
class Canvas:
    """The pictures to start from, in [-1, 1], (1 or n, 3, H, W), and where to paint: (1, 1, H, W), 1 anew, 0 not."""

    pixels_nchw: Tensor
    mask_11hw: Tensor | None = None

    def of(self, pictures: Sequence[int]) -> "Canvas":
        """For some pictures of a call."""
        return self if len(self.pixels_nchw) == 1 else replace(self, pixels_nchw=self.pixels_nchw[list(pictures)])

    def latents(self, base: Base) -> Tensor:
        """(1 or b, c, h, w) float32: the mean of the VAE's posterior, so that the same picture is always the same."""
        return base.encode_moments(self.pixels_nchw)[0]

    def cells(self, base: Base) -> Tensor | None:
        """The mask for latents, (1, 1, h, w), 0 or 1: a cell is painted if any of its pixels is."""
        if self.mask_11hw is None:
            return None
        height, width = (side // base.factor for side in self.mask_11hw.shape[2:])
        return (adaptive_max_pool2d(self.mask_11hw, (height, width)) > 0.5).float().to(base.device)

    def beside(self, base: Base) -> Tensor | None:
        """What an inpainting base sees beside the latent, (1 or b, 5, h, w); None for a plain base."""
        cells_11hw = self.cells(base)
        if not sees_masks(base) or cells_11hw is None or self.mask_11hw is None:
            return None
        kept_nchw = self.pixels_nchw * (self.mask_11hw <= 0.5)
        latent_bchw = base.encode_moments(kept_nchw)[0]
        return torch.cat([cells_11hw.expand(len(latent_bchw), -1, -1, -1), latent_bchw], dim=1)

    def finish(self, pixels_bchw: Tensor) -> Tensor:
        """Painted pixels, but outside the mask those of the picture itself."""
        if self.mask_11hw is None:
            return pixels_bchw
        mask_11hw = self.mask_11hw.to(pixels_bchw)
        return mask_11hw * pixels_bchw.clamp(-1, 1) + (1 - mask_11hw) * self.pixels_nchw.to(pixels_bchw)


def sees_masks(base: Base) -> bool:
    """Whether the base was made for inpainting: its U-Net takes 9 channels."""
    return base.unet.config.in_channels == base.vae.config.latent_channels + INPAINTING_CHANNELS


def with_noise(scheduler: Any, latent_bchw: Tensor, noise_bchw: Tensor, timestep: Tensor) -> Tensor:
    """The picture at a timestep of the scheduler."""
    noisy: Tensor = scheduler.add_noise(latent_bchw, noise_bchw, timestep.reshape(1).to(latent_bchw.device))
    return noisy


def blended(scheduler: Any, timesteps: Tensor, known_bchw: Tensor, noise_bchw: Tensor, cells_11hw: Tensor) -> Settle:
    """After every step: outside the mask the picture itself, as noisy as the next step expects."""

    def settle(latent_bchw: Tensor, step: int) -> Tensor:
        is_last = step + 1 == len(timesteps)
        outside_bchw = known_bchw if is_last else with_noise(scheduler, known_bchw, noise_bchw, timesteps[step + 1])
        return cells_11hw * latent_bchw + (1 - cells_11hw) * outside_bchw

    return settle
