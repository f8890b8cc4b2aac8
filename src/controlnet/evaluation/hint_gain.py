"""Hint gain: does the true hint help to denoise? The one measure of control that needs no annotator."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class HintGain:
    """Held-out losses with the true hints and with other samples' hints."""

    loss: float
    loss_with_others: float

    @property
    def gain(self) -> float:
        """Relative drop of the loss by the true hint: 0 when hints are not heard, towards 1 as they tell all."""
        return (self.loss_with_others - self.loss) / self.loss_with_others


def hint_gain(loss_with: Callable[[Tensor], float], hint_bchw: Tensor) -> HintGain:
    """Hint gain of held-out samples with these hints; `loss_with` must use the same noise and timesteps each time."""
    return HintGain(loss_with(hint_bchw), loss_with(hint_bchw.roll(1, dims=0)))
