"""What a latent looks like, without its VAE: each cell's colour as a linear function of its channels.

The function is solved by least squares from the VAE itself, at first use: pictures of random colours are encoded, and
the mean colour of each cell is explained by its latent. So every base has its own, and none is written down here.

Shapes: b batch, c channels, h w latent size, H W picture size.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from controlnet.base import Base
from controlnet.images import Rgb, to_uint8

SIDE = 16  # cells along each side of the pictures that it is solved from: 256 of them in each
PICTURES = 2

_solved: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()


def preview(base: Base, latent_bchw: Tensor) -> Rgb:
    """Latents -> small pictures (b, h, w, 3) uint8, one pixel for each cell."""
    if base.vae not in _solved:
        _solved[base.vae] = _solve(base)
    factors = _solved[base.vae].to(latent_bchw.device)
    pixels_bchw = torch.einsum("bchw,cr->brhw", latent_bchw.float(), factors[:-1]) + factors[-1, :, None, None]
    return to_uint8(pixels_bchw)


def denoised(base: Base, input_bchw: Tensor, prediction_bchw: Tensor, timestep: Tensor) -> Tensor:
    """The latent that a step believes in; all schedulers give the U-Net its input at unit variance."""
    alpha = base.schedule.alphas_cumprod.to(input_bchw.device)[timestep.round().long()]
    if base.schedule.prediction_type == "v_prediction":
        return alpha.sqrt() * input_bchw - (1 - alpha).sqrt() * prediction_bchw
    return (input_bchw - (1 - alpha).sqrt() * prediction_bchw) / alpha.sqrt()


@torch.inference_mode()
def _solve(base: Base) -> Tensor:
    """(c + 1, 3): what each channel adds to red, green and blue, then the constant; pixels in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    cells_bchw = torch.rand(PICTURES, 3, SIDE, SIDE, generator=generator) * 2 - 1
    coarse_bchw = interpolate(cells_bchw[..., ::4, ::4], (SIDE, SIDE), mode="bilinear")
    # patches of a cell and areas of many: what is sharp and what is flat
    pixels_bchw = interpolate((cells_bchw + coarse_bchw) / 2, scale_factor=base.factor, mode="nearest")
    latent_bchw = base.encode_moments(pixels_bchw)[0].cpu()
    known = torch.cat([latent_bchw, torch.ones_like(latent_bchw[:, :1])], dim=1).movedim(1, -1).flatten(0, 2)
    colours = avg_pool2d(pixels_bchw, base.factor).movedim(1, -1).flatten(0, 2)
    return torch.linalg.lstsq(known, colours).solution
