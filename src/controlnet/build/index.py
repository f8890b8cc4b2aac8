"""An index of pictures that can be asked by words or by a picture: FAISS beside a table of what its rows are.

INDEX/image.index        FAISS, inner product of CLIP embeddings of length one: cosine
INDEX/metadata.parquet   row n of the index is line n here: path or url, caption, licence, size, SHA-256
INDEX/index.json         the model, how many, and SHA-256 of both files: what does not belong together is refused
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from controlnet.atomic import write_atomically
from controlnet.build.clip import Clip, Embeddings
from controlnet.build.pictures import inspected
from controlnet.build.rows import Row, identify
from controlnet.build.shards import IMAGE, rows_in
from controlnet.checkpoints.models import sha256
from controlnet.data.pictures import find_pictures
from controlnet.errors import UserError
from controlnet.images import Rgb, decode, grid

INDEX, METADATA, ABOUT = "image.index", "metadata.parquet", "index.json"
AT_ONCE = 32  # pictures embedded together
SIDE = 160  # pixels of a picture on a sheet
Report = Callable[[int], object]
PATH = "path"  # of a picture that is a file here; others have a url
KNOWN = ("url", "caption", "license", "width", "height", "sha256")


@dataclass(frozen=True)
class Found:
    """A picture of an index: its place in it, how near it is to what was asked (cosine), and its line of metadata."""

    number: int
    similarity: float
    metadata: dict[str, Any]


class Index:
    """An index, opened once and asked many times."""

    def __init__(self, folder: Path) -> None:
        """UserError for a folder that is no index, or whose files do not belong together."""
        from pyarrow import parquet

        faiss = _faiss()
        try:
            self.about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is no index ({error}); `controlnet build index` makes one") from error
        for name in (INDEX, METADATA):
            if sha256(folder / name) != self.about["sha256"][name]:
                raise UserError(f"{folder / name} is not the one that the index was written with; build it again")
        self.faiss = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP)
        self.metadata = parquet.read_table(folder / METADATA)

    def search(self, queries_nd: Embeddings, count: int) -> list[list[Found]]:
        """The `count` nearest pictures of each query, nearest first; fewer where the index has no more."""
        if queries_nd.shape[1] != self.faiss.d:
            raise UserError(f"queries of width {queries_nd.shape[1]} for an index of width {self.faiss.d}; same model?")
        similar, numbers = self.faiss.search(np.ascontiguousarray(queries_nd), count)
        return [
            [self._found(int(number), float(value)) for number, value in zip(*each, strict=True) if number >= 0]
            for each in zip(numbers, similar, strict=True)
        ]

    def _found(self, number: int, similarity: float) -> Found:
        [line] = self.metadata.slice(number, 1).to_pylist()
        return Found(number, similarity, line)


def contact_sheet(found: Sequence[Found], columns: int = 4) -> Rgb:
    """The pictures that were found, nearest first; grey where a file is gone."""
    cells = [_thumbnail(each.metadata.get("path")) for each in found]
    cells += [np.full((SIDE, SIDE, 3), 255, np.uint8)] * (-len(cells) % columns)
    return grid([cells[first : first + columns] for first in range(0, len(cells), columns)])


def _thumbnail(path: str | None) -> Rgb:
    try:
        image = Image.fromarray(decode(path or ""))
    except UserError:
        return np.full((SIDE, SIDE, 3), 128, np.uint8)
    return np.asarray(ImageOps.pad(image, (SIDE, SIDE), color=(255, 255, 255)))


def build_index(
    pictures: str,
    out: Path,
    clip: Clip,
    model: str,
    report: Report = lambda seen: None,
    license: str | None = None,
) -> tuple[int, int]:
    """Index the pictures of a folder, a glob, a data set or a build; how many, and how many could not be read.

    `model` is how the CLIP is called, `report` is told how many pictures have been seen, `license` is that of all
    pictures but those of a build, which have their own.
    """
    import pyarrow
    from pyarrow import parquet

    faiss = _faiss()

    if out.exists() and any(out.iterdir()) and not (out / ABOUT).is_file():
        raise UserError(f"{out} has files but no {ABOUT}, so it is no index; give a new folder")
    lines, index, failed = [], None, 0
    for chunk in _chunks(_rows(pictures, out, license), AT_ONCE):
        good = [row for row in chunk if row.status == "ok"]
        failed += len(chunk) - len(good)
        if good:
            embeddings_nd = clip.of_pictures([decode(row.files[IMAGE]) for row in good])
            index = index or faiss.IndexFlatIP(embeddings_nd.shape[1])
            index.add(embeddings_nd)
            lines += [_line(row) for row in good]
        report(failed + len(lines))
    if index is None:
        raise UserError(f"{pictures}: no picture that can be read")
    kinds = {"width": pyarrow.int32(), "height": pyarrow.int32()}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in (PATH, *KNOWN)])
    write_atomically(out / INDEX, lambda path: faiss.write_index(index, str(path)))
    write_atomically(out / METADATA, lambda path: parquet.write_table(pyarrow.Table.from_pylist(lines, schema), path))
    about = {"model": model, "count": len(lines), "sha256": {name: sha256(out / name) for name in (INDEX, METADATA)}}
    write_atomically(out / ABOUT, lambda path: path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8"))
    return len(lines), failed


def _faiss() -> Any:
    try:
        return import_module("faiss")
    except ImportError as error:
        raise UserError("an index needs FAISS, which is not here; run: pip install 'controlnet[scale]'") from error


def _line(row: Row) -> dict[str, Any]:
    source = row.get("source", "")
    path = source if not row.get("url") and Path(source).is_file() else None
    return {PATH: path, **{name: row.get(name) for name in KNOWN}}


def _rows(pictures: str, out: Path, license: str | None) -> Iterator[Row]:
    """Of a build: its wanted rows, which are to be downloaded again where they are found, if they have an address."""
    if (shards := Path(pictures) / "shards").is_dir():
        yield from (row for row in rows_in(shards, with_files=True) if row.status == "ok")
        return
    for picture in find_pictures(pictures, out).items:
        place = str(picture.source.absolute()) if isinstance(picture.source, Path) else picture.name
        known = {"source": place, "caption": picture.prompt, "license": license}
        row = Row(identify(place), {name: value for name, value in known.items() if value})
        data = picture.source.read_bytes() if isinstance(picture.source, Path) else bytes(picture.source)
        yield inspected(row, data)


def _chunks(rows: Iterable[Row], size: int) -> Iterator[Sequence[Row]]:
    rest = iter(rows)
    while chunk := list(islice(rest, size)):
        yield chunk
