"""How fast a loader alone is, so that it can be compared with what a training consumes."""

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from controlnet.training.encoded import Reading


def loader_speed(shares: Iterable[tuple[Reading, Any]], batches: int) -> float:
    """Pairs a second of a loader, such as `steps.loader` gives: read, decoded, transformed, taken from the cache.

    The first batch starts the workers and is not counted.
    """
    rest = iter(shares)
    next(rest)
    start = time.perf_counter()
    pairs = sum(len(reading) for reading, _ in islice(rest, batches))
    return pairs / (time.perf_counter() - start)
