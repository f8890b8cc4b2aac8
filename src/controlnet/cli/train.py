"""`controlnet train`: attach a ControlNet to a base and train it; the same command again continues."""

from dataclasses import dataclass

from controlnet.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a ControlNet on pairs of picture, hint and prompt; the same command again continues where it stopped."""

    def __call__(self) -> None:
        from controlnet.training.run import train

        trained = train(self)
        print(trained.control)
