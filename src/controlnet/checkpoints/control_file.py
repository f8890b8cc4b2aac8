"""A trained control on disk: one safetensors file whose header says what it was made for (contract 2 of the design).

What a file of weights alone cannot tell, and what makes a control fail without a word when it is wrong: the condition,
the hints' channels, their order, polarity and range, the base's family and what it predicts.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from controlnet.atomic import write_atomically
from controlnet.checkpoints.strict import check_fit
from controlnet.control import ControlNet
from controlnet.errors import UserError

HEADER = "controlnet"
FORMAT_VERSION = 1
NAME_IN_RUN = "control.safetensors"
PACKAGED = Path(str(files("controlnet"))) / "assets" / "controls"


class Schedule(Protocol):
    @property
    def prediction_type(self) -> str: ...


class Base(Protocol):
    """What a control needs to know of its base; `controlnet.base.Base` is one."""

    @property
    def unet(self) -> UNet2DConditionModel: ...
    @property
    def family(self) -> str: ...
    @property
    def schedule(self) -> Schedule: ...
    def hash(self) -> str: ...


@dataclass(frozen=True)
class ControlMetadata:
    """What a control was trained for and with."""

    condition: str
    """The kind of hint: circle, canny, depth, ...; "unknown" if nobody said."""
    family: str
    """Of the base: sd1, sd2 or sdxl."""
    prediction_type: str
    """Of the base: epsilon or v_prediction."""
    base_hash: str
    """Of the very base that it was trained on. Others of its family may be used too."""
    block_channels: tuple[int, ...]
    """Width of the base's levels, shallow to deep."""
    hint_channels: int = 3
    channel_order: str = "RGB"
    hint_range: str = "0..1"
    polarity: str = "unknown"
    """Of line drawings: "light on dark" or "dark on light"."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Steps, learning rate and the like; anything that JSON can say."""
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, base: Base, control: ControlNet, condition: str, **others: Any) -> "ControlMetadata":
        """For a control that is trained on `base`; `others` are fields whose defaults don't hold."""
        return cls(
            condition=condition,
            family=base.family,
            prediction_type=base.schedule.prediction_type,
            base_hash=base.hash(),
            block_channels=tuple(base.unet.config.block_out_channels),
            hint_channels=next(control.hint_encoder.parameters()).shape[1],
            **others,
        )

    def to_header(self) -> dict[str, str]:
        """As safetensors keeps it, text by name. A single one: it writes several in no fixed order."""
        return {HEADER: json.dumps(asdict(self))}

    @classmethod
    def from_header(cls, header: Mapping[str, str] | None, path: Path) -> "ControlMetadata":
        """UserError if the file at `path` is not ours, of another version or damaged."""
        if header is None or HEADER not in header:
            raise UserError(
                f"{path}: its header does not say what the control was made for, so it is not one that `controlnet "
                f"train` saved; expected a run's {NAME_IN_RUN}"
            )
        try:
            values = json.loads(header[HEADER])
            version, found = values["format_version"], values.keys()
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{path}: its header is damaged ({error}); use another copy of the file") from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: version {version} of the format, expected {FORMAT_VERSION}; use the version of controlnet "
                "that saved it, or a newer one"
            )
        if wrong := found ^ {each.name for each in fields(cls)}:
            raise UserError(
                f"{path}: its header is damaged ({', '.join(sorted(wrong))} missing or unknown); use another copy of "
                "the file"
            )
        return cls(**(values | {"block_channels": tuple(values["block_channels"])}))

    def misfits(self, base: Base) -> list[str]:
        """Why this control cannot be used with `base`; empty if it can."""
        mine_and_the_bases = {
            "base family": (self.family, base.family),
            "prediction type": (self.prediction_type, base.schedule.prediction_type),
            "block channels": (self.block_channels, tuple(base.unet.config.block_out_channels)),
        }
        mine_and_our_hints = {"channel order": (self.channel_order, "RGB"), "hint range": (self.hint_range, "0..1")}
        return [
            f"{what}: the control was made for {mine}, {whose} {theirs}"
            for whose, both in (("the base has", mine_and_the_bases), ("hints here are", mine_and_our_hints))
            for what, (mine, theirs) in both.items()
            if mine != theirs
        ]


def save_control(path: Path, control: ControlNet, metadata: ControlMetadata, dtype: torch.dtype | None = None) -> None:
    """Write a control, whole or not at all; in another precision if `dtype` says so. UserError if the disk is full."""
    state = control.state_dict()
    tensors = {name: tensor.to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in state.items()}
    write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata.to_header()))


def load_control(path: Path | str, base: Base) -> tuple[ControlNet, ControlMetadata]:
    """A control ready to be used with `base`, on its device, in its precision and layout; and what its file says of it.

    `path` is a file, a run's folder or the name of a control in this package ("circle"). UserError if it is not there,
    is no control, or was made for another kind of base or of hint: all reasons at once.
    """
    place = find_control(path)
    with _opened(place) as file:
        metadata = ControlMetadata.from_header(file.metadata(), place)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no mapping
    if misfits := metadata.misfits(base):
        raise UserError(
            f"{place} cannot be used with this base; choose the base it was made for, or another control:\n  "
            + "\n  ".join(misfits)
        )
    with torch.device("meta"):  # the structure alone: every weight comes from the file
        structure = UNet2DConditionModel.from_config(base.unet.config)
        structure.set_attn_processor(dict(base.unet.attn_processors))
        control = ControlNet.from_base(structure, metadata.hint_channels)
    check_fit(str(place), tensors, control.state_dict())
    control.load_state_dict(tensors, assign=True)
    control.to(base.unet.device, base.unet.dtype)
    if base.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last):
        control.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return control.eval().requires_grad_(False), metadata


def read_metadata(path: Path | str) -> ControlMetadata:
    """What a control's file says of it; no base needed. `path` as for `load_control`, and so are the errors."""
    place = find_control(path)
    with _opened(place) as file:
        return ControlMetadata.from_header(file.metadata(), place)


def find_control(path: Path | str) -> Path:
    """The file meant by `path`; UserError if there is none."""
    given = Path(path).expanduser()
    if given.is_file():
        return given
    if (given / NAME_IN_RUN).is_file():
        return given / NAME_IN_RUN
    if given.is_dir():
        raise UserError(f"{given}: no {NAME_IN_RUN} in this folder; expected the folder of a run that has saved one")
    packaged = {folder.parent.name: folder for folder in sorted(PACKAGED.glob(f"*/{NAME_IN_RUN}"))}
    if str(path) in packaged:
        return packaged[str(path)]
    raise UserError(
        f"control {path}: no such file; expected a file, the folder of a run or the name of a packaged control "
        f"({', '.join(packaged) or 'there are none'})"
    )


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{path}: cannot be read as safetensors ({error}); it is another kind of file or was cut off; expected a "
            f"run's {NAME_IN_RUN}"
        ) from error
