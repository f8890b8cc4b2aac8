"""The models and files that recipes name: what is wrong with them, opened once, and their fingerprints."""

import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import diffusers
import torch

from controlnet.annotators.annotator import Annotator, all_options
from controlnet.annotators.hint_file import read_description
from controlnet.annotators.table import load
from controlnet.base import Base, base_place, open_base
from controlnet.checkpoints.control_file import ControlMetadata, find_control, load_control, read_metadata
from controlnet.checkpoints.eight_bit import store_in_eight_bits
from controlnet.checkpoints.fingerprints import fingerprint, remembered
from controlnet.control import ControlNet
from controlnet.devices import Device, DType, fastest_dtype
from controlnet.errors import UserError
from controlnet.generation.lora import NAME_IN_FOLDER, load_lora
from controlnet.generation.memory import MemoryOptions
from controlnet.generation.recipe import Recipe, UnitChoice
from controlnet.generation.request import complaint
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from controlnet.generation.values import expected, to_type

NO_MEMORY_OPTIONS = MemoryOptions()
UNSAID = {"unknown", "none", "RGBA"}  # what a hint or a control may say and leaves open; alpha is what inpaint marks by


@dataclass(frozen=True, eq=False)
class Opener:
    """Of recipes that share base and LoRAs."""

    recipe: Recipe
    device: Device
    dtype: DType
    memory: MemoryOptions = NO_MEMORY_OPTIONS
    _controls: dict[Any, ControlNet] = field(default_factory=dict, init=False)
    _annotators: dict[Any, Annotator] = field(default_factory=dict, init=False)
    _digests: dict[Path, str] = field(default_factory=dict, init=False)

    @cached_property
    def base(self) -> Base:
        """With its LoRAs merged, stored as it shall be; in main memory if memory is to be saved."""
        resident = not self.memory.is_saving
        dtype = fastest_dtype(self.dtype, self.device)
        base = open_base(device=self.device, dtype=dtype, resident=resident, **self.recipe.how_to_open())
        if self.recipe.lora or self.memory.storage == "8bit":
            self._digest_of_base(base)  # while its weights are those of its files
        for file, weight in map(lora_and_weight, self.recipe.lora):
            load_lora(base, file, weight)
        if self.memory.storage == "8bit":
            store_in_eight_bits(base.unet)
        return base

    @property
    def controls(self) -> list[ControlNet]:
        """Those that are open."""
        return list(self._controls.values())

    def control(self, choice: UnitChoice) -> ControlNet:
        """UserError if it does not fit the base."""
        key = (choice.control, choice.channel_order)
        if key not in self._controls:
            opened, _ = load_control(choice.control, self.base, channel_order=choice.channel_order)
            self._controls[key] = opened
        return self._controls[key]

    def annotator(self, choice: UnitChoice) -> Annotator:
        """The same one for all batches: it keeps its network, which leaves the device alone if memory is saved."""
        key = (choice.annotator, *sorted(choice.annotator_options.items()))
        if key not in self._annotators:
            self._annotators[key] = make_annotator(choice, "cpu" if self.memory.is_saving else self.device)
        return self._annotators[key]

    def units(self, recipes: list[Recipe]) -> list[Unit]:
        """The units of pictures that are made together: each with one hint for all, or one for each."""
        return [
            Unit(
                self.control(choice),
                _one_or_each([recipe.units[number].hint for recipe in recipes]),
                choice.strength,
                choice.start,
                choice.end,
                _one_or_several(choice.schedule),
                choice.layer_weights or None,
                choice.mask,
                choice.mode,  # type: ignore[arg-type]  # both are checked with the request
                choice.resize,  # type: ignore[arg-type]
                _one_or_each([recipe.units[number].image for recipe in recipes]),
                self.annotator(choice) if choice.annotator else None,
            )
            for number, choice in enumerate(recipes[0].units)
        ]

    def inputs(self, recipe: Recipe) -> dict[str, str]:
        """SHA-256 of the base's weights and of each file, by the name that the recipe has for it."""
        files = {place: Path(place) for place in recipe.pictures()}
        files |= {unit.control: find_control(unit.control, self.base.family) for unit in recipe.units}
        files |= {lora: lora_file(lora) for lora in recipe.lora}
        return {
            recipe.base: self._digest_of_base(self.base),
            **{name: self._digest(file) for name, file in files.items()},
        }

    def machine(self) -> dict[str, Any]:
        """What may change a grey level."""
        device = self.base.device
        return {
            "device": device.type,
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            **({"storage": "8bit"} if self.memory.storage == "8bit" else {}),
        }

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = fingerprint(path)
        return self._digests[path]

    def _digest_of_base(self, base: Base) -> str:
        """`Base.hash` of the weights in its files."""
        place = base_place(self.recipe.base)
        if place not in self._digests:
            self._digests[place] = remembered(base.hash, place, f"base {self.recipe.how_to_open()} {base.dtype}")
        return self._digests[place]


