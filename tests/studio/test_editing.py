"""What an annotator has found goes on in an editor, whose hint is then what the annotator drew."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tiny_networks
from controlnet.annotators.openpose_json import to_openpose_json
from controlnet.annotators.skeleton import BODY, Keypoint, People, Person, draw
from controlnet.errors import UserError
from controlnet.studio.annotating import Hint, annotate
from controlnet.studio.asked import NO_ANNOTATOR, Asked
from controlnet.studio.desk import Desk
from controlnet.studio.editing import by_hand, editor_value
from controlnet.studio.editors import mask_of, mask_value, pose_hint, scribble_hint, segment_hint
from controlnet.studio.editors.component import LARGEST_SIDE
from controlnet.studio.examples import house, ring
from controlnet.studio.form import Form
from controlnet.studio.settings_panel import under_the_brush


def test_edges_go_on_as_the_same_lines_over_the_picture(desk: Desk):
    source, value = by_hand(house(), "canny", {}, desk.models)
    assert source == "Draw"
    assert (scribble_hint(value) == annotate(house(), "canny", {}, desk.models).pixels).all()
    assert value["background"]["path"].endswith(".png")


def test_a_picture_that_is_a_hint_goes_on_as_its_strokes(desk: Desk):
    picture = ring(0.4, 0.5, 0.3)()
    assert (scribble_hint(by_hand(picture, NO_ANNOTATOR, {}, desk.models)[1]) == picture).all()


def test_classes_go_on_as_the_same_classes_with_weights_of_a_folder(desk: Desk, tmp_path):
    tiny_networks.save("upernet", tmp_path)
    own = Desk(replace(desk.offer, weights=tmp_path))
    source, value = by_hand(house()[:256, :192], "seg", {"detect_resolution": 64}, own.models)
    assert source == "Segments"
    seen = annotate(house()[:256, :192], "seg", {"detect_resolution": 64}, own.models).pixels
    assert (value["width"], value["height"]) == (192, 256)
    assert (segment_hint(value) == seen).all()


def test_people_go_on_as_the_same_people():
    joints = tuple(Keypoint(20.0 + 9 * number, 40.0 + 5 * number) for number in range(len(BODY)))
    people = People((256, 192), (Person(joints),))
    hint = Hint(np.zeros((384, 512, 3), np.uint8), b"", to_openpose_json(people))  # looked at in half its size
    source, value = editor_value(hint, np.zeros((384, 512, 3), np.uint8), False)
    assert source == "Pose"
    assert (pose_hint(value) == draw(people.resized((512, 384)))).all()


def test_a_picture_larger_than_a_canvas_goes_on_as_large_as_one_can_be(desk: Desk):
    wide = np.zeros((1500, 3000, 3), np.uint8)
    wide[:, 1500:] = 255
    value = by_hand(wide, "canny", {}, desk.models)[1]
    assert (value["width"], value["height"]) == (LARGEST_SIDE, LARGEST_SIDE // 2)


@pytest.mark.parametrize(
    ("picture", "name", "told"), [(None, "canny", "no picture yet"), (house(), "depth", "no lines")]
)
def test_what_cannot_be_edited_is_told(desk: Desk, picture, name, told):
    with pytest.raises(UserError, match=told):
        by_hand(picture, name, {}, desk.models)


def test_a_mask_lies_over_the_picture_that_is_painted_anew_and_over_a_restored_one():
    picture = house()[:200, :300]
    blank = under_the_brush(picture)
    assert (blank["width"], blank["height"]) == (300, 200)
    asked = Asked(image=picture, mask=mask_value(np.eye(200, 300, dtype=np.uint8) * 255))
    shown, mask = Form({"image": None, "mask": None}, []).updates(asked)
    assert (shown == picture).all()
    assert (mask_of(mask) == mask_of(asked.mask)).all()
    for value in (blank, mask):
        assert (np.asarray(Image.open(value["background"]["path"])) == picture).all()
