"""Shards on a cluster: the same stages in actors of Ray. OUT must be a folder that every node sees.

What a lost actor or node was working on is done again elsewhere; shards that are whole stay.
"""

import logging
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Any, cast

from controlnet.build.counts import Counts
from controlnet.build.engine import Done
from controlnet.build.shard_work import ShardWork
from controlnet.errors import UserError

ATTEMPTS = 4  # of a shard, each lost with its actor or node; and of actors, each lost before it began
SIDE_BY_SIDE = 2  # shards in an actor: while one waits for the network the other computes
TO_CONNECT = 10.0  # seconds
PATIENCE = 300.0  # seconds without an actor: a cluster that grows needs as long for a new node


class OnRay:
    """Actors that each set the stages up once; shards are handed to whichever is free."""

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        """Join the cluster at `address` ("auto", "host:port"), or begin one on this machine (None).

        `workers` actors, by default one for each core, or for each GPU where a stage computes on a device.
        """
        import ray

        self.workers = workers
        self._actors: _Actors | None = None
        if not ray.is_initialized():
            place = address or "local"  # None by itself would join a cluster that happens to run here
            try:
                if place not in ("auto", "local"):
                    _reach(place)
                ray.init(place, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
            except OSError as error:
                raise UserError(f"no Ray cluster at {address} ({error}); `ray start --head` begins one") from error

    def run(self, work: ShardWork, numbers: Iterable[int]) -> Iterator[Done]:
        """The shards as they are done, in any order. UserError from a stage ends the run."""
        waiting = deque((number, 0) for number in numbers)
        actors = self._ready_for(work, len(waiting))
        try:
            while waiting or actors.under_way:
                while waiting and actors.have_room:
                    actors.begin(*waiting.popleft())
                for number, attempt, counts in actors.ended():
                    if counts is not None:
                        yield number, counts
                    elif attempt + 1 < ATTEMPTS:
                        waiting.append((number, attempt + 1))
                    else:
                        raise UserError(
                            f"shard {number} was lost {ATTEMPTS} times with its worker; look at the nodes' memory, "
                            "then run the same command again"
                        )
        except BaseException:  # whoever stops the run must find nothing at work afterwards
            actors.close()
            self._actors = None
            raise

    def _ready_for(self, work: ShardWork, shards: int) -> "_Actors":
        """Actors for this work: those of the work before, if they have what it needs; they are slow to begin."""
        import ray

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if any(stage.place == "device" for _, stage in work.stages) else 0
        size = max(1, min(self.workers or gpus or int(resources.get("CPU", 1)), shards))
        if self._actors is None or self._actors.has_gpus != bool(gpus):
            if self._actors is not None:
                self._actors.close()
            self._actors = _Actors(bool(gpus))
        self._actors.take_up(work, size)
        return self._actors


def _reach(address: str) -> None:
    """OSError where nobody listens: Ray itself would try for minutes. UserError for what is no host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f'Ray\'s address is {address!r}; expected "auto", "local" or host:port')
    socket.create_connection((host, int(port)), TO_CONNECT).close()


class _Actors:
    """Actors and what each is doing. Shards go only to those that have begun: some may wait for a core for ever."""

    def __init__(self, has_gpus: bool) -> None:
        import ray

        self.has_gpus = has_gpus
        self._kind = cast(Any, ray.remote)(max_concurrency=SIDE_BY_SIDE, num_cpus=1, num_gpus=int(has_gpus))(_Worker)
        self._work: list[Any] = []
        self._size, self._lost = 0, 0
        self._beginning: dict[Any, Any] = {}
        self._shards: dict[Any, int] = {}
        """How many each has."""
        self.under_way: dict[Any, tuple[Any, int, int]] = {}

    def take_up(self, work: ShardWork, size: int) -> None:
        """Work on this from now on, with at least so many actors."""
        import ray

        self._work, self._size = [ray.put(work)], max(self._size, size)
        self._lost = 0
        self._fill()

    def _fill(self) -> None:
        while len(self._beginning) + len(self._shards) < self._size:
            actor = self._kind.options(scheduling_strategy="SPREAD").remote()
            self._beginning[actor.begin.remote()] = actor

    @property
    def have_room(self) -> bool:
        return min(self._shards.values(), default=SIDE_BY_SIDE) < SIDE_BY_SIDE

    def begin(self, number: int, attempt: int) -> None:
        actor = min(self._shards, key=lambda it: self._shards[it])
        self._shards[actor] += 1
        self.under_way[actor.do.remote(self._work, number)] = (actor, number, attempt)

    def ended(self) -> Iterator[tuple[int, int, dict[str, Counts] | None]]:
        """Number, attempt and counts of shards that have ended since, without counts if the actor was lost.

        Waits until there are any, or an actor has begun. UserError if none begins.
        """
        import ray

        waited_for = [*self.under_way, *self._beginning]
        ready, _ = ray.wait(waited_for, timeout=None if self._shards else PATIENCE)
        if not ready:
            raise UserError(
                f"no worker has begun in {PATIENCE:.0f} s; each needs a free core"
                f"{' and a GPU' if self.has_gpus else ''}, and the cluster has {ray.available_resources()} free"
            )
        for reference in ready:
            if reference in self._beginning:
                self._begun(reference)
            else:
                yield self._end(reference)

    def _begun(self, reference: Any) -> None:
        import ray

        actor = self._beginning.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self._lost += 1
            if self._lost >= ATTEMPTS:
                raise UserError(f"{ATTEMPTS} workers were lost before they began, the last by: {error}") from error
            self._fill()
        else:
            self._lost = 0
            self._shards[actor] = 0

    def _end(self, reference: Any) -> tuple[int, int, dict[str, Counts] | None]:
        import ray

        actor, number, attempt = self.under_way.pop(reference)
        try:
            result: dict[str, Counts] | UserError = ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise  # a mistake of ours, not a loss
        except ray.exceptions.RayError:
            self._shards.pop(actor, None)
            self._fill()
            return number, attempt, None
        if actor in self._shards:
            self._shards[actor] -= 1
        if isinstance(result, UserError):
            raise result
        return number, attempt, result

    def close(self) -> None:
        import ray

        for actor in [*self._shards, *self._beginning.values()]:
            ray.kill(actor)


class _Worker:
    """What runs in an actor: one part of a build at a time, its stages set up by the first shard."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: tuple[Any, ShardWork] | None = None

    def begin(self) -> None:
        """Says that it lives."""

    def do(self, work: list[Any], number: int) -> dict[str, Counts] | UserError:
        """`work` holds a reference, which is followed only when it is another than before.

        UserError is returned: Ray prints the traceback of what is raised while nobody asks for it any more.
        """
        try:
            return self._taken_up(*work)(number)
        except UserError as error:
            return error

    def _taken_up(self, reference: Any) -> ShardWork:
        import ray

        with self._lock:
            if self._held is None or self._held[0] != reference:
                self._held = None  # its models make room first
                work: ShardWork = ray.get(reference)
                work.works  # noqa: B018  # set up before threads do it at the same time
                self._held = reference, work
            return self._held[1]
