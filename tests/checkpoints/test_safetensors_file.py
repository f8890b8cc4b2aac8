"""The safetensors format is written as its own library writes it, and a header is believed only where it is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from controlnet.checkpoints import safetensors_file
from controlnet.checkpoints.safetensors_file import DTYPES, METADATA
from controlnet.checkpoints.tensor_file import open_tensors, write_tensors
from controlnet.errors import UserError
from torch_files import little_memory

# the format's library writes it, but torch's side of it does not know it
WITHOUT_ORACLE = {torch.float8_e8m0fnu}


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        str(dtype): torch.randint(0, 2, (6 * dtype.itemsize,), generator=generator, dtype=torch.uint8).view(dtype)
        for dtype in DTYPES.values()
        if dtype not in WITHOUT_ORACLE
    }
    made = {name: tensor.reshape(2, 3) for name, tensor in made.items()}
    return {**made, "scalar": torch.tensor(1.5), "empty": torch.empty(0, 4), "none": torch.empty(3, 0)}


def file_of(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: object = 0, end: object = 8, shape: object = (2,), dtype: object = "F32", **others: object) -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **others}


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def test_a_file_of_the_library_is_read_as_the_library_reads_it(tmp_path):
    save_file(state(), tmp_path / "model.safetensors", {"format": "pt", "controlnet": "{}"})
    opened = open_tensors(tmp_path / "model.safetensors")
    theirs = load_file(tmp_path / "model.safetensors")
    assert opened.tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (opened.tensors[name].dtype, opened.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(opened.tensors[name]) == bits(tensor)
    assert opened.metadata == {"format": "pt", "controlnet": "{}"}
    assert opened.others == {}


def test_our_file_is_the_librarys_byte_for_byte(tmp_path):
    """As it orders tensors by the width of their type and then by name, and pads its header."""
    tensors = {name: tensor for name, tensor in state().items() if tensor.dtype in (torch.float32, torch.float16)}
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    write_tensors(tmp_path / "ours.safetensors", tensors, {"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_our_file_is_read_by_the_library(tmp_path):
    write_tensors(tmp_path / "model.safetensors", state(), {"one": "1", "two": "2"})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"one": "1", "two": "2"}
    theirs = load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == state().keys()
    assert all(bits(theirs[name]) == bits(tensor) for name, tensor in state().items())


def test_a_type_that_the_library_does_not_know_in_torch_comes_back(tmp_path):
    made = {"scale": torch.tensor([1, 2, 3], dtype=torch.uint8).view(torch.float8_e8m0fnu)}
    write_tensors(tmp_path / "model.safetensors", made)
    (found,) = open_tensors(tmp_path / "model.safetensors").tensors.values()
    assert (found.dtype, bits(found)) == (torch.float8_e8m0fnu, [1, 2, 3])


def test_the_same_tensors_give_the_same_bytes_in_any_order(tmp_path):
    backwards = dict(reversed(state().items()))
    write_tensors(tmp_path / "a.safetensors", state(), {"a": "1", "b": "2"})
    write_tensors(tmp_path / "b.safetensors", backwards, {"b": "2", "a": "1"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_file_whose_tensors_are_not_aligned_is_read(tmp_path):
    """As the library wrote them in 2022."""
    header = json.dumps({"a": entry()}).encode()
    header += b" " * (-len(header) % 8 + 3)
    path = file_of(tmp_path / "old.safetensors", header, torch.tensor([1.5, -2]).numpy().tobytes())
    assert open_tensors(path).tensors["a"].tolist() == [1.5, -2]
    assert (open_tensors(path).tensors["a"] * 2).tolist() == [3, -4]


def twice(name: str, first: object, second: object) -> bytes:
    return f'{{"{name}": {json.dumps(first)}, "{name}": {json.dumps(second)}}}'.encode()


# header, bytes of data and what is said of it
HEADERS: dict[str, tuple[object, int, str]] = {
    "a gap": ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "'b' has a gap before it"),
    "a gap at the start": ({"a": entry(8, 16)}, 16, "'a' has a gap before it"),
    "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "'b' has an overlap"),
    "the same place twice": ({"a": entry(), "b": entry()}, 8, "has an overlap"),
    "one tensor in another": ({"a": entry(0, 16, (4,)), "b": entry(4, 8, (1,))}, 16, "'b' has an overlap"),
    "an end before the begin": ({"a": entry(8, 0)}, 8, "cannot have -8 bytes"),
    "a shape that is too large": ({"a": entry(shape=(3,))}, 8, "cannot have 8 bytes"),
    "a shape that is too small": ({"a": entry(shape=())}, 8, "cannot have 8 bytes"),
    "a shape whose product overflows": ({"a": entry(0, 0, shape=(2**33, 2**31, 2))}, 0, "cannot have 0 bytes"),
    "a negative shape": ({"a": entry(shape=(-1, -2))}, 8, "entry of 'a' is damaged"),
    "a shape of fractions": ({"a": entry(shape=(2.0,))}, 8, "entry of 'a' is damaged"),
    "a shape of truths": ({"a": entry(0, 4, shape=(True,))}, 4, "entry of 'a' is damaged"),
    "a shape that is text": ({"a": entry(shape="2")}, 8, "entry of 'a' is damaged"),
    "a shape of 65 dimensions": ({"a": entry(0, 4, shape=(1,) * 65)}, 4, "cannot have 4 bytes"),
    "an unknown type": ({"a": entry(dtype="F4")}, 8, "has the type 'F4'"),
    "a type that is a number": ({"a": entry(dtype=32)}, 8, "entry of 'a' is damaged"),
    "an offset that is text": ({"a": entry("0")}, 8, "entry of 'a' is damaged"),
    "an offset that is negative": ({"a": entry(-8, 0)}, 8, "entry of 'a' is damaged"),
    "an offset beyond the end": ({"a": entry(2**63, 2**63 + 8)}, 8, "'a' has a gap"),
    "an entry with more in it": ({"a": entry(more=1)}, 8, "entry of 'a' is damaged"),
    "an entry with less in it": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "entry of 'a' is damaged"),
    "an entry that is none": ({"a": [1, 2]}, 8, "entry of 'a' is damaged"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, 8, "entry of 'a' is damaged"),
    "metadata that is no text": ({METADATA: {"step": 3}, "a": entry()}, 8, "is not text by name"),
    "metadata in metadata": ({METADATA: {"step": {"a": "b"}}, "a": entry()}, 8, "is not text by name"),
    "metadata that is text": ({METADATA: "text", "a": entry()}, 8, "is not text by name"),
    "a name twice": (twice("a", entry(), entry()), 8, "a name occurs twice"),
    "a key twice": (b'{"a": ' + twice("dtype", "F32", "F32") + b"}", 8, "a name occurs twice"),
    "metadata twice": (twice(METADATA, {"a": "b"}, {}), 8, "a name occurs twice"),
    "no JSON": (b"{a: 1}", 8, "header is damaged"),
    "half of its JSON": (json.dumps({"a": entry()}).encode()[:-1], 8, "header is damaged"),
    "no UTF-8": (b'{"\xff": 1}', 8, "header is damaged"),
    "lists a million deep": (b'{"a": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", 8, "header is damaged"),
    "a number of a million digits": (b'{"a": ' + b"9" * 1_000_000 + b"}", 8, "header is damaged"),
    "more after its JSON": (b"{} {}", 8, "header is damaged"),
    "a name of control characters": ({"\x1b[2J": entry()}, 8, r"a tensor is named '\\x1b"),
    "an endless name": ({"a" * 1000: entry()}, 8, "expected up to 512 characters"),
}


@pytest.mark.parametrize("wrong", HEADERS)
def test_a_header_is_refused_that_has(wrong, tmp_path):
    header, size, said = HEADERS[wrong]
    path = file_of(tmp_path / "model.safetensors", header, bytes(size))
    with little_memory(), pytest.raises(UserError, match=said) as refused:
        open_tensors(path)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("length", "said"),
    [(8 * 2**20 + 1, "a safetensors header of 8,388,609 bytes, at most 8,388,608 are read"), (10_000, "cut off")],
)
def test_a_header_that_is_too_long_is_refused_before_it_is_read(length, said, tmp_path):
    with pytest.raises(UserError, match=said):
        open_tensors(file_of(tmp_path / "model.safetensors", {"a": entry()}, bytes(8), length))


def test_too_many_tensors_are_refused(tmp_path):
    header = {f"{n}": entry(0, 0, (0,)) for n in range(65_537)}
    with pytest.raises(UserError, match="it names 65,537 tensors, expected 1 to 65,536"):
        open_tensors(file_of(tmp_path / "model.safetensors", header))


def test_a_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(UserError, match="it names 0 tensors, "):
        open_tensors(file_of(tmp_path / "model.safetensors", {"__metadata__": {"a": "b"}}))


@pytest.mark.parametrize(("change", "said"), [(-1, "cut off"), (-9, "cut off"), (1, "1 bytes after the last tensor")])
def test_a_file_of_another_length_is_refused(change, said, tmp_path):
    path = file_of(tmp_path / "model.safetensors", {"a": entry()}, bytes(8 + change) if change > -9 else b"")
    with pytest.raises(UserError, match=said):
        open_tensors(path)


def test_a_file_that_is_larger_than_the_memory_is_listed(tmp_path):
    size = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = file_of(tmp_path / "model.safetensors", {"a": entry(0, size, (size,), "U8")})
    os.truncate(path, path.stat().st_size + size)
    assert open_tensors(path).tensors["a"].nbytes == size


WRITING = """
import resource, sys
from pathlib import Path
import torch
from controlnet.checkpoints.tensor_file import write_tensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

one = torch.zeros(4 * 2**20)
write_tensors(Path("small.safetensors"), {"a": one[:10]}, dtype=torch.float16)
before = peak()
write_tensors(Path("model.safetensors"), {str(n): one for n in range(12)}, dtype=torch.float16)
print(peak() - before)
"""


def test_writing_copies_one_tensor_at_a_time(tmp_path):
    """12 times 8 MB are written, cast; one of them is in memory."""
    printed = subprocess.run([sys.executable, "-c", WRITING], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "model.safetensors").stat().st_size > 96 * 2**20
    assert float(printed.stdout) < 40


def test_every_type_of_the_format_has_one_name():
    assert len(safetensors_file.NAMES) == len(DTYPES)
