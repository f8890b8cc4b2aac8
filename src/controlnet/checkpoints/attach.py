"""A new ControlNet, silent still, made from a base's weights by their names; no model is put together for it.

The original's `tool_add_control.py` and `tool_add_control_sd21.py`, for every family and format of base.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from controlnet.checkpoints import control_diffusers
from controlnet.checkpoints.base_tensors import BaseTensors
from controlnet.checkpoints.control_formats import to_names
from controlnet.checkpoints.control_metadata import ControlMetadata
from controlnet.checkpoints.ldm import count
from controlnet.checkpoints.parts import reading
from controlnet.checkpoints.strict import check_fit
from controlnet.control import HintEncoder

COPIED = "encoder."  # how the names of a control's weights begin that are its base's at birth


@dataclass(frozen=True)
class Attached:
    """A control at birth, and the base that it was made from."""

    copied: Mapping[str, Tensor]
    """The base's encoder, memory-mapped, by a control's names."""
    new: Mapping[str, Tensor]
    """What has no twin in the base: zero convolutions and hint encoder."""
    metadata: ControlMetadata
    base: BaseTensors

    @property
    def state(self) -> dict[str, Tensor]:
        return {**self.copied, **self.new}

    def new_names(self) -> list[str]:
        """As the original calls the weights that it says are newly added, and in its order."""
        return list(to_names(self.new, "ldm"))


def attach(base: BaseTensors, hint_channels: int = 3, seed: int = 0) -> Attached:
    """A control for `base`; `seed` draws its hint encoder. UserError if the base's encoder is not whole."""
    with reading(base.path, "a base"):
        return _attached(base, hint_channels, seed)


def _attached(base: BaseTensors, hint_channels: int, seed: int) -> Attached:
    copied = base.encoder
    metadata = ControlMetadata(
        condition="unknown",
        family=base.family,
        prediction_type=base.prediction,
        base_hash=None,
        block_channels=control_diffusers.block_channels(copied),
        hint_channels=hint_channels,
        architecture=base.architecture,
    )
    new = _new_tensors(copied, hint_channels, seed)
    check_fit(str(base.path), {**copied, **new}, control_diffusers.structure(copied, metadata).state_dict())
    return Attached(copied, new, metadata, base)


def _new_tensors(copied: Mapping[str, Tensor], hint_channels: int, seed: int) -> dict[str, Tensor]:
    """In the precision of the base; named as in `controlnet.control.ControlNet`."""
    widths = _skip_widths(copied)
    dtype = copied["encoder.conv_in.weight"].dtype
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        hint_encoder = HintEncoder(hint_channels, widths[0]).requires_grad_(False).to(dtype)

    def silent(name: str, width: int) -> dict[str, Tensor]:
        shapes = {f"{name}.weight": (width, width, 1, 1), f"{name}.bias": (width,)}
        return {tensor: torch.zeros(shape, dtype=dtype) for tensor, shape in shapes.items()}

    new: dict[str, Tensor] = {}
    for skip, width in enumerate(widths):
        new |= silent(f"zero_convs.{skip}", width)
    new |= {f"hint_encoder.{name}": tensor for name, tensor in hint_encoder.state_dict().items()}
    return new | silent("zero_conv_middle", widths[-1])


def _skip_widths(encoder: Mapping[str, Tensor]) -> list[int]:
    """Channels of what an encoder, by a control's names, hands to its decoder: one for each of its first layers."""
    first = encoder["encoder.conv_in.weight"].shape[0]
    widths = [first]
    channels = control_diffusers.block_channels(encoder)
    for level, width in enumerate(channels):
        block = f"encoder.down_blocks.{level}."
        layers = count(encoder, f"{block}resnets.")
        widths += [width] * (layers + (f"{block}downsamplers.0.conv.weight" in encoder))
    return widths
