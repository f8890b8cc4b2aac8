"""The editor of skeletons in a real browser: what is dragged there is what Python has, and what the annotator draws."""

import json
from collections.abc import Iterator
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser

from controlnet.annotators.skeleton import BODY, Keypoint, People, Person, draw
from controlnet.studio.editors import pose_editor, pose_hint, pose_people, pose_value
from editor_page import SIZE, Point, Shown, shown

NOSE, NECK = BODY.index("nose"), BODY.index("neck")
WRIST, ELBOW = BODY.index("left wrist"), BODY.index("left elbow")
CLOSE = 1.0  # pixels; the pointer stands on whole pixels of the screen


@pytest.fixture(scope="module")
def page_of_one(browser: Browser) -> Iterator[Shown]:
    with shown(browser, pose_editor) as one:
        yield one


@pytest.fixture
def pose(page_of_one: Shown) -> Shown:
    """With one person, who stands in the left half, and nothing chosen but them."""
    joints = [(40.0 + 20 * (joint % 6), 60.0 + 35 * (joint // 6)) for joint in range(len(BODY))]
    page_of_one.send(pose_value(People(SIZE, (Person(tuple(Keypoint(*joint) for joint in joints)),))))
    page_of_one.press("Whole picture")
    page_of_one.canvas.focus()
    page_of_one.page.keyboard.press("Escape")
    return page_of_one


def bodies(value: Any) -> list[list[Point | None]]:
    return [[point and (point.x, point.y) for point in person.body] for person in pose_people(value).people]


def place(value: Any, joint: int, person: int = 0) -> Point:
    found = bodies(value)[person][joint]
    assert found
    return found


def is_close(a: Point, b: Point) -> bool:
    return hypot(a[0] - b[0], a[1] - b[1]) < CLOSE


def test_a_dragged_wrist_moves_in_the_json_and_in_the_hint_and_nothing_else_moves(pose: Shown) -> None:
    before = pose.read()
    start = place(before, WRIST)
    after = pose.value_after(lambda: pose.drag(start, (200, 100), (260, 200)))
    assert is_close(place(after, WRIST), (260, 200))
    expected = bodies(before)
    expected[0][WRIST] = place(after, WRIST)
    assert bodies(after) == expected
    assert (pose_hint(after) != pose_hint(before)).any()
    assert (pose_hint(after) == draw(pose_people(after))).all()
    assert bodies(pose.value_after(lambda: pose.press("Undo"))) == bodies(before)
    assert bodies(pose.value_after(lambda: pose.press("Redo"))) == expected


def test_the_canvas_shows_the_colours_that_the_annotator_draws(pose: Shown) -> None:
    arm = {ELBOW: Keypoint(60, 100), WRIST: Keypoint(140, 100)}
    pose.send(pose_value(People(SIZE, (Person(tuple(map(arm.get, range(len(BODY))))),))))
    left, top, scale = pose.place()
    box = pose.canvas.bounding_box()
    assert box
    middle = [left - box["x"] + 100 * scale, top - box["y"] + 100 * scale]
    read = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)]"
    assert np.abs(np.array(pose.canvas.evaluate(read, middle)) - pose_hint(pose.read())[100, 100]).max() <= 1


def test_a_person_is_moved_by_a_limb_scaled_by_a_corner_and_turned_by_the_handle_above(pose: Shown) -> None:
    before = bodies(pose.read())[0]
    moved = bodies(pose.value_after(lambda: pose.drag((70, 60), (140, 80))))[0]  # between two joints
    ways = {(round(a[0] - b[0], 1), round(a[1] - b[1], 1)) for a, b in zip(moved, before, strict=True) if a and b}
    assert len(ways) == 1
    assert is_close(ways.pop(), (70, 20))
    scale = pose.place()[2]
    right, bottom = max(p[0] for p in moved if p) + 16 / scale, max(p[1] for p in moved if p) + 16 / scale
    left, top = min(p[0] for p in moved if p) - 16 / scale, min(p[1] for p in moved if p) - 16 / scale
    halved = bodies(pose.value_after(lambda: pose.drag((right, bottom), ((left + right) / 2, (top + bottom) / 2))))[0]
    for a, b in zip(halved, moved, strict=True):
        assert a
        assert b
        assert is_close(a, ((b[0] + left) / 2, (b[1] + top) / 2))
    middle = tuple((min(p[i] for p in halved if p) + max(p[i] for p in halved if p)) / 2 for i in (0, 1))
    handle = (middle[0], min(p[1] for p in halved if p) - (16 + 28) / scale)
    arm = middle[1] - handle[1]
    turned = bodies(pose.value_after(lambda: pose.drag(handle, (middle[0] + arm, middle[1]))))[0]
    for a, b in zip(turned, halved, strict=True):
        assert a
        assert b
        assert is_close(a, (middle[0] - (b[1] - middle[1]), middle[1] + (b[0] - middle[0])))


def test_people_are_added_copied_mirrored_and_deleted(pose: Shown) -> None:
    one = bodies(pose.read())
    two = bodies(pose.value_after(lambda: pose.press("Copy person")))
    assert len(two) == 2
    assert two[0] == one[0]
    assert place(pose.read(), NECK, 1)[0] > place(pose.read(), NECK)[0]
    mirrored = bodies(pose.value_after(lambda: pose.press("Mirror person")))
    xs = [point[0] for point in two[1] if point]
    for joint, name in enumerate(BODY):
        other = BODY.index(name.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right"))
        found, source = mirrored[1][joint], two[1][other]
        assert found
        assert source
        assert is_close(found, (min(xs) + max(xs) - source[0], source[1]))
    assert len(bodies(pose.value_after(lambda: pose.press("Add person")))) == 3
    assert bodies(pose.value_after(lambda: pose.press("Delete person"))) == mirrored
    assert bodies(pose.value_after(lambda: pose.press("Clear"))) == []


def test_the_keyboard_goes_from_joint_to_joint_moves_and_hides(pose: Shown) -> None:
    keyboard = pose.page.keyboard
    before = bodies(pose.read())[0]
    keyboard.press("Tab")
    keyboard.press("Tab")
    assert "neck" in pose.status
    moved = bodies(pose.value_after(lambda: keyboard.press("Shift+ArrowRight")))[0]
    neck = before[NECK]
    assert neck
    assert moved == [*before[:NECK], (neck[0] + 10, neck[1]), *before[NECK + 1 :]]
    hidden = pose.value_after(lambda: keyboard.press("Delete"))
    assert hidden["people"][0]["pose_keypoints_2d"][3 * NECK : 3 * NECK + 3] == [0, 0, 0]
    assert bodies(pose.value_after(lambda: pose.press("Show neck")))[0] == moved


def test_the_tab_key_leaves_the_canvas_after_the_last_joint(pose: Shown) -> None:
    for _ in range(len(BODY)):
        pose.page.keyboard.press("Tab")
    assert BODY[-1] in pose.status
    pose.page.keyboard.press("Tab")
    assert pose.page.evaluate("document.activeElement.tagName") != "CANVAS"


def test_a_finger_drags_a_joint(pose: Shown) -> None:
    start = place(pose.read(), NOSE)
    after = pose.value_after(lambda: pose.touch([start, (100, 30), (220, 40)]))
    assert is_close(place(after, NOSE), (220, 40))


def test_a_hand_goes_with_its_wrist(pose: Shown) -> None:
    hand = tuple(Keypoint(100.0 + i, 200.0) for i in range(21))
    body = tuple(Keypoint(40.0, 60.0) if joint == ELBOW else Keypoint(100.0, 200.0) if joint == WRIST else None
                 for joint in range(len(BODY)))  # fmt: skip
    pose.send(pose_value(People(SIZE, (Person(body, left_hand=hand),))))
    after = pose_people(pose.value_after(lambda: pose.drag((100, 200), (180, 120)))).people[0]
    wrist = after.body[WRIST]
    assert wrist
    assert is_close((wrist.x, wrist.y), (180, 120))
    for number, point in enumerate(after.left_hand):
        assert point
        assert is_close((point.x - number, point.y), (wrist.x, wrist.y))


def test_openpose_json_goes_out_and_in_again(pose: Shown) -> None:
    value = pose.value_after(lambda: pose.press("Copy person"))
    with pose.page.expect_download() as saved:
        pose.press("Save as OpenPose JSON")
    document = json.loads(Path(saved.value.path()).read_text())
    assert document == {key: value[key] for key in ("people", "canvas_width", "canvas_height")}
    pose.value_after(lambda: pose.press("Clear"))
    with pose.page.expect_file_chooser() as chooser:
        pose.press("Open OpenPose JSON")
    opened = pose.value_after(lambda: chooser.value.set_files(saved.value.path()))
    assert bodies(opened) == bodies(value)


def test_a_hostile_json_is_refused_in_words_and_changes_nothing(pose: Shown, tmp_path: Path) -> None:
    before = pose.read()
    path = tmp_path / "hostile.json"
    path.write_text(
        '{"people": [{"pose_keypoints_2d": ["<img src=x onerror=alert(1)>"]}], "canvas_width": 9, "canvas_height": 9}'
    )
    with pose.page.expect_file_chooser() as chooser:
        pose.press("Open OpenPose JSON")
    chooser.value.set_files(path)
    pose.page.get_by_text("expected a list of 54 or 75 numbers").wait_for()
    assert pose.read() == before
    assert pose.page.locator(".editor img").count() == 0
