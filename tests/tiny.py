"""Tiny bases of every family's shape, with every weight random.

The stock U-Net ends in a zero convolution and its norms start at one and zero: on it the theory tests would be vacuous.
"""

from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from controlnet.control import Prompt

Family = Literal["sd1", "sd2", "sdxl"]
FAMILIES: tuple[Family, ...] = ("sd1", "sd2", "sdxl")
CONTEXT_WIDTH, POOLED_WIDTH, SIZE_WIDTH = 24, 16, 8

FOUR_LEVELS = {
    "block_out_channels": (32, 64, 128, 128),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SHAPES = {
    # diffusers calls the number of heads `attention_head_dim`
    "sd1": {**FOUR_LEVELS, "attention_head_dim": 8},
    "sd2": {**FOUR_LEVELS, "attention_head_dim": (4, 8, 16, 16), "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (4, 8, 16),
        "transformer_layers_per_block": (1, 1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": POOLED_WIDTH + 6 * SIZE_WIDTH,
    },
}


def unet(family: Family, seed: int = 0) -> UNet2DConditionModel:
    """A locked U-Net with 32 base channels and a context width of 24, in evaluation mode."""
    made = UNet2DConditionModel(sample_size=16, cross_attention_dim=CONTEXT_WIDTH, **SHAPES[family])
    return randomised(made, seed).eval().requires_grad_(False)


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, at a scale that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise)
    return module


def prompt(family: Family, batch: int = 2, seed: int = 1) -> Prompt:
    generator = torch.Generator().manual_seed(seed)
    context_btd = torch.randn(batch, 7, CONTEXT_WIDTH, generator=generator)
    if family != "sdxl":
        return Prompt(context_btd)
    sizes = torch.randint(0, 1024, (batch, 6), generator=generator)
    return Prompt(
        context_btd, {"text_embeds": torch.randn(batch, POOLED_WIDTH, generator=generator), "time_ids": sizes}
    )


def inputs(
    family: Family, batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 2
) -> tuple[Tensor, Tensor, Prompt, Tensor]:
    """Latent, timestep, prompt and hint. From 8x8 the middle would be one token, whose attention has no gradient."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, 4, *size, generator=generator)
    timestep = torch.randint(0, 1000, (batch,), generator=generator)
    hint = torch.rand(batch, 3, 8 * size[0], 8 * size[1], generator=generator)
    return latent, timestep, prompt(family, batch), hint
