"""Make the pictures and the tables of troubleshooting.md: small trainings that go wrong, each in one way.

    python docs/training_comparison.py RUNS
    python docs/troubleshooting_pictures.py RUNS

Two trainings of the first are shown beside two of its own, which are kept in RUNS, too: some minutes on an idle core
the first time, a minute from then on. Tables go into the page, between the comments that name them. Run it again when
the base or the circle control has changed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from controlnet import Unit, load_control, open_base
from controlnet.data.circles import draw_circle, ring
from controlnet.data.colours import RGB
from controlnet.data.pairs import Pair, Pairs
from controlnet.evaluation.fidelity import colour_errors, disc, mean_fidelity
from controlnet.generation.pipeline import generate_pixels
from controlnet.generation.settings import Settings
from controlnet.images import Rgb, grid
from controlnet.training.config import TrainConfig
from controlnet.training.record import column_of, history_of, read_rows
from controlnet.training.run import METRICS, train

HERE = Path(__file__).parent / "troubleshooting"
PAGE = HERE.with_suffix(".md")
SIDE, QUALITY = 128, 85
PAIRS, STEPS, BATCH, EVERY = 1000, 60, 16, 20  # as "batch 16" of the comparison
SHIFT = 16  # pixels
UNSEEN, SEED = 16, 1_000_003  # rings to be judged by, of a seed that no training has
SHOWN = 3  # of them
SAME_COLOUR = 10.0  # CIEDE2000
CALM = 3.0  # guidance at which the embedded base's edges are clean

# picture -> what it shows
TEXTS = {
    "others": "Hints; pictures by a control trained on pairs; by one trained on the hints of other pairs",
    "shifted": "Hints; pictures by a control trained on pairs; by one trained on shifted hints",
    "polarity": "A hint, the picture under it, the inverted hint, the picture under that",
    "colours": "Hints, and pictures at guidance 3, 9 and 20 and at strength 2",
    "overfit": "Hints; pictures by a control trained on 1,000 pairs; by one trained on 50",
}

BASE = open_base("embedded")
SCENES = [draw_circle(SEED, number) for number in range(UNSEEN)]
RINGS = [ring(scene, SIDE, thickness) for scene, thickness in SCENES]


class Changed:
    """The first pairs, each changed."""

    def __init__(self, pairs: Pairs, change: Callable[[Pairs, int], Mapping[str, Any]]) -> None:
        self.pairs, self.change = pairs, change

    def __len__(self) -> int:
        return PAIRS

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.change(self.pairs, index)


def of_others(pairs: Pairs, index: int) -> Mapping[str, Any]:
    return {**pairs[index], "hint": pairs[(index + 1) % PAIRS]["hint"]}


def shifted(pairs: Pairs, index: int) -> Mapping[str, Any]:
    pair: Pair = pairs[index]
    return {**pair, "hint": np.roll(pair["hint"], SHIFT, axis=1)}


def trained(runs: Path, name: str, change: Callable[[Pairs, int], Mapping[str, Any]]) -> Path:
    """The run's folder; one that was stopped goes on, one that is done is only read."""
    config = TrainConfig(
        data=runs / "circles",
        out=runs / name,
        condition="circle",
        max_train_steps=STEPS,
        train_batch_size=BATCH,
        validation_steps=EVERY,
        num_validation_images=8,
        report_to="csv",
    )
    train(config, dataset=Changed(Pairs(runs / "circles"), change), base=BASE)
    return runs / name


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


def save(name: str, columns: Mapping[str, Sequence[Rgb]]) -> None:
    """Pictures below their headings."""
    HERE.mkdir(exist_ok=True)
    cells = [[pictures[row] for pictures in columns.values()] for row in range(SHOWN)]
    Image.fromarray(grid(cells, list(columns))).save(HERE / f"{name}.webp", quality=QUALITY, method=6)


def write(name: str, rows: Mapping[str, Sequence[str]]) -> None:
    """Put a table, and its picture if it has one, between `<!-- name -->` and `<!-- end -->` of the page.

    The first row is the table's head.
    """
    lines = [f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items()]
    lines.insert(1, "| --- " * (1 + len(next(iter(rows.values())))) + "|")
    lines += ["", f"![{TEXTS[name]}]({HERE.name}/{name}.webp)"] if name in TEXTS else []
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    assert found, f"{PAGE} has no place for {name}"
    PAGE.write_text(before + found + "\n".join(lines) + "\n" + rest[rest.index("<!-- end -->") :], encoding="utf-8")


def over_steps(run: Path, every: int = EVERY) -> dict[str, list[str]]:
    """What a training measured, every so many steps; its training loss is the mean of the ten steps before."""
    rows = read_rows(run / METRICS)
    losses = dict(column_of(rows, "loss"))
    history = [each for each in history_of(rows) if each.step % every == 0]
    return {
        "step": [str(each.step) for each in history],
        "training loss": [f"{losses[each.step]:.4f}" if each.step in losses else "" for each in history],
        "held-out loss": [f"{each.loss:.4f}" for each in history],
        "hint gain": [f"{each.hint_gain:.2f}" for each in history],
        "fidelity": [f"{each.fidelity or 0:.2f}" for each in history],
    }


def told(columns: Mapping[str, Sequence[Rgb]], hints: Sequence[Rgb]) -> dict[str, list[str]]:
    """Figures of pictures that were painted."""
    return {
        "": list(columns),
        "colours as named": [f"{named(pictures):.0%}" for pictures in columns.values()],
        "fidelity": [f"{mean_fidelity(pictures, hints):.2f}" for pictures in columns.values()],
    }


def hints_that_are_not_theirs(runs: Path) -> None:
    good = runs / "batch-16"
    write("good", over_steps(good))
    right = paint(good / "control.safetensors", RINGS)
    for name, change, heading in (("others", of_others, "hints of others"), ("shifted", shifted, "shifted hints")):
        run = trained(runs, name, change)
        write(name, over_steps(run))
        save(name, {"hint": RINGS, "own hints": right, heading: paint(run / "control.safetensors", RINGS)})


def polarity() -> None:
    inverted = [255 - hint for hint in RINGS]
    columns = {"as trained": paint("circle", RINGS), "inverted": paint("circle", inverted)}
    save("polarity", {"hint": RINGS, "obeyed": columns["as trained"], "inverted": inverted, "not": columns["inverted"]})
    write("polarity", told(columns, RINGS))


def colours() -> None:
    asked = {"guidance 3": (CALM, 1.0), "guidance 9": (9.0, 1.0), "guidance 20": (20.0, 1.0), "strength 2": (CALM, 2.0)}
    made = {name: paint("circle", RINGS, *options) for name, options in asked.items()}
    save("colours", {"hint": RINGS, **made})
    write("colours", told(made, RINGS))


def overfit(runs: Path) -> None:
    few, many = runs / "50-pairs", runs / "batch-16"
    columns = {each.name: paint(each / "control.safetensors", RINGS) for each in (many, few)}
    save("overfit", {"hint": RINGS, "1,000 pairs": columns[many.name], "50 pairs": columns[few.name]})
    write("overfit", over_steps(few))


if __name__ == "__main__":
    RUNS = Path(sys.argv[1])
    polarity()
    colours()
    hints_that_are_not_theirs(RUNS)
    overfit(RUNS)
