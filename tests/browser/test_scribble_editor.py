"""The canvas for drawings and masks in a real browser: what is drawn there is what Python has, pixel by pixel."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser

from controlnet.studio.editors import blank, mask_of, mask_value, scribble_editor, scribble_hint, scribble_value
from editor_page import SIZE, Shown, empty, shown

CENTRE, RADIUS = (160, 128), 80
CIRCLE = [(CENTRE[0] + RADIUS * cos(i * pi / 10), CENTRE[1] + RADIUS * sin(i * pi / 10)) for i in range(21)]
BRUSH = 3  # thin by itself: 256 pixels, divided by 85


@pytest.fixture(scope="module")
def scribble(browser: Browser) -> Iterator[Shown]:
    with shown(browser, scribble_editor) as one:
        yield one


@pytest.fixture(scope="module")
def mask(browser: Browser) -> Iterator[Shown]:
    with shown(browser, scribble_editor, mode="mask", brush=20) as one:
        yield one


def painted(points: Sequence[tuple[float, float]], brush: int) -> NDArray[np.bool_]:
    """All pixels whose middle is within half a brush of the line through the points, which lie in the middles of
    pixels, or between four for an even brush: what the canvas promises, computed in another way."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    snapped = [np.floor(point) + 0.5 if brush % 2 else np.floor(np.add(point, 0.5)) for point in points]
    result = np.zeros(x.shape, bool)
    for start, end in zip(snapped, snapped[1:] or snapped, strict=False):
        way = end - start
        along = ((x - start[0]) * way[0] + (y - start[1]) * way[1]) / max(way @ way, 1e-12)
        along = along.clip(0, 1)
        distance = (x - start[0] - along * way[0]) ** 2 + (y - start[1] - along * way[1]) ** 2
        result |= distance <= brush**2 / 4 + 1e-9
    return result


def strokes(value: Any) -> NDArray[np.bool_]:
    return mask_of(value) > 0


def png(pixels: NDArray[np.uint8], path: Path) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def open_file(one: Shown, name: str, path: Path) -> Any:
    with one.page.expect_file_chooser() as chooser:
        one.press(name)
    return one.value_after(lambda: chooser.value.set_files(path))


def test_a_circle_arrives_in_python_pixel_by_pixel(scribble: Shown) -> None:
    one = empty(scribble)
    points: list[tuple[float, float]] = []
    value = one.value_after(lambda: points.extend(one.drag(*CIRCLE)))
    assert (strokes(value) == painted(points, BRUSH)).all()
    assert (scribble_hint(value) == painted(points, BRUSH)[..., None] * np.uint8(255)).all()


def test_what_a_visitor_draws_is_a_change_and_an_input_and_what_python_sends_only_a_change(scribble: Shown) -> None:
    one = empty(scribble)
    drawn = one.value_after(lambda: one.drag((20, 20), (200, 40)))
    one.wait(lambda: drawn in one.changes and drawn in one.inputs)
    paper = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    paper[7, :100] = 0
    one.send(sent := scribble_value(paper))
    one.wait(lambda: one.changes[-1]["runs"] == sent["runs"])
    assert sent["runs"] not in {value["runs"] for value in one.inputs}


def test_undo_takes_one_stroke_back_and_redo_brings_it(scribble: Shown) -> None:
    one = empty(scribble)
    first = one.value_after(lambda: one.drag((20, 20), (200, 40)))
    both = one.value_after(lambda: one.drag((20, 90), (200, 120)))
    assert (strokes(first) & strokes(both) == strokes(first)).all()
    assert strokes(first).sum() < strokes(both).sum()
    assert one.value_after(lambda: one.press("Undo"))["runs"] == first["runs"]
    assert one.value_after(lambda: one.press("Redo"))["runs"] == both["runs"]
    one.canvas.focus()
    assert one.value_after(lambda: one.page.keyboard.press("Control+z"))["runs"] == first["runs"]
    assert one.value_after(lambda: one.page.keyboard.press("Control+Shift+Z"))["runs"] == both["runs"]


def test_the_eraser_takes_exactly_its_own_pixels(scribble: Shown) -> None:
    one = empty(scribble)
    points: list[tuple[float, float]] = []
    before = one.value_after(lambda: one.drag((20, 20), (200, 40)))
    one.press("Eraser")
    after = one.value_after(lambda: points.extend(one.drag((100, 10), (100, 100))))
    one.press("Brush")
    assert (strokes(after) == strokes(before) & ~painted(points, BRUSH)).all()
    assert strokes(after).sum() < strokes(before).sum()


