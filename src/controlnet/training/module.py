"""A ControlNet in training, as Lightning sees it; for our own runs, and for any `Trainer.fit(module, dataloader)`."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from controlnet.base import Base
from controlnet.checkpoints.control_file import ControlMetadata, save_control
from controlnet.control import ControlNet, Prompt, predict
from controlnet.training.averages import Average
from controlnet.training.checkpoint import like
from controlnet.training.computation import checkpoint_gradients
from controlnet.training.convolutions import quicken
from controlnet.training.loss import Batch, Controlled, Draw, denoising_loss
from controlnet.training.optimizers import ADAMW, Optimization
from controlnet.training.pictures import encode_pictures
from controlnet.training.switching import DECODER, adapt
from controlnet.training.weighting import min_snr

Step = tuple[Batch, Draw]


@dataclass(frozen=True)
class Together:
    """A base under a control: noise or velocity (b, c, h, w)."""

    base: Base
    control: ControlNet
    only_mid_control: bool

    def __call__(self, latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, hint_bchw: Tensor) -> Tensor:
        hint_features = self.control.encode_hint(hint_bchw)
        control = self.control(latent_bchw, timestep_b, prompt, hint_features)
        if self.only_mid_control:
            control = control.only_middle()
        decoder = self.base.decoder if self.control.decoder is None else self.control.decoder
        return predict(self.base.encoder, decoder, latent_bchw, timestep_b, prompt, control)


class ControlNetModule(LightningModule):
    """Trains a ControlNet of the base, and the base's decoder if it is unlocked; its state is theirs alone.

    A batch is a `Step`, or what a `DataLoader` makes of a data set whose items have `jpg` (H, W, 3) in [-1, 1], `txt`
    and `hint` (H, W, channels) in [0, 1], as in the original's tutorial.
    """

    def __init__(
        self,
        base: Base,
        optimization: Optimization | float = ADAMW,
        hint_channels: int = 3,
        only_mid_control: bool = False,
        seed: int = 0,
        *,
        control: ControlNet | None = None,
        sd_unlocked: bool = False,
        ema_decay: float = 0.0,
        snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        proportion_empty_prompts: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        """`optimization` may be a learning rate; a `control` is gone on with in place of a new one."""
        super().__init__()
        self.base = base  # no torch module: neither trained, nor moved, nor saved
        self.optimization = Optimization(optimization) if isinstance(optimization, float) else optimization
        self.only_mid_control, self.sd_unlocked, self.seed = only_mid_control, sd_unlocked, seed
        self.noise_offset, self.proportion_empty_prompts = noise_offset, proportion_empty_prompts
        self.weigh = None if snr_gamma is None else min_snr(base.schedule, snr_gamma)
        base.unet.to(memory_format=torch.channels_last)  # same values, faster
        self.control = control or _new_control(base, hint_channels, seed)
        if sd_unlocked:
            self.unlock()
        # trained weights stay float32 whatever the base's precision: small steps would be rounded away
        self.control.to(dtype=torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.control.train()
        quicken(base.unet, self.control)
        require_gradients(self.control, with_decoder=sd_unlocked)
        if gradient_checkpointing:
            checkpoint_gradients(self.control, base.decoder)
        self.average = Average(self.trained(), ema_decay) if ema_decay else None
        self.gather: Callable[[], ControlNet] | None = (
            None  # the control as it is saved, where it lies in many processes
        )

    def unlock(self) -> None:
        """Give the control a decoder of its own, which is used in place of the base's and saved with it."""
        if self.control.decoder is None:
            decoder = copy.deepcopy(self.base.decoder).to(torch.float32)
            self.control.decoder = decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name: the control's parameters, then the unlocked decoder's."""
        return {name: each for name, each in self.control.named_parameters() if each.requires_grad}

    def forward(self, latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, hint_bchw: Tensor) -> Tensor:
        return Together(self.base, self.control, self.only_mid_control)(latent_bchw, timestep_b, prompt, hint_bchw)

    def loss(self, step: Step, model: Controlled | None = None) -> Tensor:
        """Of a batch on the base's device, to train on: weighed, with the noise's offset; `model` is this module."""
        batch, draw = step
        return denoising_loss(model or self, self.base.schedule, batch, draw.offset(self.noise_offset), self.weigh)

    def training_step(self, step: Any, index: int) -> Any:
        loss = self.loss(step)
        self.log("loss", loss, prog_bar=True, batch_size=len(step[1].timestep_b))
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Pictures are encoded on the way; the draws of the n-th batch are the n-th, whatever the order of the data."""
        if isinstance(batch, Mapping):
            number, count = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1, len(batch["txt"])
            first = count * self.trainer.global_rank
            batch = encode_pictures(self.base, batch, self.seed, number, first, self.proportion_empty_prompts)
        return tuple(part.to(device) for part in batch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        control, decoder = (
            [each for name, each in self.trained().items() if name.startswith("decoder.") == is_decoder]
            for is_decoder in (False, True)
        )
        optimizer = self.optimization.optimizer(control, decoder)
        if self.average is not None:
            average = self.average
            optimizer.register_step_post_hook(lambda *_: average.update())
        rates = self.optimization.rates(optimizer, self.step_count)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def step_count(self) -> int:
        """Of the whole training, for the learning rate: Lightning's own estimate where it is told epochs."""
        steps: int = self.trainer.max_steps
        return steps if steps > 0 else int(self.trainer.estimated_stepping_batches)

    @contextmanager
    def as_saved(self) -> Iterator[Together]:
        """With the control that is saved and used: the mean of its weights, if there is one.

        Of processes that share the weights out all must ask; the first alone gets what can be used.
        """
        if self.gather is not None:
            yield Together(self.base, self.gather(), self.only_mid_control)
            return
        with self.average.in_place() if self.average is not None else nullcontext():
            yield Together(self.base, self.control, self.only_mid_control)

    def save(self, path: Path | str, condition: str, **others: Any) -> None:
        """The control as a file of ours; `others` are fields of `ControlMetadata`, such as the hints' polarity."""
        with self.as_saved() as saved:
            save_control(Path(path), saved.control, ControlMetadata.of(self.base, saved.control, condition, **others))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run may be unlocked, or locked again: see `switching`."""
        if any(name.startswith(DECODER) for name in checkpoint["state_dict"]):
            self.unlock()
            require_gradients(self.control, self.sd_unlocked)
        adapt(checkpoint, self.state_dict(), self.configure_optimizers())

    def on_train_start(self) -> None:
        """Give optimizer state that came from a file the memory layout of its parameters."""
        (optimizer,) = self.trainer.optimizers
        for parameter, state in optimizer.state.items():
            state.update({name: like(parameter, x) for name, x in state.items() if isinstance(x, Tensor)})


def _new_control(base: Base, hint_channels: int, seed: int) -> ControlNet:
    """Silent. Its hint encoder is born random: the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ControlNet.from_base(base.unet, hint_channels)


def require_gradients(control: ControlNet, with_decoder: bool) -> None:
    """Train all of a control; of a decoder of its own what the original trains, or nothing."""
    control.requires_grad_(True)
    if control.decoder is not None:
        control.decoder.requires_grad_(False)
        for parameter in control.decoder.trainable_parameters() if with_decoder else ():
            parameter.requires_grad_(True)
