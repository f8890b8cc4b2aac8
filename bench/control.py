"""Ours beside diffusers, in turns and with equal weights: one training step, and one picture under control.

    python bench/control.py [--quick] [--json FILE] [--base embedded]

Theirs trains as diffusers' train_controlnet.py does: it encodes pictures and prompts at every step, here from pixels
and tokens in memory; ours encodes them once, before. The last line has their time over ours: above 1, ours is faster.
"""

from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import DDPMScheduler
from measure import hint, in_turns, loud, pipeline_of, their_unet, twin
from torch import Tensor
from torch.nn.functional import mse_loss

from controlnet.base import Base, open_base, tokenize
from controlnet.control import ControlNet
from controlnet.data.circles import draw_circle, ring
from controlnet.data.shapes import render
from controlnet.devices import Device
from controlnet.generation.pipeline import generate
from controlnet.generation.sampling import initial_noise
from controlnet.generation.unit import Unit
from controlnet.images import to_hint, to_target
from controlnet.training.loss import Batch, Draw
from controlnet.training.module import ControlNetModule

PAIRS, BATCH, LEARNING_RATE = 64, 16, 1e-3
PROMPT, SAMPLING_STEPS, GUIDANCE_SCALE = "cyan circle with pink background", 20, 9.0


def learn(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def compare_training(base: Base, rounds: int) -> tuple[dict[str, float], str]:
    """Steps of both on the same pairs and noise; and how far the losses are apart."""
    drawn, side = [draw_circle(0, number) for number in range(PAIRS)], base.resolution
    targets = [to_target(render(scene, side)) for scene, _ in drawn]
    rings = [to_hint(ring(scene, side, thickness)) for scene, thickness in drawn]
    pixels, hints = (torch.tensor(np.stack(it)).permute(0, 3, 1, 2).to(base.device) for it in (targets, rings))
    captions = [scene.caption for scene, _ in drawn]
    tokens = tokenize(base.tokenizers[0], captions).squeeze(1).to(base.device)
    encoded = Batch(*base.encode_moments(pixels), base.encode_prompts(captions), hints)
    module = ControlNetModule(base, LEARNING_RATE).to(base.device)
    optimizer = module.configure_optimizers()
    model, unet = twin(base, module.control).requires_grad_(True), their_unet(base)
    their_optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    scheduler = DDPMScheduler.from_config(base.scheduler_config)

    def draw(number: int) -> tuple[slice, Draw]:
        start = number * BATCH % PAIRS
        samples = [(number, sample) for sample in range(start, start + BATCH)]
        drawn = Draw.of(0, samples, encoded.mean_bchw.shape[1:], len(base.schedule.alphas_cumprod), emptied=0.0)
        return slice(start, start + BATCH), drawn.to(base.device)

    def ours(number: int) -> float:
        rows, noise = draw(number)
        return learn(module.loss((encoded[rows], noise)), optimizer)

    def theirs(number: int) -> float:
        rows, noise = draw(number)
        posterior = base.vae.encode(pixels[rows]).latent_dist
        latent = (posterior.mean + posterior.std * noise.posterior_noise_bchw) * base.vae.config.scaling_factor
        noisy = scheduler.add_noise(latent, noise.noise_bchw, noise.timestep_b)
        heard = (noisy, noise.timestep_b, base.text_encoders[0](tokens[rows], return_dict=False)[0])
        skips, middle = model(*heard, controlnet_cond=hints[rows], return_dict=False)
        prediction = unet(
            *heard, down_block_additional_residuals=skips, mid_block_additional_residual=middle, return_dict=False
        )[0]
        return learn(mse_loss(prediction, noise.noise_bchw), their_optimizer)

    losses, figures = in_turns(ours, theirs, rounds)
    error = max(abs(mine - peers) / peers for mine, peers in losses)
    return figures, f"losses of {len(losses)} steps equal within {error:.0e}"


def compare_generation(base: Base, rounds: int) -> tuple[dict[str, float], str]:
    """The same picture by both, under a control with random weights; and how far the pictures are apart."""
    control = loud(ControlNet.from_base(base.unet))
    pipeline, ring_to_fill = pipeline_of(base, twin(base, control)), hint(base.resolution)
    shape_chw = (base.unet.config.in_channels, base.unet.config.sample_size, base.unet.config.sample_size)

    def ours(seed: int, strength: float = 1.0) -> Any:
        units = [Unit(control, ring_to_fill, strength)]
        [picture] = generate(base, PROMPT, units, steps=SAMPLING_STEPS, guidance_scale=GUIDANCE_SCALE, seed=seed)
        return np.asarray(picture, int)

    def theirs(seed: int) -> Any:
        noise = initial_noise([seed], shape_chw).to(base.device)
        picture = pipeline(
            PROMPT, ring_to_fill, None, None, SAMPLING_STEPS, guidance_scale=GUIDANCE_SCALE, latents=noise
        )
        return np.asarray(picture.images[0], int)

    pictures, figures = in_turns(ours, theirs, rounds)
    grey = max(abs(mine - peers).max() for mine, peers in pictures)
    moved = abs(pictures[0][0] - ours(0, strength=0)).max()
    return figures, f"pictures equal within {grey} grey levels (control moves them by {moved})"


def main(quick: bool = False, json: Path | None = None, base: str = "embedded", device: Device = "auto") -> None:
    """Seconds of ours and of diffusers, and their ratio.

    Args:
        quick: Few rounds.
        json: Also write the figures to this file.
        base: The base: "embedded", a folder in diffusers layout, or a hub id.
        device: Where to compute; auto takes CUDA, else MPS, else the CPU.
    """
    torch.manual_seed(0)
    opened = open_base(base, device, "float32")
    rounds = (3, 2) if quick else (15, 9)
    compared = {"train": compare_training(opened, rounds[0]), "generate": compare_generation(opened, rounds[1])}
    print(f"{'':<10}{'ours':>10}{'diffusers':>12}{'ratio':>8}   ({opened.device}, {torch.get_num_threads()} threads)")
    for name, (it, equal) in compared.items():
        print(f"{name:<10}{it['ours']:>8.3f} s{it['theirs']:>10.3f} s{it['ratio']:>8.2f}   {equal}")
    if json is not None:
        figures = {name: {**it, "equal": equal} for name, (it, equal) in compared.items()}
        json.write_text(dumps(figures, indent=2) + "\n", encoding="utf-8")
    print("ratio", *(f"{name} {it['ratio']:.2f}" for name, (it, _) in compared.items()))


if __name__ == "__main__":
    tyro.cli(main)
