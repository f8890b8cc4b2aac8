"""Tiny bases in both formats, and controls for them, for the tests of what is done with files."""

from pathlib import Path

import torch
from torch import Tensor

import tiny
import tiny_folders
from controlnet.checkpoints import ldm
from controlnet.checkpoints.base_file import base_metadata, base_to_ldm
from controlnet.checkpoints.control_metadata import ControlMetadata, architecture_of
from controlnet.checkpoints.folder import load_base_folder
from controlnet.checkpoints.tensor_file import open_tensors, write_tensors
from controlnet.control import ControlNet

METADATA = ControlMetadata(
    condition="canny",
    family="sd1",
    prediction_type="epsilon",
    base_hash="c0ffee",
    block_channels=(32, 64, 128, 128),
    polarity="light on dark",
    architecture=architecture_of(tiny.unet("sd1").config),
    training={"steps": 412},
)


def save_base(folder: Path, family: tiny.Family, prediction: str = "epsilon") -> tuple[Path, Path]:
    """A base as a folder and the same as a single file."""
    tiny_folders.save_tiny_base(folder, family, prediction)
    parts = load_base_folder(folder, None)
    file = folder.with_suffix(".safetensors")
    write_tensors(file, base_to_ldm(parts), base_metadata(parts))
    return folder, file


def another(file: Path, out: Path, seed: int) -> Path:
    """A base like the one in the single file `file`, with every weight a little different."""
    opened = open_tensors(file)
    generator = torch.Generator().manual_seed(seed)

    def changed(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator)
        return (tensor + 0.1 * noise).to(tensor.dtype) if tensor.is_floating_point() else tensor

    write_tensors(out, {name: changed(tensor) for name, tensor in opened.tensors.items()}, opened.metadata)
    return out


def control_for(family: tiny.Family, seed: int = 6) -> ControlNet:
    return tiny.randomised(ControlNet.from_base(tiny.unet(family)), seed)


def of_part(tensors: dict[str, Tensor], part: ldm.Part) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(part.prefix)}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Bit for bit, under the same names, in the same precision."""
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )
