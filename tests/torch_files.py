"""Files as torch.save lays them out, around any pickle; and pickles written instruction by instruction."""

import io
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ROOM = 512 * 2**20  # bytes of address space that a hostile file may at most be given
STORAGE = b"\x00\x00\x80?" * 6  # six ones, float32


def zip_file(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """A zip checkpoint; storage 0 has six ones unless `storages` says otherwise."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, content in ({"0": STORAGE} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return path


def legacy_file(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """The same in the layout before torch 1.6; storages are of float32."""
    contents = {"0": STORAGE} if storages is None else storages
    file = io.BytesIO()
    for value in (MAGIC_NUMBER, PROTOCOL, {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}):
        file.write(pickle.dumps(value, 2))
    file.write(pickled + pickle.dumps(list(contents), 2))
    for content in contents.values():
        file.write(struct.pack("<q", len(content) // 4) + content)
    path.write_bytes(file.getvalue())
    return path


FILES = {"zip": zip_file, "legacy": legacy_file}


def value(given: object) -> bytes:
    """Instructions that push a plain value."""
    match given:
        case None:
            return b"N"
        case bool():
            return b"\x88" if given else b"\x89"
        case int() if -(2**31) <= given < 2**31:
            return b"J" + struct.pack("<i", given)
        case int():
            content = given.to_bytes(given.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case str():
            content = given.encode()
            return b"X" + struct.pack("<I", len(content)) + content
        case bytes():
            return b"B" + struct.pack("<I", len(given)) + given
        case tuple():
            return b"(" + b"".join(map(value, given)) + b"t"
        case list():
            return b"](" + b"".join(map(value, given)) + b"e"
        case dict():
            return b"}(" + b"".join(value(key) + value(each) for key, each in given.items()) + b"u"
    raise TypeError(given)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def storage(kind: str = "FloatStorage", key: object = "0", count: int = 6, view: bytes = b"") -> bytes:
    """Instructions that push a storage, by its persistent id."""
    return b"(" + value("storage") + named("torch", kind) + value(key) + value("cpu") + value(count) + view + b"tQ"


def tensor(
    size: object = (2, 3), stride: object = (3, 1), offset: object = 0, of: bytes | None = None, rest: bytes = b""
) -> bytes:
    arguments = b"".join(map(value, (offset, size, stride, False))) + named("collections", "OrderedDict") + b")R" + rest
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + (of or storage()) + arguments + b"tR"


def checkpoint(**entries: bytes) -> bytes:
    """A whole pickle: {"state_dict": {"weight": a tensor}, and `entries`, each the instructions of a value}."""
    state = value("state_dict") + b"}" + value("weight") + tensor() + b"s"
    return b"\x80\x02}(" + state + b"".join(value(name) + each for name, each in entries.items()) + b"u."


@contextmanager
def little_memory() -> Iterator[None]:
    """MemoryError, which no test expects, for whoever asks for more than `ROOM`."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
