"""A real studio, in a process of its own for each module of tests, and a real Chromium, with a fresh page for each.

A module may say `OPTIONS = ["--control", "FILE"]` to start its studio with more options; "{folder}" in them is a folder
of the module's own, which it may fill in a function `prepare(folder)`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

SECONDS_TO_START = 300  # on a machine that does much else
OPEN = "the studio is open at"  # what it says when it answers
PATIENCE = 120_000  # milliseconds that a test waits for what it expects
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@dataclass(frozen=True)
class Studio:
    """A studio that answers."""

    url: str
    folder: Path
    """Of the module, with what `prepare` put there; the studio writes to `folder/studio`."""
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def studio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    if prepare := getattr(request.module, "prepare", None):
        prepare(folder)
    options = [each.replace("{folder}", str(folder)) for each in getattr(request.module, "OPTIONS", ())]
    started = start(folder, options)
    yield started
    started.process.send_signal(signal.SIGTERM)
    started.process.wait(PATIENCE / 1000)


def start(folder: Path, options: list[str]) -> Studio:
    """`controlnet studio` with `options`, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "controlnet", "studio", "--port", str(port), "--out", str(folder / "studio")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, cwd=folder, env=dict(os.environ))
    started = Studio(f"http://127.0.0.1:{port}", folder, process)
    deadline = time.monotonic() + SECONDS_TO_START
    while OPEN not in started.log:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the studio did not open within {SECONDS_TO_START} s: {started.log}")
        time.sleep(0.2)
    return started


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def page(browser: Browser, studio: Studio) -> Iterator[Page]:
    """The studio in a browser that has never seen it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    opened.goto(studio.url)
    yield opened
    context.close()
