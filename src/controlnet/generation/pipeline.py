"""Prompts and units -> pictures: checks first, then per batch contexts, hint features once, the loop, the VAE.

Shapes: n pictures of a call, b pictures of a batch, c channels, h w latent size, H W picture size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import add

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from controlnet.base import Base, tokenize
from controlnet.control import ControlNet, Features, Prompt, predict
from controlnet.errors import UserError
from controlnet.generation.guidance import Predict, guided
from controlnet.generation.sampling import OnStep, initial_noise, make_scheduler, sample
from controlnet.generation.unit import Unit
from controlnet.images import to_uint8

# (steps done, steps in all) of a call, over all its batches; what it raises ends the call
Progress = Callable[[int, int], None]

BATCH_SIZE = 4  # SD 1.5 at 512 with guidance and a control then fits in 8 GB in half precision
SEEDS = range(2**63)  # what torch.Generator takes, without the negative ones


@dataclass(frozen=True)
class Settings:
    """How pictures are sampled, whatever they show."""

    steps: int = 20
    guidance_scale: float = 9.0
    scheduler: str = "ddim"
    negative_prompt: str = ""
    clip_skip: int = 1

    @property
    def heard_negative(self) -> str:
        """The negative prompt, which nobody hears without guidance."""
        return self.negative_prompt if self.guidance_scale != 1.0 else ""


DEFAULT = Settings()


def generate(
    base: Base,
    prompt: str | Sequence[str],
    units: Sequence[Unit] = (),
    *,
    steps: int = DEFAULT.steps,
    guidance_scale: float = DEFAULT.guidance_scale,
    seed: int = 0,
    count: int = 1,
    scheduler: str = DEFAULT.scheduler,
    negative_prompt: str = DEFAULT.negative_prompt,
    clip_skip: int = DEFAULT.clip_skip,
    size: tuple[int, int] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> list[Image.Image]:
    """`count` pictures for each prompt; picture i of the call has seed `seed + i`, alone or in any batch.

    `size` is (width, height); by default that of the hints, or what the base was made for. UserError, before any work
    and for all problems at once, if something does not fit.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    wanted = [text for text in prompts for _ in range(count)]
    settings = Settings(steps, guidance_scale, scheduler, negative_prompt, clip_skip)
    seeds = range(seed, seed + len(wanted))
    size_hw = (size[1], size[0]) if size else None
    pixels_nhwc = generate_pixels(base, wanted, seeds, units, settings, size_hw, batch_size, progress)
    return [Image.fromarray(rgb) for rgb in pixels_nhwc]


