"""The map of the package: imports point one way, and importing does nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import controlnet

ROOT = Path(controlnet.__file__).parent

# right to left of design.md: each part may import those before it; parts of one line do not import each other
LAYERS = (
    {"attention", "images", "winograd"},
    {"control", "speed"},
    {"checkpoints"},
    {"base"},
    {"annotators"},
    {"data"},
    {"generation"},
    {"evaluation"},
    {"training", "build"},
    {"studio"},
    {"cli"},  # its command `studio` opens the web app
)
# what every module may import -> the parts that it may import itself
LEAVES: dict[str, set[str]] = {"errors": set(), "choices": set(), "devices": {"errors"}, "atomic": {"errors"}}
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def allowed(part: str) -> set[str]:
    if part in LEAVES:
        return LEAVES[part]
    below = {other for other, rank in RANK.items() if rank < RANK[part]}
    return below | {part} | LEAVES.keys()


def modules() -> Iterator[Path]:
    yield from (path for path in ROOT.rglob("*.py") if path.parent != ROOT or not path.stem.startswith("__"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(source: str, package: tuple[str, ...]) -> set[str]:
    """The parts of controlnet that `source`, a module of `package`, imports anywhere; "" is the package itself."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            home = ".".join(filter(None, (start, node.module)))
            names |= {f"{home}.{alias.name}" for alias in node.names} if home == "controlnet" else {home}
    ours = (name.split(".") for name in names if name.split(".")[0] == "controlnet")
    return {parts[1] if len(parts) > 1 else "" for parts in ours}


def test_every_module_imports_only_what_stands_to_its_right():
    wrong = []
    for path in modules():
        part = part_of(path)
        package = ("controlnet", *path.relative_to(ROOT).parts[:-1])
        may = allowed(part) | ({"", "__version__"} if part in {"cli", "studio"} else {"__version__"})
        wrong += [f"{path.relative_to(ROOT)} imports {it!r}" for it in imported_parts(path.read_text(), package) - may]
    assert wrong == []


def test_every_part_of_the_package_is_on_the_map():
    assert {part_of(path) for path in modules()} <= RANK.keys() | LEAVES.keys()


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("import controlnet.base", {"base"}),
        ("from controlnet import base", {"base"}),
        ("from controlnet.base import open_base", {"base"}),
        ("from ..base import open_base", {"base"}),
        ("from .loss import denoising_loss", {"training"}),
        ("def f():\n    from controlnet.cli import main", {"cli"}),
        ("import controlnet", {""}),
        ("import controlnet_aux", set()),
    ],
)
def test_the_walk_sees_every_form_of_import(source, parts):
    assert imported_parts(source, ("controlnet", "training")) == parts


def test_training_may_not_import_build_nor_base_import_data():
    assert "build" not in allowed("training")
    assert "data" not in allowed("base")
    assert "base" in allowed("data")


def run_python(source: str) -> str:
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_importing_the_package_loads_only_the_standard_library():
    loaded = run_python(
        "import sys; before = set(sys.modules); import controlnet;"
        "print(*{n.split('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    assert loaded == "controlnet"


def test_importing_every_module_changes_no_environment_and_prints_nothing():
    names = [".".join(("controlnet", *path.relative_to(ROOT).with_suffix("").parts)) for path in modules()]
    names = [name.removesuffix(".__init__") for name in names]
    printed = run_python(
        # what these libraries set on import is theirs; ours must add nothing
        "import torch, diffusers, transformers, lightning, datasets, matplotlib.pyplot, cv2, os, importlib\n"
        "import diffusers.models, transformers.models.clip.modeling_clip\n"
        "before = dict(os.environ), torch.get_num_threads(), torch.initial_seed()\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "after = dict(os.environ), torch.get_num_threads(), torch.initial_seed()\n"
        "assert before == after, set(after[0].items()) ^ set(before[0].items()) or after[1:]"
    )
    assert printed == ""


def test_a_command_starts_without_bitsandbytes_and_can_import_it_later():
    loaded = run_python(
        "import sys\n"
        "from controlnet.cli.common import importing\n"
        "with importing(): import controlnet.generation.production\n"
        "before = {'bitsandbytes', 'torch._inductor.compile_fx'} & set(sys.modules)\n"
        "from bitsandbytes.optim import AdamW8bit\n"
        "print(*before, AdamW8bit.__name__)"
    )
    assert loaded == "AdamW8bit"


def test_every_public_name_resolves():
    assert [name for name in controlnet.__all__ if not hasattr(controlnet, name)] == []


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="open_base"):
        _ = controlnet.open_bass
