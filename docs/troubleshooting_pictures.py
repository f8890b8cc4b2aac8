"""Make the pictures and the tables of troubleshooting.md: small trainings that go wrong, each in one way.

    python docs/troubleshooting_pictures.py RUNS

The trainings are kept in the folder RUNS: about five minutes on an idle core the first time, a minute from then
on. Tables go into the page, between the comments that name them. Run it again when the base or the circle control has
changed.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from controlnet import Unit, load_control, open_base
from controlnet.data.circles import draw_circle, ring, write_circles
from controlnet.data.colours import RGB
from controlnet.data.pairs import Pair, Pairs
from controlnet.evaluation.convergence import Validation
from controlnet.evaluation.fidelity import colour_errors, disc, mean_fidelity
from controlnet.generation.pipeline import generate_pixels
from controlnet.generation.settings import Settings
from controlnet.images import Rgb, grid
from controlnet.training.config import TrainConfig
from controlnet.training.run import train

HERE = Path(__file__).parent / "troubleshooting"
PAGE = HERE.with_suffix(".md")
SIDE, QUALITY = 128, 85
PAIRS = 800
SHIFT = 16  # pixels
UNSEEN, SEED = 16, 1_000_003  # rings to be judged by, of a seed that no training has
SAME_COLOUR = 10.0  # CIEDE2000
CALM = 3.0  # guidance at which the embedded base's edges are clean

# picture -> what it shows
SHOWN = {
    "others": "Hints; pictures by a control trained on pairs; by one trained on the hints of other pairs",
    "shifted": "Hints; pictures by a control trained on pairs; by one trained on shifted hints",
    "polarity": "A hint, the picture under it, the inverted hint, the picture under that",
    "colours": "Hints, and pictures at guidance 3, 9 and 20 and at strength 2",
}

BASE = open_base("embedded")
SCENES = [draw_circle(SEED, number) for number in range(UNSEEN)]
RINGS = [ring(scene, SIDE, thickness) for scene, thickness in SCENES]


class Changed:
    """The first `count` pairs, each changed."""

    def __init__(self, pairs: Pairs, count: int, change: Callable[[Pairs, int], Mapping[str, Any]]) -> None:
        self.pairs, self.count, self.change = pairs, count, change

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.change(self.pairs, index)


def as_they_are(pairs: Pairs, index: int) -> Pair:
    return pairs[index]


def of_others(pairs: Pairs, index: int) -> Mapping[str, Any]:
    return {**pairs[index], "hint": pairs[(index + 1) % len(pairs)]["hint"]}


def shifted(pairs: Pairs, index: int) -> Mapping[str, Any]:
    pair = pairs[index]
    return {**pair, "hint": np.roll(pair["hint"], SHIFT, axis=1)}


@dataclass(frozen=True)
class Case:
    change: Callable[[Pairs, int], Mapping[str, Any]]
    pairs: int
    steps: int
    batch_size: int


CASES = {
    "good": Case(as_they_are, PAIRS, 100, 16),
    "others": Case(of_others, PAIRS, 100, 16),
    "shifted": Case(shifted, PAIRS, 100, 16),
    "few": Case(as_they_are, 24, 150, 8),
}


def histories(runs: Path) -> Iterator[tuple[str, list[Validation]]]:
    """Of every training; those that were stopped go on, those that are done are only read."""
    write_circles(runs / "circles", count=PAIRS, size=SIDE, seed=0, processes=1)
    pairs = Pairs(runs / "circles")
    for name, case in CASES.items():
        yield name, trained(runs, name, case, pairs)


def trained(runs: Path, name: str, case: Case, pairs: Pairs) -> list[Validation]:
    config = TrainConfig(
        data=runs / "circles",
        out=runs / name,
        condition="circle",
        max_train_steps=case.steps,
        train_batch_size=case.batch_size,
        validation_steps=25,
        num_validation_images=8,
        lr_scheduler="constant",
    )
    return train(config, dataset=Changed(pairs, case.pairs, case.change), base=BASE).history


def paint(control: str | Path, hints: Sequence[Rgb], guidance: float = CALM, strength: float = 1.0) -> list[Rgb]:
    """A picture under each hint, of the scene whose ring it was."""
    units = [Unit(load_control(str(control), BASE)[0], list(hints), strength)]
    prompts = [scene.caption for scene, _ in SCENES]
    return list(generate_pixels(BASE, prompts, range(UNSEEN), units, Settings(guidance_scale=guidance), (SIDE, SIDE)))


def named(pictures: Sequence[Rgb]) -> float:
    """Share of the colours in and around the rings that are as the prompts name them."""
    errors = [
        colour_errors(picture, disc(hint), RGB[scene.colour], RGB[scene.background])
        for picture, hint, (scene, _) in zip(pictures, RINGS, SCENES, strict=True)
    ]
    return float((np.array(errors) <= SAME_COLOUR).mean())


def save(name: str, columns: Mapping[str, Sequence[Rgb]], rows: int = 3) -> None:
    """Pictures below their headings."""
    HERE.mkdir(exist_ok=True)
    cells = [[pictures[row] for pictures in columns.values()] for row in range(rows)]
    Image.fromarray(grid(cells, list(columns))).save(HERE / f"{name}.webp", quality=QUALITY, method=6)


def hints_that_are_not_theirs(runs: Path) -> None:
    made = {name: paint(runs / name / "control.safetensors", RINGS) for name in ("good", "others", "shifted")}
    save("others", {"hint": RINGS, "own hints": made["good"], "hints of others": made["others"]})
    save("shifted", {"hint": RINGS, "own hints": made["good"], "shifted hints": made["shifted"]})


def polarity() -> None:
    inverted = [255 - hint for hint in RINGS]
    right, wrong = paint("circle", RINGS), paint("circle", inverted)
    save("polarity", {"hint": RINGS, "obeyed": right, "inverted": inverted, "not obeyed": wrong})
    asked = {"as trained": (right, RINGS), "inverted": (wrong, RINGS)}
    write("polarity", {"hint": list(asked), "fidelity": [f"{mean_fidelity(*each):.2f}" for each in asked.values()]})


def colours() -> None:
    asked = {"guidance 3": (CALM, 1.0), "guidance 9": (9.0, 1.0), "guidance 20": (20.0, 1.0), "strength 2": (CALM, 2.0)}
    made = {name: paint("circle", RINGS, *options) for name, options in asked.items()}
    save("colours", {"hint": RINGS, **made})
    told = {
        "": list(made),
        "colours as named": [f"{named(pictures):.0%}" for pictures in made.values()],
        "fidelity": [f"{mean_fidelity(pictures, RINGS):.2f}" for pictures in made.values()],
    }
    write("colours", told)


def write(name: str, rows: Mapping[str, Sequence[str]]) -> None:
    """Put a table, and its picture if it has one, between `<!-- name -->` and `<!-- end -->` of the page.

    The first row is the table's head.
    """
    lines = [f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items()]
    lines.insert(1, "| --- " * (1 + len(next(iter(rows.values())))) + "|")
    lines += ["", f"![{SHOWN[name]}]({HERE.name}/{name}.webp)"] if name in SHOWN else []
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    after = rest[rest.index("<!-- end -->") :]
    PAGE.write_text(before + f"<!-- {name} -->\n" + "\n".join(lines) + "\n" + after, encoding="utf-8")


def over_steps(history: Sequence[Validation]) -> dict[str, list[str]]:
    """Held-out loss, hint gain and fidelity of a training."""
    return {
        "step": [str(each.step) for each in history],
        "held-out loss": [f"{each.loss:.4f}" for each in history],
        "hint gain": [f"{each.hint_gain:.2f}" for each in history],
        "fidelity": [f"{each.fidelity:.2f}" for each in history],
    }


if __name__ == "__main__":
    RUNS = Path(sys.argv[1])
    polarity()
    colours()
    for name, history in histories(RUNS):
        write(name, over_steps(history))
    hints_that_are_not_theirs(RUNS)