def test_a_finger_draws_and_two_fingers_zoom_without_drawing(scribble: Shown) -> None:
    one = empty(scribble)
    value = one.value_after(lambda: one.touch([(40, 40), (80, 60), (120, 80)]))
    assert strokes(value)[40, 40]
    assert strokes(value)[60, 80]
    assert strokes(value)[80, 120]
    zoom = one.page.get_by_role("group", name="Zoom").locator("output")
    whole = zoom.inner_text()
    one.touch([(100, 100), (80, 100), (60, 100)], [(140, 100), (160, 100), (180, 100)])
    one.wait(lambda: zoom.inner_text() != whole)
    assert one.read() == value
    assert int(zoom.inner_text()[:-1]) > 2 * int(whole[:-1])
    assert one.value_after(lambda: one.press("Undo"))["runs"] == blank(*SIZE)["runs"]


@pytest.mark.parametrize("paper", [255, 0])
def test_a_drawing_of_either_polarity_opens_as_its_strokes(scribble: Shown, tmp_path: Path, paper: int) -> None:
    drawing = np.full((300, 200, 3), paper, np.uint8)
    drawing[100:104, 20:180] = 255 - paper
    value = open_file(empty(scribble), "Open a drawing", png(drawing, tmp_path / "drawing.png"))
    assert (value["width"], value["height"]) == (200, 300)
    assert (strokes(value) == (drawing[..., 0] != paper)).all()
    scribble.send(blank(*SIZE))


def test_a_file_that_is_no_picture_is_refused_in_words(scribble: Shown, tmp_path: Path) -> None:
    one = empty(scribble)
    (tmp_path / "bad.png").write_bytes(b"<svg onload=alert(1)>")
    with one.page.expect_file_chooser() as chooser:
        one.press("Open a drawing")
    chooser.value.set_files(tmp_path / "bad.png")
    one.page.get_by_text("no picture that can be read").wait_for()


def test_a_photograph_gives_a_blank_canvas_its_size_and_is_no_part_of_the_hint(scribble: Shown, tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (384, 576, 3)).astype(np.uint8)
    value = open_file(empty(scribble), "Photograph behind", png(photo, tmp_path / "photo.png"))
    assert (value["width"], value["height"]) == (576, 384)
    assert value["background"]["path"]
    assert not strokes(value).any()
    assert scribble.value_after(lambda: scribble.press("Remove photograph"))["background"] is None
    scribble.send(blank(*SIZE))


def test_what_python_sends_is_shown_and_can_be_drawn_on(scribble: Shown) -> None:
    one = empty(scribble)
    drawing = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    drawing[50, 20:300] = 0
    photo = np.full((SIZE[1], SIZE[0], 3), 200, np.uint8)
    one.send(scribble_value(drawing, photo))
    points: list[tuple[float, float]] = []
    value = one.value_after(lambda: points.extend(one.drag((20, 90), (200, 120))))
    assert (strokes(value) == painted(points, BRUSH) | (drawing[..., 0] == 0)).all()
    assert value["background"]["url"]
    undone = one.value_after(lambda: one.press("Undo"))
    assert (strokes(undone) == (drawing[..., 0] == 0)).all()
    one.press("Remove photograph")


def test_a_larger_canvas_keeps_the_drawing_in_its_middle(scribble: Shown) -> None:
    one = empty(scribble)
    before = strokes(one.value_after(lambda: one.drag((20, 20), (200, 40))))
    width = one.page.get_by_label("Width in pixels")
    width.fill("400")
    after = strokes(one.value_after(lambda: width.press("Enter")))
    assert (after[:, 40:-40] == before).all()
    assert after.sum() == before.sum()
    one.send(blank(*SIZE))


def test_a_mask_is_filled_and_inverted_exactly(mask: Shown) -> None:
    one = empty(mask)
    square = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    square[60:61, 60:200] = square[160:161, 60:200] = square[60:161, 60:61] = square[60:161, 199:200] = 255
    one.send(mask_value(square))
    one.press("Fill")
    filled = strokes(one.value_after(lambda: one.click((100, 100))))
    expected = np.zeros_like(filled)
    expected[60:161, 60:200] = True
    assert (filled == expected).all()
    inverted = one.value_after(lambda: one.press("Exchange painted"))
    assert (strokes(inverted) == ~expected).all()
    one.press("Brush")


def test_a_mask_saves_as_a_picture_of_itself(mask: Shown) -> None:
    one = empty(mask)
    value = one.value_after(lambda: one.drag((20, 90), (200, 120)))
    with one.page.expect_download() as saved:
        one.press("Save the mask")
    picture = Image.open(BytesIO(Path(saved.value.path()).read_bytes())).convert("L")
    assert (np.array(picture) == mask_of(value)).all()


def test_the_page_asks_nobody_but_its_own_server(scribble: Shown) -> None:
    assert {host.split(":")[0] for host in scribble.hosts} <= {"127.0.0.1", "localhost", "here"}
