"""Jobs -> picture files: all that can be told before any work, batches, safety, what is there already.

A batch is on disk before the next begins, and is always made as a whole: so an interruption changes no picture.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from controlnet.devices import Device, DType
from controlnet.errors import UserError
from controlnet.generation import safety
from controlnet.generation.checks import check
from controlnet.generation.jobs import Job, unreadable
from controlnet.generation.memory import PLENTY, Memory, MemoryOptions
from controlnet.generation.needs import Needs, choose
from controlnet.generation.opening import (
    NO_MEMORY_OPTIONS,
    Opener,
    problems_of_files,
    settings_of,
    strange_hints,
)
from controlnet.generation.picture_file import Made, read_made, write_picture
from controlnet.generation.pipeline import carry_out
from controlnet.generation.placing import check_attention, settle
from controlnet.generation.request import Request, complaint
from controlnet.images import header_size
from controlnet.speed import compile_parts

Report = Callable[[float], None]  # pictures done so far, with fractions


@dataclass(frozen=True)
class Outcome:
    """A picture on disk."""

    path: Path
    made: Made
    is_new: bool
    """Whether it was made now; else it was there."""


@dataclass(frozen=True, eq=False)
class Production:
    """A list of jobs on one base, and where to compute."""

    jobs: Sequence[Job]
    device: Device = "auto"
    dtype: DType = "auto"
    batch_size: int = 4
    options: MemoryOptions = NO_MEMORY_OPTIONS
    compiled: bool = False

    def check(self, known: Sequence[str] = ()) -> None:
        """UserError with all that is wrong, also what is known to be, before any picture is made.

        Opens the models once their files are there.
        """
        attention = complaint(partial(check_attention, self.options.attention))
        _raise([*known, *attention, *self._problems_of_files(), *self._problems_of_safety()])
        _ = self._opener.base
        units = {(unit.control, unit.channel_order): unit for job in self.jobs for unit in job.recipe.units}
        _raise([it for unit in units.values() for it in complaint(partial(self._opener.control, unit))])
        representatives = {self._key(batch[0]): batch for batch in reversed(self.batches)}.values()
        _raise([it for batch in representatives for it in complaint(partial(self._check, batch))])
        if self.memory.offload == "none":
            settle(self._opener.base, self._opener.controls)
        if self.compiled:
            compile_parts(self._opener.base.encoder, self._opener.base.decoder, *self._opener.controls)

    @cached_property
    def warnings(self) -> list[str]:
        """What does not hinder, and is probably not as meant."""
        return strange_hints(job.recipe for job in self.jobs)

    @property
    def memory(self) -> Memory:
        """How it is used for all batches."""
        return self._memory[0]

    @property
    def needs(self) -> Needs | None:
        """How much of it the batch needs that needs the most, if it was chosen within a limit."""
        return self._memory[1]

    def produce(self, out: Path, report: Report) -> Iterator[list[Outcome]]:
        """The pictures that have a name, a batch at a time; those that are in `out` already are not made again."""
        done = 0
        for batch in self.batches:
            yield self._on_disk(batch, out, partial(_further, report, done))
            done += len(batch)
            report(done)

    def _on_disk(self, batch: list[Job], out: Path, report: Report) -> list[Outcome]:
        """Makes the batch if any of its pictures is not there, and writes those."""
        made = self._made(batch)
        places = {number: _place(out, job.name, made[number]) for number, job in enumerate(batch) if job.name}
        lacking = [number for number, place in places.items() if not place.exists()]
        if lacking:
            pixels_nhwc, made = self._make(batch, made, report)
        for number in lacking:
            write_picture(places[number], pixels_nhwc[number], made[number])
        return [Outcome(place, read_made(place) or made[number], number in lacking) for number, place in places.items()]

    @cached_property
    def batches(self) -> list[list[Job]]:
        """Jobs that can be made together: all but prompt, seed and hints is the same, and the hints' sizes are."""
        together: dict[Any, list[Job]] = {}
        for job in self.jobs:
            together.setdefault(self._key(job), []).append(job)
        size = self.batch_size
        return [jobs[start : start + size] for jobs in together.values() for start in range(0, len(jobs), size)]

    @cached_property
    def checker(self) -> Path | None:
        """Folder of the safety checker, if it is asked for and there is one."""
        recipe = self.jobs[0].recipe
        return None if recipe.safety == "off" else safety.find_checker(recipe.base, recipe.safety_checker)

    @cached_property
    def _opener(self) -> Opener:
        return Opener(self.jobs[0].recipe, self.device, self.dtype, self.options)

    @cached_property
    def _memory(self) -> tuple[Memory, Needs | None]:
        modes, limit = self.options.modes(), self.options.limit()
        if limit is None:
            return modes[0], None
        largest = {self._key(batch[0]): batch for batch in reversed(self.batches)}.values()
        return choose([self._request(batch) for batch in largest], modes, limit)

    @cached_property
    def _open_checker(self) -> safety.Checker | None:
        device = torch.device("cpu") if self.options.is_saving else self._opener.base.device
        return safety.open_checker(self.checker, device) if self.checker else None

    def _problems_of_files(self) -> list[str]:
        return [*unreadable(self.jobs), *problems_of_files(job.recipe for job in self.jobs)]

    def _problems_of_safety(self) -> list[str]:
        recipe = self.jobs[0].recipe
        if wrong := complaint(lambda: self.checker):
            return wrong
        if recipe.safety in ("off", "flag") or self.checker is not None:
            return []
        return [
            f"--safety {recipe.safety}, and the base {recipe.base} has no safety checker: nothing can be shown that "
            "was not checked; give --safety-checker FOLDER, or --safety flag or off"
        ]

    def _key(self, job: Job) -> Any:
        """Equal for jobs that can be made together."""
        return repr(job.recipe.shared()), tuple(map(header_size, job.recipe.pictures()))

    def _made(self, batch: Sequence[Job]) -> list[Made]:
        """How the pictures of a batch come about, but for what the checker will find."""
        own = [job.recipe.own() for job in batch] if len(batch) > 1 else []
        opener, ways = self._opener, {"compiled": True} if self.compiled else {}
        machine = opener.machine() | shades(self.memory) | ways
        checked = {} if self.jobs[0].recipe.safety == "off" else {"checker": str(self.checker or "none")}
        return [
            Made(job.recipe, opener.inputs(job.recipe), machine, own, place, checked) for place, job in enumerate(batch)
        ]

    def _make(self, batch: list[Job], made: list[Made], report: Report) -> tuple[NDArray[np.uint8], list[Made]]:
        """The pictures (n, H, W, 3) as they may be shown, and what the checker found."""
        result = carry_out(self._request(batch, self.memory), lambda done, total: report(len(batch) * done / total))
        if self._open_checker is None:
            return result.pixels_nhwc, made
        unsafe, mode = self._open_checker.finds_unsafe(result.pixels_nhwc), batch[0].recipe.safety
        found = [
            replace(each, safety={**each.safety, "unsafe": it, "done": mode})
            for each, it in zip(made, unsafe, strict=True)
        ]
        return safety.hidden(result.pixels_nhwc, unsafe, mode), found

    def _check(self, batch: Sequence[Job]) -> None:
        check(self._request(batch))

    def _request(self, batch: Sequence[Job], memory: Memory = PLENTY) -> Request:
        recipes = [job.recipe for job in batch]
        first = recipes[0]
        images = [recipe.image for recipe in recipes]
        return Request(
            self._opener.base,
            [recipe.prompt for recipe in recipes],
            [recipe.seed for recipe in recipes],
            self._opener.units(recipes),
            settings_of(first),
            (first.height, first.width) if first.height is not None and first.width is not None else None,
            images[0] if len(set(images)) == 1 else images,  # type: ignore[arg-type]  # all or none have one
            first.mask,
            len(batch),
            memory,
        )


