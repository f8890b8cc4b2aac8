"""What the editors send and take, on the server: exact, small, and never trusted."""

import base64
import json
from io import BytesIO
from typing import Any

import gradio as gr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from controlnet.annotators.ade20k import PALETTE
from controlnet.annotators.scribble import Scribble
from controlnet.annotators.skeleton import BODY, Keypoint, People, Person, draw
from controlnet.errors import UserError
from controlnet.studio.editors import (
    blank,
    blank_pose,
    blank_segment,
    mask_of,
    mask_value,
    pose_editor,
    pose_hint,
    pose_people,
    pose_value,
    scribble_editor,
    scribble_hint,
    scribble_value,
    segment_editor,
    segment_hint,
    segment_indices,
    segment_value,
)
from controlnet.studio.editors.pose import MOST_PEOPLE, read_pose
from controlnet.studio.editors.scribble import read_drawing_as
from controlnet.studio.editors.segment import read_map

NONE = 255
ANYBODY = Person(tuple(Keypoint(10.0 + joint, 20.0) for joint in range(len(BODY))))


def sent(content: bytes) -> str:
    return base64.b64encode(content).decode()


def png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def runs(*triples: tuple[int, int]) -> str:
    return sent(b"".join(bytes([index, length & 255, length >> 8]) for index, length in triples))


@given(arrays(np.uint8, (64, 70), elements=st.sampled_from([0, 7, 149, NONE]), fill=st.just(7)))
def test_any_picture_of_classes_comes_back_as_it_was(indices: NDArray[np.uint8]) -> None:
    value = json.loads(json.dumps(segment_value(indices)))
    assert (segment_indices(value) == indices).all()


def test_a_run_longer_than_two_bytes_hold_is_several() -> None:
    indices = np.full((2048, 2048), 3, np.uint8)
    indices[-1, -1] = 4
    assert (segment_indices(segment_value(indices)) == indices).all()


def test_scribbles_are_the_annotators_hint_whatever_their_polarity() -> None:
    paper = np.full((80, 64, 3), 255, np.uint8)
    paper[20:23, 10:50] = 0
    hint = Scribble().annotate(paper)
    assert (scribble_hint(scribble_value(paper)) == hint).all()
    assert (scribble_hint(scribble_value(255 - paper)) == hint).all()


def test_masks_keep_what_is_lighter_than_the_middle() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:10], mask[10:20] = 128, 127
    assert (mask_of(mask_value(mask)) == np.where(mask > 127, 255, 0)).all()


def test_people_are_drawn_by_the_annotator() -> None:
    people = People((90, 80), (ANYBODY,))
    assert pose_people(pose_value(people)) == people
    assert (pose_hint(pose_value(people), "later") == draw(people, "later")).all()


def test_pixels_without_a_class_are_black_and_others_have_the_palettes_colours() -> None:
    indices = np.zeros((64, 64), np.uint8)
    indices[:32] = NONE
    hint = segment_hint(segment_value(indices))
    assert not hint[:32].any()
    assert (hint[32:] == PALETTE[0]).all()


def test_blank_values_are_blank() -> None:
    assert not scribble_hint(blank(64, 128)).any()
    assert scribble_hint(blank(64, 128)).shape == (128, 64, 3)
    assert (segment_indices(blank_segment(64, 64)) == NONE).all()
    assert not pose_hint(blank_pose(64, 128)).any()


GOOD = {"width": 64, "height": 64, "runs": runs((0, 4096))}
HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "text": "<script>",
    "no keys": {},
    "a canvas too large": GOOD | {"width": 10**9, "height": 10**9},
    "a canvas too small": GOOD | {"width": 1},
    "a canvas of text": GOOD | {"width": "64"},
    "a canvas of truth": GOOD | {"width": True},
    "a canvas of fractions": GOOD | {"width": 64.5},
    "a canvas of nan": GOOD | {"width": float("nan")},
    "runs that are no text": GOOD | {"runs": [1, 2]},
    "runs that are no base64": GOOD | {"runs": "<>"},
    "runs in other letters": GOOD | {"runs": "äöü"},
    "a torn run": GOOD | {"runs": sent(b"\0\0")},
    "too few pixels": GOOD | {"runs": runs((0, 4095))},
    "too many pixels": GOOD | {"runs": runs(*[(0, 65535)] * 1000)},
    "an unknown index": GOOD | {"runs": runs((0, 4095), (200, 1))},
    "megabytes": GOOD | {"runs": "A" * (9 << 20)},
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("read", [scribble_hint, segment_hint, pose_hint])
def test_hostile_values_are_refused_in_words(value: Any, read: Any) -> None:
    with pytest.raises(UserError) as error:
        read(value)
    assert len(str(error.value)) < 300


def people_of(count: int, **changes: Any) -> dict[str, Any]:
    return {
        "people": [{"pose_keypoints_2d": [1, 2, 1] * 18}] * count,
        "canvas_width": 64,
        "canvas_height": 64,
    } | changes


@pytest.mark.parametrize(
    "document",
    [
        people_of(MOST_PEOPLE + 1),
        people_of(1, canvas_width=20_000, canvas_height=64),
        people_of(1, people=[{"pose_keypoints_2d": [1e300] * 54}]),
        people_of(1, people=[{"pose_keypoints_2d": [float("nan")] * 54}]),
        people_of(1, people=[{"pose_keypoints_2d": [1, 2, 3]}]),
        people_of(1, people="everybody"),
    ],
)
def test_hostile_people_are_refused_in_words(document: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        pose_hint(document)
    assert "expected" in read_pose(sent(json.dumps(document).encode()))["error"]


FILES = {
    "nothing": b"",
    "text": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "half a picture": png(np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8))[:5000],
    "a tiny picture": png(np.zeros((8, 8, 3), np.uint8)),
    "a bomb": png(np.zeros((4000, 4000), np.uint8)),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("read", [read_drawing_as("scribble"), read_drawing_as("mask"), read_map, read_pose])
def test_files_that_cannot_be_opened_give_an_error_to_show(content: bytes, read: Any) -> None:
    assert set(read(sent(content))) == {"error"}


@pytest.mark.parametrize("text", [None, 3, {"path": "/etc/passwd"}, "not base64!", "A" * (28 << 20)])
def test_what_is_no_file_gives_an_error_to_show(text: Any) -> None:
    assert set(read_map(text)) == {"error"}


def test_a_grey_map_of_indices_opens_as_these() -> None:
    indices = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    assert (segment_indices(read_map(sent(png(indices)))["value"]) == indices).all()


def test_a_grey_photograph_is_no_map_of_indices_and_is_snapped() -> None:
    photo = np.tile(np.arange(150, 214, dtype=np.uint8), (64, 1))
    answer = read_map(sent(png(photo)))
    assert answer["off"] == photo.size
    assert (segment_indices(answer["value"]) < 150).all()


def test_editors_carry_their_own_scripts_and_call_nobody() -> None:
    with gr.Blocks(analytics_enabled=False):
        editors = [scribble_editor("a"), scribble_editor("b", mode="mask"), pose_editor("c"), segment_editor("d")]
    for editor in editors:
        code = editor.js_on_load or ""
        assert "http" not in code.replace("http://www.w3.org/2000/svg", "")
        assert not [word for word in ("eval(", "new Function", "innerHTML", "import(", "fetch(") if word in code]
        assert editor.html_template == '<div class="editor"></div>'
        assert json.loads(json.dumps(editor.get_config()["props"]["settings"]))
