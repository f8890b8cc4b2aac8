"""Work in a thread of its own that tells how far it is and can be stopped between two steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from time import monotonic
from typing import Generic, TypeVar

from controlnet.errors import UserError

Result = TypeVar("Result")
News = TypeVar("News")
HEARTBEAT = 1.0  # seconds after which nothing new is told, too: so that a page that went away is noticed


class Stopped(Exception):
    """Somebody asked for it."""


@dataclass(eq=False)
class Job(Generic[News, Result]):
    """One piece of work; `tell` is what the work calls, in its thread."""

    work: Callable[["Job[News, Result]"], Result]
    seconds: float
    """After which it is stopped."""
    _news: "SimpleQueue[News | None]" = field(default_factory=SimpleQueue)
    _ended: Event = field(default_factory=Event)
    _stop: Event = field(default_factory=Event)
    _outcome: list[Result | BaseException] = field(default_factory=list)
    _started: float = field(default_factory=monotonic)

    def tell(self, news: News) -> None:
        """Something new; raises as `check`."""
        self.check()
        self._news.put(news)

    def check(self) -> None:
        """Stopped or UserError if the work shall end here."""
        if self._stop.is_set():
            raise Stopped
        if monotonic() - self._started > self.seconds:
            raise UserError(f"the job was stopped after {self.seconds:.0f} s, the most that one may take; ask for less")

    def stop(self) -> None:
        """At its next word."""
        self._stop.set()

    def run(self) -> Iterator[News | None]:
        """The latest news as they come, None when there are none for a while; ends when the work has ended.

        Whoever stops to listen stops the work.
        """
        Thread(target=self._work, daemon=True).start()
        try:
            while not (self._ended.is_set() and self._news.empty()):
                yield self._latest()
        finally:
            self.stop()

    def result(self) -> Result:
        """What the work gave, or raises what it raised."""
        [outcome] = self._outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _latest(self) -> News | None:
        """Waits for one, then takes the last of those that are there."""
        latest: News | None = None
        try:
            latest = self._news.get(timeout=HEARTBEAT)
            while True:
                latest = self._news.get_nowait() or latest
        except Empty:
            return latest

    def _work(self) -> None:
        try:
            self._outcome.append(self.work(self))
        except BaseException as error:  # carried to the thread that asks for the result
            self._outcome.append(error)
        self._ended.set()
        self._news.put(None)


class Jobs:
    """The running jobs, at most one of each visitor."""

    def __init__(self) -> None:
        self._running: dict[str, Job[object, object]] = {}
        self._lock = Lock()

    def begin(self, visitor: str, job: "Job[News, Result]") -> "Job[News, Result]":
        with self._lock:
            self._running[visitor] = job  # type: ignore[assignment]  # to be stopped, nothing else
        return job

    def end(self, visitor: str) -> None:
        with self._lock:
            self._running.pop(visitor, None)

    def stop(self, visitor: str) -> bool:
        """Whether there was one."""
        with self._lock:
            job = self._running.get(visitor)
        if job is not None:
            job.stop()
        return job is not None
