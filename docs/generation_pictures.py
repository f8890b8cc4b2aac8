"""Make the pictures of generation.md, by the embedded base and its circle control.

    python docs/generation_pictures.py

Under a minute on two cores. Run it again when the base or the control has changed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from controlnet import Unit, generate, load_control, open_base
from controlnet.generation.schedulers import SCHEDULERS
from controlnet.images import Rgb, grid

HERE = Path(__file__).parent / "generation"
SIDE, QUALITY = 128, 85
PROMPT = "gold circle with navy background"
FIXED: dict[str, Any] = {"steps": 20, "guidance_scale": 3.0, "seed": 1}


def shape(*boxes: tuple[int, int, int, int], fill: bool = False) -> Rgb:
    """White rings, or discs, on black."""
    image = Image.new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for box in boxes:
        draw.ellipse(box, fill="white" if fill else None, outline="white", width=2)
    return np.array(image)


RIGHT, LEFT = (60, 24, 116, 80), (10, 62, 58, 110)
RING, OTHER = shape(RIGHT), shape(LEFT)
LEFT_HALF = np.zeros((SIDE, SIDE), np.uint8)
LEFT_HALF[:, : SIDE // 2] = 255

BASE = open_base("embedded")
CIRCLE, _ = load_control("circle", BASE)


def paint(*units: Unit, prompt: str = PROMPT, **options: Any) -> Rgb:
    return generate(BASE, prompt, units, size=(SIDE, SIDE), **{**FIXED, **options}).pixels_nhwc[0]


def under_ring(**options: Any) -> Rgb:
    return paint(Unit(CIRCLE, RING, **options))


def save(name: str, pictures: Mapping[str, Rgb]) -> None:
    """One row, each picture below its heading."""
    HERE.mkdir(exist_ok=True)
    cells = [cell if cell.ndim == 3 else np.stack([cell] * 3, axis=2) for cell in pictures.values()]
    Image.fromarray(grid([cells], headings=list(pictures))).save(HERE / f"{name}.webp", quality=QUALITY, method=6)


def units() -> None:
    right, left = Unit(CIRCLE, RING), Unit(CIRCLE, OTHER)
    pictures = {"no unit": paint(), "hint": RING, "one unit": paint(right), "another hint": OTHER}
    save("units", pictures | {"both units": paint(right, left)})


def strengths() -> None:
    values = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
    save("strength", {"hint": RING} | {f"strength {value:g}": under_ring(strength=value) for value in values})


def windows() -> None:
    windows = ((0.0, 0.1), (0.0, 0.25), (0.0, 0.5), (0.25, 1.0), (0.5, 1.0))
    pictures = {f"{start:g} to {end:g}": under_ring(start=start, end=end) for start, end in windows}
    falling = under_ring(schedule=lambda done: 1 - done)
    save("window", {"hint": RING, **pictures, "falling": falling})


def modes() -> None:
    named = {mode: under_ring(mode=mode) for mode in ("balanced", "prompt", "control")}  # type: ignore[arg-type]
    deep = under_ring(layer_weights=[0.0] * 6 + [1.0] * 7)
    save("modes", {"hint": RING, **named, "deep layers": deep})


def masks() -> None:
    two = shape(RIGHT, LEFT)
    masked = paint(Unit(CIRCLE, two, mask=LEFT_HALF))
    save("mask", {"hint": two, "without": paint(Unit(CIRCLE, two)), "mask": LEFT_HALF, "with": masked})


def images() -> None:
    image, prompt = paint(prompt="red circle with white background", seed=4), "green circle with white background"
    strengths = (0.3, 0.5, 0.7, 0.9)
    made = {f"strength {it:g}": paint(prompt=prompt, image=image, image_strength=it) for it in strengths}
    save("image", {"image": image, **made})
    disc = shape((40, 4, 124, 88), fill=True)[..., 0]
    anew = {"prompt": "green circle with white background", "image": image, "mask": disc, "image_strength": 1.0}
    alone, under = paint(**anew), paint(Unit(CIRCLE, RING), **anew)
    save("inpaint", {"image": image, "mask": disc, "painted": alone, "hint": RING, "under the hint": under})


def schedulers() -> None:
    cells = {name: paint(Unit(CIRCLE, RING), scheduler=name, steps=10) for name in SCHEDULERS}
    save("schedulers", cells)


if __name__ == "__main__":
    for make in (units, strengths, windows, modes, masks, images, schedulers):
        make()
