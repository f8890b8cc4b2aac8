"""A person's box to a crop for a pose network, and its heatmaps back to keypoints in the picture.

Top-down pose estimation as ViTPose (Xu et al. 2022) was trained: crops on the unbiased grid of Huang et al. 2020 ("The
Devil is in the Details"), keypoints refined between pixels as Zhang et al. 2020 ("Distribution-Aware Coordinate
Representation of Keypoints").
"""

# n people, k keypoints, h w size of a heatmap
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.images import Rgb

MARGIN = 1.25  # of a crop around its box
BLUR_SIGMA, BLUR_SIZE = 0.8, 11
SMALLEST_HEAT = 0.001  # under the logarithm


class Box(NamedTuple):
    """A rectangle in a picture, pixels."""

    left: float
    top: float
    right: float
    bottom: float


class Window(NamedTuple):
    """The part of a picture that a crop shows: its corners' pixels are the crop's corners' pixels."""

    left: float
    top: float
    width: float
    height: float


def window_around(box: Box, aspect: float) -> Window:
    """The smallest window of width / height = `aspect` that shows the box with the margin."""
    width, height = box.right - box.left, box.bottom - box.top
    width, height = MARGIN * max(width, aspect * height), MARGIN * max(height, width / aspect)
    return Window((box.left + box.right - width) / 2, (box.top + box.bottom - height) / 2, width, height)


def crop(picture: Rgb, window: Window, size: tuple[int, int]) -> Rgb:
    """What the window shows at `size` (width, height), black where it leaves the picture."""
    x, y = (size[0] - 1) / window.width, (size[1] - 1) / window.height
    to_crop = np.array([[x, 0, -x * window.left], [0, y, -y * window.top]])
    return np.asarray(cv2.warpAffine(picture, to_crop, size, flags=cv2.INTER_LINEAR))


def keypoints(heat_nkhw: NDArray[np.float32], windows: list[Window]) -> NDArray[np.float32]:
    """Heatmaps of the windows' crops -> (n, k, 3) x, y in pixels of the picture, and the heat as score."""
    height, width = heat_nkhw.shape[-2:]
    flat = heat_nkhw.reshape(*heat_nkhw.shape[:2], -1)
    y, x = np.divmod(flat.argmax(-1), width)
    refined_nk2 = np.stack([x, y], axis=-1) + _offsets(heat_nkhw, x, y)
    corners_n2 = np.array([[window.left, window.top] for window in windows])
    steps_n2 = np.array([[window.width / (width - 1), window.height / (height - 1)] for window in windows])
    places_nk2 = corners_n2[:, None] + refined_nk2 * steps_n2[:, None]
    return np.concatenate([places_nk2, flat.max(-1)[..., None]], axis=-1).astype(np.float32)


def _offsets(heat_nkhw: NDArray[np.float32], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """From the peak's pixel to the top of the Gaussian that the blurred heat around it is of, (n, k, 2), by Newton's
    step on the logarithm; not more than a pixel, however flat the heat."""
    blurred = np.array([[_blur(heat) for heat in person] for person in heat_nkhw]).clip(SMALLEST_HEAT, None)
    framed = np.pad(np.log(blurred), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge").astype(np.float64)
    n, k = np.ogrid[: x.shape[0], : x.shape[1]]

    def at(right: int, down: int) -> NDArray[np.float64]:
        values: NDArray[np.float64] = framed[n, k, y + 1 + down, x + 1 + right]
        return values

    dx, dy = (at(1, 0) - at(-1, 0)) / 2, (at(0, 1) - at(0, -1)) / 2
    dxx, dyy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
    dxy = (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1)) / 2
    tiny = np.finfo(np.float32).eps
    hessian = np.stack([np.stack([dxx + tiny, dxy], -1), np.stack([dxy, dyy + tiny], -1)], -2)
    step = np.linalg.pinv(hessian) @ np.stack([dx, dy], -1)[..., None]
    return -step[..., 0].clip(-1, 1)


def _blur(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    # OpenCV's "reflect" repeats the edge pixel
    return np.asarray(cv2.GaussianBlur(heat, (BLUR_SIZE, BLUR_SIZE), BLUR_SIGMA, borderType=cv2.BORDER_REFLECT))
