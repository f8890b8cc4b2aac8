"""What tests of generation share: controls that are heard, latents before the VAE, and how far pictures are apart."""

from typing import Any

import numpy as np
from torch import Tensor

import tiny
from controlnet.base import Base
from controlnet.control import ControlNet
from controlnet.generation.batch import sample_batch
from controlnet.generation.checks import check
from controlnet.generation.request import Request
from controlnet.generation.result import Stopwatch
from controlnet.generation.settings import Settings
from controlnet.generation.voices import Voice


def loud(base: Base, seed: int = 0) -> ControlNet:
    """A control with random zero convolutions too, so that it has something to say."""
    control = ControlNet.from_base(base.unet)
    tiny.randomised(control, seed)
    return control


def counted(control: ControlNet) -> dict[str, int]:
    """How often it and its hint encoder are run, and for how many pictures in all; goes on counting."""
    calls = {"control": 0, "hint": 0, "pictures": 0}

    def count_control(_: Any, inputs: tuple[Tensor, ...], __: Any) -> None:
        calls["control"] += 1
        calls["pictures"] += len(inputs[0])

    def count_hint(*_: Any) -> None:
        calls["hint"] += 1

    control.register_forward_hook(count_control)
    control.hint_encoder.register_forward_hook(count_hint)
    return calls


def request(base: Base, units: Any = (), settings: Settings | None = None, **others: Any) -> Request:
    given = {"prompts": ["red"], "seeds": [3], "size_hw": None, "image": None, "mask": None, "batch_size": 4} | others
    return Request(base=base, units=units, settings=settings or Settings(steps=4), **given)


def latents(asked: Request) -> Tensor:
    """All of a request's pictures as one batch, undecoded."""
    check(asked)
    everything, canvas = range(len(asked.prompts)), asked.canvas()
    voices = [Voice.of_unit(unit, asked.size, asked.step_count) for unit in asked.units]
    return sample_batch(asked, everything, voices, canvas, Stopwatch(), None)


def grey_levels_apart(one: Any, other: Any) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())
