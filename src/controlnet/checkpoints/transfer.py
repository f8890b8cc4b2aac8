"""A control moved from the base that it was trained on to another of its family.

What it learned is its difference to the first base: w_control + w_new - w_old for every weight that has a twin in the
base; zero convolutions and hint encoder, which have none, are copied (the original's `tool_transfer_control.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from controlnet.checkpoints.attach import COPIED
from controlnet.checkpoints.base_tensors import BaseTensors, SingleFile, open_base_tensors
from controlnet.checkpoints.contents import FAMILIES
from controlnet.checkpoints.control_formats import ControlFile, open_control
from controlnet.checkpoints.control_metadata import ControlMetadata, Said
from controlnet.checkpoints.decoder import as_in_ldm
from controlnet.checkpoints.ldm import UNET
from controlnet.checkpoints.strict import check_fit
from controlnet.errors import UserError

NOTHING = Said()


@dataclass(frozen=True)
class Transferred:
    """A control for the new base, and that base."""

    state: Mapping[str, Tensor]
    """By our names."""
    unlocked: Mapping[str, Tensor]
    """By the original's names, what of the new base's U-Net has changed: nothing, if the old one was locked."""
    metadata: ControlMetadata
    base: BaseTensors

    @property
    def offset(self) -> int:
        """How many of the control's weights have a twin in the base."""
        return sum(name.startswith(COPIED) for name in self.state)

    def full_base(self) -> SingleFile:
        """The new base as the control wants it."""
        whole = self.base.as_single_file()
        return SingleFile({**whole.tensors, **self.unlocked}, whole.header)


def transfer(old: Path, control: Path, new: Path, said: Said = NOTHING) -> Transferred:
    """The control in `control`, trained on the base `old`, for the base `new`; computed in float32, kept as it was.

    UserError if the three are not of one family and shape.
    """
    file, old_base, new_base = open_control(control, said), open_base_tensors(old), open_base_tensors(new)
    families = {control: file.metadata.family, old: old_base.family, new: new_base.family}
    if len(set(families.values())) > 1:
        found = ", ".join(f"{path} for {FAMILIES[family]}" for path, family in families.items())
        raise UserError(f"a control moves only between bases of its own family; found {found}")
    copied = {name: tensor for name, tensor in file.state.items() if name.startswith(COPIED)}
    for base in (old_base, new_base):
        check_fit(str(base.path), base.encoder, copied)
    offset = {name: moved(each, old_base.encoder[name], new_base.encoder[name]) for name, each in copied.items()}
    metadata = replace(file.metadata, prediction_type=new_base.prediction, base_hash=None)
    return Transferred({**file.state, **offset}, _unlocked(file, old_base, new_base), metadata, new_base)


def moved(trained: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The same change on top of another weight, in the trained one's precision."""
    return (trained.float() - old.float() + new.float()).to(trained.dtype)


def _unlocked(file: ControlFile, old_base: BaseTensors, new_base: BaseTensors) -> dict[str, Tensor]:
    """Of a full model, or of a control with a trained decoder, the U-Net's weights that differ from the old base's."""
    trained = _unet(file.tensors) if file.is_full else as_in_ldm(file.decoder)
    if not trained:
        return {}
    old, new = (_unet(base.as_single_file().tensors) for base in (old_base, new_base))
    for base, tensors in ((old_base, old), (new_base, new)):
        compared = tensors if file.is_full else {name: tensors[name] for name in trained.keys() & tensors.keys()}
        check_fit(str(base.path), compared, trained)
    return {
        name: moved(tensor, old[name], new[name])
        for name, tensor in trained.items()
        if not torch.equal(tensor, old[name].to(tensor.dtype))
    }


def _unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(UNET.prefix)}
