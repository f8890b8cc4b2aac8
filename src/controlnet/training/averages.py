"""The running mean of trained weights (EMA): steadier than the last ones, which still tremble with the last batches."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """The mean of some modules' parameters over the steps; its state is the means, by the parameters' names.

    It forgets with `decay` a step, and faster at first, so that the first weights do not weigh for ever.
    """

    count: Tensor

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__()
        self.trained, self.decay = dict(trained), decay
        for name, parameter in trained.items():
            self.register_buffer(_as_buffer(name), parameter.detach().clone())
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now: after each step."""
        steps = int(self.count) + 1
        decay = min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self.means().values()), [each.detach() for each in self.trained.values()], 1 - decay)
        self.count += 1

    def follow(self, trained: Mapping[str, nn.Parameter], as_now: Callable[[Tensor, nn.Parameter], Tensor]) -> None:
        """Go on with other parameters of the same names; `as_now` brings a mean to the form of its parameter."""
        for name, mean in self.means().items():
            self.register_buffer(_as_buffer(name), as_now(mean, trained[name]))
        self.trained = dict(trained)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the modules have the means for weights. Nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, mean in self.means().items():
            parameter = self.trained[name]
            parameter.data, mean.data = mean.data, parameter.data

    def means(self) -> dict[str, Tensor]:
        """By the parameters' names."""
        return {name: self.get_buffer(_as_buffer(name)) for name in self.trained}


def _as_buffer(name: str) -> str:
    return name.replace(".", "-")  # a buffer's name has no dots
