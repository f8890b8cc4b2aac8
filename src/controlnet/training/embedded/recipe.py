"""How the embedded base is made: VAE, text encoder, then U-Net and text encoder together, on procedural pictures.

Run: controlnet base train OUT          (two cores: about three hours)
To resume, run the same command again.

What it is for and what it knows stands in assets/embedded/README.md.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from controlnet.checkpoints.architecture import scheduler_config
from controlnet.checkpoints.folder import save_base_folder
from controlnet.checkpoints.parts import BaseParts
from controlnet.data.shapes import draw_scene
from controlnet.training.embedded.diffusion import (
    CENTRED,
    CENTRED_SCENES,
    COLOURS,
    LARGE,
    OUTLINES,
    SCENES,
    SHAPES_TOO,
    draw_centred_scene,
    train_diffusion,
)
from controlnet.training.embedded.text import make_tokenizer, train_text
from controlnet.training.embedded.vae import encode_scenes, train_vae


def make_embedded_base(
    out: Path,
    seed: int,
    device: torch.device,
    report: Callable[[str], None],
    last_steps: int = CENTRED.steps,
    compiled: bool = False,
) -> None:
    """Train whatever of the base is not trained yet in `out/work`, then write the base itself to `out`.

    `last_steps` is the length of the last stage. `compiled` makes the U-Net's steps a third faster after some
    minutes of compilation, where there is a C++ compiler.
    """
    work = out / "work"
    tokenizer = make_tokenizer(work / "tokenizer")
    vae = train_vae(work, seed, device, report)
    text = train_text(work, tokenizer, seed, device, report)
    scenes = [draw_scene(np.random.default_rng([seed, number])) for number in range(SCENES)]
    centred = [draw_centred_scene(np.random.default_rng([seed, 1, number])) for number in range(CENTRED_SCENES)]
    latents = encode_scenes(vae, work / "latents.safetensors", scenes, device, report)
    deviation = latents.std()
    latents = torch.cat([latents, encode_scenes(vae, work / "centred-latents.safetensors", centred, device, report)])
    stages = (COLOURS, SHAPES_TOO, OUTLINES, LARGE, replace(CENTRED, steps=last_steps))
    every = [*scenes, *centred]
    unet = train_diffusion(work, stages, latents / deviation, every, tokenizer, text, seed, device, report, compiled)
    vae.register_to_config(scaling_factor=1 / deviation.item())
    scheduler = {**scheduler_config("sd1"), "prediction_type": "epsilon"}
    save_base_folder(BaseParts(unet, vae, [text], [tokenizer], scheduler, "sd1"), out, torch.float16)
