"""How little memory a device may need: the ways to save it, and in which order a limit tries them.

Imports nothing heavy: the options of `controlnet generate` inherit from here. What the ways do is in placing.py, what
they need in needs.py.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

from controlnet.errors import UserError

Offload = Literal["none", "models", "blocks"]
VaeWay = Literal["whole", "sliced", "tiled"]
Attention = Literal["auto", "sdpa", "sliced", "xformers"]
Storage = Literal["full", "8bit"]

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
OFFLOADS: dict[Offload, str] = {
    "none": "all models on the device",
    "models": "models on the device in turn",
    "blocks": "blocks of models on the device in turn",
}
VAE_WAYS: dict[VaeWay, str] = {
    "whole": "",
    "sliced": "the VAE picture by picture",
    "tiled": "the VAE in tiles",
}


@dataclass(frozen=True)
class Memory:
    """Where the models of a call are, and how it computes what needs the most memory."""

    offload: Offload = "none"
    """none: all models are on the device. models: those that are needed, the text encoders, then the U-Net with its
    controls, then the VAE. blocks: a block of 100 MB at a time. The pictures are the same bit for bit."""
    vae: VaeWay = "whole"
    """sliced: picture by picture. tiled: in tiles of 512 pixels, and pictures larger than that may differ in shade."""
    attention: Attention = "auto"
    """auto: the fastest here. sliced: one head at a time. xformers: by that library."""

    def __str__(self) -> str:
        attention = "" if self.attention == "auto" else f"{self.attention} attention"
        return ", ".join(filter(None, (OFFLOADS[self.offload], VAE_WAYS[self.vae], attention)))


PLENTY = Memory()
# what a limit tries, the fastest first. Sliced attention is not among them: where torch's own is fused it saves nothing
MODES = (
    PLENTY,
    Memory(vae="sliced"),
    Memory("models", "sliced"),
    Memory("blocks", "sliced"),
    Memory("blocks", "tiled"),
)


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """What is said of memory on a command line; None leaves it to the limit, if there is one."""

    memory_limit: str | None = None
    """Of the device, such as 8GB: models and pictures are moved and cut until they fit, and it says how."""
    offload: Offload | None = None
    """Models on the device: all (none), in turn (models), or a block at a time (blocks, slow). The pictures stay the
    same."""
    vae: VaeWay | None = None
    """How pictures are decoded: together (whole), one by one (sliced), or in tiles of 512 pixels (tiled), which may
    differ in shade."""
    attention: Attention = "auto"
    """auto is the fastest here; sliced takes one head at a time; xformers needs that library."""
    storage: Storage = "full"
    """Of the base's U-Net: as precise as its computation, or 8bit, half of that, whose pictures differ a little."""

    def modes(self) -> list[Memory]:
        """What agrees with all that is said: a single one if there is no limit, else the fastest first."""
        said = {name: getattr(self, name) for name in ("offload", "vae", "attention") if getattr(self, name)}
        modes = [replace(mode, **said) for mode in (MODES if self.memory_limit else MODES[:1])]
        return list(dict.fromkeys(modes))

    def problems(self) -> list[str]:
        """What can be told before anything is opened."""
        try:
            self.limit()
        except UserError as error:
            return [f"--memory-limit {error}"]
        return []

    def limit(self) -> int | None:
        """In bytes."""
        return None if self.memory_limit is None else parse_bytes(self.memory_limit)

    @property
    def is_saving(self) -> bool:
        """Whether models may be away from the device."""
        return self.memory_limit is not None or self.offload not in (None, "none")


def parse_bytes(text: str) -> int:
    """Of 8GB, 7.5 GB (10^9) or 8GiB (2^30); UserError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?B|B)\s*", text, re.IGNORECASE)
    if not found or float(found[1]) == 0:
        raise UserError(f"{text!r}; expected a size such as 8GB, 6.5GiB or 900MB")
    return round(float(found[1]) * UNITS[found[2].upper()])


def gigabytes(count: float) -> str:
    """For people; of less than 0.1 GB in MB."""
    return f"{count / 10**9:.1f} GB" if count >= 10**8 else f"{count / 10**6:.1f} MB"
