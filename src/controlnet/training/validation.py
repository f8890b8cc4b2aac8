"""Validation on held-out pairs, always with the same noise, timesteps and seeds, so that figures can be compared."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from controlnet.base import EMBEDDED, Base
from controlnet.control import ControlNet, Prompt, predict
from controlnet.errors import UserError
from controlnet.evaluation.convergence import Validation, newly_converged
from controlnet.evaluation.curve import draw_curve
from controlnet.evaluation.health import new_signs
from controlnet.evaluation.hint_gain import HintGain, hint_gain
from controlnet.evaluation.obedience import find_judge
from controlnet.evaluation.text_accuracy import text_accuracy
from controlnet.generation.pipeline import generate, generate_pixels
from controlnet.generation.unit import Unit
from controlnet.images import Rgb, encode_png, grid, three_channels, to_uint8
from controlnet.training.cache import Encoded
from controlnet.training.loss import Controlled, Draw, denoising_loss
from controlnet.training.module import ControlNetModule
from controlnet.training.reader import PairsReader
from controlnet.training.record import Record
from controlnet.training.report import write_report

SHOWN = 8  # rows of the grid, at most
ACCURACY_EVERY = 5  # validations: a locked base forgets nothing, and it takes as long as all the rest
HEADINGS = ("hint", "with control", "ground truth")


@dataclass(frozen=True)
class OwnHint:
    """What the user wants to see at each validation: --validation-image and --validation-prompt."""

    image: Path
    prompt: str


def own_hints(images: Sequence[Path], prompts: Sequence[str]) -> list[OwnHint]:
    """As many as there are of the more; of the other there may be one for all."""
    count = max(len(images), len(prompts))
    return [OwnHint(images[number % len(images)], prompts[number % len(prompts)]) for number in range(count)]


class HeldOut:
    """Held-out pairs, and what is measured and drawn on them."""

    def __init__(
        self,
        pairs: Encoded,
        base: Base,
        condition: str,
        seed: int,
        batch_size: int,
        pictures: int,
        own: Sequence[OwnHint] = (),
    ) -> None:
        pairs = pairs.split(len(pairs))[1]  # those of the size that most have
        self.pairs, self.base, self.batch_size, self.own = pairs, base, batch_size, own
        self.pictures = min(pictures, len(pairs))
        self.judge = find_judge(condition, _meaning(pairs), device=base.device.type)
        self._news: list[str] = []
        self._validations = 0
        count, timesteps = len(pairs), len(base.schedule.alphas_cumprod)
        # each sample at a timestep of its own, evenly over all: less noise in the mean than drawn ones
        timestep_b = ((torch.arange(count) + 0.5) / count * timesteps).long()
        keys = [(0, sample) for sample in pairs.samples]
        draw = Draw.of(seed, keys, pairs.latent_chw(0), timesteps, emptied=0.0).at(timestep_b)
        self.draw = draw.to(base.device)
        self.batch = pairs.batch(range(count), draw.empties_prompt_b).to(base.device)
        self.base_loss = self._base_loss()

    def validate(
        self, module: ControlNetModule, step: int, picture: Path, arithmetic: AbstractContextManager[object]
    ) -> Validation:
        """The figures after `step` steps, the losses under `arithmetic` (autocast); writes the grid to `picture`."""
        with module.as_saved() as saved:
            with torch.no_grad(), arithmetic:
                gain = self.hint_gain(saved)
            pictures = self._generate(saved.control)
            asked = module.sd_unlocked or self._validations % ACCURACY_EVERY == 0
            accuracy = self._text_accuracy(saved.control) if asked else None
            own_rows = self._own_rows(saved.control)
        self._validations += 1
        encode_png(self._grid(pictures, own_rows), picture)
        return Validation(step, gain.loss, gain.gain, self._fidelity(pictures), self.base_loss, accuracy)

    def news(self) -> list[str]:
        """What was not told yet: why something is not measured."""
        told, self._news = self._news, []
        return told

    def hint_gain(self, module: Controlled) -> HintGain:
        return hint_gain(lambda hint_bchw: self._loss(module, hint_bchw), self.batch.hint_bchw)

    def _loss(self, model: Controlled, hint_bchw: Tensor) -> float:
        batch, total = self.batch.with_hints(hint_bchw), 0.0
        for start in range(0, len(self.pairs), self.batch_size):
            part = slice(start, start + self.batch_size)
            loss = denoising_loss(model, self.base.schedule, batch[part], self.draw[part])
            total += loss.item() * len(self.draw.timestep_b[part])
        return total / len(self.pairs)

    def _base_loss(self) -> float:
        """Of the base as it was opened, before any training unlocks it."""
        base = self.base

        def alone(latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, hint_bchw: Tensor) -> Tensor:
            return predict(base.encoder, base.decoder, latent_bchw.to(base.dtype), timestep_b, prompt, None)

        with torch.no_grad():
            return self._loss(alone, self.batch.hint_bchw)

    @cached_property
    def _hints(self) -> list[Rgb]:
        return [self.pairs.hint_of(row) for row in range(self.pictures)]

    @cached_property
    def _judged_hints(self) -> list[Rgb]:
        """As pictures; with alpha where they mark what is to be painted, which the network sees as -1."""
        if not self.pairs.reader.has_marks:
            return self._hints
        seen_bchw = self.batch.hint_bchw[: self.pictures]
        alpha_bchw = (seen_bchw[:, :1] >= 0).to(seen_bchw.dtype)
        rgba_bchw = torch.cat([seen_bchw.clamp(min=0), alpha_bchw], dim=1)
        return list(to_uint8(rgba_bchw * 2 - 1))

    @cached_property
    def _truths(self) -> Rgb:
        """The pictures that the hints belong to, through the VAE, as everything that the base paints."""
        return to_uint8(self.base.decode_latents(self.batch.mean_bchw[: self.pictures]))

    def _generate(self, control: ControlNet) -> list[Rgb]:
        """Pictures from the first hints and prompts with guidance 9 in 20 steps, as the original's logger."""
        unit = Unit(control, self.batch.hint_bchw[: self.pictures])
        prompts = self.pairs.captions[: self.pictures]
        return list(generate_pixels(self.base, prompts, range(self.pictures), [unit], batch_size=self.batch_size))

    def _own_rows(self, control: ControlNet) -> list[list[Rgb]]:
        """Each hint of the user's, cut to the training's size, and its picture: the same seeds at each validation."""
        if not self.own:
            return []
        height, width = self.batch.hint_bchw.shape[2:]
        unit, prompts = Unit(control, [each.image for each in self.own]), [each.prompt for each in self.own]
        made = generate(self.base, prompts, [unit], size=(width, height), batch_size=self.batch_size)
        return [[shown(hint), picture] for hint, picture in zip(made.hints[0], made.pixels_nhwc, strict=True)]

    def _fidelity(self, pictures: Sequence[Rgb]) -> float | None:
        """None where the condition has no measure, or its annotator's weights cannot be had."""
        if self.judge is None:
            return None
        try:
            return self.judge.fidelity(pictures, self._judged_hints, list(self._truths))
        except UserError as error:
            self.judge = None
            self._news.append(f"fidelity is not measured: {error}")
            return None

    def _text_accuracy(self, control: ControlNet) -> float | None:
        """Only the embedded base's pictures can be judged without another network."""
        if self.base.source != EMBEDDED:
            return None
        side, channels = self.base.resolution, self.batch.hint_bchw.shape[1]
        empty = Unit(control, torch.zeros(channels, side, side))
        return text_accuracy(self.base, self.pictures, units=[empty])[0].mean

    def _grid(self, pictures: Sequence[Rgb], own_rows: list[list[Rgb]]) -> Rgb:
        """Hint, prediction, ground truth through the VAE; the prompt under each row; last the user's own."""
        rows = [[shown(hint), *others] for hint, *others in zip(self._hints, pictures, self._truths, strict=True)]
        captions = [*self.pairs.captions[: min(self.pictures, SHOWN)], *(each.prompt for each in self.own)]
        return grid([*rows[:SHOWN], *own_rows], HEADINGS, captions)


