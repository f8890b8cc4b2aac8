"""`controlnet evaluate`: what a control does on pairs, in figures."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from controlnet.choices import BaseChoice
from controlnet.cli.common import Compute, importing
from controlnet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Evaluate(BaseChoice, Compute):
    """Generate from the hints and prompts of a data set, with the control and without, and measure.

    Fidelity by the condition's own annotator; FID and CLIP score where weights are given. Pictures, evaluation.json and
    grid.png are in --out. The same command again goes on where it stopped.
    """

    base: tyro.conf.Positional[str] = field()  # no default here
    """The base: embedded, a folder in diffusers layout, a single file, a hub id, or a known name."""
    control: tyro.conf.Positional[str]
    """A trained control: its file in any format, the folder of its training, or a name."""
    data: tyro.conf.Positional[str]
    """Pairs that it was not trained on, in any format that `controlnet train` reads."""
    out: Path = Path("evaluation")
    """Folder for the pictures and figures."""
    count: int = 64
    """How many pairs, from the first on."""
    condition: str | None = None
    """Kind of the hints, where the control's file does not say."""
    resolution: int | None = None
    """Side of the square that pictures and hints are brought to; by default they are used as they are."""
    steps: int = 20
    """Sampling steps."""
    guidance_scale: float = 9.0
    """How far to follow the prompt; 1 is without guidance."""
    scheduler: str = "ddim"
    """How to sample; `controlnet generate --help` has all."""
    seed: int = 0
    """Of the first picture; picture i has seed + i, with control and without."""
    batch_size: int = 4
    """Pictures computed together."""
    inception: Path | None = None
    """For FID: weights of Inception v3 as PyTorch ports have them, such as pt_inception-2015-12-05-6726825d.pth."""
    clip: Path | None = None
    """For CLIP score and CMMD: a folder with a CLIP model of transformers, such as openai/clip-vit-large-patch14."""

    def __call__(self) -> None:
        self._refuse_nonsense()
        from rich.console import Console
        from rich.progress import Progress
        from rich.table import Table

        with importing():
            from controlnet.base import open_base, weights_hash
            from controlnet.checkpoints.control_file import load_control
            from controlnet.data.pairs import Pairs
            from controlnet.data.transform import Transform
            from controlnet.evaluation.evaluate import Asked, evaluate
            from controlnet.evaluation.obedience import find_judge
            from controlnet.generation.settings import Settings

        pairs = Pairs(self.data, transform=Transform(self.resolution))
        base = open_base(device=self.device, dtype=self.dtype, **self.how_to_open())
        control, metadata = load_control(self.control, base)
        condition = self.condition or metadata.condition
        settings = Settings(self.steps, self.guidance_scale, self.scheduler)
        sampling = {
            name: getattr(self, name) for name in ("steps", "guidance_scale", "scheduler", "resolution", "dtype")
        }
        hashes = {"base_hash": base.hash(), "control_hash": weights_hash([control])}
        asked = Asked(self.base, self.control, self.data, self.count, self.seed, sampling | hashes)
        with Progress(transient=True, console=Console(stderr=True)) as bar:
            task = bar.add_task("pictures", total=None)
            result = evaluate(
                base,
                control,
                pairs,
                find_judge(condition, pairs.meaning, base.device.type),
                condition,
                asked,
                self.out,
                settings,
                self.batch_size,
                self.inception,
                self.clip,
                lambda done, total: bar.update(task, completed=done, total=total),
            )
        table = Table(f"{condition}, {result.pictures} pairs", "with control", "without")
        for row in result.rows():
            table.add_row(*row)
        Console().print(table, *result.notes, sep="\n")
        print(self.out / "evaluation.json")

    def _refuse_nonsense(self) -> None:
        values = {"--count": self.count, "--batch-size": self.batch_size, "--steps": self.steps}
        if wrong := [f"{name} is {value}; expected 1 or more" for name, value in values.items() if value < 1]:
            raise UserError("\n".join(wrong))
