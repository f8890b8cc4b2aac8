"""How the embedded base is made: VAE, text encoder, then U-Net and text encoder together, on procedural pictures.

Run: controlnet base train OUT          (two cores: about three hours)
To resume, run the same command again.

What it is for and what it knows stands in assets/embedded/README.md.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from controlnet.atomic import write_atomically
from controlnet.checkpoints.architecture import scheduler_config
from controlnet.checkpoints.folder import save_base_folder
from controlnet.checkpoints.parts import BaseParts
from controlnet.data.colours import NAMES, RGB
from controlnet.data.shapes import RADIUS, SHAPES, Scene, draw_scene, render
from controlnet.devices import has_fast_bfloat16
from controlnet.training.fit import Stage, fit

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


def fast_numbers(device: torch.device) -> torch.autocast:
    """bfloat16 for convolutions and matrix products where the device is fast at it; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))


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


# CLIP's text model as Stable Diffusion 1.5 has it (12 layers of 768 there), heads of width 64 as there.
TEXT: dict[str, Any] = dict(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
)
WORDS = sorted({word for name in NAMES for word in name.split()} | set(SHAPES) | {"with", "background"})


def byte_letters() -> list[str]:
    """The 256 characters by which CLIP's tokenizer writes bytes: printable ones as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]
    return [chr(code) for code in printable + others]


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the world is one token, and any other text falls into letters.

    Merges grow words from their ends (d</w>, ld</w>, old</w>, gold</w>): only the last pair of a word can then ever
    merge, so that "gold" cannot be disturbed by the merges of "golden" or "old".
    """
    letters = byte_letters()
    suffixes = [(word[i], word[i + 1 :] + "</w>") for word in WORDS for i in reversed(range(len(word) - 1))]
    merges = list(dict.fromkeys(suffixes))
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str], device: torch.device) -> Tensor:
    encoded = tokenizer(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return cast(Tensor, encoded.input_ids).to(device)


TEXT_ALONE = Stage("text", steps=1_500, batch=48, learning_rate=2e-3, decay=0.5, ema=0.99)


def train_text(
    folder: Path, tokenizer: CLIPTokenizer, seed: int, device: torch.device, report: Callable[[str], None]
) -> CLIPTextModel:
    """The text encoder alone: every token from the end of the text on must tell both colours and the shape.

    This stands in for CLIP's own pretraining on pictures: the U-Net starts on words that already mean something.
    """
    torch.manual_seed(seed)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **special, **TEXT))
    parts = nn.ModuleDict({"text": text, "colours": nn.Linear(128, 6), "shape": nn.Linear(128, len(SHAPES))})
    parts.to(device)

    def loss(step: int, part: slice) -> Tensor:
        random = TEXT_ALONE.random(seed, step)
        scenes = [draw_scene(random) for _ in range(TEXT_ALONE.batch)][part]
        colours = np.array([[*RGB[s.colour], *RGB[s.background]] for s in scenes], np.float32) / 127.5 - 1
        shapes = torch.tensor([SHAPES.index(s.shape) for s in scenes], device=device)
        # a column after the end of the longest text, and random ones up to the last
        columns = [int(column) for column in random.integers(20, 77, size=4)]
        with fast_numbers(device):
            hidden = text(tokenize(tokenizer, [s.caption for s in scenes], device)).last_hidden_state
        hidden = hidden[:, columns].float()
        wrong_colours = (parts["colours"](hidden) - torch.from_numpy(colours).to(device)[:, None]).abs().mean()
        wrong_shapes = F.cross_entropy(parts["shape"](hidden).flatten(0, 1), shapes.repeat_interleave(len(columns)))
        return wrong_colours + 0.1 * wrong_shapes

    fit(TEXT_ALONE, parts, loss, folder, report)
    return text


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
    """U-Net and text encoder together on `latents` (n, 4, 16, 16) of deviation 1, noise keyed by (seed, step).

    The first SCENES are of the world as it is; what follows are the centred scenes, which only their stage sees.

    The squared error of the noise divided by the signal's share is that of the velocity (Salimans and Ho 2022).
    """
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
    latents = latents.to(device)

    def loss(stage: Stage, step: int, part: slice) -> Tensor:
        random, batch = stage.random(seed, step), stage.batch
        which = random.integers(SCENES, size=batch)
        if stage.name in FAVOURED:
            kind = favoured[stage.name]
            which = np.where(random.random(batch) < FAVOURED[stage.name], kind[which % len(kind)], which)
        chosen, dropped, timestep, noise = (
            torch.from_numpy(drawn[part]).to(device)
            for drawn in (
                which,
                random.random(batch) < EMPTY_PROMPTS,
                ((np.arange(batch) + random.random(batch)) * (1000 / batch)).astype(int),
                random.standard_normal((batch, *latents.shape[1:]), dtype=np.float32),
            )
        )
        share = signal_shares[timestep][:, None, None, None]
        noisy = (share.sqrt() * latents[chosen] + (1 - share).sqrt() * noise).to(memory_format=torch.channels_last)
        with fast_numbers(device):
            context = text(torch.where(dropped[:, None], nothing, tokens[chosen])).last_hidden_state
            prediction = unet(noisy, timestep, context).sample
        return ((prediction.float() - noise) ** 2 * weight(stage, share)).mean()

    for stage in stages:
        fit(stage, parts, partial(loss, stage), folder, report)
    return unet


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
