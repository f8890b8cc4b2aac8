"""The editor of segmentations in a real browser: Python has the exact classes of what is painted there."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

from controlnet.annotators.ade20k import CLASSES, PALETTE
from controlnet.studio.editors import segment_editor, segment_hint, segment_indices, segment_value
from editor_page import SIZE, Point, Shown, empty, shown

NAMES = [each.name for each in CLASSES]
SKY, SEA, TREE, ROAD, SKYSCRAPER = (NAMES.index(name) for name in ("sky", "sea", "tree", "road", "skyscraper"))
NONE = 255
HALVES = np.full((SIZE[1], SIZE[0]), SKY, np.uint8)
HALVES[SIZE[1] // 2 :] = SEA


@pytest.fixture(scope="module")
def page_of_one(browser: Browser) -> Iterator[Shown]:
    with shown(browser, segment_editor) as one:
        yield one


@pytest.fixture
def seg(page_of_one: Shown) -> Shown:
    one = empty(page_of_one)
    one.page.get_by_label("Search classes").fill("")
    one.press("Brush")
    return one


def choose(one: Shown, name: str) -> None:
    one.page.get_by_label("Search classes").fill(name)
    one.page.get_by_role("option").filter(has_text=name).first.click()


def inside(corners: Sequence[Point]) -> np.ndarray:
    """Pixels whose middle is inside a convex polygon, whose corners go round clockwise on the screen."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5
    edges = zip(corners, [*corners[1:], corners[0]], strict=True)
    return np.all([(b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) > 0 for a, b in edges], axis=0)


def test_a_painted_class_is_that_class_and_nothing_in_between(seg: Shown) -> None:
    choose(seg, "tree")
    indices = segment_indices(seg.value_after(lambda: seg.drag((40, 40), (250, 200))))
    assert set(np.unique(indices)) == {TREE, NONE}
    assert indices[40, 40] == indices[200, 250] == TREE
    assert indices[200, 40] == NONE


def test_a_flood_fill_stops_at_every_other_class(seg: Shown) -> None:
    seg.send(segment_value(HALVES))
    choose(seg, "tree")
    seg.press("Fill")
    value = seg.value_after(lambda: seg.click((100, 50)))
    assert (segment_indices(value) == np.where(HALVES == SKY, TREE, HALVES)).all()
    assert (segment_hint(value) == PALETTE[np.where(HALVES == SKY, TREE, HALVES)]).all()
    assert (segment_indices(seg.value_after(lambda: seg.press("Undo"))) == HALVES).all()


def test_a_polygon_has_exactly_the_pixels_inside_it(seg: Shown) -> None:
    choose(seg, "skyscraper")
    seg.press("Polygon")
    corners = [(60, 40), (260, 70), (200, 220), (90, 180)]
    clicked = [tuple(map(round, seg.in_picture(seg.on_screen(corner)))) for corner in corners]
    for corner in corners:
        seg.click(corner)
    indices = segment_indices(seg.value_after(lambda: seg.page.keyboard.press("Enter")))
    assert (indices == np.where(inside(clicked), SKYSCRAPER, NONE)).all()


def test_the_eyedropper_takes_a_class_that_shares_its_colour_with_another(seg: Shown) -> None:
    assert (PALETTE[ROAD] == PALETTE[SKYSCRAPER]).all()
    seg.send(segment_value(np.where(HALVES == SKY, SKYSCRAPER, ROAD)))
    seg.press("Pick")
    seg.click((100, 50))
    seg.press("Fill")
    assert (segment_indices(seg.value_after(lambda: seg.click((100, 200)))) == SKYSCRAPER).all()


def test_the_eraser_leaves_no_class(seg: Shown) -> None:
    seg.send(segment_value(HALVES))
    seg.press("Eraser")
    value = seg.value_after(lambda: seg.drag((40, 40), (250, 40)))
    indices = segment_indices(value)
    assert (indices[40, 40:250] == NONE).all()
    assert set(np.unique(indices)) == {SKY, SEA, NONE}
    assert not segment_hint(value)[indices == NONE].any()


def test_a_finger_paints(seg: Shown) -> None:
    choose(seg, "sea")
    indices = segment_indices(seg.value_after(lambda: seg.touch([(40, 40), (80, 40), (120, 40)])))
    assert (indices[40, 40:120] == SEA).all()


def test_the_search_finds_classes_by_parts_of_their_names(seg: Shown) -> None:
    options = seg.page.get_by_role("option")
    assert options.count() == 150
    seg.page.get_by_label("Search classes").fill("Table po")
    assert [text.strip() for text in options.all_inner_texts()] == ["pool table"]


def test_a_map_from_elsewhere_is_snapped_and_says_how_much_was_off(seg: Shown, tmp_path: Path) -> None:
    colours = PALETTE[HALVES].copy()
    colours[:3, :10] += 2
    colours[200:, :5] = 0
    Image.fromarray(colours).save(tmp_path / "map.png")
    with seg.page.expect_file_chooser() as chooser:
        seg.press("Open a map")
    value = seg.value_after(lambda: chooser.value.set_files(tmp_path / "map.png"))
    expected = HALVES.copy()
    expected[200:, :5] = NONE
    assert (segment_indices(value) == expected).all()
    seg.page.get_by_text("30 pixels were off the palette").wait_for()


def test_the_saved_png_holds_indices_and_opens_as_the_same_classes(seg: Shown) -> None:
    classes = np.where(HALVES == SKY, SKYSCRAPER, ROAD).astype(np.uint8)
    classes[:20] = NONE
    seg.send(segment_value(classes))
    with seg.page.expect_download() as saved:
        seg.press("Save the class indices")
    picture = Image.open(saved.value.path())
    assert picture.mode == "P"
    assert (np.array(picture) == classes).all()
    assert (np.array(picture.convert("RGB"))[30, 30] == PALETTE[SKYSCRAPER]).all()
    seg.value_after(lambda: seg.press("Clear"))
    with seg.page.expect_file_chooser() as chooser:
        seg.press("Open a map")
    value = seg.value_after(lambda: chooser.value.set_files(saved.value.path()))
    assert (segment_indices(value) == classes).all()
