"""Classifier-free guidance, as a function of what it guides.

Shapes: b batch, c channels, h w latent size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from controlnet.control import Prompt
from controlnet.generation.sampling import Denoise

# (latent (b, c, h, w) float32, timestep (), prompt of b) -> prediction like the latent
Predict = Callable[[Tensor, Tensor, Prompt], Tensor]


def guided(predict: Predict, negative: Prompt, positive: Prompt, guidance_scale: float) -> Denoise:
    """Away from the negative prompt, by `guidance_scale` times the way to the positive one (Ho and Salimans 2022).

    Both go through the base as one batch, the negative half first. At scale 1 the negative prompt has no say and is
    not run.
    """
    if guidance_scale == 1.0:
        return lambda latent_bchw, timestep: predict(latent_bchw, timestep, positive)
    both = Prompt.cat([negative, positive])

    def denoise(latent_bchw: Tensor, timestep: Tensor) -> Tensor:
        away_bchw, towards_bchw = predict(torch.cat([latent_bchw, latent_bchw]), timestep, both).chunk(2)
        return away_bchw + guidance_scale * (towards_bchw - away_bchw)

    return denoise
