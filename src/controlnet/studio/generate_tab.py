"""The Generate tab: what is asked on the left, what comes of it on the right."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from controlnet.errors import UserError
from controlnet.generation.prompts import PRESETS
from controlnet.generation.recipe import SafetyMode
from controlnet.generation.schedulers import SCHEDULERS
from controlnet.studio.asked import BACKGROUND, Asked, Pixels, UnitAsked
from controlnet.studio.desk import Desk
from controlnet.studio.editors import blank, scribble_editor
from controlnet.studio.examples import available, filled
from controlnet.studio.form import Form
from controlnet.studio.history import pictures_of
from controlnet.studio.limits import LIMITS
from controlnet.studio.making import MEMORIES, SEEDS
from controlnet.studio.parts import alert, for_people, picture_input, quiet
from controlnet.studio.unit_panel import PRIVATE, QUICK, unit_panel

UNITS = 4
MASK = "What to paint anew: paint over it; all of the picture, if nothing is painted."
OF_SIZE = ("has_own_size", "width", "height", "base")


@dataclass(frozen=True, eq=False)
class GenerateTab:
    """What other parts of the page refer to."""

    form: Form
    gallery: gr.Gallery
    history: gr.Gallery
    status: gr.HTML


def generate_tab(desk: Desk, visitor: gr.BrowserState, load: Any) -> GenerateTab:
    """Lay it out and wire it; `load` is the event of the page's opening."""
    examples = available(desk.models)
    first = filled(examples[0], desk.models)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=330, elem_classes="tight"):
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
                    with gr.Tab(f"Unit {number + 1}"):
                        unit = first.units[0] if number == 0 and first.units else UnitAsked()
                        panels.append(unit_panel(list(desk.offer.controls), unit, load))
            _sampling(main, first)
            _words(main, first)
            _start(main)
            _model(main, first, desk)
            form = Form(main, panels)
        with gr.Column(scale=6, min_width=330, elem_classes="tight results"):
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
                dropped = gr.File(
                    label="Drop a picture that was made here", file_types=[".png"], type="filepath", height=110
                )
            with gr.Accordion("History: only you see it", open=False):
                history = gr.Gallery(
                    label="Newest first", format="png", columns=6, height=240, object_fit="cover", elem_id="history"
                )
                restored = gr.Button("Restore the chosen picture's settings", size="sm")
    tab = GenerateTab(form, gallery, history, status)
    _wire(tab, desk, visitor, go, stop, load)
    _wire_settings(tab, desk, visitor, reuse, random, dropped, restored)
    chosen.click(lambda number: form.updates(filled(examples[number], desk.models)), chosen, form.inputs, **QUICK)
    return tab


def _sampling(main: dict[str, Any], first: Asked) -> None:
    with gr.Row():
        main["count"] = gr.Slider(1, LIMITS.pictures, first.count, step=1, label="Images", buttons=[], min_width=120)
        main["steps"] = gr.Slider(1, LIMITS.steps, first.steps, step=1, label="Steps", buttons=[], min_width=120)
        main["guidance_scale"] = gr.Slider(
            0.1, 30, first.guidance_scale, step=0.1, label="Guidance", buttons=[], min_width=120
        )
    with gr.Row():
        main["seed"] = gr.Number(
            first.seed, label="Seed", precision=0, minimum=-1, maximum=SEEDS - 1, info="-1: random"
        )
        main["scheduler"] = gr.Dropdown(list(SCHEDULERS), value=first.scheduler, label="Sampler", info="Way to walk.")
        main["eta"] = gr.Slider(0, 1, first.eta, step=0.01, label="Eta", info="Of ddim.")
    with gr.Accordion("Size", open=False), gr.Row():
        main["has_own_size"] = gr.Checkbox(first.has_own_size, label="Own size", info="Else that of the hint.")
        sides: Any = {"minimum": LIMITS.smallest_side, "maximum": LIMITS.largest_side, "step": 8}
        main["width"] = gr.Slider(value=first.width, label="Width", **sides)
        main["height"] = gr.Slider(value=first.height, label="Height", **sides)


