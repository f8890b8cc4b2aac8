"""What a run's module is made with, from the options: a new control or one to go on with, and how it is trained."""

from typing import Any

import torch

from controlnet.base import Base
from controlnet.checkpoints.control_file import load_control
from controlnet.errors import UserError
from controlnet.training.config import TrainConfig
from controlnet.training.optimizers import Optimization


def module_options(config: TrainConfig, base: Base, hint_channels: int) -> dict[str, Any]:
    """For `ControlNetModule`, of a resolved config. UserError if --control does not fit base and hints."""
    options: dict[str, Any] = {
        "optimization": Optimization.of(config, config.pairs_per_step),
        "hint_channels": hint_channels,
        "only_mid_control": config.only_mid_control,
        "seed": config.seed,
        "sd_unlocked": config.sd_unlocked,
        "ema_decay": config.ema_decay,
        "snr_gamma": config.snr_gamma,
        "noise_offset": config.noise_offset,
        "gradient_checkpointing": config.gradient_checkpointing,
    }
    if config.control is None:
        return options
    control, metadata = load_control(config.control, base, dtype=torch.float32)
    if metadata.hint_channels != hint_channels:
        raise UserError(
            f"--control {config.control} takes hints of {metadata.hint_channels} channels, those of the data have "
            f"{hint_channels}; expected as many"
        )
    return {**options, "control": control}
