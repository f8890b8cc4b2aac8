"""The Annotate tab: every annotator, the picture and its hint side by side, and many pictures at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.table import ANNOTATORS, load
from controlnet.errors import UserError
from controlnet.studio.annotating import ARCHIVE, annotate, annotate_files
from controlnet.studio.asked import Pixels, png
from controlnet.studio.desk import Desk
from controlnet.studio.examples import house
from controlnet.studio.parts import alert, picture_input, quiet
from controlnet.studio.progress import counted
from controlnet.studio.unit_panel import PRIVATE, QUICK, options_of

FIRST = "canny"


def annotate_tab(desk: Desk, visitor: gr.BrowserState, load_event: Any) -> None:
    """Lay it out and wire it."""
    with gr.Row():
        with gr.Column(scale=3, min_width=300, elem_classes="tight"):
            annotator = gr.Dropdown(list(ANNOTATORS), value=FIRST, label="Annotator", elem_id="annotator")
            about = gr.HTML(described(FIRST))
            options = gr.State({})
            with gr.Column():
                options_of(annotator, options, load_event)
            go = gr.Button("Annotate", variant="primary")
            _many_at_once(desk, visitor, annotator, options)
        with gr.Column(scale=4, min_width=300):
            picture = picture_input("Picture", value=house(), height=520)
        with gr.Column(scale=4, min_width=300):
            hint = gr.Image(
                label="Hint",
                interactive=False,
                format="png",
                height=520,
                buttons=["download", "fullscreen"],
                elem_classes="shows",
            )
            note = gr.HTML()
            detail = gr.File(label="What was found beyond it", interactive=False, visible=False)

    def one(name: str, values: dict[str, Any], given: Pixels | None, who: str) -> tuple[Any, str, Any]:
        try:
            if given is None:
                raise UserError("no picture yet; upload one, paste one, or take one with the camera")
            made = annotate(given, name, values, desk.models)
            found = None if made.detail is None else _detail_file(made.detail, desk.folder(who))
        except UserError as error:
            return None, alert(str(error)), gr.update(visible=False)
        height, width = made.pixels.shape[:2]
        words = quiet(f"{width}x{height}; {load(name).meaning.values}")
        return made.pixels, words, gr.update(value=found, visible=found is not None)

    shared: Any = {"concurrency_id": "hints", **PRIVATE}
    gr.on(
        [load_event, go.click, picture.change],
        one,
        [annotator, options, picture, visitor],
        [hint, note, detail],
        **shared,
    )
    annotator.change(lambda name: (described(name), {}), annotator, [about, options], **QUICK).then(
        one, [annotator, options, picture, visitor], [hint, note, detail], **shared
    )


def _many_at_once(desk: Desk, visitor: gr.BrowserState, annotator: gr.Dropdown, options: gr.State) -> None:
    with gr.Accordion("Many pictures at once", open=False):
        files = gr.File(
            label="Pictures", file_count="multiple", file_types=[".png", ".jpg", ".jpeg", ".webp"], height=120
        )
        go_all = gr.Button("Annotate all")
        told = gr.HTML()
        archive = gr.File(label="All hints", interactive=False, visible=False)

    def many(paths: list[str] | None, name: str, values: dict[str, Any], who: str) -> Iterator[tuple[str, Any]]:
        try:
            folder, failed = desk.folder(who), list[str]()
            for done, failed in annotate_files(paths or [], name, values, desk.models, folder):  # noqa: B007  # the last
                yield counted(done, len(paths or []), f"hints: {name}"), gr.skip()
            words = quiet("Done.") if not failed else alert("left out:\n" + "\n".join(failed))
            yield words, gr.update(value=str(folder / ARCHIVE), visible=True)
        except UserError as error:
            yield alert(str(error)), gr.update(visible=False)

    inputs = [files, annotator, options, visitor]
    go_all.click(many, inputs, [told, archive], concurrency_id="hints", **PRIVATE)


def described(name: str) -> str:
    """One line of what an annotator draws."""
    text = (load(name).__doc__ or "").strip().splitlines()[0]
    return quiet(text)


def _detail_file(detail: NDArray[np.uint8] | dict[str, Any], folder: Path) -> str:
    """Keypoints as JSON, classes as a grey PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(detail, dict):
        path = folder / "found.json"
        path.write_text(json.dumps(detail), encoding="utf-8")
        return str(path)
    path = folder / "classes.png"  # no name of a picture of the history
    path.write_bytes(png(np.ascontiguousarray(detail)))
    return str(path)
