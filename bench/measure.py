"""What benches share: a base of a true size with random weights, diffusers' twins of ours, calls in turns, processes of
their own to measure in."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from controlnet.base import Base, open_base
from controlnet.control import ControlNet
from controlnet.data.circles import draw_circle, ring
from controlnet.devices import has_fast_bfloat16
from controlnet.speed import suit

SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # the rest is the class's default
SD15_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SD15_VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
WARM_UP = 2  # rounds whose time does not count

Call = Callable[[int], Any]  # round -> a number, picture or latent on the CPU, so a GPU has been waited for


def cpu_precision() -> torch.dtype:
    """What this processor is fastest in: bfloat16 where it multiplies it; elsewhere that is 10 to 50 times slower."""
    return torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32


def true_size(with_vae: bool = False, **unet: Any) -> Base:
    """As large as SD 1.5, with random weights in `cpu_precision`; the VAE is the embedded base's, unless it takes part.

    `unet` is what its U-Net has other than that of SD 1.5.
    """
    small = open_base(dtype="bfloat16", device="cpu")
    tokenizer = small.tokenizers[0]
    torch.set_default_dtype(cpu_precision())
    torch.manual_seed(0)
    model = UNet2DConditionModel(**{**SD15, **unet}).requires_grad_(False)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextModel(CLIPTextConfig(**SD15_TEXT, **ids))
    vae = AutoencoderKL(**SD15_VAE) if with_vae else small.vae
    torch.set_default_dtype(torch.float32)
    suit(model)
    return Base(model, vae, [text], small.tokenizers, small.scheduler_config, "sd1", "random")


def loud(control: ControlNet) -> ControlNet:
    """With zero convolutions that are heard."""
    for conv in (*control.zero_convs, control.zero_conv_middle, control.hint_encoder[-1]):
        nn.init.normal_(conv.weight, std=0.02)
    return control.requires_grad_(False)


def twin(base: Base, control: ControlNet) -> ControlNetModel:
    """diffusers' ControlNet with the same hint encoder and zero convolutions; the rest of both copies the base."""
    model = ControlNetModel.from_unet(base.unet)
    model.controlnet_down_blocks.load_state_dict(control.zero_convs.state_dict())
    model.controlnet_mid_block.load_state_dict(control.zero_conv_middle.state_dict())
    hint_encoders = (model.controlnet_cond_embedding, control.hint_encoder)
    convs = [[layer for layer in each.modules() if isinstance(layer, nn.Conv2d)] for each in hint_encoders]
    for theirs, ours in zip(*convs, strict=True):
        theirs.load_state_dict(ours.state_dict())
    return model.to(base.device, base.dtype)


def their_unet(base: Base) -> UNet2DConditionModel:
    """With the weights of the base's, computing in diffusers' own way."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(base.unet.config)
    unet.load_state_dict(base.unet.state_dict(), assign=True)
    unet.set_attn_processor(AttnProcessor2_0())
    return unet.requires_grad_(False)


def pipeline_of(base: Base, controlnet: ControlNetModel) -> StableDiffusionControlNetPipeline:
    """diffusers' own, at its best settings on a CPU, sampling by DDIM; its U-Net shares the weights of the base's."""
    unet = their_unet(base)
    for model in (unet, controlnet):
        model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    controlnet.set_attn_processor(AttnProcessor2_0())
    parts = {"unet": unet, "vae": base.vae, "text_encoder": base.text_encoders[0], "tokenizer": base.tokenizers[0]}
    parts |= {"scheduler": DDIMScheduler.from_config(base.scheduler_config), "controlnet": controlnet}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionControlNetPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def hint(side: int) -> Image.Image:
    """A ring."""
    return Image.fromarray(ring(draw_circle(0, 0)[0], side, 2))


def in_turns(
    ours: Call, theirs: Call, rounds: int, warm_up: int = WARM_UP
) -> tuple[list[tuple[Any, Any]], dict[str, float]]:
    """What both give, round after round, each first in every other; and their median seconds."""
    results, seconds = {ours: [], theirs: []}, {ours: [], theirs: []}
    for number in range(warm_up + rounds):
        for call in (ours, theirs) if number % 2 else (theirs, ours):
            start = time.perf_counter()
            results[call].append(call(number))
            seconds[call].append(time.perf_counter() - start)
    mine, peers = (median(seconds[call][warm_up:]) for call in (ours, theirs))
    pairs = list(zip(results[ours], results[theirs], strict=True))
    return pairs, {"ours": mine, "theirs": peers, "ratio": peers / mine}


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(script: str, *words: str) -> Any:
    """What the script, called with these words, prints as JSON in its last line; CalledProcessError if it fails."""
    done = subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def free_memory() -> int:
    """Bytes that a process could have now, where the system tells (Linux); else 0."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)
