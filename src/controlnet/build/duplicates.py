"""Pictures that are there already: the first of each kind stays."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from controlnet.annotators.annotator import Range
from controlnet.build.rows import Row
from controlnet.build.stage import Barrier

BITS = 64  # of a perceptual hash


@dataclass(frozen=True, kw_only=True)
class Duplicates(Barrier):
    """Leaves out pictures that another row has: the same file, or nearly the same picture."""

    by: Literal["phash", "sha256", "url"] = "phash"
    """phash: what looks alike; sha256: the same file; url: the same address."""
    distance: Annotated[int, Range(0, 15)] = 4
    """Bits of 64 in which perceptual hashes of one picture may differ."""

    def decide(self, rows: Iterable[Row]) -> Mapping[str, tuple[str, str]]:
        known = ((row.id, str(row.values[self.by])) for row in rows if self.by in row.values)
        pairs = self._alike(known) if self.by == "phash" else _equal(known)
        return {later: (f"duplicate by {self.by}", f"of {first}") for later, first in pairs}

    def _alike(self, known: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        """Hashes that differ in at most d bits are equal in at least one of d + 1 parts."""
        parts: list[defaultdict[int, list[tuple[int, str]]]] = [defaultdict(list) for _ in range(self.distance + 1)]
        for id, text in known:
            bits = int(text, 16)
            keys = [bits >> place & (1 << width) - 1 for place, width in _cut(self.distance + 1)]
            near = (
                first
                for part, key in zip(parts, keys, strict=True)
                for other, first in part[key]
                if (bits ^ other).bit_count() <= self.distance
            )
            if (first := next(near, None)) is not None:
                yield id, first
                continue
            for part, key in zip(parts, keys, strict=True):
                part[key].append((bits, id))


def _equal(known: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    first: dict[str, str] = {}
    for id, value in known:
        if value in first:
            yield id, first[value]
        first.setdefault(value, id)


def _cut(parts: int) -> list[tuple[int, int]]:
    """Where each of so many parts of the bits begins, and how wide it is."""
    edges = [BITS * part // parts for part in range(parts + 1)]
    return [(start, end - start) for start, end in pairwise(edges)]
