"""A real studio, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_START = 300  # on a machine that does much else
OPEN = "the studio is open at"  # what it says when it answers


@dataclass(frozen=True)
class Studio:
    """A studio that answers."""

    url: str
    folder: Path
    """It writes to `folder/studio`."""
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def opened(folder: Path, *options: str) -> Iterator[Studio]:
    """`controlnet studio` with `options`, from when it answers; it is ended as Ctrl-C would."""
    port = free_port()
    command = [sys.executable, "-m", "controlnet", "studio", "--port", str(port), "--out", str(folder / "studio")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, cwd=folder, env=dict(os.environ))
    studio = Studio(f"http://127.0.0.1:{port}", folder, process)
    try:
        wait(studio)
        yield studio
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS_TO_START)
    finally:
        process.kill()


def wait(studio: Studio) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while OPEN not in studio.log:
        assert studio.process.poll() is None, studio.log
        assert time.monotonic() < deadline, f"the studio did not open within {SECONDS_TO_START} s: {studio.log}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
