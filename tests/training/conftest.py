"""Small circles, made once; processes that are gone after the test."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from controlnet.data.circles import write_circles


@pytest.fixture(scope="session")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "circles"
    write_circles(folder, count=24, size=64, seed=0)
    return folder


@pytest.fixture
def group() -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes whose groups are gone after the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        try:
            apart = psutil.Process(process.pid).children(recursive=True)  # torchrun's have groups of their own
            os.killpg(process.pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
        for each in apart:
            with suppress(psutil.NoSuchProcess):
                each.kill()
