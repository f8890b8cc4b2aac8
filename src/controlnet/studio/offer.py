"""What a studio offers: all that its start has named. In the browser things have names only, never paths."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from controlnet.base import base_place
from controlnet.checkpoints.control_file import NAME_IN_RUN, PACKAGED, find_control
from controlnet.devices import Device, DType
from controlnet.errors import UserError
from controlnet.generation.request import complaint

RECORD = "config.json"  # of a run
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Offer:
    """Where everything is; names are unique."""

    bases: Mapping[str, str]
    """Name -> what `open_base` takes."""
    given_controls: Mapping[str, str]
    """Name -> what `load_control` takes."""
    given_runs: Mapping[str, Path]
    loras_folder: Path | None
    data: Path
    out: Path
    device: Device = "auto"
    dtype: DType = "auto"
    weights: Path | None = None
    """Of annotators, by the names of their repositories; None is the hub and its cache."""

    @classmethod
    def of(
        cls,
        bases: Iterable[str],
        controls: Iterable[str],
        runs: Iterable[Path],
        loras: Path | None,
        data: Path | None,
        out: Path,
        device: Device,
        dtype: DType,
        weights: Path | None = None,
    ) -> "Offer":
        """UserError for all that is not there, at once."""
        bases, controls, runs = list(bases), list(controls), list(runs)
        problems = [it for base in bases for it in complaint(partial(base_place, base))]
        problems += [it for control in controls for it in complaint(partial(find_control, control))]
        problems += [f"--run {run}: no {RECORD}; expected a run's folder" for run in runs if not _is_run(run)]
        problems += [
            f"{option} {it}: no such folder" for option, it in _folders(loras, data, weights) if not it.is_dir()
        ]
        if problems:
            raise UserError("\n".join(problems))
        packaged = sorted(file.parent.name for file in PACKAGED.glob(f"*/{NAME_IN_RUN}"))
        return cls(
            bases=_named(bases),
            given_controls=_named([*packaged, *controls]),
            given_runs={name: Path(run) for name, run in _named(map(str, runs)).items()},
            loras_folder=loras,
            data=data or out / "data",
            out=out,
            device=device,
            dtype=dtype,
            weights=weights,
        )

    @property
    def runs(self) -> dict[str, Path]:
        """Those given, and those started here, the newest first."""
        own = [file.parent for file in self.out.glob(f"runs/*/{RECORD}")]
        newest = sorted(own, key=lambda run: (run / RECORD).stat().st_mtime, reverse=True)
        return {run.name: run for run in newest} | dict(self.given_runs)

    @property
    def controls(self) -> dict[str, str]:
        """Those given, then those that a run has saved."""
        trained = {name: str(run) for name, run in self.runs.items() if (run / NAME_IN_RUN).is_file()}
        return dict(self.given_controls) | {f"run {name}": place for name, place in trained.items()}

    @property
    def loras(self) -> dict[str, Path]:
        """Of the folder that was given."""
        files = sorted(self.loras_folder.glob("*.safetensors")) if self.loras_folder else []
        return {file.stem: file for file in files}

    @property
    def data_sets(self) -> dict[str, Path]:
        """The folders in the data folder; whether they hold pairs is told when they are checked."""
        return {folder.name: folder for folder in sorted(self.data.glob("[!.]*")) if folder.is_dir()}


def chosen(what: str, name: str | None, offered: Mapping[str, Thing]) -> Thing:
    """What a name stands for. UserError for one that is not offered."""
    if name is None or name not in offered:
        raise UserError(f"{what} {name or 'not chosen'}; expected one of: {', '.join(offered) or 'there are none'}")
    return offered[name]


def _named(places: Iterable[str]) -> dict[str, str]:
    """Each under its last part, with a number where that is taken."""
    named: dict[str, str] = {}
    for place in dict.fromkeys(places):
        last = Path(place).name or place
        names = [last, *(f"{last} ({number})" for number in range(2, len(named) + 3))]
        named[next(name for name in names if name not in named)] = place
    return named


def _folders(loras: Path | None, data: Path | None, weights: Path | None) -> list[tuple[str, Path]]:
    given = (("--lora", loras), ("--data", data), ("--weights-dir", weights))
    return [(option, path) for option, path in given if path is not None]


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).is_file()
