"""A real studio, in a process of its own, and how a program speaks with it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def fetched(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer."""
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_TO_START) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def called(studio: Studio, endpoint: str, values: list[Any]) -> tuple[int, str]:
    """Status of the call, and the events until its end; for a call that is refused, why."""
    address = f"{studio.url}/gradio_api/call/{endpoint}"
    status, body = fetched(address, json.dumps({"data": values}).encode(), Content_Type="application/json")
    if status != 200:
        return status, body.decode()
    status, events = fetched(f"{address}/{json.loads(body)['event_id']}")
    return status, events.decode()


def asked(studio: Studio, endpoint: str, **given: Any) -> list[Any]:
    """The values of a call, in order; what is not given is as the endpoint says."""
    told = json.loads(fetched(f"{studio.url}/gradio_api/info")[1])["named_endpoints"][f"/{endpoint}"]["parameters"]
    return [given.get(it["parameter_name"], it.get("parameter_default")) for it in told]


def uploaded(studio: Studio, data: bytes, name: str) -> str:
    """Where the studio has put a file."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = "multipart/form-data; boundary=x"
    answer = fetched(f"{studio.url}/gradio_api/upload", head + data + b"\r\n--x--\r\n", Content_Type=kind)
    return str(json.loads(answer[1])[0])
