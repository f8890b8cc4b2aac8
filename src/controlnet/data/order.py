"""Keyed randomness: what is drawn for a sample depends on its key alone, never on what was drawn before (contract 3).

So a resume is exact at any step, and the number of workers changes nothing.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Generator

# purposes: one key has as many independent streams as there are purposes
ORDER = 1
SAMPLE = 2
CIRCLE = 3


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
