"""The Compare tab: what the Generate tab asks for, over two lists of values."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from controlnet.errors import UserError
from controlnet.studio.comparing import AXES, NO_AXIS, Comparison, comparison_job
from controlnet.studio.desk import Desk
from controlnet.studio.form import Form
from controlnet.studio.jobs import Stopped
from controlnet.studio.parts import alert, quiet
from controlnet.studio.progress import counted
from controlnet.studio.unit_panel import PRIVATE, QUICK


def compare_tab(desk: Desk, visitor: gr.BrowserState, form: Form) -> None:
    """Lay it out and wire it."""
    with gr.Row():
        with gr.Column(scale=3, min_width=320, elem_classes="tight"):
            gr.HTML(quiet("Everything else is as on the Generate tab: the same prompt, hint and seed in every cell."))
            x = gr.Dropdown(list(AXES), value="strength", label="To the right", info="What differs between columns.")
            xs = gr.Textbox("0 0.5 1 1.5", label="Its values", info=AXES["strength"].help, elem_id="xs")
            y = gr.Dropdown(list(AXES), value="end", label="Down", info="What differs between rows.")
            ys = gr.Textbox("0.25 1", label="Its values", info=AXES["end"].help, elem_id="ys")
            with gr.Row():
                go = gr.Button("Compare", variant="primary", min_width=120)
                stop = gr.Button("Stop", variant="stop", min_width=90)
            status = gr.HTML()
            whole = gr.File(label="The whole sheet", interactive=False, visible=False)
        with gr.Column(scale=8, min_width=420):
            sheet = gr.Image(
                label="Sheet",
                interactive=False,
                format="png",
                height=640,
                buttons=["fullscreen"],
                elem_id="sheet",
                elem_classes="shows",
            )

    def run(
        request: gr.Request, name: str, x: str, xs: str, y: str, ys: str, *values: Any
    ) -> Iterator[tuple[Any, Any, Any]]:
        try:
            comparison = Comparison.of(x, xs, y, ys, desk.limits.cells)
            folder, asked = desk.folder(name), form.asked(values)
            job = comparison_job(asked, comparison, desk, folder)
            for made in desk.run(str(request.session_hash), job):
                yield counted(made.done, made.total, "pictures"), made.pixels, gr.skip()
            words = quiet("Done; each picture is in the history, too.")
            yield words, gr.skip(), gr.update(value=str(job.result().path), visible=True)
        except Stopped:
            yield quiet("Stopped."), gr.skip(), gr.skip()
        except UserError as error:
            yield alert(str(error)), gr.skip(), gr.skip()

    for axis, text in ((x, xs), (y, ys)):
        axis.input(lambda name: gr.update(info=AXES[name].help, visible=name != NO_AXIS), axis, text, **QUICK)
    events: Any = {"concurrency_id": "device", "show_progress": "hidden", **PRIVATE}
    go.click(run, [visitor, x, xs, y, ys, *form.inputs], [status, sheet, whole], **events)

    def end(request: gr.Request) -> None:
        desk.stop(str(request.session_hash))

    stop.click(end, None, None, **QUICK)
