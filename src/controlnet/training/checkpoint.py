"""Checkpoints of a training: safetensors and JSON in one file, no pickle, whole or absent, and known to be whole.

A file holds Lightning's whole state: its tensors (weights, optimizer) under names, all else as JSON in the header,
beside a digest of all of it, so that a file that was cut off or changed by a single bit is never taken for whole.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from controlnet.atomic import TEMPORARY, write_atomically
from controlnet.errors import UserError

FORMAT = "controlnet-checkpoint-2"
KEPT = 2  # the last, and one before it, should the last be damaged later
DAMAGED = ".damaged"  # suffix of a checkpoint that was found to be so
LEFT = ".left"  # suffix of a checkpoint that lies ahead of where the run was told to go on


class DamagedCheckpoint(UserError):
    """A file that is no checkpoint of ours, or no longer the one that was written."""


class SafetensorsIO(CheckpointIO):
    """How Lightning writes and reads our checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """UserError when the disk is full; the previous checkpoint stays."""
        tensors: dict[str, Tensor] = {}
        state = json.dumps(_pack(checkpoint, tensors, ""))
        tensors = _apart(tensors)
        metadata = {"format": FORMAT, "state": state, "digest": _digest(state, tensors)}
        write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """On the CPU. DamagedCheckpoint if it is not, bit for bit, what was written."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict
        except Exception as error:  # safetensors has its own type, and what it lets through is broken otherwise
            raise DamagedCheckpoint(f"{path}: cannot be read as a checkpoint ({error}); {_remedy()}") from error
        if metadata.get("format") != FORMAT:
            raise DamagedCheckpoint(f"{path}: its format is {metadata.get('format')}, expected {FORMAT}; {_remedy()}")
        state = metadata.get("state", "")
        if metadata.get("digest") != _digest(state, tensors):
            raise DamagedCheckpoint(f"{path}: its content does not fit its digest: it is damaged; {_remedy()}")
        loaded: dict[str, Any] = _unpack(json.loads(state), tensors)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}.safetensors"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a run's folder, earliest first."""
    named = ((re.fullmatch(r"step-(\d+)", path.stem), path) for path in run.glob("checkpoints/*.safetensors"))
    return sorted((int(match[1]), path) for match, path in named if match)


def last_good(run: Path, tell: Callable[[str], None]) -> tuple[int, Path] | None:
    """(step, path) of the last whole checkpoint of a run; None if it has none yet.

    Damaged ones after it are set aside, and told of. UserError if there are only damaged ones.
    """
    found = checkpoints(run)
    for step, path in reversed(found):
        try:
            SafetensorsIO().load_checkpoint(path)
        except DamagedCheckpoint as damage:
            tell(f"{damage}")
            path.rename(path.with_name(path.name + DAMAGED))
        else:
            if path != found[-1][1]:
                tell(f"going on from step {step}, the last whole checkpoint; the damaged ones are kept as *{DAMAGED}")
            return step, path
    if found:
        raise UserError(
            f"none of the {len(found)} checkpoints in {run / 'checkpoints'} is whole; they are kept there as "
            f"*{DAMAGED}; give --out another folder to begin anew"
        )
    return None


def go_back_to(run: Path, asked: str) -> tuple[int, Path]:
    """(step, path) of the checkpoint called `asked`, a path or a step's number; later ones are set aside.

    UserError if the run has none of this name.
    """
    found = checkpoints(run)
    chosen = [(step, path) for step, path in found if asked in (str(step), path.name, path.stem, str(path))]
    if not chosen:
        known = ", ".join(path.stem for _, path in found) or "none"
        raise UserError(f"--resume-from-checkpoint is {asked}; expected latest or one of this run's: {known}")
    SafetensorsIO().load_checkpoint(chosen[0][1])
    for step, path in found:
        if step > chosen[0][0]:
            path.rename(path.with_name(path.name + LEFT))
    return chosen[0]


def sweep(run: Path) -> None:
    """Remove what processes that were killed while writing have left behind."""
    for folder in (run, run / "checkpoints"):
        for path in folder.glob(TEMPORARY):
            path.unlink(missing_ok=True)


def prune(run: Path, kept: int = KEPT) -> None:
    """Remove all checkpoints but the last ones; call only when the newest is on disk."""
    for _, path in checkpoints(run)[:-kept]:
        path.unlink()


def _remedy() -> str:
    return "remove it to continue from the one before it"


def _digest(state: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the state and of every tensor's name, dtype, shape and bytes."""
    names = sorted(tensors)
    with ThreadPoolExecutor() as pool:  # hashing large buffers leaves the interpreter to others
        hashes = pool.map(_hash, (tensors[name] for name in names))
        parts = [
            [name, str(tensors[name].dtype), list(tensors[name].shape), one]
            for name, one in zip(names, hashes, strict=True)
        ]
    return hashlib.sha256(json.dumps([state, parts]).encode()).hexdigest()


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """`value` as JSON, its tensors moved to `tensors`; keeps tuples, and keys that are no words."""
    match value:
        case Tensor():
            tensors[name] = value.detach().contiguous()
            return {"tensor": name}
        case dict():
            return {"dict": [[key, _pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]}
        case list() | tuple():
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [_pack(item, tensors, f"{name}/{index}") for index, item in enumerate(value)]}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{name}: a checkpoint cannot hold {type(value).__name__}")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With a copy of what shares memory, which a file refuses: the tables of 8-bit Adam do."""
    owners = {x.data_ptr(): name for name, x in tensors.items()}
    return {name: x if owners[x.data_ptr()] == name else x.clone() for name, x in tensors.items()}


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": items}:
            return {key: _unpack(item, tensors) for key, item in items}
        case {"list": items}:
            return [_unpack(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(_unpack(item, tensors) for item in items)
    return value


def like(parameter: Tensor, state: Tensor) -> Tensor:
    """`state` with the memory layout of its parameter, which a file does not keep and fused AdamW relies on."""
    return torch.empty_like(parameter, dtype=state.dtype).copy_(state) if state.shape == parameter.shape else state
