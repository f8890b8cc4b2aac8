"""Many processes that train together: who this one is, and what they must agree on.

Started by torchrun or SLURM, or by Lightning when a command asks for several devices. Each process has the whole
model; gradients are summed once a step, after all its micro-batches, so that a process that has to repeat some of them
(out of memory) keeps the others waiting but never out of step. `sharding.py` is the other way.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from controlnet.errors import UserError
from controlnet.training.steps import Place

TIMEOUT = timedelta(minutes=30)  # a process that is silent for so long is lost: validations take less
PREPARATION = timedelta(days=7)  # the first process may encode millions of pictures before the others begin
BUCKET = 64 * 2**20  # bytes of gradients that travel together
LOST = (
    "another process of this training has ended or cannot be reached; it tells why, if it could. Run the same command "
    "again to go on from the last checkpoint"
)
WATCHED_EVERY = 1.0  # seconds


@dataclass
class Ranks:
    """The processes of a training, of which this is number `place.rank`."""

    place: Place
    devices: int
    """Processes on this machine."""
    nodes: int
    local_rank: int
    is_external: bool
    """Whether torchrun or SLURM started them; else Lightning does, from the first, once that calls `fit`."""
    is_fsdp: bool = False
    """Whether many would share the trained weights out, in place of each having all of them."""
    _talk: Any = field(default=None, init=False)

    @classmethod
    def find(cls, devices: int, nodes: int, strategy: str = "auto") -> "Ranks":
        """From what torchrun, SLURM or Lightning tells its processes; `devices` and `nodes` are what was asked for."""
        is_fsdp = strategy == "fsdp"
        if TorchElasticEnvironment.detect():
            told = TorchElasticEnvironment()
            local = int(os.environ["LOCAL_WORLD_SIZE"])
            ranks = cls(_place(told), local, told.world_size() // local, told.local_rank(), True, is_fsdp)
        elif SLURMEnvironment.detect() and SLURMEnvironment().world_size() > 1:
            slurm = SLURMEnvironment()
            per_node = slurm.world_size() // _slurm_nodes()
            ranks = cls(_place(slurm), per_node, _slurm_nodes(), slurm.local_rank(), True, is_fsdp)
        else:
            local_rank = int(os.environ.get("LOCAL_RANK", 0))
            rank = int(os.environ.get("NODE_RANK", 0)) * devices + local_rank
            return cls(Place(rank, devices * nodes), devices, nodes, local_rank, False, is_fsdp)
        if (devices, nodes) not in ((1, 1), (ranks.devices, ranks.nodes)):
            raise UserError(
                f"--devices {devices} and --num-nodes {nodes}, but {ranks.devices} processes were started on each of "
                f"{ranks.nodes} machines; leave the options out, they follow from how the command was started"
            )
        return ranks

    @property
    def is_first(self) -> bool:
        return self.place.rank == 0

    @property
    def are_many(self) -> bool:
        return self.place.ranks > 1

    @property
    def share_out(self) -> bool:
        return self.is_fsdp and self.are_many

    def begin(self) -> None:
        """Take this process's GPU; leave with the process that started this one."""
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        if self.is_child:
            leave_with_parent()

    @property
    def is_child(self) -> bool:
        """Whether Lightning started this process, from the first."""
        return not self.is_external and self.local_rank > 0

    def strategy(self) -> DDPStrategy | str:
        """Lightning's way to train in these processes."""
        if self.share_out:
            from controlnet.training.sharding import SharedOut  # which takes a while to import

            return SharedOut(self.check_same, timeout=TIMEOUT)
        return SummedOnce(timeout=TIMEOUT) if self.are_many else "auto"

    def plugins(self) -> list[SLURMEnvironment]:
        """Without Lightning's requeueing, which would save a second kind of checkpoint."""
        return [SLURMEnvironment(auto_requeue=False)] if self.is_external and SLURMEnvironment.detect() else []

    def meet(self, trainer: Trainer) -> None:
        """Find the others, where torchrun or SLURM has started them."""
        if self.are_many and self.is_external:
            trainer.strategy.setup_environment()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does what is inside, for all; the others then find it done.

        Where Lightning starts the others, it does so after this.
        """
        if not (self.are_many and self.is_external):
            yield
            return
        waits = dist.new_group(backend="gloo", timeout=PREPARATION)
        if not self.is_first:
            dist.barrier(waits)
        yield
        if self.is_first:
            dist.barrier(waits)

    def most(self, number: int) -> int:
        """The largest of the processes' numbers. Goes over the network, and never waits for a GPU."""
        if not self.are_many:
            return number
        if self._talk is None:
            self._talk = dist.new_group(backend="gloo", timeout=TIMEOUT)
        value = torch.tensor(number)
        with _hearing_others():
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self._talk)
        return int(value)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype, whose number and shapes are equal in all processes, by their sums."""
        if not self.are_many:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with _hearing_others():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def check_same(self, tensors: Sequence[Tensor]) -> None:
        """UserError unless the tensors are equal in all processes: silently, they would train apart."""
        if not self.are_many:
            return
        mine = torch.stack([tensor.detach().double().sum() for tensor in tensors])
        first = mine.clone()
        dist.broadcast(first, 0)
        differ = self.most(int(not torch.equal(mine, first)))
        if differ:
            raise UserError(
                "the processes of this training hold different weights; give all of them the same command, the same "
                "files and the same versions, then run it again to go on from the last checkpoint"
            )

    def end(self) -> None:
        """Part from the others."""
        if self.are_many:
            dist.destroy_process_group()
            self._talk = None

    def leave(self, received: int) -> NoReturn:
        """End as a process that received this signal does: KeyboardInterrupt, or SystemExit with its exit code."""
        if self.is_child:  # Lightning takes another code for a failure, and kills the first process
            raise SystemExit(0)
        raise KeyboardInterrupt if received == signal.SIGINT else SystemExit(128 + received)


class SummedOnce(DDPStrategy):
    """Lightning's, but gradients are not summed during backward: `StepwiseModule` does it once a step."""

    def configure_ddp(self) -> None:
        """No wrapper around the module."""


def leave_with_parent() -> None:
    """End this process, which Lightning started, when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _hearing_others() -> Iterator[None]:
    """Errors of the network as a UserError: the other end tells its own reason."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(LOST) from error


def _place(told: TorchElasticEnvironment | SLURMEnvironment) -> Place:
    return Place(told.global_rank(), told.world_size())


def _slurm_nodes() -> int:
    return int(os.environ.get("SLURM_NNODES", 1))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(one.nbytes for one in bucket) + tensor.nbytes > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
