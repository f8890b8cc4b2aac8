"""`controlnet demo`: the whole main job in minutes."""

from dataclasses import dataclass
from pathlib import Path

from controlnet.cli.common import Compute, importing


@dataclass(frozen=True)
class Demo(Compute):
    """Draw circles, attach a ControlNet to the embedded base, train it, generate from rings it has not seen.

    Writes grid.png, curve.png and index.html; the last line printed is the fidelity with control and without. The
    same command again continues, or tells the result again.
    """

    out: Path = Path("demo")
    """Folder for all of it."""

    def __call__(self) -> None:
        with importing():
            from controlnet.training.demo import run_demo

        print(run_demo(self.out, self.device, self.dtype).report())
