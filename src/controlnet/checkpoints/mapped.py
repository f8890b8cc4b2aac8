"""A file as memory: read only where it is touched, never changed; and flat tensors that are views of it."""

import mmap
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from controlnet.errors import UserError

NO_RESERVE = 0x4000  # Linux' MAP_NORESERVE, which Python names from 3.13 on
MOST_TENSORS = 65_536
MOST_DIMENSIONS = 64  # torch's own limit
LONGEST_NAME = 512  # characters
AGAIN = "download or copy the file again"


class BadFile(Exception):
    """What is wrong with a file that a stranger may have made: found, expected, what to do; without the file's name."""


def map_file(path: Path) -> mmap.mmap:
    """A private mapping: what is written to it stays in memory. UserError if there is no such file or it is empty."""
    if not os.path.isfile(path):  # which is false, not an error, for what cannot be the name of a file
        raise UserError(f"{path}: no such file; expected a file of weights")
    try:
        with path.open("rb") as file:
            return _mapping(file.fileno())
    except (OSError, ValueError) as error:  # ValueError: nothing to map in an empty file
        raise UserError(f"{path}: cannot be read ({error}); check the file, its permissions and the disk") from error


def _mapping(file: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    # without a claim on memory for copies, else a file larger than the memory is refused
    return mmap.mmap(file, 0, mmap.MAP_PRIVATE | NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE)


@contextmanager
def scattered(mapped: mmap.mmap) -> Iterator[None]:
    """For reading a little in many places: the system does not read on after each, which could be the whole file."""
    if sys.platform == "win32":
        yield
        return
    mapped.madvise(mmap.MADV_RANDOM)
    yield
    mapped.madvise(mmap.MADV_NORMAL)


def view(mapped: mmap.mmap, offset: int, size: int) -> Tensor:
    """The bytes [offset, offset + size) as a flat uint8 tensor, as the file has them: aligned to elements or not.

    Files that are not aligned (safetensors of 2022, legacy ones, zips that were packed anew) are views too, as in the
    safetensors library: processors read them all the same, and copies would cost the memory that views spare.
    """
    assert 0 <= offset <= offset + size <= len(mapped)
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=offset)


def check_names(names: Collection[object]) -> None:
    """BadFile unless they can name the tensors of a model: some, not too many, short, and fit to be printed."""
    if not 0 < len(names) <= MOST_TENSORS:
        raise BadFile(f"it names {len(names):,} tensors, expected 1 to {MOST_TENSORS:,}")
    for name in names:
        if not (isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_NAME):
            raise BadFile(f"a tensor is named {str(name)[:LONGEST_NAME]!r}, expected up to {LONGEST_NAME} characters")
