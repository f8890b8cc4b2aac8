"""Controls in every format, in and out: what differs is the names of the tensors and where the metadata has room.

- ldm: the original's names, `control_model.*`; reading also takes them out of a full model, `control_sd15_canny.pth`
- webui: the same without the prefix
- diffusers: a folder with config.json, or its lone safetensors
- controlnet: ours
"""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from controlnet.atomic import write_atomically
from controlnet.checkpoints import control_diffusers
from controlnet.checkpoints.contents import HEADER, Contents, recognise, wrong_kind
from controlnet.checkpoints.control_conventions import with_convention
from controlnet.checkpoints.control_metadata import ControlMetadata, Said
from controlnet.checkpoints.decoder import split
from controlnet.checkpoints.folder import read_json, weight_files
from controlnet.checkpoints.ldm import CONTROL, Part, names
from controlnet.checkpoints.parts import reading
from controlnet.checkpoints.strict import check_fit
from controlnet.checkpoints.tensor_file import TensorFile, open_tensors, write_tensors
from controlnet.errors import UserError

Format = Literal["controlnet", "ldm", "webui", "diffusers"]
Progress = Callable[[int, int], None]  # bytes done, of all

CONFIG, CONFIG_KEY = "config.json", "_controlnet"  # diffusers passes over keys that begin so
WEIGHTS = "diffusion_pytorch_model.safetensors"
IN_FULL = "control"  # where a full model's header says it, beside what it says of its base
SUFFIXES: dict[str, Format] = {".safetensors": "controlnet", ".ckpt": "ldm", ".pth": "ldm", ".pt": "ldm", ".bin": "ldm"}
NOTHING = Said()


@dataclass(frozen=True)
class ControlFile:
    """A control as it lies on disk: memory-mapped, by our names, with all that is known of it."""

    path: Path
    contents: Contents
    state: Mapping[str, Tensor]
    metadata: ControlMetadata
    tensors: Mapping[str, Tensor]
    """All of the file's, by its own names: of a full model also the base's."""
    decoder: Mapping[str, Tensor]
    """Of the base's decoder if it was trained with the control, by the names of `controlnet.control.Decoder`; else
    empty. Only our own format has it."""

    @property
    def is_full(self) -> bool:
        """Whether the file is a full model, with a base around the control."""
        return self.contents.kind == "base with control"


def open_control(path: Path, said: Said = NOTHING) -> ControlFile:
    """The control in a file or a diffusers folder, whole; UserError if it holds none, or more or less than one."""
    config = read_json(path / CONFIG) if path.is_dir() else {}
    file = _open_folder(path) if path.is_dir() else open_tensors(path)
    contents = recognise(file.tensors, file.metadata, file.others)
    if contents.kind not in ("control", "base with control") or contents.family is None:
        raise UserError(wrong_kind(path, contents, "a ControlNet for SD 1.x, SD 2.x or SDXL"))
    tensors, decoder = split(file.tensors) if contents.layout == "controlnet" else (file.tensors, {})
    state = _by_our_names(path, tensors, contents.layout)
    with reading(path, "ControlNet"):  # a stranger's shapes and words make whatever error they like
        metadata = said.over(_metadata(path, state, contents, file, config))
        wanted = control_diffusers.structure(state, metadata).state_dict()
    check_fit(str(path), state, wanted)
    return ControlFile(path, contents, state, metadata, file.tensors, decoder)


