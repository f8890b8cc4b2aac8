"""`controlnet attach`: a new ControlNet beside a base, ready to be trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from controlnet.errors import UserError


@dataclass(frozen=True)
class Attach:
    """Make a ControlNet from a base: its encoder copied, zero convolutions and hint encoder newly added.

    Prints the newly added weights. Nothing is ever overwritten. `controlnet train` does this by itself; the file is for
    other trainers: a full model is what the original's expects.
    """

    base: tyro.conf.Positional[str]
    """A single file, a folder in diffusers layout, embedded, a hub id or a name that `controlnet models list` tells."""
    out: tyro.conf.Positional[Path]
    """File to write: .ckpt or .pth for the full model in the original's layout, .safetensors for the control alone."""
    to: Literal["ldm", "controlnet"] | None = None
    """Say it against the suffix: ldm is the full model, controlnet the control alone."""
    hint_channels: int = 3
    """Channels of the hints."""
    seed: int = 0
    """Of the hint encoder's random weights."""
    ema: bool = False
    """Take the averaged weights of a single file that has both."""

    def __call__(self) -> None:
        from controlnet.base import base_place
        from controlnet.checkpoints.attach import attach
        from controlnet.checkpoints.base_tensors import open_base_tensors
        from controlnet.checkpoints.control_formats import format_for, write_control
        from controlnet.cli.progress import bytes_bar

        to = format_for(self.out, self.to)
        if to == "diffusers":
            raise UserError(f"{self.out}: no suffix; expected .safetensors, .ckpt or .pth")
        if self.hint_channels < 1:
            raise UserError(f"--hint-channels {self.hint_channels}; expected at least 1")
        attached = attach(open_base_tensors(base_place(self.base), self.ema), self.hint_channels, self.seed)
        with bytes_bar(f"writing {self.out.name}") as progress:
            if to == "ldm":
                attached.base.as_single_file().write_with_control(self.out, attached.state, attached.metadata, progress)
            else:
                write_control(self.out, attached.state, attached.metadata, to, progress=progress)
        new_names = attached.new_names()
        print(*new_names, sep="\n")
        print(f"{len(new_names)} weights are newly added, {len(attached.copied)} are copied from the base; {self.out}")
