"""What all editors are to Gradio: HTML with a script of their own, and a value that is JSON."""

import base64
import binascii
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.processing_utils import save_img_array_to_cache
from gradio.utils import get_upload_folder

from controlnet.errors import UserError
from controlnet.images import Rgb, header_size

Value = dict[str, Any]
"""What an editor exchanges with the server; the package's docstring has the keys."""

FOLDER = Path(__file__).parent
SMALLEST_SIDE, LARGEST_SIDE = 64, 2048  # pixels of a canvas; a browser draws the larger ones no more at ease
FILE_BYTES = 20 * 2**20  # of an opened file
SCRIPTS = {
    "ScribbleEditor": ("raster", "scribble"),
    "PoseEditor": ("pose", "pose_pointers", "pose_drawing"),
    "SegmentEditor": ("raster", "segment"),
}


def make_editor(
    script: str, label: str, settings: Mapping[str, Any], server_function: Callable[[Any], Value], **options: Any
) -> gr.HTML:
    """The component inside the current Blocks, run by the JavaScript class `script`.

    No subclass of gr.HTML: importing one makes Gradio write a file beside its module.
    """
    code = [asset(f"{name}.js") for name in ("common", "stage", "editor", *SCRIPTS[script])]
    opened = f"{script}.open(element, {{ props, trigger, server, upload, watch }});"
    bounds = {"smallest": SMALLEST_SIDE, "largest": LARGEST_SIDE, "file_bytes": FILE_BYTES}
    return gr.HTML(
        options.pop("value", None),
        label=label,
        html_template='<div class="editor"></div>',  # independent of the value, whose changes would tear it down
        css_template=asset("editor.css"),
        js_on_load="\n".join([*code, opened]),
        apply_default_css=False,
        server_functions=[server_function],
        settings={**bounds, **settings},
        **options,
    )


def with_background(value: Value, background: Rgb | None) -> Value:
    """The value over a photograph (H, W, 3), which becomes a file that Gradio serves; None leaves what is there."""
    if background is None:
        return value
    path = save_img_array_to_cache(background, get_upload_folder(), format="png")
    return {**value, "background": FileData(path=path).model_dump()}


@cache
def asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def check_size(width: object, height: object) -> tuple[int, int]:
    """UserError unless both are whole numbers within the bounds of a canvas."""
    if not all(type(side) is int and SMALLEST_SIDE <= side <= LARGEST_SIDE for side in (width, height)):
        raise UserError(
            f"a canvas of {str(width)[:20]} x {str(height)[:20]}; expected sides of {SMALLEST_SIDE} to {LARGEST_SIDE} "
            "pixels"
        )
    return width, height  # type: ignore[return-value]


def check_file_size(file: bytes) -> None:
    """UserError for a picture larger or smaller than any canvas: exact pixels cannot be resized."""
    width, height = header_size(file)
    if min(width, height) < SMALLEST_SIDE or max(width, height) > LARGEST_SIDE:
        raise UserError(
            f"a picture of {width}x{height}; expected sides of {SMALLEST_SIDE} to {LARGEST_SIDE} pixels: resize it"
        )


def answer(make: Callable[[], Value]) -> Value:
    """What `make` gives, or {"error": why not}: a server function has no other way to tell."""
    try:
        return make()
    except UserError as error:
        return {"error": str(error)}


def file_bytes(text: object) -> bytes:
    """A file that the browser has sent as base64. UserError for other things and for what is too large."""
    if not isinstance(text, str):
        raise UserError(f"no file: found {type(text).__name__}, expected base64")
    if len(text) > FILE_BYTES * 4 // 3 + 4:
        raise UserError(f"a file of over {FILE_BYTES >> 20} MB; make it smaller first")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"no file: {error}; expected base64") from error