@torch.inference_mode()
def generate_pixels(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    units: Sequence[Unit] = (),
    settings: Settings = DEFAULT,
    size_hw: tuple[int, int] | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """A picture for each prompt with its seed, (n, H, W, 3) uint8; hints belong to all pictures (1) or one each (n).

    UserError, before any work and for all problems at once, if something does not fit.
    """
    height, width = size_hw or _default_size(base, units)
    _check(base, prompts, seeds, units, settings, (height, width), batch_size)
    active = [unit for unit in units if unit.strength != 0]
    batches = list(_batches(base, prompts, settings.heard_negative, batch_size))
    pictures = []
    for index, batch in enumerate(batches):
        latent_bchw = generate_latents(
            base,
            [prompts[i] for i in batch],
            [seeds[i] for i in batch],
            [unit.of(batch) for unit in active],
            settings,
            (height, width),
            on_step=_steps_of_all(progress, index * settings.steps, len(batches) * settings.steps),
        )
        pictures.append(to_uint8(base.decode_latents(latent_bchw)))
    return np.concatenate(pictures)


@torch.inference_mode()
def generate_latents(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    units: Sequence[Unit],
    settings: Settings,
    size_hw: tuple[int, int],
    on_step: OnStep | None = None,
) -> Tensor:
    """One batch of what `generate_pixels` has checked, undecoded: (b, c, h, w) float32."""
    height, width = size_hw
    heard = base.encode_prompts([settings.heard_negative, *prompts], settings.clip_skip, size_hw)
    negative, positive = heard[:1].expand(len(prompts)), heard[1:]
    latent_chw = (base.unet.config.in_channels, height // base.factor, width // base.factor)
    noise_bchw = initial_noise(seeds, latent_chw).to(base.device)
    denoise = guided(controlled(base, units), negative, positive, settings.guidance_scale)
    scheduler = make_scheduler(settings.scheduler, base.scheduler_config)
    return sample(denoise, scheduler, noise_bchw, settings.steps, on_step)


def controlled(base: Base, units: Sequence[Unit]) -> Predict:
    """The base's prediction under the sum of the units; hint features are computed here, once."""
    voices = [_voice(unit, base.dtype) for unit in units]

    def prediction(latent_bchw: Tensor, timestep: Tensor, prompt: Prompt) -> Tensor:
        timestep_b = timestep.to(latent_bchw.device).expand(len(latent_bchw))
        control = reduce(add, [voice(latent_bchw, timestep_b, prompt) for voice in voices]) if voices else None
        latent = latent_bchw.to(base.dtype)
        return predict(base.encoder, base.decoder, latent, timestep_b, prompt, control).float()

    return prediction


def _voice(unit: Unit, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Prompt], Features]:
    """What the unit says, in `dtype`; the control itself computes in its own precision."""
    parameter = next(unit.control.parameters())
    device, own = parameter.device, parameter.dtype
    hint_bchw = unit.control.encode_hint(unit.pixels.to(device, own))

    def say(latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt) -> Features:
        sides = len(latent_bchw) // len(hint_bchw)  # of guidance, or pictures that share a hint
        hint_features_bchw = hint_bchw.repeat(sides, 1, 1, 1)
        said = unit.control(latent_bchw.to(own), timestep_b, prompt.to(device, own), hint_features_bchw)
        scaled = said.scaled([unit.strength] * (len(said.skips) + 1))
        return Features(tuple(skip.to(dtype) for skip in scaled.skips), scaled.middle.to(dtype))

    return say


def _batches(base: Base, prompts: Sequence[str], negative: str, size: int) -> Iterator[list[int]]:
    """Neighbours whose prompts have equally many chunks: another's long prompt must not change a picture."""

    def chunks(index: int) -> int:
        return tokenize(base.tokenizers[0], [negative, prompts[index]]).shape[1]

    for _, run in groupby(range(len(prompts)), key=chunks):
        together = list(run)
        yield from (together[start : start + size] for start in range(0, len(together), size))


def _steps_of_all(progress: Progress | None, before: int, total: int) -> OnStep | None:
    return None if progress is None else lambda done, _: progress(before + done, total)


def _default_size(base: Base, units: Sequence[Unit]) -> tuple[int, int]:
    """That of the first hint that can be read (`_check` tells of the others), or the base's own."""
    for unit in units:
        if not _complaint(lambda unit=unit: unit.pixels):  # type: ignore[misc]
            height, width = unit.pixels.shape[2:]
            return height, width
    return base.resolution, base.resolution


def _check(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    units: Sequence[Unit],
    settings: Settings,
    size_hw: tuple[int, int],
    batch_size: int,
) -> None:
    """UserError with every problem of the request."""
    height, width = size_hw
    most_steps = len(base.schedule.alphas_cumprod) - 1
    problems = [
        *_unless(len(prompts) >= 1, "no picture is asked for; expected a prompt and a count of at least 1"),
        *_unless(len(seeds) == len(prompts), f"{len(seeds)} seeds for {len(prompts)} prompts; expected one each"),
        *_unless(all(seed in SEEDS for seed in seeds), "a seed out of range; expected 0 to 2^63 - 1"),
        *_unless(1 <= settings.steps <= most_steps, f"{settings.steps} steps; expected 1 to {most_steps}"),
        *_unless(math.isfinite(settings.guidance_scale), f"guidance scale {settings.guidance_scale}; expected finite"),
        *_unless(batch_size >= 1, f"batch size {batch_size}; expected at least 1"),
        *_unless(
            min(size_hw) > 0 and height % base.factor == 0 and width % base.factor == 0,
            f"a picture of {width}x{height}; expected sides that are multiples of {base.factor}",
        ),
        *_complaint(lambda: make_scheduler(settings.scheduler, base.scheduler_config)),
        *_complaint(lambda: base.check_clip_skip(settings.clip_skip)),
    ]
    for number, unit in enumerate(units, start=1):
        problems += [f"unit {number}: {it}" for it in _unit_problems(base, unit, len(prompts), size_hw)]
    if problems:
        raise UserError("\n".join(problems))


def _unit_problems(base: Base, unit: Unit, count: int, size_hw: tuple[int, int]) -> list[str]:
    problems = [
        *_unless(math.isfinite(unit.strength), f"strength {unit.strength}; expected finite"),
        *_misfit(unit.control, base),
    ]
    unreadable = _complaint(lambda: unit.pixels)
    if unreadable:
        return problems + unreadable
    hints, _, height, width = unit.pixels.shape
    return [
        *problems,
        *_unless(hints in (1, count), f"{hints} hints for {count} pictures; expected one for all or one each"),
        *_unless(
            (height, width) == size_hw,
            f"a hint of {width}x{height} for a picture of {size_hw[1]}x{size_hw[0]}; resize the hint to the picture",
        ),
    ]


def _misfit(control: ControlNet, base: Base) -> list[str]:
    """Why this control cannot speak to this base: it is a copy of another encoder, or elsewhere."""
    mine = {name: tuple(tensor.shape) for name, tensor in control.encoder.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in base.encoder.state_dict().items()}
    different = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    if different:
        name = different[0]
        return [
            f"its control was made for another kind of base: {name} is {mine.get(name, 'absent')}, this {base.family} "
            f"base ({base.source}) has {theirs.get(name, 'none')}; use the base that the control was trained on"
        ]
    device = next(control.parameters()).device
    return _unless(device == base.device, f"its control is on {device}, the base on {base.device}; move one of them")


def _unless(fine: bool, problem: str) -> list[str]:
    return [] if fine else [problem]


def _complaint(attempt: Callable[[], object]) -> list[str]:
    try:
        attempt()
    except UserError as error:
        return [str(error)]
    return []
