"""Checkpoints of a training: safetensors and JSON in one file, no pickle, whole or absent.

A file holds Lightning's whole state: its tensors (weights, optimizer) under names, all else as JSON in the header.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from controlnet.atomic import write_atomically
from controlnet.errors import UserError

FORMAT = "controlnet-checkpoint-1"
KEPT = 2  # the last, and one before it, should the last be damaged later


class SafetensorsIO(CheckpointIO):
    """How Lightning writes and reads our checkpoints."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """UserError when the disk is full; the previous checkpoint stays."""
        tensors: dict[str, Tensor] = {}
        metadata = {"format": FORMAT, "state": json.dumps(_pack(checkpoint, tensors, ""))}
        write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, metadata))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # no dict
        except Exception as error:  # safetensors has its own type, and what it lets through is broken otherwise
            raise UserError(
                f"{path}: cannot be read as a checkpoint ({error}); remove it to continue from the one before it"
            ) from error
        loaded: dict[str, Any] = _unpack(state, tensors)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}.safetensors"


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a run's folder, earliest first."""
    named = ((re.fullmatch(r"step-(\d+)", path.stem), path) for path in run.glob("checkpoints/*.safetensors"))
    return sorted((int(match[1]), path) for match, path in named if match)


def prune(run: Path) -> None:
    """Remove all checkpoints but the last ones; call only when the newest is on disk."""
    for _, path in checkpoints(run)[:-KEPT]:
        path.unlink()


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
