"""`controlnet generate`: pictures from a prompt, by the base alone or under a control."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controlnet.choices import BaseChoice
from controlnet.cli.common import Compute
from controlnet.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Generate(BaseChoice, Compute):
    """Pictures from a prompt, written as PNG files that carry their settings; prints the path of each."""

    prompt: str
    """What to show."""
    out: Path
    """Folder for the pictures; each is named by its seed, and none is ever overwritten."""
    control: str | None = None
    """A trained control: its file, the folder of its training, or the name of a packaged one. Needs --hint."""
    hint: Path | None = None
    """The control image: a picture of the size to generate. Needs --control."""
    strength: float = 1.0
    """How strongly the control acts: 1 as trained, 0 not at all."""
    negative_prompt: str = ""
    """What to steer away from."""
    count: int = 1
    """How many pictures; picture i has seed + i."""
    seed: int = 0
    """Seed of the first picture: the same seed and settings give the same picture."""
    steps: int = 20
    """Steps of the scheduler: more are finer and slower."""
    guidance_scale: float = 9.0
    """How strongly the prompt acts (classifier-free guidance); 1 is no guidance, in half the time."""
    scheduler: str = "ddim"
    """ddim or unipc."""
    clip_skip: int = 1
    """Layer of the text encoder to listen to, counted from the last."""
    width: int | None = None
    """Width in pixels; by default the hint's, or what the base was made for. Needs --height."""
    height: int | None = None
    """Height in pixels. Needs --width."""
    batch_size: int = 4
    """Pictures computed together: more are faster and need more memory."""

    def __call__(self) -> None:
        if problems := self._problems():
            raise UserError("\n".join(problems))
        from rich.console import Console
        from rich.progress import Progress

        from controlnet.base import open_base
        from controlnet.checkpoints.control_file import load_control
        from controlnet.generation.pipeline import generate
        from controlnet.generation.unit import Unit

        base = open_base(device=self.device, dtype=self.dtype, **self.how_to_open())
        units = []
        if self.control is not None and self.hint is not None:
            control, _ = load_control(self.control, base)
            units = [Unit(control, self.hint, self.strength)]
        size = (self.width, self.height) if self.width is not None and self.height is not None else None
        paths: list[Path] = []
        try:
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task(f"{self.count} picture(s)", total=self.count * self.steps)
                for first in range(0, self.count, self.batch_size):  # a batch is on disk before the next begins
                    count = min(self.batch_size, self.count - first)
                    pictures = generate(
                        base,
                        self.prompt,
                        units,
                        steps=self.steps,
                        guidance_scale=self.guidance_scale,
                        seed=self.seed + first,
                        count=count,
                        scheduler=self.scheduler,
                        negative_prompt=self.negative_prompt,
                        clip_skip=self.clip_skip,
                        size=size,
                        batch_size=count,
                        progress=lambda *_, count=count: bar.advance(task, count),
                    )
                    paths += [self._write(picture, self.seed + first + i) for i, picture in enumerate(pictures)]
        finally:
            print(*paths, sep="\n", end="\n" * bool(paths))  # under the bar, not through it

    def _problems(self) -> list[str]:
        """What can be told before any model is opened."""
        from controlnet.checkpoints.control_file import find_control
        from controlnet.images import header_size

        problems = []
        if (self.control is None) != (self.hint is None):
            given, lacking = ("--control", "--hint") if self.hint is None else ("--hint", "--control")
            problems.append(
                f"{given} is given without {lacking}; a control and its hint go together: give both or none"
            )
        if (self.width is None) != (self.height is None):
            given, lacking = ("--width", "--height") if self.height is None else ("--height", "--width")
            problems.append(f"{given} is given without {lacking}; give both or none")
        for option, value in (("--count", self.count), ("--batch-size", self.batch_size)):
            if value < 1:
                problems.append(f"{option} {value}; expected at least 1")
        for find, place in ((find_control, self.control), (header_size, self.hint)):
            try:
                _ = place is None or find(place)
            except UserError as error:
                problems.append(str(error))
        return problems

    def _write(self, picture: "Image", seed: int) -> Path:
        from PIL.PngImagePlugin import PngInfo

        from controlnet.atomic import write_atomically

        information = PngInfo()
        information.add_text("controlnet", self._settings(seed))
        path = free_path(self.out, seed)
        write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=information))
        return path

    def _settings(self, seed: int) -> str:
        """JSON of all that makes this one picture again."""
        import json

        from controlnet import __version__

        settings = asdict(self) | {"seed": seed, "count": 1, "version": __version__}
        return json.dumps(settings, default=str)


def free_path(folder: Path, seed: int) -> Path:
    """folder/SEED.png, or the first of SEED-2.png, SEED-3.png ... that is not there yet."""
    path, number = folder / f"{seed}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{seed}-{number}.png"
    return path
