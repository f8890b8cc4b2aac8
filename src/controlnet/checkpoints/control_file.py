"""A trained control on disk: one safetensors file whose header says what it was made for (contract 2 of the design).

Files that others saved are controls too: `control_formats` reads them, `control_metadata` tells what is known of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from controlnet.atomic import write_atomically
from controlnet.checkpoints.contents import Family
from controlnet.checkpoints.control_formats import CONFIG, open_control
from controlnet.checkpoints.control_metadata import Base, ChannelOrder, ControlMetadata, Said
from controlnet.checkpoints.decoder import PREFIX, SHARED
from controlnet.checkpoints.models import resolve_control
from controlnet.checkpoints.strict import check_fit
from controlnet.control import ControlNet, Decoder, Encoder, Features, Prompt
from controlnet.errors import UserError

__all__ = ["NAME_IN_RUN", "ControlMetadata", "find_control", "load_control", "read_metadata", "save_control"]

NAME_IN_RUN = "control.safetensors"
PACKAGED = Path(str(files("controlnet"))) / "assets" / "controls"
HINT_WEIGHT = "hint_encoder.0.weight"  # (out, channels of the hint, 3, 3)


class AveragedControlNet(ControlNet):
    """A control that says one thing to the whole picture: each feature is its mean (the original's shuffle model)."""

    def forward(self, latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, hint_features_bchw: Tensor) -> Features:
        features = super().forward(latent_bchw, timestep_b, prompt, hint_features_bchw)
        skips = tuple(skip.mean((2, 3), keepdim=True) for skip in features.skips)
        return Features(skips, features.middle.mean((2, 3), keepdim=True))


def save_control(path: Path, control: ControlNet, metadata: ControlMetadata, dtype: torch.dtype | None = None) -> None:
    """Write a control, whole or not at all; in another precision if `dtype` says so. UserError if the disk is full.

    If it has a trained decoder, that is in the file too.
    """
    state = {name: tensor for name, tensor in control.state_dict().items() if not name.startswith(PREFIX + SHARED)}
    tensors = {name: tensor.to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in state.items()}
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata.to_header()))


def load_control(
    path: Path | str,
    base: Base,
    *,
    condition: str | None = None,
    channel_order: ChannelOrder | None = None,
    polarity: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[ControlNet, ControlMetadata]:
    """A control ready to be used with `base`, on its device, in its layout; and what is known of it.

    `path` is a file in any format, a run's folder, a diffusers folder, the name of a control in this package ("circle")
    or of a public one in the hub's cache, or its condition ("canny"). The other arguments say what the file does not,
    and prevail. A control whose hints are BGR takes RGB ones, as all hints here are, once it is loaded: its first
    convolution is turned round, and its metadata say RGB. `dtype` is its precision, by default the base's. If the base
    was unlocked when it was trained, it has a decoder of its own, which is then used in place of the base's.
    UserError if it is not there, is no control, or was made for another kind of base or of hint: all reasons at once.
    """
    file = open_control(find_control(path, base.family), Said(condition, channel_order, polarity))
    metadata = file.metadata
    if misfits := metadata.misfits(base):
        raise UserError(
            f"{file.path} cannot be used with this base; choose the base it was made for, or another control:\n  "
            + "\n  ".join(misfits)
        )
    with torch.device("meta"):  # the structure alone: every weight comes from the file
        structure = UNet2DConditionModel.from_config(base.unet.config)
        structure.set_attn_processor(dict(base.unet.attn_processors))
        kind = AveragedControlNet if metadata.averaged else ControlNet
        control = kind.from_base(structure, metadata.hint_channels)
        control.decoder = Decoder(structure) if file.decoder else None
    state = _with_rgb_hints(file.state, metadata) | {PREFIX + name: tensor for name, tensor in file.decoder.items()}
    if control.decoder is not None:  # what it shares with the base's encoder was not trained
        shared = Encoder(base.unet).embed_time.state_dict()
        state |= {f"{PREFIX}{SHARED}{name}": tensor.clone() for name, tensor in shared.items()}
    check_fit(str(file.path), state, control.state_dict())
    control.load_state_dict(state, assign=True)
    control.to(base.unet.device, dtype or base.unet.dtype)
    if base.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
        control.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return control.eval().requires_grad_(False), replace(metadata, channel_order="RGB")


def read_metadata(path: Path | str) -> ControlMetadata:
    """What is known of a control; no base needed. `path` as for `load_control`, and so are the errors."""
    return open_control(find_control(path)).metadata


def find_control(path: Path | str, family: Family | None = None) -> Path:
    """The file or diffusers folder meant by `path`, a condition meaning one of `family`; UserError if there is none."""
    given = Path(path).expanduser()
    if (given / NAME_IN_RUN).is_file():  # before the other: a run has a config.json of its own
        return given / NAME_IN_RUN
    if given.is_file() or (given / CONFIG).is_file():
        return given
    packaged = {folder.parent.name: folder for folder in sorted(PACKAGED.glob(f"*/{NAME_IN_RUN}"))}
    if str(path) in packaged:
        return packaged[str(path)]
    if given.is_dir():
        raise UserError(
            f"{given}: neither {NAME_IN_RUN} nor {CONFIG} in this folder; expected the folder of a run that has saved "
            "a control, or one in diffusers layout"
        )
    if found := resolve_control(str(path), family):
        return found
    raise UserError(
        f"control {path}: no such file; expected a file, the folder of a run, a diffusers folder or the name of a "
        f"packaged control ({', '.join(packaged) or 'there are none'})"
    )


def _with_rgb_hints(state: Mapping[str, Tensor], metadata: ControlMetadata) -> dict[str, Tensor]:
    """The control's weights such that it takes RGB hints: to flip its first convolution is to flip what that sees."""
    if metadata.channel_order == "RGB":
        return dict(state)
    return {**state, HINT_WEIGHT: state[HINT_WEIGHT].flip(1)}
