"""`controlnet base train` and `controlnet base evaluate`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from controlnet.choices import BaseChoice
from controlnet.cli.common import Compute
from controlnet.devices import Device, choose_device


@dataclass(frozen=True)
class Train:
    """Make the embedded base from nothing: VAE, text encoder, then U-Net and text encoder together.

    About three hours on two cores. The same command again goes on where it stopped.
    """

    out: tyro.conf.Positional[Path]
    """Folder to write the base to, in diffusers layout; OUT/work keeps what a resume needs."""
    seed: int = 0
    """Of the weights, the pictures and the noise."""
    last_steps: int = 7_000
    """Steps of the last stage, which is mostly of shapes in the middle, where the words decide which."""
    compile: bool = False
    """Compile the U-Net's steps: a third faster after four minutes of compilation; needs a C++ compiler."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""

    def __call__(self) -> None:
        from controlnet.training.embedded.recipe import make_embedded_base

        device = choose_device(self.device)
        report = partial(print, flush=True)
        make_embedded_base(self.out, self.seed, device, report, self.last_steps, self.compile)
        print(f"{self.out} is ready; `controlnet base evaluate --base {self.out}` measures it")


@dataclass(frozen=True)
class Evaluate(BaseChoice, Compute):
    """Measure what a base of the small world knows from text alone: colours and shape of fresh prompts."""

    count: int = 500
    """How many fresh prompts."""
    steps: int = 20
    """Sampling steps."""
    guidance_scale: float = 9.0
    """How far to follow the prompt; 1 is without guidance."""
    scheduler: str = "ddim"
    """ddim or unipc."""
    pictures: Path | None = None
    """Also save the first 64 pictures, as one sheet, to this PNG."""

    def __call__(self) -> None:
        from rich.progress import Progress

        from controlnet.base import open_base
        from controlnet.evaluation.text_accuracy import text_accuracy
        from controlnet.generation.settings import Settings
        from controlnet.images import encode_png, grid

        settings = Settings(self.steps, self.guidance_scale, self.scheduler)
        base = open_base(device=self.device, dtype=self.dtype, **self.how_to_open())
        with Progress(transient=True) as bar:
            task = bar.add_task("pictures from text", total=None)
            accuracy, shown = text_accuracy(
                base,
                self.count,
                settings=settings,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if self.pictures is not None:
            rows = [list(shown[first : first + 8]) for first in range(0, min(64, len(shown)), 8)]
            encode_png(grid(rows), self.pictures)
        print(accuracy)
