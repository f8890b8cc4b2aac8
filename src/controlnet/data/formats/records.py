"""What every input format gives: records, each a pair of encoded pictures and a prompt, found but not decoded."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath

TARGETS = ("image", "target", "jpg", "picture")
HINTS = ("conditioning_image", "source", "hint", "conditioning", "control", "condition")
PROMPTS = ("text", "prompt", "txt", "caption")


@dataclass(frozen=True)
class Columns:
    """What a data set calls the parts of a pair; None takes the first of the usual names that is there."""

    image: str | None = None
    conditioning_image: str | None = None
    caption: str | None = None
    split: str = "train"
    """Of a Hugging Face data set that has several."""
    configuration: str | None = None
    """Likewise."""
    streaming: bool = False
    """Read it as it comes."""
    length: int | None = None
    """Take the first so many pairs alone."""

    def find(self, there: Iterable[str]) -> tuple[str, str, str]:
        """The names of target, hint and prompt among `there`; empty for what is missing."""
        names = list(there)
        asked = ((self.image, TARGETS), (self.conditioning_image, HINTS), (self.caption, PROMPTS))
        found = (next((name for name in ((one,) if one else usual) if name in names), "") for one, usual in asked)
        target, hint, prompt = found
        return target, hint, prompt


USUAL = Columns()


@dataclass(frozen=True)
class Stored:
    """An encoded picture: `source` is what `images.decode` reads, `name` what people know it by."""

    name: str
    source: Path | bytes

    def read(self) -> bytes:
        """Its bytes; none of a file that is not there."""
        if isinstance(self.source, bytes):
            return self.source
        return self.source.read_bytes() if self.source.is_file() else b""

    def opened(self) -> Path | BytesIO:
        """As Pillow opens it."""
        return BytesIO(self.source) if isinstance(self.source, bytes) else self.source


@dataclass(frozen=True)
class Record:
    """One pair as it lies in its data set."""

    label: str  # where: "line 7", "row 7", "cats/1"
    target: Stored
    hint: Stored | None  # None: there are no hints, they are annotated
    prompt: str


@dataclass(frozen=True)
class Problem:
    """A row, line or name that is no pair; `place` sorts it among the pairs, counted from 1."""

    place: int
    label: str
    message: str

    def __str__(self) -> str:
        return f"{self.label}: {self.message}"


class Records(ABC):
    """The pairs of a place. Can be sent to another process. Opening it raises UserError where nothing can be read."""

    place: str
    """As people know it."""
    problems: Sequence[Problem] = ()
    """What is there and is no pair."""
    stream: str | None = None
    """What a stream is told apart by, whose content nobody has seen; its pairs are best read one after the other."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def record(self, index: int) -> Record:
        """Pair `index`, in [0, length)."""

    @abstractmethod
    def prompt(self, index: int) -> str:
        """Its prompt, without touching a picture."""

    def where(self, index: int) -> tuple[int, str]:
        """Its place among pairs and problems, counted from 1, and the name of that."""
        return index + 1, f"pair {index + 1}"


class Kept(Records):
    """Records in memory."""

    def __init__(self, place: str, records: Sequence[Record]) -> None:
        self.place, self.records = place, records

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def prompt(self, index: int) -> str:
        return self.records[index].prompt


def doubles(names: Iterable[str]) -> list[str]:
    """Those that come more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def stays_inside(path: str) -> bool:
    """Of a relative path without "..", by the rules of POSIX and of Windows, so that a data set means one thing."""
    windows = PureWindowsPath(path)
    rooted = bool(windows.drive or windows.root) or PurePosixPath(path).is_absolute()
    return bool(path) and "\0" not in path and not rooted and ".." not in windows.parts
