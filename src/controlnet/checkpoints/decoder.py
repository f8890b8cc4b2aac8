"""A control's trained decoder: the second half of its base's U-Net, where that was unlocked, in the control's own file.

In full models it is simply part of the base, as the original's are; in diffusers layout it is part of a U-Net's folder.
"""

from collections.abc import Mapping

from torch import Tensor

from controlnet.checkpoints.ldm import UNET, names

PREFIX = "decoder."  # of its tensors in our files
SHARED = "embed_time."  # of what the encoder has too, which is never trained
TO_UNET = {"out.0.": "conv_norm_out.", "out.2.": "conv_out."}  # by diffusers' names


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file of ours: the control's, and the decoder's by the names of `controlnet.control.Decoder`."""
    decoder = {name.removeprefix(PREFIX): each for name, each in tensors.items() if name.startswith(PREFIX)}
    return {name: each for name, each in tensors.items() if not name.startswith(PREFIX)}, decoder


def as_in_unet(decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by diffusers' names of a whole U-Net."""
    return {_renamed(name): tensor for name, tensor in decoder.items()}


def as_in_ldm(decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by the original's names in a full model."""
    unet = as_in_unet(decoder)
    return {UNET.prefix + original: unet[name] for name, original in names(UNET, unet).items()}


def _renamed(name: str) -> str:
    start = next((start for start in TO_UNET if name.startswith(start)), "")
    return TO_UNET.get(start, "") + name.removeprefix(start)
