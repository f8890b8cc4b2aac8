"""With the same weights, noise and settings, the final latents of diffusers' ControlNet pipelines."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

import tiny_folders
from controlnet.base import Base, open_base
from controlnet.control import ControlNet
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from parity.reference import relative_error
from parity.test_diffusers import twin
from tiny_generation import latents, loud, request

SIDE, STEPS, SEED = 64, 4, 3
STRENGTH = 0.75  # of the picture to start from: three of the four steps
TOLERANCE = 1e-4
PEERS = {
    "ddim": diffusers.DDIMScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
PREFIX = {"sd1": "StableDiffusion", "sdxl": "StableDiffusionXL"}
LONG = {("sdxl", "unipc"), ("sdxl", "euler")}  # both families and all schedulers are each seen without them
DRAWN = torch.Generator().manual_seed(7)
HINTS = torch.rand(2, 3, SIDE, SIDE, generator=DRAWN)
PICTURE = torch.rand(3, SIDE, SIDE, generator=DRAWN)
MASK = torch.zeros(1, SIDE, SIDE)  # whole cells of the latent, of which diffusers takes one pixel each
MASK[:, 16:48, 8:40] = 1

schedulers = pytest.mark.parametrize("scheduler", PEERS)
everywhere = pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        pytest.param(family, scheduler, marks=pytest.mark.slow if (family, scheduler) in LONG else ())
        for family in PREFIX
        for scheduler in PEERS
    ],
)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Base, Any, list[ControlNet]]]:
    """By family: our base, the parts of diffusers' pipeline, two controls."""
    made = {}
    for family in PREFIX:
        folder = tmp_path_factory.mktemp(family)
        pipeline = tiny_folders.make_pipeline(folder, family, "epsilon")
        pipeline.save_pretrained(folder)
        base = open_base(folder, device="cpu")
        made[family] = base, pipeline.components, [loud(base, seed) for seed in (1, 2)]
    return made


@pytest.fixture(autouse=True)
def mean_latents(monkeypatch: pytest.MonkeyPatch):
    """diffusers starts from a latent drawn from the picture's posterior, we from its mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def theirs(opened: Any, family: str, task: str, scheduler: str, controls: list[ControlNet], **options: Any) -> Tensor:
    base, parts, _ = opened[family]
    models = [twin(base.unet, control) for control in controls]
    many = len(models) > 1
    parts = parts | {"controlnet": models if many else models[0], "scheduler": None}
    parts["scheduler"] = PEERS[scheduler].from_config(base.scheduler_config)
    pipeline = getattr(diffusers, f"{PREFIX[family]}ControlNet{task}Pipeline")(**parts, **FLAGS[family])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt="red",
        negative_prompt="bee",
        num_inference_steps=STEPS,
        guidance_scale=9.0,
        controlnet_conditioning_scale=options.pop("strengths", [1.0] * len(models) if many else 1.0),
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **options,
    ).images


FLAGS: dict[str, dict[str, Any]] = {
    "sd1": {"requires_safety_checker": False},
    "sdxl": {"force_zeros_for_empty_prompt": False, "add_watermarker": False},
}


def ours(opened: Any, family: str, scheduler: str, units: list[Unit], strength: float = 1.0, **asked: Any) -> Tensor:
    settings = Settings(STEPS, 9.0, scheduler, "bee", image_strength=strength)
    return latents(request(opened[family][0], units, settings, seeds=[SEED], size_hw=(SIDE, SIDE), **asked))


def check(mine: Tensor, peers: Tensor, other: Tensor) -> None:
    """Equal to the peer's, and what is compared matters: without it the latent is another."""
    assert relative_error(mine, peers) < TOLERANCE
    assert relative_error(other, peers) > 100 * TOLERANCE


@everywhere
def test_text_to_image(opened, family: str, scheduler: str):
    control = opened[family][2][0]
    peers = theirs(opened, family, "", scheduler, [control], image=HINTS[:1])
    check(ours(opened, family, scheduler, [Unit(control, HINTS[0])]), peers, ours(opened, family, scheduler, []))


@everywhere
def test_image_to_image(opened, family: str, scheduler: str):
    control, unit = opened[family][2][0], Unit(opened[family][2][0], HINTS[0])
    peers = theirs(
        opened, family, "Img2Img", scheduler, [control], image=PICTURE[None], control_image=HINTS[:1], strength=STRENGTH
    )
    mine = ours(opened, family, scheduler, [unit], STRENGTH, image=PICTURE)
    check(mine, peers, ours(opened, family, scheduler, [unit], STRENGTH, image=1 - PICTURE))


@everywhere
@pytest.mark.parametrize("strength", [STRENGTH, 1.0])
def test_inpainting(opened, family: str, scheduler: str, strength: float):
    control, unit = opened[family][2][0], Unit(opened[family][2][0], HINTS[0])
    peers = theirs(
        opened,
        family,
        "Inpaint",
        scheduler,
        [control],
        image=PICTURE[None],
        mask_image=MASK[None],
        control_image=HINTS[:1],
        strength=strength,
    )
    mine = ours(opened, family, scheduler, [unit], strength, image=PICTURE, mask=MASK)
    check(mine, peers, ours(opened, family, scheduler, [unit], strength, image=PICTURE, mask=1 - MASK))


@schedulers
def test_two_controls(opened, scheduler: str):
    controls = opened["sd1"][2]
    peers = theirs(opened, "sd1", "", scheduler, controls, image=[HINTS[:1], HINTS[1:]], strengths=[0.7, 0.4])
    units = [Unit(control, hint, strength) for control, hint, strength in zip(controls, HINTS, [0.7, 0.4], strict=True)]
    check(ours(opened, "sd1", scheduler, units), peers, ours(opened, "sd1", scheduler, units[:1]))


@schedulers
def test_a_window(opened, scheduler: str):
    control = opened["sd1"][2][0]
    window = {"control_guidance_start": 0.25, "control_guidance_end": 0.75}
    peers = theirs(opened, "sd1", "", scheduler, [control], image=HINTS[:1], **window)
    mine = ours(opened, "sd1", scheduler, [Unit(control, HINTS[0], start=0.25, end=0.75)])
    check(mine, peers, ours(opened, "sd1", scheduler, [Unit(control, HINTS[0])]))


@everywhere
def test_guess_mode_with_their_weights(opened, family: str, scheduler: str):
    """Theirs are log-even from 0.1 to 1; the original's 0.825^(12 - i) differ in the third digit."""
    control = opened[family][2][0]
    peers = theirs(opened, family, "", scheduler, [control], image=HINTS[:1], guess_mode=True)
    weights = np.logspace(-1, 0, len(control.zero_convs) + 1).tolist()
    mine = ours(opened, family, scheduler, [Unit(control, HINTS[0], mode="guess", layer_weights=weights)])
    check(mine, peers, ours(opened, family, scheduler, [Unit(control, HINTS[0])]))
