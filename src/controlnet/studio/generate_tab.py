"""The Generate tab: what is asked on the left, what comes of it on the right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from controlnet.errors import UserError
from controlnet.studio.asked import Asked, Pixels, UnitAsked
from controlnet.studio.desk import Desk
from controlnet.studio.editing import by_hand
from controlnet.studio.examples import Example, available, filled
from controlnet.studio.form import Form
from controlnet.studio.history import pictures_of
from controlnet.studio.parts import alert, for_people, quiet
from controlnet.studio.settings_panel import model_settings, sampling_settings, start_settings, word_settings
from controlnet.studio.unit_panel import EDITORS, PRIVATE, QUICK, UnitPanel, unit_panel
from controlnet.studio.units import SOURCES

UNITS = 4
OF_SIZE = ("has_own_size", "width", "height", "base")


@dataclass(frozen=True, eq=False)
class Asking:
    """The left column."""

    form: Form
    go: gr.Button
    stop: gr.Button


@dataclass(frozen=True, eq=False)
class Results:
    """The right column."""

    status: gr.HTML
    gallery: gr.Gallery
    reuse: gr.Button
    random: gr.Button
    examples: gr.Dataset
    dropped: gr.File
    history: gr.Gallery
    restored: gr.Button


@dataclass(frozen=True, eq=False)
class GenerateTab:
    """What other parts of the page refer to."""

    form: Form
    history: gr.Gallery


def generate_tab(desk: Desk, visitor: gr.BrowserState, load: Any) -> GenerateTab:
    """Lay it out and wire it; `load` is the event of the page's opening."""
    examples = available(desk.models)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=330, elem_classes="tight"):
            asking = _asking(filled(examples[0], desk.models), desk, load)
        with gr.Column(scale=6, min_width=330, elem_classes="tight results"):
            results = _results(examples)
    form = asking.form
    _wire(asking, results, desk, visitor, load)
    _wire_settings(form, results, desk, visitor)
    results.examples.click(
        lambda number: form.updates(filled(examples[number], desk.models)), results.examples, form.inputs, **QUICK
    )
    return GenerateTab(form, results.history)


def _asking(first: Asked, desk: Desk, load: Any) -> Asking:
    main: dict[str, Any] = {}
    with gr.Row(equal_height=True):
        main["prompt"] = gr.Textbox(
            first.prompt,
            label="Prompt",
            show_label=False,  # seen; a screen reader says it
            lines=2,
            max_lines=6,
            placeholder="What to show; (word:1.3) weighs a word more.",
            scale=4,
            min_width=180,
        )
        with gr.Column(scale=1, min_width=110, elem_classes="tight"):
            go = gr.Button("Generate", variant="primary", elem_id="generate")
            stop = gr.Button("Stop", variant="stop", interactive=True, elem_id="stop")
    with gr.Tabs():
        panels = []
        for number in range(UNITS):
            with gr.Tab(f"Unit {number + 1}", elem_classes="unit"):
                unit = first.units[0] if number == 0 and first.units else UnitAsked()
                panels.append(unit_panel(list(desk.offer.controls), unit, load))
    sampling_settings(main, first)
    word_settings(main, first)
    start_settings(main)
    model_settings(main, first, desk)
    return Asking(Form(main, panels), go, stop)


def _results(examples: Sequence[Example]) -> Results:
    status = gr.HTML(quiet("Draw or upload something on the left, say what it is, and generate."))
    gallery = gr.Gallery(
        label="Hint first, then the pictures",
        format="png",
        columns=3,
        height=470,
        object_fit="contain",
        preview=False,
        buttons=["download", "fullscreen"],
        elem_id="pictures",
    )
    with gr.Row():
        reuse = gr.Button("Reuse the last seed", size="sm")
        random = gr.Button("Random seed", size="sm")
    with gr.Accordion("Examples", open=False):
        chosen = gr.Dataset(
            components=[gr.Textbox(visible=False), gr.Textbox(visible=False)],
            headers=["Control", "Prompt"],
            samples=[[each.title, each.prompt] for each in examples],
            label="Examples: a click fills in everything",
            type="index",
        )
    with gr.Accordion("Restore settings from a picture", open=False):
        dropped = gr.File(label="Drop a picture that was made here", file_types=[".png"], type="filepath", height=110)
    with gr.Accordion("History: only you see it", open=False):
        history = gr.Gallery(
            label="Newest first",
            format="png",
            columns=6,
            height=300,
            object_fit="contain",
            buttons=["download", "fullscreen"],
            elem_id="history",
        )
        restored = gr.Button("Restore the chosen picture's settings", size="sm")
    return Results(status, gallery, reuse, random, chosen, dropped, history, restored)


