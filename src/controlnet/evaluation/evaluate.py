"""A control measured on pairs: pictures with it and without it, from the same prompts and noise, and their figures.

    controlnet evaluate BASE CONTROL DATA --out evaluation

Pictures are kept: what is there is not made again, so a killed evaluation goes on, and another figure costs no picture.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from controlnet.atomic import write_atomically
from controlnet.base import Base
from controlnet.control import ControlNet
from controlnet.data.pairs import Pairs
from controlnet.errors import UserError
from controlnet.evaluation.clip import cosines, open_clip
from controlnet.evaluation.frechet import Features, frechet_distance, maximum_mean_discrepancy
from controlnet.evaluation.inception import inception_features, open_inception
from controlnet.evaluation.obedience import Judge, Scores
from controlnet.generation.pipeline import generate_pixels
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from controlnet.images import Rgb, decode, encode_png, grid, is_whole_png, three_channels

SIDES = ("with", "without")  # control
SHOWN = 8  # rows of the grid
JUDGED_TOGETHER = 32
FEW = 2048  # pictures: with fewer, Inception's 2048 features have no covariance of full rank, and FID is too large

Progress = Callable[[int, int], None]  # pictures made, of how many


@dataclass(frozen=True)
class Asked:
    """What decides the pictures: another answer, another folder."""

    base: str
    control: str
    data: str
    count: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Figures by name, each with control and without: mean and deviation over the pictures, or one of all."""

    asked: Asked
    pictures: int
    condition: str
    figures: dict[str, dict[str, dict[str, float]]]
    notes: list[str]

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """For a table."""
        for name, sides in self.figures.items():
            yield name, _told(sides["with"]), _told(sides["without"])


