"""People as OpenPose keypoints, and the picture of them that a ControlNet reads.

numpy and OpenCV only, so that an editor can draw without torch.
"""

from collections.abc import Iterable, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from math import atan2, degrees, hypot
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.images import Rgb

Style = Literal["original", "later"]
"""How bodies are drawn: as ControlNet 1.0 did (joints, then limbs blended over them), or as the annotators since 1.1
(darkened limbs, then joints). Draw what the checkpoint was trained on."""

# OpenPose's 18 keypoints (Cao et al. 2017), left and right being the person's own
BODY: tuple[str, ...] = tuple(
    name.strip()
    for name in """
    nose, neck, right shoulder, right elbow, right wrist, left shoulder, left elbow, left wrist, right hip,
    right knee, right ankle, left hip, left knee, left ankle, right eye, left eye, right ear, left ear
    """.split(",")
)
NECK, RIGHT_SHOULDER, LEFT_SHOULDER = 1, 2, 5
# the 17 limbs that are drawn, limb i in the colour of joint i
LIMBS: tuple[tuple[int, int], ...] = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
# a hand is the wrist and four joints of each finger, thumb first
HAND_POINTS, FACE_POINTS = 21, 70
FINGER_BONES: tuple[tuple[int, int], ...] = tuple(
    (0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, HAND_POINTS)
)

# where the 18 stand among COCO's 17, which lack the neck
FROM_COCO17: tuple[int | None, ...] = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)


class Keypoint(NamedTuple):
    """Where a joint is, in pixels from the picture's top left corner, and how sure that is, in (0, 1]."""

    x: float
    y: float
    score: float = 1.0


Keypoints = tuple[Keypoint | None, ...]
"""None where a joint is not seen."""


@dataclass(frozen=True)
class Person:
    """18 keypoints of a body, and where a detector gives them 21 of each hand and 70 of the face."""

    body: Keypoints
    left_hand: Keypoints = ()
    right_hand: Keypoints = ()
    face: Keypoints = ()

    def __post_init__(self) -> None:
        assert len(self.body) == len(BODY)
        assert all(len(hand) in (0, HAND_POINTS) for hand in (self.left_hand, self.right_hand))
        assert len(self.face) in (0, FACE_POINTS)

    def scaled(self, x: float, y: float) -> "Person":
        return Person(*(_scaled(points, x, y) for points in (self.body, self.left_hand, self.right_hand, self.face)))


@dataclass(frozen=True)
class People:
    """The people of one picture."""

    size: tuple[int, int]
    """(width, height) of the picture, pixels."""
    people: tuple[Person, ...] = ()

    def resized(self, size: tuple[int, int]) -> "People":
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        return People(size, tuple(person.scaled(x, y) for person in self.people))


def from_array(points: NDArray[np.floating[Any]]) -> Keypoints:
    """(N, 3) rows of x, y, score; a score of zero or less is a joint not seen."""
    return tuple(Keypoint(*map(float, row)) if row[2] > 0 else None for row in points)


def from_coco17(keypoints: Sequence[Keypoint | None]) -> Keypoints:
    """COCO's 17 keypoints as the 18: the neck is the middle of the shoulders, and only if both are seen."""
    body = [None if place is None else keypoints[place] for place in FROM_COCO17]
    right, left = body[RIGHT_SHOULDER], body[LEFT_SHOULDER]
    if right and left:
        body[NECK] = Keypoint((right.x + left.x) / 2, (right.y + left.y) / 2, min(right.score, left.score))
    return tuple(body)


def from_candidates(
    candidate: NDArray[np.floating[Any]], subset: NDArray[np.floating[Any]], size: tuple[int, int]
) -> People:
    """What OpenPose's decoding finds: `candidate` rows are x, y, score, number; the first 18 columns of a row of
    `subset` are a person's joints as rows of `candidate`, -1 where not seen. `size` is (width, height)."""
    rows = [[int(joint) for joint in row[: len(BODY)]] for row in subset]
    return People(size, tuple(Person(_body_of(candidate, row)) for row in rows))


def _body_of(candidate: NDArray[np.floating[Any]], joints: Sequence[int]) -> Keypoints:
    return tuple(None if joint < 0 else Keypoint(*map(float, candidate[joint, :3])) for joint in joints)


