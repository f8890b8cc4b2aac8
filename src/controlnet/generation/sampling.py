"""From noise to a latent: the whole loop.

What the loop calls for the prediction, base or base under control, guided or not, is a function; how a prediction
takes the latent one step on is diffusers' scheduler (schedulers.py).

Shapes: b batch, c channels, h w latent size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# (latent (b, c, h, w) float32, timestep () on its device, number of the step from 0) -> noise or velocity, like it
Denoise = Callable[[Tensor, Tensor, int], Tensor]
# (latent after a step, number of the step) -> the latent to go on with; inpainting keeps what is not painted
Settle = Callable[[Tensor, int], Tensor]
# (steps done, what was denoised last, its prediction): told after every step; what it raises ends the loop
OnStep = Callable[[int, Tensor, Tensor], None]


def noise_sources(seeds: Sequence[int]) -> list[torch.Generator]:
    """One for each picture, on the CPU: a picture's noise is the same in any batch and on any device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(generators: Sequence[torch.Generator], shape_chw: Sequence[int]) -> Tensor:
    """(b, c, h, w) float32, one picture's from each generator."""
    return torch.stack([torch.randn(tuple(shape_chw), generator=generator) for generator in generators])


def initial_noise(seeds: Sequence[int], shape_chw: Sequence[int]) -> Tensor:
    """The noise that each seed's picture begins with, (b, c, h, w) float32."""
    return draw_noise(noise_sources(seeds), shape_chw)


def sample(
    denoise: Denoise,
    scheduler: Any,
    timesteps: Tensor,
    latent_bchw: Tensor,
    settle: Settle | None = None,
    on_step: OnStep | None = None,
    **step_options: Any,
) -> Tensor:
    """The latent (b, c, h, w) float32 that the scheduler makes of the first one by walking the timesteps."""
    for index, (timestep, there) in enumerate(zip(timesteps, timesteps.to(latent_bchw.device), strict=True)):
        input_bchw = scheduler.scale_model_input(latent_bchw, timestep)
        prediction_bchw = denoise(input_bchw, there, index)
        latent_bchw = scheduler.step(prediction_bchw, timestep, latent_bchw, return_dict=False, **step_options)[0]
        if settle is not None:
            latent_bchw = settle(latent_bchw, index)
        if on_step is not None:
            on_step(index + 1, input_bchw, prediction_bchw)
    return latent_bchw
