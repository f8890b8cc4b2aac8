"""A ControlNet in training, as Lightning sees it: the loss, the optimizer, and the endless stream of batches."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from controlnet.base import Base
from controlnet.control import ControlNet, Prompt, predict
from controlnet.data.order import order
from controlnet.training.cache import Encoded
from controlnet.training.checkpoint import like
from controlnet.training.loss import Batch, Draw, denoising_loss

Step = tuple[Batch, Draw]

# share of the learning rate, by the share of the steps that is done
LR_SCHEDULERS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: max(0.0, 1 - done),
    "cosine": lambda done: (1 + math.cos(math.pi * min(1.0, done))) / 2,
}


class ControlNetModule(LightningModule):
    """Trains `control`, a silent ControlNet of the base; its state is the control's alone, for the base is locked."""

    def __init__(
        self,
        base: Base,
        learning_rate: float,
        hint_channels: int = 3,
        only_mid_control: bool = False,
        seed: int = 0,
        lr_scheduler: str = "constant",
    ) -> None:
        super().__init__()
        self.base = base  # no torch module: neither trained, nor moved, nor saved
        self.learning_rate, self.lr_scheduler = learning_rate, lr_scheduler
        self.only_mid_control = only_mid_control
        base.unet.to(memory_format=torch.channels_last)  # same values, faster
        # trained weights stay float32 whatever the base's precision: small steps would be rounded away
        with torch.random.fork_rng(devices=[]):  # the hint encoder is born random: the same for the same seed
            torch.manual_seed(seed)
            control = ControlNet.from_base(base.unet, hint_channels)
        self.control = control.to(dtype=torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, hint_bchw: Tensor) -> Tensor:
        """Base and control together: noise or velocity (b, c, h, w)."""
        hint_features = self.control.encode_hint(hint_bchw)
        control = self.control(latent_bchw, timestep_b, prompt, hint_features)
        if self.only_mid_control:
            control = control.only_middle()
        return predict(self.base.encoder, self.base.decoder, latent_bchw, timestep_b, prompt, control)

    def loss(self, step: Step) -> Tensor:
        batch, draw = step
        return denoising_loss(self, self.base.schedule, batch, draw)

    def training_step(self, step: Step, index: int) -> Tensor:
        return self.loss(step)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.AdamW(self.control.parameters(), lr=self.learning_rate, fused=True)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def _share_of_rate(self, step: int) -> float:
        return LR_SCHEDULERS[self.lr_scheduler](step / self.trainer.max_steps)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return tuple(part.to(device) for part in batch)

    def on_train_start(self) -> None:
        """Give optimizer state that came from a file the memory layout of its parameters."""
        (optimizer,) = self.trainer.optimizers
        for parameter, state in optimizer.state.items():
            state.update({name: like(parameter, x) for name, x in state.items()})


class Steps:
    """The batches of a training from a step on, for ever: step s holds the same pairs and draws in every run.

    Samples follow one another as epoch after epoch of `order(seed, epoch)`; a batch may hold the end of one epoch and
    the beginning of the next, so no pair is dropped or seen twice. Nothing is remembered from step to step, so a
    resume needs the step's number alone.
    """

    def __init__(self, pairs: Encoded, seed: int, batch_size: int, timesteps: int, emptied: float, start: int) -> None:
        self.pairs, self.seed, self.batch_size = pairs, seed, batch_size
        self.timesteps, self.emptied, self.start = timesteps, emptied, start
        self._order = (-1, order(seed, 0, len(pairs)))

    def __iter__(self) -> Iterator[Step]:
        step = self.start
        while True:
            yield self[step]
            step += 1

    def __getitem__(self, step: int) -> Step:
        visits = [self.visit(step * self.batch_size + place) for place in range(self.batch_size)]
        keys = [(epoch, self.pairs.samples[row]) for epoch, row in visits]
        draw = Draw.of(self.seed, keys, self.pairs.mean_nchw.shape[1:], self.timesteps, self.emptied)
        return self.pairs.batch([row for _, row in visits], draw.empties_prompt_b), draw

    def visit(self, position: int) -> tuple[int, int]:
        """(epoch, row) of the position-th visit of the training."""
        epoch, place = divmod(position, len(self.pairs))
        if self._order[0] != epoch:
            self._order = (epoch, order(self.seed, epoch, len(self.pairs)))
        return epoch, int(self._order[1][place])
