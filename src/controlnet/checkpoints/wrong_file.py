"""Files that are no weights, though their names say so: what they are, and what to do."""

import mmap
import os
import re
from pathlib import Path

from controlnet.checkpoints import pickled, safetensors_file
from controlnet.checkpoints.mapped import AGAIN, BadFile, map_file
from controlnet.checkpoints.zip_directory import read_directory

HEAD = 4096  # bytes that are looked at
SHOWN = 40  # characters of a text

UNPACK = "unpack it and give the file of weights that is in it"
CONVERTED = "expected weights for torch: get the .safetensors, .ckpt, .pth or .bin that it was made from"
PICTURE = "expected weights; was a preview picture saved under the model's name? Download the model itself"
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {UNPACK}"),
    (0, b"Rar!\x1a\x07", f"a RAR archive; {UNPACK}"),
    (0, b"\x1f\x8b", f"a gzip archive; {UNPACK}"),
    (0, b"BZh", f"a bzip2 archive; {UNPACK}"),
    (0, b"\xfd7zXZ\x00", f"an xz archive; {UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"a Zstandard archive; {UNPACK}"),
    (0, b"PK\x05\x06", f"an empty zip archive; {AGAIN}"),
    (0, b"GGUF", f"GGUF, the quantised weights of llama.cpp and its like; {CONVERTED}"),
    (0, b"\x89HDF\r\n\x1a\n", f"HDF5, weights of Keras; {CONVERTED}"),
    (4, b"TFL3", f"a TensorFlow Lite model; {CONVERTED}"),
    (0, b"\x93NUMPY", f"a numpy array; {CONVERTED}"),
    (0, b"\x89PNG", f"a PNG picture; {PICTURE}"),
    (0, b"\xff\xd8\xff", f"a JPEG picture; {PICTURE}"),
    (0, b"GIF8", f"a GIF picture; {PICTURE}"),
    (8, b"WEBP", f"a WebP picture; {PICTURE}"),
    (0, b"%PDF", "a PDF document; expected weights"),
)
TAR_SIGN = slice(257, 262), b"ustar"
TORCH_TAR_NAMES = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")  # the first entry's is at the file's start
ONNX = re.compile(rb"\x08[\x01-\x20]\x12.[\w.-]{3}", re.DOTALL)  # protobuf: version of the format, name of the producer
PICKLE = re.compile(rb"\x80[\x02-\x05]")
TEXTS = (
    (
        re.compile("version https://git-lfs"),
        "a Git LFS pointer, some lines that stand for the file; run `git lfs pull` in its folder or download the file "
        "itself",
    ),
    (
        re.compile("<"),
        "a web page, not the file that it links to; download with the page's download button, or log in where the file "
        "is only for registered users",
    ),
    (
        re.compile('{.*"weight_map"', re.DOTALL),
        "the index of weights in several files; give the folder that it is in, or one of the files",
    ),
    (
        re.compile('{.*"error"', re.DOTALL),
        "the error message of a server in JSON; check the address, log in, and download again",
    ),
    (re.compile(""), "a text file; expected weights"),
)


def describe(path: Path) -> str | None:
    """What the file at `path` is and what to do, if its content shows that it holds no weights that we read, else None.

    A file that begins as weights do, and then is cut off or damaged, is for the readers to tell. UserError if there is
    no such file.
    """
    if os.path.isdir(path):
        return "a folder; expected a file of weights"
    if os.path.isfile(path) and not os.path.getsize(path):
        return f"an empty file, as an interrupted download leaves behind; {AGAIN}"
    mapped = map_file(path)
    if pickled.is_zip(mapped):
        return _describe_zip(mapped)
    if pickled.is_legacy(mapped) or safetensors_file.is_safetensors(mapped):
        return None
    return _describe_head(mapped[:HEAD])


def _describe_head(head: bytes) -> str:
    for offset, sign, what in SIGNATURES:
        if head[offset : offset + len(sign)] == sign:
            return what
    if head[TAR_SIGN[0]] == TAR_SIGN[1]:
        return _describe_tar(head)
    if ONNX.match(head):
        return f"an ONNX model; {CONVERTED}"
    if PICKLE.match(head):
        return "a pickle that torch did not write; expected what torch.save or safetensors wrote"
    if not head.strip(b"\0"):
        return f"only zeros at its start, as a download leaves behind that was interrupted; {AGAIN}"
    return _describe_text(head) or f"of an unknown format (it begins with {head[:8]!r}); {CONVERTED}"


def _describe_tar(head: bytes) -> str:
    if head.startswith(TORCH_TAR_NAMES):
        return "the tar layout of the first versions of torch, not read; load it with one of them and save it anew"
    return f"a tar archive; {UNPACK}"


def _describe_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig", "ignore" if len(head) == HEAD else "strict")  # the end may split a character
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    text = text.strip()
    what = next(what for pattern, what in TEXTS if pattern.match(text))
    return f"{what} (it begins with {text[:SHOWN]!r})"


def _describe_zip(mapped: mmap.mmap) -> str | None:
    try:
        names = {name.partition("/")[2] or name for name in read_directory(mapped)}
    except BadFile as error:
        return str(error)
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return (
            "a TorchScript archive, a program with its weights, which is not read; where it was made, save the model's "
            "state_dict() instead"
        )
    if names & {"archive_format", "archive_version", "serialized_exported_program.json"}:
        return "a PT2 archive of torch.export, a program, which is not read; save the model's state_dict() instead"
    return None
