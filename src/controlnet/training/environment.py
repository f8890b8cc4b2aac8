"""Where a run was made: what may change its last digits, and what one needs to make it again."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from controlnet import __version__

PACKAGES = ("torch", "lightning", "diffusers", "transformers", "safetensors", "numpy", "pillow", "bitsandbytes")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Versions and machine, as JSON has them."""
    versions = {"controlnet": __version__, "python": platform.python_version()}
    return {
        "versions": {**versions, **{name: found for name in PACKAGES if (found := _version(name))}},
        "machine": {
            "system": platform.platform(),
            "device": device.type,
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
