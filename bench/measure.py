"""What benches share: a base of a true size with random weights, and processes of their own to measure in."""

import json
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from controlnet.base import Base, open_base
from controlnet.control import ControlNet
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


def true_size(with_vae: bool = False, **unet: Any) -> Base:
    """As large as SD 1.5, with random weights in bfloat16; the VAE is the embedded base's, unless it takes part.

    `unet` is what its U-Net has other than that of SD 1.5.
    """
    small = open_base(dtype="bfloat16", device="cpu")
    tokenizer = small.tokenizers[0]
    torch.set_default_dtype(torch.bfloat16)
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
