"""What torch.save wrote is read as torch.load reads it, from either layout; what lies about itself is refused."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from controlnet.checkpoints.pickled_values import DTYPES
from controlnet.checkpoints.tensor_file import TensorFile, open_tensors
from controlnet.errors import UserError
from torch_files import FILES, checkpoint, legacy_file, named, storage, tensor, value

LAYOUTS = {"zip": True, "legacy": False}  # `_use_new_zipfile_serialization` of torch.save
BASE = torch.arange(24, dtype=torch.float32).reshape(4, 6)
SHAPES = {
    "plain": {"a": BASE},
    "transposed": {"a": BASE.t()},
    "sliced": {"a": BASE[1:3, ::2], "b": BASE[:, 5]},
    "channels last": {"a": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)},
    "sharing": {"a": BASE, "b": BASE[2], "c": BASE.view(-1)[7:9]},
    "repeated along a dimension": {"a": BASE[:1].expand(4, 6).clone(), "b": torch.arange(3).expand(1, -1)},
    "scalar": {"a": torch.tensor(1.5), "b": torch.tensor(7)},
    "empty": {"a": torch.empty(0), "b": torch.empty(3, 0, 2), "c": BASE[4:]},
    "parameters": {"a": nn.Parameter(BASE), "b": nn.Parameter(BASE.half(), requires_grad=False)},
}


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_equal(found: TensorFile, wanted: dict[str, Tensor]) -> None:
    assert list(found.tensors) == list(wanted)
    for name, theirs in wanted.items():
        mine = found.tensors[name]
        assert (mine.dtype, mine.shape, mine.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
        assert bits(mine) == bits(theirs)
        assert not mine.requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SHAPES)
def test_tensors_are_what_torch_load_gives(kind, layout, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save(SHAPES[kind], path, _use_new_zipfile_serialization=LAYOUTS[layout])
    assert_equal(open_tensors(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_are_what_was_saved(dtype, layout, tmp_path):
    """Also of types that torch.load fails to read from the legacy layout."""
    path = tmp_path / "model.ckpt"
    content = torch.randint(0, 2, (4 * dtype.itemsize,), dtype=torch.uint8).view(dtype).reshape(2, 2)
    state = {"a": content, "b": content[:, 1], "c": content[0, 0]}
    torch.save(state, path, _use_new_zipfile_serialization=LAYOUTS[layout])
    assert_equal(open_tensors(path), state)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(protocol, layout, tmp_path):
    path = tmp_path / "model.ckpt"
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict()
    top = {"state_dict": state, "epoch": 3}
    torch.save(top, path, pickle_protocol=protocol, _use_new_zipfile_serialization=LAYOUTS[layout])
    opened = open_tensors(path)
    assert_equal(opened, dict(state))
    assert opened.others == {"epoch": 3}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_share_memory_share_it_again(layout, tmp_path):
    torch.save(SHAPES["sharing"], tmp_path / "model.ckpt", _use_new_zipfile_serialization=LAYOUTS[layout])
    tensors = open_tensors(tmp_path / "model.ckpt").tensors
    tensors["a"][2, 1] = 1000
    assert tensors["b"][1] == 1000
    assert tensors["c"][7 - 7] == 7


def test_writing_into_a_tensor_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"a": BASE}, path)
    before = path.read_bytes()
    open_tensors(path).tensors["a"].zero_()
    assert path.read_bytes() == before
    assert torch.equal(open_tensors(path).tensors["a"], BASE)


@pytest.mark.parametrize("key", ["state_dict", "model", "params_ema", "params"])
def test_the_state_dictionary_is_found_under_its_usual_names(key, tmp_path):
    torch.save({"epoch": 3, key: {"a": BASE}, "optimizer": {"lr": 0.1, "state": [BASE]}}, tmp_path / "model.ckpt")
    opened = open_tensors(tmp_path / "model.ckpt")
    assert list(opened.tensors) == ["a"]
    assert opened.others.keys() == {"epoch", "optimizer"}
    assert opened.others["optimizer"]["lr"] == 0.1


def test_what_is_no_tensor_in_a_state_dictionary_is_set_apart(tmp_path):
    torch.save({"a": BASE, "version": 3, "extra": None}, tmp_path / "model.ckpt")
    opened = open_tensors(tmp_path / "model.ckpt")
    assert list(opened.tensors) == ["a"]
    assert opened.others == {"version": 3, "extra": None}


LIGHTNING = """
import collections, sys, types
import numpy as np
import torch

