"""The main job in minutes: draw circles, attach a ControlNet to the embedded base, train it, see that it obeys.

    controlnet demo --out demo

Its rings to be judged by are drawn from the whole distribution of the data, with a seed that no training pair has.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from controlnet.atomic import write_atomically
from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import load_control
from controlnet.data.circles import draw_circle, ring, write_circles
from controlnet.data.colours import RGB
from controlnet.data.shapes import Scene
from controlnet.devices import Device, DType, fastest_dtype
from controlnet.evaluation.fidelity import colour_errors, disc, mean_fidelity
from controlnet.evaluation.page import escaped, figures, page
from controlnet.generation.pipeline import generate_pixels
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from controlnet.images import encode_png, grid
from controlnet.training.config import TrainConfig
from controlnet.training.run import Trained, train

Rgb = NDArray[np.uint8]

PAIRS = 3000
SIZE = 128
STEPS = 1100
BATCH_SIZE = 16
UNSEEN_SEED = 1_000_003  # of the rings to be judged by; the training pairs have seed 0
UNSEEN = 64
SHOWN = 8  # the first of them
NAMED_COLOUR = 10.0  # CIEDE2000 within which a colour counts as the one that was named
VALIDATION_STEPS = 100
PICTURES = 8  # generated at each validation
BATCH_OF_PICTURES = 16
SETTINGS = Settings(guidance_scale=3.0)  # the embedded base's edges fray at the 9 that suits Stable Diffusion


@dataclass(frozen=True)
class Score:
    """What the demo came to, over the unseen rings unless said otherwise."""

    fidelity: float
    without: float  # the same text and noise, without control
    before: float | None  # held-out rings of the training, before its first step
    colours: float  # share of the named colours, with control, that are as named
    steps: int
    converged: str
    control: str  # SHA-256 of the file that was judged

    def report(self) -> str:
        before = "" if self.before is None else f"fidelity before the first step: {self.before:.2f}\n"
        return (
            f"{before}{self.converged}\n"
            f"named colours within CIEDE2000 {NAMED_COLOUR:.0f}, with control: {self.colours:.0%}\n"
            f"{UNSEEN} unseen rings, checkpoint of step {self.steps}, guidance {SETTINGS.guidance_scale:g}:\n"
            f"fidelity {self.fidelity:.2f} without {self.without:.2f}"
        )


def run_demo(out: Path, device: Device = "auto", dtype: DType = "auto") -> Score:
    """Do the job in the folder `out`; what is done already is not done again."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    write_circles(out / "circles", count=PAIRS, size=SIZE, seed=0)
    base = open_base("embedded", device, fastest_dtype(dtype, device))
    trained = train(config(out, device, dtype), base=base)
    path = out / "score.json"
    digest = hashlib.sha256(trained.control.read_bytes()).hexdigest()
    if path.exists() and (score := Score(**json.loads(path.read_text(encoding="utf-8")))).control == digest:
        return score
    console.print(f"{UNSEEN} unseen rings: generating with control, and the same text and noise without")
    score = judge(out, base, trained, digest)
    text = json.dumps(asdict(score), indent=2)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return score


def config(out: Path, device: Device, dtype: DType) -> TrainConfig:
    return TrainConfig(
        data=out / "circles",
        out=out / "run",
        condition="circle",
        max_train_steps=STEPS,
        train_batch_size=BATCH_SIZE,
        lr_scheduler="cosine",
        num_validation_images=PICTURES,
        validation_steps=VALIDATION_STEPS,
        device=device,
        dtype=dtype,
    )


def judge(out: Path, base: Base, trained: Trained, digest: str) -> Score:
    """Generate from unseen rings by the file of the last checkpoint, measure, and write what there is to see."""
    scenes, hints = unseen()
    prompts = [scene.caption for scene in scenes]
    control, _ = load_control(trained.control, base)
    hint_nchw = torch.from_numpy(np.stack(hints)).permute(0, 3, 1, 2)
    seeds = range(UNSEEN)
    with_control, without = (
        list(generate_pixels(base, prompts, seeds, units, SETTINGS, (SIZE, SIZE), BATCH_OF_PICTURES))
        for units in ([Unit(control, hint_nchw)], [])
    )
    convergence = trained.convergence
    score = Score(
        fidelity=mean_fidelity(with_control, hints),
        without=mean_fidelity(without, hints),
        before=trained.history[0].fidelity,
        colours=share_as_named(with_control, scenes, hints),
        steps=trained.step,
        converged=str(convergence) if convergence else "no sudden convergence",
        control=digest,
    )
    rows = [pictures[:SHOWN] for pictures in (hints, with_control, without)]
    captions = ("hints that the training has not seen", "with control", "without: the same text, the same noise")
    encode_png(grid(rows, captions=captions), out / "grid.png")
    write_atomically(out / "curve.png", lambda temporary: temporary.write_bytes((out / "run/curve.png").read_bytes()))
    write_atomically(
        out / "index.html", lambda temporary: temporary.write_text(shown(score, prompts[:SHOWN]), encoding="utf-8")
    )
    return score


def unseen() -> tuple[list[Scene], list[Rgb]]:
    """The scenes to be judged by, and their rings."""
    drawn = [draw_circle(UNSEEN_SEED, number) for number in range(UNSEEN)]
    return [scene for scene, _ in drawn], [ring(scene, SIZE, thickness) for scene, thickness in drawn]


def share_as_named(pictures: Sequence[Rgb], scenes: Sequence[Scene], hints: Sequence[Rgb]) -> float:
    """Of all colours named, inside and outside of the rings, the share that the pictures have."""
    errors = [
        colour_errors(picture, disc(hint), RGB[scene.colour], RGB[scene.background])
        for picture, scene, hint in zip(pictures, scenes, hints, strict=True)
    ]
    return float((np.array(errors) <= NAMED_COLOUR).mean())


def shown(score: Score, prompts: Sequence[str]) -> str:
    """index.html: the pictures beside it, and the figures."""
    told = {
        "fidelity": f"{score.fidelity:.2f}",
        "without control": f"{score.without:.2f}",
        "colours as named": f"{score.colours:.0%}",
        "steps": f"{score.steps:,}",
    }
    explained = {
        "fidelity": f"{UNSEEN} unseen rings",
        "without control": "same text, same noise",
        "colours as named": "with control",
    }
    return page(
        "A base learns to obey a circle",
        "<p>The embedded base paints what a text says and knows nothing of control images. A ControlNet was attached "
        "to it and trained, here, on circles. Fidelity: how far the painted disc overlaps the ring of its hint.</p>",
        figures(told, explained),
        '<img src="grid.png" alt="Hints, pictures with control, pictures without control">',
        f"<p>The first {SHOWN} of the {UNSEEN}, left to right:</p>",
        "<ol>" + "".join(f"<li>{escaped(prompt)}</li>" for prompt in prompts) + "</ol>",
        "<h2>Sudden convergence</h2>",
        '<img src="curve.png" alt="Loss, hint gain and fidelity over the steps of the training">',
        f"<pre>{escaped(score.report())}</pre>",
        '<p class="soft">The whole training, with all its curves and pictures, is in run/report.html.</p>',
    )
