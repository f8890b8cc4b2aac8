"""The Train tab: data, their check, a training in a process of its own, and how it goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from controlnet.data.circles import write_circles
from controlnet.errors import UserError
from controlnet.studio.desk import Desk
from controlnet.studio.limits import LIMITS
from controlnet.studio.parts import alert, for_people, quiet
from controlnet.studio.runs import RunAsked, Trainings
from controlnet.studio.train_views import checked, curves, figures, planned, reported
from controlnet.studio.unit_panel import PRIVATE, QUICK

EVERY = 2.0  # seconds between two looks at a run
CIRCLES, CIRCLES_COUNT, CIRCLES_SIZE = "circles", 1000, 128  # drawn on demand, in seconds
GRIDS_SHOWN = 6
CONDITIONS = ("auto", "circle", "canny", "mlsd", "hed", "scribble", "pose", "seg", "depth", "normal", "lineart")


@dataclass(frozen=True, eq=False)
class Left:
    """What is asked for: data, the training's numbers, a plan."""

    data: gr.Dropdown
    check: gr.Button
    draw: gr.Button
    asked: Mapping[str, Any]
    """By the field of `RunAsked`, but for the data."""
    start: gr.Button
    stop: gr.Button
    resume: gr.Button
    told: gr.HTML
    budget: gr.Number
    plan: gr.Button
    proposal: gr.HTML


@dataclass(frozen=True, eq=False)
class Right:
    """The run that is looked at."""

    run: gr.Dropdown
    stands: gr.HTML
    curve: gr.HTML
    grids: gr.Gallery
    open_report: gr.Button
    report: gr.HTML


def train_tab(desk: Desk, trainings: Trainings, load_event: Any) -> tuple[gr.Timer, Callable[[], Any], list[Any]]:
    """Lay it out and wire it; gives the clock that looks at the run, and what renews the choices, with its outputs."""
    with gr.Row():
        with gr.Column(scale=4, min_width=360, elem_classes="tight"):
            left = _left(desk)
        with gr.Column(scale=7, min_width=420, elem_classes="tight"):
            right = _right(trainings)
    findings = gr.HTML(elem_id="findings")
    clock = _wire_looking(trainings, right, load_event)
    _wire_run(trainings, left, right)
    _wire_data(desk, left, findings)

    def choices() -> tuple[Any, Any]:
        return gr.update(choices=list(desk.offer.data_sets)), gr.update(choices=list(trainings.runs))

    return clock, choices, [left.data, right.run]


def _left(desk: Desk) -> Left:
    data = gr.Dropdown(list(desk.offer.data_sets), label="Data set", info=f"The folders of {desk.offer.data.name}/.")
    with gr.Row():
        check = gr.Button("Check it", size="sm", min_width=90)
        draw = gr.Button(f"Draw {CIRCLES_COUNT:,} circles", size="sm", min_width=120)
    asked = _asked(desk)
    with gr.Row():
        start = gr.Button("Start", variant="primary", min_width=90)
        stop = gr.Button("Stop", variant="stop", min_width=90)
        resume = gr.Button("Continue", min_width=90)
    told = gr.HTML(quiet("A training goes on when this page is closed."), elem_id="told")
    with gr.Accordion("Plan: how many pairs a step", open=False):
        budget = gr.Number(10_000, label="Budget", precision=0, info="Batches that may be computed in all.")
        plan = gr.Button("Propose, from the chosen run", size="sm")
        proposal = gr.HTML()
    return Left(data, check, draw, asked, start, stop, resume, told, budget, plan, proposal)


def _right(trainings: Trainings) -> Right:
    first = _first(trainings)
    run = gr.Dropdown(list(trainings.runs), value=first, label="Run", info="Running, finished, or given at start.")
    stands = gr.HTML(_or_nothing(trainings, first, figures), elem_id="stands")
    curve = gr.HTML(_or_nothing(trainings, first, curves), elem_id="curve")
    grids = gr.Gallery(
        label="Validations, newest first",
        format="png",
        columns=3,
        height=300,
        object_fit="contain",
        buttons=["download", "fullscreen"],
    )
    with gr.Accordion("Report", open=False):
        open_report = gr.Button("Open the chosen run's report", size="sm")
        report = gr.HTML()
    return Right(run, stands, curve, grids, open_report, report)


def _wire_looking(trainings: Trainings, right: Right, load_event: Any) -> gr.Timer:
    """The run as it stands, every two seconds while the tab is open."""
    seen = gr.State([])
    clock = gr.Timer(EVERY, active=False)

    def look(name: str | None, shown: list[str]) -> tuple[Any, Any, Any, list[str]]:
        """Its grids only when there are new ones."""
        if name not in trainings.runs:
            return "", "", None, []
        it = trainings.run(name)
        newest = [str(path) for path in it.grids[:GRIDS_SHOWN]]
        pictures = gr.skip() if newest == shown else [(path, path.split("step-")[-1][:-4]) for path in newest]
        return figures(it), curves(it), pictures, newest

    def arrive() -> Any:
        """What runs, or is the newest, is there to be seen."""
        return gr.update(choices=list(trainings.runs), value=_first(trainings))

    looked = [right.stands, right.curve, right.grids, seen]
    clock.tick(look, [right.run, seen], looked, **QUICK)
    right.run.change(lambda name: look(name, []), right.run, looked, **QUICK)
    load_event(arrive, None, right.run, **QUICK)
    right.open_report.click(_shown(lambda name: reported(trainings.run(name))), right.run, right.report, **QUICK)
    return clock


