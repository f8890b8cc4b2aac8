"""Pictures for prompts, from an index on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from controlnet.annotators.annotator import Range
from controlnet.build.clip import Clip
from controlnet.build.index import Found, Index
from controlnet.build.pictures import inspected
from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE
from controlnet.build.stage import Context, Place, Stage, Work
from controlnet.images import decode


@dataclass(frozen=True, kw_only=True)
class Retrieve(Stage):
    """Replaces every row by the pictures of an index that are nearest to its prompt, or to its picture."""

    index: Path
    """Folder that `controlnet build index` wrote."""
    count: Annotated[int, Range(1, 10_000)] = 4
    """Pictures for each row."""
    by: str = "prompt"
    """What is searched by: prompt, caption or image."""
    model: str | None = None
    """CLIP model; by default the one that the index was built with."""
    least: Annotated[float, Range(-1, 1)] = -1.0
    """Cosine under which a picture is not taken."""

    @property
    def place(self) -> Place:
        return "device"

    def setup(self, context: Context) -> Work:
        index = Index(self.index)
        clip = Clip(self.model or index.about["model"], context.device, context.dtype)

        def retrieve(rows: Sequence[Row]) -> list[Row]:
            if self.by == IMAGE:
                queries_nd = clip.of_pictures([decode(row.files[IMAGE]) for row in rows])
            else:
                queries_nd = clip.of_texts([row.get(self.by, "") for row in rows])
            found = index.search(queries_nd, self.count)
            return [made for row, each in zip(rows, found, strict=True) for made in self._replaced(row, each)]

        return retrieve

    def _replaced(self, row: Row, found: list[Found]) -> list[Row]:
        """The pictures in place of the row; it stays, and says why, if there are none."""
        near = [each for each in found if each.similarity >= self.least]
        return [_picture(row, each) for each in near] or [row.dropped("nothing near enough in the index")]


def _picture(row: Row, found: Found) -> Row:
    told = found.metadata
    known = {name: told[name] for name in ("caption", "url", "license") if told.get(name)}
    place = told.get("path") or told["url"]
    child = row.child(f"{row.id} {place}", source=place, similarity=found.similarity, **known)
    if not told.get("path"):
        return child  # to be downloaded
    try:
        return inspected(child, Path(told["path"]).read_bytes())
    except OSError as error:
        return child.failed("file is gone", str(error))
