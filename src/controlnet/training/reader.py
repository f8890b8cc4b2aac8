"""Samples as a training reads them, from pairs on disk or from a data set of the user's own; and what is wrong."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from controlnet.data.pairs import Pairs
from controlnet.data.transform import AS_THEY_ARE, Size, View
from controlnet.data.workers import cores
from controlnet.errors import UserError

ROUNDING = 1e-3  # by which float pictures may leave their range


class Dataset(Protocol):
    """What can be trained on: map-style, each item with `jpg` (H, W, 3) in [-1, 1], `txt`, `hint` in [0, 1]."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Sample:
    """What is seen of a pair at one visit."""

    picture: Any  # (H, W, 3) array: uint8, or float32 in [-1, 1]; None where its latent is cached
    hint: NDArray[np.uint8]  # (H, W, channels); RGBA of inpainting
    caption: str
    view: View


class Reader(Protocol):
    """One of the two: `PairsReader`, `ItemsReader`. Indices are of the data set, keys (seed, epoch) of the visit."""

    has_marks: bool
    """Hints are RGBA: transparent where a picture is to be painted anew."""
    is_of_one_size: bool
    """All samples must be of the first one's size: nobody resizes them."""
    meaning: Mapping[str, Any]
    """What the hints say of themselves."""
    threads: int
    """In how many it may be read at once; 0 where only the caller's own is safe."""

    def __len__(self) -> int: ...

    def read(self, index: int, *key: int) -> Sample:
        """UserError for a pair that cannot be used."""

    def hint(self, index: int, *key: int) -> NDArray[np.uint8]:
        """The sample's hint alone."""

    def view(self, index: int, *key: int) -> View:
        """What is seen of its picture."""

    def size(self, index: int) -> Size:
        """Width and height of what is seen, at every visit."""

    def content(self, index: int) -> bytes:
        """Digest of its picture."""

    def fingerprint(self) -> str:
        """Digest of everything."""

    def seen_as(self) -> str:
        """What beside the content decides what is read."""


def reader_of(dataset: Dataset) -> "PairsReader | ItemsReader":
    return PairsReader(dataset) if isinstance(dataset, Pairs) else ItemsReader(dataset)


class PairsReader:
    """Of `Pairs`: bytes all the way, so that a picture is a quarter of the size and the device makes it float."""

    is_of_one_size = False

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.has_marks = pairs.is_inpaint
        self.meaning: Mapping[str, Any] = pairs.meaning
        self.threads = cores()

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int, *key: int) -> Sample:
        return Sample(*self.pairs.seen(index, *key))

    def hint(self, index: int, *key: int) -> NDArray[np.uint8]:
        return self.pairs.raw_hint(index, self._size(index), *key)

    def view(self, index: int, *key: int) -> View:
        return self.pairs.view_of(index, self._size(index), *key)

    def size(self, index: int) -> Size:
        transform = self.pairs.transform
        if transform.resolution and not transform.aspect_buckets:
            return transform.resolution, transform.resolution
        return transform.size(self._size(index))

    def content(self, index: int) -> bytes:
        return self.pairs.facts[index].target

    def fingerprint(self) -> str:
        if self.pairs.records.stream:
            return hashlib.sha256(self.pairs.records.stream.encode()).hexdigest()
        digest = hashlib.sha256()
        for index, facts in enumerate(self.pairs.facts):
            digest.update(hashlib.sha256(self.pairs.prompt(index).encode()).digest() + facts.target + facts.hint)
        return digest.hexdigest()

    def seen_as(self) -> str:
        annotator = self.pairs.meaning if self.pairs.annotator else None
        return f"{self.pairs.transform} {annotator}"

    def _size(self, index: int) -> Size:
        size = self.pairs.facts[index].size
        assert size is not None, "a picture without a readable header is none of the samples"
        return size


class ItemsReader:
    """Of a data set in Python, which gives float arrays, already as they are to be seen."""

    has_marks, is_of_one_size, threads = False, True, 0
    meaning: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._contents: list[bytes] = []
        self._size: Size | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, *key: int) -> Sample:
        item = self.dataset[index]
        picture, hint = np.asarray(item["jpg"], np.float32), np.asarray(item["hint"], np.float32)
        _check_range("jpg", picture, -1, 1)
        _check_range("hint", hint, 0, 1)
        if hint.shape[:2] != picture.shape[:2]:
            sizes = f"its hint has {size_text(hint)} pixels, the picture {size_text(picture)}"
            raise UserError(f"{sizes}; make them one size")
        view = AS_THEY_ARE.view((picture.shape[1], picture.shape[0]))
        return Sample(picture, np.rint(hint * 255).astype(np.uint8), str(item["txt"]), view)

    def hint(self, index: int, *key: int) -> NDArray[np.uint8]:
        return self.read(index).hint

    def view(self, index: int, *key: int) -> View:
        return AS_THEY_ARE.view(self.size(index))

    def size(self, index: int) -> Size:
        if self._size is None:  # that of all
            self._size = self.read(index).view.size
        return self._size

    def content(self, index: int) -> bytes:
        return self._digests()[index]

    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(self._digests())).hexdigest()

    def seen_as(self) -> str:
        return ""

    def _digests(self) -> list[bytes]:
        """Of every item; they are asked for once."""
        if not self._contents:
            self._contents = [self._digest(index) for index in range(len(self.dataset))]
        return self._contents

    def _digest(self, index: int) -> bytes:
        item = self.dataset[index]
        digest = hashlib.sha256(str(item["txt"]).encode())
        for pixels in (np.asarray(item["jpg"], np.float32), np.asarray(item["hint"], np.float32)):
            digest.update(f"{pixels.shape}".encode() + pixels.tobytes())
        return digest.digest()


def _check_range(name: str, pixels: NDArray[np.float32], low: float, high: float) -> None:
    """A user's data set that mistakes the range is stopped at once: it would train, and never obey."""
    least, most = float(pixels.min()), float(pixels.max())
    if not (low - ROUNDING <= least and most <= high + ROUNDING):
        raise WrongRange(f"`{name}` has values from {least:.3g} to {most:.3g}; expected [{low}, {high}]")


class WrongRange(UserError):
    """All of a data set is wrong, not one of its pairs."""


def size_text(pixels_hwc: NDArray[Any]) -> str:
    return f"{pixels_hwc.shape[1]}x{pixels_hwc.shape[0]}"
