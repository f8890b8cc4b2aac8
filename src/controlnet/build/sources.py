"""Rows from nothing but words, and from pictures on disk."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from string import Formatter

from controlnet.build.pictures import inspected
from controlnet.build.rows import Row, identify
from controlnet.build.stage import Source
from controlnet.data.pictures import find_pictures
from controlnet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prompts(Source):
    """Prompts from templates: every combination of their words once, in an order that the seed shuffles."""

    templates: tuple[str, ...]
    """Texts with words in braces: "{adjective} {room}, {style} interior design"."""
    words: Mapping[str, list[str]]
    """What each word in braces may be."""
    limit: int | None = None
    """At most so many prompts, of all rooms and styles and not of the first."""
    seed: int = 0
    """Of the order."""

    def __post_init__(self) -> None:
        problems = [f"words.{name} is {them!r}; expected a list of texts" for name, them in self.words.items()
                    if not (isinstance(them, list) and them and all(isinstance(it, str) for it in them))]  # fmt: skip
        unknown = {name for template in self.templates for name in _names(template)} - self.words.keys()
        problems += [f"{{{name}}} has no words; add words.{name} = [...]" for name in sorted(unknown)]
        if not self.templates:
            problems.append("templates is empty; expected at least one text")
        if problems:
            raise UserError("\n".join(problems))

    def rows(self) -> Iterator[Row]:
        sizes = [prod(len(self.words[name]) for name in _names(template)) for template in self.templates]
        numbers = list(range(sum(sizes)))
        random.Random(self.seed).shuffle(numbers)
        seen: set[str] = set()
        for number in numbers:
            if self.limit is not None and len(seen) >= self.limit:
                return
            text = self._text(number, sizes)
            if text not in seen:
                seen.add(text)
                yield Row(identify(text), {"prompt": text, "source": "prompts"})

    def _text(self, number: int, sizes: list[int]) -> str:
        """The combination of this number, counted through all templates."""
        for template, size in zip(self.templates, sizes, strict=True):
            if number < size:
                return template.format(**self._choice(template, number))
            number -= size
        raise AssertionError(number)

    def _choice(self, template: str, number: int) -> dict[str, str]:
        chosen = {}
        for name in _names(template):
            number, place = divmod(number, len(self.words[name]))
            chosen[name] = self.words[name][place]
        return chosen


def _names(template: str) -> list[str]:
    """The words in braces, each once, in order."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


@dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Pictures on disk with their captions: a folder, a glob, pairs, a table of prompts beside them."""

    path: Path
    """A folder of pictures, or a glob."""
    prompts: Path | None = None
    """Table with file_name and text; by default metadata.jsonl or .csv there, and text files beside the pictures."""
    caption: str | None = None
    """Of those that have none."""
    license: str | None = None
    """Of all of them."""

    def rows(self) -> Iterator[Row]:
        for picture in find_pictures(str(self.path), Path("/nonexistent"), self.prompts).items:
            known = {"caption": picture.prompt or self.caption, "license": self.license, "source": picture.label}
            row = Row(identify(picture.label), {name: value for name, value in known.items() if value})
            if not isinstance(picture.source, Path | bytes):
                raise UserError(f"{self.path}: pictures of a build are files; take the frames out of a video first")
            data = picture.source if isinstance(picture.source, bytes) else picture.source.read_bytes()
            yield inspected(row, data)
