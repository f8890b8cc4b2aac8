"""Pairs of picture, hint and prompt: drawn, read, checked, ordered."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlnet.data.pairs import Pairs

__all__ = ["Pairs"]


def __getattr__(name: str) -> Any:
    """`controlnet.data.Pairs`, imported on first use: who wants colours alone loads no decoder."""
    if name != "Pairs":
        raise AttributeError(f"module 'controlnet.data' has no attribute {name!r}; it offers Pairs")
    from controlnet.data.pairs import Pairs

    return Pairs
