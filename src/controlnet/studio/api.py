"""What programs may call: typed endpoints, told on the page's API view, and tools of `--mcp`.

Pictures are files there, as `gradio_client.handle_file` sends them; units beyond the first are given as JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from typing import Any, get_args

import gradio as gr
from gradio.events import api

from controlnet.annotators import annotator as annotators
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.errors import UserError
from controlnet.generation.recipe import SafetyMode
from controlnet.generation.schedulers import SCHEDULERS
from controlnet.generation.unit import MODES
from controlnet.images import decode_with_alpha
from controlnet.studio.annotating import annotate
from controlnet.studio.asked import Asked, Pixels, UnitAsked, from_data_url, with_alpha_if_any
from controlnet.studio.comparing import Comparison, comparison_job
from controlnet.studio.desk import Desk, Finished
from controlnet.studio.history import new_visitor
from controlnet.studio.parts import for_people, picture_input
from controlnet.studio.runs import Run, RunAsked, Trainings
from controlnet.studio.train_views import data_report

MOST_UNITS = 8
OF_A_UNIT = (
    "control",
    "annotator",
    "options",
    "strength",
    "start",
    "end",
    "schedule",
    "layer_weights",
    "mode",
    "resize",
)


def add_endpoints(desk: Desk, trainings: Trainings) -> None:
    """Inside the page's Blocks: components that nobody sees, and functions of JSON."""
    with gr.Column(visible=False):
        _picture_endpoints(desk)
        _annotate_endpoint(desk)
    _json_endpoints(desk, trainings)


def _picture_endpoints(desk: Desk) -> None:
    form = _generate_form(desk)
    inputs = list(form.values())
    gallery = gr.Gallery(label="Hints, then pictures", format="png")

    @for_people
    def generate(request: gr.Request, *values: Any) -> list[Any]:
        """Make pictures from a prompt, under as many controls as are given; the hints come first.

        Units beyond the first are a list of objects with hint (a PNG as data URL) and any of control, annotator,
        options, strength, start, end, schedule, layer_weights, mode, resize.
        """
        asked = _asked(dict(zip(form, values, strict=True)))
        last = list(desk.generate(asked, f"api {request.session_hash}", new_visitor()))[-1]
        if not isinstance(last, Finished):
            raise UserError("the job was stopped")
        return last.gallery

    @for_people
    def preview(*values: Any) -> Any:
        """The hint that the first unit's network would be given, byte for byte."""
        hint, words = desk.preview(_asked(dict(zip(form, values, strict=True))), 0)
        if hint is None:
            raise UserError(words)
        return hint

    @for_people
    def compare(request: gr.Request, *values: Any) -> Any:
        """A sheet of pictures over two lists of values, everything else being the same."""
        *shared, x, xs, y, ys = values
        comparison = Comparison.of(x, xs, y, ys, desk.limits.cells)
        folder = desk.folder(new_visitor())
        asked = _asked(dict(zip(form, shared, strict=True)))
        job = comparison_job(asked, comparison, desk, folder)
        for _ in desk.run(f"api {request.session_hash}", job):
            pass
        return job.result().pixels

    sheet = gr.Image(label="Hint or sheet", format="png")
    axes = [gr.Textbox(value, label=label) for label, value in AXES_ASKED.items()]
    button = gr.Button()
    device: Any = {"concurrency_id": "device"}
    button.click(_named(generate, list(form)), inputs, gallery, api_name="generate", **device)
    button.click(_named(preview, list(form)), inputs, sheet, api_name="preview", concurrency_id="hints")
    every = [*form, "x_axis", "x_values", "y_axis", "y_values"]
    button.click(_named(compare, every), [*inputs, *axes], sheet, api_name="compare", **device)


