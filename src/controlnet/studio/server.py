"""The server: where it listens, who may come in, and its end."""

import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from controlnet.errors import UserError
from controlnet.studio.guard import LOCAL, Guard
from controlnet.studio.limits import LIMITS
from controlnet.studio.offer import Offer

if TYPE_CHECKING:
    import gradio as gr

UPLOADS = Path(__file__).with_name("uploads.js")
SESSIONS = 64  # that Gradio remembers; each holds a copy of the page's plan, and each call of a program is one


@dataclass(frozen=True)
class Door:
    """Where the studio listens, and to whom."""

    host: str
    port: int
    share: bool
    users: tuple[tuple[str, str], ...]
    """Names and passwords; none lets anyone in."""
    mcp: bool

    @classmethod
    def of(cls, host: str, port: int, share: bool, auth: Iterable[str], open_to_all: bool, mcp: bool) -> "Door":
        """UserError for an address that others reach without anybody being asked who they are."""
        problems: list[str] = []
        users = tuple(_users(auth, problems))
        if not 0 < port < 65536:
            problems.append(f"--port {port}; expected 1 to 65535")
        if (share or host not in LOCAL) and not users and not open_to_all:
            where = "--share" if share else f"--host {host}"
            problems.append(
                f"{where} lets others in; give --auth USER:PASSWORD, or --open-to-all if everyone who reaches it may "
                "use this machine"
            )
        if problems:
            raise UserError("\n".join(problems))
        return cls(host, port, share, users, mcp)


def _users(auth: Iterable[str], problems: list[str]) -> Iterable[tuple[str, str]]:
    for given in auth:
        lines = [given]
        if given.startswith("@"):
            try:
                lines = Path(given[1:]).read_text(encoding="utf-8").split("\n")
            except OSError as error:
                problems.append(f"--auth {given}: {(error.strerror or str(error)).lower()}")
                continue
        for line in filter(None, map(str.strip, lines)):
            user, _, password = line.partition(":")
            if user and password:
                yield user, password
            else:
                problems.append("--auth: expected USER:PASSWORD, or @FILE with one on each line")


def _shown(offer: Offer) -> list[Path]:
    """Folders whose files the page shows: pictures, under names that nobody can guess, and what trainings draw."""
    return [offer.out / "pictures", offer.out / "runs", *(run / "samples" for run in offer.given_runs.values())]


def _head() -> str:
    """What the page does before all else: it tells of a file that is too large for an upload."""
    script = UPLOADS.read_text(encoding="utf-8")
    return f"<script>{script}refuseFilesOver({LIMITS.file_bytes});</script>"


def serve(offer: Offer, door: Door) -> None:
    """Until Ctrl-C or SIGTERM. Trainings that it has started go on."""
    # before Gradio is imported: it reads these once. Uploads stay in the studio's own folder
    os.environ["GRADIO_TEMP_DIR"] = str((offer.out / "uploads").resolve())
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    gc.disable()  # until it is open: of the many objects that are made till then, none is garbage
    from controlnet.studio.app import make_app
    from controlnet.studio.desk import Desk

    desk = Desk(offer)
    app = make_app(desk)
    print(f"the studio is open at {_launch(app, offer, door)}", flush=True)
    try:
        desk.open()  # while a browser loads the page
        gc.freeze()  # what is there now stays
        gc.enable()
        Event().wait()
    finally:
        app.close(verbose=False)


def _launch(app: "gr.Blocks", offer: Offer, door: Door) -> str:
    """The address, once it answers there. UserError where it cannot."""
    from starlette.middleware import Middleware

    from controlnet.studio.theme import STYLE, theme

    app.queue(max_size=LIMITS.waiting, default_concurrency_limit=1)
    guard = Middleware(Guard, is_local=door.host in LOCAL and not door.share, largest_body=LIMITS.body_bytes)
    try:
        _, local, public = app.launch(
            server_name=door.host,
            server_port=door.port,
            share=door.share,
            auth=list(door.users) or None,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            inbrowser=False,
            footer_links=["api"],
            run_history=False,
            allowed_paths=[str(folder.resolve()) for folder in _shown(offer)],
            max_file_size=LIMITS.file_bytes,
            enable_monitoring=False,
            strict_cors=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=door.mcp,
            app_kwargs={"middleware": [guard]},
            theme=theme(),
            css_paths=STYLE,
            head=_head(),
            state_session_capacity=SESSIONS,
            _frontend=False,  # else it asks itself for the page, and gives up where that takes over three seconds
        )
    except OSError as error:
        where = f"--host {door.host} --port {door.port}"
        raise UserError(f"{where}: in use, or no address of this machine; choose another") from error
    if door.share and not public:
        app.close(verbose=False)
        raise UserError("--share: Gradio's servers give no public address; leave it out, or use a tunnel of your own")
    return str(public or local)
