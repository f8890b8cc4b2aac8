"""The batches of a training, as a function of the step's number; in processes of their own if wished."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from controlnet.training.encoded import Encoded, Reading
from controlnet.training.loss import Draw

# what a process computes of an optimizer step
Share = tuple[Reading, Draw]


@dataclass(frozen=True)
class Place:
    """Which of the processes that train together this one is."""

    rank: int = 0
    ranks: int = 1


ALONE = Place()


class Steps(IterableDataset[Share]):
    """The batches of a training from a step on, for ever: step s holds the same pairs and draws in every run.

    Samples follow one another as `Visits` says, epoch after epoch; a batch may hold the end of one epoch and the
    beginning of the next, so no pair is dropped or seen twice. Nothing is remembered from step to step, so a resume
    needs the step's number alone. `batch_size` counts the pairs of an optimizer step over all processes; of these,
    each process gets the same number, in order.
    """

    def __init__(
        self,
        pairs: Encoded,
        seed: int,
        batch_size: int,
        timesteps: int,
        emptied: float,
        start: int,
        place: Place = ALONE,
    ) -> None:
        self.pairs, self.seed, self.batch_size = pairs, seed, batch_size
        self.timesteps, self.emptied, self.start, self.place = timesteps, emptied, start, place
        self.visits = pairs.visits(seed, batch_size)

    def __iter__(self) -> Iterator[Share]:
        """Of w loader processes the n-th makes every w-th step; the loader takes them in turn, so order stays."""
        worker = get_worker_info()
        step, stride = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        while True:
            yield self[step]
            step += stride

    def __getitem__(self, step: int) -> Share:
        """This process's part of the step."""
        size = self.batch_size // self.place.ranks
        visits = self.visits[step][size * self.place.rank : size * (self.place.rank + 1)]
        epochs, rows = zip(*visits, strict=True)
        keys = [(epoch, self.pairs.samples[row]) for epoch, row in visits]
        draw = Draw.of(self.seed, keys, self.pairs.latent_chw(rows[0]), self.timesteps, self.emptied)
        return self.pairs.read(rows, draw.empties_prompt_b, epochs), draw

    def samples(self, step: int) -> list[int]:
        """All samples of a step, over all processes, as numbered in the data set."""
        return [self.pairs.samples[row] for _, row in self.visits[step]]


def loader(steps: Steps, workers: int) -> DataLoader[Share]:
    """The steps in order, made by `workers` processes ahead of their use; by this one if 0."""
    return DataLoader(
        steps,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it draws a number from the global one
    )


def _as_it_is(share: Any) -> Any:
    return share


def _begin_worker(worker: int) -> None:
    # a signal is for the training, which stops its workers itself once the step is saved
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
