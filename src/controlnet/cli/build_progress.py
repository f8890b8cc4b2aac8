"""What a build does, while it does it: of every stage its rows, and how many a second."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from controlnet.build.counts import Counts, total

WINDOW = 60.0  # seconds that a rate is the mean of
REDRAWN = 0.25  # seconds between tables on a terminal
TOLD = 60.0  # seconds between lines where there is none

Figures = Mapping[str, Counts]


@dataclass
class Pace:
    """How fast the stages are, from what is reported of each shard when it is done.

    Shards of an earlier run are reported too, but took no time: they count as rows and not in a rate.
    """

    now: Callable[[], float] = time.monotonic
    counts: dict[str, Counts] = field(default_factory=dict)
    """Of all shards so far."""
    worked: dict[str, Counts] = field(default_factory=dict)
    """Of those that were worked on in this run."""
    _steps: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)
    """When how many rows of a stage had been worked on."""

    def note(self, counts: Figures) -> None:
        self.counts = total([self.counts, dict(counts)])
        took = sum(count.seconds for count in counts.values())
        if not took:
            return
        self.worked = total([self.worked, dict(counts)])
        now = self.now()
        for stage in counts:
            steps = self._steps.setdefault(stage, deque([(now - took, 0)]))
            steps.append((now, self.worked[stage].came))
            while len(steps) > 2 and steps[1][0] < now - WINDOW:
                steps.popleft()

    def rate(self, stage: str) -> float | None:
        """Rows of a stage a second, all workers together, over its last minute; None if none was worked on."""
        if stage not in self._steps:
            return None
        (since, before), (until, after) = self._steps[stage][0], self._steps[stage][-1]
        return (after - before) / max(until - since, 1e-9)

    def cost(self, stage: str) -> float | None:
        """Seconds that a row keeps a worker busy at a stage; None if none was worked on."""
        count = self.worked.get(stage)
        return count.seconds / count.came if count and count.came else None

    def line(self) -> str:
        """For a log: each stage's rows that left it and that came, and its rate."""
        return ", ".join(
            f"{stage} {count.left:,}/{count.came:,}" + (f" ({rate:,.0f}/s)" if (rate := self.rate(stage)) else "")
            for stage, count in self.counts.items()
        )


class Progress:
    """The stages on a terminal, kept up to date; elsewhere a line a minute. `with Progress(...) as progress`."""

    def __init__(self, title: str, console: Console) -> None:
        self.pace, self.console = Pace(), console
        self._title = Spinner("dots", title)
        self._live = Live(self._title, console=console, transient=True, refresh_per_second=8)
        self._drawn = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live.is_started:
            self._live.stop()

    def report(self, counts: dict[str, Counts]) -> None:
        self.pace.note(counts)
        now = time.monotonic()
        if now - self._drawn < (REDRAWN if self._live.is_started else TOLD):
            return
        self._drawn = now
        if self._live.is_started:
            self._live.update(Group(self._title, stage_table(self.pace.counts, self.pace)))
        else:
            self.console.print(self.pace.line(), markup=False, soft_wrap=True)


def stage_table(counts: Figures, pace: Pace, with_reasons: bool = False) -> Table:
    """What became of the rows, stage by stage, and how fast that went in this run."""
    table = Table("stage")
    for name in ("in", "made", "out", "dropped", "failed", "rows/s", "ms each"):
        table.add_column(name, justify="right")
    if with_reasons:
        table.add_column("why")
    for name, count in counts.items():
        numbers = (count.came, count.made, count.left, count.dropped.total(), count.failed.total())
        rate, cost = pace.rate(name), pace.cost(name)
        speed = ("" if rate is None else f"{rate:,.0f}", "" if cost is None else f"{1000 * cost:,.3g}")
        reasons = [f"{reason}: {times:,}" for reason, times in (count.dropped + count.failed).most_common()]
        why = ["\n".join(reasons)] if with_reasons else []
        table.add_row(name, *(f"{number:,}" for number in numbers), *speed, *why)
    return table
