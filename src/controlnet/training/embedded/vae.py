"""The embedded base's VAE, and pictures as its latents."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from controlnet.atomic import write_atomically
from controlnet.data.shapes import Scene, draw_scene, render
from controlnet.training.embedded.fit import Stage, fit

RESOLUTION = 128

# The classes and levels of Stable Diffusion 1.5's VAE (128-256-512-512 there). Two groups, so that a group of the
# narrowest level still holds four channels: with one channel per group, normalisation would erase flat colours.
VAE: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(8, 16, 32, 64),
    layers_per_block=2,
    norm_num_groups=2,
    sample_size=RESOLUTION,
)
VAE_KL = 1e-6  # weight of the KL term per latent number, against a mean absolute error per colour number

VAE_CROPS = Stage("vae-crops", steps=3_000, batch=16, learning_rate=2e-3, decay=0.1, ema=0.995)
VAE_WHOLE = Stage("vae-whole", steps=600, batch=8, learning_rate=1e-3, decay=0.9, ema=0.995)


def to_pixels(pictures: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """(n, 3, H, W) float32 in [-1, 1] from n uint8 RGB pictures."""
    pixels = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).to(memory_format=torch.channels_last)


@torch.no_grad()
def pass_colours_through(vae: nn.Module) -> None:
    """Start as a blurring identity: the trunk's convolutions pass channels on and every residual branch is silent.

    From here the VAE only has to learn edges; from the usual start it first has to learn what a colour is, and is
    six times as far from the picture after the same minute.
    """
    branches = set()
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            branches |= {module.conv1, module.conv2}
            nn.init.zeros_(module.conv2.weight), nn.init.zeros_(module.conv2.bias)
        if isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight), nn.init.zeros_(module.to_out[0].bias)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d) and module not in branches:
            module.weight.mul_(0.5).add_(nn.init.dirac_(torch.zeros_like(module.weight)))


def train_vae(folder: Path, seed: int, device: torch.device, report: Callable[[str], None]) -> AutoencoderKL:
    """The VAE: first on random crops of half the side, then on whole pictures, whose statistics its norms must meet."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(**VAE)
    pass_colours_through(vae)
    vae.to(device, memory_format=torch.channels_last)

    def loss(stage: Stage, crop: int, step: int, part: slice) -> Tensor:
        random = stage.random(seed, step)
        pictures = []
        for _ in range(stage.batch):
            x, y = random.integers(0, RESOLUTION - crop + 1, size=2)
            pictures.append(render(draw_scene(random), RESOLUTION)[y : y + crop, x : x + crop])
        pixels = to_pixels(pictures[part], device)
        posterior = vae.encode(pixels).latent_dist
        shape = (stage.batch, *posterior.mean.shape[1:])
        noise = torch.from_numpy(random.standard_normal(shape, dtype=np.float32)[part]).to(device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().sum() / posterior.mean.numel()
        return (decoded - pixels).abs().mean() + VAE_KL * divergence

    for stage, crop in ((VAE_CROPS, RESOLUTION // 2), (VAE_WHOLE, RESOLUTION)):
        fit(stage, vae, partial(loss, stage, crop), folder, report)
    return vae.eval().requires_grad_(False)


def encode_scenes(
    vae: AutoencoderKL, path: Path, scenes: Sequence[Scene], device: torch.device, report: Callable[[str], None]
) -> Tensor:
    """Latents (n, 4, 16, 16) float32 of n scenes as the VAE gives them, unscaled, kept in `path`."""
    if not path.exists():
        latents = []
        for first in range(0, len(scenes), 64):
            pixels = to_pixels([render(scene, RESOLUTION) for scene in scenes[first : first + 64]], device)
            with torch.no_grad():
                latents.append(vae.encode(pixels).latent_dist.mean.cpu())
            if first % 4096 == 0:
                report(f"encoded {first}/{len(scenes)}")
        stacked = torch.cat(latents).contiguous()
        write_atomically(path, lambda temporary: save_file({"latents": stacked}, temporary))
    return load_file(path)["latents"]
