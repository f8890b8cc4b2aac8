"""The panel of one unit: what controls, by what hint, how strongly, when and where."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from controlnet.annotators import annotator as annotators
from controlnet.annotators.annotator import Option
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.studio.asked import NO_ANNOTATOR, UnitAsked
from controlnet.studio.editors import pose_editor, scribble_editor, segment_editor
from controlnet.studio.parts import picture_input, quiet
from controlnet.studio.units import SOURCES, known_options

MODES = [
    ("Balanced", "balanced"),
    ("The prompt is more important", "prompt"),
    ("The control is more important (guess mode)", "control"),
]
RESIZES = [
    ("Crop to the picture's shape", "crop"),
    ("Fit inside, fill the rest", "fill"),
    ("Stretch", "stretch"),
    ("As the original: to multiples of 64", "original"),
]
EDITORS: dict[str, Callable[..., Any]] = {"Draw": scribble_editor, "Pose": pose_editor, "Segments": segment_editor}
PRIVATE: Any = {"api_visibility": "private", "api_name": "page"}  # the endpoints for programs are in api.py
MASK = "Where it acts: paint it; everywhere, if nothing is painted."
OF_PICTURE = "of-picture"  # what is of no use where the hint is drawn
QUICK: Any = {**PRIVATE, "queue": False, "show_progress": "hidden"}


@dataclass(frozen=True, eq=False)
class UnitPanel:
    """Its components by the name of their field in `UnitAsked`, in the order in which events get them."""

    fields: Mapping[str, Any]
    preview: gr.Image
    note: gr.HTML
    edit: gr.Button

    def looks_at(self) -> list[Callable[..., Any]]:
        """The events after which its hint is another."""
        names = ("picture", "drawing", "pose", "segments", "annotator", "options", "pixel_perfect", "invert", "is_bgr")
        return [self.fields[name].change for name in (*names, "resize", "source", "control")]


def unit_panel(controls: list[str], first: UnitAsked, load_event: Any) -> UnitPanel:
    """Lay it out."""
    made: dict[str, Any] = {}
    with gr.Row(equal_height=True):
        made["control"] = gr.Dropdown(controls, value=first.control, label="Control", info="Which network steers.")
        made["annotator"] = gr.Dropdown(
            [("none: it is a hint", NO_ANNOTATOR), *(it for it in ANNOTATORS if it != NO_ANNOTATOR)],
            value=first.annotator,
            label="Annotator",
            info="What makes it a hint.",
            elem_classes=OF_PICTURE,
        )
    made["source"] = gr.Radio(list(SOURCES), value=first.source, show_label=False, container=False, label="Hint from")
    drawn = [_editor(made, name, first) for name in EDITORS]
    with gr.Row(elem_classes="hint"):
        with gr.Column(min_width=150, visible=first.source == "Picture", elem_classes=OF_PICTURE) as of_picture:
            made["picture"] = picture_input("Picture", value=first.picture, height=210)
        preview = gr.Image(
            label="What the network sees",
            interactive=False,
            format="png",
            height=210,
            min_width=110,
            buttons=["fullscreen", "download"],
            elem_classes=["pixels", "shows"],
        )
        with gr.Column(min_width=150, elem_classes="tight slim beside"):
            made["strength"] = gr.Slider(
                0, 2, first.strength, step=0.01, label="Strength", info="1 as trained, 0 not at all.", buttons=[]
            )
            with gr.Row(elem_classes="noted"):
                note = gr.HTML(elem_classes="quiet")
                edit = gr.Button("Edit it by hand", size="sm", scale=0, min_width=120, elem_classes=OF_PICTURE)
    made["options"] = gr.State(dict(first.options))
    with gr.Accordion("Annotator's options", open=False, elem_classes=OF_PICTURE):
        made["pixel_perfect"] = gr.Checkbox(
            first.pixel_perfect, label="Pixel perfect", info="Look at the very scale at which the hint is used."
        )
        options_of(made["annotator"], made["options"], load_event)
    with gr.Accordion("When, where and how it acts", open=False):
        _acting(made, first)
    columns = [of_picture, *drawn]
    made["source"].change(
        lambda name: [gr.update(visible=name == each) for each in SOURCES],
        made["source"],
        columns,
        **QUICK,
    )
    return UnitPanel(made, preview, note, edit)


def _editor(made: dict[str, Any], name: str, first: UnitAsked) -> gr.Column:
    with gr.Column(visible=first.source == name) as column:
        made[SOURCES[name]] = EDITORS[name](name)
    return column


def _acting(made: dict[str, Any], first: UnitAsked) -> None:
    with gr.Row():
        made["start"] = gr.Slider(0, 1, first.start, step=0.01, label="Start", info="Fraction of the steps before it.")
        made["end"] = gr.Slider(0, 1, first.end, step=0.01, label="End", info="Fraction after which it is silent.")
    with gr.Row():
        made["mode"] = gr.Dropdown(MODES, value=first.mode, label="Who leads", info="Prompt or control.")
        made["resize"] = gr.Dropdown(RESIZES, value=first.resize, label="Resize", info="Of hints of another size.")
    with gr.Row():
        made["schedule"] = gr.Textbox(
            first.schedule, label="Schedule", info="Times the strength, a number for each step.", placeholder="1 1 0.5"
        )
        made["layer_weights"] = gr.Textbox(
            first.layer_weights,
            label="Layer weights",
            info="13 numbers (SDXL 10): shallow to deep, then the middle.",
            placeholder="1 1 1 ... 1",
        )
    with gr.Row():
        made["invert"] = gr.Checkbox(first.invert, label="Invert", info="The hint's negative; set by the control.")
        made["is_bgr"] = gr.Checkbox(
            first.is_bgr, label="Channels reversed", info="It learned from BGR; set by the control."
        )
    gr.HTML(quiet(MASK))
    made["mask"] = scribble_editor(MASK, mode="mask")


def options_of(annotator: gr.Dropdown, values: gr.State, load_event: Any) -> None:
    """Sliders and choices as the annotator's table of options says; each writes into `values`."""

    @gr.render(inputs=[annotator, values], triggers=[load_event, annotator.change], queue=False, show_progress="hidden")
    def show(name: str, current: dict[str, Any]) -> None:
        if name == NO_ANNOTATOR:
            gr.HTML('<div class="quiet">The picture is taken as it is.</div>')
            return
        known = known_options(name, current)
        for option in annotators.options(load(name)):
            component = option_input(option, known.get(option.name, option.default))
            component.input(
                lambda value, every, key=option.name: {**every, key: value},
                [component, values],
                values,
                **QUICK,
            )


def option_input(option: Option, value: Any) -> Any:
    """The component for one option of an annotator."""
    label = option.name.replace("_", " ").capitalize()
    told: Any = {"label": label, "info": option.help.splitlines()[0] if option.help else "", "interactive": True}
    if option.choices:
        return gr.Dropdown(list(option.choices), value=value, **told)
    if option.type is bool:
        return gr.Checkbox(bool(value), **told)
    if option.range is not None:
        return gr.Slider(option.range.low, option.range.high, value, step=option.range.step, **told)
    return gr.Number(value, **told)
