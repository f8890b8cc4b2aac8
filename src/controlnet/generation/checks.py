"""Every reason why a request cannot be carried out: found before any work, told at once."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from controlnet.base import Base
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation.painting import sees_masks
from controlnet.generation.pictures import RESIZES, Picture, Size, read, size_of
from controlnet.generation.request import Request, complaint
from controlnet.generation.schedulers import make_scheduler
from controlnet.generation.settings import Settings
from controlnet.generation.steps import window_problems
from controlnet.generation.unit import MODES, Unit

SEEDS = range(2**63)  # what torch.Generator takes, without the negative ones


def check(request: Request) -> None:
    """UserError with every problem of the request."""
    problems = [*_picture_problems(request), *_image_problems(request)]
    problems += [*_settings_problems(request.settings, request.base), *_walk_problems(request)]
    steps = 0 if problems else request.step_count
    if steps:
        problems += _guidance_problems(request)
    if sum(unit.control.decoder is not None for unit in request.units) > 1:
        problems.append("several controls bring a trained decoder of their own; the base has room for one of them")
    for number, unit in enumerate(request.units, start=1):
        problems += [f"unit {number}: {it}" for it in _unit_problems(request, unit, steps)]
    if problems:
        raise UserError("\n".join(problems))


def _picture_problems(request: Request) -> Iterator[str]:
    height, width = request.size
    factor = request.base.factor
    if not request.prompts:
        yield "no picture is asked for; expected a prompt and a count of at least 1"
    if len(request.seeds) != len(request.prompts):
        yield f"{len(request.seeds)} seeds for {len(request.prompts)} pictures; expected one each"
    if not all(seed in SEEDS for seed in request.seeds):
        yield "a seed out of range; expected 0 to 2^63 - 1"
    if request.batch_size < 1:
        yield f"batch size {request.batch_size}; expected at least 1"
    if min(request.size) <= 0 or height % factor or width % factor:
        yield f"a picture of {width}x{height}; expected sides that are multiples of {factor}"


def _image_problems(request: Request) -> Iterator[str]:
    base = request.base
    if sees_masks(base) and (request.image is None or request.mask is None):
        yield f"the base {base.source} was made for inpainting; give an image and a mask, or choose a plain base"
    elif request.mask is not None and request.image is None:
        yield "a mask without an image; give the image in which it shows what to paint anew"
    if unreadable := complaint(lambda: request.images):
        yield f"image: {unreadable[0]}"
        return
    if len(request.images) not in (0, 1, len(request.prompts)):
        yield f"{len(request.images)} images for {len(request.prompts)} pictures; expected one for all or one each"
    if request.mask is not None and request.images:
        yield from _mask_problems(request.mask, {request.size, size_of(request.images[0])})


def _settings_problems(settings: Settings, base: Base) -> Iterator[str]:
    yield from complaint(lambda: base.check_clip_skip(settings.clip_skip))
    if not 0 <= settings.eta <= 1:
        yield f"eta {settings.eta}; expected 0 to 1"
    if settings.eta and settings.scheduler != "ddim":
        yield f"eta {settings.eta} with the scheduler {settings.scheduler}; only ddim has it"
    if not 0 < settings.image_strength <= 1:
        yield f"image strength {settings.image_strength}; expected more than 0, at most 1"


def _walk_problems(request: Request) -> Iterator[str]:
    settings, most = request.settings, len(request.base.schedule.alphas_cumprod) - 1
    given = settings.timesteps
    unknown = complaint(lambda: make_scheduler(settings.scheduler, {}))
    yield from unknown
    if given is None and not 1 <= settings.steps <= most:
        yield f"{settings.steps} steps; expected 1 to {most}"
    elif given is not None and not (given and _falls(given) and given[-1] >= 0 and given[0] <= most):
        yield f"timesteps {', '.join(map(str, given)) or 'without any'}; expected falling ones from {most} to 0"
    elif not unknown:
        yield from complaint(lambda: _walk(request))


def _walk(request: Request) -> None:
    _, timesteps = request.walk()
    if not len(timesteps):
        strength = request.settings.image_strength
        raise UserError(f"image strength {strength} of {request.settings.steps} steps is none; take more of either")


def _falls(timesteps: Sequence[int]) -> bool:
    return all(here > there for here, there in pairwise(timesteps))


def _guidance_problems(request: Request) -> Iterator[str]:
    yield from (f"guidance: {it}" for it in window_problems(request.settings.guidance_interval, request.step_count))
    if wrong := complaint(lambda: request.guidance_scales):
        yield f"guidance scale: {wrong[0]}"
    elif not all(map(math.isfinite, request.guidance_scales)):
        yield f"guidance scale {request.settings.guidance_scale}; expected finite"


def _unit_problems(request: Request, unit: Unit, steps: int) -> Iterator[str]:
    yield from _misfit(unit.control, request.base)
    yield from _weight_problems(unit)
    if steps:
        yield from window_problems((unit.start, unit.end), steps)
        if wrong := complaint(lambda: unit.strengths(steps)):
            yield f"schedule: {wrong[0]}"
        elif not all(map(math.isfinite, unit.strengths(steps))):
            yield f"strength {unit.strength}, scheduled; expected finite"
    if unreadable := complaint(lambda: unit.given):
        yield unreadable[0]
        return
    if len(unit.given) not in (1, len(request.prompts)):
        yield f"{len(unit.given)} hints for {len(request.prompts)} pictures; expected one for all or one each"
    if unit.image is not None and unit.hint_channels != 3:
        yield f"an annotator's hint has 3 channels, this control expects {unit.hint_channels}; give it its hint"
    if unit.mask is not None:
        yield from _mask_problems(unit.mask, {request.size, size_of(unit.given[0])})


def _weight_problems(unit: Unit) -> Iterator[str]:
    if unit.mode not in MODES:
        yield f"mode {unit.mode!r}; expected one of: {', '.join(MODES)}"
    if unit.resize not in RESIZES:
        yield f"resize {unit.resize!r}; expected one of: {', '.join(RESIZES)}"
    if not math.isfinite(unit.strength):
        yield f"strength {unit.strength}; expected finite"
    weights = unit.layer_weights
    if weights is not None and len(weights) != unit.layer_count:
        yield f"{len(weights)} layer weights; expected {unit.layer_count}: the skips, shallow to deep, and the middle"
    elif weights is not None and not all(map(math.isfinite, weights)):
        yield f"layer weights {weights}; expected finite"


def _mask_problems(mask: Picture, sizes: set[Size]) -> Iterator[str]:
    if unreadable := complaint(lambda: read(mask, channels=1)):
        yield f"mask: {unreadable[0]}"
        return
    height, width = size_of(read(mask, channels=1))
    if (height, width) not in sizes:
        expected = " or ".join(sorted(f"{each[1]}x{each[0]}" for each in sizes))
        yield f"a mask of {width}x{height}; expected {expected}, as what it belongs to or as the picture"


def _misfit(control: ControlNet, base: Base) -> Iterator[str]:
    """Why this control cannot speak to this base: it is a copy of another encoder, or elsewhere."""
    mine = {name: tuple(tensor.shape) for name, tensor in control.encoder.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in base.encoder.state_dict().items()}
    if sees_masks(base):  # a control of the plain base steers it too: it sees the latent alone
        del mine["conv_in.weight"], theirs["conv_in.weight"]
    different = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    if different:
        name = different[0]
        yield (
            f"its control was made for another kind of base: {name} is {mine.get(name, 'absent')}, this {base.family} "
            f"base ({base.source}) has {theirs.get(name, 'none')}; use the base that the control was trained on"
        )
        return
    device = next(control.parameters()).device
    if device != base.unet.device:
        yield f"its control is on {device}, the base on {base.unet.device}; move one of them"
