"""The base under the sum of its units: who speaks at which step, how loudly, where, and on which side of guidance.

What holds for all steps, hint features, masks, strengths, is computed once; a unit that is silent is not run.

Shapes: n pictures of a call, b of a batch, c channels, h w latent size, H W picture size.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import add

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from controlnet.base import Base
from controlnet.control import Encoder, Features, Prompt, predict
from controlnet.generation.guidance import Predict
from controlnet.generation.pictures import Size
from controlnet.generation.unit import MODES, Unit


@dataclass(frozen=True, eq=False)
class Voice:
    """A unit that is ready to speak, for all pictures of a call or, see `of`, for those of a batch."""

    unit: Unit
    strengths: Sequence[float]
    """At every step; where it is 0 the control is not run."""
    pixels_nchw: Tensor
    """Its hints as the network sees them: one for all pictures or one for each."""
    mask_hw: Tensor | None

    @classmethod
    def of_unit(cls, unit: Unit, size: Size, steps: int) -> "Voice":
        """For pictures of `size` made in so many steps; runs the unit's annotator, if it has one."""
        return cls(unit, unit.strengths(steps), unit.pixels(size), unit.mask_at(size))

    def of(self, pictures: Sequence[int]) -> "Voice":
        """For some pictures of the call: with their own hints, or with the one for all."""
        return self if len(self.pixels_nchw) == 1 else replace(self, pixels_nchw=self.pixels_nchw[list(pictures)])

    @cached_property
    def hint_bchw(self) -> Tensor:
        """The hint encoder's features, computed once; of one picture if all share it."""
        parameter = next(self.unit.control.parameters())
        return self.unit.control.encode_hint(self.pixels_nchw.to(parameter.device, parameter.dtype))

    @cached_property
    def hint_of_both_sides(self) -> Tensor:
        return self.hint_bchw if len(self.hint_bchw) == 1 else self.hint_bchw.repeat(2, 1, 1, 1)

    @cached_property
    def masks(self) -> list[Tensor] | None:
        """The mask at the size of every layer, (1, 1, h, w) each."""
        if self.mask_hw is None:
            return None
        height, width = self.hint_bchw.shape[2:]
        mask_11hw = self.mask_hw[None, None].to(self.hint_bchw)
        sizes = layer_sizes(self.unit.control.encoder, (height, width))
        return [interpolate(mask_11hw, size, mode="bilinear") for size in sizes]

    def say(self, latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, sides: int, step: int) -> Features:
        """What it adds to the base's features, for one side of guidance or both, of which the positive is the last."""
        control, parameter = self.unit.control, next(self.unit.control.parameters())
        silent = 0  # pictures of the negative side that need not be run
        if MODES[self.unit.mode].is_one_sided:
            silent = len(latent_bchw) // sides * (sides - 1)
        latent = latent_bchw[silent:, : control.encoder.conv_in.in_channels].to(parameter.dtype)
        hint = self.hint_of_both_sides if sides == 2 and not silent else self.hint_bchw
        heard = self._heard(prompt, silent, latent)
        said = self._weighed(control(latent, timestep_b[silent:], heard, hint), self.strengths[step])
        return _mapped(said, lambda x: torch.cat([x.new_zeros(silent, *x.shape[1:]), x])) if silent else said

    def _heard(self, prompt: Prompt, silent: int, latent_bchw: Tensor) -> Prompt:
        """What it hears of the prompts: the same value at every step, so that its layers need read it only once."""
        key = id(prompt), silent
        if key not in self._known:
            if len(self._known) == 2:  # both sides and the positive one of the batch before
                self._known.clear()
            own = prompt[silent:] if silent else prompt
            self._known[key] = prompt, own.to(latent_bchw.device, latent_bchw.dtype)
        return self._known[key][1]

    @cached_property
    def _known(self) -> dict[tuple[int, int], tuple[Prompt, Prompt]]:
        """(a prompt's place in memory, its silent pictures) -> the prompt, which thereby stays there; what is heard."""
        return {}

    def _weighed(self, features: Features, strength: float) -> Features:
        weights = [strength * weight for weight in self.unit.layers()]
        if any(weight != 1 for weight in weights):
            features = features.scaled(weights)
        if self.masks is None:
            return features
        *skips, middle = map(torch.mul, (*features.skips, features.middle), self.masks)
        return Features(tuple(skips), middle)


def controlled(base: Base, voices: Sequence[Voice], beside_bchw: Tensor | None = None) -> Predict:
    """The base's prediction under the sum of the voices that speak at the step.

    `beside_bchw` is what an inpainting base sees beside the latent: mask and masked picture. If a voice's control was
    trained with the base unlocked, its decoder stands for the base's at every step.
    """
    trained = (voice.unit.control.decoder for voice in voices)
    decoder = next((each for each in trained if each is not None), base.decoder)
    dtype = base.dtype  # asked once: it walks through all modules
    if next(decoder.parameters()).dtype != dtype:  # it is in training still
        decoder = copy.deepcopy(decoder).to(dtype)

    def prediction(latent_bchw: Tensor, timestep: Tensor, step: int, prompt: Prompt) -> Tensor:
        sides = len(prompt.context_btd) // len(latent_bchw)
        seen_bchw = latent_bchw if beside_bchw is None else torch.cat([latent_bchw, beside_bchw], dim=1)
        seen_bchw = seen_bchw.repeat(sides, 1, 1, 1)
        timestep_b = timestep.expand(len(seen_bchw))
        speaking = [voice for voice in voices if voice.strengths[step] != 0]
        said = [voice.say(seen_bchw, timestep_b, prompt, sides, step) for voice in speaking]
        control = reduce(add, (_mapped(features, lambda x: x.to(dtype)) for features in said)) if said else None
        return predict(base.encoder, decoder, seen_bchw.to(dtype), timestep_b, prompt, control).float()

    return prediction


def layer_sizes(encoder: Encoder, size: Size) -> list[Size]:
    """(h, w) of every skip, shallow to deep, then of the middle, for latents of `size`."""
    sizes = [size]
    for block in encoder.down_blocks:
        sizes += [size] * len(block.resnets)
        if block.downsamplers:
            size = (size[0] + 1) // 2, (size[1] + 1) // 2  # a convolution of stride 2, padded by 1
            sizes.append(size)
    return [*sizes, size]


def _mapped(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    return Features(tuple(change(skip) for skip in features.skips), change(features.middle))
