"""Where hands are, and what their joints' heat says (Simon et al. 2017, "Hand Keypoint Detection in Single Images using
Multiview Bootstrapping"; the numbers are those of OpenPose)."""

# h w size of a crop, k joints
from math import hypot
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.skeleton import BODY, HAND_POINTS, Keypoint, Keypoints

Side = tuple[int, int, int]  # shoulder, elbow, wrist
RIGHT: Side = (BODY.index("right shoulder"), BODY.index("right elbow"), BODY.index("right wrist"))
LEFT: Side = (BODY.index("left shoulder"), BODY.index("left elbow"), BODY.index("left wrist"))

BEYOND_WRIST = 0.33  # of the forearm, to the middle of the hand
SIDE_OF_FOREARM, UPPER_ARM_TO_FOREARM = 1.5, 0.9
SMALLEST_SIDE = 20  # pixels
BLUR_SIGMA, BLUR_SIZE = 3.0, 25
LOWEST_HEAT = 0.05


class Square(NamedTuple):
    """A part of a picture, whole pixels."""

    left: int
    top: int
    side: int

    def cut(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return picture[self.top : self.top + self.side, self.left : self.left + self.side]


def hand_square(body: Keypoints, side: Side, size: tuple[int, int]) -> Square | None:
    """Where the hand at the end of an arm should be in a picture of `size` (width, height); None if the arm is not
    seen or the hand is too small or off the picture."""
    shoulder, elbow, wrist = (body[joint] for joint in side)
    if not (shoulder and elbow and wrist):
        return None
    x = wrist.x + BEYOND_WRIST * (wrist.x - elbow.x)
    y = wrist.y + BEYOND_WRIST * (wrist.y - elbow.y)
    forearm, upper_arm = _distance(wrist, elbow), _distance(elbow, shoulder)
    length = SIDE_OF_FOREARM * max(forearm, UPPER_ARM_TO_FOREARM * upper_arm)
    left, top = (int(max(middle - length / 2, 0)) for middle in (x, y))
    within = int(min(length, size[0] - left, size[1] - top))
    return Square(left, top, within) if within >= SMALLEST_SIDE else None


def hand_joints(heat_hwk: NDArray[np.floating[Any]], square: Square) -> Keypoints:
    """The joints in the picture from the heat (h, w, 21 or more) in the square: each is the hottest pixel of the patch
    of blurred heat that has the most in all."""
    return tuple(_joint(np.ascontiguousarray(heat_hwk[..., joint], np.float32), square) for joint in range(HAND_POINTS))


def _joint(heat: NDArray[np.float32], square: Square) -> Keypoint | None:
    # OpenCV's "reflect" repeats the edge pixel
    blurred = cv2.GaussianBlur(heat, (BLUR_SIZE, BLUR_SIZE), BLUR_SIGMA, borderType=cv2.BORDER_REFLECT)
    count, patches = cv2.connectedComponents((blurred > LOWEST_HEAT).astype(np.uint8))
    if count == 1:  # the background alone
        return None
    totals = np.bincount(patches.ravel(), weights=heat.ravel())
    hottest = np.where(patches == 1 + totals[1:].argmax(), heat, -np.inf).argmax()
    y, x = divmod(int(hottest), heat.shape[1])
    score = float(heat[y, x])
    return Keypoint(square.left + x, square.top + y, min(score, 1.0)) if score > 0 else None


def _distance(first: Keypoint, second: Keypoint) -> float:
    return hypot(first.x - second.x, first.y - second.y)
