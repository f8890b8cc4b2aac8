"""Pairs that come in a stream: nobody has seen them before, nobody keeps them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from controlnet.data.transform import Size
from controlnet.errors import UserError
from controlnet.images import PictureError
from controlnet.training.encoded import Encoded, Visit
from controlnet.training.reader import Sample

logger = logging.getLogger(__name__)


class InOrder:
    """What is visited when: the stream's pairs one after the other, then all again."""

    def __init__(self, length: int, size: int) -> None:
        self.length, self.size = length, size

    def __getitem__(self, group: int) -> list[tuple[int, int]]:
        """(epoch, row) of the visits of a group."""
        return [divmod(position, self.length) for position in range(group * self.size, (group + 1) * self.size)]


@dataclass(frozen=True)
class Streamed(Encoded):
    """As `Encoded`, all of it encoded at each visit. A pair that cannot be used is replaced by the usable one that came
    last before it in its batch, or else by the first after it, and is logged."""

    hold_out: Callable[[int], Encoded] | None = None
    """The first pairs, kept in memory; None in another process, which only reads."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "hold_out": None}

    def visits(self, seed: int, size: int) -> InOrder:  # type: ignore[override]  # of the same kind
        return InOrder(len(self), size)

    def size_of(self, row: int) -> Size:
        return self.reader.size(0)

    def split(self, count: int) -> tuple[Encoded, Encoded]:
        """All but the first `count` rows, and these."""
        assert self.hold_out is not None
        return replace(self, samples=self.samples[count:], captions=self.captions[count:]), self.hold_out(count)

    def _samples(self, visits: Sequence[Visit]) -> list[Sample]:
        found: list[Sample | None] = []
        for visit in visits:
            try:
                found += super()._samples([visit])
            except PictureError as error:
                found.append(None)
                logger.warning("skipped: %s", error)
        usable = [sample for sample in found if sample]
        if not usable:
            raise UserError("no pair of a whole batch can be used; `controlnet data check DATA` tells why")
        last, samples = usable[0], []
        for sample in found:
            last = sample or last
            samples.append(last)
        return samples
