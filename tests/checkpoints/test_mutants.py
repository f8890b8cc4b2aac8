"""Thousands of damaged files: each is refused with our error or read within its bounds, in bounded memory.

Fixed seeds: the n-th mutant is always the same.
"""

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from controlnet.checkpoints.pickled_values import CONTAINERS
from controlnet.checkpoints.tensor_file import open_tensors
from controlnet.errors import UserError
from torch_files import little_memory

FEW, ALL = 600, 5000
EXTREMES = [0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
TOKENS = [b"R", b"c", b"Q", b"b", b"\x81", b"\x93", b"(", b"t", b"e", b"u", b".", b"cos\nsystem\n", b"h\x00", b"q\x00"]
JSON_TOKENS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"-", b"9" * 20, b"1e9", b"null", b'"F64"', b"data_offsets"]


def state() -> dict[str, torch.Tensor]:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {"layer.weight": base.t(), "layer.bias": base[0, 1:5], "half": base.half(), "count": torch.tensor(3)}


def torch_file(path: Path, is_zip: bool) -> bytes:
    top = {"state_dict": state(), "epoch": 3, "betas": (0.9, 0.99), "names": {"a": [None, "text", b"bytes"]}}
    torch.save(top, path, _use_new_zipfile_serialization=is_zip)
    return path.read_bytes()


def safetensors_file(path: Path) -> bytes:
    save_file({name: tensor.contiguous() for name, tensor in state().items()}, path, {"format": "pt"})
    return path.read_bytes()


def mutated(content: bytes, chance: random.Random, tokens: list[bytes]) -> bytes:
    """With one to four defects of every kind that a disk, a network or a malicious hand makes."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made))
        size = chance.choice([1, 2, 4, 8])
        kind = chance.randrange(7)
        if kind == 0:
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            made[at : at + size] = (chance.choice(EXTREMES) % 256**size).to_bytes(size, "little")
        elif kind == 2:
            made[at : at + chance.randrange(1, 64)] = b""
        elif kind == 3:
            other = chance.randrange(len(made))
            made[at:at] = made[other : other + chance.randrange(1, 64)]
        elif kind == 4:
            token = chance.choice(tokens)
            made[at : at + len(token)] = token
        elif kind == 5:
            made[at:at] = chance.choice(tokens)
        elif chance.random() < 0.2:
            made = made[: at + 1]
    return bytes(made)


def with_mutated_entry(whole: bytes, path: Path, chance: random.Random) -> bytes:
    """A zip in good order around a mutated pickle: else the zip's own defects would hide the pickle's."""
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, mutated(content, chance, TOKENS) if name.endswith("data.pkl") else content)
    return path.read_bytes()


def tensors_in(top: object) -> Iterator[torch.Tensor]:
    waiting = [top]
    while waiting:
        each = waiting.pop()
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, CONTAINERS):
            waiting += each.values() if isinstance(each, dict) else each


def assert_within(tensor: torch.Tensor, content: bytes) -> None:
    """Its storage is a part of the file, and its elements are in the storage and not more than that."""
    stored = bytes(tensor.untyped_storage().tolist())
    assert stored in content
    assert tensor.nbytes <= len(stored)
    if tensor.numel():
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        assert (tensor.storage_offset() + last + 1) * tensor.itemsize <= len(stored)
    tensor.clone()  # reads it all


def survives(path: Path, content: bytes) -> bool:
    """Whether the file at `path` is read; if it is, all within its bounds."""
    path.write_bytes(content)
    with little_memory():
        try:
            opened = open_tensors(path)
        except UserError:
            return False
        for tensor in tensors_in([dict(opened.tensors), dict(opened.others)]):
            assert_within(tensor, content)
    return True


COUNTS = [pytest.param(FEW, id="few"), pytest.param(ALL, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_zip_checkpoints_are_refused_or_read_within_their_bounds(count, tmp_path):
    whole = torch_file(tmp_path / "whole.ckpt", is_zip=True)
    read = 0
    for seed in range(count):
        chance = random.Random(seed)
        inside = seed % 2
        content = with_mutated_entry(whole, tmp_path / "made.zip", chance) if inside else mutated(whole, chance, TOKENS)
        read += survives(tmp_path / "model.ckpt", content)
    assert 0 < read < count / 2  # neither all the same file nor all refused at its first byte


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_legacy_checkpoints_are_refused_or_read_within_their_bounds(count, tmp_path):
    whole = torch_file(tmp_path / "whole.ckpt", is_zip=False)
    read = sum(survives(tmp_path / "model.ckpt", mutated(whole, random.Random(seed), TOKENS)) for seed in range(count))
    assert 0 < read < count / 2


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_safetensors_are_refused_or_read_within_their_bounds(count, tmp_path):
    whole = safetensors_file(tmp_path / "whole.safetensors")
    read = sum(
        survives(tmp_path / "model.safetensors", mutated(whole, random.Random(seed), JSON_TOKENS))
        for seed in range(count)
    )
    assert 0 < read < count / 2


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_refused(kind, tmp_path):
    path = tmp_path / "model.ckpt"
    whole = safetensors_file(path) if kind == "safetensors" else torch_file(path, is_zip=kind == "zip")
    ends = [*range(0, len(whole), 3), *range(len(whole) - 70, len(whole))]
    assert not any(survives(path, whole[:end]) for end in ends)
