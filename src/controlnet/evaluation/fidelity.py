"""Fidelity to a ring: is the disc of the generated picture where the ring of its hint is?

The region of the picture is found by its own two colours, whatever they are, so that a picture of wrong colours at
the right place counts as obedient, and one of right colours elsewhere does not.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.evaluation.metrics import Mask, overlap

Pixels = NDArray[np.uint8]

RING_LEVEL = 16  # of 255: the anti-aliased rim of a ring counts, the noise of a JPEG-coded black does not
RIM = 0.6  # pixels: OpenCV's filled disc ends outside its radius, on which it centres its ring (measured)
FLAT = 6.0  # distance in Lab of two colours that nobody would call two; the data keep 15 and more apart
ITERATIONS = 10  # of two-means on flat colours, which settles in two or three


def fidelity(picture: Pixels, hint: Pixels) -> float:
    """Intersection over union of the picture's region with its ring's disc; both (h, w, 3) uint8 RGB."""
    return overlap(region(picture), disc(hint))


def mean_fidelity(pictures: Sequence[Pixels], hints: Sequence[Pixels]) -> float:
    return float(np.mean([fidelity(picture, hint) for picture, hint in zip(pictures, hints, strict=True)]))


def disc(hint: Pixels) -> Mask:
    """(h, w) True inside the ring of a hint (h, w, 3), also where the border cuts it; all False without a ring."""
    circle = fit_ring(hint)
    if circle is None:
        return np.zeros(hint.shape[:2], bool)
    x, y, radius = circle
    rows, columns = np.indices(hint.shape[:2])
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= (radius + RIM) ** 2)


def fit_ring(hint: Pixels) -> tuple[float, float, float] | None:
    """Centre x, y and radius in pixels of the circle through the bright pixels; None if they are no ring.

    Least squares on x^2 + y^2 = 2 a x + 2 b y + c, weighted by brightness (Kasa 1976): exact for an arc as well.
    """
    brightness = hint.max(axis=2).astype(np.float64)
    rows, columns = np.nonzero(brightness > RING_LEVEL)
    if len(rows) < 8 or len(rows) > brightness.size / 4:
        return None
    weight = brightness[rows, columns]
    system = np.stack([2.0 * columns, 2.0 * rows, np.ones(len(rows))], axis=1)
    squares = columns.astype(np.float64) ** 2 + rows.astype(np.float64) ** 2
    (x, y, c), _, rank, _ = np.linalg.lstsq(system * weight[:, None], squares * weight, rcond=None)
    radius = float(np.sqrt(max(0.0, c + x * x + y * y)))
    distance = np.hypot(columns - x, rows - y)
    if rank < 3 or np.average(abs(distance - radius), weights=weight) > 0.02 * max(brightness.shape):
        return None
    return float(x), float(y), radius


def region(picture: Pixels) -> Mask:
    """(h, w) True where a picture (h, w, 3) has the second of its two colours; all False if it is flat.

    The colours are two means in Lab; the first, the ground, is the one that has more of the picture's border: in this
    world no shape covers as much as half of it.
    """
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    second, distance = _two_means(np.asarray(lab.reshape(-1, 3), np.float32))
    if distance < FLAT:
        return np.zeros(picture.shape[:2], bool)
    mask = second.reshape(picture.shape[:2])
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return ~mask if border.mean() > 0.5 else mask


def _two_means(points_nc: NDArray[np.float32]) -> tuple[Mask, float]:
    """Who belongs to the second of two clusters, and how far their centres are apart; starts from the widest axis."""
    centred = points_nc - points_nc.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    along = centred @ axis
    second = along > (along.min() + along.max()) / 2
    for _ in range(ITERATIONS):
        if second.all() or not second.any():
            return second, 0.0
        centres = np.stack([points_nc[~second].mean(axis=0), points_nc[second].mean(axis=0)])
        nearer = np.square(points_nc[:, None] - centres).sum(axis=2).argmin(axis=1) == 1
        if (nearer == second).all():
            break
        second = nearer
    return second, float(np.linalg.norm(centres[0] - centres[1]))


def colour_errors(
    picture: Pixels, inside: Mask, colour: tuple[int, int, int], background: tuple[int, int, int]
) -> tuple[float, float]:
    """CIEDE2000 from the picture's median colour inside and outside a mask to the two colours that were named."""
    return colour_error(picture[inside], colour), colour_error(picture[~inside], background)


def colour_error(pixels_n3: Pixels, colour: tuple[int, int, int]) -> float:
    """CIEDE2000 from the pixels' median colour to the one that was named."""
    from controlnet.data.colours import difference

    return float(difference(np.median(pixels_n3, axis=0), np.array(colour)))
