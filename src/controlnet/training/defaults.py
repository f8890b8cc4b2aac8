"""What a training does where it is not told: for Stable Diffusion as the original does, else for narrow bases."""

from dataclasses import dataclass, replace

from controlnet.base import Base
from controlnet.training.config import TrainConfig

WIDE = 320  # channels of Stable Diffusion's first level


@dataclass(frozen=True)
class Defaults:
    """By the width of the base."""

    learning_rate: float
    train_batch_size: int
    validation_steps: int


STABLE_DIFFUSION = Defaults(1e-5, 4, 300)  # of the original's training script; its logger's frequency
NARROW = Defaults(1e-3, 16, 50)  # by docs/training.md's comparison: control comes at step 40
UNLOCKED_LEARNING_RATE = 2e-6  # the original's advice: with a higher one the base is soon spoilt


def resolved(config: TrainConfig, base: Base) -> TrainConfig:
    """The config with every default of its base's family filled in."""
    default = defaults_of(base)
    learning_rate = config.learning_rate or default.learning_rate
    unlocked = config.learning_rate_unlocked or min(learning_rate, UNLOCKED_LEARNING_RATE)
    return replace(
        config,
        learning_rate=learning_rate,
        learning_rate_unlocked=unlocked if config.sd_unlocked else None,
        train_batch_size=config.train_batch_size or default.train_batch_size,
        validation_steps=config.validation_steps or default.validation_steps,
    )


def defaults_of(base: Base) -> Defaults:
    return STABLE_DIFFUSION if base.unet.config.block_out_channels[0] >= WIDE else NARROW


def with_steps(config: TrainConfig, pairs: int) -> TrainConfig:
    """The resolved config with its steps counted, if it has epochs; the last step ends the last epoch or passes it."""
    if config.num_train_epochs is None:
        return config
    return replace(
        config, num_train_epochs=None, max_train_steps=-(-config.num_train_epochs * pairs // config.pairs_per_step)
    )
