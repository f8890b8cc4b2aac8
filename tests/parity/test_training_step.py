"""Loss and gradients of one whole step, from pictures and prompts on, are those of diffusers' classes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor
from torch.nn.functional import mse_loss

import tiny
from controlnet.base import open_base
from controlnet.training.module import ControlNetModule
from controlnet.training.pictures import encode_pictures
from parity.reference import relative_error
from parity.test_diffusers import diffusers_name, twin
from tiny_folders import save_tiny_base

TOLERANCE = 1e-4
BASES = [("sd1", "epsilon"), ("sd2", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon"), ("sdxl", "v_prediction")]
CASES = [*((base, "locked") for base in BASES), *((BASES[0], mode) for mode in ("unlocked", "only_mid"))]
CASES.append((("sdxl", "epsilon"), "unlocked"))
PROMPTS = ["red b", "a"]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, str]], Path]:
    made: dict[tuple[str, str], Path] = {}

    def folder(which: tuple[str, str]) -> Path:
        if which not in made:
            made[which] = save_tiny_base(tmp_path_factory.mktemp("base"), *which)  # type: ignore[arg-type]
        return made[which]

    return folder


def pictures() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    jpg, hint = torch.rand(2, 2, 128, 128, 3, generator=generator)
    return {"jpg": jpg * 2 - 1, "txt": PROMPTS, "hint": hint}


def diffusers_conditions(pipeline: Any, family: str) -> dict[str, Any]:
    if family != "sdxl":
        context, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
        return {"encoder_hidden_states": context}
    context, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    sizes = torch.tensor([[128, 128, 0, 0, 128, 128]] * 2)
    return {"encoder_hidden_states": context, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


def diffusers_step(folder: Path, family: str, module: ControlNetModule, draw: Any, mode: str) -> SimpleNamespace:
    """As diffusers' training scripts do it."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    unet, vae, batch = pipeline.unet.requires_grad_(mode == "unlocked"), pipeline.vae, pictures()
    control = twin(unet, module.control)
    posterior = vae.encode(batch["jpg"].permute(0, 3, 1, 2)).latent_dist
    latent = (posterior.mean + posterior.std * draw.posterior_noise_bchw) * vae.config.scaling_factor
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(latent, draw.noise_bchw, draw.timestep_b)
    conditions = diffusers_conditions(pipeline, family)
    hint = batch["hint"].permute(0, 3, 1, 2)
    skips, middle = control(noisy, draw.timestep_b, controlnet_cond=hint, return_dict=False, **conditions)
    if mode == "only_mid":
        skips = [torch.zeros_like(skip) for skip in skips]
    prediction = unet(
        noisy,
        draw.timestep_b,
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
        **conditions,
    ).sample
    is_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latent, draw.noise_bchw, draw.timestep_b) if is_velocity else draw.noise_bchw
    loss = mse_loss(prediction, target)
    loss.backward()
    return SimpleNamespace(loss=loss, control=dict(control.named_parameters()), unet=dict(unet.named_parameters()))


@pytest.mark.parametrize(("which", "mode"), CASES)
def test_loss_and_every_gradient_are_those_of_diffusers(
    which: tuple[str, str], mode: str, folder_of: Callable[[tuple[str, str]], Path]
) -> None:
    base = open_base(folder_of(which), device="cpu")
    module = ControlNetModule(base, only_mid_control=mode == "only_mid", sd_unlocked=mode == "unlocked")
    decoder, module.control.decoder = module.control.decoder, None
    tiny.randomised(module.control, seed=5)
    step = encode_pictures(base, pictures(), seed=0, number=0, first=0, emptied=0.0)
    theirs = diffusers_step(folder_of(which), which[0], module, step[1], mode)

    module.control.decoder = decoder
    loss = module.loss(step)
    loss.backward()
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    compared = 0
    for name, parameter in module.control.named_parameters():
        if name.startswith("decoder."):
            of_unet = name.removeprefix("decoder.").replace("out.0", "conv_norm_out", 1).replace("out.2", "conv_out", 1)
            of_unet = of_unet if of_unet.startswith("conv") else name.removeprefix("decoder.")
            other = theirs.unet.get(of_unet)
        else:
            other = theirs.control[diffusers_name(name)]
        if parameter.requires_grad and parameter.grad is not None:
            assert other is not None, name
            compared += check(name, parameter.grad, other.grad)
    assert compared > (40 if mode == "only_mid" else 60)
    decoder_names = {name for name in module.trained() if name.startswith("decoder.")}
    assert bool(decoder_names) == (mode == "unlocked")


def check(name: str, ours: Tensor, theirs: Tensor | None) -> int:
    """1 if there is a gradient that says something."""
    if theirs is None or theirs.norm() < 1e-7:
        assert ours.norm() < 1e-6, name
        return 0
    assert relative_error(ours, theirs) < TOLERANCE, name
    return 1
