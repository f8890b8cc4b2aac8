"""A base's weights by name, memory-mapped: what a control copies of it and is offset by, without the models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from controlnet.checkpoints import control_diffusers
from controlnet.checkpoints.architecture import Told, scheduler_config
from controlnet.checkpoints.base_file import averaged, base_metadata, base_to_ldm, schedule
from controlnet.checkpoints.contents import HEADER, PREFIXES, Family, recognise, wrong_kind
from controlnet.checkpoints.control_formats import IN_FULL, Progress, our_names, to_names
from controlnet.checkpoints.control_metadata import ControlMetadata, architecture_of
from controlnet.checkpoints.folder import check_layout, load_base_folder, read_json, weight_files
from controlnet.checkpoints.ldm import UNET
from controlnet.checkpoints.parts import reading
from controlnet.checkpoints.tensor_file import TensorFile, open_tensors, write_tensors
from controlnet.choices import Prediction
from controlnet.errors import UserError

PLAIN_CHANNELS = 4  # of the latent that a base takes; those for inpainting and editing take more
WANTED = "a base for SD 1.x, SD 2.x or SDXL: a single file or a folder in diffusers layout"


@dataclass(frozen=True)
class SingleFile:
    """A whole base by the original's names, without averages and control, and what such a file's header says."""

    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]

    def write_with_control(
        self,
        path: Path,
        state: Mapping[str, Tensor],
        metadata: ControlMetadata,
        progress: Progress | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A full model, as the original's scripts want it: this base and a control, by our names, in one file.

        In another precision if `dtype` says so.
        """
        said = json.loads(self.header.get(HEADER, "{}")) | {IN_FULL: json.loads(metadata.to_json())}
        tensors = {**self.tensors, **to_names(state, "ldm")}
        write_tensors(path, tensors, {**self.header, HEADER: json.dumps(said)}, dtype, progress)


@dataclass(frozen=True)
class BaseTensors:
    """A base, opened and not loaded."""

    path: Path
    family: Family
    prediction: Prediction | None
    architecture: Mapping[str, Any]
    """Of its U-Net, what shapes do not tell; empty where nothing says it."""
    encoder: Mapping[str, Tensor]
    """The first half of its U-Net, by a control's names."""
    file: SingleFile | None
    """None of a folder, which `as_single_file` makes one of."""

    def as_single_file(self) -> SingleFile:
        if self.file:
            return self.file
        parts = load_base_folder(self.path, None)
        return SingleFile(base_to_ldm(parts), base_metadata(parts))


def open_base_tensors(path: Path, ema: bool = False) -> BaseTensors:
    """The base in a single file, with its averaged weights if `ema`, or in a folder in diffusers layout.

    UserError if it is none, or no plain one.
    """
    base = _in_folder(path, ema) if path.is_dir() else base_in(open_tensors(path), ema)
    with reading(path, "a base"):
        channels = base.encoder["encoder.conv_in.weight"].shape[1]
    if channels != PLAIN_CHANNELS:
        raise UserError(
            f"base {path}: its U-Net takes {channels} channels, expected {PLAIN_CHANNELS}; bases for inpainting and "
            "editing are not supported, choose the plain one that it was made from"
        )
    return base


def base_in(file: TensorFile, ema: bool = False) -> BaseTensors:
    """The base in an opened single file; UserError if there is none."""
    contents = recognise(file.tensors, file.metadata, file.others)
    if contents.kind not in ("base", "base with control") or contents.family is None or contents.layout != "ldm":
        raise UserError(wrong_kind(file.path, contents, WANTED))
    left_out = (*PREFIXES["ema"], *PREFIXES["control"])
    tensors = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(left_out)}
    if ema:
        tensors |= averaged(file.tensors)
    unet = {name.removeprefix(UNET.prefix): each for name, each in tensors.items() if name.startswith(UNET.prefix)}
    encoder = {our: unet[name] for name, our in our_names(unet).items()}
    if contents.family != "sdxl" and "betas" not in tensors:  # as pruned files have it; the original wants them
        tensors |= schedule(scheduler_config(contents.family))
    architecture = architecture_of(Told.by(file.header).unet)
    whole = SingleFile(tensors, file.header)
    return BaseTensors(file.path, contents.family, contents.prediction, architecture, encoder, whole)


def _in_folder(folder: Path, ema: bool) -> BaseTensors:
    if ema:
        raise UserError(f"base {folder}: a folder holds one set of weights, mostly the averaged one; leave out --ema")
    check_layout(folder)
    unet = {name: each for path in weight_files(folder / "unet") for name, each in open_tensors(path).tensors.items()}
    contents = recognise(unet)
    if contents.kind != "unet" or contents.family is None:
        raise UserError(wrong_kind(folder / "unet", contents, WANTED))
    names = control_diffusers.ours_by_theirs(unet, control_diffusers.ENCODER)
    encoder = {our: unet[name] for name, our in names.items()}
    architecture = architecture_of(read_json(folder / "unet" / "config.json"))
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    prediction: Prediction = scheduler.get("prediction_type", "epsilon")
    return BaseTensors(folder, contents.family, prediction, architecture, encoder, None)
