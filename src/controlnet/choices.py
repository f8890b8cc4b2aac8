"""Options that several commands share. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Any, Literal

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, kw_only=True)
class BaseChoice:
    """Which base, and what its file may not tell: inherited by the options of every command that opens one."""

    base: str = "embedded"
    """The base: embedded, a folder in diffusers layout, a single file (.safetensors, .ckpt), a hub id, or a name of
    `controlnet models list`."""
    ema: bool = False
    """Take the averaged weights of a single file that has both."""
    tokenizer: str | None = None
    """Folder of the tokenizer, for a single file; by default that of its family in the hub's cache."""
    prediction: Prediction | None = None
    """What the base predicts, for a single file of SD 2.x that does not say."""

    def how_to_open(self) -> dict[str, Any]:
        """Keyword arguments of `open_base`, beside device and precision."""
        return {"source": self.base, "ema": self.ema, "tokenizer": self.tokenizer, "prediction": self.prediction}
