"""`controlnet studio`: the web app."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from controlnet.cli.common import Compute, importing
from controlnet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Studio(Compute):
    """Open the studio: pictures under any number of controls, hints, trainings, in a browser on this machine.

    With no option it opens on the embedded base with the circle control. Bases, controls, LoRAs and data are what is
    given here: nobody can name another file in the browser.
    """

    base: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A base to choose from, as of `controlnet generate`; as often as wanted. Without any: embedded."""
    control: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A control to choose from: a file in any format, the folder of a run, a name; as often as wanted."""
    run: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A training to follow: the folder of its run; its control can be chosen, too."""
    lora: Path | None = None
    """Folder of LoRAs (.safetensors) to choose from."""
    weights_dir: Path | None = None
    """Folder with the annotators' networks, for a machine that does not reach the hub."""
    data: Path | None = None
    """Folder whose folders are data sets, to train on; by default OUT/data."""
    out: Path = Path("studio")
    """Folder for what is made: pictures/, runs/, data/."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs --auth, or --open-to-all."""
    port: int = 7860
    """Port to listen on."""
    share: bool = False
    """Also open a public address through Gradio's servers. Needs --auth, or --open-to-all."""
    auth: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """USER:PASSWORD of who may come in, or @FILE with one on each line; as often as there are users."""
    open_to_all: bool = False
    """Let anyone in who reaches the address."""
    mcp: bool = False
    """Offer the endpoints as tools to language models, too (Model Context Protocol)."""

    def __call__(self) -> None:
        with importing():
            from controlnet.generation.request import complaint
            from controlnet.studio.offer import Offer
            from controlnet.studio.server import Door, serve

        bases = self.base or ("embedded",)
        given = (
            bases,
            self.control,
            self.run,
            self.lora,
            self.data,
            self.out,
            self.device,
            self.dtype,
            self.weights_dir,
        )
        offer = partial(Offer.of, *given)
        door = partial(Door.of, self.host, self.port, self.share, self.auth, self.open_to_all, self.mcp)
        if problems := [*complaint(door), *complaint(offer)]:
            raise UserError("\n".join(problems))
        serve(offer(), door())
