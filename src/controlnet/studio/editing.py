"""From a picture's hint to an editor: what an annotator has found becomes what can be changed by hand."""

from typing import Any

import numpy as np

from controlnet.annotators.openpose_json import from_openpose_json
from controlnet.annotators.resolution import to_size
from controlnet.annotators.table import load
from controlnet.errors import UserError
from controlnet.images import Rgb, three_channels
from controlnet.studio.annotating import Hint, annotate
from controlnet.studio.asked import NO_ANNOTATOR, Pixels
from controlnet.studio.editors import pose_value, scribble_value, segment_value
from controlnet.studio.editors.component import LARGEST_SIDE
from controlnet.studio.models import Models

NOT_DRAWN = ("depth", "normal", "shuffle", "tile", "grey", "inpaint")  # their hints are no lines on plain paper


def by_hand(picture: Pixels | None, annotator: str, options: dict[str, Any], models: Models) -> tuple[str, Any]:
    """The source of the unit, and its editor's value over the picture.

    People go on in the editor of poses, classes in that of segments, lines on the canvas. UserError for hints that are
    none of these, and without a picture.
    """
    if picture is None:
        raise UserError("no picture yet; upload one, or draw in an empty editor")
    if annotator in NOT_DRAWN:
        raise UserError(f"a hint of {annotator} has no lines, people or classes that an editor could change")
    rgb = three_channels(picture)
    if annotator == NO_ANNOTATOR:
        return "Draw", scribble_value(to_size(rgb, canvas_size(rgb), is_smooth=False))
    return editor_value(annotate(picture, annotator, options, models), rgb, load(annotator).meaning.is_smooth)


def editor_value(hint: Hint, picture: Rgb, is_smooth: bool) -> tuple[str, Any]:
    """As `by_hand`, of a hint that is made; details, of what was looked at, take the picture's size."""
    size = canvas_size(picture)
    match hint.detail:
        case dict() as document:
            return "Pose", pose_value(from_openpose_json(document).resized(size), background=picture)
        case np.ndarray() as classes:
            return "Segments", segment_value(to_size(classes, size, is_smooth=False), background=picture)
    return "Draw", scribble_value(to_size(hint.pixels, size, is_smooth), background=picture)


def canvas_size(picture: Pixels) -> tuple[int, int]:
    """Width and height: the picture's, or as large as the largest canvas."""
    height, width = picture.shape[:2]
    scale = min(1, LARGEST_SIDE / max(height, width))
    return round(width * scale), round(height * scale)