for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint"):
    sys.modules[name] = types.ModuleType(name)
place = sys.modules["pytorch_lightning.callbacks.model_checkpoint"]

class ModelCheckpoint:
    def __init__(self):
        self.best, self.again = torch.tensor(0.5), self
    def __setstate__(self, state):
        raise SystemExit("built")

class AttributeDict(dict):
    pass

for kind in (ModelCheckpoint, AttributeDict):
    kind.__module__ = place.__name__
    setattr(place, kind.__name__, kind)

state = torch.nn.Linear(3, 2).state_dict()
top = {
    "epoch": 840, "global_step": 1000, "pytorch-lightning_version": "1.4.2", "state_dict": state,
    "callbacks": {ModelCheckpoint: {"monitor": None, "score": np.float64(0.25), "object": ModelCheckpoint()}},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"betas": (0.9, 0.99)}]}],
    "hyper_parameters": AttributeDict(rate=1e-4), "dtype": torch.float16, "device": torch.device("cpu"),
    "paths": collections.defaultdict(list, a=[1]),
}
for layout in ("zip", "legacy"):
    torch.save(top, layout, _use_new_zipfile_serialization=layout == "zip")
torch.save(state, "plain")
"""


@pytest.fixture(scope="module")
def lightning_files(tmp_path_factory):
    """The same checkpoint in both layouts, and its state dictionary."""
    folder = tmp_path_factory.mktemp("lightning")
    subprocess.run([sys.executable, "-c", LIGHTNING], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_with_objects_of_a_library_that_is_not_there_is_read(layout, lightning_files):
    opened = open_tensors(lightning_files / layout)
    assert_equal(opened, torch.load(lightning_files / "plain", weights_only=True))
    others = dict(opened.others)
    ((callback, said),) = others["callbacks"].items()
    assert callback.name == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert said["object"].name == callback.name
    assert said["score"].name.endswith("multiarray.scalar")
    assert others["hyper_parameters"].name.endswith("AttributeDict")
    assert (others["global_step"], others["dtype"], others["paths"]) == (1000, torch.float16, {"a": [1]})
    assert others["optimizer_states"][0]["param_groups"] == [{"betas": (0.9, 0.99)}]
    assert "pytorch_lightning" not in sys.modules


LOST = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "meta": lambda: torch.ones(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("key", ["state_dict", None])
def test_a_tensor_that_is_not_dense_is_refused_by_its_name(kind, key, tmp_path):
    state = {"good": BASE, "bad": LOST[kind]()}
    torch.save({key: state} if key else state, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="'bad' is an object of torch.*expected a dense tensor"):
        open_tensors(tmp_path / "model.ckpt")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_tensor_that_is_not_dense_does_no_harm_beside_the_weights(tmp_path):
    torch.save(
        {"state_dict": {"a": BASE}, "more": {kind: make() for kind, make in LOST.items()}}, tmp_path / "model.ckpt"
    )
    assert list(open_tensors(tmp_path / "model.ckpt").tensors) == ["a"]


@pytest.mark.parametrize(
    ("top", "said"),
    [
        (nn.Linear(2, 2), "holds an object of torch.nn.modules.linear.Linear, expected tensors by name"),
        (BASE, "holds a Tensor, expected tensors by name"),
        ([BASE], "holds a list"),
        ({}, "holds no tensors by name, but nothing"),
        (
            {"epoch": 1, "net": nn.Linear(2, 2)},
            "but 'epoch': a int, 'net': an object of torch.nn.modules.linear.Linear",
        ),
        ({"state_dict": {3: BASE}}, "a tensor is named '3'"),
        ({"\x1b[2J": BASE}, r"a tensor is named '\\x1b\[2J'"),
        ({"a" * 600: BASE}, "up to 512 characters"),
    ],
)
def test_a_file_without_a_state_dictionary_is_refused_with_what_it_holds(top, said, tmp_path):
    torch.save(top, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match=said):
        open_tensors(tmp_path / "model.ckpt")


# tensors that lie about their storage

LIES = {
    "more rows than are there": tensor((3, 3)),
    "an offset": tensor(offset=1),
    "an offset beyond the end": tensor((1,), (1,), 6),
    "an offset of nothing beyond the end": tensor((0,), (1,), 7),
    "a negative offset": tensor(offset=-1),
    "a negative size": tensor((-2, 3)),
    "a negative stride": tensor((2, 3), (-3, 1), 3),
    "a wide stride": tensor((2, 3), (4, 1)),
    "an endless stride": tensor((2, 1), (2**62, 1)),
    "an endless size": tensor((2**62, 2**62)),
    "sizes whose product overflows": tensor((2**32, 2**32), (1, 1)),
    "endless sizes of nothing": tensor((0, 2**40, 2**40), (1, 1, 1)),
    "a bomb: one element a billion times": tensor((10**9,), (0,)),
    "a stride too few": tensor((2, 3), (1,)),
    "a stride too many": tensor((2, 3), (3, 1, 1)),
    "65 dimensions": tensor((1,) * 65, (1,) * 65),
    "a size that is text": tensor(("2", 3)),
    "a size that is a number": tensor(6, 1),
    "a storage that is a number": tensor(of=value(5)),
    "a storage that is a tensor with a stride of 0": tensor((6,), (1,), 0, of=tensor((6,), (0,), 5)),
    "a longer storage": tensor(of=storage(count=7)),
    "a shorter storage": tensor((1,), (1,), of=storage(count=5)),
    "a negative storage": tensor((1,), (1,), of=storage(count=-1)),
    "an endless storage": tensor((1,), (1,), of=storage(count=2**62)),
    "a storage of another type": tensor((1,), (1,), of=storage("DoubleStorage")),
    "a storage that is not there": tensor((1,), (1,), of=storage(key="1")),
    "a storage elsewhere": tensor((1,), (1,), of=storage(key="../../etc/passwd")),
    "a storage that is the pickle": tensor((1,), (1,), of=storage(key="data.pkl")),
    "a storage without a key": tensor((1,), (1,), of=storage(key=None)),
    "a storage that is text": tensor(of=value("storage") + b"Q"),
    "a storage of an unknown kind": tensor(of=value(("tensor", 1, 2)) + b"Q"),
    "a storage that is no type": tensor(of=b"(" + value("storage") + value("FloatStorage") + value("0") + b"tQ"),
    "a view beyond its storage": tensor((1,), (1,), of=storage(view=value(("1", 5, 2)))),
    "a view before its storage": tensor((1,), (1,), of=storage(view=value(("1", -1, 2)))),
    "too few arguments": named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + b"tR",
    "items of a tensor": named("builtins", "set") + tensor() + b"\x85R",
    "pairs of a tensor": named("collections", "OrderedDict") + tensor((3, 2), (2, 1)) + b"\x85R",
    "a number of a tensor": named("builtins", "complex") + tensor((1,), (1,)) + b"G" + bytes(8) + b"\x86R",
    "a shape of a tensor": named("torch", "Size") + tensor((1,), (1,)) + b"\x85R",
    "a list that holds itself": b"]q\x00h\x00a",
    "containers 65 deep": b"]" * 65 + b"a" * 64,
    "a billion laughs": b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(40)),
}


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_is_refused_that_has(lie, layout, tmp_path):
    with pytest.raises(UserError) as refused:
        open_tensors(FILES[layout](tmp_path / "model.ckpt", checkpoint(it=LIES[lie])))
    assert len(str(refused.value)) < 2000


def test_a_view_of_a_storage_is_read_as_torch_once_wrote_it(tmp_path):
    """Before 0.4 it saved what shares memory as views of one storage."""
    seen = checkpoint(it=tensor((2,), (1,), 1, of=storage(view=value(("1", 2, 3)))))
    content = struct.pack("<6f", *range(6))
    assert open_tensors(legacy_file(tmp_path / "model.ckpt", seen, {"0": content})).others["it"].tolist() == [3, 4]


# the legacy layout


def test_a_legacy_file_that_is_cut_off_anywhere_says_so(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"a": BASE, "b": BASE.half()}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(40, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="cut off.*again"):
            open_tensors(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        (b"M\xe9\x03.", b"M\xea\x03."),  # the protocol's number
        (b"]q\x00X\x01\x00\x00\x000q\x01a.", b"]q\x00X\x01\x00\x00\x001a."),  # the storages' keys
        (b"]q\x00X\x01\x00\x00\x000q\x01a.", b"]q\x00."),
        (b"]q\x00X\x01\x00\x00\x000q\x01a.", b"]q\x00](X\x01\x00\x00\x000X\x01\x00\x00\x000ea."),
        (b"a.\x06\x00\x00\x00", b"a.\x05\x00\x00\x00"),  # the number of elements
        (b"a.\x06\x00\x00\x00", b"a.\xff\xff\xff\xff"),
    ],
)
def test_a_legacy_file_whose_frame_is_wrong_is_refused(old, new, tmp_path):
    path = legacy_file(tmp_path / "model.ckpt", checkpoint())
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    with pytest.raises(UserError):
        open_tensors(path)


# size


def big_zip(path: Path, gigabytes: int) -> int:
    """A checkpoint of 1,600 tensors in as many storages, most of it a hole in the file; returns its size."""
    count = gigabytes * 2**30 // 1600 // 4
    state = b"".join(
        value(f"layer.{n}.weight") + tensor((count,), (1,), of=storage(key=str(n), count=count)) for n in range(1600)
    )
    entries = [("data.pkl", b"\x80\x02}" + value("state_dict") + b"}(" + state + b"us.", 0)]
    entries += [(f"data/{n}", b"", 4 * count) for n in range(1600)]
    directory = b""
    with path.open("wb") as file:
        for short, content, hole in entries:
            name, at, size = f"archive/{short}".encode(), file.tell(), len(content) + hole
            extra = struct.pack("<2H3Q", 1, 24, size, size, at)
            head = struct.pack("<5HI2I", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF)
            directory += b"PK\x01\x02" + struct.pack("<H", 45) + head
            directory += struct.pack("<5H2I", len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF) + name + extra
            file.write(b"PK\x03\x04" + head + struct.pack("<2H", len(name), 0) + name + content)
            file.seek(hole, os.SEEK_CUR)
        begin = file.tell()
        file.write(directory)
        file.write(
            b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, *(len(entries),) * 2, len(directory), begin)
        )
        file.write(b"PK\x06\x07" + struct.pack("<IQI", 0, begin + len(directory), 1))
        file.write(b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
        return file.tell()


LISTING = """
import resource, sys, time
from pathlib import Path
import torch
from controlnet.checkpoints.tensor_file import open_tensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
began = time.process_time()
tensors = open_tensors(Path(sys.argv[1])).tensors
total = sum(tensor.nbytes for tensor in tensors.values())
print(time.process_time() - began, peak() - before, total)
"""


def test_a_file_of_eight_gigabytes_is_listed_in_a_second_of_work_and_little_memory(tmp_path):
    size = big_zip(tmp_path / "v1-5-pruned.ckpt", gigabytes=8)
    printed = subprocess.run(
        [sys.executable, "-c", LISTING, tmp_path / "v1-5-pruned.ckpt"], capture_output=True, text=True, check=True
    )
    seconds, megabytes, total = map(float, printed.stdout.split())
    assert size > total > 7.9 * 2**30
    assert seconds < 1
    assert megabytes < 100
