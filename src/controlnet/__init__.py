"""A ControlNet to train, to use and to read: the public names, each resolved on its first use.

Importing this package loads nothing else: no torch, no device, no download.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlnet.base import Base, open_base
    from controlnet.checkpoints.control_file import load_control, save_control
    from controlnet.control import ControlNet, Decoder, Encoder, Features, HintEncoder, Prompt
    from controlnet.data.pairs import Pairs
    from controlnet.errors import UserError
    from controlnet.generation.lora import load_lora
    from controlnet.generation.memory import Memory
    from controlnet.generation.pipeline import generate
    from controlnet.generation.result import Result
    from controlnet.generation.settings import Settings
    from controlnet.generation.unit import Unit
    from controlnet.training.config import TrainConfig
    from controlnet.training.run import train

__version__ = "0.1.0"

_HOME_OF = {
    "Base": "controlnet.base",
    "ControlNet": "controlnet.control",
    "Decoder": "controlnet.control",
    "Encoder": "controlnet.control",
    "Features": "controlnet.control",
    "HintEncoder": "controlnet.control",
    "Memory": "controlnet.generation.memory",
    "Pairs": "controlnet.data.pairs",
    "Prompt": "controlnet.control",
    "Result": "controlnet.generation.result",
    "Settings": "controlnet.generation.settings",
    "TrainConfig": "controlnet.training.config",
    "Unit": "controlnet.generation.unit",
    "UserError": "controlnet.errors",
    "generate": "controlnet.generation.pipeline",
    "load_control": "controlnet.checkpoints.control_file",
    "load_lora": "controlnet.generation.lora",
    "open_base": "controlnet.base",
    "save_control": "controlnet.checkpoints.control_file",
    "train": "controlnet.training.run",
}

__all__ = [
    "Base",
    "ControlNet",
    "Decoder",
    "Encoder",
    "Features",
    "HintEncoder",
    "Memory",
    "Pairs",
    "Prompt",
    "Result",
    "Settings",
    "TrainConfig",
    "Unit",
    "UserError",
    "__version__",
    "generate",
    "load_control",
    "load_lora",
    "open_base",
    "save_control",
    "train",
]


def __getattr__(name: str) -> Any:
    """The public name, imported from its home on first use; AttributeError for any other."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'controlnet' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
