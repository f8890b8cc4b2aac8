"""A zip is read only if its entries are plain, within the file and apart; whatever its directory says."""

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from controlnet.checkpoints import zip_directory
from controlnet.checkpoints.mapped import BadFile, map_file
from controlnet.checkpoints.tensor_file import open_tensors
from controlnet.checkpoints.zip_directory import CENTRAL, END, LOCAL, read_directory
from controlnet.errors import UserError
from torch_files import STORAGE, checkpoint, zip_file

PICKLED = checkpoint()


def directory_of(path: Path) -> dict[str, bytes]:
    mapped = map_file(path)
    return {name: mapped[it.offset : it.offset + it.size] for name, it in read_directory(mapped).items()}


def patched(path: Path, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path


def central_at(content: bytes, name: str) -> int:
    return content.rindex(name.encode()) - CENTRAL.size


def set_central(name: str, place: int, form: str, number: int) -> Callable[[bytearray], None]:
    """Another number at `place` of an entry's record in the directory."""
    return lambda content: struct.pack_into(form, content, central_at(content, name) + place, number)


def set_local(name: str, place: int, form: str, number: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, content.index(name.encode()) - LOCAL.size + place, number)


def set_end(place: int, form: str, number: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, len(content) - END.size + place, number)


def test_entries_are_what_zipfile_says(tmp_path):
    path = zip_file(tmp_path / "model.ckpt", PICKLED)
    with zipfile.ZipFile(path) as archive:
        assert directory_of(path) == {name: archive.read(name) for name in archive.namelist()}


def test_entries_with_64_bit_sizes_are_what_zipfile_says(tmp_path):
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a", "b"):
            with archive.open(name, "w", force_zip64=True) as entry:
                entry.write(name.encode() * 100)
    assert directory_of(path) == {"a": b"a" * 100, "b": b"b" * 100}


def test_a_comment_does_no_harm(tmp_path):
    path = zip_file(tmp_path / "model.ckpt", PICKLED)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"made by hand"
    assert list(open_tensors(path).tensors) == ["weight"]


DATA = "archive/data/0"
LIES = {
    "an entry that is compressed, as its own record says": set_local(DATA, 8, "<H", 8),
    "an entry of two sizes": set_central(DATA, 20, "<I", 23),
    "an entry that is longer than the file": set_central(DATA, 20, "<Q", 10**9 * (2**32 + 1)),
    "an entry beyond the end": set_central(DATA, 42, "<I", 10**9),
    "an entry in the directory": set_central(DATA, 42, "<I", 600),
    "an entry at another's place": set_central(DATA, 42, "<I", 0),
    "an entry of 64 bits without them": set_central(DATA, 42, "<I", 0xFFFFFFFF),
    "a name that is longer than the directory": set_central(DATA, 28, "<H", 60_000),
    "an extra field that is longer than the directory": set_central(DATA, 30, "<H", 60_000),
    "a comment that is longer than the directory": set_central(DATA, 32, "<H", 60_000),
    "an extra field that pushes the content away": set_local(DATA, 28, "<H", 60_000),
    "another name in its own record": set_local(DATA, 26, "<H", 3),
    "no sign": set_central(DATA, 0, "<I", 0),
    "no sign of its own record": set_local(DATA, 0, "<I", 0),
    "more entries than there are": set_end(8, "<I", 0x00090009),
    "fewer entries than there are": set_end(8, "<I", 0x00010001),
    "a directory elsewhere": set_end(16, "<I", 5),
    "a directory beyond the end": set_end(16, "<I", 2**32 - 2),
    "a directory of another size": set_end(12, "<I", 5),
    "another disk": set_end(4, "<H", 1),
    "a comment that is not there": set_end(20, "<H", 5),
    "bytes after the end": lambda content: content.extend(b"more"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_zip_is_refused_that_has(lie, tmp_path):
    path = patched(zip_file(tmp_path / "model.ckpt", PICKLED), LIES[lie])
    with pytest.raises(BadFile, match="again"):
        read_directory(map_file(path))


def test_an_encrypted_checkpoint_is_refused_with_what_to_do(tmp_path):
    path = patched(zip_file(tmp_path / "model.ckpt", PICKLED), set_central(DATA, 8, "<H", 1))
    with pytest.raises(UserError, match="encrypted.*unpack"):
        open_tensors(path)


def entries(path: Path, *contents: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents:
            archive.writestr(name, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ([("archive/data.pkl", PICKLED), ("archive/data/0", STORAGE), ("archive/data/0", STORAGE)], "twice"),
        ([("archive/data.pkl", PICKLED), ("archive/data.pkl", PICKLED), ("archive/data/0", STORAGE)], "twice"),
        ([("archive/data.pkl", PICKLED), ("archive/data/0", STORAGE), ("archive/run.py", b"")], "with 'run.py'"),
        ([("archive/data.pkl", PICKLED), ("archive/data/../0", STORAGE)], "with 'data/../0'"),
        ([("archive/data.pkl", PICKLED), ("other/data/0", STORAGE)], "with 'other/data/0'"),
        ([("archive/data.pkl", PICKLED), ("archive/data/nested.zip", STORAGE)], "nested.zip"),
        ([("archive/data/0", STORAGE)], "no data.pkl"),
        ([("weights.npy", b"")], "with 'weights.npy'"),
        ([("archive/data.pkl", PICKLED), ("archive/data/0", STORAGE), ("archive/byteorder", b"big")], "big-endian"),
        ([("archive/data.pkl", bytes(33 * 2**20))], "at most 33,554,432 are read"),
        ([("archive/data.pkl", PICKLED), ("archive/data/0", STORAGE * 2)], "has 48 bytes"),
        ([("archive/data.pkl", PICKLED), ("archive/data/1", STORAGE)], "'0' is not there"),
    ],
)
def test_a_zip_is_refused_with_what_is_wrong_in_it(contents, said, tmp_path):
    with pytest.raises(UserError, match=said):
        open_tensors(entries(tmp_path / "model.ckpt", *contents))


def test_a_compressed_checkpoint_is_refused_with_what_to_do(tmp_path):
    contents = [("archive/data.pkl", PICKLED), ("archive/data/0", STORAGE)]
    with pytest.raises(UserError, match="compressed.*unpack"):
        open_tensors(entries(tmp_path / "model.ckpt", *contents, method=zipfile.ZIP_DEFLATED))


def test_a_zip_of_too_many_entries_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_directory, "MOST_ENTRIES", 3)
    with pytest.raises(UserError, match="a zip of 4 entries, at most 3 are read"):
        open_tensors(zip_file(tmp_path / "model.ckpt", PICKLED))


def test_two_entries_may_touch_but_not_overlap(tmp_path):
    """An entry whose content holds the record of another: the same bytes would be read as two things."""
    inner = entries(tmp_path / "inner", ("archive/data/0", STORAGE)).read_bytes()[: LOCAL.size + 14 + len(STORAGE)]
    path = entries(tmp_path / "model.ckpt", ("archive/data/1", inner), ("archive/data/0", STORAGE))
    assert list(read_directory(map_file(path))) == ["archive/data/1", "archive/data/0"]
    patched(path, set_central("archive/data/0", 42, "<I", LOCAL.size + 14))
    with pytest.raises(BadFile, match="'archive/data/0' overlaps another"):
        read_directory(map_file(path))
