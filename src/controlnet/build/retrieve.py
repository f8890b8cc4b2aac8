"""Pictures for prompts, from an index on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from controlnet.annotators.annotator import Range
from controlnet.build.clip import Clip
from controlnet.build.index import Index
from controlnet.build.pictures import inspected
from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE
from controlnet.build.stage import Context, Place, Stage, Work
from controlnet.images import decode

KEPT = ("caption", "url", "license", "sha256")  # of what is known of a picture
OF_QUERY = (
    "sha256",
    "phash",
    "format",
    "width",
    "height",
    "original_width",
    "original_height",
)  # is not of what it finds


@dataclass(frozen=True, kw_only=True)
class Retrieve(Stage):
    """Replaces every row by the pictures of an index that are nearest to its prompt, or to its picture."""

    index: Path
    """Folder that `controlnet build index` wrote."""
    count: Annotated[int, Range(1, 10_000)] = 4
    """Pictures for each row."""
    by: Literal["prompt", "caption", "image"] = "prompt"
    """What is searched by."""
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
            answers = index.search(queries_nd, self.count)
            return [
                made
                for row, found in zip(rows, answers, strict=True)
                for made in replaced(row, [(it.similarity, it.metadata) for it in found if it.similarity >= self.least])
            ]

        return retrieve


def replaced(row: Row, found: Sequence[tuple[float, Mapping[str, Any]]]) -> list[Row]:
    """The pictures that were found (similarity and what is known) in place of the row; it stays, and says why, if
    there are none."""
    return [_picture(row, *each) for each in found] or [row.dropped("nothing near enough")]


def _picture(row: Row, similarity: float, told: Mapping[str, Any]) -> Row:
    known = {name: str(told[name]) for name in KEPT if told.get(name)}
    place = told.get("path") or told.get("url")
    row = Row(row.id, {name: it for name, it in row.values.items() if name not in OF_QUERY})
    if not place:
        return row.child(f"{row.id} {told}", similarity=similarity).failed("neither file nor address", "of the picture")
    child = row.child(f"{row.id} {place}", source=place, similarity=similarity, **known)
    if not told.get("path"):
        return child  # to be downloaded
    try:
        return inspected(child, Path(told["path"]).read_bytes())
    except OSError as error:
        return child.failed("file is gone", str(error))
