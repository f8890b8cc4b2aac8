"""What several commands share: options, words."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from controlnet.devices import Device, DType


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how precisely to compute: inherited by the options of every command that computes."""

    device: Device = "auto"
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""
    dtype: DType = "auto"
    """Precision of the weights; auto is half precision where the device is made for it. On a CPU that is bfloat16 for
    train, generate and studio, where `controlnet doctor` calls it fast; else float32."""


@contextmanager
def importing() -> Iterator[None]:
    """For the first import of torch and diffusers: without collecting garbage on the way, which takes a fifth of it.

    Of the million objects that they make none is garbage; after it the collector leaves them alone. And without
    bitsandbytes, which diffusers imports where it finds it, and torch's compiler with it: 0.6 s of 4, for nothing here.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        gc.freeze()
        gc.enable()


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """Of `--name value` or `--name=value`."""
    for word, following in zip(arguments, [*arguments[1:], None], strict=False):
        if word.startswith("--") and option_name(word) == name:
            return word.partition("=")[2] if "=" in word else following
    return None


def option_name(word: str) -> str:
    """`--some-option=value` -> some_option."""
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def size(count: float) -> str:
    """Of a number of bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
