"""Prompts and units -> pictures: checks first, then hints, and per batch contexts, the loop, the VAE.

Shapes: n pictures of a call, b pictures of a batch, c channels, h w latent size, H W picture size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlnet.base import Base, tokenize
from controlnet.generation.batch import sample_batch
from controlnet.generation.checks import check
from controlnet.generation.memory import PLENTY, Memory
from controlnet.generation.needs import settled
from controlnet.generation.pictures import Picture, Size, to_pictures
from controlnet.generation.placing import at_work
from controlnet.generation.preview import denoised, preview
from controlnet.generation.prompts import plain
from controlnet.generation.request import Request
from controlnet.generation.result import Result, Stopwatch
from controlnet.generation.sampling import OnStep
from controlnet.generation.settings import Settings
from controlnet.generation.steps import WHOLE, OverSteps
from controlnet.generation.unit import Unit
from controlnet.generation.voices import Voice
from controlnet.images import Rgb, to_uint8

BATCH_SIZE = 4  # SD 1.5 at 512 with guidance and a control then fits in 8 GB in half precision
DEFAULT = Settings()

# (steps done, steps in all) of a call, over all its batches; what it raises ends the call, and nothing is left of it
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Report:
    """What is told after every step."""

    done: int
    """Steps done, over all batches of the call."""
    total: int
    pictures: Sequence[int]
    """The numbers of the call's pictures that are being made."""
    _preview: Callable[[], Rgb]

    def preview(self) -> Rgb:
        """What the step believes that they will be, (b, h, w, 3) uint8, one pixel for each cell of the latent."""
        return self._preview()


Watch = Callable[[Report], None]  # what it raises ends the call, and nothing is left of it


def generate(
    base: Base,
    prompt: str | Sequence[str],
    units: Sequence[Unit] = (),
    *,
    steps: int = DEFAULT.steps,
    guidance_scale: OverSteps = DEFAULT.guidance_scale,
    seed: int | Sequence[int] = 0,
    count: int = 1,
    scheduler: str = DEFAULT.scheduler,
    negative_prompt: str = DEFAULT.negative_prompt,
    added_prompt: str = DEFAULT.added_prompt,
    prompt_weights: bool = DEFAULT.prompt_weights,
    clip_skip: int = DEFAULT.clip_skip,
    guidance_interval: tuple[float, float] = WHOLE,
    eta: float = DEFAULT.eta,
    timesteps: Sequence[int] | None = None,
    image: Picture | Sequence[Picture] | None = None,
    mask: Picture | None = None,
    image_strength: float = DEFAULT.image_strength,
    size: tuple[int, int] | None = None,
    batch_size: int = BATCH_SIZE,
    memory: Memory | str = PLENTY,
    progress: Progress | None = None,
    watch: Watch | None = None,
) -> Result:
    """`count` pictures for each prompt; picture i of the call has seed `seed + i`, or `seed[i]`, alone or in any batch.

    From `image`, if given, instead of noise alone, and where it has a `mask`, only there. `size` is (width, height);
    by default that of the hints, for an image near what the base was made for. The options are told in `Settings` and
    `Unit`. `memory` says how models and pictures share the device's, or is a limit, such as "8GB", for which the
    fastest way is chosen: models can only be away from the device if the base was opened with `resident=False`.
    UserError, before any work and for all problems at once, if something does not fit.
    """
    prompts = [text for text in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(count)]
    seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
    settings = Settings(
        steps,
        guidance_scale,
        scheduler,
        negative_prompt,
        clip_skip,
        added_prompt,
        prompt_weights,
        guidance_interval,
        eta,
        None if timesteps is None else tuple(timesteps),
        image_strength,
    )
    size_hw = (size[1], size[0]) if size else None
    request = Request(base, prompts, seeds, units, settings, size_hw, image, mask, batch_size, memory)
    return carry_out(request, progress, watch)


def generate_pixels(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    units: Sequence[Unit] = (),
    settings: Settings = DEFAULT,
    size_hw: Size | None = None,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """A picture for each prompt with its seed, (n, H, W, 3) uint8; hints belong to all pictures (1) or one each (n).

    UserError, before any work and for all problems at once, if something does not fit.
    """
    request = Request(base, prompts, seeds, units, settings, size_hw, None, None, batch_size)
    return carry_out(request, progress).pixels_nhwc


@torch.inference_mode()
def carry_out(request: Request, progress: Progress | None = None, watch: Watch | None = None) -> Result:
    """Checks the request, then makes its pictures, batch by batch."""
    check(request)
    memory = settled(request)
    with at_work(request.base, [unit.control for unit in request.units], memory):
        return _made(request, memory, progress, watch)


def _made(request: Request, memory: Memory, progress: Progress | None, watch: Watch | None) -> Result:
    base, clock = request.base, Stopwatch()
    with clock("hints"):
        acting = [unit for unit in request.units if any(unit.strengths(request.step_count))]
        voices = [Voice.of_unit(unit, request.size, request.step_count) for unit in acting]
    canvas = request.canvas()
    batches = list(_batches(request))
    pictures = []
    for number, batch in enumerate(batches):
        on_step = _told(request, batch, number, len(batches), progress, watch)
        own_canvas = canvas and canvas.of(batch)
        latent_bchw = sample_batch(request, batch, [voice.of(batch) for voice in voices], own_canvas, clock, on_step)
        with clock("decoding"):
            pixels_bchw = base.decode_latents(latent_bchw)
            pictures.append(to_uint8(own_canvas.finish(pixels_bchw) if own_canvas else pixels_bchw))
    hints = [to_pictures(voice.pixels_nchw) for voice in voices]
    return Result(
        np.concatenate(pictures), request.prompts, request.seeds, hints, request.settings, clock.seconds, memory
    )


def _batches(request: Request) -> Iterator[list[int]]:
    """Neighbours whose prompts have equally many chunks: another's long prompt must not change a picture."""
    read = plain if request.settings.prompt_weights else str

    def chunks(picture: int) -> int:
        texts = [request.negative, request.settings.positive(request.prompts[picture])]
        return tokenize(request.base.tokenizers[0], [read(text) for text in texts]).shape[1]

    for _, run in groupby(range(len(request.prompts)), key=chunks):
        together = list(run)
        yield from (
            together[start : start + request.batch_size] for start in range(0, len(together), request.batch_size)
        )


def _told(
    request: Request, batch: Sequence[int], number: int, batches: int, progress: Progress | None, watch: Watch | None
) -> OnStep | None:
    """What tells `progress` and `watch` of the steps of batch `number`."""
    if progress is None and watch is None:
        return None
    timesteps = request.walk()[1]
    before, total = number * len(timesteps), batches * len(timesteps)

    def on_step(done: int, input_bchw: Tensor, prediction_bchw: Tensor) -> None:
        def look() -> Rgb:
            return preview(request.base, denoised(request.base, input_bchw, prediction_bchw, timesteps[done - 1]))

        if progress is not None:
            progress(before + done, total)
        if watch is not None:
            watch(Report(before + done, total, batch, look))

    return on_step