def problems_of_files(recipes: Iterable[Recipe]) -> list[str]:
    """What is missing of models and annotators; nothing is opened yet."""
    found = []
    for recipe in recipes:
        for lora in recipe.lora:
            found += complaint(partial(lora_file, lora))
        for unit in recipe.units:
            wrong = complaint(partial(find_control, unit.control))
            if unit.annotator is not None:
                wrong += complaint(partial(make_annotator, unit, "cpu"))
            found += [f"unit {unit.control}: {it}" for it in wrong]
    return list(dict.fromkeys(found))


def strange_hints(recipes: Iterable[Recipe]) -> list[str]:
    """Where a hint's file says that it is another kind of hint than what its control's file says that it wants."""
    pairs = {(unit.hint, unit.control): unit for recipe in recipes for unit in recipe.units if unit.hint is not None}
    wanted = {control: read_metadata(control) for control in dict.fromkeys(control for _, control in pairs)}
    return [
        f"hint {hint}: its {name.replace('_', ' ')} is {found}, the control {control} takes {taken}"
        for hint, control in pairs
        for name, found, taken in _mismatches(read_description(Path(str(hint))) or {}, wanted[control])
    ]


def _mismatches(described: Mapping[str, Any], metadata: ControlMetadata) -> Iterator[tuple[str, str, str]]:
    """What both say, differently: its name, what the hint says, what the control takes once it is loaded."""
    takes = {"condition": metadata.condition, "polarity": metadata.polarity, "channel_order": "RGB"}
    for name, taken in takes.items():
        found = described.get(name, taken)
        if UNSAID.isdisjoint((found, taken)) and found != taken:
            yield name, found, taken


def settings_of(recipe: Recipe) -> Settings:
    """The part of the recipe that is about sampling."""
    given = {each.name: getattr(recipe, each.name) for each in fields(Settings)}
    scale = _one_or_several(recipe.guidance_scale)
    return Settings(
        **given | {"guidance_scale": 1.0 if scale is None else scale, "timesteps": recipe.timesteps or None}
    )


def make_annotator(choice: UnitChoice, device: Device) -> Annotator:
    """With its options, numbers also as text. UserError for what it does not know."""
    kind = load(str(choice.annotator))
    known = {option.name: option for option in all_options(kind)}
    options: dict[str, Any] = {"device": device} if "device" in known else {}
    problems = []
    for name, value in choice.annotator_options.items():
        if name not in known:
            problems.append(f"the annotator {choice.annotator} has no {name!r}; it has {', '.join(known)}")
            continue
        try:
            options[name] = to_type(known[name].type, value)
        except (ValueError, TypeError):
            problems.append(f"annotator.{name} is {value!r}; expected {expected(known[name].type)}")
    if problems:
        raise UserError("; ".join(problems))
    return kind(**options)


def lora_and_weight(text: str) -> tuple[str, float]:
    """FILE:WEIGHT, or FILE, whose weight is 1."""
    file, colon, weight = text.rpartition(":")
    try:
        return (file, float(weight)) if colon else (text, 1.0)
    except ValueError:  # a colon of the path's own
        return text, 1.0


def lora_file(text: str) -> Path:
    """The file of what `lora_and_weight` takes. UserError if it is not there."""
    path = Path(lora_and_weight(text)[0]).expanduser()
    path = path / NAME_IN_FOLDER if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"LoRA {path}: no such file; expected FILE or FILE:WEIGHT, a .safetensors file")
    return path


def _one_or_each(places: list[str | None]) -> Any:
    """One for all where it is the same file."""
    return places[0] if len(set(places)) == 1 else places


def _one_or_several(values: tuple[float, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values) or None