def _scaled(points: Keypoints, x: float, y: float) -> Keypoints:
    return tuple(point and Keypoint(point.x * x, point.y * y, point.score) for point in points)


JOINT_RADIUS = 4  # pixels, at whatever size: what every public pose model was trained on
LIMB_RADIUS = 4
LIMB_OPACITY = 0.6  # "original" blends a limb in with this weight, "later" darkens its colour by it
FACE_RADIUS = 3
BONE_WIDTH = 2
HAND_JOINT = (0, 0, 255)
WHITE = (255, 255, 255)

Colour = tuple[int, int, int]


def hues(number: int) -> tuple[Colour, ...]:
    """`number` pure hues, evenly around the circle from red."""
    return tuple(tuple(round(255 * c) for c in hsv_to_rgb(i / number, 1, 1)) for i in range(number))  # type: ignore[misc]


BODY_COLOURS = hues(len(BODY))
BONE_COLOURS = hues(len(FINGER_BONES))


def draw(people: People, style: Style = "original", hands: bool = True, face: bool = True) -> Rgb:
    """People -> (H, W, 3) uint8 on black, H and W those of `people.size`; keypoints off the picture are cut off."""
    width, height = people.size
    canvas: Rgb = np.zeros((height, width, 3), np.uint8)
    bodies = [person.body for person in people.people]
    (_draw_bodies_blended if style == "original" else _draw_bodies_plain)(canvas, bodies)
    for person in people.people:
        for hand in (person.left_hand, person.right_hand) if hands else ():
            _draw_hand(canvas, hand)
        for point in filter(None, person.face if face else ()):
            _dot(canvas, point, FACE_RADIUS, WHITE)
    return canvas


def _draw_bodies_blended(canvas: Rgb, bodies: Iterable[Keypoints]) -> None:
    """Joint by joint over all bodies, then limb by limb, each limb blended over everything so far."""
    for joint, colour in enumerate(BODY_COLOURS):
        for point in filter(None, (body[joint] for body in bodies)):
            _dot(canvas, point, JOINT_RADIUS, colour)
    for (start, end), colour in zip(LIMBS, BODY_COLOURS, strict=False):
        for body in bodies:
            if (outline := _limb(body[start], body[end])) is not None:
                with_limb = cv2.fillConvexPoly(canvas.copy(), outline, colour)
                cv2.addWeighted(canvas, 1 - LIMB_OPACITY, with_limb, LIMB_OPACITY, 0, dst=canvas)


def _draw_bodies_plain(canvas: Rgb, bodies: Iterable[Keypoints]) -> None:
    """Body by body, darkened limbs first, joints on top."""
    for body in bodies:
        for (start, end), colour in zip(LIMBS, BODY_COLOURS, strict=False):
            if (outline := _limb(body[start], body[end])) is not None:
                cv2.fillConvexPoly(canvas, outline, [int(LIMB_OPACITY * c) for c in colour])
        for point, colour in zip(body, BODY_COLOURS, strict=True):
            if point:
                _dot(canvas, point, JOINT_RADIUS, colour)


def _limb(start: Keypoint | None, end: Keypoint | None) -> NDArray[np.int32] | None:
    """The outline of an ellipse from joint to joint, None if one is not seen."""
    if not start or not end:
        return None
    centre = int((start.x + end.x) / 2), int((start.y + end.y) / 2)
    half_length = int(hypot(start.x - end.x, start.y - end.y) / 2)
    angle = int(degrees(atan2(start.y - end.y, start.x - end.x)))
    return np.array(cv2.ellipse2Poly(centre, (half_length, LIMB_RADIUS), angle, 0, 360, 1), dtype=np.int32)


def _draw_hand(canvas: Rgb, hand: Keypoints) -> None:
    if not hand:
        return
    for (start, end), colour in zip(FINGER_BONES, BONE_COLOURS, strict=True):
        first, second = hand[start], hand[end]
        if first and second:
            cv2.line(canvas, _pixel(first), _pixel(second), colour, BONE_WIDTH)
    for point in filter(None, hand):
        _dot(canvas, point, JOINT_RADIUS, HAND_JOINT)


def _dot(canvas: Rgb, point: Keypoint, radius: int, colour: Colour) -> None:
    cv2.circle(canvas, _pixel(point), radius, colour, thickness=-1)


def _pixel(point: Keypoint) -> tuple[int, int]:
    return int(point.x), int(point.y)
