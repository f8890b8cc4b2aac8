"""Pickles that were made to do harm: none of them gets anything run, imported or allocated.

Every way that a pickle has to call something, times every function that it would like to call, in both layouts.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from controlnet.checkpoints.pickled_values import CONTAINERS, Placeholder
from controlnet.checkpoints.tensor_file import open_tensors
from controlnet.errors import UserError
from torch_files import FILES, checkpoint, legacy_file, named, tensor, value, zip_file

CANARY = "canary_of_the_hostile_pickles"  # a module that leaves the marker when it is imported
MARKER = "marker"  # the file that a payload makes in the current folder
SCRIPT = f"open({MARKER!r}, 'w')"
INNER = named("os", "mkdir") + value((MARKER,)) + b"R."  # a pickle in a pickle

# what a stranger would like to have called, each of which leaves the marker
PAYLOADS: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "os.system": ("os", "system", (f"touch {MARKER}",)),
    "posix.system": ("posix", "system", (f"touch {MARKER}",)),
    "os.mkdir": ("os", "mkdir", (MARKER,)),
    "os.popen": ("os", "popen", (f"touch {MARKER}",)),
    "subprocess.Popen": ("subprocess", "Popen", (["touch", MARKER],)),
    "subprocess.getoutput": ("subprocess", "getoutput", (f"touch {MARKER}",)),
    "exec": ("builtins", "exec", (SCRIPT,)),
    "eval": ("builtins", "eval", (SCRIPT,)),
    "eval of Python 2": ("__builtin__", "eval", (SCRIPT,)),
    "open": ("builtins", "open", (MARKER, "w")),
    "io.FileIO": ("_io", "FileIO", (MARKER, "w")),
    "codecs.open": ("codecs", "open", (MARKER, "w")),
    "import": ("builtins", "__import__", (CANARY,)),
    "import_module": ("importlib", "import_module", (CANARY,)),
    "resolve_name": ("pkgutil", "resolve_name", (f"{CANARY}:Canary",)),
    "a class of a module": (CANARY, "Canary", ()),
    "a dotted name": ("pathlib", "os.mkdir", (MARKER,)),
    "runpy": ("runpy", "run_module", (CANARY,)),
    "timeit": ("timeit", "timeit", ("pass", SCRIPT)),
    "cProfile": ("cProfile", "run", (SCRIPT,)),
    "pickle in pickle": ("_pickle", "loads", (INNER,)),
    "torch.load": ("torch.storage", "_load_from_bytes", (INNER,)),
    "torch.hub": ("torch.hub", "load", (".", "model", "local")),
    "torch.classes": ("torch.ops", "load_library", (MARKER,)),
    "numpy": ("numpy.testing._private.utils", "runstring", (SCRIPT, {})),
    "webbrowser": ("webbrowser", "open", (MARKER,)),
    "shutil": ("shutil", "copy", (f"{CANARY}.py", MARKER)),
    "ctypes": ("ctypes", "CDLL", (MARKER,)),
}
UNPROVED = {"torch.load", "torch.hub", "torch.classes", "webbrowser", "ctypes"}  # slow, or need a display or a library


def reduced(module: str, name: str, arguments: tuple[object, ...]) -> bytes:
    return named(module, name) + value(arguments) + b"R"


def by_stack(module: str, name: str) -> bytes:
    return value(module) + value(name) + b"\x93"


# every way to have something called; each gives the instructions that push the result
WAYS = {
    "reduce": reduced,
    "reduce by text": lambda module, name, arguments: named(module, name) + b"p7\n0g7\n" + value(arguments) + b"R",
    "stack_global": lambda module, name, arguments: by_stack(module, name) + value(arguments) + b"R",
    "memoised parts": lambda module, name, arguments: (
        value(module) + b"\x940" + value(name) + b"\x940h\x00h\x01\x93" + value(arguments) + b"R"
    ),
    "inst": lambda module, name, arguments: b"(" + b"".join(map(value, arguments)) + f"i{module}\n{name}\n".encode(),
    "obj": lambda module, name, arguments: b"(" + named(module, name) + b"".join(map(value, arguments)) + b"o",
    "newobj": lambda module, name, arguments: named(module, name) + value(arguments) + b"\x81",
    "newobj_ex": lambda module, name, arguments: named(module, name) + value(arguments) + b"}\x92",
    "build": lambda module, name, arguments: reduced(module, name, arguments) + value({"state": 1}) + b"b",
    "build with slots": lambda module, name, arguments: (
        reduced(module, name, arguments) + b"N" + value({"__class__": 1}) + b"\x86b"
    ),
    "popped afterwards": lambda module, name, arguments: reduced(module, name, arguments) + b"0N",
    "through the copy registry": lambda module, name, arguments: (
        named("copyreg", "__newobj__") + b"(" + named(module, name) + b"".join(map(value, arguments)) + b"tR"
    ),
    "getattr chain": lambda module, name, arguments: (
        named("builtins", "getattr")
        + reduced("importlib", "import_module", (module,))
        + value(name)
        + b"\x86R"
        + value(arguments)
        + b"R"
    ),
    "resolve_name chain": lambda module, name, arguments: (
        reduced("pkgutil", "resolve_name", (f"{module}:{name}",)) + value(arguments) + b"R"
    ),
    "as the argument of a known function": lambda module, name, arguments: (
        named("collections", "OrderedDict") + b"](" + value("key") + reduced(module, name, arguments) + b"\x86e\x85R"
    ),
    "as a key": lambda module, name, arguments: b"}" + reduced(module, name, arguments) + b"Ns",
    "in a set": lambda module, name, arguments: b"\x8f(" + reduced(module, name, arguments) + b"\x90",
    "append to the result": lambda module, name, arguments: reduced(module, name, arguments) + b"(K\x01K\x02e",
    "items of the result": lambda module, name, arguments: reduced(module, name, arguments) + b"(K\x01K\x02u",
}
NEED_A_CLASS = {"newobj", "newobj_ex", "through the copy registry"}
INERT = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Tensor, Placeholder, *CONTAINERS)
FORBIDDEN_EVENTS = ("import", "exec", "compile", "os.", "subprocess.", "shutil.", "ctypes.", "webbrowser.", "socket.")
events: list[str] | None = None  # while something is watched


def watch(event: str, arguments: tuple[object, ...]) -> None:
    writes = event == "open" and arguments[1] not in ("r", "rb")
    if events is not None and (writes or event.startswith(FORBIDDEN_EVENTS)):
        events.append(f"{event} {arguments}"[:200])


sys.addaudithook(watch)  # for as long as the process lives


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Nothing is imported, run or written meanwhile."""
    global events
    modules, events = set(sys.modules), []
    try:
        yield
        assert events == []
        assert set(sys.modules) - modules == set()
        assert not Path(MARKER).exists()
    finally:
        events = None