def _wire_run(trainings: Trainings, left: Left, right: Right) -> None:
    """Start, stop, continue, plan."""

    def begin(data_set: str | None, *values: Any) -> tuple[str, Any]:
        try:
            begun = trainings.start(RunAsked(data=data_set or "", **dict(zip(left.asked, values, strict=True))))
        except UserError as error:
            return alert(str(error)), gr.skip()
        words = quiet(f"{begun.name} has started; its first figures come when its data are encoded.")
        return words, gr.update(choices=list(trainings.runs), value=begun.name)

    def end(name: str | None) -> str:
        return _told(lambda: f"{trainings.stop(name or '').name} finishes its step, saves, and ends.")

    def go_on(name: str | None, steps: int) -> str:
        return _told(lambda: f"{trainings.resume(name or '', steps).name} goes on.")

    left.start.click(begin, [left.data, *left.asked.values()], [left.told, right.run], **QUICK)
    left.stop.click(end, right.run, left.told, **QUICK)
    left.resume.click(go_on, [right.run, left.asked["steps"]], left.told, **QUICK)
    left.plan.click(
        _shown(lambda name, budget, batch: planned(trainings.run(name), budget, batch)),
        [right.run, left.budget, left.asked["batch_size"]],
        left.proposal,
        **QUICK,
    )


def _wire_data(desk: Desk, left: Left, findings: gr.HTML) -> None:
    @for_people
    def draw_circles() -> tuple[str, Any]:
        folder = desk.offer.data / CIRCLES
        write_circles(folder, CIRCLES_COUNT, CIRCLES_SIZE, processes=1)
        told = quiet(f"{CIRCLES_COUNT:,} pairs in {CIRCLES}.")
        return told, gr.update(choices=list(desk.offer.data_sets), value=CIRCLES)

    slow: Any = {"concurrency_id": "data", "concurrency_limit": 1, **PRIVATE}
    left.draw.click(draw_circles, None, [left.told, left.data], **slow)
    left.check.click(_shown(lambda name: checked(name, desk.offer)), left.data, findings, **slow)


def _asked(desk: Desk) -> dict[str, Any]:
    """Components by the field of `RunAsked`, but for the data."""
    made: dict[str, Any] = {}
    with gr.Row():
        made["name"] = gr.Textbox("first", label="Name", info="Of the new run.", min_width=100)
        made["base"] = gr.Dropdown(
            list(desk.offer.bases), value=next(iter(desk.offer.bases)), label="Base", info="Locked."
        )
        made["condition"] = gr.Dropdown(
            list(CONDITIONS),
            value="auto",
            label="Condition",
            info="Kind of hint.",
            allow_custom_value=True,
            min_width=100,
        )
    with gr.Row():
        made["steps"] = gr.Number(
            500, label="Steps", precision=0, minimum=1, maximum=LIMITS.training_steps, info="In all.", min_width=90
        )
        made["batch_size"] = gr.Number(
            16, label="Batch size", precision=0, minimum=1, info="Pairs at once.", min_width=90
        )
        made["accumulation"] = gr.Number(
            1, label="Accumulation", precision=0, minimum=1, info="Batches a step.", min_width=90
        )
    with gr.Accordion("More", open=False), gr.Row():
        made["learning_rate"] = gr.Number(0, label="Learning rate", info="0: what suits the base.", minimum=0)
        made["validation_steps"] = gr.Number(50, label="Validate every", precision=0, minimum=1, info="Steps.")
        made["validation_images"] = gr.Number(8, label="Pictures", precision=0, minimum=1, info="At each.")
        made["checkpointing_steps"] = gr.Number(100, label="Save every", precision=0, minimum=1, info="Steps.")
        made["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, info="Of order and noise.")
    return made


def _first(trainings: Trainings) -> str | None:
    """The run to be seen first: the one that runs, or the newest."""
    runs = trainings.runs
    running = [name for name, run in runs.items() if run.process is not None]
    return next(iter([*running, *runs]), None)


def _or_nothing(trainings: Trainings, name: str | None, view: Callable[[Any], str]) -> str:
    return "" if name is None else view(trainings.run(name))


def _told(action: Callable[[], str]) -> str:
    try:
        return quiet(action())
    except UserError as error:
        return alert(str(error))


def _shown(view: Callable[..., str]) -> Callable[..., str]:
    """A view whose UserError is shown in its place."""

    def shown(*values: Any) -> str:
        try:
            return view(*values)
        except UserError as error:
            return alert(str(error))

    return shown
