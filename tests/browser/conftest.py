"""One real studio for all tests of the page, and a real Chromium, with a fresh page for each."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import tiny_networks
from controlnet.data.circles import write_circles
from studio_server import Studio, opened

PATIENCE = 120_000  # milliseconds that a test waits for what it expects
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """With a data set, rings, to train on, and a network that knows nothing to find segments."""
    folder = tmp_path_factory.mktemp("studio")
    write_circles(folder / "sets" / "rings", count=24, size=128, processes=1)
    tiny_networks.save("upernet", folder / "weights")
    with opened(folder, "--data", str(folder / "sets"), "--weights-dir", str(folder / "weights")) as studio:
        yield studio


@pytest.fixture
def page(browser: Browser, studio: Studio) -> Iterator[Page]:
    """The studio in a browser that has never seen it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    shown = context.new_page()
    shown.set_default_timeout(PATIENCE)
    shown.goto(studio.url)
    yield shown
    context.close()
