"""How base and control are computed: none of it changes what is learned, but for rounding and another VAE."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.utils.checkpoint import checkpoint

from controlnet.base import Base, open_base
from controlnet.checkpoints.folder import load_part
from controlnet.devices import fastest_dtype
from controlnet.errors import UserError
from controlnet.training.config import TrainConfig
from controlnet.training.options import ModelOptions

ATTENTION = {"sdpa": AttnProcessor2_0, "plain": AttnProcessor}


def opened(config: TrainConfig, base: Base | None = None) -> Base:
    """The base that is trained on, set up; `base`, if given, stands for the config's.

    UserError for one that is not there, and for one of inpainting.
    """
    if base is None:
        dtype = fastest_dtype(config.precision, config.device)
        base = open_base(device=config.device, dtype=dtype, **config.how_to_open())
    if base.unet.config.in_channels != base.vae.config.latent_channels:
        raise UserError(f"base {base.source} was made for inpainting; controls are trained on plain bases")
    set_up(base, config)
    return base


def set_up(base: Base, options: ModelOptions) -> None:
    """Before the base is used and a control made of it, which computes as it does."""
    if options.pretrained_vae is not None:
        base.vae = open_vae(Path(options.pretrained_vae), base)
    if options.attention != "auto":
        base.unet.set_attn_processor(ATTENTION[options.attention]())
    if options.allow_tf32:
        torch.set_float32_matmul_precision("high")


def open_vae(folder: Path, base: Base) -> AutoencoderKL:
    """A VAE from its folder in diffusers layout, locked, as precise as the base's and where that is."""
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--pretrained-vae {folder}: no config.json; expected the folder of a VAE in diffusers layout, such as "
            "`hf download REPOSITORY --local-dir FOLDER` makes"
        )
    vae: AutoencoderKL = load_part(AutoencoderKL, folder, base.vae.dtype)
    return vae.to(base.vae.device).eval().requires_grad_(False)


def checkpoint_gradients(*parts: nn.Module) -> None:
    """Compute the activations of every block a second time in the backward pass, instead of keeping them."""
    for part in parts:
        for module in part.modules():
            if hasattr(module, "gradient_checkpointing"):  # diffusers' blocks
                module._gradient_checkpointing_func = _again  # type: ignore[assignment]
                module.gradient_checkpointing = True  # type: ignore[assignment]


def _again(*arguments: object) -> object:
    return checkpoint(*arguments, use_reentrant=False)
