"""How much a sample's error counts, by its timestep: off by default, as in the original."""

from collections.abc import Callable

from torch import Tensor

from controlnet.base import Schedule

Weigh = Callable[[Tensor], Tensor]  # timesteps (b,) -> weights (b,), float32


def min_snr(schedule: Schedule, gamma: float) -> Weigh:
    """min(SNR, gamma) in terms of the clean picture's error (Hang et al. 2023, section 3.4).

    The error of predicted noise is that of the picture times SNR, that of predicted velocity times SNR + 1.
    """

    def weigh(timestep_b: Tensor) -> Tensor:
        alpha = schedule.alphas_cumprod.to(timestep_b.device)[timestep_b]
        snr = alpha / (1 - alpha)
        per_error = snr + 1 if schedule.prediction_type == "v_prediction" else snr
        return snr.clamp(max=gamma) / per_error

    return weigh
