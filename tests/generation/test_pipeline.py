"""Generation: what diffusers gives on the same folder, what a unit may and may not change, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler

import tiny_folders
from controlnet.base import Base, open_base
from controlnet.control import ControlNet
from controlnet.generation.pipeline import generate, generate_pixels
from controlnet.generation.sampling import initial_noise
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from tiny_generation import counted, grey_levels_apart, latents, loud, request

SIDE = 64
FAST = Settings(steps=4)
CASES = [("sd1", "epsilon"), ("sd2", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon")]
LONG = "a red bee " * 30  # two chunks


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bases")
    for family, prediction_type in CASES:
        tiny_folders.save_tiny_base(home / f"{family}-{prediction_type}", family, prediction_type)
    return home


@pytest.fixture(scope="module")
def base(home: Path) -> Base:
    return open_base(home / "sd1-epsilon", device="cpu")


@pytest.fixture(scope="module")
def control(base: Base) -> ControlNet:
    return loud(base)


@pytest.fixture(scope="module")
def hints() -> torch.Tensor:
    return torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("name", "scheduler", "guidance_scale"),
    [
        ("sd1-epsilon", "ddim", 9.0),
        ("sd1-epsilon", "ddim", 1.0),
        ("sd1-epsilon", "unipc", 9.0),
        ("sd2-epsilon", "ddim", 9.0),
        ("sd2-v_prediction", "ddim", 9.0),
        ("sd2-v_prediction", "unipc", 9.0),
        ("sdxl-epsilon", "ddim", 9.0),
    ],
)
def test_the_base_alone_gives_what_diffusers_gives(home: Path, name: str, scheduler: str, guidance_scale: float):
    settings = Settings(5, guidance_scale, scheduler, negative_prompt="bee")
    ours = latents(request(open_base(home / name, device="cpu"), [], settings, size_hw=(SIDE, SIDE)))
    theirs = peer(home / name, scheduler)(
        "red",
        negative_prompt="bee",
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        height=SIDE,
        width=SIDE,
        latents=initial_noise([3], (4, 8, 8)),
        output_type="latent",
    ).images
    assert (ours - theirs).norm() / theirs.norm() < 1e-4


def test_the_picture_is_the_one_that_diffusers_decodes(home: Path, base: Base):
    ours = generate(base, "red", steps=4, seed=3, negative_prompt="")[0]
    theirs = peer(home / "sd1-epsilon", "ddim")(
        "red", num_inference_steps=4, guidance_scale=9.0, latents=initial_noise([3], (4, 16, 16))
    ).images[0]
    assert grey_levels_apart(np.array(ours), np.array(theirs)) <= 1
    assert np.array(ours).std() > 5


def test_a_new_control_is_silent_and_a_loud_one_is_not(base: Base, control: ControlNet, hints: torch.Tensor):
    alone = generate_pixels(base, ["red"], [0], [], FAST, (SIDE, SIDE))
    silent = generate_pixels(base, ["red"], [0], [Unit(ControlNet.from_base(base.unet), hints[:1])], FAST)
    assert np.array_equal(silent, alone)
    assert grey_levels_apart(generate_pixels(base, ["red"], [0], [Unit(control, hints[:1])], FAST), alone) > 5


def test_strength_zero_is_bitwise_no_control(base: Base, control: ControlNet, hints: torch.Tensor):
    latents = [
        generate_pixels(base, ["red", "bee"], [0, 1], units, FAST, (SIDE, SIDE))
        for units in ([], [Unit(control, hints[0], strength=0)])
    ]
    assert np.array_equal(*latents)


def test_a_unit_of_strength_zero_is_never_run(base: Base, hints: torch.Tensor):
    control = loud(base)
    calls = counted(control)
    generate_pixels(base, ["red"], [0], [Unit(control, hints[0], strength=0)], FAST)
    assert calls == {"control": 0, "hint": 0, "pictures": 0}


def test_hint_features_are_computed_once_for_all_steps_and_both_sides(base: Base, hints: torch.Tensor):
    control = loud(base)
    calls = counted(control)
    generate_pixels(base, ["red"] * 2, [0, 1], [Unit(control, hints[0])], FAST)
    assert calls == {"control": 4, "hint": 1, "pictures": 16}


def test_strength_matters_and_two_halves_are_one_whole(base: Base, control: ControlNet, hints: torch.Tensor):
    whole, half = Unit(control, hints[0], 1.0), Unit(control, hints[0], 0.5)
    pictures = [generate_pixels(base, ["red"], [0], units, FAST) for units in ([whole], [half], [half, half])]
    assert grey_levels_apart(pictures[0], pictures[1]) > 5
    assert grey_levels_apart(pictures[0], pictures[2]) <= 1


def test_a_picture_of_a_batch_is_the_single_picture_with_its_seed(base: Base, control: ControlNet, hints: torch.Tensor):
    prompts, seeds = ["red", LONG, "bee", "a b c"], [7, 8, 9, 7]
    together = generate_pixels(base, prompts, seeds, [Unit(control, hints)], Settings(steps=10))
    alone = [
        generate_pixels(base, [prompts[i]], [seeds[i]], [Unit(control, hints[i])], Settings(steps=10))[0]
        for i in range(len(prompts))
    ]
    assert together.shape == (4, SIDE, SIDE, 3)
    assert grey_levels_apart(together, np.stack(alone)) <= 1
    assert all(grey_levels_apart(together[i], together[0]) > 5 for i in (1, 2, 3))


def test_batches_do_not_change_pictures(base: Base, control: ControlNet, hints: torch.Tensor):
    several = [
        generate_pixels(base, ["red"] * 3, [0, 1, 2], [Unit(control, hints[0])], FAST, batch_size=size)
        for size in (1, 2, 3)
    ]
    assert grey_levels_apart(several[0], several[2]) <= 1
    assert grey_levels_apart(several[1], several[2]) <= 1


def test_picture_i_of_a_call_has_seed_plus_i(base: Base):
    pictures = generate(base, ["red", "bee"], steps=2, size=(SIDE, SIDE), seed=5, count=2)
    again = [
        generate(base, text, steps=2, size=(SIDE, SIDE), seed=seed)[0]
        for text, seed in zip(["red", "red", "bee", "bee"], range(5, 9), strict=True)
    ]
    assert all(
        grey_levels_apart(np.array(one), np.array(other)) <= 1 for one, other in zip(pictures, again, strict=True)
    )
    assert len(pictures) == 4


def test_noise_depends_on_the_seed_alone():
    both = initial_noise([3, 4], (4, 8, 8))
    assert torch.equal(both[1:], initial_noise([4], (4, 8, 8)))
    assert not torch.equal(both[0], both[1])


def test_at_guidance_scale_one_the_negative_prompt_is_not_heard(base: Base):
    pictures = [
        generate_pixels(base, ["red"], [0], [], Settings(4, guidance_scale=1.0, negative_prompt=negative), (SIDE, SIDE))
        for negative in ("", LONG)
    ]
    assert np.array_equal(*pictures)


def test_a_negative_prompt_with_guidance_is_heard(base: Base):
    pictures = [
        generate_pixels(base, ["red"], [0], [], Settings(4, negative_prompt=text), (SIDE, SIDE)) for text in ("", "bee")
    ]
    assert grey_levels_apart(*pictures) > 1


def test_a_long_prompt_is_heard_to_its_end(base: Base):
    pictures = [generate_pixels(base, [LONG + end], [0], [], FAST, (SIDE, SIDE)) for end in ("x", "y")]
    assert not np.array_equal(*pictures)


def test_pictures_are_of_the_size_of_the_hint_or_the_size_asked_for(base: Base, control: ControlNet):
    wide = np.zeros((72, 96, 3), np.uint8)
    assert generate(base, "red", [Unit(control, wide)], steps=1)[0].size == (96, 72)
    assert generate(base, "red", size=(104, 64), steps=1)[0].size == (104, 64)
    assert generate(base, "red", steps=1)[0].size == (128, 128)


def test_a_control_in_another_precision_controls_and_stays_as_it_is(home: Path, hints: torch.Tensor):
    half = open_base(home / "sd1-epsilon", device="cpu", dtype="bfloat16")
    control = loud(half).float()
    alone, controlled = (
        generate_pixels(half, ["red"], [0], it, FAST, (SIDE, SIDE)) for it in ([], [Unit(control, hints[0])])
    )
    assert grey_levels_apart(alone, controlled) > 5
    assert next(control.parameters()).dtype == torch.float32


@pytest.mark.parametrize("family", ["sd2-v_prediction", "sdxl-epsilon"])
def test_a_control_steers_every_family(home: Path, family: str, hints: torch.Tensor):
    base = open_base(home / family, device="cpu")
    alone, controlled = (
        generate_pixels(base, ["red"], [0], it, FAST, (SIDE, SIDE)) for it in ([], [Unit(loud(base), hints[0])])
    )
    assert grey_levels_apart(alone, controlled) > 5


def test_generating_changes_neither_base_nor_control_and_leaves_them_trainable(base: Base, hints: torch.Tensor):
    control = ControlNet.from_base(base.unet)
    before = {name: tensor.clone() for name, tensor in control.state_dict().items()}
    generate_pixels(base, ["red"], [0], [Unit(control, hints[0])], FAST)
    assert all(torch.equal(tensor, before[name]) for name, tensor in control.state_dict().items())
    heard = base.encode_prompts(["red"])
    features = control(torch.randn(1, 4, 8, 8), torch.tensor([5]), heard, control.encode_hint(hints[:1]))
    features.middle.sum().backward()
    assert control.zero_conv_middle.weight.grad is not None


def test_progress_counts_every_step_of_every_batch(base: Base):
    told: list[tuple[int, int]] = []
    generate(
        base,
        "red",
        count=3,
        steps=2,
        size=(SIDE, SIDE),
        batch_size=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interruption_between_steps_ends_the_call(base: Base):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(base, "red", steps=2, progress=interrupt)
    assert not torch.is_inference_mode_enabled()


def peer(folder: Path, scheduler: str) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    if scheduler == "unipc":
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe
