"""From noise to a latent: the whole loop.

What the loop calls for the prediction, base or base under control, guided or not, is a function; how a prediction
takes the latent one step on is diffusers' scheduler.

Shapes: b batch, c channels, h w latent size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from torch import Tensor

from controlnet.errors import UserError

# (latent (b, c, h, w) float32, timestep ()) -> prediction of noise or velocity, like the latent
Denoise = Callable[[Tensor, Tensor], Tensor]
# (steps done, latent): told after every step, for progress and previews; what it raises ends the loop
OnStep = Callable[[int, Tensor], None]

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,  # Song et al. 2021, arXiv:2010.02502
    "unipc": UniPCMultistepScheduler,  # Zhao et al. 2023, arXiv:2302.04867
}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh scheduler with the base's noise schedule; UserError for an unknown name."""
    if name not in SCHEDULERS:
        raise UserError(f"scheduler {name!r}; expected one of: {', '.join(SCHEDULERS)}")
    # diffusers' DDIM clips to the range of pixels unless told not to; latents have no such range
    return SCHEDULERS[name].from_config({"clip_sample": False, **config})


def initial_noise(seeds: Sequence[int], shape_chw: Sequence[int]) -> Tensor:
    """One picture's noise per seed, (b, c, h, w) float32: the same in any batch and, made on the CPU, on any device."""
    return torch.stack([torch.randn(tuple(shape_chw), generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def sample(denoise: Denoise, scheduler: Any, noise_bchw: Tensor, steps: int, on_step: OnStep | None = None) -> Tensor:
    """The latent (b, c, h, w) float32 that `steps` steps of the scheduler make of the noise."""
    scheduler.set_timesteps(steps)  # timesteps stay on the CPU, where the scheduler's tables are: no wait for the GPU
    latent_bchw = noise_bchw * scheduler.init_noise_sigma
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        prediction_bchw = denoise(scheduler.scale_model_input(latent_bchw, timestep), timestep)
        latent_bchw = scheduler.step(prediction_bchw, timestep, latent_bchw, return_dict=False)[0]
        if on_step is not None:
            on_step(done, latent_bchw)
    return latent_bchw
