"""The editor of segmentations: its component, and what its value is to the segmentation's annotator."""

from io import BytesIO
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from controlnet.annotators.ade20k import CLASSES, PALETTE
from controlnet.annotators.seg import snap, to_colours
from controlnet.errors import UserError
from controlnet.images import Rgb, decode
from controlnet.studio.editors.component import Value, answer, check_file_size, file_bytes, make_editor, with_background
from controlnet.studio.editors.runs import Indices, from_value, to_value

NONE = 255  # the index of what has no class; black in the hint, which no class is
ALLOWED = (*range(len(CLASSES)), NONE)


def segment_editor(label: str, *, width: int = 512, height: int = 512, **options: Any) -> gr.HTML:
    classes = [[each.name, list(each.colour)] for each in CLASSES]
    settings = {"width": width, "height": height, "classes": classes, "none": NONE}
    return make_editor("SegmentEditor", label, settings, read_map, **options)


def blank_segment(width: int, height: int) -> Value:
    return to_value(np.full((height, width), NONE, np.uint8))


def segment_value(indices: NDArray[np.integer[Any]], background: Rgb | None = None) -> Value:
    """Class indices (H, W), 0 to 149, or 255 where there is none. UserError for others."""
    if strange := sorted(set(np.unique(indices).tolist()) - set(ALLOWED)):
        raise UserError(f"class indices {strange[:5]}; expected 0 to {len(CLASSES) - 1}, or {NONE} for none")
    return with_background(to_value(indices.astype(np.uint8)), background)


def segment_indices(value: object) -> Indices:
    """Class indices (H, W), 255 where there is none."""
    return from_value(value, ALLOWED)


def segment_hint(value: object) -> Rgb:
    """(H, W, 3) in the annotator's colours, black where there is no class."""
    indices = segment_indices(value)
    has_class = indices != NONE
    return to_colours(indices * has_class) * has_class[..., None]


def read_map(text: object) -> Value:
    """Of a map in base64: {"value", "off": pixels that were off the palette}, or {"error"}.

    A PNG of one channel has indices, as this editor saves them; of others the colours are snapped to the palette.
    """
    return answer(lambda: _read(file_bytes(text)))


def _read(file: bytes) -> Value:
    check_file_size(file)
    picture = decode(file)  # a broken file ends here, whatever it has inside
    indices = _own_indices(file)
    if indices is not None:
        return {"value": segment_value(indices), "off": 0}
    classes, off = snap(picture)
    is_none = ~picture.any(axis=-1)  # black is no class's colour
    return {"value": segment_value(np.where(is_none, NONE, classes)), "off": off - int(is_none.sum())}


def _own_indices(file: bytes) -> Indices | None:
    """The indices of a PNG that has them: in our palette, or grey levels that are all indices."""
    image = Image.open(BytesIO(file))
    if image.format != "PNG" or image.mode not in ("P", "L"):
        return None
    indices = np.array(image)
    is_ours = image.mode == "L" or (image.getpalette() or [])[: PALETTE.size] == PALETTE.ravel().tolist()
    return indices if is_ours and np.isin(indices, ALLOWED).all() else None
