"""Files that are whole or absent: temporary file, fsync, rename, fsync of the folder."""

import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from controlnet.errors import UserError

TEMPORARY = ".*.tmp*"  # files under way; one that stays was left by a process that was killed

REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) or choose another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder on a disk that may be written to",
    errno.ENOTDIR: "choose a folder whose parents are folders",
    errno.EEXIST: "choose a folder whose name no file has",
    errno.EISDIR: "choose a name that no folder has",
    errno.EIO: "check the disk",
}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` (same suffix), then put it in place of `path` at once.

    The folder is made where missing. However `write` ends, the temporary file is gone afterwards and a previous file
    at `path` is whole. UserError when the disk is full or does not let us write.
    """
    _write(path, write, _flush_to_disk)


def write_quickly(path: Path, write: Callable[[Path], object]) -> None:
    """As `write_atomically`, but a crash of the whole machine may leave the file cut off.

    For a hundred thousand small files that can be made again: flushing each would take longer than making it.
    """
    _write(path, write, lambda path: None)


def _write(path: Path, write: Callable[[Path], object], flush: Callable[[Path], object]) -> None:
    try:
        _make_folder(path.parent, flush)
        _write_and_rename(path, write, flush)
    except Exception as error:
        code = _error_code(error)
        if code not in REMEDIES:
            raise
        raise UserError(
            f"cannot write {path}: {os.strerror(code).lower()}; what was there before is unchanged; {REMEDIES[code]}"
        ) from error


def _make_folder(folder: Path, flush: Callable[[Path], object]) -> None:
    """Make a folder and what it stands in; what was made is on disk afterwards, as `flush` does it."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "nt":  # Windows has no handle to a folder
        for each in missing:
            flush(each.parent)


def _write_and_rename(path: Path, write: Callable[[Path], object], flush: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        write(temporary)
        flush(temporary)
        temporary.replace(path)
        if os.name != "nt":  # Windows has no handle to a folder
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _error_code(error: Exception) -> int:
    """The operating system's number for what went wrong, also from libraries that only put it into words; else 0."""
    if isinstance(error, OSError):
        return error.errno or 0
    if "inline_container.cc" in str(error):  # torch.save's writer tells no number; its writes only fall short of space
        return errno.ENOSPC
    found = re.search(r"os error (\d+)", str(error))  # safetensors: "No space left on device (os error 28)"
    return int(found[1]) if found else 0


def _flush_to_disk(path: Path) -> None:
    # Windows flushes only what is open for writing, POSIX opens folders only for reading
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
