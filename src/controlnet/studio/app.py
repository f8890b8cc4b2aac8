"""The page: its tabs, and what happens when it is opened and left."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.exceptions import InvalidPathError

from controlnet.atomic import write_atomically
from controlnet.studio.annotate_tab import annotate_tab
from controlnet.studio.api import add_endpoints
from controlnet.studio.compare_tab import compare_tab
from controlnet.studio.desk import Desk
from controlnet.studio.generate_tab import UNITS, generate_tab
from controlnet.studio.history import is_visitor, new_visitor, pictures_of
from controlnet.studio.offer import Offer
from controlnet.studio.runs import Trainings
from controlnet.studio.train_tab import train_tab
from controlnet.studio.unit_panel import QUICK

MASTHEAD = """
<div id="masthead"><h1>ControlNet studio</h1>
<button type="button" aria-label="switch between dark and light" onclick="
  document.body.classList.toggle('dark')">Dark / light</button></div>
"""
STORAGE = "controlnet-studio"
TRAIN = "Train"
ONE_DAY = 24 * 3600  # seconds after which what was uploaded is forgotten


def make_app(desk: Desk) -> gr.Blocks:
    """Everything, not yet served."""
    offer, trainings = desk.offer, Trainings(desk.offer)
    with gr.Blocks(
        title="ControlNet studio", analytics_enabled=False, fill_width=True, delete_cache=(3600, ONE_DAY)
    ) as app:
        gr.HTML(MASTHEAD, elem_id="top")
        visitor = gr.BrowserState(None, storage_key=STORAGE, secret=_secret(offer))
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Generate"):
                generate = generate_tab(desk, visitor, app.load)
            with gr.Tab("Annotate"):
                annotate_tab(desk, visitor, app.load)
            with gr.Tab(TRAIN):
                clock, choices, chosen = train_tab(desk, trainings, app.load)
            with gr.Tab("Compare"):
                compare_tab(desk, visitor, generate.form)
        add_endpoints(desk, trainings)

        def arrive(name: Any) -> tuple[str, list[Any]]:
            """A browser that was here before finds its pictures."""
            known = name if is_visitor(name) else new_visitor()
            return known, pictures_of(desk.folder(known))[: desk.shown]

        def leave(request: gr.Request) -> None:
            desk.stop(str(request.session_hash))

        def turn(event: gr.SelectData) -> tuple[Any, ...]:
            """Runs are looked at while their tab is open; a new one's control can be chosen on the first."""
            is_open = event.value == TRAIN
            controls = gr.update(choices=list(offer.controls))
            return gr.Timer(active=is_open), *(choices() if is_open else [gr.skip()] * len(chosen)), *[controls] * UNITS

        units = [panel.fields["control"] for panel in generate.form.units]
        tabs.select(turn, None, [clock, *chosen, *units], **QUICK)
        app.load(arrive, visitor, [visitor, generate.history], **QUICK)
        app.unload(leave)
    for block in app.blocks.values():
        _refuse_addresses(block)
    _refuse_in_words(app)
    return app


def _secret(offer: Offer) -> str:
    """What the browser's note is locked with; the same after a restart, so that it can be read again."""
    path = offer.out / "secret"
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_text(new_visitor()))
        path.chmod(0o600)
    return path.read_text()


def _refuse_addresses(block: Any) -> None:
    """Gradio would fetch a file that a client names by its address; this server fetches nothing for anybody."""
    move: Callable[..., Any] | None = getattr(block, "async_move_resource_to_block_cache", None)
    if move is None:
        return

    async def moved(place: Any) -> Any:
        if isinstance(place, str) and "://" in place:
            raise gr.Error("addresses are not taken; upload the picture itself", print_exception=False)
        return await move(place)

    block.async_move_resource_to_block_cache = moved


def _refuse_in_words(app: gr.Blocks) -> None:
    """Files that nobody has uploaded here, and values that no component takes, are the caller's fault: Gradio would
    write a traceback for each to the terminal, and tell the caller nothing.
    """
    take: Callable[..., Any] = app.preprocess_data

    async def taken(*args: Any, **kwargs: Any) -> Any:
        try:
            return await take(*args, **kwargs)
        except InvalidPathError as error:
            raise gr.Error("a file that was not uploaded here; upload it", print_exception=False) from error
        except ValueError as error:
            raise gr.Error(f"values that cannot be taken: {str(error)[:500]}", print_exception=False) from error

    app.preprocess_data = taken  # type: ignore[method-assign]