def _annotate_endpoint(desk: Desk) -> None:
    @for_people
    def annotated(picture: Pixels | None, name: str, options: Mapping[str, Any] | None) -> Any:
        """A picture's hint of one condition, as large as the picture. `offered` tells each annotator's options."""
        if picture is None:
            raise UserError("no picture; expected one")
        return annotate(picture, name, options or {}, desk.models).pixels

    annotated.__name__ = "annotate"  # what the tool is called
    picture = picture_input("Picture")
    name = gr.Dropdown(list(ANNOTATORS), value="canny", label="Annotator")
    options = _json({}, "Options of the annotator")
    hint = gr.Image(label="Hint", format="png")
    gr.Button().click(annotated, [picture, name, options], hint, api_name="annotate", concurrency_id="hints")


def _json(value: dict[str, Any] | list[Any], label: str) -> gr.JSON:
    """With a type of its own: Gradio's is no valid schema, and clients of MCP refuse the tool for it."""
    made = gr.JSON(value, label=label)
    kind: dict[str, Any] = (
        {"type": "object"} if isinstance(value, dict) else {"type": "array", "items": {"type": "object"}}
    )
    made.api_info = lambda: {**kind, "description": label}  # type: ignore[method-assign]
    return made


def _named(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """With names for its values: Gradio tells them as the endpoint's parameters."""
    request = [it for it in signature(function).parameters.values() if it.name == "request"]
    named = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in names]
    function.__signature__ = Signature([*request, *named])  # type: ignore[attr-defined]
    return function


AXES_ASKED = {"X axis": "strength", "X values": "0 1", "Y axis": "nothing", "Y values": ""}


def _generate_form(desk: Desk) -> dict[str, Any]:
    """Components by the field of `Asked`, or of the first unit."""
    limits, unit, asked = desk.limits, UnitAsked(), Asked()
    sides: Any = {"minimum": 0, "maximum": limits.largest_side, "step": 8, "value": 0}
    return {
        "prompt": gr.Textbox("", label="Prompt"),
        "hint": picture_input("Picture of the first unit: a hint, or what the annotator looks at"),
        "control": gr.Dropdown(list(desk.offer.controls), value=next(iter(desk.offer.controls)), label="Control"),
        "annotator": gr.Dropdown(list(ANNOTATORS), value=unit.annotator, label="Annotator"),
        "options": _json({}, "Options of the annotator"),
        "strength": gr.Slider(0, 2, unit.strength, label="Strength"),
        "start": gr.Slider(0, 1, unit.start, label="Start"),
        "end": gr.Slider(0, 1, unit.end, label="End"),
        "mode": gr.Dropdown(list(MODES), value=unit.mode, label="Who leads"),
        "more_units": _json([], "More units"),
        "base": gr.Dropdown(list(desk.offer.bases), value=next(iter(desk.offer.bases)), label="Base"),
        "count": gr.Slider(1, limits.pictures, asked.count, step=1, label="Images"),
        "steps": gr.Slider(1, limits.steps, asked.steps, step=1, label="Steps"),
        "guidance_scale": gr.Slider(0.1, 30, asked.guidance_scale, label="Guidance"),
        "seed": gr.Number(asked.seed, label="Seed; -1 is a random one", precision=0),
        "scheduler": gr.Dropdown(list(SCHEDULERS), value=asked.scheduler, label="Sampler"),
        "eta": gr.Slider(0, 1, asked.eta, label="Eta"),
        "added_prompt": gr.Textbox("", label="Added prompt"),
        "negative_prompt": gr.Textbox("", label="Negative prompt"),
        "width": gr.Slider(label="Width; 0 is the hint's", **sides),
        "height": gr.Slider(label="Height; 0 is the hint's", **sides),
        "image": picture_input("Picture to start from"),
        "image_strength": gr.Slider(0.05, 1, asked.image_strength, label="Change of the picture to start from"),
        "safety": gr.Dropdown(list(get_args(SafetyMode)), value=asked.safety, label="Safety"),
    }


OF_FIRST = ("control", "annotator", "options", "strength", "start", "end", "mode")