def shades(memory: Memory) -> dict[str, str]:
    """What of it may change a grey level, but for how many pictures are decoded together."""
    found = {"vae": memory.vae if memory.vae == "tiled" else "whole", "attention": memory.attention}
    return {name: way for name, way in found.items() if way not in ("whole", "auto")}


def companions(picture: Path, made: Made) -> list[Job]:
    """The batch that a picture was made in, of which it alone is written: it then is the same bit for bit."""
    recipes = [made.recipe.with_own(own) for own in made.batch] or [made.recipe]
    return [Job(picture.stem if place == made.place else None, recipe) for place, recipe in enumerate(recipes)]


def differences(one: Made, other: Made) -> list[str]:
    """What is not the same of two that have the same recipe: they may look different."""
    pairs = {**one.inputs, **one.machine}.items(), {**other.inputs, **other.machine}
    return [
        f"{name}: {value} then, {pairs[1].get(name)} now" for name, value in pairs[0] if pairs[1].get(name) != value
    ]


def _further(report: Report, before: float, part: float) -> None:
    report(before + part)


def _place(out: Path, name: str, made: Made) -> Path:
    """out/NAME.png, or the first of NAME-2.png, NAME-3.png ... that holds this picture or does not exist."""
    numbered = (out / (f"{name}.png" if number == 1 else f"{name}-{number}.png") for number in count(1))
    return next(path for path in numbered if not path.exists() or _holds(path, made))


def _holds(path: Path, made: Made) -> bool:
    try:
        there = read_made(path)
    except UserError:  # damaged
        return False
    return there is not None and there.is_as(made)


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
