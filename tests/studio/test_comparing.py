"""An x/y grid: its axes, its cells, its sheet."""

from dataclasses import replace

import numpy as np
import pytest

from controlnet.errors import UserError
from controlnet.studio.annotating import annotate, annotate_files
from controlnet.studio.asked import Asked, UnitAsked, png
from controlnet.studio.comparing import AXES, NO_AXIS, Comparison, compare
from controlnet.studio.examples import EXAMPLES, available, filled, house, ring
from controlnet.studio.history import pictures_of
from controlnet.studio.making import make
from controlnet.studio.units import suited

HINT = ring(0.6, 0.4, 0.25)()
ASKED = Asked(prompt="cyan circle", steps=1, guidance_scale=1.0, seed=3, units=(UnitAsked(), UnitAsked(picture=HINT)))


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        (("strength", "", "seed", "1"), "0 values of strength; expected 1 to 12"),
        (("strength", "1", "strength", "1"), "both axes are strength"),
        (("strength", "a b", "seed", "1"), "expected numbers"),
        (("colour", "1", "seed", "1"), "axis colour; expected one of"),
        (("strength", "1 2 3 4 5 6 7", "seed", "1 2 3 4 5 6"), "7 x 6 pictures; expected at most 36"),
    ],
)
def test_axes_that_cannot_be_are_refused(axes, told):
    with pytest.raises(UserError, match=told):
        Comparison.of(*axes, most_cells=36)


@pytest.mark.parametrize("axis", [name for name in AXES if name not in (NO_AXIS, "control", "training step", "mode")])
def test_an_axis_changes_what_it_is_called_after_and_nothing_else(axis):
    one, other = (Comparison.of(axis, value, NO_AXIS, "", 36).asked(ASKED, value, "") for value in ("0.5", "0.75"))
    if axis in ("steps", "seed"):
        one, other = (Comparison.of(axis, value, NO_AXIS, "", 36).asked(ASKED, value, "") for value in ("4", "5"))
    differing = _flat(one).items() ^ _flat(other).items()
    assert len({name for name, _ in differing}) == 1


def _flat(asked: Asked) -> dict[str, str]:
    values = asked.to_json()
    units = {f"{number}.{name}": it for number, unit in enumerate(values.pop("units")) for name, it in unit.items()}
    return {name: repr(it) for name, it in (values | units).items()}


def test_a_cell_is_the_picture_that_the_generate_tab_would_make(desk, tmp_path):
    comparison = Comparison.of("strength", "0 1", "seed", "3 4", 36)
    *_, last = compare(ASKED, comparison, desk, tmp_path, lambda report: None)
    assert (last.done, last.total) == (4, 4)
    assert last.path.is_file()
    assert len(pictures_of(tmp_path)) == 4
    expected = make(comparison.asked(ASKED, "1", "4"), desk.models, lambda report: None).pixels_nhwc[0]
    height, width = last.pixels.shape[:2]
    found = [
        (last.pixels[top : top + 128, left : left + 128] == expected).all()
        for top in range(height - 127)
        for left in (width - 132,)  # the last column's
    ]
    assert sum(found) == 1


def test_many_pictures_are_annotated_though_one_is_broken(desk, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(png(house()))
    bad.write_bytes(b"none")
    *_, (done, failed) = annotate_files([str(good), str(bad)], "canny", {"low": 10}, desk.models, tmp_path / "out")
    assert done == 2
    assert failed == ["bad.png: no picture that can be read; expected PNG, JPEG, WEBP; convert it or remove it"]
    assert (tmp_path / "out" / "hints.zip").is_file()
    with pytest.raises(UserError, match="bad.png"):
        list(annotate_files([str(bad)], "canny", {}, desk.models, tmp_path / "out"))
    with pytest.raises(UserError, match="0 pictures; expected 1 to 200"):
        list(annotate_files([], "canny", {}, desk.models, tmp_path / "out"))


def test_a_hint_is_as_large_as_its_picture(desk):
    picture = np.ascontiguousarray(house()[:300, :200])
    assert annotate(picture, "canny", {"detect_resolution": 256}, desk.models).pixels.shape == (300, 200, 3)


def test_the_first_example_is_one_that_works_at_once(desk):
    first = filled(available(desk.models)[0], desk.models)
    assert first.units[0].control == "circle"
    assert make(Asked(**{**vars(first), "steps": 1}), desk.models, lambda report: None).pixels_nhwc.shape[0] == 1


def test_every_example_draws_a_picture():
    for example in EXAMPLES:
        if example.draw is not None:
            assert example.draw().std() > 5


@pytest.mark.parametrize(
    ("condition", "polarity", "order", "annotator", "invert", "is_bgr"),
    [
        ("canny", "light on dark", "RGB", "canny", False, False),
        ("canny", "dark on light", "RGB", "canny", True, False),
        ("normal", "none", "BGR", "normal", False, True),
        ("circle", "light on dark", "RGB", "none", False, False),
        ("something", "unknown", "RGB", "none", False, False),
    ],
)
def test_the_switches_follow_the_controls_metadata(desk, condition, polarity, order, annotator, invert, is_bgr):
    metadata = replace(desk.models.metadata("circle"), condition=condition, polarity=polarity, channel_order=order)
    unit = suited(UnitAsked(), metadata)
    assert (unit.annotator, unit.invert, unit.is_bgr) == (annotator, invert, is_bgr)
