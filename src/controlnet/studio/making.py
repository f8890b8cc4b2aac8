"""What the Generate tab asks for -> pictures in the visitor's folder, each with all that made it.

Shapes: n pictures, H W of a picture.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.hint_file import description, encode
from controlnet.annotators.inpaint import Inpaint
from controlnet.base import Base
from controlnet.errors import UserError
from controlnet.generation import safety
from controlnet.generation.memory import MODES, Memory
from controlnet.generation.opening import settings_of
from controlnet.generation.picture_file import Made
from controlnet.generation.pipeline import Report, carry_out
from controlnet.generation.recipe import Recipe, SafetyMode, UnitChoice
from controlnet.generation.request import Request
from controlnet.generation.unit import Unit
from controlnet.images import three_channels
from controlnet.studio.asked import Asked, Pixels, UnitAsked, name_of
from controlnet.studio.limits import LIMITS, Limits
from controlnet.studio.models import Models
from controlnet.studio.offer import chosen
from controlnet.studio.units import Seen, acting, choice, final, mask_at, see

SEEDS = 2**31  # of random ones; the original's slider ends there
BATCH_SIZE = 4
MEMORIES: dict[str, Memory] = {str(mode) if number else "plenty": mode for number, mode in enumerate(MODES)}


@dataclass(frozen=True, eq=False)
class Pictures:
    """What a call came to."""

    asked: Asked
    """With the seed that was taken."""
    seen: Seen
    pixels_nhwc: NDArray[np.uint8]
    made: list[Made]
    seconds: Mapping[str, float]


def make(asked: Asked, models: Models, tell: Callable[[Report], None], limits: Limits = LIMITS) -> Pictures:
    """Checks, then samples; `tell` hears of every step, and what it raises ends the work. UserError for people."""
    asked = asked if asked.seed >= 0 else asked.with_seed(secrets.randbelow(SEEDS))
    base = models.base(asked.base)
    checker = _checker(asked, base)
    models.with_loras(base, dict.fromkeys(asked.loras, asked.lora_weight))
    seen = see(asked, models, base, limits)
    units = units_of(asked, seen, models, base)
    recipes = [recipe_of(asked, seen, models, number) for number in range(asked.count)]
    result = carry_out(request_of(asked, base, units, recipes, seen), watch=tell)
    unsafe = checker.finds_unsafe(result.pixels_nhwc) if checker else [False] * asked.count
    shown = safety.hidden(result.pixels_nhwc, unsafe, recipes[0].safety)
    made = [_made(asked, recipes, number, seen, models, base) for number in range(asked.count)]
    if checker:
        found = [{"unsafe": it, "done": asked.safety} for it in unsafe]
        made = [replace(each, safety={**each.safety, **its}) for each, its in zip(made, found, strict=True)]
    return Pictures(asked, seen, shown, made, result.timings)


def units_of(asked: Asked, seen: Seen, models: Models, base: Base) -> list[Unit]:
    """With the hints that were seen."""
    return [
        final(unit, models.control(unit.control, unit.is_bgr, base), hint, mask)
        for unit, hint, mask in zip(acting(asked), seen.hints, seen.masks, strict=True)
    ]


def request_of(asked: Asked, base: Base, units: list[Unit], recipes: list[Recipe], seen: Seen) -> Request:
    mask = painted_mask(asked)
    return Request(
        base,
        [recipe.prompt for recipe in recipes],
        [recipe.seed for recipe in recipes],
        units,
        settings_of(recipes[0]),
        seen.size,
        None if asked.image is None else three_channels(asked.image),
        None if mask is None else mask[..., 0],
        BATCH_SIZE,
        chosen("memory", asked.memory, MEMORIES),
    )


def recipe_of(asked: Asked, seen: Seen, models: Models, number: int) -> Recipe:
    """Of picture `number`; files are named as in the visitor's folder."""
    each = zip(acting(asked), seen.hints, seen.masks, strict=True)
    units = [_choice(unit, hint, mask, models) for unit, hint, mask in each]
    mask = painted_mask(asked)
    return Recipe(
        prompt=asked.prompt,
        base=chosen("base", asked.base, models.offer.bases),
        lora=tuple(f"{chosen('LoRA', name, models.offer.loras)}:{asked.lora_weight:g}" for name in asked.loras),
        negative_prompt=asked.negative_prompt,
        added_prompt=asked.added_prompt,
        clip_skip=asked.clip_skip,
        seed=asked.seed + number,
        steps=asked.steps,
        scheduler=asked.scheduler,
        eta=asked.eta,
        guidance_scale=(asked.guidance_scale,),
        image=None if asked.image is None else place_of(three_channels(asked.image)),
        mask=None if mask is None else place_of(mask),
        image_strength=asked.image_strength,
        width=seen.size[1],
        height=seen.size[0],
        safety=asked.safety,  # type: ignore[arg-type]  # checked before
        units=tuple(units),
    )


