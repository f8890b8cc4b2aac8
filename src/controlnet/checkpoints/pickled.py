"""Checkpoints that torch.save wrote, read without pickle's powers: tensors and plain values, nothing run or imported.

Two layouts. Zip (torch 1.6 and later): data.pkl is a pickle that names storages, each an entry data/0, data/1, ...
Legacy (before 1.6, or on demand): five pickles one after the other (magic number, protocol, system, the object, the
storages' keys), then each storage after its 8-byte count of elements. Tensors are views of the mapped file, so that
reading costs the pickle's size, not the weights'.
"""

import mmap
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from controlnet.checkpoints.mapped import AGAIN, LONGEST_NAME, BadFile, check_names, view
from controlnet.checkpoints.pickled_values import CONTAINERS, NotDense, Placeholder, as_key, strided
from controlnet.checkpoints.unpickler import MOST_PICKLED, unpickle
from controlnet.checkpoints.zip_directory import Entry, read_directory

ZIP_START = b"PK\x03\x04"
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # torch's
MAGIC_WITHIN = 32  # bytes; before the number come the protocol and perhaps a frame
LEGACY_PROTOCOL = 1001  # torch's
DEEPEST = 64  # levels of containers
MOST_VALUES = 1_000_000  # in containers, each counted as often as it is reached
# where a file has its state dictionary, unless it is one: Lightning's and the original's, ESRGAN's, timm's, textual
# inversion's, ...
STATE_KEYS = ("state_dict", "model", "params_ema", "params", "model_state_dict", "string_to_param", "net", "weights")

STORAGE_NAME = re.compile(r"data/[0-9]+")
OTHER_NAMES = {
    *("data.pkl", "byteorder", "version", ".data/serialization_id", ".format_version", ".storage_alignment"),
}
FindStorage = Callable[[str, torch.dtype, int], Tensor]  # key, element type and number of elements -> flat tensor


def is_zip(mapped: mmap.mmap) -> bool:
    return mapped[: len(ZIP_START)] == ZIP_START


def is_legacy(mapped: mmap.mmap) -> bool:
    return mapped[:1] == b"\x80" and MAGIC_NUMBER.to_bytes(10, "little") in mapped[:MAGIC_WITHIN]


