"""The Train tab in a browser: a training starts, its curve moves, it stops; it does not need the browser."""

import pytest

from controlnet.studio.runs import Run
from studio_page import field, ready


@pytest.fixture
def run(studio):
    """Ended with the test, however that ends."""
    folder = studio.folder / "studio" / "runs" / "first"
    started = Run("first", folder, folder.with_suffix(".json"))
    yield started
    if started.process is not None:
        started.process.kill()


def test_a_training_starts_moves_its_curve_outlives_the_page_and_stops(page, studio, run):
    ready(page)
    page.get_by_role("tab", name="Train", exact=True).click()
    field(page, "Data set").click()
    page.get_by_role("option", name="rings").click()
    page.get_by_role("button", name="Check it").click()
    page.get_by_text("24 pairs, 0 defects").wait_for()
    assert page.locator("#findings img").count() > 0
    page.get_by_text("More", exact=True).click()
    for label, value in (("Steps", "2000"), ("Batch size", "4"), ("Validate every", "5"), ("Pictures", "1")):
        page.locator("label", has=page.get_by_text(label, exact=True)).locator("input:visible").first.fill(value)
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("first is running").wait_for()
    moved = "step => +(document.querySelector('.curve')?.dataset.step ?? 0) > step"
    page.wait_for_function(moved, arg=0)
    step = int(page.locator(".curve").get_attribute("data-step"))
    page.goto("about:blank")
    page.goto(studio.url)
    ready(page)
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_text("first is running").wait_for()
    page.wait_for_function(moved, arg=step)
    page.locator("#curve svg").first.wait_for()
    page.get_by_role("button", name="Stop", exact=True).locator("visible=true").click()
    page.get_by_text("first stands still").wait_for()
    assert run.process is None
    assert list((run.folder / "checkpoints").glob("*.safetensors"))
