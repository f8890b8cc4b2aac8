"""OpenPose's JSON, in and out: what pose editors, OpenPose itself and other interfaces exchange."""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from controlnet.annotators.skeleton import BODY, FACE_POINTS, HAND_POINTS, Keypoints, People, Person, from_array
from controlnet.errors import UserError
from controlnet.images import LARGEST_AREA

# where the 18 stand among the 25 of OpenPose's later body model
FROM_25: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
FARTHEST = 32767  # pixels; OpenCV draws no farther

PART_KEYS = {
    "pose_keypoints_2d": "body",
    "hand_left_keypoints_2d": "left_hand",
    "hand_right_keypoints_2d": "right_hand",
    "face_keypoints_2d": "face",
}
PART_LENGTHS = {"body": len(BODY), "left_hand": HAND_POINTS, "right_hand": HAND_POINTS, "face": FACE_POINTS}


def to_openpose_json(people: People) -> dict[str, Any]:
    """`people[].pose_keypoints_2d` and so on as flat lists x, y, score, three zeros for what is not seen, and the
    canvas; parts that a person lacks are left out."""
    return {
        "people": [
            {key: _flat(points) for key, part in PART_KEYS.items() if (points := getattr(person, part))}
            for person in people.people
        ],
        "canvas_width": people.size[0],
        "canvas_height": people.size[1],
    }


def from_openpose_json(document: object, size: tuple[int, int] | None = None) -> People:
    """The parsed JSON of OpenPose, of pose editors and of other interfaces -> people.

    `size` (width, height) is the canvas where the document names none, as OpenPose's own output. Takes bodies of 18
    and of 25 keypoints, coordinates in pixels or, where none exceeds 1, as fractions of the canvas, parts that are
    missing, empty or null, and a document that is alone in a list. UserError names what is wrong and where.
    """
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, Mapping) or not isinstance(document.get("people"), list):
        raise UserError(f'no OpenPose keypoints: expected an object with a list "people", found {_short(document)}')
    canvas = _canvas(document, size)
    people = People(canvas, tuple(_person(entry, f"people[{n}]") for n, entry in enumerate(document["people"])))
    return _in_pixels(people)


def _flat(points: Keypoints) -> list[float]:
    return [number for point in points for number in (point or (0.0, 0.0, 0.0))]


def _canvas(document: Mapping[Any, Any], size: tuple[int, int] | None) -> tuple[int, int]:
    width, height = document.get("canvas_width"), document.get("canvas_height")
    if width is None and height is None:
        if size is None:
            raise UserError('keypoints without "canvas_width" and "canvas_height": add them, or give the size')
        return size
    sides = [int(side) for side in (width, height) if isinstance(side, int | float) and 1 <= side <= LARGEST_AREA]
    if len(sides) == 2 and sides[0] * sides[1] <= LARGEST_AREA:
        return sides[0], sides[1]
    raise UserError(
        f'"canvas_width" is {_short(width)}, "canvas_height" is {_short(height)}; expected two sides of at least '
        f"1 pixel and {LARGEST_AREA:,} pixels at most"
    )


def _person(entry: object, where: str) -> Person:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {_short(entry)}; expected an object with pose_keypoints_2d")
    points = {part: _keypoints(entry.get(key), part, f"{where}.{key}") for key, part in PART_KEYS.items()}
    return Person(**points | {"body": points["body"] or (None,) * len(BODY)})


def _keypoints(numbers: object, part: str, where: str) -> Keypoints:
    if numbers is None or numbers == []:
        return ()
    lengths = {3 * PART_LENGTHS[part]} | ({3 * 25} if part == "body" else set())
    if not isinstance(numbers, list) or len(numbers) not in lengths:
        expected = " or ".join(map(str, sorted(lengths)))
        raise UserError(f"{where} is {_short(numbers)}; expected a list of {expected} numbers: x, y, score, x, ...")
    for place, number in enumerate(numbers):
        if not isinstance(number, int | float) or not isfinite(number) or abs(number) > FARTHEST:
            raise UserError(f"{where}[{place}] is {_short(number)}; expected a number within ±{FARTHEST}")
    points = from_array(np.array(numbers, dtype=np.float64).reshape(-1, 3))
    return tuple(points[place] for place in FROM_25) if len(points) == 25 else points


def _in_pixels(people: People) -> People:
    seen = [point for person in people.people for key in PART_LENGTHS for point in getattr(person, key) if point]
    if not seen or max(max(point.x, point.y) for point in seen) > 1:
        return people
    return People(people.size, tuple(person.scaled(*people.size) for person in people.people))


def _short(value: object) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
