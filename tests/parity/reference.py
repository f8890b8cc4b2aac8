"""The reference numbers and the models that they were computed with."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from controlnet.checkpoints import ldm
from controlnet.control import ControlNet
from parity import weights

HERE = Path(__file__).parent
FAMILIES: dict[str, tiny.Family] = {"sd15": "sd1", "sd21": "sd2"}


def numbers(name: str, kind: str) -> dict[str, Tensor]:
    return shared_numbers(kind) | load_file(HERE / f"{name}-small.{kind}.safetensors")


def shared_numbers(kind: str) -> dict[str, Tensor]:
    return load_file(HERE / f"small.{kind}.safetensors")


def original_tensors(name: str) -> dict[str, Tensor]:
    made = weights.state_dict(HERE / f"{name}-small.keys.tsv")
    return {key: torch.from_numpy(value) for key, value in made.items()}


def read_into(model: nn.Module, part: ldm.Part, name: str) -> nn.Module:
    model.load_state_dict(ldm.from_ldm(part, original_tensors(name), model))
    return model


def unet_and_control(name: str) -> tuple[UNet2DConditionModel, ControlNet]:
    unet = tiny.unet(FAMILIES[name])
    control = ControlNet.from_base(unet)
    return read_into(unet, ldm.UNET, name), read_into(control, ldm.CONTROL, name)


def vae(name: str) -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    return read_into(model.requires_grad_(False), ldm.VAE, name)


def relative_error(mine: Tensor, theirs: Tensor) -> float:
    """||a - b|| / ||b||, and plain ||a|| where b is zero."""
    return ((mine - theirs).norm() / (theirs.norm() if theirs.any() else 1)).item()
