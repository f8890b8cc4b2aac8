"""The editor of skeletons: its component, and what its value is to the annotators of people."""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from controlnet.annotators.openpose_json import from_openpose_json, to_openpose_json
from controlnet.annotators.skeleton import (
    BODY,
    BODY_COLOURS,
    BONE_COLOURS,
    FACE_RADIUS,
    FINGER_BONES,
    HAND_JOINT,
    JOINT_RADIUS,
    LIMB_OPACITY,
    LIMBS,
    People,
    Style,
    draw,
)
from controlnet.errors import UserError
from controlnet.images import Rgb
from controlnet.studio.editors.component import Value, answer, check_size, file_bytes, make_editor, with_background

MOST_PEOPLE = 50  # more are a crowd that nobody edits, and a second of drawing

# a person who stands and faces the viewer, as fractions of their height from the middle of the hips, drawn by eye
STANDING: tuple[tuple[float, float], ...] = (
    *((0, -0.45), (0, -0.33), (-0.11, -0.33), (-0.15, -0.15), (-0.17, 0.02)),
    *((0.11, -0.33), (0.15, -0.15), (0.17, 0.02)),
    *((-0.07, 0), (-0.08, 0.23), (-0.08, 0.45), (0.07, 0), (0.08, 0.23), (0.08, 0.45)),
    *((-0.025, -0.475), (0.025, -0.475), (-0.055, -0.46), (0.055, -0.46)),
)


def pose_editor(label: str, *, width: int = 512, height: int = 512, **options: Any) -> gr.HTML:
    settings = {
        "width": width,
        "height": height,
        "joints": BODY,
        "limbs": LIMBS,
        "bones": FINGER_BONES,
        "colours": BODY_COLOURS,
        "bone_colours": BONE_COLOURS,
        "hand_colour": HAND_JOINT,
        "radius": JOINT_RADIUS,
        "face_radius": FACE_RADIUS,
        "opacity": LIMB_OPACITY,
        "standing": STANDING,
        "most_people": MOST_PEOPLE,
    }
    return make_editor("PoseEditor", label, settings, read_pose, **options)


def blank_pose(width: int, height: int) -> Value:
    return pose_value(People((width, height)))


def pose_value(people: People | Mapping[str, Any], background: Rgb | None = None) -> Value:
    """People, or OpenPose's document of them."""
    found = people if isinstance(people, People) else from_openpose_json(people)
    return with_background(to_openpose_json(_checked(found)), background)


def pose_people(value: object) -> People:
    """The people of a value. UserError for what is no document of OpenPose, and for more than 50 people."""
    if isinstance(value, Mapping) and isinstance(value.get("people"), list) and len(value["people"]) > MOST_PEOPLE:
        raise UserError(f"{len(value['people'])} people; expected {MOST_PEOPLE} at most")
    return _checked(from_openpose_json(value))


def pose_hint(value: object, style: Style = "original") -> Rgb:
    """The picture that the annotator draws of these people."""
    return draw(pose_people(value), style)


def read_pose(text: object) -> Value:
    """Of a JSON file in base64: the value, or {"error"}."""
    return answer(lambda: _read(file_bytes(text)))


def _read(file: bytes) -> Value:
    try:
        document = json.loads(file)
    except (ValueError, RecursionError) as error:
        raise UserError(f"no JSON ({error}); expected the keypoints of OpenPose or of a pose editor") from error
    return pose_value(pose_people(document))


def _checked(people: People) -> People:
    check_size(*people.size)
    return people
