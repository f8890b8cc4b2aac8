"""The Generate tab's settings beside the units: sampling, words, what to start from, what paints.

Each function lays out its part and adds its components to `main`, by their field in `Asked`.
"""

from typing import Any, get_args

import gradio as gr

from controlnet.generation.prompts import PRESETS
from controlnet.generation.recipe import SafetyMode
from controlnet.generation.schedulers import SCHEDULERS
from controlnet.images import three_channels
from controlnet.studio.asked import Asked, Pixels
from controlnet.studio.desk import Desk
from controlnet.studio.editors import blank, scribble_editor
from controlnet.studio.editors.component import with_background
from controlnet.studio.limits import LIMITS
from controlnet.studio.making import MEMORIES, SEEDS
from controlnet.studio.parts import picture_input, quiet
from controlnet.studio.unit_panel import QUICK

MASK = "What to paint anew: paint over it; all of the picture, if nothing is painted."


def sampling_settings(main: dict[str, Any], first: Asked) -> None:
    slim: Any = {"buttons": [], "min_width": 110}
    with gr.Row(elem_classes="narrow"):
        main["count"] = gr.Slider(1, LIMITS.pictures, first.count, step=1, label="Images", **slim)
        main["steps"] = gr.Slider(1, LIMITS.steps, first.steps, step=1, label="Steps", **slim)
        main["guidance_scale"] = gr.Slider(0.1, 30, first.guidance_scale, step=0.1, label="Guidance", **slim)
        main["seed"] = gr.Number(
            first.seed, label="Seed (-1: any)", precision=0, minimum=-1, maximum=SEEDS - 1, min_width=110
        )
    with gr.Row(elem_classes="slim"):
        main["scheduler"] = gr.Dropdown(
            list(SCHEDULERS), value=first.scheduler, label="Sampler", info="Noise to picture."
        )
        main["eta"] = gr.Slider(0, 1, first.eta, step=0.01, label="Eta", info="Fresh noise; of ddim.", buttons=[])
    with gr.Accordion("Size", open=False), gr.Row():
        main["has_own_size"] = gr.Checkbox(first.has_own_size, label="Own size", info="Else that of the hint.")
        sides: Any = {"minimum": LIMITS.smallest_side, "maximum": LIMITS.largest_side, "step": 8}
        main["width"] = gr.Slider(value=first.width, label="Width", **sides)
        main["height"] = gr.Slider(value=first.height, label="Height", **sides)


def word_settings(main: dict[str, Any], first: Asked) -> None:
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


def start_settings(main: dict[str, Any]) -> None:
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
    return with_background(blank(picture.shape[1], picture.shape[0]), three_channels(picture))


def model_settings(main: dict[str, Any], first: Asked, desk: Desk) -> None:
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
