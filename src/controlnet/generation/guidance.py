"""Classifier-free guidance, as a function of what it guides.

Shapes: b batch, c channels, h w latent size.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from controlnet.control import Prompt
from controlnet.generation.sampling import Denoise
from controlnet.generation.steps import WHOLE, OverSteps, at_each, is_within

# (latent (b, c, h, w) float32, timestep (), number of the step, prompts of one side or of both, the positive one last)
# -> predictions of all sides, (b or 2 b, c, h, w)
Predict = Callable[[Tensor, Tensor, int, Prompt], Tensor]


def guidance_scales(scale: OverSteps, count: int, interval: tuple[float, float] = WHOLE) -> list[float]:
    """The scale at each of `count` steps: 1, which is no guidance, outside the interval.

    The interval is in fractions of the steps (Kynkäänniemi et al. 2024, arXiv:2404.07724, has it in noise levels).
    """
    scales = at_each(scale, count)
    return [each if is_within(index, count, interval) else 1.0 for index, each in enumerate(scales)]


def guided(predict: Predict, negative: Prompt, positive: Prompt, scales: Sequence[float]) -> Denoise:
    """Away from the negative prompt, by the step's scale times the way to the positive one (Ho and Salimans 2022).

    Both go through the base as one batch, the negative half first. At scale 1 the negative prompt has no say and is
    not run.
    """
    both = Prompt.cat([negative, positive])

    def denoise(latent_bchw: Tensor, timestep: Tensor, step: int) -> Tensor:
        if scales[step] == 1.0:
            return predict(latent_bchw, timestep, step, positive)
        away_bchw, towards_bchw = predict(latent_bchw, timestep, step, both).chunk(2)
        return away_bchw + scales[step] * (towards_bchw - away_bchw)

    return denoise
