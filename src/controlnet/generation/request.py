"""What is asked for: one value that is checked as a whole (checks.py) and then carried out (pipeline.py)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from controlnet.base import Base
from controlnet.errors import UserError
from controlnet.generation.guidance import guidance_scales
from controlnet.generation.memory import PLENTY, Memory
from controlnet.generation.painting import Canvas
from controlnet.generation.pictures import Picture, Size, fit, original_size, read, several, size_of
from controlnet.generation.schedulers import make_scheduler, set_timesteps
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit


@dataclass(frozen=True, eq=False)
class Request:
    """One picture for each prompt with its seed."""

    base: Base
    prompts: Sequence[str]
    seeds: Sequence[int]
    units: Sequence[Unit]
    settings: Settings
    size_hw: Size | None
    """Of the pictures; None chooses."""
    image: Picture | Sequence[Picture] | None
    """To start from: one for all, or one for each."""
    mask: Picture | None
    """Where the image is painted anew: of its size or of the picture's."""
    batch_size: int
    memory: Memory | str = PLENTY
    """How models and pictures share the device's memory; a text, such as 8GB, is a limit within which it is chosen."""

    @cached_property
    def images(self) -> list[Tensor]:
        """(3, H, W) in [0, 1] each, of any sizes. UserError if one is unreadable."""
        return [] if self.image is None else [read(image) for image in several(self.image)]

    @cached_property
    def size(self) -> Size:
        """As asked, or that of the image or of the first unit that can be read, or the base's own."""
        if self.size_hw:
            return self.size_hw
        resolution = self.base.resolution
        if not complaint(lambda: self.images) and self.images:
            return original_size(size_of(self.images[0]), resolution)
        readable = (unit for unit in self.units if not complaint(partial(getattr, unit, "given")))
        return next((unit.natural_size(resolution) for unit in readable), (resolution, resolution))

    def canvas(self) -> Canvas | None:
        """The images at the pictures' size, cropped where their aspect differs."""
        if not self.images:
            return None
        pixels_nchw = torch.stack([fit(image, self.size, "crop", smooth=True) for image in self.images]) * 2 - 1
        if self.mask is None:
            return Canvas(pixels_nchw)
        return Canvas(pixels_nchw, fit(read(self.mask, channels=1), self.size, "crop", smooth=True)[None])

    def walk(self) -> tuple[Any, Tensor]:
        """A fresh scheduler and the timesteps that it walks. UserError if there are none such."""
        settings = self.settings
        scheduler = make_scheduler(settings.scheduler, self.base.scheduler_config)
        strength = 1.0 if self.image is None else settings.image_strength
        return scheduler, set_timesteps(scheduler, settings.steps, settings.timesteps, strength)

    @cached_property
    def step_count(self) -> int:
        """How often the base is asked."""
        return len(self.walk()[1])

    @cached_property
    def guidance_scales(self) -> list[float]:
        """At each step; 1 is without guidance."""
        return guidance_scales(self.settings.guidance_scale, self.step_count, self.settings.guidance_interval)

    @property
    def negative(self) -> str:
        """The negative prompt, which nobody hears without guidance."""
        return self.settings.negative_prompt if any(scale != 1.0 for scale in self.guidance_scales) else ""


def complaint(attempt: Callable[[], object]) -> list[str]:
    """The UserError of an attempt; empty if it succeeds."""
    try:
        attempt()
    except UserError as error:
        return [str(error)]
    return []
