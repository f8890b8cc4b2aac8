"""What is no file of weights is named, with what to do about it."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from controlnet.checkpoints.tensor_file import open_tensors
from controlnet.checkpoints.wrong_file import describe
from controlnet.errors import UserError

STATE = {"a": torch.arange(6.0)}


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


def saved(**options: object) -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, **options)
    return file.getvalue()


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, b"")
    return file.getvalue()


def tar(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name in names:
            made.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), file)
    return file.getvalue()


def exported() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), file)
    return file.getvalue()


def numpy_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"6ce01616" * 8 + b"\nsize 4265146304\n"
YAML = b"model:\n  base_learning_rate: 1.0e-04  # Gr\xc3\xb6\xc3\x9fe\n"
FIRST_LAYOUT = ("sys_info", "pickle", "storages", "tensors")
WRONG = {
    "an LFS pointer": (lambda: POINTER, "a Git LFS pointer", "git lfs pull"),
    "a web page": (lambda: b"\n<!DOCTYPE html>\n<html><title>Sign in</title>", "a web page", "log in"),
    "a web page with a mark": (lambda: b"\xef\xbb\xbf<html>", "a web page", "download"),
    "an error in JSON": (lambda: b'{"error":"Invalid username or password."}', "error message of a server", "log in"),
    "an index": (lambda: b'{\n "metadata": {},\n "weight_map": {"a": "b"}}', "several files", "give the folder"),
    "other text": (
        lambda: YAML,
        "a text file",
        "expected weights",
    ),
    "an empty file": (lambda: b"", "an empty file", "again"),
    "zeros": (lambda: bytes(100_000), "only zeros", "again"),
    "a cut safetensors": (lambda: save(STATE)[:-3], "cut off", "again"),
    "a cut safetensors header": (lambda: save(STATE)[:30], "cut off", "again"),
    "a cut zip": (lambda: saved()[:-300], "cut off", "again"),
    "a cut legacy file": (lambda: saved(_use_new_zipfile_serialization=False)[:-3], "cut off", "again"),
    "a cut legacy pickle": (lambda: saved(_use_new_zipfile_serialization=False)[:150], "cut off", "again"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(range(64)), "a 7z archive", "unpack"),
    "RAR": (lambda: b"Rar!\x1a\x07\x01\x00" + bytes(range(64)), "a RAR archive", "unpack"),
    "gzip": (lambda: gzip.compress(saved()), "a gzip archive", "unpack"),
    "tar": (lambda: tar("model/weights.bin"), "a tar archive", "unpack"),
    "torch's first layout": (
        lambda: tar(*FIRST_LAYOUT),
        "first versions of torch",
        "save it anew",
    ),
    "a zip of a folder": (lambda: archive("model/unet/config.json"), "not what torch.save writes", "unpack"),
    "an empty zip": (lambda: archive(), "an empty zip", "again"),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF", "safetensors"),
    "ONNX": (lambda: b"\x08\x07\x12\x07pytorch\x1a\x051.9.0", "an ONNX model", "safetensors"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5", "safetensors"),
    "TensorFlow Lite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite", "safetensors"),
    "numpy": (numpy_array, "a numpy array", "safetensors"),
    "TorchScript": (script, "a TorchScript archive", "state_dict()"),
    "PT2": (exported, "a PT2 archive", "state_dict()"),
    "PNG": (lambda: picture("PNG"), "a PNG picture", "Download the model"),
    "JPEG": (lambda: picture("JPEG"), "a JPEG picture", "Download the model"),
    "WebP": (lambda: picture("WEBP"), "a WebP picture", "Download the model"),
    "another pickle": (lambda: b"\x80\x04\x95" + bytes(8) + b"}.", "a pickle that torch did not write", "torch.save"),
    "noise": (lambda: bytes(range(200, 256)), "of an unknown format", "safetensors"),
    "one byte": (lambda: b"\x80", "of an unknown format", "safetensors"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("kind", WRONG)
def test_the_message_names_the_file_the_cause_and_the_remedy(kind, tmp_path):
    make, cause, remedy = WRONG[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(make())
    with pytest.raises(UserError) as refused:
        open_tensors(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ")
    assert cause in said
    assert remedy in said


def test_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="a folder; expected a file of weights"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["missing.ckpt", "missing/model.ckpt", "a" * 300, "a\0b"])
def test_a_file_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_tensors(tmp_path / name)


@pytest.mark.parametrize("make", [lambda: save(STATE), saved, lambda: saved(_use_new_zipfile_serialization=False)])
def test_weights_are_not_taken_for_anything_else(make, tmp_path):
    (tmp_path / "model").write_bytes(make())
    assert describe(tmp_path / "model") is None
    assert open_tensors(tmp_path / "model").tensors["a"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_header_whose_length_reads_like_a_pickle_is_a_header(tmp_path):
    """640 and 896 begin with the bytes 80 02 and 80 03, as a pickle does."""
    for length in (0x280, 0x380):
        header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(length)
        (tmp_path / "model").write_bytes(length.to_bytes(8, "little") + header + b"\x05")
        assert open_tensors(tmp_path / "model").tensors["a"].tolist() == [5]