@pytest.fixture(autouse=True)
def _canary_in_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_canary(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(autouse=True, scope="module")
def _all_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What torch and Python import when they make their first tensor and text is none of a file's doing."""
    for layout, make in FILES.items():
        pickled = checkpoint(text=b"Vtext\n", quoted=b"S'text'\n", zero=b"I00\n")
        assert open_tensors(make(tmp_path_factory.mktemp(layout) / "model.ckpt", pickled)).tensors


def write_canary(folder: Path) -> None:
    (folder / f"{CANARY}.py").write_text(f"open({MARKER!r}, 'w').close()\nclass Canary:\n    pass\n")


def outcome(path: Path) -> dict[str, object] | str:
    """What stands beside the tensors, or what the refusal says; any other error is a bug."""
    with nothing_happens():
        try:
            return dict(open_tensors(path).others)
        except UserError as error:
            return str(error)


def is_inert(top: object) -> bool:
    waiting = [top]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, INERT):
            return False
        waiting += (*each, *each.values()) if isinstance(each, dict) else each if isinstance(each, CONTAINERS) else ()
    return True


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_beside_the_weights_stays_inert(payload, layout):
    for way, instructions in WAYS.items():
        pickled = checkpoint(callbacks=instructions(*PAYLOADS[payload]))
        found = outcome(FILES[layout](Path("model.ckpt"), pickled))
        assert isinstance(found, dict), (way, found)
        assert is_inert(found), way


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"popped afterwards", "as a key", "in a set"}))
def test_a_payload_in_the_place_of_a_weight_is_refused_by_name(way, layout):
    for payload in PAYLOADS.values():
        state = b"}" + value("good") + tensor() + b"s" + value("bad") + WAYS[way](*payload) + b"s"
        pickled = b"\x80\x02}" + value("state_dict") + state + b"s."
        found = outcome(FILES[layout](Path("model.ckpt"), pickled))
        if way == "as the argument of a known function":
            assert isinstance(found, dict)  # a dictionary in a dictionary: not a weight, and set apart
        else:
            assert "'bad' is an object of" in found
            assert "expected a dense tensor" in found


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("way", WAYS)
def test_a_payload_as_the_whole_file_is_refused(way, layout):
    for payload in PAYLOADS.values():
        found = outcome(FILES[layout](Path("model.ckpt"), b"\x80\x04" + WAYS[way](*payload) + b"."))
        assert isinstance(found, str)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("way", WAYS)
