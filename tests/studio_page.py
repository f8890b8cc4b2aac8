"""What browser tests of the studio share: where things are on the page, pictures as a browser has them."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page

FIRST_PICTURES = "#pictures img"


def ready(page: Page) -> None:
    """Once the hint of the first unit is shown, the page is wired."""
    preview(page).locator("img").wait_for()


def preview(page: Page) -> Locator:
    """Of the first unit: what its network sees."""
    return page.locator(".pixels").first


def go(page: Page) -> None:
    page.get_by_role("button", name="Generate", exact=True).click()


def done(page: Page) -> None:
    page.get_by_text("Done in").wait_for()
    page.locator(FIRST_PICTURES).first.wait_for()


def field(page: Page, label: str) -> Locator:
    return page.get_by_label(label, exact=True).first


def number(page: Page, label: str) -> Locator:
    """The box of a slider, or of a number."""
    return page.get_by_label(f"number input for {label}", exact=True).first


def pixels(page: Page, picture: Locator) -> NDArray[np.uint8]:
    """(H, W, 3) of an img on the page, as it came over the wire."""
    address = picture.evaluate("it => it.src")
    return np.asarray(Image.open(BytesIO(page.request.get(address).body())).convert("RGB"))


def kept(folder: Path) -> list[Path]:
    """The pictures of all visitors."""
    return sorted((folder / "studio" / "pictures").glob("*/*.png"))