def write_control(
    path: Path,
    state: Mapping[str, Tensor],
    metadata: ControlMetadata,
    to: Format,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a control by our names in a format: one file, or a folder for diffusers. Whole or not at all."""
    header = metadata.to_header()
    if to != "diffusers":
        return write_tensors(path, to_names(state, to), header, dtype, progress)
    config = control_diffusers.to_config(state, metadata) | {CONFIG_KEY: json.loads(metadata.to_json())}
    # the weights last: without them the folder is no control
    write_atomically(path / CONFIG, lambda temporary: temporary.write_text(json.dumps(config, indent=2) + "\n"))
    write_tensors(path / WEIGHTS, to_names(state, to), header | {"format": "pt"}, dtype, progress)


def to_names(state: Mapping[str, Tensor], to: Format) -> dict[str, Tensor]:
    """A control's tensors, by our names, as a format calls them."""
    return {name: state[our] for our, name in NAMES[to](state).items()}


def our_names(originals: Collection[str]) -> dict[str, str]:
    """The original's names without prefix -> ours, of a control or of a U-Net's encoder; others are left out."""
    modules = {original: our for our, original in CONTROL.modules(_skeleton(originals)).items()}
    return {name: our for name in originals if (our := _ours(name, modules, CONTROL))}


def format_for(out: Path, to: Format | None = None) -> Format:
    """The format to write to `out`: `to`, else what the suffix says; a name without one is a diffusers folder.

    UserError if there is such a file or folder already, or if its name does not suit the format.
    """
    if out.exists():
        raise UserError(f"{out}: is there already and is not overwritten; choose another name or remove it")
    if out.suffix not in ("", *SUFFIXES):
        raise UserError(
            f"{out}: {out.suffix} is no known suffix; expected {', '.join(SUFFIXES)}, or none for a diffusers folder"
        )
    if to is not None and (to == "diffusers") != (out.suffix == ""):
        expected = "no suffix, for a folder" if to == "diffusers" else f"one of {', '.join(SUFFIXES)}"
        raise UserError(f"{out}: has the suffix {out.suffix!r}; --to {to} expects {expected}")
    return to or SUFFIXES.get(out.suffix, "diffusers")


NAMES: dict[Format, Callable[[Collection[str]], Mapping[str, str]]] = {
    "controlnet": lambda ours: {our: our for our in ours},
    "ldm": lambda ours: {our: CONTROL.prefix + name for our, name in names(CONTROL, ours).items()},
    "webui": lambda ours: names(CONTROL, ours),
    "diffusers": control_diffusers.theirs_by_ours,
}


def _open_folder(folder: Path) -> TensorFile:
    files = [open_tensors(path) for path in weight_files(folder)]
    if not files:
        raise UserError(
            f"{folder}: no {WEIGHTS} beside its {CONFIG}; expected a whole diffusers folder of a ControlNet, or a "
            "run that has saved its control"
        )
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return TensorFile(folder, tensors, files[0].metadata, {})


def _by_our_names(path: Path, tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """UserError names the tensors that belong to nothing: none is dropped unseen."""
    if "difference" in tensors:
        raise UserError(
            f"{path}: differences to SD 1.5's weights, not the weights themselves; expected a whole control, such as "
            "the file that it was extracted from"
        )
    if layout == "ldm":
        tensors = {
            name.removeprefix(CONTROL.prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(CONTROL.prefix)
        }
    match layout:
        case "controlnet":
            table: Mapping[str, str] = {name: name for name in tensors}
        case "diffusers":
            table = control_diffusers.ours_by_theirs(tensors)
        case _:
            table = our_names(tensors)
    check_fit(str(path), tensors, {name: tensors[name] for name in table})
    return {our: tensors[name] for name, our in table.items()}


def _metadata(
    path: Path, state: Mapping[str, Tensor], contents: Contents, file: TensorFile, config: Mapping[str, Any]
) -> ControlMetadata:
    """What our own files say; of others what their shapes, their config and their names tell."""
    ours = config.get(CONFIG_KEY)
    text = json.dumps(ours) if ours else _said(file, contents)
    if text:
        return ControlMetadata.from_json(text, path)
    assert contents.family is not None, "checked by open_control"
    told_by_shapes = ControlMetadata(
        condition="unknown",
        family=contents.family,
        prediction_type=None,
        base_hash=None,
        block_channels=control_diffusers.block_channels(state),
        hint_channels=state["hint_encoder.0.weight"].shape[1],
    )
    told_by_config = control_diffusers.told_by_config(config) if config else {}
    return replace(with_convention(told_by_shapes, path.absolute()), **told_by_config)


def _said(file: TensorFile, contents: Contents) -> str | None:
    """What the file itself says of its control, JSON; None if it is not ours."""
    text = file.header.get(HEADER)
    if text is None or contents.kind == "control":
        return text
    with suppress(ValueError, AttributeError):  # damaged: then the base in this file will be complained about
        said = json.loads(text).get(IN_FULL)
        return json.dumps(said) if said else None
    return None


def _skeleton(originals: Collection[str]) -> list[str]:
    """As few of our names as show how many levels, layers and skips there are, told from the original's names."""
    blocks = {name.split(".")[1] for name in originals if name.startswith("input_blocks.")}
    levels = 1 + sum(name.startswith("input_blocks.") and name.endswith(".op.weight") for name in originals)
    layers = (len(blocks) - levels) // levels  # a level has its layers and a downsampler, but the first convolution
    ours = [f"encoder.down_blocks.{level}.resnets.{layer}" for level in range(levels) for layer in range(layers)]
    return [*ours, *(f"zero_convs.{skip}" for skip in range(len(blocks)))]


def _ours(name: str, modules: Mapping[str, str], part: Part) -> str | None:
    """The inverse of what `ldm.names` does to one name; None if it is in none of the modules."""
    module = name
    while module not in modules:
        if not module:
            return None
        module = module.rpartition(".")[0]
    layer, _, tensor = name.removeprefix(f"{module}.").rpartition(".")
    kind = modules[module].split(".")[-2:][0]
    backwards = {original: our for our, original in part.inside.get(kind, {}).items()}
    return ".".join(filter(None, (modules[module], backwards.get(layer, layer), tensor)))
