"""Bases and controls from any format to any other."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from controlnet.checkpoints.base_file import base_metadata, base_to_ldm, load_base_file
from controlnet.checkpoints.base_tensors import SingleFile, open_base_tensors
from controlnet.checkpoints.contents import recognise, wrong_kind
from controlnet.checkpoints.control_formats import (
    CONFIG,
    ControlFile,
    Format,
    Progress,
    open_control,
    write_control,
)
from controlnet.checkpoints.control_metadata import ControlMetadata, Said
from controlnet.checkpoints.decoder import PREFIX, as_in_ldm, as_in_unet
from controlnet.checkpoints.folder import load_base_folder, save_base_folder, write_unet
from controlnet.checkpoints.tensor_file import open_tensors, write_tensors
from controlnet.choices import Prediction
from controlnet.errors import UserError

Part = Literal["base", "control"]
NOTHING = Said()
CONTROL, UNET = "controlnet", "unet"  # subfolders, as diffusers' pipelines call them


def part_in(source: Path) -> Part:
    """What a file or folder holds; UserError if it is neither base nor control, or both."""
    if source.is_dir():
        return "control" if (source / CONFIG).is_file() else "base"
    file = open_tensors(source)
    contents = recognise(file.tensors, file.metadata, file.others)
    match contents.kind:
        case "base" | "control" as part:
            return part
        case "base with control":
            raise UserError(f"{source}: a base and a control in one file; say --part base or --part control")
    raise UserError(wrong_kind(source, contents, "a base or a ControlNet"))


def convert_base(
    source: Path,
    out: Path,
    to: Format,
    dtype: torch.dtype | None = None,
    ema: bool = False,
    tokenizer: Path | str | None = None,
    prediction: Prediction | None = None,
    progress: Progress | None = None,
) -> None:
    """A base as a single file ("ldm") or as a folder ("diffusers"); as precise as it was unless `dtype` is given.

    `ema`, `tokenizer` and `prediction` as in `base.open_base`. UserError if it is no whole base.
    """
    if to not in ("ldm", "diffusers"):
        raise UserError(
            f"--to {to}: a format of controls; expected ldm (a single file) or diffusers (a folder) for a base"
        )
    if source.is_file() and to == "ldm":  # no names change, so nothing needs to be known of its tokenizer
        whole = open_base_tensors(source, ema).as_single_file()
        return write_tensors(out, whole.tensors, whole.header, dtype, progress)
    if source.is_file():
        parts = load_base_file(source, None, ema, tokenizer, prediction)
    else:
        parts = load_base_folder(source, None, tokenizer, prediction)
    if to == "diffusers":
        return save_base_folder(parts, out, dtype)
    write_tensors(out, base_to_ldm(parts), base_metadata(parts), dtype, progress)


def convert_control(
    source: Path,
    out: Path,
    to: Format,
    dtype: torch.dtype | None = None,
    said: Said = NOTHING,
    base: Path | None = None,
    progress: Progress | None = None,
) -> None:
    """A control in another format; as precise as it was unless `dtype` is given.

    `base`, the one that it was made for, tells what its own file may not: the heads that share its channels. Where the
    control has a trained decoder, it is what that becomes part of: "ldm" is then a full model, "diffusers" has the
    control in its subfolder controlnet and the whole U-Net in unet. UserError if there is no control, or another
    base's, or no room for the decoder.
    """
    file = open_control(source, said)
    metadata = file.metadata
    if base is not None:
        opened = open_base_tensors(base)
        if opened.family != metadata.family:
            raise UserError(
                f"{source}: a control for {metadata.family}; base {base}: {opened.family}; choose its own base"
            )
        prediction = metadata.prediction_type or opened.prediction
        metadata = replace(metadata, architecture=opened.architecture, prediction_type=prediction)
    if file.decoder:
        return _write_unlocked(file, metadata, out, to, dtype, base, progress)
    write_control(out, file.state, metadata, to, dtype, progress)


def _write_unlocked(
    file: ControlFile,
    metadata: ControlMetadata,
    out: Path,
    to: Format,
    dtype: torch.dtype | None,
    base: Path | None,
    progress: Progress | None,
) -> None:
    """A control with its base's trained decoder, wherever there is room for both."""
    if to == "controlnet":
        decoder = {PREFIX + name: tensor for name, tensor in file.decoder.items()}
        return write_control(out, {**file.state, **decoder}, metadata, to, dtype, progress)
    if base is None or to == "webui":
        raise UserError(
            f"{file.path}: its base's decoder was trained too, for which --to {to} alone has no room; say --base with "
            "that base, and --to ldm for a full model or --to diffusers for a control and a U-Net"
        )
    if to == "ldm":
        whole = open_base_tensors(base).as_single_file()
        unlocked = SingleFile({**whole.tensors, **as_in_ldm(file.decoder)}, whole.header)
        return unlocked.write_with_control(out, file.state, metadata, progress, dtype)
    parts = load_base_file(base, None) if base.is_file() else load_base_folder(base, None)
    # not the control above the U-Net: diffusers looks for weights there before it looks into a subfolder
    write_unet(out / UNET, parts.unet, as_in_unet(file.decoder), dtype)
    write_control(out / CONTROL, file.state, metadata, to, dtype, progress)
