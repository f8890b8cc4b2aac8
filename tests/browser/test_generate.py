"""The Generate tab in a browser."""

from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageColor

from controlnet.studio.examples import ring
from studio_page import FIRST_PICTURES, done, field, go, kept, number, pixels, preview, ready

RING = ring(0.35, 0.6, 0.2)()


def upload(page, tmp_path) -> None:
    """A ring of one's own, in place of the example's."""
    before = preview(page).locator("img").evaluate("it => it.src")
    Image.fromarray(RING).save(tmp_path / "ring.png")
    page.get_by_label("Remove Image").first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "ring.png")
    page.wait_for_function(
        "old => document.querySelector('.pixels img')?.src.includes('image') && "
        "document.querySelector('.pixels img').src != old",
        arg=before,
    )


def test_a_drawn_circle_becomes_a_disc_of_the_asked_colour_where_it_was_drawn(page):
    ready(page)
    centre, radius = np.array([0.42, 0.55]), 0.28  # in parts of the canvas
    page.get_by_label("Draw", exact=True).first.check()
    canvas = page.locator(".stage canvas:visible").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    side = min(box["width"], box["height"])
    corner = np.array([box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2])
    points = [
        corner + side * (centre + radius * np.array([cos(turn), sin(turn)])) for turn in np.linspace(0, 2 * pi, 41)
    ]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points:
        page.mouse.move(*point)
    page.mouse.up()
    preview(page).locator("img").wait_for()
    field(page, "Prompt").fill("gold circle with navy background")
    go(page)
    done(page)
    picture = pixels(page, page.locator(FIRST_PICTURES).nth(1)).astype(float)
    gold, navy = (np.linalg.norm(picture - ImageColor.getrgb(name), axis=2) for name in ("gold", "navy"))
    painted = gold < navy
    y, x = (np.mgrid[: len(picture), : len(picture)] + 0.5) / len(picture)
    drawn = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    assert (painted & drawn).sum() / (painted | drawn).sum() > 0.8


def test_the_preview_is_what_the_network_is_given_and_a_dropped_picture_brings_all_back(page, studio, tmp_path):
    before = kept(studio.folder)
    ready(page)
    upload(page, tmp_path)
    assert (pixels(page, preview(page).locator("img")) == RING).all()
    field(page, "Prompt").fill("gold circle with navy background")
    number(page, "Steps").fill("4")
    go(page)
    done(page)
    shown = page.locator(FIRST_PICTURES)
    assert (pixels(page, shown.nth(0)) == RING).all()
    [picture] = set(kept(studio.folder)) - set(before)
    assert (pixels(page, shown.nth(1)) == np.asarray(Image.open(picture))).all()

    field(page, "Prompt").fill("something else")
    number(page, "Steps").fill("9")
    page.get_by_label("Remove Image").first.click()
    page.get_by_text("Restore settings from a picture").click()
    page.locator("input[type=file][accept='.png']").set_input_files(picture)
    page.wait_for_function("document.querySelector('textarea').value.startsWith('gold circle')")
    assert number(page, "Steps").input_value() == "4"
    preview(page).locator("img").wait_for()
    assert (pixels(page, preview(page).locator("img")) == RING).all()


def test_a_hint_goes_on_in_one_editor_after_another(page):
    ready(page)
    for annotator in ("none: it is a hint", "seg"):  # to an editor that was never shown, too
        page.get_by_label("Picture", exact=True).first.check()
        field(page, "Annotator").click()
        page.get_by_role("option", name=annotator, exact=True).click()
        page.get_by_role("button", name="Edit it by hand").locator("visible=true").click()
        page.locator(".stage canvas:visible").wait_for()
    page.get_by_label("Pose", exact=True).first.check()
    page.get_by_label("Add person").locator("visible=true").click()
    page.get_by_label("Fill the window").locator("visible=true").click()
    assert page.locator(".editor:visible").bounding_box() == {"x": 0, "y": 0, "width": 1280, "height": 800}
    page.keyboard.press("Escape")
    assert page.locator(".editor:visible").bounding_box()["width"] < 640


def test_nothing_of_a_unit_lies_below_the_first_screen(page):
    ready(page)
    for source in ("Draw", "Pose", "Segments", "Picture"):
        page.get_by_label(source, exact=True).first.check()
        preview(page).wait_for()
        page.wait_for_function(
            "bottom => document.querySelector('.pixels').getBoundingClientRect().bottom <= bottom", arg=800
        )
        strength = number(page, "Strength").bounding_box()
        assert strength["y"] + strength["height"] <= 800
    for slider in page.locator(".narrow input[type=range]").all():
        box, column = (
            slider.bounding_box(),
            slider.locator("xpath=ancestor::*[contains(@class, 'block')][1]").bounding_box(),
        )
        assert column["x"] <= box["x"]
        assert box["x"] + box["width"] <= column["x"] + column["width"]


def test_a_stopped_job_ends_and_leaves_nothing(page, studio):
    before = kept(studio.folder)
    ready(page)
    number(page, "Steps").fill("100")
    go(page)
    page.get_by_text("step 1 of 100").or_(page.get_by_text(" of 100")).first.wait_for()
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.get_by_text("Stopped.", exact=True).wait_for()
    assert kept(studio.folder) == before
    go(page)  # the next one is not in its way
    page.get_by_text(" of 100").first.wait_for()
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.get_by_text("Stopped.", exact=True).wait_for()
