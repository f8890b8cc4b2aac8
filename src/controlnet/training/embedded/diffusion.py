"""The embedded base's U-Net, and with it the text encoder: stages, each of which learns what the one before blurred."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from controlnet.checkpoints.architecture import scheduler_config
from controlnet.data.shapes import RADIUS, Scene, draw_scene
from controlnet.training.embedded.fit import Stage, fast_numbers, fit
from controlnet.training.embedded.text import TEXT, tokenize
from controlnet.training.embedded.vae import RESOLUTION

# Stable Diffusion 1.5's U-Net (320-640-1280-1280 there); heads as wide as there.
UNET: dict[str, Any] = dict(
    sample_size=RESOLUTION // 8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 64, 96, 96),
    layers_per_block=2,
    attention_head_dim=2,  # diffusers' name for the number of heads; 8 there, of width 40
    cross_attention_dim=TEXT["hidden_size"],
    norm_num_groups=16,
)
SCENES = 32_768  # drawn once and encoded once
EMPTY_PROMPTS = 0.1  # so that the base also knows pictures without words, for guidance
# First what is where and of which colour: each error counts as that of the velocity does, which the noisiest steps
# dominate; then which shape, which is decided further down; then its outline, further down still, but above the noise
# of the VAE's own texture; then mostly large and whole shapes, whose outlines are easier to get right; and at last
# mostly shapes in the middle, as photographs hold their subjects: with the place given, the words decide. The first and
# the third end before their rates are down.
COLOURS = Stage("diffusion", steps=6_800, stop=5_500, batch=32, learning_rate=1e-3, decay=0.4, ema=0.999, parts=2)
SHAPES_TOO = Stage("shapes", steps=2_600, batch=32, learning_rate=6e-4, decay=0.6, ema=0.998, parts=2)
OUTLINES = Stage("outlines", steps=12_500, stop=2_500, batch=32, learning_rate=8e-4, decay=0.7, ema=0.999, parts=2)
LARGE = Stage("large", steps=8_500, batch=32, learning_rate=7e-4, decay=7 / 8.5, ema=0.999, parts=2)
CENTRED = Stage("centred", steps=7_000, batch=32, learning_rate=7e-4, decay=0.6, ema=0.999, parts=2)
# By stage: the most that one squared error of the noise counts, and the signal-to-noise ratio above which it fades.
WEIGHTS = {
    "diffusion": (math.inf, math.inf),
    "shapes": (3.0, math.inf),
    "outlines": (6.0, 5.0),
    "large": (6.0, 5.0),
    "centred": (6.0, 5.0),
}
FAVOURED = {"large": 0.85, "centred": 0.75}  # share of the pictures of that stage which are of its kind
CENTRED_SCENES = 16_384
MIDDLE = (0.45, 0.55)  # where a centred shape's centre lies, each way
MIDDLING = (0.28, 0.38)  # its radius


def is_large(scene: Scene) -> bool:
    """At least half as large as the largest, and whole."""
    whole = all(scene.radius <= place <= 1 - scene.radius for place in (scene.x, scene.y))
    return scene.radius >= RADIUS[1] / 2 and whole


def draw_centred_scene(random: np.random.Generator) -> Scene:
    x, y = random.uniform(*MIDDLE, size=2)
    return replace(draw_scene(random), x=float(x), y=float(y), radius=float(random.uniform(*MIDDLING)))


def weight(stage: Stage, signal_share: Tensor) -> Tensor:
    """What the squared error of the noise counts at a share of signal, alphas_cumprod."""
    heaviest, clear = WEIGHTS[stage.name]
    ratio = signal_share / (1 - signal_share)
    return (1 / signal_share).clamp(max=heaviest) * (clear / ratio).clamp(max=1.0)


@dataclass(frozen=True)
class Denoising:
    """What U-Net and text encoder learn from: `latents` (n, 4, 16, 16) of deviation 1 with their captions."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    latents: Tensor
    tokens: Tensor
    nothing: Tensor
    """Of no words, (1, 77)."""
    favoured: dict[str, NDArray[np.intp]]
    """By stage, the numbers of the pictures that it favours."""
    signal_shares: Tensor
    seed: int

    def loss(self, stage: Stage, step: int, part: slice) -> Tensor:
        """The squared error of the noise, weighted: over the signal's share it is that of the velocity (Salimans and Ho
        2022)."""
        device = self.latents.device
        which, dropped, timestep, noise = (
            torch.from_numpy(drawn[part]).to(device) for drawn in self._draw(stage, step)
        )
        share = self.signal_shares[timestep][:, None, None, None]
        noisy = share.sqrt() * self.latents[which] + (1 - share).sqrt() * noise
        with fast_numbers(device):
            context = self.text(torch.where(dropped[:, None], self.nothing, self.tokens[which])).last_hidden_state
            prediction = self.unet(noisy.to(memory_format=torch.channels_last), timestep, context).sample
        return ((prediction.float() - noise) ** 2 * weight(stage, share)).mean()

    def _draw(self, stage: Stage, step: int) -> tuple[NDArray[Any], ...]:
        """Of a batch, by (seed, step): which pictures, whose words are dropped, timesteps spread evenly, noise."""
        random, batch = stage.random(self.seed, step), stage.batch
        which = random.integers(SCENES, size=batch)
        if stage.name in FAVOURED:
            kind = self.favoured[stage.name]
            which = np.where(random.random(batch) < FAVOURED[stage.name], kind[which % len(kind)], which)
        dropped = random.random(batch) < EMPTY_PROMPTS
        timestep = ((np.arange(batch) + random.random(batch)) * (1000 / batch)).astype(int)
        return which, dropped, timestep, random.standard_normal((batch, *self.latents.shape[1:]), dtype=np.float32)


def train_diffusion(
    folder: Path,
    stages: Sequence[Stage],
    latents: Tensor,
    scenes: Sequence[Scene],
    tokenizer: CLIPTokenizer,
    text: CLIPTextModel,
    seed: int,
    device: torch.device,
    report: Callable[[str], None],
    compiled: bool = False,
) -> UNet2DConditionModel:
    """U-Net and text encoder together. The first SCENES are of the world as it is; what follows are the centred scenes,
    which only their stage sees."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**UNET).to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # twice as fast as torch's fused one at these widths
    if compiled:
        unet.compile()
    parts = nn.ModuleDict({"unet": unet, "text": text.requires_grad_(True)})
    tokens = tokenize(tokenizer, [scene.caption for scene in scenes], device)
    large = np.flatnonzero([is_large(scene) for scene in scenes[:SCENES]])
    favoured = {"large": large, "centred": np.arange(SCENES, len(scenes))}
    nothing = tokenize(tokenizer, [""], device)
    signal_shares = DDIMScheduler.from_config(scheduler_config("sd1")).alphas_cumprod.to(device)
    denoising = Denoising(unet, text, latents.to(device), tokens, nothing, favoured, signal_shares, seed)
    for stage in stages:
        fit(stage, parts, partial(denoising.loss, stage), folder, report)
    return unet