def test_a_payload_before_the_cut_of_a_truncated_file_has_run_nothing(way, layout):
    for payload in PAYLOADS.values():
        pickled = checkpoint(callbacks=WAYS[way](*payload), more=value("more"))
        found = outcome(FILES[layout](Path("model.ckpt"), pickled[:-3]))
        assert "its pickle is" in found


def test_a_payload_in_any_of_the_legacy_pickles_is_refused():
    whole = legacy_file(Path("model.ckpt"), checkpoint()).read_bytes()
    ends = [found.start() for found in re.finditer(rb"\.\x80\x02", whole)]
    assert len(ends) == 4
    for end in ends:
        for instead in (reduced(*PAYLOADS["os.mkdir"]), tensor()):
            for hostile in (b"0" + instead, b".\x80\x02" + instead):  # in the place of its value, or one pickle more
                Path("model.ckpt").write_bytes(whole[:end] + hostile + whole[end:])
                assert isinstance(outcome(Path("model.ckpt")), str)


def test_a_persistent_id_calls_nothing_either():
    for payload in PAYLOADS.values():
        for way in WAYS.values():
            for said in (way(*payload) + b"Q", b"(" + value("storage") + way(*payload) + b"tQ"):
                assert isinstance(outcome(zip_file(Path("model.ckpt"), checkpoint(it=said))), (dict, str))


STOCK = f"""
import os, pickle, sys
from pathlib import Path
for number, path in enumerate(sorted(Path(".").glob("*.pkl"), key=lambda path: int(path.stem))):
    content = path.read_bytes()
    home = Path.cwd()
    os.chdir(path.stem)
    sys.modules.pop({CANARY!r}, None)
    for protocol in (2, 4):
        try:
            pickle.loads(bytes([0x80, protocol]) + content)
        except Exception:
            pass
    os.chdir(home)
"""


def marked_by_the_stock_pickle(pickles: dict[str, bytes], folder: Path) -> set[str]:
    """The names of those which leave the marker when Python's own pickle reads them."""
    for number, content in enumerate(pickles.values()):
        (folder / str(number)).mkdir()
        write_canary(folder / str(number))
        (folder / f"{number}.pkl").write_bytes(content)
    subprocess.run([sys.executable, "-c", STOCK], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, check=True)
    return {name for number, name in enumerate(pickles) if (folder / str(number) / MARKER).exists()}


def test_the_payloads_are_real(tmp_path):
    """Else these tests would show nothing."""
    pickles = {name: reduced(*payload) + b"." for name, payload in PAYLOADS.items() if name not in UNPROVED}
    assert marked_by_the_stock_pickle(pickles, tmp_path) == pickles.keys()


def test_the_ways_are_real(tmp_path):
    payloads = {way: PAYLOADS["a class of a module" if way in NEED_A_CLASS else "os.mkdir"] for way in WAYS}
    pickles = {name: way(*payloads[name]) + b"." for name, way in WAYS.items()}
    assert marked_by_the_stock_pickle(pickles, tmp_path) == WAYS.keys()
