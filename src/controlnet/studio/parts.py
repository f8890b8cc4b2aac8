"""Components that are ours: pictures that come in through the package's own decoder, words for people."""

import html
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import gradio as gr

from controlnet.errors import UserError
from controlnet.images import decode_with_alpha
from controlnet.studio.asked import Pixels, from_data_url, with_alpha_if_any

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")
Source = Literal["upload", "clipboard", "webcam"]
HERE = "picture in memory"  # what the decoder calls what has no path


def for_people(function: Callable[Arguments, Value]) -> Callable[Arguments, Value]:
    """A UserError as the browser shows errors."""

    @wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped


def alert(message: str) -> str:
    """As HTML that a screen reader reads at once."""
    return f'<div class="alert" role="alert">{html.escape(message)}</div>'


def quiet(message: str) -> str:
    return f'<div class="quiet">{html.escape(message)}</div>'


def picture_input(
    label: str, sources: Sequence[Source] = ("upload", "clipboard", "webcam"), **options: Any
) -> gr.Image:
    """A picture that comes in; functions get it as `Pixels`, whole, or a clear word why not.

    Gradio would decode it itself, without our limits, EXIF and 16-bit rules. Its own classes are not inherited from:
    that would write a file beside this one.
    """
    made = gr.Image(
        label=label, sources=list(sources), type="filepath", format="png", buttons=["fullscreen"], **options
    )
    made.preprocess = for_people(read_payload)  # type: ignore[method-assign]
    return made


def read_payload(payload: Any) -> Pixels | None:
    """A file that a browser or a client has sent. UserError if it is no picture that can be used."""
    if payload is None:
        return None
    url = payload.url or ""
    data = from_data_url(url) if url.startswith("data:") else Path(payload.path).read_bytes()
    name = payload.orig_name or "the picture"
    try:
        return with_alpha_if_any(decode_with_alpha(data))
    except UserError as error:
        raise UserError(str(error).replace(HERE, name)) from error
