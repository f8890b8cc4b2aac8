"""Pairs of picture, hint and prompt, in whatever format they come: one map-style data set over all of them."""

import hashlib
import operator
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import Annotator, NetworkAnnotator
from controlnet.annotators.hint_file import description, read_description
from controlnet.annotators.inpaint import CONDITION as INPAINT
from controlnet.annotators.inpaint import to_inpaint_hint
from controlnet.annotators.table import load
from controlnet.data.formats.prompt_json import MANIFEST, PromptJson, Row
from controlnet.data.formats.recognise import open_records
from controlnet.data.formats.records import USUAL, Columns, Kept, Record, Records, Stored
from controlnet.data.transform import AS_THEY_ARE, Size, Transform, View
from controlnet.data.workers import cores
from controlnet.errors import UserError
from controlnet.images import PictureError, Rgb, decode, decode_with_alpha, header_size, to_hint, to_target

__all__ = ["MANIFEST", "Pair", "Pairs", "Row"]

TOLD = 5  # of many bad rows; `controlnet data check` tells them all


class Pair(TypedDict):
    """One training sample, as the original's data sets give it."""

    jpg: NDArray[np.float32]  # (H, W, 3) in [-1, 1]
    txt: str
    hint: NDArray[np.float32]  # (H, W, 3) in [0, 1]; -1 where a picture is to be painted anew


@dataclass(frozen=True)
class Facts:
    """What is known of a pair without decoding it: its content, and the picture's size if its header can be read."""

    target: bytes  # digests of the encoded pictures
    hint: bytes
    size: Size | None


