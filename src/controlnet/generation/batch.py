"""One batch of a checked request, from prompts and noise to latents.

Shapes: b pictures of a batch, c channels, h w latent size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from controlnet.control import Prompt
from controlnet.generation.guidance import guided
from controlnet.generation.painting import Canvas, blended, with_noise
from controlnet.generation.prompts import hear
from controlnet.generation.request import Request
from controlnet.generation.result import Stopwatch
from controlnet.generation.sampling import OnStep, Settle, draw_noise, noise_sources, sample
from controlnet.generation.schedulers import step_options
from controlnet.generation.voices import Voice, controlled
from controlnet.speed import quick


@torch.no_grad()
def sample_batch(
    request: Request,
    batch: Sequence[int],
    voices: Sequence[Voice],
    canvas: Canvas | None,
    clock: Stopwatch,
    on_step: OnStep | None,
) -> Tensor:
    """The latents of a batch, (b, c, h, w) float32, by voices and a canvas of its own."""
    base, settings = request.base, request.settings
    with clock("prompts"):
        negative, positive = _heard(request, batch)
    scheduler, timesteps = request.walk()
    generators = noise_sources([request.seeds[picture] for picture in batch])
    height, width = request.size
    shape_chw = (base.vae.config.latent_channels, height // base.factor, width // base.factor)
    noise_bchw = draw_noise(generators, shape_chw).to(base.device)
    with clock("sampling"):
        start_bchw, settle, beside_bchw = _start(request, scheduler, timesteps, noise_bchw, canvas)
        denoise = guided(controlled(base, voices, beside_bchw), negative, positive, request.guidance_scales)
        options = step_options(scheduler, settings.eta, generators)
        with quick([base.encoder, base.decoder, *(voice.unit.control for voice in voices)]):
            return sample(denoise, scheduler, timesteps, start_bchw, settle, on_step, **options)


def _start(
    request: Request, scheduler: Any, timesteps: Tensor, noise_bchw: Tensor, canvas: Canvas | None
) -> tuple[Tensor, Settle | None, Tensor | None]:
    """The first latent, what keeps it outside a mask, and what an inpainting base sees beside it."""
    alone_bchw = noise_bchw * scheduler.init_noise_sigma
    if canvas is None:
        return alone_bchw, None, None
    base = request.base
    known_bchw, cells_11hw = canvas.latents(base).expand_as(noise_bchw), canvas.cells(base)
    if cells_11hw is None or request.settings.image_strength < 1:
        start_bchw = with_noise(scheduler, known_bchw, noise_bchw, timesteps[0])
    else:
        start_bchw = alone_bchw
    if cells_11hw is None:
        return start_bchw, None, None
    beside_bchw = canvas.beside(base)
    if beside_bchw is not None:
        return start_bchw, None, beside_bchw.expand(len(noise_bchw), -1, -1, -1)
    return start_bchw, blended(scheduler, timesteps, known_bchw, noise_bchw, cells_11hw), None


def _heard(request: Request, batch: Sequence[int]) -> tuple[Prompt, Prompt]:
    """The negative and the positive prompts of a batch."""
    base, settings = request.base, request.settings
    texts = [request.negative, *(settings.positive(request.prompts[picture]) for picture in batch)]
    if settings.prompt_weights:
        heard = hear(base, texts, settings.clip_skip, request.size)
    else:
        heard = base.encode_prompts(texts, settings.clip_skip, request.size)
    return heard[:1].expand(len(batch)), heard[1:]
