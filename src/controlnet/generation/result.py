"""What a call of `generate` gives: the pictures, and all that is known of them.

Shapes: n pictures, c channels of a hint, H W picture size.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from controlnet.generation.memory import PLENTY, Memory
from controlnet.generation.settings import Settings


@dataclass(frozen=True, eq=False)
class Result(Sequence[Image.Image]):
    """A sequence of its pictures: `[picture] = generate(...)`."""

    pixels_nhwc: NDArray[np.uint8]
    prompts: Sequence[str]
    seeds: Sequence[int]
    hints: Sequence[NDArray[np.uint8]]
    """Of each unit that acted, as its network saw them: (1 or n, H, W, c)."""
    settings: Settings
    timings: Mapping[str, float]
    """Seconds for `hints`, `prompts`, `sampling` and `decoding`, all batches together.

    Nothing waits for a GPU before the pictures are fetched from it: there, `decoding` has what was still running.
    """
    memory: Memory = PLENTY
    """How it was used: as asked, or as chosen within a limit."""

    @cached_property
    def images(self) -> list[Image.Image]:
        return [Image.fromarray(rgb) for rgb in self.pixels_nhwc]

    def __len__(self) -> int:
        return len(self.pixels_nhwc)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        return self.images[index]


@dataclass
class Stopwatch:
    """Seconds by name, added up."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
