"""The canvas for drawings and masks: its component, and what its value is to annotators."""

from collections.abc import Callable
from typing import Any, Literal

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.scribble import Scribble
from controlnet.images import Rgb, decode, three_channels
from controlnet.studio.editors.component import (
    Value,
    answer,
    check_file_size,
    file_bytes,
    make_editor,
    with_background,
)
from controlnet.studio.editors.runs import from_value, to_value

Mode = Literal["scribble", "mask"]

PAPER, STROKE = 0, 1
MIDDLE = 127  # grey levels: lighter is painted, in a picture of a mask


def scribble_editor(
    label: str,
    *,
    mode: Mode = "scribble",
    width: int = 512,
    height: int = 512,
    brush: int | None = None,
    **options: Any,
) -> gr.HTML:
    """The canvas. `brush` is the diameter at the start, pixels; None is thin for drawings and thick for masks."""
    settings = {"mode": mode, "width": width, "height": height, "brush": brush}
    return make_editor("ScribbleEditor", label, settings, read_drawing_as(mode), **options)


def blank(width: int, height: int) -> Value:
    return to_value(np.full((height, width), PAPER, np.uint8))


def scribble_value(drawing: Rgb, background: Rgb | None = None) -> Value:
    """A drawing (H, W, 3), dark on light or light on dark."""
    strokes = Scribble().annotate(drawing)[..., 0]
    return with_background(to_value(strokes // 255 * np.uint8(STROKE)), background)


def mask_value(mask: NDArray[np.uint8], background: Rgb | None = None) -> Value:
    """A mask (H, W), painted where it is lighter than the middle."""
    return with_background(to_value((mask > MIDDLE) * np.uint8(STROKE)), background)


def scribble_hint(value: object) -> Rgb:
    """(H, W, 3), white strokes on black, as the annotator gives of a dark drawing on light paper."""
    paper = 255 - mask_of(value)
    return Scribble(strokes="dark").annotate(three_channels(paper))


def mask_of(value: object) -> NDArray[np.uint8]:
    """(H, W), 255 where painted, else 0."""
    return from_value(value, (PAPER, STROKE)) * np.uint8(255)


def read_drawing_as(mode: Mode) -> Callable[[object], Value]:
    def read_drawing(text: object) -> Value:
        """Of a picture file in base64: its strokes, or what it masks; {"error"} where that cannot be."""
        return answer(lambda: _read(file_bytes(text), mode))

    return read_drawing


def _read(file: bytes, mode: Mode) -> Value:
    check_file_size(file)
    picture = decode(file)
    if mode == "mask":
        return mask_value(picture.max(axis=2))
    return scribble_value(picture)