def evaluate(
    base: Base,
    control: ControlNet,
    pairs: Pairs,
    judge: Judge | None,
    condition: str,
    asked: Asked,
    out: Path,
    settings: Settings,
    batch_size: int,
    inception: Path | None = None,
    clip: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Make what pictures are missing in `out`, measure all, write evaluation.json and grid.png there.

    UserError for a folder with the pictures of another evaluation, and for weights that cannot be used, before any
    picture is made.
    """
    networks = _Networks(inception, clip, base.device)
    _begin(out, asked)
    rows = range(min(asked.count, len(pairs)))
    _make_missing(base, control, pairs, rows, asked.seed, out, settings, batch_size, progress)
    scores: dict[str, Scores] = {side: {} for side in SIDES}
    for start in range(0, len(rows), JUDGED_TOGETHER):
        part = rows[start : start + JUDGED_TOGETHER]
        samples = [pairs.raw(row) for row in part]
        made = {side: [decode(_path(out, side, row)) for row in part] for side in SIDES}
        if judge:
            targets, hints, _ = (list(each) for each in zip(*samples, strict=True))
            for side in SIDES:
                _extend(scores[side], judge.scores(made[side], hints, targets))
        networks.look(made, [target for target, _, _ in samples], [prompt for _, _, prompt in samples])
    figures = {name: {side: _summary(scores[side][name]) for side in SIDES} for name in scores[SIDES[0]]}
    notes = [] if judge else [f"no measure for the condition {condition!r}, so no fidelity"]
    if inception and len(rows) < FEW:
        notes.append(f"FID of {len(rows)} pictures is too large; compare it only with FIDs of as many")
    result = Evaluation(asked, len(rows), condition, figures | networks.figures(), notes)
    text = json.dumps(asdict(result), indent=2) + "\n"
    write_atomically(out / "evaluation.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    encode_png(_grid(pairs, rows[:SHOWN], out), out / "grid.png")
    return result


class _Networks:
    """What Inception and CLIP see, collected part by part."""

    def __init__(self, inception: Path | None, clip: Path | None, device: torch.device) -> None:
        self.device = device
        self.inception = open_inception(inception, device) if inception else None
        self.clip = open_clip(clip, device) if clip else None
        self.seen: dict[str, list[Features]] = {}
        self.cosines: dict[str, list[float]] = {side: [] for side in SIDES}

    def look(self, made: Mapping[str, Sequence[Rgb]], targets: Sequence[Rgb], prompts: Sequence[str]) -> None:
        for side, pictures in {**made, "truth": targets}.items():
            if self.inception:
                self._keep(f"inception {side}", inception_features(self.inception, pictures, self.device))
            if self.clip:
                self._keep(f"clip {side}", self.clip.see(pictures))
                if side in SIDES:
                    self.cosines[side] += cosines(self.seen[f"clip {side}"][-1], self.clip.read(prompts))

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        found = {}
        if self.inception:
            found["FID"] = self._distances("inception", frechet_distance)
        if self.clip:
            found["CLIP score"] = {side: _summary(self.cosines[side]) for side in SIDES}
            found["CMMD"] = self._distances("clip", maximum_mean_discrepancy)
        return found

    def _keep(self, name: str, features: Features) -> None:
        self.seen.setdefault(name, []).append(features)

    def _distances(self, network: str, distance: Callable[[Features, Features], float]) -> dict[str, dict[str, float]]:
        truth = np.concatenate(self.seen[f"{network} truth"])
        return {side: {"value": distance(np.concatenate(self.seen[f"{network} {side}"]), truth)} for side in SIDES}


def _begin(out: Path, asked: Asked) -> None:
    """Record what is asked, or compare it with what is recorded."""
    path, now = out / "asked.json", asdict(asked)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        names = [name for name in now if name != "count" and before.get(name) != now[name]]
        if names:
            told = "; ".join(f"{name}: {before.get(name)} there, {now[name]} now" for name in names)
            raise UserError(f"{out} has the pictures of another evaluation ({told}); give --out another folder")
    text = json.dumps(now, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _make_missing(
    base: Base,
    control: ControlNet,
    pairs: Pairs,
    rows: Sequence[int],
    seed: int,
    out: Path,
    settings: Settings,
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Row i with seed + i, with control and without.

    Of neighbours that are made together all are made again if one is missing, though only that one is written: what
    else is in a batch decides how its pictures are rounded.
    """
    done = 0
    for side, start in product(SIDES, range(0, len(rows), batch_size)):
        batch = rows[start : start + batch_size]
        missing = {row for row in batch if not is_whole_png(_path(out, side, row))}
        for together in _of_one_size(pairs, batch) if missing else ():
            samples = [pairs.raw(row) for row in together]
            units = [Unit(control, [hint for _, hint, _ in samples])] if side == "with" else []
            (height, width), prompts = samples[0][0].shape[:2], [prompt for _, _, prompt in samples]
            seeds = [seed + row for row in together]
            pixels = generate_pixels(base, prompts, seeds, units, settings, (height, width), batch_size)
            for row, picture in zip(together, pixels, strict=True):
                if row in missing:
                    encode_png(picture, _path(out, side, row))
        done += len(batch)
        if progress:
            progress(done, 2 * len(rows))


def _of_one_size(pairs: Pairs, rows: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours whose pictures are equally large."""
    for _, together in groupby(rows, key=lambda row: pairs.raw(row)[0].shape):
        yield list(together)


def _grid(pairs: Pairs, rows: Sequence[int], out: Path) -> Rgb:
    cells, captions = [], []
    for row in rows:
        target, hint, prompt = pairs.raw(row)
        cells.append([three_channels(hint), *(decode(_path(out, side, row)) for side in SIDES), target])
        captions.append(prompt)
    return grid(cells, ("hint", "with control", "without", "truth"), captions)


def _path(out: Path, side: str, row: int) -> Path:
    return out / side / f"{row:06d}.png"


def _extend(scores: Scores, more: Scores) -> None:
    for name, values in more.items():
        scores.setdefault(name, []).extend(values)


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values))}


def _told(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.3f}" if "value" in figure else f"{figure['mean']:.3f} ± {figure['deviation']:.3f}"
