"""The safetensors format: 8 bytes with the header's length, the header in JSON, then the tensors without gaps.

The header is checked by us, entry by entry, before a byte of a tensor is looked at:
https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
import mmap
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from controlnet.checkpoints.mapped import AGAIN, MOST_DIMENSIONS, BadFile, check_names, view

LONGEST_HEADER = 8 * 2**20  # bytes; an SDXL single file's has 0.3 MB
METADATA = "__metadata__"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
Entry = tuple[int, int, torch.dtype, list[int]]  # begin, end, dtype, shape


def is_safetensors(mapped: mmap.mmap) -> bool:
    return mapped[5:9] == b"\0\0\0{"  # a header is shorter than 2 ** 40 bytes


def read(mapped: mmap.mmap) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, as views of the mapping, and the metadata. BadFile if the header is not what the format says."""
    header, data_at = read_header(mapped)
    metadata = header.pop(METADATA, {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise BadFile(f"the header's {METADATA} is not text by name; {AGAIN}")
    check_names(header)
    entries = {name: _entry(name, said) for name, said in header.items()}
    _check_places(entries, len(mapped) - data_at)
    tensors = {
        name: view(mapped, data_at + begin, end - begin).view(dtype).view(shape)
        for name, (begin, end, dtype, shape) in entries.items()
    }
    return tensors, metadata


def read_header(mapped: mmap.mmap) -> tuple[dict[str, Any], int]:
    """The header as it stands and where the data begins. BadFile if it is too long, cut off or no JSON object."""
    data_at = 8 + int.from_bytes(mapped[:8], "little")
    if data_at - 8 > LONGEST_HEADER:
        raise BadFile(f"a safetensors header of {data_at - 8:,} bytes, at most {LONGEST_HEADER:,} are read")
    if data_at > len(mapped):
        raise BadFile(
            f"cut off: the safetensors header alone ends at byte {data_at:,}, the file at {len(mapped):,}; {AGAIN}"
        )
    try:
        header = json.loads(mapped[8:data_at].decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"the safetensors header is damaged ({error}); {AGAIN}") from error
    if not isinstance(header, dict):
        raise BadFile(f"the safetensors header is no JSON object; {AGAIN}")
    return header, data_at


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name occurs twice")
    return made


def _entry(name: str, said: Any) -> Entry:
    match said:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end], **others} if not others and all(
            type(number) is int and number >= 0 for number in (*shape, begin, end)
        ):
            pass
        case _:
            raise BadFile(f"the header's entry of {name!r} is damaged ({str(said)[:200]}); {AGAIN}")
    if dtype not in DTYPES:
        raise BadFile(f"tensor {name!r} has the type {dtype!r}, expected one of {', '.join(DTYPES)}")
    if len(shape) > MOST_DIMENSIONS or math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise BadFile(
            f"tensor {name!r} of shape {str(shape)[:200]} and type {dtype} cannot have {end - begin:,} bytes; {AGAIN}"
        )
    return begin, end, DTYPES[dtype], shape


def _check_places(entries: Mapping[str, Entry], present: int) -> None:
    """BadFile unless the tensors lie one after the other, without a gap, and end where the file does."""
    expected = 0
    for name, (begin, end, *_) in sorted(entries.items(), key=lambda item: item[1][:2]):
        if begin != expected:
            what = "a gap before it" if begin > expected else "an overlap with another"
            raise BadFile(f"tensor {name!r} has {what} in the file; {AGAIN}")
        expected = end
    if expected > present:
        raise BadFile(f"cut off: the tensors have {expected:,} bytes, the file has {present:,} of them; {AGAIN}")
    if expected < present:
        raise BadFile(f"{present - expected:,} bytes after the last tensor; {AGAIN}")


def write(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype_of: Callable[[Tensor], torch.dtype],
    progress: Callable[[int, int], None],
) -> None:
    """Header, then tensor by tensor: never more than one of them is copied. The same tensors give the same bytes."""
    # widest elements first, so that all are aligned; as the format's own library does
    order = sorted(tensors, key=lambda name: (-dtype_of(tensors[name]).itemsize, name))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    total = 0
    for name in order:
        dtype, begin = dtype_of(tensors[name]), total
        total += tensors[name].numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, total]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    done = 0
    for name in order:
        content = tensors[name].detach().to("cpu", dtype_of(tensors[name])).contiguous().reshape(-1).view(torch.uint8)
        file.write(content.numpy().data)
        done += content.numel()
        progress(done, total)
