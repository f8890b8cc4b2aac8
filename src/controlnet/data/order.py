"""Keyed randomness: what is drawn for a sample depends on its key alone, never on what was drawn before (contract 3).

So a resume is exact at any step, and the number of workers changes nothing.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Generator

# purposes: one key has as many independent streams as there are purposes
ORDER = 1
SAMPLE = 2
CIRCLE = 3
VIEW = 4
ROUND = 5


def keyed(*key: int) -> np.random.SeedSequence:
    """The root of the random stream of a key: integers in [0, 2**64), none of them hidden by the others.

    Raises OverflowError for others. Source: O'Neill's seed_seq, as in NumPy's SeedSequence.
    """
    # SeedSequence pads short keys with zeros and splits large numbers: two words a number keep keys apart
    words = np.array([len(key), *key], dtype="<u8").view("<u4")
    return np.random.SeedSequence(words.tolist())


def order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the samples: a permutation (length,) of range(length)."""
    return np.random.default_rng(keyed(ORDER, seed, epoch)).permutation(length)


def sample_generator(seed: int, epoch: int, sample: int, purpose: int = SAMPLE) -> "Generator":
    """A generator on the CPU for all that is random about a sample in an epoch.

    Every `purpose` is a stream of its own. torch seeds its generator of the CPU with 32 bits: among the millions of
    draws of a run a few are equal, too far apart to matter.
    """
    from torch import Generator

    return Generator().manual_seed(int(keyed(purpose, seed, epoch, sample).generate_state(1, np.uint64)[0]))


class Visits:
    """Which sample is visited when: epoch after epoch of `order`, in groups of samples of one bucket.

    Each bucket is a stream of its own that goes on from epoch to epoch, so that no sample is dropped or seen twice in
    an epoch; which bucket comes next is drawn for each epoch. With one bucket the groups simply follow one another.
    Nothing is remembered but what is drawn, so a resume needs the number of the group alone.
    """

    def __init__(self, seed: int, bucket_n: Sequence[int] | NDArray[np.int64], size: int) -> None:
        """`bucket_n` is each sample's bucket; groups have `size` samples."""
        self.seed, self.bucket_n, self.size = seed, np.asarray(bucket_n), size
        self.rows = [np.flatnonzero(self.bucket_n == bucket) for bucket in np.unique(self.bucket_n)]
        self._order = lru_cache(2 * len(self.rows))(self._permuted)
        self._round = lru_cache(2)(self._groups_of_round)

    def __reduce__(self) -> Any:
        return Visits, (self.seed, self.bucket_n, self.size)  # what was drawn stays here

    def __getitem__(self, group: int) -> list[tuple[int, int]]:
        """(epoch, sample) of the visits of this group, counted from 0 over the whole training."""
        epoch = self._epoch(group)
        bucket, number = self._round(epoch)[group - self._before(epoch)]
        positions = range(number * self.size, (number + 1) * self.size)
        return [self._visit(bucket, position) for position in positions]

    def groups_until(self, epochs: int) -> int:
        """How many groups begin in the first `epochs` epochs."""
        return self._before(epochs)

    def _visit(self, bucket: int, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.rows[bucket]))
        return epoch, int(self.rows[bucket][self._order(bucket, epoch)[place]])

    def _permuted(self, bucket: int, epoch: int) -> NDArray[np.int64]:
        if len(self.rows) == 1:
            return order(self.seed, epoch, len(self.rows[0]))
        stream = keyed(ROUND, self.seed, epoch, bucket)
        return np.random.default_rng(stream).permutation(len(self.rows[bucket]))

    def _before(self, epoch: int) -> int:
        """Groups that begin before this epoch."""
        return sum(-(-epoch * len(rows) // self.size) for rows in self.rows)

    def _epoch(self, group: int) -> int:
        """The epoch in which a group begins."""
        epoch = group * self.size // sum(map(len, self.rows))
        while self._before(epoch) > group:
            epoch -= 1
        while self._before(epoch + 1) <= group:
            epoch += 1
        return epoch

    def _groups_of_round(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, number in the bucket's stream) of the groups that begin in this epoch, as they follow."""
        groups = [
            (bucket, number)
            for bucket, rows in enumerate(self.rows)
            for number in range(-(-epoch * len(rows) // self.size), -(-(epoch + 1) * len(rows) // self.size))
        ]
        if len(self.rows) == 1:
            return groups
        drawn = np.random.default_rng(keyed(ROUND, self.seed, epoch)).permutation(len(groups))
        return [groups[number] for number in drawn]
