"""Nothing in the package can run what a file says: no such function is ever called, in no module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import controlnet

ROOT = Path(controlnet.__file__).parent
MODULES = {*("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle"), "shelve", "marshal"}
BUILTINS = {"eval", "exec", "__import__"}
ATTRIBUTES = {"extractall", "unsafe_load", "full_load"}  # of archives: wherever they say; of YAML: any object
TORCH_LOADERS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.export.load"),
    *("torch.serialization.load", "torch.package.PackageImporter"),
}
KEYWORDS = {
    "trust_remote_code": "True",
    "weights_only": "False",
    "allow_pickle": "True",
    "use_safetensors": "False",
    "shell": "True",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(source: str) -> Iterator[str]:
    """What in `source` could run code of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if (node.module or "").split(".")[0] in MODULES:
                yield node.module or ""
            elif node.module == "torch" and "load" in names:
                yield "torch.load"
            elif node.module == "torch.serialization":
                yield "torch.serialization"
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield node.attr
        elif isinstance(node, ast.Attribute) and dotted(node) in TORCH_LOADERS:
            yield dotted(node)
        elif isinstance(node, ast.keyword) and node.arg in KEYWORDS and ast.unparse(node.value) == KEYWORDS[node.arg]:
            yield f"{node.arg}={KEYWORDS[node.arg]}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_nothing_that_runs_what_a_file_says(path):
    assert list(forbidden(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill as d",
        "from pickle import loads",
        "from joblib import load",
        "def f():\n    import marshal",
        "import torch\ntorch.load('x')",
        "import torch\nread = torch.load",
        "from torch import load",
        "from torch import nn, load as read",
        "from torch.serialization import load",
        "import torch\ntorch.jit.load('x')",
        "import torch\ntorch.hub.load('x')",
        "eval('1')",
        "run = exec",
        "__import__('os')",
        "archive.extractall()",
        "kind.from_pretrained(folder, trust_remote_code=True)",
        "read(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_search_finds(source):
    assert len(list(forbidden(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "json.load(file)",
        "import torch\ntorch.save(state, path)\ntorch.compile(model)",
        "re.compile('x')",
        "compile(model)",
        "kind.from_pretrained(folder, use_safetensors=True)",
        "model.load_state_dict(state)",
    ],
)
def test_the_search_leaves_alone(source):
    assert list(forbidden(source)) == []
