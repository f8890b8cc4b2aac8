"""`controlnet build`: data sets from prompts, URLs, indexes and folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from controlnet.cli.common import Compute
from controlnet.errors import UserError

if TYPE_CHECKING:
    from controlnet.build.counts import Counts
    from controlnet.build.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Build(Compute):
    """Build a data set by a recipe: `docs/build.md` tells how to write one.

    Run the same command again to go on after an interruption.
    """

    recipe: tyro.conf.Positional[Path]
    """TOML file with the source, the stages and the sink."""
    out: tyro.conf.Positional[Path]
    """Folder of the data set."""
    workers: int | None = None
    """Shards under way at once; by default one more than there are cores. With --ray, actors."""
    ray: str | None = None
    """Work on a Ray cluster: "auto" joins the one this machine belongs to, an address another, "local" begins one
    here. OUT must be a folder that all nodes see."""
    connections: int = 64
    """Downloads under way at once, in each shard."""
    weights_dir: Path | None = None
    """Folder that may hold annotators' weights."""
    keep_work: bool = False
    """Keep the shards of the parts before the last, which a finished build has no use for."""

    def __call__(self) -> None:
        from rich.console import Console

        from controlnet.build.engine import Threads
        from controlnet.build.recipe import read_recipe
        from controlnet.build.run import build
        from controlnet.build.stage import Context
        from controlnet.data.workers import cores

        console = Console(stderr=True)
        recipe = read_recipe(self.recipe)
        context = Context(self.device, self.dtype, self.weights_dir, self.connections)
        engine = Threads(self.workers or cores() + 1) if self.ray is None else self._on_ray(self.ray)
        with console.status("") as status:
            so_far: dict[str, Counts] = {}

            def report(counts: "dict[str, Counts]") -> None:
                from controlnet.build.counts import total

                so_far.update(total([so_far, counts]))
                status.update(", ".join(f"{name} {count.left:,}/{count.came:,}" for name, count in so_far.items()))

            built = build(recipe, self.out, context, engine, report, self.keep_work)
        Console().print(_table(built.counts))
        print(f"{built.rows:,} rows in {len(built.shards)} shards in {self.out}")

    def _on_ray(self, address: str) -> "Engine":
        from importlib.util import find_spec

        from controlnet.build.ray_engine import OnRay

        if find_spec("ray") is None:
            raise UserError("--ray needs Ray, which is not installed; run: pip install 'controlnet[scale]'")
        return OnRay(None if address == "local" else address, self.workers)


def _table(counts: "dict[str, Counts]") -> object:
    """What became of the rows, stage by stage."""
    from rich.table import Table

    table = Table("stage", "in", "made", "out", "dropped", "failed", "why")
    for name, count in counts.items():
        reasons = (count.dropped + count.failed).most_common()
        why = "\n".join(f"{reason}: {times:,}" for reason, times in reasons)
        numbers = (count.came, count.made, count.left, count.dropped.total(), count.failed.total())
        table.add_row(name, *(f"{number:,}" for number in numbers), why)
    return table