class Pairs:
    """The pairs of a place, as an array: `len(pairs)`, `pairs[1234]`, `pairs[-1]`, `pairs[:8]`.

    `transform` says which part of both pictures is seen; `annotate` makes the hints of that part of the picture, by an
    annotator without a network. Pictures are decoded when asked for. UserError for a place that is no data set and for
    rows that are no pairs; PictureError, when the pair is asked for, for a picture that cannot be read.
    """

    def __init__(
        self,
        place: Path | str | Records,
        columns: Columns = USUAL,
        transform: Transform = AS_THEY_ARE,
        annotate: str | Annotator | None = None,
    ) -> None:
        self.records = place if isinstance(place, Records) else open_records(place, columns)
        self.place, self.transform = self.records.place, transform
        self.annotator = _without_network(annotate) if isinstance(annotate, str) else annotate
        _refuse_problems(self)
        self._length = min(columns.length or len(self.records), len(self.records))

    def __repr__(self) -> str:
        return f"Pairs({self.place!r}): {len(self)} pairs"

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        target, hint, prompt = self.raw(index)
        return {"jpg": to_target(target), "txt": prompt, "hint": self.hint_as_seen(hint)}

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def raw(self, index: int, *key: int) -> tuple[Rgb, Rgb, str]:
        """Target and hint, (H, W, 3) uint8 RGB of one size, as the transform shows them at this key, and the prompt.

        A hint for inpainting is (H, W, 4), transparent where a picture is to be painted anew.
        """
        return self.seen(index, *key)[:3]

    def seen(self, index: int, *key: int) -> tuple[Rgb, Rgb, str, View]:
        """As `raw`, and what of the picture is seen."""
        record = self.records.record(self._number(index))
        whole = decode(record.target.source)
        view = self.view_of(self._number(index), _size(whole), *key)
        target = view.of(whole)
        if self.annotator:
            return target, self.annotator.annotate(target), record.prompt, view
        assert record.hint is not None  # __init__ has asked for an annotator otherwise
        hint = self._decode_hint(record.hint)
        if problem := size_problem(whole, hint, record):
            raise UserError(f"{self.place}, {record.label}: {problem}; make the hint again at that size")
        return target, view.of(hint), record.prompt, view

    def raw_hint(self, index: int, size: Size, *key: int) -> Rgb:
        """The hint alone of a pair whose picture has this size; the picture is decoded only to be annotated."""
        record = self.records.record(self._number(index))
        if self.annotator or record.hint is None:
            return self.raw(index, *key)[1]
        hint = self._decode_hint(record.hint)
        return self.view_of(self._number(index), size, *key).of(hint)

    def view_of(self, number: int, size: Size, *key: int) -> View:
        """What is seen of pair `number`, whose picture has this size, at this key."""
        return self.transform.view(size, *key, number)

    def hint_as_seen(self, hint: Rgb) -> NDArray[np.float32]:
        """A raw hint as a ControlNet sees it."""
        return to_inpaint_hint(hint) if self.is_inpaint else to_hint(hint)

    def prompt(self, index: int) -> str:
        """The prompt alone, without decoding a picture."""
        return self.records.prompt(self._number(index))

    def seen_by(self, transform: Transform) -> "Pairs":
        """The same pairs, another part of them seen."""
        other = copy(self)
        other.transform = transform
        return other

    def first(self, count: int) -> "Pairs":
        """The first pairs, as they are encoded, in memory."""
        other = copy(self)
        other.records = Kept(self.place, [self.records.record(index) for index in range(count)])
        other._length = count
        return other

    @property
    def rows(self) -> list[Row]:
        """The lines of a `prompt.json`."""
        assert isinstance(self.records, PromptJson)
        return self.records.rows

    @property
    def folder(self) -> Path:
        """Where the files of `prompt.json` are."""
        assert isinstance(self.records, PromptJson)
        return self.records.folder

    @cached_property
    def meaning(self) -> dict[str, Any]:
        """What the hints say of themselves, as `controlnet annotate` wrote it into the first; empty if nothing."""
        if self.annotator:
            return description(self.annotator)
        hint = self.records.record(0).hint if len(self) else None
        try:
            return (hint and read_description(hint.opened())) or {}
        except (OSError, ValueError):  # no picture: told when its pair is read
            return {}

    @property
    def is_inpaint(self) -> bool:
        """Whether the hints are pictures with a part to be painted anew: the first one says so."""
        return self.meaning.get("condition") == INPAINT

    @cached_property
    def facts(self) -> Sequence[Facts]:
        """What is known of every pair without decoding it; reads every file once."""
        with ThreadPoolExecutor(cores()) as pool:
            return list(pool.map(self._facts, range(len(self))))

    def _facts(self, number: int) -> Facts:
        record = self.records.record(number)
        target = record.target.read()
        hint = record.hint.read() if record.hint and not self.annotator else b""
        try:
            size = header_size(target)
        except PictureError:
            size = None
        return Facts(hashlib.sha256(target).digest(), hashlib.sha256(hint).digest(), size)

    def _decode_hint(self, hint: Stored) -> Rgb:
        return decode_with_alpha(hint.source) if self.is_inpaint else decode(hint.source)

    def _number(self, index: int) -> int:
        """`index` from the start. IndexError outside -len ... len - 1."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no pair {number}: {self.place} has {len(self)} pairs")
        return number % len(self)


def size_problem(target: Rgb, hint: Rgb, record: Record) -> str:
    """What to say of a hint whose size is not its picture's; empty if all is well."""
    if _size(target) == _size(hint):
        return ""
    sizes = [f"{width}x{height}" for width, height in (_size(hint), _size(target))]
    name = record.hint.name if record.hint else ""
    return f"the hint {name} has {sizes[0]} pixels, the picture {record.target.name} {sizes[1]}"


def _size(pixels: Rgb) -> Size:
    return pixels.shape[1], pixels.shape[0]


def _without_network(condition: str) -> Annotator:
    kind = load(condition)
    if issubclass(kind, NetworkAnnotator):
        raise UserError(
            f"--annotate {condition}: its annotator is a network, too slow to run at every visit; make the hints once: "
            f"controlnet annotate {condition} PICTURES DATA --pairs"
        )
    return kind(detect_resolution=0)  # the crop as it is


def _refuse_problems(pairs: Pairs) -> None:
    problems = pairs.records.problems
    if problems:
        more = [f"and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
        raise UserError(
            f"{pairs.place} has rows that are no pairs; `controlnet data check` tells all; "
            + "; ".join([*map(str, problems[:TOLD]), *more])
        )
    if not len(pairs.records):
        raise UserError(f"{pairs.place} has no pair")
    if pairs.annotator is None and pairs.records.record(0).hint is None:
        raise UserError(
            f"{pairs.place} has pictures and prompts but no hints; make them at training with --annotate canny, or "
            "once with `controlnet annotate`"
        )
