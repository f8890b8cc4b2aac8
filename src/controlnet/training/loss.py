"""What a ControlNet is trained to do, as a formula (Zhang et al. 2023, Eq. 5).

Everything random in it is a value, `Draw`, keyed by (seed, epoch, sample): a sample meets the same noise in whatever
batch, on whatever worker, and after a resume.

Shapes: b batch, c channels, h w latent size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from controlnet.base import Schedule
from controlnet.control import Prompt
from controlnet.data.order import sample_generator
from controlnet.training.weighting import Weigh

# (noisy latent, timestep, prompt, hint) -> prediction of noise or velocity, like the latent
Controlled = Callable[[Tensor, Tensor, Prompt, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Encoded pairs: the VAE's posterior, scaled, as mean and deviation; hints (b, c, 8h, 8w) in [0, 1]."""

    mean_bchw: Tensor
    deviation_bchw: Tensor
    prompt: Prompt
    hint_bchw: Tensor

    def __getitem__(self, part: slice) -> "Batch":
        return Batch(self.mean_bchw[part], self.deviation_bchw[part], self.prompt[part], self.hint_bchw[part])

    def with_hints(self, hint_bchw: Tensor) -> "Batch":
        return replace(self, hint_bchw=hint_bchw)

    def to(self, device: torch.device) -> "Batch":
        prompt = self.prompt.to(device, self.prompt.context_btd.dtype)
        return Batch(self.mean_bchw.to(device), self.deviation_bchw.to(device), prompt, self.hint_bchw.to(device))


@dataclass(frozen=True)
class Draw:
    """All that is random for a batch."""

    timestep_b: Tensor
    noise_bchw: Tensor
    posterior_noise_bchw: Tensor
    empties_prompt_b: Tensor  # bool: who hears the empty prompt instead of its own
    channel_noise_bc11: Tensor  # for a noise offset

    @classmethod
    def of(
        cls, seed: int, samples: Sequence[tuple[int, int]], latent_chw: Sequence[int], timesteps: int, emptied: float
    ) -> "Draw":
        """The draws of these (epoch, sample), on the CPU; each in [0, timesteps), emptied with this probability."""
        drawn = [_draw_one(sample_generator(seed, *sample), latent_chw, timesteps, emptied) for sample in samples]
        return cls(*(torch.stack(values) for values in zip(*drawn, strict=True)))

    def at(self, timestep_b: Tensor) -> "Draw":
        """The same noise at other timesteps."""
        return replace(self, timestep_b=timestep_b)

    def offset(self, strength: float) -> "Draw":
        """With noise that is alike over each channel added to the noise."""
        return replace(self, noise_bchw=self.noise_bchw + strength * self.channel_noise_bc11) if strength else self

    def __getitem__(self, part: slice) -> "Draw":
        return self._map(lambda tensor: tensor[part])

    def to(self, device: torch.device) -> "Draw":
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Draw":
        return Draw(*(change(getattr(self, field.name)) for field in fields(self)))


def denoising_loss(
    model: Controlled, schedule: Schedule, batch: Batch, draw: Draw, weigh: Weigh | None = None
) -> Tensor:
    """E || target - model(z_t, t, prompt, hint) ||^2 (Zhang et al. 2023, Eq. 5); the target is noise or velocity.

    `weigh`, if given, says how much each sample's error counts, by its timestep.
    """
    latent_bchw = batch.mean_bchw + batch.deviation_bchw * draw.posterior_noise_bchw
    noisy_bchw = schedule.add_noise(latent_bchw, draw.noise_bchw, draw.timestep_b)
    prediction_bchw = model(noisy_bchw, draw.timestep_b, batch.prompt, batch.hint_bchw)
    if schedule.prediction_type == "v_prediction":
        target_bchw = schedule.velocity(latent_bchw, draw.noise_bchw, draw.timestep_b)
    else:
        target_bchw = draw.noise_bchw
    if weigh is not None:
        scale_b111 = weigh(draw.timestep_b).sqrt()[:, None, None, None]
        prediction_bchw, target_bchw = scale_b111 * prediction_bchw, scale_b111 * target_bchw
    return mse_loss(prediction_bchw.float(), target_bchw)


def _draw_one(
    generator: torch.Generator, latent_chw: Sequence[int], timesteps: int, emptied: float
) -> tuple[Tensor, ...]:
    """In this order for ever: another order is another training run."""
    timestep = torch.randint(timesteps, (), generator=generator)
    coin = torch.rand((), generator=generator)
    noise, posterior_noise = (torch.randn(tuple(latent_chw), generator=generator) for _ in range(2))
    channel_noise = torch.randn((latent_chw[0], 1, 1), generator=generator)
    return timestep, noise, posterior_noise, coin < emptied, channel_noise
