"""All that makes one picture, as plain values: what a command line, a table of jobs and a picture's file say.

Imports nothing heavy: the options of `controlnet generate` inherit from here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import tyro

from controlnet.choices import BaseChoice
from controlnet.errors import UserError
from controlnet.generation.values import read_fields

SafetyMode = Literal["off", "flag", "blur", "block"]


@dataclass(frozen=True, kw_only=True)
class UnitChoice:
    """One `--unit`: what `Unit` is made of. Files as paths; numbers over steps or layers as lists."""

    control: str
    hint: str | None = None
    image: str | None = None
    annotator: str | None = None
    annotator_options: Mapping[str, str] = field(default_factory=dict)
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    schedule: tuple[float, ...] = ()
    layer_weights: tuple[float, ...] = ()
    mask: str | None = None
    mode: str = "balanced"
    resize: str = "crop"
    channel_order: Literal["RGB", "BGR"] | None = None
    """BGR, if the control's file does not say that it learned from such hints."""

    def problems(self) -> list[str]:
        """What can be told before anything is opened."""
        if self.annotator is None:
            found = [f"annotator.{name} without an annotator" for name in self.annotator_options]
            if self.hint is None and self.image is None:
                found.append("no hint; give hint=FILE, or image=FILE and annotator=NAME")
            elif self.image is not None:
                found.append("an image without an annotator; give annotator=NAME, or hint=FILE")
            return found
        if self.image is None or self.hint is not None:
            return [f"the annotator {self.annotator} needs an image, and no hint"]
        return []


@dataclass(frozen=True, kw_only=True)
class PictureOptions(BaseChoice):
    """What base, how it is sampled, from what."""

    lora: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A LoRA to merge into the base: FILE or FILE:WEIGHT."""
    negative_prompt: str = ""
    """What to steer away from."""
    added_prompt: str = ""
    """Put behind every prompt, after a comma."""
    prompt_weights: bool = True
    """Whether (word:1.3), (word) and [word] in prompts are weights; else brackets are read as text."""
    clip_skip: int = 1
    """Layer of the text encoder to listen to, counted from the last."""
    seed: int = 0
    """Seed of the first picture: the same seed and settings give the same picture."""
    steps: int = 20
    """Steps of the scheduler: more are finer and slower."""
    timesteps: tuple[int, ...] = ()
    """In place of --steps: what the scheduler walks, falling."""
    scheduler: str = "ddim"
    """ddim, euler, euler_a, heun, dpmpp_2m, dpmpp_2m_karras, unipc or lcm."""
    eta: float = 0.0
    """Of ddim: 0 adds no noise at its steps, 1 as much as ancestral sampling."""
    guidance_scale: tuple[float, ...] = (9.0,)
    """How strongly the prompt acts (classifier-free guidance), one for all steps or one for each; 1 is no guidance, in
    half the time."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """The fractions of the steps between which guidance acts."""
    image: str | None = None
    """A picture to start from in place of noise alone."""
    mask: str | None = None
    """What of --image to paint anew: white, as large as the image. Black stays."""
    image_strength: float = 0.8
    """How much of --image is painted over: the last fraction of the steps that is walked."""
    width: int | None = None
    """Width in pixels; by default the image's or the hint's, or what the base was made for. Needs --height."""
    height: int | None = None
    """Height in pixels. Needs --width."""
    safety: SafetyMode = "off"
    """What is done to pictures that the base's safety checker finds unsafe: nothing (off: it is not asked), said in
    their settings (flag), blurred, or blackened (block). blur and block refuse to work without a checker."""
    safety_checker: str | None = None
    """Folder with safety_checker/ and feature_extractor/, where the base's own has none."""


@dataclass(frozen=True, kw_only=True)
class Recipe(PictureOptions):
    """One picture."""

    prompt: str
    units: tuple[UnitChoice, ...] = ()

    def problems(self) -> list[str]:
        """What can be told before anything is opened."""
        found = [f"unit {unit.control}: {it}" for unit in self.units for it in unit.problems()]
        if (self.width is None) != (self.height is None):
            given, lacking = ("--width", "--height") if self.height is None else ("--height", "--width")
            found.append(f"{given} is given without {lacking}; give both or none")
        return found

    def pictures(self) -> list[str]:
        """Every picture that it reads."""
        of_units = [place for unit in self.units for place in (unit.hint, unit.image, unit.mask)]
        return [place for place in (self.image, self.mask, *of_units) if place is not None]

    def own(self) -> dict[str, Any]:
        """What may differ between the pictures of one batch."""
        hints = [{"hint": unit.hint, "image": unit.image} for unit in self.units]
        return {"prompt": self.prompt, "seed": self.seed, "image": self.image, "units": hints}

    def with_own(self, own: Mapping[str, Any]) -> "Recipe":
        """This one, but for what is its own that of another."""
        units = tuple(replace(unit, **its) for unit, its in zip(self.units, own["units"], strict=True))
        return replace(self, **{**own, "units": units})

    def shared(self) -> "Recipe":
        """What all pictures of a batch have in common."""
        blank = {"hint": None, "image": None}
        return self.with_own({"prompt": "", "seed": 0, "image": self.image and "", "units": [blank] * len(self.units)})

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> "Recipe":
        """UserError for what is unknown or impossible."""
        problems: list[str] = []
        read = read_fields(cls, {name: value for name, value in values.items() if name != "units"}, problems)
        units = [read_unit(unit, f"unit {number}: ", problems) for number, unit in enumerate(values["units"], 1)]
        if problems:
            raise UserError(f"{where}: " + "; ".join(problems))
        return cls(**read, units=tuple(unit for unit in units if unit))


def read_unit(values: Mapping[str, Any], where: str, problems: list[str]) -> UnitChoice | None:
    """A unit from its values, numbers also as text; None, and why among the `problems`, if it cannot be one.

    An annotator's options are named `annotator.low`, or are a mapping under `annotator_options`.
    """
    prefix = "annotator."
    options = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    plain = {name: value for name, value in values.items() if not name.startswith(prefix)}
    wrong: list[str] = []
    read = read_fields(UnitChoice, plain, wrong)
    if "control" not in read and not wrong:
        wrong.append("no control; give control=FILE or the name of one")
    problems += [f"{where}{it}" for it in wrong]
    options = {name: str(value) for name, value in {**read.pop("annotator_options", {}), **options}.items()}
    return None if wrong else UnitChoice(**read, annotator_options=options)
