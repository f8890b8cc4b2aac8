"""Skeletons: the original's drawing, keypoints of other detectors, OpenPose's JSON in and out."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlnet.annotators.openpose_json import from_openpose_json, to_openpose_json
from controlnet.annotators.skeleton import (
    BODY,
    BODY_COLOURS,
    FACE_POINTS,
    HAND_POINTS,
    LEFT_SHOULDER,
    LIMBS,
    NECK,
    RIGHT_SHOULDER,
    Keypoint,
    People,
    Person,
    draw,
    from_array,
    from_candidates,
    from_coco17,
)
from controlnet.errors import UserError
from parity.annotators import original

NOBODY = (None,) * len(BODY)


def body(**joints):
    """A body of which only some joints are seen, named with underscores."""
    return tuple(joints.get(name.replace(" ", "_")) for name in BODY)


def drawn_people():
    keypoints = original("openpose.draw.keypoints")
    scores = (keypoints[..., :1] >= 0).astype(np.float32)
    return People((200, 160), tuple(Person(from_array(each)) for each in np.concatenate([keypoints, scores], axis=-1)))


def test_the_original_style_is_the_originals_bit_for_bit():
    assert np.array_equal(draw(drawn_people()), original("openpose.draw.map"))


def test_the_colours_are_openposes():
    published = """ff0000 ff5500 ffaa00 ffff00 aaff00 55ff00 00ff00 00ff55 00ffaa 00ffff 00aaff 0055ff 0000ff 5500ff
    aa00ff ff00ff ff00aa ff0055"""
    assert [bytes(colour).hex() for colour in BODY_COLOURS] == published.split()


def test_the_later_style_draws_joints_in_full_colour_over_darkened_limbs():
    elbow, wrist = Keypoint(20, 20), Keypoint(60, 20)
    people = People((80, 40), (Person(body(right_elbow=elbow, right_wrist=wrist)),))
    later, first = draw(people, "later"), draw(people, "original")
    limb = LIMBS.index((BODY.index("right elbow"), BODY.index("right wrist")))
    darkened = tuple(int(0.6 * c) for c in BODY_COLOURS[limb])
    assert tuple(later[20, 40]) == tuple(first[20, 40]) == darkened
    assert tuple(later[20, 58]) == BODY_COLOURS[BODY.index("right wrist")]
    assert tuple(first[20, 58]) not in (*BODY_COLOURS, darkened), "where the limb lies over the joint"


def test_a_later_person_hides_an_earlier_one_in_the_later_style_only():
    """Where two limbs of one colour cross, the original blends twice."""
    down = body(right_elbow=Keypoint(40, 5), right_wrist=Keypoint(40, 75))
    across = body(right_elbow=Keypoint(5, 40), right_wrist=Keypoint(75, 40))
    people = People((80, 80), (Person(down), Person(across)))
    assert np.array_equal(draw(people, "later")[40, 40], draw(people, "later")[40, 20])
    assert draw(people, "original")[40, 40].max() > draw(people, "original")[40, 20].max()


@pytest.mark.parametrize("style", ["original", "later"])
def test_a_joint_that_is_not_seen_is_not_drawn_nor_are_its_limbs(style):
    alone = body(right_elbow=Keypoint(20, 20))
    hint = draw(People((40, 40), (Person(alone),)), style)
    assert hint.any(-1).sum() == 49  # a disc of radius 4
    assert not draw(People((40, 40), (Person(NOBODY),)), style).any()
    assert draw(People((3, 2)), style).shape == (2, 3, 3)


@pytest.mark.parametrize("style", ["original", "later"])
def test_keypoints_far_off_the_picture_are_cut_off(style):
    far = Person(body(neck=Keypoint(-30000, 5), right_shoulder=Keypoint(30000, 5), nose=Keypoint(10, -2)))
    assert draw(People((20, 10), (far,)), style).any()


def test_hands_are_drawn_with_blue_joints_and_only_if_asked_for():
    hand = tuple(Keypoint(10 + 3 * joint, 20) for joint in range(HAND_POINTS))
    people = People((100, 40), (Person(NOBODY, left_hand=hand),))
    assert tuple(draw(people)[20, 10]) == (0, 0, 255)
    assert not draw(people, hands=False).any()


def test_a_finger_with_a_missing_joint_loses_the_bones_at_it_only():
    points = [Keypoint(50, 90), *(Keypoint(10 + 20 * (i // 4), 70 - 20 * (i % 4)) for i in range(20))]
    whole = draw(People((120, 100), (Person(NOBODY, right_hand=tuple(points)),)))
    points[3] = None  # of the thumb
    broken = draw(People((120, 100), (Person(NOBODY, right_hand=tuple(points)),)))
    changed = (whole != broken).any(-1)
    assert changed.any()
    assert not changed[:, 25:].any()


def test_a_face_is_white_dots():
    face = (Keypoint(10, 10), *[None] * (FACE_POINTS - 1))
    assert (draw(People((20, 20), (Person(NOBODY, face=face),)))[10, 10] == 255).all()


COCO = [Keypoint(float(i), float(2 * i), 0.5 + i / 100) for i in range(17)]
COCO_LEFT_SHOULDER, COCO_RIGHT_SHOULDER = 5, 6


def test_the_neck_is_the_middle_of_the_shoulders_and_as_sure_as_the_less_sure():
    assert from_coco17(COCO)[NECK] == Keypoint(5.5, 11.0, COCO[COCO_LEFT_SHOULDER].score)


@pytest.mark.parametrize("missing", [COCO_LEFT_SHOULDER, COCO_RIGHT_SHOULDER])
def test_without_both_shoulders_there_is_no_neck(missing):
    found = from_coco17([None if i == missing else point for i, point in enumerate(COCO)])
    assert found[NECK] is None
    assert (found[LEFT_SHOULDER] is None) != (found[RIGHT_SHOULDER] is None)


def test_every_joint_of_coco_keeps_its_name():
    names = """nose, left eye, right eye, left ear, right ear, left shoulder, right shoulder, left elbow, right elbow,
    left wrist, right wrist, left hip, right hip, left knee, right knee, left ankle, right ankle"""
    named = dict(zip((name.strip() for name in names.split(",")), COCO, strict=True))
    assert {name: point for name, point in zip(BODY, from_coco17(COCO), strict=True) if name != "neck"} == named


def test_people_of_openposes_decoding_have_its_candidates_as_joints():
    candidate, subset = original("openpose.decode.candidate"), original("openpose.decode.subset")
    people = from_candidates(candidate, subset, (200, 160)).people
    assert len(people) == len(subset)
    assert [sum(joint is not None for joint in person.body) for person in people] == subset[:, -1].tolist()
    assert people[1].body[0] == Keypoint(*candidate[0, :3].tolist())


points = st.none() | st.builds(
    Keypoint,
    *[st.floats(-50, 300, allow_nan=False, width=32)] * 2,
    st.floats(0, 1, exclude_min=True, width=32),
)


def parts(number):
    return st.lists(points, min_size=number, max_size=number).map(tuple)


hand_or_not = st.just(()) | parts(HAND_POINTS)
persons = st.builds(Person, parts(len(BODY)), hand_or_not, hand_or_not, st.just(()) | parts(FACE_POINTS))
# a coordinate beyond 1 tells pixels from fractions of the canvas
in_pixels = st.lists(persons, max_size=2).filter(
    lambda people: any(max(point.x, point.y) > 1 for person in people for point in person.body if point)
)


@given(in_pixels)
def test_people_come_back_from_their_json(people):
    before = People((256, 192), tuple(people))
    assert from_openpose_json(json.loads(json.dumps(to_openpose_json(before)))) == before


def document(**person):
    """One person on a canvas of 100x50, a body of 18 joints at (10, 20) unless told otherwise."""
    person = {"pose_keypoints_2d": [10, 20, 1] * 18} | person
    return {"people": [person], "canvas_width": 100, "canvas_height": 50}


@pytest.mark.parametrize("absent", [None, []])
def test_hands_and_faces_may_be_absent_empty_or_null(absent):
    keys = ("hand_left_keypoints_2d", "hand_right_keypoints_2d", "face_keypoints_2d")
    assert from_openpose_json(document(**dict.fromkeys(keys, absent))) == from_openpose_json(document())


def test_a_person_may_be_hands_only():
    [person] = from_openpose_json(document(pose_keypoints_2d=None, hand_left_keypoints_2d=[5, 6, 1] * 21)).people
    assert person.body == NOBODY
    assert person.left_hand == (Keypoint(5, 6),) * 21


def test_a_score_of_zero_is_a_joint_not_seen():
    [person] = from_openpose_json(document(pose_keypoints_2d=[0, 0, 0, *[10, 20, 1] * 17])).people
    assert person.body[0] is None
    assert None not in person.body[1:]


def test_openposes_own_bodies_of_25_joints_are_read_without_hips_middle_and_feet():
    numbers = [number for joint in range(25) for number in (joint + 10, 0, 1)]
    [person] = from_openpose_json(document(pose_keypoints_2d=numbers)).people
    assert [joint.x - 10 for joint in person.body] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]


def test_fractions_of_the_canvas_become_pixels():
    [person] = from_openpose_json(document(pose_keypoints_2d=[0.5, 0.5, 1] * 18)).people
    assert person.body[0] == Keypoint(50, 25)


def test_openposes_own_files_name_no_canvas_so_the_size_is_given():
    own = {"version": 1.3, "people": document()["people"]}
    assert from_openpose_json(own, size=(640, 480)).size == (640, 480)
    with pytest.raises(UserError, match="canvas_width"):
        from_openpose_json(own)


def test_a_document_alone_in_a_list_is_read():
    assert from_openpose_json([document()]) == from_openpose_json(document())


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], 'a list "people", found \\[\\]'),
        ({"animals": []}, 'a list "people", found .*animals'),
        (document() | {"people": {}}, 'a list "people"'),
        (document() | {"people": [7]}, r"people\[0\] is 7"),
        (document() | {"canvas_width": 0}, '"canvas_width" is 0'),
        (document() | {"canvas_height": "50"}, "\"canvas_height\" is '50'"),
        (document() | {"canvas_width": 10**6, "canvas_height": 10**6}, "24,000,000 pixels at most"),
        (document(pose_keypoints_2d=[1, 2, 3]), r"people\[0\]\.pose_keypoints_2d is \[1, 2, 3\]; .*54 or 75"),
        (document(hand_left_keypoints_2d=[0] * 62), "hand_left_keypoints_2d is a list of 62; .*63 numbers"),
        (document(pose_keypoints_2d=["x", *[0] * 53]), r"pose_keypoints_2d\[0\] is 'x'"),
        (document(pose_keypoints_2d=[0, float("nan"), *[0] * 52]), r"pose_keypoints_2d\[1\] is nan"),
        (document(pose_keypoints_2d=[0, 0, 0, 1e9, *[0] * 50]), r"pose_keypoints_2d\[3\] is 1000000000\.0"),
    ],
)
def test_a_broken_document_is_refused_with_the_place_and_the_value(broken, message):
    with pytest.raises(UserError, match=message):
        from_openpose_json(broken)


def test_people_at_another_size_are_drawn_where_they_were():
    people = drawn_people()
    larger = people.resized((400, 480))
    assert larger.size == (400, 480)
    assert larger.people[0].body[0] == Keypoint(120, 60)
    assert larger.resized(people.size) == people


def test_an_edited_pose_is_drawn_with_the_edit():
    people = drawn_people()
    first = people.people[0]
    raised = replace(first, body=tuple(point and point._replace(y=point.y + 10) for point in first.body))
    assert np.array_equal(draw(People(people.size, (raised,)))[10:], draw(People(people.size, (first,)))[:-10])
