"""Files are whole or absent, whatever happens while they are written."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from controlnet.atomic import write_atomically, write_quickly
from controlnet.errors import UserError

BIG = torch.zeros(100_000)


@contextmanager
def files_end_after(count: int) -> Iterator[None]:
    """As on a disk with room for `count` more bytes: the system refuses to write on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_file_appears_with_its_content_and_nothing_else_in_the_folder(tmp_path):
    path = tmp_path / "new" / "run.safetensors"
    write_atomically(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_writer_sees_a_file_of_the_same_folder_and_suffix(tmp_path):
    seen = []

    def write(temporary):
        seen.append(temporary)
        temporary.touch()

    write_atomically(tmp_path / "picture.png", write)
    assert (seen[0].parent, seen[0].suffix) == (tmp_path, ".png")


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: path.write_bytes(bytes(100_000)), id="plain"),
        pytest.param(lambda path: save_file({"big": BIG}, path), id="safetensors"),
        pytest.param(lambda path: torch.save({"big": BIG}, path), id="torch"),
    ],
)
def test_a_full_disk_is_named_and_leaves_the_previous_file_whole(tmp_path, write):
    path = tmp_path / "checkpoint"
    path.write_text("previous")
    with files_end_after(10_000), pytest.raises(UserError, match=f"cannot write {path}: .*unchanged; "):
        write_atomically(path, write)
    assert path.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_the_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="choose a name that no folder has"):
        write_atomically(tmp_path, lambda temporary: temporary.touch())


def test_a_file_in_the_place_of_the_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose a folder whose"):
        write_atomically(tmp_path / "file" / "deeper", lambda temporary: temporary.touch())


@pytest.mark.parametrize("put", [write_atomically, write_quickly])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_writer_goes_through_and_leaves_the_previous_file_whole(tmp_path, error, put):
    path = tmp_path / "checkpoint"
    path.write_text("previous")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        put(path, write)
    assert path.read_text() == "previous"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_in_the_middle_leaves_the_previous_file_whole(tmp_path):
    path = tmp_path / "checkpoint"
    path.write_text("previous")
    source = (
        "import os, signal, sys; from pathlib import Path; from controlnet.atomic import write_atomically\n"
        "def write(temporary):\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    ended = subprocess.run([sys.executable, "-c", source, path])
    assert ended.returncode == -signal.SIGKILL
    assert path.read_text() == "previous"


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_atomically(tmp_path / "ours", lambda temporary: temporary.touch())
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "usual").st_mode
