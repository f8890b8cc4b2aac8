"""What a control was made for: what its file says, what its names and shapes tell, what its user says.

It is what weights alone cannot tell, and what makes a control fail without a word when it is wrong: the condition, the
hints' channels, their order, polarity and range, the base's family and what it predicts.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from diffusers import UNet2DConditionModel

from controlnet.checkpoints.contents import HEADER, Family
from controlnet.control import ControlNet
from controlnet.errors import UserError

FORMAT_VERSION = 1
LATER = {"architecture", "averaged"}  # fields that the first files of this version do not have
# of a U-Net's configuration, what the shapes of its encoder's tensors do not tell
UNTOLD_BY_SHAPES = ("attention_head_dim", "norm_num_groups", "addition_time_embed_dim", "upcast_attention")

ChannelOrder = Literal["RGB", "BGR"]

KINDS: dict[str, Any] = {  # by field, what JSON may have there
    **dict.fromkeys(("condition", "family", "channel_order", "hint_range", "polarity"), str),
    **dict.fromkeys(("prediction_type", "base_hash"), str | None),
    **dict.fromkeys(("architecture", "training"), dict),
    **{"block_channels": list, "hint_channels": int, "averaged": bool},
}
CHOICES: dict[str, tuple[str, ...]] = {"family": get_args(Family), "channel_order": get_args(ChannelOrder)}


class Schedule(Protocol):
    @property
    def prediction_type(self) -> str: ...


class Base(Protocol):
    """What a control needs to know of its base; `controlnet.base.Base` is one."""

    @property
    def unet(self) -> UNet2DConditionModel: ...
    @property
    def family(self) -> Family: ...
    @property
    def schedule(self) -> Schedule: ...
    def hash(self) -> str: ...


@dataclass(frozen=True)
class Said:
    """What the user says of a control, over what its file says; None is to say nothing."""

    condition: str | None = None
    channel_order: ChannelOrder | None = None
    polarity: str | None = None

    def over(self, metadata: "ControlMetadata") -> "ControlMetadata":
        """`metadata` with all that is said here."""
        said: dict[str, Any] = {name: value for name, value in asdict(self).items() if value is not None}
        return replace(metadata, **said)


@dataclass(frozen=True)
class ControlMetadata:
    """What a control was trained for and with; None is unknown, as it is of files that others saved."""

    condition: str
    """The kind of hint: circle, canny, depth, ...; "unknown" if nobody said."""
    family: Family
    """Of the base: sd1, sd2 or sdxl."""
    prediction_type: str | None
    """Of the base: epsilon or v_prediction."""
    base_hash: str | None
    """Of the very base that it was trained on. Others of its family may be used too."""
    block_channels: tuple[int, ...]
    """Width of the base's levels, shallow to deep."""
    hint_channels: int = 3
    channel_order: str = "RGB"
    hint_range: str = "0..1"
    polarity: str = "unknown"
    """Of line drawings: "light on dark" or "dark on light"."""
    averaged: bool = False
    """Whether each of the control's features is its mean over the picture, as the original's shuffle model wants."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """`UNTOLD_BY_SHAPES` of the base's U-Net; empty: what is usual in the family."""
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
            architecture=architecture_of(base.unet.config),
            **others,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def to_header(self) -> dict[str, str]:
        """As safetensors keeps it, text by name. A single one: it writes several in no fixed order."""
        return {HEADER: self.to_json()}

    @classmethod
    def from_json(cls, text: str, path: Path) -> "ControlMetadata":
        """UserError if what the file at `path` says of itself is of another version or damaged."""
        try:
            values = json.loads(text)
            version, found = values["format_version"], values.keys()
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{path}: its header is damaged ({error}); use another copy of the file") from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: version {version} of the format, expected {FORMAT_VERSION}; use the version of controlnet "
                "that saved it, or a newer one"
            )
        if wrong := (found ^ {each.name for each in fields(cls)}) - (LATER - found):
            raise UserError(
                f"{path}: its header is damaged ({', '.join(sorted(wrong))} missing or unknown); use another copy of "
                "the file"
            )
        if wrong := {name for name in found if not _is_possible(name, values[name])}:
            raise UserError(
                f"{path}: its header is damaged ({', '.join(f'{it} is {values[it]!r}' for it in sorted(wrong))}); use "
                "another copy of the file"
            )
        return cls(**(values | {"block_channels": tuple(values["block_channels"])}))

    def misfits(self, base: Base) -> list[str]:
        """Why this control cannot be used with `base`; empty if it can."""
        mine_and_the_bases = {
            "base family": (self.family, base.family),
            "prediction type": (self.prediction_type, base.schedule.prediction_type),
            "block channels": (self.block_channels, tuple(base.unet.config.block_out_channels)),
        }
        mine_and_our_hints = {"hint range": (self.hint_range, "0..1")}
        return [
            f"{what}: the control was made for {mine}, {whose} {theirs}"
            for whose, both in (("the base has", mine_and_the_bases), ("hints here are", mine_and_our_hints))
            for what, (mine, theirs) in both.items()
            if mine is not None and mine != theirs
        ]


def architecture_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a U-Net's or a diffusers control's configuration the shapes do not tell, as JSON keeps it."""
    return {name: _plain(config[name]) for name in UNTOLD_BY_SHAPES if config.get(name) is not None}


def _is_possible(field_name: str, value: Any) -> bool:
    return isinstance(value, KINDS.get(field_name, object)) and value in CHOICES.get(field_name, (value,))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
