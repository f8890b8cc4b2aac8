"""Files of tensors of every format, opened without loading, without running anything; and written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from controlnet.atomic import write_atomically
from controlnet.checkpoints import pickled, safetensors_file, wrong_file
from controlnet.checkpoints.mapped import BadFile, map_file
from controlnet.errors import UserError

PICKLED_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLED_SUFFIXES)


@dataclass(frozen=True)
class TensorFile:
    """What a file holds; the tensors are views of the file, read from disk only where they are touched.

    To write into them changes memory alone. The file must not be cut short while they live.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    """By name, as in the file; any strides, on the CPU, without gradient."""
    metadata: Mapping[str, str]
    """Of a safetensors header; empty for pickled files."""
    others: Mapping[str, object]
    """What a pickled file holds beside the state dictionary: numbers, text, containers, tensors, `Placeholder`."""

    @property
    def header(self) -> dict[str, str]:
        """The text beside the tensors, by name, of either format: where our own files say what they are."""
        return {**{name: text for name, text in self.others.items() if isinstance(text, str)}, **self.metadata}


def open_tensors(path: Path) -> TensorFile:
    """Open a file of weights; its content, not its suffix, tells the format.

    UserError, with the cause and the remedy, for everything that is not a whole file of dense tensors.
    """
    if wrong := wrong_file.describe(path):
        raise UserError(f"{path}: {wrong}")
    mapped = map_file(path)
    try:
        if pickled.is_zip(mapped) or pickled.is_legacy(mapped):
            tensors, others = pickled.read(mapped)
            return TensorFile(path, tensors, {}, others)
        tensors, metadata = safetensors_file.read(mapped)
        return TensorFile(path, tensors, metadata, {})
    except BadFile as error:
        raise UserError(f"{path}: {error}") from error


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write tensors, whole or not at all; the format goes by the suffix.

    .safetensors: header with `metadata`, then tensor by tensor, without a second copy in memory; tensors that share
    memory are written each. .ckpt, .pth, .pt and .bin: torch's zip format, {"state_dict": tensors} and beside it what
    is in `metadata`. Floating tensors are cast to `dtype`. `progress` gets the bytes done and in total. UserError for
    another suffix, a type that the format lacks, or a full disk.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: the format {path.suffix or 'without a suffix'} is unknown; use {', '.join(SUFFIXES)}")
    report = progress or (lambda done, total: None)

    def dtype_of(tensor: Tensor) -> torch.dtype:
        return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    def write_safetensors(temporary: Path) -> None:
        with temporary.open("wb") as file:
            safetensors_file.write(file, tensors, metadata or {}, dtype_of, report)

    def write_pickled(temporary: Path) -> None:
        taken: set[int] = set()
        alone = {name: _alone(tensor.detach().to("cpu", dtype_of(tensor)), taken) for name, tensor in tensors.items()}
        torch.save({**(metadata or {}), "state_dict": alone}, temporary)
        total = sum(tensor.nbytes for tensor in alone.values())
        report(total, total)

    if path.suffix != ".safetensors":
        write_atomically(path, write_pickled)
        return
    lacking = {str(dtype_of(tensor)) for tensor in tensors.values()} - set(map(str, safetensors_file.NAMES))
    if lacking:
        raise UserError(f"{path}: safetensors has no {', '.join(sorted(lacking))}; choose .ckpt or another precision")
    write_atomically(path, write_safetensors)


def _alone(tensor: Tensor, taken: set[int]) -> Tensor:
    """The same without the rest of a shared memory, which torch.save would write whole, and not `taken` by another."""
    storage = tensor.untyped_storage()
    fills = tensor.is_contiguous() and tensor.nbytes == storage.nbytes() and storage.data_ptr() not in taken
    taken.add(storage.data_ptr())
    return tensor if fills else tensor.clone(memory_format=torch.contiguous_format)
