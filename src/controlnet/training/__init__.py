"""Training: the loss as a formula (`loss.py`), the module for any `Trainer` (`module.py`), the run (`run.py`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlnet.training.module import ControlNetModule

__all__ = ["ControlNetModule"]


def __getattr__(name: str) -> Any:
    """`ControlNetModule`, imported on its first use."""
    if name != "ControlNetModule":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from controlnet.training.module import ControlNetModule

    return ControlNetModule
