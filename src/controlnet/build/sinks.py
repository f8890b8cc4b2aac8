"""What a build becomes: a folder to train on, or the shards themselves."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path

from controlnet.atomic import write_atomically, write_quickly
from controlnet.build.annotate import HINT
from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE, Shard
from controlnet.data.annotate import HINTS, TARGETS
from controlnet.data.pairs import MANIFEST


@dataclass(frozen=True, kw_only=True)
class Sink(ABC):
    """Writes the wanted rows of whole shards; again and again, with the same result."""

    def problems(self, names: Sequence[str]) -> Iterator[str]:
        """Why the stages of a recipe cannot give what it writes."""
        return iter(())

    @abstractmethod
    def write(self, shards: Sequence[Shard], out: Path) -> None:
        """Write all rows of the shards that are wanted to `out`."""


def pairs_problem(sink: str, names: Sequence[str]) -> Iterator[str]:
    """Of a sink that writes pairs: that no stage makes hints."""
    if not any(name.startswith("annotate") for name in names):
        yield f"sink {sink}: writes pairs of picture and hint; add a stage annotate"


@dataclass(frozen=True, kw_only=True)
class WebDataset(Sink):
    """The shards as they are: tars beside tables, which `controlnet train` reads by index."""

    def write(self, shards: Sequence[Shard], out: Path) -> None:
        """They lie in OUT/shards already."""


@dataclass(frozen=True, kw_only=True)
class Folder(Sink):
    """The original's folder of pairs: source/ (hints), target/ (pictures) and prompt.json."""

    def problems(self, names: Sequence[str]) -> Iterator[str]:
        yield from pairs_problem("folder", names)

    def write(self, shards: Sequence[Shard], out: Path) -> None:
        lines = []
        for shard in shards:
            lines += [self._pair(row, out) for row in shard.read() if row.status == "ok"]
        content = "".join(f"{line}\n" for line in lines)
        write_atomically(out / MANIFEST, lambda path: path.write_text(content, encoding="utf-8"))

    def _pair(self, row: Row, out: Path) -> str:
        hint, target = f"{HINTS}/{row.id}.png", f"{TARGETS}/{row.id}.{row.values['format']}"
        for name, data in ((hint, row.files[HINT]), (target, row.files[IMAGE])):
            if not (out / name).is_file() or (out / name).stat().st_size != len(data):
                write_quickly(out / name, methodcaller("write_bytes", data))
        return json.dumps({"source": hint, "target": target, "prompt": row.text}, ensure_ascii=False)
