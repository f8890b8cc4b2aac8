"""Which pairs of a data set can be used: all are read once, before the training, and what is found is remembered."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from controlnet.atomic import write_atomically
from controlnet.data.prefetch import prefetched
from controlnet.errors import UserError
from controlnet.training.encoded import variant_key
from controlnet.training.reader import Reader, Sample, WrongRange, size_text

VERSION = 2  # of what is remembered; another number, another file
TOLERATED = 0.01  # share of pairs that may be unusable
TOLD = 10  # unusable pairs named in an error


@dataclass(frozen=True)
class Survey:
    """Which pairs can be used, in order."""

    samples: list[int]
    captions: list[str]
    defects: list[str]
    hint_channels: int


def survey_of(
    reader: Reader, multiple: int, folder: Path, content: str, console: Console, ready: Path | None = None
) -> Survey:
    """What can be used; every pair is read the first time that this data is seen so. UserError when too much cannot.

    It is remembered in `folder`, if it is not already in `ready`.
    """
    key = hashlib.sha256(f"{VERSION} {content} {reader.seen_as()} {multiple}".encode()).hexdigest()[:16]
    name = f"pairs-{key}.json"
    path = folder / name
    if found := [place / name for place in (folder, ready) if place and (place / name).exists()]:
        survey = _remembered(found[0])
    else:
        survey = _read_all(reader, multiple, console)
        text = json.dumps(asdict(survey), ensure_ascii=False)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for defect in survey.defects:
        console.print(f"skipped: {defect}", style="yellow", markup=False)
    if survey.defects:
        console.print(f"{len(survey.defects)} of {len(reader)} pairs cannot be used and are skipped", style="yellow")
    return survey


def _remembered(path: Path) -> Survey:
    try:
        return Survey(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: broken cache ({error}); remove the file, it will be made anew") from error


def _read_all(reader: Reader, multiple: int, console: Console) -> Survey:
    survey, accepted = Survey([], [], [], 0), ""
    found = prefetched(partial(_usable, reader), range(len(reader)), reader.threads)
    for index, sample in enumerate(track(found, "reading pairs", len(reader), console=console)):
        if isinstance(sample, Sample) and not accepted:
            accepted = _accept(sample, multiple)
            survey = replace(survey, hint_channels=3 if reader.has_marks else sample.hint.shape[2])
        if isinstance(sample, Sample) and reader.is_of_one_size and _shape(sample) != accepted:
            sample = f"{_shape(sample)}; the pairs before it have {accepted}; resize it"
        if isinstance(sample, str):
            survey.defects.append(f"pair {index}: {sample}")
            _stop_at_many(survey.defects, len(reader))
        else:
            survey.samples.append(index)
            survey.captions.append(sample.caption)
    if not survey.samples:
        raise UserError("the data has no pair that can be used; `controlnet data check DATA` lists what is wrong")
    return survey


def _usable(reader: Reader, index: int) -> Sample | str:
    """The pair, or what is wrong with it."""
    try:
        return reader.read(index, *variant_key(0))
    except WrongRange:
        raise
    except UserError as error:
        return str(error)


def _accept(sample: Sample, multiple: int) -> str:
    """The first pair's shape, if the base can take its size."""
    height, width = sample.picture.shape[:2]
    if height % multiple or width % multiple:
        raise UserError(
            f"pictures are {width}x{height}; this base needs sides that are multiples of {multiple}: "
            "resize the pictures and their hints, or let --resolution do it"
        )
    return _shape(sample)


def _shape(sample: Sample) -> str:
    return f"{size_text(sample.picture)}, {sample.hint.shape[2]} hint channels"


def _stop_at_many(defects: list[str], pairs: int) -> None:
    allowed = int(TOLERATED * pairs)
    if len(defects) > allowed:
        named = "\n".join(f"  {defect}" for defect in defects[:TOLD])
        raise UserError(
            f"{len(defects)} unusable pairs so far, of {pairs}; at most {allowed} are skipped:\n"
            f"{named}\nmend or remove them; `controlnet data check DATA` lists all"
        )
