"""What one visitor may ask of the server: checked there, whatever a browser shows."""

from collections.abc import Iterator
from dataclasses import dataclass

from controlnet.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Upper bounds, both ends included."""

    file_bytes: int = 20 * 2**20
    """Of an upload."""
    body_bytes: int = 40 * 2**20
    """Of any request: an upload, or all values of a tab."""
    pictures: int = 12
    """Of one call; the original's."""
    steps: int = 100
    """The original's."""
    smallest_side: int = 64
    largest_side: int = 1536
    """Of a picture to make, in pixels."""
    work: int = 12 * 20 * 1024 * 1024
    """Pictures times steps times pixels: twelve of 1024x1024 in 20 steps."""
    cells: int = 36
    """Of a comparison."""
    waiting: int = 20
    """Jobs in the queue; who comes then is told."""
    seconds: int = 1800
    """Of a job."""
    training_steps: int = 200_000


LIMITS = Limits()


def check_work(count: int, steps: int, width: int, height: int, limits: Limits = LIMITS) -> None:
    """UserError with all that is too much of pictures of one size."""
    if problems := list(_problems(count, steps, width, height, limits)):
        raise UserError("\n".join(problems))


def _problems(count: int, steps: int, width: int, height: int, limits: Limits) -> Iterator[str]:
    if not 1 <= count <= limits.pictures:
        yield f"{count} pictures; expected 1 to {limits.pictures} at once"
    if not 1 <= steps <= limits.steps:
        yield f"{steps} steps; expected 1 to {limits.steps}"
    low, high = limits.smallest_side, limits.largest_side
    if not (low <= width <= high and low <= height <= high):
        yield f"a picture of {width}x{height}; expected sides of {low} to {high} pixels"
    elif count * steps * width * height > limits.work:
        yield f"{count} pictures of {width}x{height} in {steps} steps are too much for one job; ask for less"
