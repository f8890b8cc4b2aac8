"""From a unit's panel to what its network sees: made here once, shown as it is, and fed as it is, byte for byte.

Shapes: H W of the picture to be made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from controlnet.annotators.annotator import options as options_of
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.base import Base
from controlnet.checkpoints.control_metadata import ControlMetadata
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation.pictures import Size, fit, original_size, read, to_pictures
from controlnet.generation.recipe import UnitChoice
from controlnet.generation.unit import Unit
from controlnet.images import three_channels
from controlnet.studio.asked import NO_ANNOTATOR, Asked, EditorValue, Pixels, UnitAsked, numbers
from controlnet.studio.editors import mask_of, pose_hint, scribble_hint, segment_hint
from controlnet.studio.limits import LIMITS, Limits, check_work
from controlnet.studio.models import Models
from controlnet.studio.offer import chosen

# name in the panel -> the field with its value
SOURCES = {"Picture": "picture", "Draw": "drawing", "Pose": "pose", "Segments": "segments"}
# conditions that have an annotator by another name, or that are drawn
ANNOTATOR_OF = {"circle": NO_ANNOTATOR, "openpose": "pose", "normalbae": "normal", "softedge": "hed"}
LARGER = 2  # times the base's resolution, up to which it still paints what a hint of that size shows
SOURCE_OF = {"circle": "Draw", "scribble": "Draw"}


@dataclass(frozen=True, eq=False)
class Seen:
    """The hints and masks of a call, one for each unit, and the size of its pictures."""

    size: Size
    hints: list[Pixels]
    masks: list[Pixels | None]
    """Where the units act, (H, W, 3), white; None is everywhere."""


def acting(asked: Asked) -> list[UnitAsked]:
    """The units that have something to say: others were left empty."""
    return [unit for unit in asked.units if not is_empty(unit)]


def is_empty(unit: UnitAsked) -> bool:
    """Whether there is no picture, or nothing is drawn."""
    return getattr(unit, source(unit)) is None or (unit.source != "Picture" and not given_to(unit).any())


def source(unit: UnitAsked) -> str:
    """The field with the value. UserError for a source that is not in the table."""
    return chosen("source", unit.source, SOURCES)


def see(asked: Asked, models: Models, base: Base, limits: Limits = LIMITS) -> Seen:
    """The hints as the networks will see them, (H, W, 3) uint8; for inpainting with alpha, (H, W, 4).

    UserError for what is too much, before any of them is made.
    """
    units = acting(asked)
    drafts = [draft(unit, models.control(unit.control, unit.is_bgr, base), models) for unit in units]
    size = size_of(asked, drafts, base)
    check_work(asked.count, asked.steps, size[1], size[0], limits)
    with models.annotating:
        hints = [made(each, size, unit.invert) for each, unit in zip(drafts, units, strict=True)]
    return Seen(size, hints, [mask_at(unit.mask, size) for unit in units])


def mask_at(painted: EditorValue, size: Size) -> Pixels | None:
    """A mask (H, W, 3), white where it was painted, cropped to the picture's shape; None if nothing was."""
    mask = None if painted is None else mask_of(painted)
    if mask is None or not mask.any():
        return None
    pixels_chw = fit(read(three_channels(mask)), size, "crop", smooth=False)
    return np.ascontiguousarray(to_pictures(pixels_chw[None])[0])


def size_of(asked: Asked, drafts: Sequence[Unit], base: Base) -> Size:
    """As asked; or that of the image to start from, of the first hint, or the base's own.

    A canvas may be much larger than what the base paints: it then has the canvas's shape alone.
    """
    if asked.has_own_size:
        return asked.height, asked.width
    if asked.image is not None:
        return original_size(asked.image.shape[:2], base.resolution)
    natural = next((each.natural_size(base.resolution) for each in drafts), (base.resolution, base.resolution))
    is_drawn_large = min(natural) > LARGER * base.resolution
    return original_size(natural, base.resolution) if is_drawn_large else natural