def _meaning(pairs: Encoded) -> dict[str, Any]:
    """What the hints say of the annotator that made them; a data set of the user's own says nothing."""
    return pairs.reader.pairs.meaning if isinstance(pairs.reader, PairsReader) else {}


def shown(hint: Rgb) -> Rgb:
    """A hint of any number of channels as a picture."""
    return three_channels(hint if hint.shape[2] in (1, 3, 4) else hint[..., :1])


def publish(folder: Path, record: Record, measured: Validation, console: Console, news: Sequence[str] = ()) -> None:
    """Write what a validation measured where people look, and tell what it reveals: to be done once, by one process."""
    record.add_validation(measured)
    history = record.history
    draw_curve(folder / "curve.png", record.losses, history)
    write_report(folder)
    fidelity = "" if measured.fidelity is None else f", fidelity {measured.fidelity:.2f}"
    alone = "" if measured.base_loss is None else f" (base alone {measured.base_loss:.4f})"
    console.print(
        f"step {measured.step}: held-out loss {measured.loss:.4f}{alone}, hint gain {measured.hint_gain:.3f}{fidelity}"
    )
    if convergence := newly_converged(history):
        console.print(str(convergence), style="bold green")
    for text in [*news, *new_signs(history, record.losses)]:
        console.print(text, style="yellow", markup=False)
