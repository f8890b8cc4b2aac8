"""What a tab asks for, as JSON and files, and back."""

import json

import numpy as np
import pytest

from controlnet.errors import UserError
from controlnet.studio.asked import Asked, UnitAsked, data_url, from_data_url, numbers, png, with_alpha_if_any
from controlnet.studio.editors import blank, blank_pose

PICTURE = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
UNIT = UnitAsked(
    picture=PICTURE,
    drawing={**blank(128, 128), "background": {"path": "/somewhere/private.png"}},
    pose=blank_pose(64, 64),
    annotator="canny",
    options={"low": 50, "high": 70},
    invert=True,
    schedule="1 0.5",
    mode="prompt",
)
ASKED = Asked(prompt="a ring", count=3, seed=7, image=255 - PICTURE, loras=("one", "two"), units=(UNIT, UnitAsked()))


def test_json_and_files_tell_all_that_was_asked():
    back = Asked.from_json(json.loads(json.dumps(ASKED.to_json())), ASKED.files())
    assert back.to_json() == ASKED.to_json()
    assert (back.image == ASKED.image).all()
    assert (back.units[0].picture == PICTURE).all()
    assert back.units[1].picture is None
    assert back.units[0].options == {"low": 50, "high": 70}


def test_the_photograph_under_a_drawing_is_not_told():
    assert "private" not in json.dumps(ASKED.to_json())


def test_what_is_unknown_or_impossible_is_refused():
    with pytest.raises(UserError, match="steps is 'many'; expected a whole number"):
        Asked.from_json({"steps": "many"}, {})
    with pytest.raises(UserError, match="there is no 'stepz'"):
        Asked.from_json({"stepz": 3}, {})


@pytest.mark.parametrize(
    ("text", "found"), [("", ()), ("1", (1.0,)), ("1 0.5,0", (1.0, 0.5, 0.0)), ("1:2;3", (1, 2, 3))]
)
def test_numbers_may_have_any_separator(text, found):
    assert numbers(text, "schedule") == found


@pytest.mark.parametrize("text", ["one", "1 x", "nan", "inf", "1 " * 2000])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(UserError, match="schedule .* expected numbers"):
        numbers(text, "schedule")


def test_a_data_url_holds_the_very_pixels():
    assert from_data_url(data_url(PICTURE)) == png(PICTURE)


@pytest.mark.parametrize("text", ["", "http://host/a.png", "data:text/html;base64,aGk=", "data:image/png;base64,%%%"])
def test_what_is_no_data_url_of_a_picture_is_refused(text):
    with pytest.raises(UserError, match="data URL"):
        from_data_url(text)


def test_alpha_is_kept_where_something_is_transparent():
    rgba = np.concatenate([PICTURE, np.full_like(PICTURE[..., :1], 255)], axis=2)
    assert with_alpha_if_any(rgba).shape == PICTURE.shape
    rgba[0, 0, 3] = 254
    assert with_alpha_if_any(rgba).shape == rgba.shape
