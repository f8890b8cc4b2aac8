"""What the Compare tab does: one prompt and seed over two lists of values, an x/y grid."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from controlnet.errors import UserError
from controlnet.generation.pipeline import Report
from controlnet.images import Rgb, encode_png, grid, three_channels
from controlnet.studio import history
from controlnet.studio.asked import Asked, Pixels, UnitAsked, numbers
from controlnet.studio.desk import Desk
from controlnet.studio.jobs import Job
from controlnet.studio.making import SEEDS, Pictures, make
from controlnet.studio.models import at_step
from controlnet.studio.offer import chosen
from controlnet.studio.units import is_empty

NO_AXIS = "nothing"
MOST_VALUES = 12

Apply = Callable[[Asked, str], Asked]


@dataclass(frozen=True)
class Axis:
    """What is varied; values come as text, with spaces between numbers and commas between names."""

    help: str
    apply: Apply
    is_numeric: bool = True


def _first_unit(asked: Asked, change: Callable[[UnitAsked], UnitAsked]) -> Asked:
    """With the first unit that acts changed."""
    place = next((place for place, unit in enumerate(asked.units) if not is_empty(unit)), None)
    if place is None:
        raise UserError("no unit acts on the Generate tab; give one a picture or a drawing")
    units = list(asked.units)
    units[place] = change(units[place])
    return replace(asked, units=tuple(units))


def _of_unit(change: Callable[[UnitAsked, str], UnitAsked]) -> Apply:
    """Of the first unit that acts."""
    return lambda asked, value: _first_unit(asked, lambda unit: change(unit, value))


AXES: Mapping[str, Axis] = {
    NO_AXIS: Axis("", lambda asked, value: asked),
    "strength": Axis("0 0.5 1 1.5", _of_unit(lambda unit, value: replace(unit, strength=float(value)))),
    "start": Axis("fractions: 0 0.2 0.4", _of_unit(lambda unit, value: replace(unit, start=float(value)))),
    "end": Axis("fractions: 0.25 0.5 1", _of_unit(lambda unit, value: replace(unit, end=float(value)))),
    "mode": Axis("balanced, prompt, control", _of_unit(lambda unit, value: replace(unit, mode=value)), False),
    "control": Axis("names, with commas", _of_unit(lambda unit, value: replace(unit, control=value)), False),
    "training step": Axis(
        "of the first unit's run: 100 200",
        _of_unit(lambda unit, value: replace(unit, control=at_step(unit.control, int(float(value))))),
    ),
    "steps": Axis("of the sampler: 5 10 20", lambda asked, value: replace(asked, steps=int(float(value)))),
    "guidance": Axis("1 3 9", lambda asked, value: replace(asked, guidance_scale=float(value))),
    "seed": Axis("0 1 2", lambda asked, value: asked.with_seed(int(float(value)))),
    "prompt": Axis("prompts, with commas", lambda asked, value: replace(asked, prompt=value), False),
}


@dataclass(frozen=True)
class Comparison:
    """A grid: x goes to the right, y down."""

    x: str
    xs: tuple[str, ...]
    y: str
    ys: tuple[str, ...]

    @classmethod
    def of(cls, x: str, xs: str, y: str, ys: str, most_cells: int) -> "Comparison":
        """UserError with all that is wrong with the axes."""
        if x == y != NO_AXIS:
            raise UserError(f"both axes are {x}; choose another for one of them")
        found = cls(x, values(x, xs), y, values(y, ys))
        if len(found.xs) * len(found.ys) > most_cells:
            raise UserError(f"{len(found.xs)} x {len(found.ys)} pictures; expected at most {most_cells} in all")
        return found

    def asked(self, plain: Asked, x: str, y: str) -> Asked:
        return AXES[self.y].apply(AXES[self.x].apply(replace(plain, count=1), x), y)

    def heading(self, axis: str, value: str) -> str:
        return f"{axis} {value}" if axis != NO_AXIS else ""


def values(axis: str, text: str) -> tuple[str, ...]:
    """Of one axis. UserError for none, for too many, and for what is no number where one is meant."""
    kind = chosen("axis", axis, AXES)
    if axis == NO_AXIS:
        return ("",)
    if kind.is_numeric:
        found = tuple(f"{number:g}" for number in numbers(text, axis))
    else:
        found = tuple(filter(None, map(str.strip, text.split(","))))
    if not 0 < len(found) <= MOST_VALUES:
        raise UserError(f"{len(found)} values of {axis}; expected 1 to {MOST_VALUES}: {kind.help}")
    return found


@dataclass(frozen=True, eq=False)
class Sheet:
    """As far as it is made."""

    done: int
    total: int
    pixels: Rgb
    path: Path | None
    """Of the whole sheet, once it is whole."""


def compare(
    plain: Asked, comparison: Comparison, desk: Desk, folder: Path, tell: Callable[[Report], None]
) -> Iterator[Sheet]:
    """The sheet after each picture; every picture goes into the history, too."""
    plain = plain if plain.seed >= 0 else plain.with_seed(secrets.randbelow(SEEDS))
    total, rows = len(comparison.xs) * len(comparison.ys), list[list[Pixels]]()
    made: list[Pictures] = []
    for y in comparison.ys:
        rows.append([])
        for x in comparison.xs:
            made.append(make(comparison.asked(plain, x, y), desk.models, tell, desk.limits))
            history.keep(made[-1], folder)
            rows[-1].append(made[-1].pixels_nhwc[0])
            yield Sheet(len(made), total, _sheet(rows, comparison, made[0]), None)
    pixels = _sheet(rows, comparison, made[0])
    path = folder / "sheets" / f"{plain.seed}.png"
    encode_png(pixels, path)
    yield Sheet(total, total, pixels, path)


def _sheet(rows: list[list[Pixels]], comparison: Comparison, first: Pictures) -> Rgb:
    """With the hint, if there is one, before the first picture of each row."""
    hints = [three_channels(hint) for hint in first.seen.hints[:1]]
    headings = ["hint"] * len(hints) + [comparison.heading(comparison.x, x) for x in comparison.xs]
    captions = [comparison.heading(comparison.y, y) for y in comparison.ys[: len(rows)]]
    return grid([[*hints, *row] for row in rows], headings, captions if comparison.y != NO_AXIS else ())


def comparison_job(plain: Asked, comparison: Comparison, desk: Desk, folder: Path) -> Job[Sheet, Sheet]:
    """Tells the sheet after each picture, and hears between two steps whether to stop; gives the whole one."""

    def work(job: Job[Sheet, Sheet]) -> Sheet:
        for sheet in compare(plain, comparison, desk, folder, lambda report: job.check()):
            job.tell(sheet)
        return sheet

    return Job(work, desk.limits.seconds)
