"""What cannot be done is refused before any work, with every reason at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from controlnet.base import Base
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation.pipeline import generate
from controlnet.generation.unit import Unit
from tiny_generation import counted, loud

HINT = np.zeros((64, 64, 3), np.uint8)
PICTURE = np.zeros((128, 128, 3), np.uint8)


def test_all_problems_of_a_request_are_told_at_once(base: Base, control: ControlNet):
    foreign = ControlNet.from_base(tiny.unet("sd2"))
    units = [
        Unit(control, HINT),
        Unit(foreign, PICTURE, strength=float("nan")),
        Unit(control, Path("no/such/ring.png")),
        Unit(control, [HINT] * 3),
        Unit(control, HINT, mask=np.zeros((32, 32)), layer_weights=[1] * 10, mode="loud", resize="shrink"),
        Unit(control, HINT, mask="no/such/mask.png", layer_weights=[float("inf")] * 13),
        Unit(ControlNet.from_base(base.unet, hint_channels=1), image=PICTURE, annotator=np.copy),
    ]
    with pytest.raises(UserError) as caught:
        generate(
            base,
            "red",
            units,
            steps=0,
            scheduler="plms",
            seed=-1,
            clip_skip=9,
            batch_size=0,
            count=2,
            eta=2.0,
            mask=HINT,
            image_strength=0,
        )
    told = str(caught.value)
    for problem in (
        "0 steps; expected 1 to 999",
        "scheduler 'plms'; expected one of: ddim, euler",
        "seed out of range",
        "clip skip 9; expected 1 to 3",
        "batch size 0",
        "eta 2.0; expected 0 to 1",
        "a mask without an image",
        "image strength 0; expected more than 0",
        "unit 2: its control was made for another kind of base",
        "unit 2: strength nan",
        "unit 3: no/such/ring.png: no such file",
        "unit 4: 3 hints for 2 pictures",
        "unit 5: a mask of 32x32; expected 64x64",
        "unit 5: 10 layer weights; expected 13",
        "unit 5: mode 'loud'; expected one of: balanced, prompt, control, guess",
        "unit 5: resize 'shrink'; expected one of: crop, fill, stretch, original",
        "unit 6: mask: no/such/mask.png: no such file",
        "unit 6: layer weights",
        "unit 7: an annotator's hint has 3 channels, this control expects 1",
    ):
        assert problem in told
    assert "unit 1" not in told


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ({"start": 0.5, "end": 0.5}, "a window from 0.5 to 0.5 of the steps; expected 0 <= start < end <= 1"),
        ({"end": 1.5}, "a window from 0.0 to 1.5"),
        ({"start": 0.3, "end": 0.6}, "in which no whole step of 4 lies"),
        ({"schedule": [1, 0, 1]}, "schedule: a list of 3 values for 4 steps"),
        ({"schedule": lambda progress: float("inf")}, "strength 1.0, scheduled; expected finite"),
    ],
)
def test_a_unit_that_says_nothing_sensible_over_the_steps_is_refused(base: Base, control: ControlNet, how, problem):
    with pytest.raises(UserError, match=problem):
        generate(base, "red", [Unit(control, HINT, **how)], steps=4)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"guidance_scale": [9.0] * 3}, "guidance scale: a list of 3 values for 4 steps"),
        ({"guidance_scale": float("nan")}, "guidance scale nan; expected finite"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance: a window from 0.8 to 0.2"),
        ({"eta": 0.5, "scheduler": "euler"}, "eta 0.5 with the scheduler euler; only ddim has it"),
        ({"timesteps": [1, 501]}, "timesteps 1, 501; expected falling ones from 999 to 0"),
        ({"timesteps": []}, "timesteps without any"),
        ({"timesteps": [501, 1], "scheduler": "unipc"}, "this scheduler takes no timesteps"),
        ({"image": PICTURE, "image_strength": 0.1}, "image strength 0.1 of 4 steps is none"),
        ({"image": [PICTURE] * 2}, "2 images for 1 pictures"),
        ({"image": "no/such.png"}, "image: no/such.png: no such file"),
        ({"image": PICTURE, "mask": np.zeros((64, 64))}, "a mask of 64x64; expected 128x128"),
        ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
        ({"size": (100, 128)}, "a picture of 100x128; expected sides that are multiples of 8"),
        ({"size": (128, 0)}, "multiples of 8"),
        ({"size": (-8, 128)}, "multiples of 8"),
        ({"count": 0}, "no picture is asked for"),
        ({"prompt": []}, "no picture is asked for"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(base: Base, asked: dict[str, Any], problem: str):
    with pytest.raises(UserError, match=problem):
        generate(base, **{"prompt": "red", "steps": 4, **asked})


def test_nothing_is_computed_before_the_request_is_checked(base: Base):
    control, annotated = loud(base), []
    calls = counted(control)
    units = [Unit(control, HINT), Unit(control, image=PICTURE, annotator=annotated.append)]
    with pytest.raises(UserError, match="0 steps"):
        generate(base, "red", units, steps=0)
    assert calls == {"control": 0, "hint": 0, "pictures": 0}
    assert annotated == []
