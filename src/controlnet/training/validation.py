"""Validation on held-out pairs, always with the same noise, timesteps and seeds, so that figures can be compared."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlnet.base import Base
from controlnet.evaluation.convergence import Validation
from controlnet.evaluation.fidelity import mean_fidelity
from controlnet.evaluation.hint_gain import HintGain, hint_gain
from controlnet.generation.pipeline import generate_pixels
from controlnet.generation.unit import Unit
from controlnet.images import encode_png, grid, to_uint8
from controlnet.training.cache import Encoded
from controlnet.training.loss import Draw, denoising_loss
from controlnet.training.module import ControlNetModule

Rgb = NDArray[np.uint8]
Judge = Callable[[Sequence[Rgb], Sequence[Rgb]], float]  # pictures, hints -> mean fidelity in [0, 1]

FIDELITIES: dict[str, Judge] = {"circle": mean_fidelity}  # by condition
SHOWN = 8  # rows of the grid, at most
HEADINGS = ("hint", "with control", "ground truth")


class HeldOut:
    """Held-out pairs, and what is measured and drawn on them."""

    def __init__(self, pairs: Encoded, base: Base, condition: str, seed: int, batch_size: int, pictures: int) -> None:
        self.pairs, self.base, self.batch_size = pairs, base, batch_size
        self.pictures = min(pictures, len(pairs))
        self.judge = FIDELITIES.get(condition)
        count, timesteps = len(pairs), len(base.schedule.alphas_cumprod)
        # each sample at a timestep of its own, evenly over all: less noise in the mean than drawn ones
        timestep_b = ((torch.arange(count) + 0.5) / count * timesteps).long()
        keys = [(0, sample) for sample in pairs.samples]
        draw = Draw.of(seed, keys, pairs.mean_nchw.shape[1:], timesteps, emptied=0.0).at(timestep_b)
        self.draw = draw.to(base.device)
        self.batch = pairs.batch(range(count), draw.empties_prompt_b).to(base.device)

    def validate(
        self, module: ControlNetModule, step: int, picture: Path, arithmetic: AbstractContextManager[object]
    ) -> Validation:
        """The figures after `step` steps, the losses under `arithmetic` (autocast); writes the grid to `picture`."""
        with torch.no_grad(), arithmetic:
            gain = self.hint_gain(module)
        pictures, hints = self._generate(module)
        encode_png(self._grid(pictures, hints), picture)
        fidelity = self.judge(pictures, hints) if self.judge else None
        return Validation(step, gain.loss, gain.gain, fidelity)

    def hint_gain(self, module: ControlNetModule) -> HintGain:
        def loss_with(hint_bchw: Tensor) -> float:
            batch, total = self.batch.with_hints(hint_bchw), 0.0
            for start in range(0, len(self.pairs), self.batch_size):
                part = slice(start, start + self.batch_size)
                loss = denoising_loss(module, self.base.schedule, batch[part], self.draw[part])
                total += loss.item() * len(self.draw.timestep_b[part])
            return total / len(self.pairs)

        return hint_gain(loss_with, self.batch.hint_bchw)

    def _generate(self, module: ControlNetModule) -> tuple[list[Rgb], list[Rgb]]:
        """Pictures from the first hints and prompts with guidance 9 in 20 steps, as the original's logger."""
        count = self.pictures
        hints = [self.pairs.hint_of(row) for row in range(count)]
        unit = Unit(module.control, self.batch.hint_bchw[:count])
        pictures = generate_pixels(
            self.base, self.pairs.captions[:count], range(count), [unit], batch_size=self.batch_size
        )
        return list(pictures), hints

    def _grid(self, pictures: Sequence[Rgb], hints: Sequence[Rgb]) -> Rgb:
        """Hint, prediction, ground truth through the VAE; the prompt under each row."""
        truths = to_uint8(self.base.decode_latents(self.batch.mean_bchw[:SHOWN]))
        rows = [
            [np.repeat(hint[..., :1], 3, axis=2) if hint.shape[2] != 3 else hint, picture, truth]
            for hint, picture, truth in zip(hints, pictures, truths, strict=False)
        ]
        return grid(rows, HEADINGS, self.pairs.captions[: len(rows)])
