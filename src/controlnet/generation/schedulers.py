"""How a prediction takes the latent one step on: diffusers' schedulers, by name."""

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from controlnet.errors import UserError


class DDIM(DDIMScheduler):
    """diffusers', which chooses its timesteps itself, with given ones: the original takes 31 when asked for 30."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Sequence[int] | None = None
    ) -> None:
        if timesteps is None:
            super().set_timesteps(num_inference_steps, device)
            return
        trained = self.config.num_train_timesteps
        distances = {here - there for here, there in pairwise(timesteps)} or {trained}
        distance = max(distances)
        if len(distances) > 1 or trained // (trained // distance) != distance:
            raise ValueError("ddim takes timesteps at one distance that is 1000 // n")
        self.num_inference_steps = trained // distance
        self.timesteps = torch.tensor(timesteps, device=device)


DPM = {"algorithm_type": "dpmsolver++", "solver_order": 2}
SCHEDULERS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "ddim": (DDIM, {}),  # Song et al. 2021, arXiv:2010.02502
    "euler": (EulerDiscreteScheduler, {}),  # Karras et al. 2022, arXiv:2206.00364, algorithm 1 without second order
    "euler_a": (EulerAncestralDiscreteScheduler, {}),  # with fresh noise at every step
    "heun": (HeunDiscreteScheduler, {}),  # Karras et al. 2022, algorithm 1: n steps are 2 n - 1 evaluations
    "dpmpp_2m": (DPMSolverMultistepScheduler, {**DPM, "use_karras_sigmas": False}),  # Lu et al. 2022, arXiv:2211.01095
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {**DPM, "use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),  # Zhao et al. 2023, arXiv:2302.04867
    "lcm": (LCMScheduler, {}),  # Luo et al. 2023, arXiv:2310.04378; for bases or LoRAs that are distilled for it
}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh scheduler with the base's noise schedule; UserError for an unknown name."""
    if name not in SCHEDULERS:
        raise UserError(f"scheduler {name!r}; expected one of: {', '.join(SCHEDULERS)}")
    kind, options = SCHEDULERS[name]
    # some clip to the range of pixels unless told not to; latents have no such range
    return kind.from_config({"clip_sample": False, **config, **options})


def set_timesteps(
    scheduler: Any, steps: int, timesteps: Sequence[int] | None = None, image_strength: float = 1.0
) -> Tensor:
    """The timesteps to walk, on the CPU, where the scheduler's tables are: no wait for a GPU.

    `timesteps`, if given, in place of `steps` that the scheduler chooses. From a picture only the last
    `image_strength` of them are walked. UserError if the scheduler takes none, or not these.
    """
    try:
        if timesteps is None:
            scheduler.set_timesteps(steps)
        elif _takes(scheduler.set_timesteps, "timesteps"):
            scheduler.set_timesteps(timesteps=list(timesteps))
        else:
            able = [name for name, (kind, _) in SCHEDULERS.items() if _takes(kind.set_timesteps, "timesteps")]
            raise ValueError(f"this scheduler takes no timesteps; choose one of: {', '.join(able)}")
    except ValueError as error:
        raise UserError(f"timesteps: {error}") from error
    asked = steps if timesteps is None else len(timesteps)
    skipped = (asked - int(asked * image_strength)) * scheduler.order  # diffusers' rule
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    walked: Tensor = scheduler.timesteps[skipped:]
    return walked


def step_options(scheduler: Any, eta: float, generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """What of all this the scheduler's step wants: only ddim knows eta, only some draw noise, each picture its own."""
    offered = {"eta": eta, "generator": list(generators)}
    return {name: value for name, value in offered.items() if _takes(scheduler.step, name)}


def _takes(function: Any, parameter: str) -> bool:
    return parameter in inspect.signature(function).parameters
