"""Pictures wherever they are: a file, a folder, a glob, a data set, a video; each with the name that its hint gets."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from controlnet.data.pairs import MANIFEST, Pairs
from controlnet.errors import UserError
from controlnet.images import Rgb

READ = {".png", ".jpg", ".jpeg", ".webp"}
REFUSED = {".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl"}  # found, so that they are named and counted
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm"}
TABLES = {".parquet", ".arrow", ".tar"}
CAPTIONS = (".txt", ".caption")
PROMPT_COLUMNS = ("prompt", "text", "caption")
IN_COLUMN = "a data set, whose prompts stand in a column (--column)"
NAME_COLUMNS = ("file_name", "file", "target")
METADATA = ("metadata.jsonl", "metadata.csv")  # of a folder of pictures, as the hub has it


@dataclass(frozen=True)
class Picture:
    """One picture, not yet read."""

    name: str
    """Relative path without suffix, with forward slashes."""
    source: Path | bytes | Rgb
    """What `images.decode` reads, or a decoded frame."""
    prompt: str | None = None

    @property
    def label(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else self.name


@dataclass(frozen=True)
class Pictures:
    """All pictures of a place, in a fixed order."""

    items: Iterable[Picture]
    total: int | None
    """How many there are, where that can be told before."""
    is_one: bool = False


def find_pictures(
    place: str, leave_out: Path, prompts: Path | None = None, split: str = "train", column: str | None = None
) -> Pictures:
    """The pictures of `place`: a picture, a video, a folder of pictures, a data set, a glob or a data set on the hub.

    What lies in `leave_out`, where hints are written, is none. `prompts` is a table with the file names and prompts of
    a folder; `split` and `column` (of the prompts) are of a Hugging Face data set. UserError where nothing is found.
    """
    path = Path(place)
    if path.is_file():
        if path.suffix.lower() not in VIDEOS:
            return _files([path], path.parent, prompts, is_one=True)
        _refuse_table(prompts, place, "a video: one prompt is for all its frames (--prompt, or a text file beside it)")
        return _video(path)
    if (path / MANIFEST).is_file():
        _refuse_table(prompts, place, f"a folder of pairs, whose prompts stand in its {MANIFEST}")
        return _pairs(path)
    if path.is_dir():
        return _folder(path, leave_out, prompts, split, column)
    if re.search(r"[*?\[]", place):
        return _glob(path, leave_out, prompts)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not path.parent.is_dir():
        _refuse_table(prompts, place, IN_COLUMN)
        return _dataset(place, split, column)
    raise UserError(
        f"{place} is not there; expected a picture, a video, a folder, a glob in quotes ('pictures/*.jpg'), or a data "
        "set of the hub (owner/name); check the path"
    )


def _refuse_table(prompts: Path | None, place: object, reason: str) -> None:
    if prompts is not None:
        raise UserError(f"--prompts {prompts} is for pictures that are files; {place} is {reason}")


def _files(paths: list[Path], root: Path, prompts: Path | None, is_one: bool = False) -> Pictures:
    if not paths:
        raise UserError(f"{root} has no pictures; expected files that end in {', '.join(sorted(READ))}")
    table = _read_prompts(prompts or next((root / name for name in METADATA if (root / name).is_file()), None))
    relative = [PurePosixPath(path.relative_to(root).as_posix()) for path in paths]
    shared = {name for name, count in Counter(path.with_suffix("") for path in relative).items() if count > 1}

    def items() -> Iterator[Picture]:
        for path, within in zip(paths, relative, strict=True):
            bare = within.with_suffix("")
            name = str(within if bare in shared else bare)  # a.jpg beside a.png: both keep their suffix
            yield Picture(name, path, table.get(str(within), None) or _beside(path))

    return Pictures(items(), len(paths), is_one)


def _folder(root: Path, leave_out: Path, prompts: Path | None, split: str, column: str | None) -> Pictures:
    found = sorted(path for path in root.rglob("*") if not path.name.startswith("."))
    paths = [path for path in found if _is_picture(path, root, leave_out)]
    if not paths and any(path.suffix in TABLES for path in found):
        _refuse_table(prompts, root, IN_COLUMN)
        return _dataset(str(root), split, column)
    return _files(paths, root, prompts)


def _glob(pattern: Path, leave_out: Path, prompts: Path | None) -> Pictures:
    fixed = [part for part in pattern.parts if not re.search(r"[*?\[]", part)]
    root = Path(*pattern.parts[: next(i for i, part in enumerate(pattern.parts) if part not in fixed)])
    paths = sorted(path for path in root.glob(str(pattern.relative_to(root))) if _is_picture(path, root, leave_out))
    if not paths:
        raise UserError(f"no picture matches {pattern}; expected files that end in {', '.join(sorted(READ))}")
    return _files(paths, root, prompts)


def _is_picture(path: Path, root: Path, leave_out: Path) -> bool:
    """By its name; what lies in `leave_out` is none, unless all of `root` lies there."""
    here, place, out = (it.absolute() for it in (path, root, leave_out))
    is_named_so = path.suffix.lower() in READ | REFUSED and not path.name.startswith(".")
    return is_named_so and not (out.is_relative_to(place) and here.is_relative_to(out))


def _pairs(folder: Path) -> Pictures:
    pairs = Pairs(folder)
    names = [str(PurePosixPath(row.target).with_suffix("")) for row in pairs.rows]
    shared = {name for name, count in Counter(names).items() if count > 1}
    items = (
        Picture(f"{name}-{row.line}" if name in shared else name, pairs.folder / row.target, row.prompt)
        for name, row in zip(names, pairs.rows, strict=True)
    )
    return Pictures(items, len(pairs))


def _video(path: Path) -> Pictures:
    import cv2

    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise UserError(f"{path}: no video that can be read; convert it to MP4 (ffmpeg -i {path} out.mp4)")
    count, prompt = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), _beside(path)

    def frames() -> Iterator[Picture]:
        number = 0
        while (read := video.read())[0]:
            yield Picture(f"{number:06d}", np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB)), prompt)
            number += 1

    return Pictures(frames(), count if count > 0 else None)


def _dataset(place: str, split: str, column: str | None) -> Pictures:
    """Rows of a Hugging Face data set, one after the other, its pictures as they are encoded."""
    from datasets import Image, load_dataset

    try:
        rows = load_dataset(place, split=split, streaming=True)
        features = rows.features or {}
        pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
        rows = rows.cast_column(pictures[0], Image(decode=False)) if pictures else rows
    except Exception as error:  # datasets raises many types
        raise UserError(f"data set {place}: cannot be opened ({error}); check its name and --split {split}") from error
    if not pictures:
        raise UserError(f"data set {place} has the columns {', '.join(features)}; expected one of pictures")
    texts = [column] if column else [name for name in PROMPT_COLUMNS if name in features][:1]
    if column and column not in features:
        raise UserError(f"data set {place} has no column {column}; it has {', '.join(features)}")

    def items() -> Iterator[Picture]:
        for number, row in enumerate(rows):
            prompt = str(row[texts[0]]) if texts and row[texts[0]] else None
            yield Picture(f"{number:06d}", _encoded(row[pictures[0]] or {}), prompt)

    known = getattr(rows.info, "splits", None) or {}
    return Pictures(items(), known[split].num_examples if split in known else None)


def _encoded(cell: Mapping[str, Any]) -> Path | bytes:
    """A cell of pictures: its bytes, a file, or a file on the hub, which is fetched; nothing, which is no picture."""
    from huggingface_hub import HfFileSystem

    path = cell.get("path") or ""
    if cell.get("bytes") or not path:
        return cell.get("bytes") or b""
    if "://" not in path:
        return Path(path)
    try:
        return bytes(HfFileSystem().read_bytes(path))
    except OSError as error:
        raise UserError(f"{path} cannot be fetched ({error}); run the same command again to go on") from error


def _beside(path: Path) -> str | None:
    """The prompt in the text file beside a picture."""
    for suffix in CAPTIONS:
        if (text := path.with_suffix(suffix)).is_file():
            return text.read_text(encoding="utf-8").strip()
    return None


def _read_prompts(path: Path | None) -> Mapping[str, str]:
    """File name -> prompt, of a table in JSON lines or CSV with columns such as file_name and text."""
    if path is None:
        return {}
    try:
        content = path.read_text(encoding="utf-8-sig")
        lines = content.splitlines()
        rows: list[dict[str, Any]] = (
            list(csv.DictReader(lines))
            if path.suffix == ".csv"
            else [json.loads(line) for line in lines if line.strip()]
        )
    except (OSError, ValueError) as error:
        raise UserError(f"prompts {path}: cannot be read as JSON lines or CSV ({error}); check the file") from error
    if not rows:
        return {}
    file, text = (next((name for name in names if name in rows[0]), "") for names in (NAME_COLUMNS, PROMPT_COLUMNS))
    if not file or not text:
        raise UserError(
            f"prompts {path} has the columns {', '.join(rows[0])}; expected one of {', '.join(NAME_COLUMNS)} and one "
            f"of {', '.join(PROMPT_COLUMNS)}"
        )
    return {str(row.get(file)): str(row[text]) for row in rows if row.get(text)}
