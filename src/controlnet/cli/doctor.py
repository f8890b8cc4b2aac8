"""`controlnet doctor`: what this machine has, and what would have to be downloaded."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controlnet.cli.common import size

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = (
    "controlnet torch diffusers transformers accelerate lightning safetensors datasets numpy pillow "
    "opencv-python-headless huggingface_hub tyro"
).split()
EXTRAS = {"gradio": "studio", "ray": "scale", "faiss-cpu": "scale", "tensorboard": "train"}

ASSETS = {"embedded base": "embedded", "circle control": "controls/circle"}


@dataclass(frozen=True)
class Doctor:
    """Versions, devices, memory, instruction sets, caches, weights found, what would be downloaded."""

    def __call__(self) -> None:
        from rich.console import Console

        console = Console()
        for table in (_versions(), _devices(), _memory(), _caches(), _weights(), _downloads()):
            console.print(table)


def _versions() -> "Table":
    rows = [("python", platform.python_version()), ("system", platform.platform())]
    rows += [(name, _version(name) or "missing: install controlnet again") for name in PACKAGES]
    rows += [
        (name, _version(name) or f"not installed: in the clone, pip install '.[{EXTRAS[name]}]'") for name in EXTRAS
    ]
    return _table("Versions", rows)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> "Table":
    import psutil
    import torch

    from controlnet.devices import choose_device, choose_dtype, has_fast_bfloat16

    physical, logical, used = psutil.cpu_count(logical=False), os.cpu_count(), torch.get_num_threads()
    cores = f"{physical} physical, {logical} logical, {used} used by torch"
    chosen = choose_device("auto")
    auto = f"{chosen}, {choose_dtype('auto', chosen)}".replace("torch.", "")
    speed = "fast" if has_fast_bfloat16(chosen) else "not fast"
    rows = [
        ("CPU", _cpu_name()),
        ("cores", cores),
        ("instruction sets", ", ".join(_instruction_sets()) or "none of AVX2, AVX-512, AMX"),
        ("CUDA", "; ".join(_cuda_devices()) or "none"),
        ("MPS", "yes" if torch.backends.mps.is_available() else "none"),
        (
            "auto takes",
            f"{auto}; bfloat16 is {speed} there",
        ),
    ]
    return _table("Devices", rows)


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    from torch import cpu

    present = {
        "AVX2": cpu._is_avx2_supported(),
        "AVX-512": cpu._is_avx512_supported(),
        "AVX-512 bfloat16": cpu._is_avx512_bf16_supported(),
        "AMX": cpu._is_amx_tile_supported(),
    }
    return [name for name, supported in present.items() if supported]


def _cuda_devices() -> list[str]:
    from torch import cuda

    properties = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
    return [f"{each.name}, {size(each.total_memory)}, compute {each.major}.{each.minor}" for each in properties]


def _memory() -> "Table":
    import psutil

    memory, disk = psutil.virtual_memory(), psutil.disk_usage(os.getcwd())
    rows = [
        ("memory", f"{size(memory.available)} free of {size(memory.total)}"),
        ("disk of this folder", f"{size(disk.free)} free of {size(disk.total)}"),
    ]
    return _table("Memory and disk", rows)


def _caches() -> "Table":
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    rows = [(name, _folder(Path(path))) for name, path in (("hub", HF_HUB_CACHE), ("datasets", HF_DATASETS_CACHE))]
    rows.append(("ours", "inside each run's folder; nothing elsewhere"))
    rows.append(
        ("network", "off (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else "used when a hub id is not in the cache")
    )
    return _table("Caches", rows)


def _weights() -> "Table":
    import controlnet
    from controlnet.checkpoints.model_table import MODELS
    from controlnet.checkpoints.models import cached

    assets = Path(controlnet.__file__).parent / "assets"
    rows = [(name, _folder(assets / place)) for name, place in ASSETS.items()]
    rows += [(name, "in the hub cache") for name, model in MODELS.items() if cached(model)]
    return _table("Weights found", rows)


def _downloads() -> "Table":
    from controlnet.checkpoints.model_table import BASES
    from controlnet.checkpoints.models import cached

    missing = [(f"--base {name}", model.about) for name, model in BASES.items() if not (model.file or cached(model))]
    return _table(
        "Would be downloaded when asked for", [*missing, ("--base embedded", "nothing: it is in the package")]
    )


def _folder(path: Path) -> str:
    if not path.is_dir():
        return f"none in {path}"
    return f"{size(_bytes_in(path))} in {path}"


def _bytes_in(path: Path) -> int:
    """Links, of which the hub's cache is full, count once: as the file that they point to."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _table(title: str, rows: Iterable[tuple[str, str]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, min_width=60)
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table
