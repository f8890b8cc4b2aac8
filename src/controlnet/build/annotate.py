"""Hints, by any annotator of the table; always PNG, which loses nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlnet.annotators.annotator import COMPUTE, Annotator, NetworkAnnotator, options
from controlnet.annotators.hint_file import description, encode
from controlnet.annotators.resolution import to_size
from controlnet.annotators.table import load
from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE
from controlnet.build.stage import Context, Place, Stage, Work
from controlnet.errors import UserError

HINT = "hint.png"


@dataclass(frozen=True, kw_only=True)
class Annotate(Stage):
    """Makes the hint of every picture, of the picture's size."""

    condition: str
    """canny, depth, seg, ...: `controlnet annotate --list` shows all."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the annotator: options.low = 50."""

    def __post_init__(self) -> None:
        known = {option.name for option in options(load(self.condition))}
        if unknown := self.options.keys() - known:
            told = ", ".join(sorted(known)) or "none"
            raise UserError(f"{self.condition} has no option {', '.join(sorted(unknown))}; expected: {told}")
        self.annotator(Context())

    @property
    def place(self) -> Place:
        return "device" if issubclass(load(self.condition), NetworkAnnotator) else "threads"

    def annotator(self, context: Context) -> Annotator:
        kind = load(self.condition)
        where = {name: getattr(context, name) for name in COMPUTE} if issubclass(kind, NetworkAnnotator) else {}
        made: Annotator = kind(**self.options, **where)
        return made

    def setup(self, context: Context) -> Work:
        annotator = self.annotator(context)
        told = json.dumps(description(annotator))

        def annotate(rows: Sequence[Row]) -> list[Row]:
            pictures = [annotator.read(row.files[IMAGE]) for row in rows]
            hints = annotator.batch(pictures)
            sized = (
                to_size(hint, picture.shape[1::-1], annotator.meaning.is_smooth)
                for hint, picture in zip(hints, pictures, strict=True)
            )
            return [
                row.having({HINT: encode(hint, told)}, condition=self.condition, annotator=told)
                for row, hint in zip(rows, sized, strict=True)
            ]

        return annotate
