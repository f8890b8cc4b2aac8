"""What a stage of a build is: a frozen dataclass of its options that turns batches of rows into rows.

    @dataclass(frozen=True, kw_only=True)
    class Resolution(Stage):
        "Leaves out small pictures."

        min_side: Annotated[int, Range(1, 16384)] = 256
        "Pixels along the shorter side."

        def setup(self, context: Context) -> Work:
            return each(self.judge)

A line in `table.py` gives it the name by which recipes call it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from controlnet.build.rows import Row
from controlnet.devices import Device, DType
from controlnet.errors import UserError

# rows that are wanted so far -> rows, in their order: each of them, perhaps ended, or what it is replaced by
Work = Callable[[Sequence[Row]], Sequence[Row]]
Place = Literal["threads", "network", "device"]


@dataclass(frozen=True)
class Context:
    """Where stages work: what is no option of a recipe, since it does not change what is built."""

    device: Device = "auto"
    dtype: DType = "auto"
    weights_dir: Path | None = None
    connections: int = 64
    """Downloads under way at once, in each worker."""


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """A pure function of rows, with what it needs set up once per worker."""

    rows_at_once: ClassVar[int] = 32
    retry_later: ClassVar[frozenset[str]] = frozenset()
    """Reasons of failure that may be gone later: such rows, which have no files any more, are tried once more when
    all others are done."""

    @property
    def place(self) -> Place:
        """What it keeps busy: a core for each shard, the network, or the one device."""
        return "threads"

    @abstractmethod
    def setup(self, context: Context) -> Work:
        """Open what it needs, models for example, and give the function of rows. Work runs in several threads,
        except that on a device. UserError for what cannot be done at all."""


@dataclass(frozen=True, kw_only=True)
class Barrier(ABC):
    """A decision that needs all rows of all shards at once, such as which of them are duplicates."""

    @abstractmethod
    def decide(self, rows: Iterable[Row]) -> Mapping[str, tuple[str, str]]:
        """The ids of the rows to be dropped, with reason and detail. `rows` come in order, without their files."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Where rows begin: the same ones in the same order each time, or the build cannot go on where it stopped."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """All rows, lazily. UserError for what cannot be read."""


def each(judge: Callable[[Row], Row]) -> Work:
    """Work of what looks at one row at a time."""
    return lambda rows: [judge(row) for row in rows]


def guarded(work: Work) -> Work:
    """The same, but a row that it breaks on fails alone and says why; the rows beside it are tried one by one."""

    def all_together(rows: Sequence[Row]) -> Sequence[Row]:
        try:
            return work(rows)
        except Exception as error:  # of any library, over any picture
            if len(rows) == 1:
                told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                return [rows[0].failed("error", told)]
            return [result for row in rows for result in all_together([row])]

    return all_together
