"""A unit: one ControlNet, its hint, and how strongly, when, where and on which side of guidance it acts.

Shapes: n pictures, c channels, H W picture size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlnet.annotators.annotator import WholePicture
from controlnet.annotators.inpaint import Inpaint
from controlnet.annotators.resolution import pixel_perfect
from controlnet.control import ControlNet
from controlnet.errors import UserError
from controlnet.generation.pictures import (
    Picture,
    Resize,
    Size,
    fit,
    marked,
    original_size,
    read,
    read_hint,
    several,
    size_of,
    to_pictures,
)
from controlnet.generation.steps import OverSteps, at_each, is_within

Hint = Picture
Annotate = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # RGB (H, W, 3) -> hint (h, w, 3)
ModeName = Literal["balanced", "prompt", "control", "guess"]

SOFTNESS = 0.825  # of the original's guess mode, 10^(-1/12): thirteen weights, log-even from 0.1 to 1
CELL = 8  # pixels of a hint per cell of the latent, along each side: the hint encoder's
LARGEST_DETECTION = 2048  # pixels along the shorter side


class Mode(NamedTuple):
    """Who is more important, the prompt or the control."""

    is_soft: bool
    """Whether the shallow layers, which draw what is fine, speak more softly than the deep ones."""
    is_one_sided: bool
    """Whether the control is heard with the prompt alone and not with the negative one: guidance then amplifies it."""


MODES: dict[ModeName, Mode] = {
    "balanced": Mode(is_soft=False, is_one_sided=False),
    "prompt": Mode(is_soft=True, is_one_sided=False),
    "control": Mode(is_soft=True, is_one_sided=True),
    "guess": Mode(is_soft=True, is_one_sided=True),  # the original's name for the same
}


def soft_weights(count: int) -> list[float]:
    """The original's 0.825^(12 - i) for the 13 layers of SD; SDXL's 10 fall as far, from first to last."""
    last = count - 1
    return [SOFTNESS ** (12 * (last - layer) / last) for layer in range(count)]


@dataclass(frozen=True, eq=False)
class Unit:
    """At generation: who controls (`control`), by what (`hint`), and how.

    A hint is a picture or its path; an array (H, W, c) or (H, W), uint8 or float in [0, 1]; or a tensor (c, H, W). A
    list of them, or a tensor (n, c, H, W), is one for each of n pictures. For inpainting it is transparent where the
    picture is to be painted: an array (H, W, 4), or a file of the annotator `inpaint`.
    """

    control: ControlNet
    hint: Hint | Sequence[Hint] | None = None
    strength: float = 1.0
    """Times what the control says: 1 as trained; 0 is not run at all."""
    start: float = 0.0
    """Fraction of the steps before which the control is silent, and not run."""
    end: float = 1.0
    """Fraction of the steps after which it is silent."""
    schedule: OverSteps | None = None
    """Times the strength at each step: one value for each, or a function of the fraction of steps done."""
    layer_weights: Sequence[float] | None = None
    """Weights of the skips, shallow to deep, then of the middle (13; SDXL 10), in place of the mode's."""
    mask: Picture | None = None
    """Where it acts, 0 to 1 of its strength: of the hint's size, and resized like it, or of the picture's."""
    mode: ModeName = "balanced"
    resize: Resize = "crop"
    """What is done to a hint of another size than the picture's."""
    image: Picture | Sequence[Picture] | None = None
    """In place of a hint: the picture that `annotator` makes it from."""
    annotator: Annotate | None = None
    """If its `detect_resolution` is 0, it looks at the picture at the very scale at which the hint is used; those whose
    hint is the picture itself look at it as it is."""

    @property
    def hint_channels(self) -> int:
        return next(self.control.hint_encoder.parameters()).shape[1]

    @cached_property
    def given(self) -> list[Tensor]:
        """Hints or, for the annotator, images: (c, H, W) float32, one for all or one each. UserError if unreadable.

        Hints for inpainting have their alpha as fourth channel.
        """
        if (self.hint is None) == (self.image is None) or (self.image is None) != (self.annotator is None):
            raise UserError("expected a hint, or an image and the annotator that makes a hint of it")
        if self.image is not None:
            return [self._read_image(image) for image in several(self.image)]
        assert self.hint is not None
        return [read_hint(hint, self.hint_channels) for hint in several(self.hint)]

    def natural_size(self, resolution: int) -> Size:
        """The size of the picture that this unit is about: a hint's own; of what must be resized, the original's rule.

        An image is brought near the base's `resolution`, and so is a hint that has no latent.
        """
        size = size_of(self.given[0])
        is_ready = self.image is None and self.resize != "original" and all(side % CELL == 0 for side in size)
        return size if is_ready else original_size(size, resolution)

    def pixels(self, size: Size) -> Tensor:
        """The hints as the network sees them, (1 or n, c, H, W) float32 in [0, 1]; annotated now, if need be.

        Those for inpainting are -1 where they are transparent.
        """
        make = self._fitted if self.annotator is None else self._annotated
        return torch.stack([marked(make(given, size)) for given in self.given])

    def mask_at(self, size: Size) -> Tensor | None:
        """Where the unit acts, (H, W) float32 in [0, 1]."""
        if self.mask is None:
            return None
        mask_chw = read(self.mask, channels=1)
        how: Resize = "stretch" if size_of(mask_chw) == size else self.resize
        return fit(mask_chw, size, how, smooth=True)[0]

    def strengths(self, count: int) -> list[float]:
        """How strongly it acts at each of `count` steps; 0 outside its window."""
        window = (self.start, self.end)
        values = at_each(1.0 if self.schedule is None else self.schedule, count)
        return [self.strength * value * is_within(index, count, window) for index, value in enumerate(values)]

    def layers(self) -> list[float]:
        """The weight of every layer, skips shallow to deep, then the middle."""
        if self.layer_weights is not None:
            return list(self.layer_weights)
        return soft_weights(self.layer_count) if MODES[self.mode].is_soft else [1.0] * self.layer_count

    @property
    def layer_count(self) -> int:
        return len(self.control.zero_convs) + 1

    def _read_image(self, image: Picture) -> Tensor:
        """With alpha for an annotator that looks at it."""
        if not isinstance(self.annotator, Inpaint) or isinstance(image, Tensor):
            return read(image)
        return read(self.annotator.read(image), 4)

    def _fitted(self, hint_chw: Tensor, size: Size) -> Tensor:
        return fit(hint_chw, size, self.resize)

    def _annotated(self, image_chw: Tensor, size: Size) -> Tensor:
        """The image's hint at `size`, cut or filled up by the image's own aspect."""
        assert self.annotator is not None
        annotator, frame = self.annotator, size_of(image_chw)
        if getattr(annotator, "detect_resolution", None) == 0 and not isinstance(annotator, WholePicture):
            scale = pixel_perfect(frame[::-1], size[::-1], "fill" if self.resize == "fill" else "crop")
            annotator = replace(annotator, detect_resolution=min(scale, LARGEST_DETECTION))  # type: ignore[type-var]
        hint_chw = read_hint(annotator(to_pictures(image_chw[None])[0]), self.hint_channels)
        smooth = getattr(getattr(annotator, "meaning", None), "is_smooth", None)
        return fit(hint_chw, size, self.resize, smooth, frame)