def _words(main: dict[str, Any], first: Asked) -> None:
    with gr.Accordion("Added and negative prompt", open=False):
        preset = gr.Dropdown(["none", *PRESETS], value="none", label="Preset", info="What the original's apps add.")
        main["added_prompt"] = gr.Textbox(first.added_prompt, label="Added prompt", info="Put behind the prompt.")
        main["negative_prompt"] = gr.Textbox(
            first.negative_prompt, label="Negative prompt", info="What to steer away from.", lines=2
        )
        main["clip_skip"] = gr.Slider(
            1, 12, first.clip_skip, step=1, label="Clip skip", info="Layer of the text encoder, counted from the last."
        )
    preset.change(_preset, preset, [main["added_prompt"], main["negative_prompt"]], **QUICK)


def _preset(name: str) -> tuple[str, str]:
    words = PRESETS.get(name)
    return (words["added_prompt"], words["negative_prompt"]) if words else ("", "")


def _start(main: dict[str, Any]) -> None:
    with gr.Accordion("Start from a picture, or paint only a part of it", open=False):
        main["image"] = picture_input("Picture to start from", height=220)
        gr.HTML(quiet(MASK))
        main["mask"] = scribble_editor(MASK, mode="mask")
        main["image_strength"] = gr.Slider(
            0.05, 1, Asked.image_strength, step=0.05, label="Change", info="1 keeps next to nothing of the picture."
        )
    main["image"].input(under_the_brush, main["image"], main["mask"], **QUICK)


def under_the_brush(picture: Pixels | None) -> dict[str, Any]:
    """A blank mask of the picture's size, over it."""
    if picture is None:
        return blank(512, 512)
    return {**blank(picture.shape[1], picture.shape[0]), BACKGROUND: picture[..., :3]}


def _model(main: dict[str, Any], first: Asked, desk: Desk) -> None:
    with gr.Accordion("Base, LoRAs, memory, safety", open=False):
        main["base"] = gr.Dropdown(list(desk.offer.bases), value=first.base, label="Base", info="What paints.")
        with gr.Row():
            loras = list(desk.offer.loras)
            main["loras"] = gr.Dropdown(
                loras, value=[], multiselect=True, label="LoRAs", info="Styles from the folder given at start."
            )
            main["lora_weight"] = gr.Slider(-2, 2, 1, step=0.05, label="Their weight", info="1 as trained.")
        with gr.Row():
            main["memory"] = gr.Dropdown(list(MEMORIES), value=first.memory, label="Memory", info="Less is slower.")
            main["safety"] = gr.Dropdown(
                list(get_args(SafetyMode)),
                value=first.safety,
                label="Safety",
                info="Of what is unsafe; off: not asked.",
            )


def _wire(tab: GenerateTab, desk: Desk, visitor: gr.BrowserState, go: gr.Button, stop: gr.Button, load: Any) -> None:
    form, outputs = tab.form, [tab.status, tab.gallery, tab.history]

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
    gr.on([go.click, form.main["prompt"].submit], generate, inputs, outputs, **events, **PRIVATE)

    def end(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    stop.click(end, None, None, **QUICK)
    for number, panel in enumerate(form.units):
        _wire_preview(form, number, desk, load)
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


def _wire_settings(
    tab: GenerateTab,
    desk: Desk,
    visitor: gr.BrowserState,
    reuse: gr.Button,
    random: gr.Button,
    dropped: gr.File,
    restored: gr.Button,
) -> None:
    form = tab.form
    seed = form.main["seed"]
    reuse.click(desk.last_seed, visitor, seed, **QUICK)
    random.click(lambda: -1, None, seed, **QUICK)
    selected = gr.State(0)

    def select(event: gr.SelectData) -> int:
        return int(event.index)

    tab.history.select(select, None, selected, **QUICK)

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

    dropped.upload(restore, dropped, form.inputs, **QUICK)
    restored.click(restore_old, [visitor, selected], form.inputs, **QUICK)