def _choice(unit: UnitAsked, hint: Pixels, mask: Pixels | None, models: Models) -> UnitChoice:
    is_as_trained = (models.metadata(unit.control).channel_order == "BGR") == unit.is_bgr
    return choice(
        unit, models.place(unit.control), is_as_trained, place_of(hint), None if mask is None else place_of(mask)
    )


def _made(asked: Asked, recipes: Sequence[Recipe], number: int, seen: Seen, models: Models, base: Base) -> Made:
    """How picture `number` came about, but for what the checker found."""
    record, recipe = models.record(recipes[number], base), recipes[number]
    files = {place: hashlib.sha256(data).hexdigest() for place, data in inputs_of(asked, seen).items()}
    start = number - number % BATCH_SIZE
    batch = recipes[start : start + BATCH_SIZE]
    return Made(
        recipe,
        record.inputs(_without_pictures(recipe)) | {place: files[place] for place in recipe.pictures()},
        record.machine(),
        [each.own() for each in batch] if len(batch) > 1 else [],
        number - start,
        {} if asked.safety == "off" else {"checker": "the base's"},
    )


def _without_pictures(recipe: Recipe) -> Recipe:
    units = tuple(replace(unit, hint=None, mask=None) for unit in recipe.units)
    return replace(recipe, image=None, mask=None, units=units)


def _checker(asked: Asked, base: Base) -> safety.Checker | None:
    """UserError where pictures shall be hidden and nothing can tell which."""
    if asked.safety not in get_args(SafetyMode):
        raise UserError(f"safety {asked.safety!r}; expected one of: {', '.join(get_args(SafetyMode))}")
    if asked.safety == "off":
        return None
    if folder := safety.find_checker(base.source, None):
        return safety.open_checker(folder, base.device)
    raise UserError(
        f"safety {asked.safety}: the base {asked.base} has no safety checker: nothing would be checked; choose off, "
        "or a base that has one"
    )


def painted_mask(asked: Asked) -> Pixels | None:
    """What of the image is painted anew, white, of the image's size."""
    return None if asked.image is None else mask_at(asked.mask, (asked.image.shape[0], asked.image.shape[1]))


def place_of(picture: Pixels) -> str:
    """Of a hint or another input, in the visitor's folder."""
    return f"inputs/{name_of(picture)}"


def inputs_of(asked: Asked, seen: Seen) -> dict[str, bytes]:
    """The files that the recipes name, by place."""
    plain = [three_channels(it) for it in (asked.image, painted_mask(asked), *seen.masks) if it is not None]
    files = {place_of(it): encode(it, "{}") for it in (*plain, *seen.hints) if it.shape[2] == 3}
    inpainted = json.dumps(description(Inpaint()))  # says to who reads it that its alpha counts
    return files | {place_of(it): encode(it, inpainted) for it in seen.hints if it.shape[2] == 4}