def _wire(asking: Asking, results: Results, desk: Desk, visitor: gr.BrowserState, load: Any) -> None:
    form, outputs = asking.form, [results.status, results.gallery, results.history]

    def generate(request: gr.Request, name: str, *values: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Tells how far it is; at the end the hints and the pictures."""
        try:
            asked = form.asked(values)
            for told in desk.generate(asked, str(request.session_hash), name):
                if isinstance(told, str):
                    yield told, gr.skip(), gr.skip()
                else:
                    yield told.told, told.gallery, gr.skip()
            yield gr.skip(), gr.skip(), pictures_of(desk.folder(name))[: desk.shown]
        except UserError as error:
            yield alert(str(error)), gr.skip(), gr.skip()

    events: Any = {"concurrency_id": "device", "concurrency_limit": 1, "show_progress": "hidden"}
    inputs = [visitor, *form.inputs]
    gr.on([asking.go.click, form.main["prompt"].submit], generate, inputs, outputs, **events, **PRIVATE)

    def end(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    asking.stop.click(end, None, None, **QUICK)
    for number, panel in enumerate(form.units):
        _wire_preview(form, number, desk, load)
        _wire_editing(panel, desk)
        panel.fields["control"].input(
            for_people(desk.suited),
            [panel.fields["control"]],
            [panel.fields[name] for name in ("annotator", "source", "invert", "is_bgr")],
            **QUICK,
        )


def _wire_preview(form: Form, number: int, desk: Desk, load: Any) -> None:
    panel = form.units[number]

    def preview(*values: Any) -> tuple[Any, str]:
        """The very hint that this unit would be given."""
        try:
            return desk.preview(form.asked(values), number)
        except UserError as error:
            return None, alert(str(error))

    arrivals = [load] if number == 0 else []
    gr.on(
        [*arrivals, *panel.looks_at(), *(form.main[name].change for name in OF_SIZE)],
        preview,
        form.inputs,
        [panel.preview, panel.note],
        concurrency_id="hints",
        concurrency_limit=2,
        trigger_mode="always_last",
        show_progress="hidden",
        **PRIVATE,
    )


def _wire_editing(panel: UnitPanel, desk: Desk) -> None:
    fields = panel.fields
    editors = [fields[SOURCES[name]] for name in EDITORS]

    @for_people
    def edit(picture: Pixels | None, annotator: str, options: dict[str, Any], *values: Any) -> list[Any]:
        """What the annotator has found goes on in an editor.

        The others get what they have: gr.skip() would take the settings of an editor that was never shown.
        """
        source, value = by_hand(picture, annotator, options, desk.models)
        return [source, *(value if source == name else old for name, old in zip(EDITORS, values, strict=True))]

    panel.edit.click(
        edit,
        [fields["picture"], fields["annotator"], fields["options"], *editors],
        [fields["source"], *editors],
        concurrency_id="hints",
        show_progress="hidden",
        **PRIVATE,
    )


def _wire_settings(form: Form, results: Results, desk: Desk, visitor: gr.BrowserState) -> None:
    seed = form.main["seed"]
    results.reuse.click(desk.last_seed, visitor, seed, **QUICK)
    results.random.click(lambda: -1, None, seed, **QUICK)
    selected = gr.State(0)

    def select(event: gr.SelectData) -> int:
        return int(event.index)

    results.history.select(select, None, selected, **QUICK)

    @for_people
    def restore(path: str | None) -> Sequence[Any]:
        if path is None:
            return [gr.skip()] * len(form.inputs)
        asked = desk.restored(Path(path))
        if len(asked.units) > UNITS:
            gr.Warning(f"the picture has {len(asked.units)} units; the first {UNITS} are shown")
        return form.updates(asked)

    @for_people
    def restore_old(name: str, number: int) -> Sequence[Any]:
        mine = pictures_of(desk.folder(name))[: desk.shown]
        if number >= len(mine):
            raise UserError("no picture is chosen; click one in the history")
        return form.updates(desk.restored(mine[number]))

    results.dropped.upload(restore, results.dropped, form.inputs, **QUICK)
    results.restored.click(restore_old, [visitor, selected], form.inputs, **QUICK)
