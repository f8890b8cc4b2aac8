"""Pairs encoded before any training, into the cache that lies with them: `controlnet build` does it at its end.

A training finds there what was encoded for its base, size and precision, so these options have the trainer's names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from controlnet.devices import Device
from controlnet.errors import UserError
from controlnet.generation.values import read_fields
from controlnet.training.cache import CACHE, encode, fingerprint
from controlnet.training.computation import opened
from controlnet.training.config import TrainConfig
from controlnet.training.sources import caching_of, open_pairs

# what decides how a pair is encoded
OPTIONS = (
    "base ema tokenizer prediction pretrained_vae dtype resolution random_crop random_flip aspect_buckets crop_variants"
).split()
PLACES = ("base", "tokenizer", "pretrained_vae")  # paths, where there is such a path


@dataclass(frozen=True)
class Ahead:
    """What is encoded ahead, as the table [encode] of a recipe says it."""

    options: Mapping[str, Any]
    """Those of OPTIONS that were given."""

    def config(self, data: Path, device: Device = "auto") -> TrainConfig:
        """The training that this is for, as far as it matters here."""
        return TrainConfig(data=data, out=data, device=device, **self.options)

    def check(self, device: Device = "auto") -> None:
        """UserError if the base, or a VAE of its own, cannot be opened."""
        opened(self.config(Path(), device))

    def encode(self, data: Path, console: Console, device: Device = "auto") -> int:
        """Encode the pairs in the folder `data` into its cache, as far as they are not there; how many pairs."""
        config = self.config(data, device)
        base, pairs = opened(config), open_pairs(config)
        return len(encode(base, pairs, data / CACHE, fingerprint(pairs), console, caching_of(config)))

    def command(self, data: Path) -> str:
        """The training that finds it all."""
        told = {"data": data, **self.options, "out": "RUN"}
        words = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in told.items()]
        return " ".join(["controlnet train", *words])


def read_ahead(told: Any, folder: Path, problems: list[str]) -> Ahead | None:
    """The options in a table, with paths from `folder`; None, and all that is wrong told among the `problems`."""
    if not isinstance(told, Mapping):
        problems.append(f"encode is {told!r}; expected a table: [encode]")
        return None
    wrong = [f"there is no {name!r}; expected one of: {', '.join(OPTIONS)}" for name in told if name not in OPTIONS]
    given = read_fields(TrainConfig, {name: value for name, value in told.items() if name in OPTIONS}, wrong)
    ahead = Ahead({name: _from(folder, name, value) for name, value in given.items() if value is not False})
    wrong += _contradictions(ahead)
    problems += [f"encode: {each}" for each in wrong]
    return None if wrong else ahead


def _from(folder: Path, name: str, value: Any) -> Any:
    return type(value)(folder / value) if name in PLACES and (folder / value).exists() else value


def _contradictions(ahead: Ahead) -> list[str]:
    """What the trainer says of these options, in a recipe's words; and what cannot be encoded before a training."""
    try:
        config = ahead.config(Path())
    except UserError as error:
        return re.sub(r"--([a-z][\w-]*)", lambda name: name[1].replace("-", "_"), str(error)).splitlines()
    if (config.random_crop or config.random_flip) and not config.crop_variants:
        return [
            "random_crop and random_flip draw a new view at each visit, which nobody can encode before; add "
            "crop_variants = 4, for so many views of each pair"
        ]
    return []
