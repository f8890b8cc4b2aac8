"""Shards on a cluster: the same stages in actors of Ray. OUT must be a folder that every node sees.

What a lost actor or node was working on is done again elsewhere; shards that are whole stay.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from controlnet.build.counts import Counts
from controlnet.build.engine import Done
from controlnet.build.shard_work import ShardWork
from controlnet.errors import UserError

ATTEMPTS = 4  # of a shard, each lost with its actor or node
SIDE_BY_SIDE = 2  # shards in an actor: while one waits for the network the other computes
SILENCE = 60.0  # seconds without a finished shard after which actors are asked whether they live


class OnRay:
    """Actors that each set the stages up once; shards are handed to whichever is free."""

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        """Join the cluster at `address` ("auto", "host:port"), or begin one on this machine (None).

        `workers` actors, by default one for each core, or for each GPU where a stage computes on a device.
        """
        import ray

        self.workers = workers
        if not ray.is_initialized():
            try:
                ray.init(address, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
            except ConnectionError as error:
                raise UserError(f"no Ray cluster at {address} ({error}); `ray start --head` begins one") from error

    def run(self, work: ShardWork, numbers: Iterable[int]) -> Iterator[Done]:
        """The shards as they are done, in any order. UserError from a stage ends the run."""
        import ray

        waiting = deque((number, 0) for number in numbers)
        pool = _Pool(work, self._size(work, len(waiting)))
        try:
            while waiting or pool.under_way:
                while waiting and pool.has_room:
                    pool.begin(*waiting.popleft())
                ready, _ = ray.wait(list(pool.under_way), num_returns=1, timeout=SILENCE)
                for reference in ready:
                    number, attempt, counts = pool.end(reference)
                    if counts is not None:
                        yield number, counts
                    elif attempt + 1 < ATTEMPTS:
                        waiting.append((number, attempt + 1))
                    else:
                        raise UserError(
                            f"shard {number} was lost {ATTEMPTS} times with its worker; look at the nodes' memory, "
                            "then run the same command again"
                        )
        finally:
            pool.close()

    def _size(self, work: ShardWork, shards: int) -> int:
        import ray

        resources = ray.cluster_resources()
        uses_device = any(stage.place == "device" for _, stage in work.stages)
        gpus = int(resources.get("GPU", 0)) if uses_device else 0
        return max(1, min(self.workers or gpus or int(resources.get("CPU", 1)), shards))


class _Pool:
    """Actors and what each is doing."""

    def __init__(self, work: ShardWork, size: int) -> None:
        import ray

        on_device = any(stage.place == "device" for _, stage in work.stages) and ray.cluster_resources().get("GPU", 0)
        kind = cast(Any, ray.remote)(max_concurrency=SIDE_BY_SIDE, num_cpus=1, num_gpus=int(bool(on_device)))(_Worker)
        self._make: Callable[[], Any] = lambda: kind.options(scheduling_strategy="SPREAD").remote(ray.put(work))
        self.actors: dict[Any, int] = {self._make(): 0 for _ in range(size)}
        self.under_way: dict[Any, tuple[Any, int, int]] = {}

    @property
    def has_room(self) -> bool:
        return min(self.actors.values()) < SIDE_BY_SIDE

    def begin(self, number: int, attempt: int) -> None:
        actor = min(self.actors, key=lambda it: self.actors[it])
        self.actors[actor] += 1
        self.under_way[actor.do.remote(number)] = (actor, number, attempt)

    def end(self, reference: Any) -> tuple[int, int, dict[str, Counts] | None]:
        """Number, attempt and counts of a shard that has ended; no counts if its actor was lost."""
        import ray

        actor, number, attempt = self.under_way.pop(reference)
        try:
            counts: dict[str, Counts] = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from error
            raise
        except ray.exceptions.RayError:
            if self.actors.pop(actor, None) is not None:
                self.actors[self._make()] = 0
            return number, attempt, None
        if actor in self.actors:
            self.actors[actor] -= 1
        return number, attempt, counts

    def close(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)


class _Worker:
    def __init__(self, work: ShardWork) -> None:
        work.works  # noqa: B018  # set up before its threads begin
        self.work = work

    def do(self, number: int) -> dict[str, Counts]:
        return self.work(number)
