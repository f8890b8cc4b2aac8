"""Tensors by the content they were made from, on disk: memory-mapped, added to by any number of processes.

A shard is a safetensors file with rows of one shape, written whole; its name follows from its keys. So a killed process
loses only the shard that it had not yet written, and two that make the same one replace it by its equal.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from controlnet.atomic import write_atomically

KEYS = "keys"


class Store(ABC):
    """Rows of named tensors by key."""

    @abstractmethod
    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those that are not here, each once, in their order."""

    @abstractmethod
    def get(self, key: str) -> dict[str, Tensor]:
        """The row of a key. KeyError for one that is not here."""

    @abstractmethod
    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Put in the rows of n keys: tensors (n, ...). UserError when the disk is full."""

    def stack(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The rows of several keys, each tensor (b, ...)."""
        rows = [self.get(key) for key in keys]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class MemoryStore(Store):
    """In memory, and gone with the process."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Tensor]] = {}

    def missing(self, keys: Iterable[str]) -> list[str]:
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def get(self, key: str) -> dict[str, Tensor]:
        return self._rows[key]

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        self._rows |= {key: {name: rows[row] for name, rows in tensors.items()} for row, key in enumerate(keys)}


class DiskStore(Store):
    """On disk. Can be sent to another process; what another adds is seen by the next that opens the folder."""

    def __init__(self, folder: Path, is_ours: bool = True) -> None:
        self.folder, self.is_ours = folder, is_ours
        self.broken: list[str] = []
        """Shards that could not be read, and if the folder is ours are gone: what they held is made anew."""
        self._places: dict[str, tuple[str, int]] = {}
        self._open: dict[str, Any] = {}
        for path in sorted(folder.glob("[!.]*.safetensors")):
            self._take_up(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # each process maps the files itself

    def missing(self, keys: Iterable[str]) -> list[str]:
        return [key for key in dict.fromkeys(keys) if key not in self._places]

    def get(self, key: str) -> dict[str, Tensor]:
        """Only what is asked for is read from the disk."""
        name, row = self._places[key]
        shard = self._open.get(name) or self._open.setdefault(name, safe_open(self.folder / name, framework="pt"))
        return {tensor: shard.get_slice(tensor)[row] for tensor in shard.keys()}  # noqa: SIM118  # no dict

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, whole or not at all."""
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16] + ".safetensors"
        content = {tensor: rows.contiguous() for tensor, rows in tensors.items()}
        metadata = {KEYS: json.dumps(list(keys))}
        write_atomically(self.folder / name, lambda temporary: save_file(content, temporary, metadata))
        self._take_up(self.folder / name)

    def _take_up(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                keys = json.loads(file.metadata()[KEYS])
        except Exception as error:  # safetensors has its own type, and what it lets through is broken otherwise
            self.broken.append(f"{path}: broken ({error})")
            if self.is_ours:
                path.unlink(missing_ok=True)
            return
        self._places |= {key: (path.name, row) for row, key in enumerate(keys)}


class Over(Store):
    """What another store has already, and beside it one that what it lacks is added to."""

    def __init__(self, own: Store, ready: Store) -> None:
        self.own, self.ready = own, ready

    def missing(self, keys: Iterable[str]) -> list[str]:
        return self.own.missing(self.ready.missing(keys))

    def get(self, key: str) -> dict[str, Tensor]:
        return (self.own if self.ready.missing([key]) else self.ready).get(key)

    def add(self, keys: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        self.own.add(keys, tensors)