def read(mapped: mmap.mmap) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors of the state dictionary, as views of the mapping, and what else the file holds at its top.

    BadFile if the file is damaged, over one of the limits, or has something else than a tensor in a tensor's place.
    """
    top = _read_zip(mapped) if is_zip(mapped) else _read_legacy(mapped)
    _check_extent(top)
    return _state_and_others(top)


# the two layouts


def _read_zip(mapped: mmap.mmap) -> object:
    entries = _torch_entries(read_directory(mapped))
    if "byteorder" in entries and _content(mapped, entries["byteorder"]) != b"little":
        raise BadFile("saved on a big-endian machine; load it there and save it as safetensors")
    places = {
        name.removeprefix("data/"): (entry.offset, entry.size)
        for name, entry in entries.items()
        if STORAGE_NAME.fullmatch(name)
    }
    top, _ = _unpickle(_content(mapped, entries["data.pkl"]), 0, _Storages(mapped, places).find)
    return top


def _torch_entries(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """By their names in the one folder that they are all in."""
    root = next(iter(entries), "").split("/")[0]
    inside = {name.removeprefix(f"{root}/"): entry for name, entry in entries.items() if name.startswith(f"{root}/")}
    strange = sorted(name for name in inside if not STORAGE_NAME.fullmatch(name) and name not in OTHER_NAMES)
    strange += sorted(entries.keys() - {f"{root}/{name}" for name in inside})
    if strange or "data.pkl" not in inside:
        found = ", ".join(map(repr, strange[:3])) or "no data.pkl"
        raise BadFile(f"a zip with {found}, not what torch.save writes; unpack it and see what is in it")
    if not all(entry.is_plain for entry in inside.values()):
        raise BadFile("compressed or encrypted, as torch.save writes no file; unpack it and see what is in it")
    return inside


def _content(mapped: mmap.mmap, entry: Entry) -> bytes:
    if entry.size > MOST_PICKLED:
        raise BadFile(f"its {entry.name!r} has {entry.size:,} bytes, at most {MOST_PICKLED:,} are read")
    return mapped[entry.offset : entry.offset + entry.size]


def _read_legacy(mapped: mmap.mmap) -> object:
    pickles = mapped[:MOST_PICKLED]
    extents: dict[str, tuple[int, int]] = {}

    def note(key: str, dtype: torch.dtype, count: int) -> Tensor:
        """The places are known only after the pickles: a first pass learns the sizes, its tensors have no memory."""
        extent = (count, count * dtype.itemsize)
        if extents.setdefault(key, extent) != extent:
            raise BadFile(f"storage {key!r} has two sizes; {AGAIN}")
        return torch.empty(count, dtype=dtype, device="meta")

    magic, at = _unpickle(pickles, 0, note)
    protocol, at = _unpickle(pickles, at, note)
    system, object_at = _unpickle(pickles, at, note)
    match magic, protocol, system:
        case int(), int(), {"little_endian": True} if (magic, protocol) == (MAGIC_NUMBER, LEGACY_PROTOCOL):
            pass
        case _:
            raise BadFile("saved by an unknown torch or on a big-endian machine; save it as safetensors there")
    _, at = _unpickle(pickles, object_at, note)
    keys, at = _unpickle(pickles, at, note)
    places = _legacy_places(mapped, at, keys, extents)
    top, _ = _unpickle(pickles, object_at, _Storages(mapped, places).find)
    return top


def _legacy_places(
    mapped: mmap.mmap, at: int, keys: object, extents: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """Offset and size of every storage; they follow each other from `at` on, each after its number of elements."""
    if not isinstance(keys, list) or len(keys) != len(extents) or {*map(as_key, keys)} != extents.keys():
        raise BadFile(f"its list of storages is damaged; {AGAIN}")
    places = {}
    for key in keys:
        count, size = extents[key]
        begin, end = at + 8, at + 8 + size
        if end > len(mapped):
            raise BadFile(f"cut off: storage {key!r} ends at byte {end:,}, the file at {len(mapped):,}; {AGAIN}")
        if int.from_bytes(mapped[at:begin], "little") != count:
            raise BadFile(f"storage {key!r} has another length than its tensors say; {AGAIN}")
        places[key] = (begin, size)
        at = end
    return places


# storages and tensors


@dataclass
class _Storages:
    """The file's storages, looked up once each."""

    mapped: mmap.mmap
    places: Mapping[str, tuple[int, int]]
    """Offset and size in bytes."""
    found: dict[str, Tensor] = field(default_factory=dict)

    def find(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in self.places:
            raise BadFile(f"storage {key!r} is not there; {AGAIN}")
        offset, size = self.places[key]
        if count * dtype.itemsize != size:
            raise BadFile(f"storage {key!r} has {size:,} bytes, {count:,} elements of {dtype} are looked for; {AGAIN}")
        if key not in self.found:
            self.found[key] = view(self.mapped, offset, size)
        return self.found[key].view(dtype)


def _unpickle(pickles: bytes, start: int, find: FindStorage) -> tuple[object, int]:
    def persistent(said: object) -> object:
        match said:
            case ("storage", Placeholder() as kind, *_) | ("module", Placeholder() as kind, *_):
                return kind  # a quantised storage or a module: what is made of it is a placeholder too
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count)):
                return find(key, dtype, count)
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count), None):
                return find(key, dtype, count)
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count), (_, int(offset), int(size))):
                return strided(find(key, dtype, count), offset, (size,), (1,))
            case _:
                raise TypeError("a persistent id that is no storage")

    return unpickle(pickles, start, persistent)


# the state dictionary


def _check_extent(top: object) -> None:
    """BadFile unless the containers are a tree of modest size: none holds itself, none is reached a million times."""
    waiting, seen = [(top, 1)], 0
    while waiting:
        value, depth = waiting.pop()
        inside = (*value, *value.values()) if isinstance(value, dict) else value
        if isinstance(inside, CONTAINERS):
            seen += len(inside)
            if depth > DEEPEST or seen > MOST_VALUES:
                raise BadFile(
                    f"holds containers in containers, over {DEEPEST} deep or with over {MOST_VALUES:,} values, as no "
                    "file of weights does"
                )
            waiting.extend((each, depth + 1) for each in inside)


def _state_and_others(top: object) -> tuple[dict[str, Tensor], dict[str, object]]:
    if not isinstance(top, dict):
        raise BadFile(
            f"holds {_kind(top)}, expected tensors by name; where it was made, save the model's state_dict() instead"
        )
    key = next((key for key in STATE_KEYS if _is_state(top.get(key))), None)
    state = top if key is None else top[key]
    if not _is_state(state):
        found = ", ".join(f"{str(name)[:LONGEST_NAME]!r}: {_kind(value)}" for name, value in list(top.items())[:5])
        raise BadFile(f"holds no tensors by name, but {found or 'nothing'}; expected a model's state_dict()")
    lost = {name: it for name, it in state.items() if isinstance(it, NotDense if key is None else Placeholder)}
    if lost:
        name, it = next(iter(lost.items()))
        raise BadFile(f"{name!r} is {_kind(it)}, expected a dense tensor; where it was made, save it as one")
    tensors = {name: it for name, it in state.items() if isinstance(it, Tensor)}
    check_names(tensors)
    beside = {name: it for name, it in top.items() if name != key}
    others = {str(name): it for name, it in {**state, **beside}.items() if name not in tensors}
    return tensors, others


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(it, Tensor) for it in value.values())


def _kind(value: object) -> str:
    return f"an object of {value.name}" if isinstance(value, Placeholder) else f"a {type(value).__name__}"