def _asked(values: dict[str, Any]) -> Asked:
    """UserError for units that are none."""
    first = {name: values.pop(name) for name in OF_FIRST}
    hint, more = values.pop("hint"), values.pop("more_units") or []
    if not isinstance(more, list) or len(more) >= MOST_UNITS:
        raise UserError(f"more_units: expected a list of less than {MOST_UNITS} objects")
    units = [UnitAsked(**{**first, "options": first["options"] or {}}, picture=hint), *map(_unit, more)]
    return Asked(**values, has_own_size=bool(values["width"] and values["height"]), units=tuple(units))


def _unit(said: object) -> UnitAsked:
    """One of `more_units`."""
    if not isinstance(said, dict) or not isinstance(said.get("hint"), str):
        raise UserError("more_units: expected objects with hint, a PNG as data URL (data:image/png;base64,...)")
    plain = {name: value for name, value in said.items() if name != "hint"}
    if unknown := plain.keys() - set(OF_A_UNIT):
        raise UserError(f"more_units: there is no {', '.join(sorted(unknown))}; expected {', '.join(OF_A_UNIT)}")
    unit = Asked.from_json({"units": [plain]}, {}).units[0]
    return UnitAsked(**{**vars(unit), "picture": with_alpha_if_any(decode_with_alpha(from_data_url(said["hint"])))})


def _json_endpoints(desk: Desk, trainings: Trainings) -> None:
    offer = desk.offer

    def offered() -> dict[str, Any]:
        """What there is to choose from: bases, controls, annotators with their options, samplers, data sets, runs."""
        return {
            "bases": list(offer.bases),
            "controls": list(offer.controls),
            "loras": list(offer.loras),
            "annotators": {name: _options(name) for name in ANNOTATORS},
            "samplers": list(SCHEDULERS),
            "data_sets": list(offer.data_sets),
            "runs": list(trainings.runs),
            "limits": vars(desk.limits),
        }

    @for_people
    def check_data(data_set: str) -> dict[str, Any]:
        """Every defect of a data set, with where it is."""
        return data_report(data_set, offer)

    @for_people
    def stop_training(name: str) -> dict[str, Any]:
        """Let a training finish its step, save, and end."""
        return _told(trainings.stop(name))

    @for_people
    def resume_training(name: str, steps: int) -> dict[str, Any]:
        """Go on with a training, to so many steps in all."""
        return _told(trainings.resume(name, steps))

    @for_people
    def training(name: str) -> dict[str, Any]:
        """How a training stands: its state, step, and all that was measured."""
        return _told(trainings.run(name))

    for endpoint in (offered, training, _start_training(trainings), stop_training, resume_training):
        api(endpoint, api_name=endpoint.__name__, queue=False)
    api(check_data, api_name="check_data", concurrency_id="data")


def _start_training(trainings: Trainings) -> Callable[..., Any]:
    @for_people
    def start_training(
        name: str,
        data_set: str,
        base: str = "embedded",
        steps: int = 500,
        batch_size: int = 16,
        accumulation: int = 1,
        learning_rate: float = 0.0,
        condition: str = "auto",
        validation_steps: int = 50,
        validation_images: int = 8,
        checkpointing_steps: int = 100,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Start a training in a process of its own; learning rate 0 takes what suits the base."""
        asked = RunAsked(
            name=name,
            data=data_set,
            base=base,
            steps=steps,
            batch_size=batch_size,
            accumulation=accumulation,
            learning_rate=learning_rate,
            condition=condition,
            validation_steps=validation_steps,
            validation_images=validation_images,
            checkpointing_steps=checkpointing_steps,
            seed=seed,
        )
        return _told(trainings.start(asked))

    return start_training


def _options(annotator: str) -> dict[str, Any]:
    return {
        option.name: {
            "default": option.default,
            "range": option.range and [option.range.low, option.range.high],
            "choices": list(option.choices),
            "help": option.help,
        }
        for option in annotators.options(load(annotator))
    }


def _told(run: Run) -> dict[str, Any]:
    history: Sequence[Any] = run.history
    return {
        "name": run.name,
        "state": run.state,
        "step": run.step,
        "steps": run.asked_steps,
        "convergence": run.convergence and run.convergence.step,
        "validations": [vars(it) for it in history],
        "losses": run.losses,
        "log": run.log,
    }
