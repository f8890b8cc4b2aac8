"""What the Generate tab does, without a page: it can be tried in Python alone."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controlnet.errors import UserError
from controlnet.generation.pipeline import Report
from controlnet.studio import history
from controlnet.studio.asked import Asked, Pixels, UnitAsked
from controlnet.studio.carried import read_asked
from controlnet.studio.jobs import Job, Jobs, News, Stopped
from controlnet.studio.limits import LIMITS, Limits
from controlnet.studio.making import Pictures, make
from controlnet.studio.models import Models
from controlnet.studio.offer import Offer
from controlnet.studio.parts import quiet
from controlnet.studio.progress import Told
from controlnet.studio.units import is_empty, see, suited


@dataclass(frozen=True, eq=False)
class Finished:
    """A call that came to its end."""

    told: str
    gallery: list[Any]
    """(picture or its file, caption), hints first."""
    paths: list[Path]


class Desk:
    """Of one studio, for all its visitors."""

    shown = 36  # pictures of the history

    def __init__(self, offer: Offer, limits: Limits = LIMITS) -> None:
        self.offer, self.limits = offer, limits
        self.models = Models(offer)
        self.jobs = Jobs()

    def open(self) -> None:
        """The first base and the first control for it, before they are asked for."""
        with suppress(UserError):  # which whoever asks for a picture is told
            base = self.models.base(next(iter(self.offer.bases)))
            control = next(iter(self.offer.controls))
            *_, is_bgr = self.suited(control)
            self.models.control(control, is_bgr, base)

    def folder(self, visitor: str) -> Path:
        """Of what a visitor made. UserError for a name that is none of ours."""
        if not history.is_visitor(visitor):
            raise UserError("this page is older than the studio; reload it")
        return self.offer.out / "pictures" / visitor

    def generate(self, asked: Asked, session: str, visitor: str) -> Iterator[str | Finished]:
        """HTML on how far it is, then what it came to. UserError for people; nothing more after a stop."""
        told, folder = Told(_title(asked)), self.folder(visitor)

        def work(job: Job[Report, Pictures]) -> Pictures:
            return make(asked, self.models, job.tell, self.limits)

        yield told.waiting()
        job = Job(work, self.limits.seconds)
        try:
            for report in self.run(session, job):
                yield told.stepped(report, is_previewed=True)
            pictures = job.result()
        except Stopped:
            yield quiet("Stopped.")
            return
        yield self._finished(pictures, history.keep(pictures, folder), told)

    def run(self, session: str, job: Job[News, Any]) -> Iterator[News]:
        """A session's job, which `stop` stops, with its news; whoever stops to listen stops it, too."""
        self.jobs.begin(session, job)
        try:
            for news in job.run():
                if news is not None:
                    yield news
        finally:
            self.jobs.end(session)

    def _finished(self, pictures: Pictures, paths: list[Path], told: Told) -> Finished:
        hints = [(hint, f"hint {number}") for number, hint in enumerate(pictures.seen.hints, 1)]
        made = [(path, f"seed {each.recipe.seed}") for path, each in zip(paths, pictures.made, strict=True)]
        words = told.done(sum(pictures.seconds.values()), pictures.asked.seed, pictures.seen.size)
        return Finished(words, [*hints, *made], paths)

    def stop(self, session: str) -> None:
        """The session's job, between two steps."""
        self.jobs.stop(session)

    def preview(self, asked: Asked, number: int) -> tuple[Pixels | None, str]:
        """What the network of unit `number` would be given, and a word on it. UserError if it cannot be made."""
        if is_empty(asked.units[number]):
            return None, "Nothing there yet: the unit is off."
        base = self.models.base(asked.base)
        seen = see(asked, self.models, base, self.limits)
        place = sum(not is_empty(unit) for unit in asked.units[:number])
        hint = seen.hints[place]
        return hint, f"{hint.shape[1]}x{hint.shape[0]} pixels, byte for byte what the network is given."

    def suited(self, control: str) -> tuple[str, str, bool, bool]:
        """Annotator, source, whether inverted and whether BGR, for a control that was chosen."""
        unit = suited(UnitAsked(control=control), self.models.metadata(control))
        return unit.annotator, unit.source, unit.invert, unit.is_bgr

    def last_seed(self, visitor: str) -> int:
        """Of the visitor's newest picture; -1 if there is none."""
        newest = history.pictures_of(self.folder(visitor))[:1]
        return read_asked(newest[0]).seed if newest else -1

    def restored(self, path: Path) -> Asked:
        """The tab that a picture was made with. UserError if this studio lacks what it was made with."""
        asked = read_asked(path)
        asked = replace(asked, base=_name(asked.base, self.offer.bases))
        units = [replace(unit, control=_name(unit.control, self.offer.controls)) for unit in asked.units]
        lacking = [f"base {asked.base}"] * (asked.base not in self.offer.bases)
        used = dict.fromkeys(unit.control for unit in units if not is_empty(unit))
        lacking += [f"control {name}" for name in used if _lacks(self.offer, name)]
        lacking += [f"LoRA {name}" for name in asked.loras if name not in self.offer.loras]
        if lacking:
            raise UserError(f"made with {', '.join(lacking)}, which this studio has not; start it with them")
        first = next(iter(self.offer.controls))
        units = [replace(unit, control=first) if _lacks(self.offer, unit.control) else unit for unit in units]
        return replace(asked, units=tuple(units))


def _lacks(offer: Offer, control: str) -> bool:
    return control not in offer.controls


def _name(place: str, offered: Any) -> str:
    """Pictures of `controlnet generate` say places, ours say names."""
    return next((name for name, its in offered.items() if its == place), place)


def _title(asked: Asked) -> str:
    return "1 picture" if asked.count == 1 else f"{asked.count} pictures"