def draft(unit: UnitAsked, control: ControlNet, models: Models) -> Unit:
    """The unit before its hint is made: of what, by which annotator, how it is fitted."""
    if channels := next(control.hint_encoder.parameters()).shape[1] - 3:
        raise UserError(f"the control {unit.control} expects hints of {channels + 3} channels; expected 3: red to blue")
    given = given_to(unit)
    resize: Any = unit.resize  # checked with the request
    if unit.source != "Picture" or unit.annotator == NO_ANNOTATOR:
        return Unit(control, hint=three_channels(given), resize=resize)
    options = {**unit.options, **({"detect_resolution": 0} if unit.pixel_perfect else {})}
    annotator = models.annotator(unit.annotator, known_options(unit.annotator, options))
    image = given if unit.annotator == "inpaint" else three_channels(given)
    return Unit(control, image=image, annotator=annotator, resize=resize)


def given_to(unit: UnitAsked) -> Pixels:
    """What the panel's source holds, as a picture. UserError if an editor's value is none of its own."""
    match unit.source:
        case "Draw":
            return scribble_hint(unit.drawing)
        case "Pose":
            return pose_hint(unit.pose)
        case "Segments":
            return segment_hint(unit.segments)
    assert unit.picture is not None
    return unit.picture


def known_options(annotator: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the annotator has: a panel keeps what it had for another."""
    names = {option.name for option in options_of(load(annotator))}
    return {name: value for name, value in options.items() if name in names}


def made(unit: Unit, size: Size, is_inverted: bool) -> Pixels:
    """What `unit` will hear, rounded to 8 bits: what is shown, kept and fed are then the same."""
    pixels_nchw = unit.pixels(size)
    rgb = to_pictures(pixels_nchw)[0]
    rgb = 255 - rgb if is_inverted else rgb
    is_hole = (pixels_nchw[0] < 0).any(0).numpy()  # the mark of what an inpainting control shall paint
    if not is_hole.any():
        return rgb
    return np.concatenate([rgb, np.where(is_hole, 0, 255).astype(np.uint8)[..., None]], axis=2)


def final(asked: UnitAsked, control: ControlNet, hint: Pixels, mask: Pixels | None) -> Unit:
    """The unit that is carried out: its hint is there, at the very size."""
    schedule = numbers(asked.schedule, "schedule")
    return Unit(
        control,
        hint,
        asked.strength,
        asked.start,
        asked.end,
        (schedule[0] if len(schedule) == 1 else schedule) if schedule else None,
        numbers(asked.layer_weights, "layer weights") or None,
        None if mask is None else mask[..., 0],
        asked.mode,  # type: ignore[arg-type]  # checked with the request
        "crop" if asked.resize == "original" else asked.resize,  # type: ignore[arg-type]
    )


def choice(asked: UnitAsked, place: str, is_as_trained: bool, hint: str, mask: str | None) -> UnitChoice:
    """As the picture's file says it: `controlnet generate --from` makes the same of it."""
    return UnitChoice(
        control=place,
        hint=hint,
        strength=asked.strength,
        start=asked.start,
        end=asked.end,
        schedule=numbers(asked.schedule, "schedule"),
        layer_weights=numbers(asked.layer_weights, "layer weights"),
        mask=mask,
        mode=asked.mode,
        resize="crop" if asked.resize == "original" else asked.resize,
        channel_order=None if is_as_trained else "BGR" if asked.is_bgr else "RGB",
    )


def suited(unit: UnitAsked, metadata: ControlMetadata) -> UnitAsked:
    """The panel when this control is chosen: its annotator, its polarity, the order of its channels."""
    condition = metadata.condition
    annotator = ANNOTATOR_OF.get(condition, condition)
    return replace(
        unit,
        annotator=annotator if annotator in ANNOTATORS else NO_ANNOTATOR,
        source=SOURCE_OF.get(condition, "Picture"),
        invert=is_inverted(annotator, metadata),
        is_bgr=metadata.channel_order == "BGR",
    )


def is_inverted(annotator: str, metadata: ControlMetadata) -> bool:
    """Whether the control learned from the negative of what the annotator draws."""
    if metadata.polarity != "dark on light" or annotator == NO_ANNOTATOR:
        return False
    return load(annotator).meaning.polarity == "light on dark"
