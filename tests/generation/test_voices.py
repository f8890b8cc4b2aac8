"""What a unit may change and what it may not: theory first, on a tiny base whose control is loud."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from controlnet.base import Base
from controlnet.checkpoints.control_file import AveragedControlNet
from controlnet.control import ControlNet
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit, soft_weights
from controlnet.generation.voices import layer_sizes
from tiny_generation import counted, latents, loud, request

SIDE = 64
HINTS = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
LEFT = np.concatenate([np.ones((SIDE, SIDE // 2)), np.zeros((SIDE, SIDE // 2))], axis=1)


def made(base: Base, *units: Unit, **others: Any) -> Tensor:
    return latents(request(base, units, Settings(steps=4), **{"size_hw": (SIDE, SIDE), **others}))


@pytest.fixture(scope="module")
def whole(base: Base, control: ControlNet) -> Tensor:
    """Under one unit as it comes."""
    return made(base, Unit(control, HINTS[0]))


@pytest.fixture(scope="module")
def free(base: Base) -> Tensor:
    """Without control."""
    return made(base)


@pytest.mark.parametrize(
    "how",
    [
        {"start": 0.0, "end": 1.0},
        {"mask": np.ones((SIDE, SIDE))},
        {"layer_weights": [1.0] * 13},
        {"schedule": lambda progress: 1.0},
        {"schedule": [1.0] * 4},
    ],
    ids=["the whole window", "a mask of ones", "weights of one", "a schedule of one", "a list of ones"],
)
def test_what_asks_for_all_of_the_control_changes_nothing(base: Base, control: ControlNet, whole: Tensor, how: Any):
    assert torch.equal(made(base, Unit(control, HINTS[0], **how)), whole)


@pytest.mark.parametrize(
    "how",
    [
        {"strength": 0.0},
        {"mask": np.zeros((SIDE, SIDE))},
        {"layer_weights": [0.0] * 13},
        {"schedule": [0.0] * 4},
        {"schedule": lambda progress: 0},
    ],
    ids=["strength", "mask", "weights", "list", "function"],
)
def test_what_asks_for_nothing_of_the_control_is_no_control(base: Base, control: ControlNet, free, whole, how: Any):
    assert torch.equal(made(base, Unit(control, HINTS[0], **how)), free)
    assert not torch.allclose(whole, free, rtol=0.1)


@pytest.mark.parametrize(
    "how",
    [
        {"start": 0.5},
        {"end": 0.5},
        {"mask": LEFT},
        {"layer_weights": [0.0] * 12 + [1.0]},
        {"schedule": lambda progress: 1 - progress},
        {"mode": "prompt"},
        {"mode": "control"},
        {"strength": 0.5},
    ],
    ids=["start", "end", "mask", "only the middle", "fade", "prompt", "control", "half"],
)
def test_every_option_matters(base: Base, control: ControlNet, free: Tensor, whole: Tensor, how: dict[str, Any]):
    latent = made(base, Unit(control, HINTS[0], **how))
    assert not torch.allclose(latent, free, rtol=0.01)
    assert not torch.allclose(latent, whole, rtol=0.01)


def test_two_halves_are_one_whole(base: Base, control: ControlNet, whole: Tensor):
    half = Unit(control, HINTS[0], strength=0.5)
    torch.testing.assert_close(made(base, half, half), whole, rtol=1e-4, atol=1e-4)


def test_two_windows_that_meet_are_one(base: Base, control: ControlNet, whole: Tensor):
    units = [Unit(control, HINTS[0], end=0.5), Unit(control, HINTS[0], start=0.5)]
    assert torch.equal(made(base, *units), whole)


def test_two_masks_that_meet_are_one(base: Base, control: ControlNet, whole: Tensor):
    units = [Unit(control, HINTS[0], mask=LEFT), Unit(control, HINTS[0], mask=1 - LEFT)]
    torch.testing.assert_close(made(base, *units), whole, rtol=1e-4, atol=1e-4)


def test_the_order_of_units_does_not_matter(base: Base, control: ControlNet):
    units = [Unit(control, HINTS[0]), Unit(loud(base, 1), HINTS[1], 0.6, mode="control"), Unit(control, HINTS[2], 0.3)]
    torch.testing.assert_close(made(base, *units), made(base, *reversed(units)), rtol=1e-4, atol=1e-4)


def test_guess_is_the_control_mode_and_prompt_is_its_weights_on_both_sides(base: Base, control: ControlNet):
    guess, same = (made(base, Unit(control, HINTS[0], mode=mode)) for mode in ("guess", "control"))
    assert torch.equal(guess, same)
    soft = made(base, Unit(control, HINTS[0], layer_weights=soft_weights(13)))
    assert torch.equal(made(base, Unit(control, HINTS[0], mode="prompt")), soft)
    assert not torch.allclose(guess, soft, rtol=0.01)


def test_without_guidance_there_is_one_side_and_the_modes_with_soft_weights_agree(base: Base, control: ControlNet):
    prompt, only_one_side = (
        latents(request(base, [Unit(control, HINTS[0], mode=mode)], Settings(steps=2, guidance_scale=1.0)))
        for mode in ("prompt", "control")
    )
    assert torch.equal(prompt, only_one_side)


@pytest.mark.parametrize(
    ("how", "calls", "pictures"),
    [
        ({}, 4, 16),
        ({"end": 0.5}, 2, 8),
        ({"schedule": [1, 0, 0, 0]}, 1, 4),
        ({"mode": "control"}, 4, 8),
        ({"mode": "control", "start": 0.75}, 1, 2),
    ],
    ids=["balanced", "half the steps", "one step", "one side", "one step and side"],
)
def test_a_control_is_run_only_where_it_is_heard(base: Base, how: dict[str, Any], calls: int, pictures: int):
    control = loud(base)
    count = counted(control)
    made(base, Unit(control, HINTS[:2], **how), prompts=["red", "bee"], seeds=[0, 1])
    assert count == {"control": calls, "hint": 1, "pictures": pictures}


def test_outside_the_interval_of_guidance_only_one_side_is_run(base: Base):
    control = loud(base)
    count = counted(control)
    settings = Settings(steps=4, guidance_interval=(0.25, 0.75))
    latents(request(base, [Unit(control, HINTS[0])], settings))
    assert count["pictures"] == 1 + 2 + 2 + 1


def test_a_control_that_says_one_thing_to_the_whole_picture_can_be_masked(base: Base):
    control = tiny.randomised(AveragedControlNet.from_base(base.unet))
    latent = [made(base, Unit(control, HINTS[0], mask=mask)) for mask in (np.ones((SIDE, SIDE)), LEFT)]
    assert torch.equal(latent[0], made(base, Unit(control, HINTS[0])))
    assert not torch.allclose(latent[0], latent[1], rtol=0.01)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("size", [(16, 16), (9, 21)])
def test_the_sizes_of_the_layers_are_those_of_the_features(family: tiny.Family, size: tuple[int, int]):
    control = ControlNet.from_base(tiny.unet(family))
    latent, timestep, prompt, hint = tiny.inputs(family, size=size)
    with torch.no_grad():
        features = control(latent, timestep, prompt, control.encode_hint(hint))
    assert layer_sizes(control.encoder, size) == [tuple(x.shape[2:]) for x in (*features.skips, features.middle)]
