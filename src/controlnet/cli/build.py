"""`controlnet build`: data sets from prompts, URLs, indexes and folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from controlnet.cli.common import Compute
from controlnet.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlnet.build.engine import Engine
    from controlnet.training.ahead import Ahead

CAPTIONS = "add a stage caption, text files beside the pictures, or the option `caption` of the source files"


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
    """Downloads under way at once; with --ray, in each actor."""
    weights_dir: Path | None = None
    """Folder that may hold annotators' weights."""
    retry_failed: bool = False
    """When the build is finished already: try rows once more that failed for a reason that may be gone by now."""
    keep_work: bool = False
    """Keep the shards of the parts before the last, which a finished build has no use for."""

    def __call__(self) -> None:
        from rich.console import Console

        from controlnet.build.engine import Threads
        from controlnet.build.recipe import read_recipe
        from controlnet.build.run import build
        from controlnet.build.stage import Context
        from controlnet.cli.build_progress import Progress, stage_table
        from controlnet.data.workers import cores

        console = Console(stderr=True, highlight=False)
        recipe = read_recipe(self.recipe, {"encode": _read_encode})
        ahead: Ahead | None = recipe.others.get("encode")
        if ahead is not None:
            self._check(ahead, recipe.names)
        context = Context(self.device, self.dtype, self.weights_dir, self.connections)
        engine = Threads(self.workers or cores() + 1) if self.ray is None else self._on_ray(self.ray)
        with Progress(f"building {self.out}", console) as progress:
            built = build(recipe, self.out, context, engine, progress.report, self.keep_work, self.retry_failed)
        Console().print(stage_table(built.counts, progress.pace, with_reasons=True))
        print(f"{built.rows:,} rows in {len(built.shards)} shard{'s' * (len(built.shards) > 1)} in {self.out}")
        if built.wordless:
            console.print(f"{built.wordless:,} of them have no caption: {CAPTIONS}", style="yellow", markup=False)
        if ahead is not None:
            count = ahead.encode(self.out, console, self.device)
            print(f"{count:,} pairs encoded in {self.out / 'cache'}, for: {ahead.command(self.out)}")

    def _check(self, ahead: "Ahead", stages: "Sequence[str]") -> None:
        """Whether what a finished build is to be encoded with is there, before hours of work; else UserError."""
        if not any(name.startswith("annotate") for name in stages):
            raise UserError(f"recipe {self.recipe}: encode: a training needs hints; add a stage annotate")
        ahead.check(self.device)

    def _on_ray(self, address: str) -> "Engine":
        from importlib.util import find_spec

        from controlnet.build.ray_engine import OnRay

        if find_spec("ray") is None:
            raise UserError("--ray needs Ray, which is not installed; run: pip install 'controlnet[scale]'")
        return OnRay(None if address == "local" else address, self.workers)


@dataclass(frozen=True, kw_only=True)
class BuildIndex(Compute):
    """Index pictures with their captions, to search them by words or by a picture."""

    pictures: tyro.conf.Positional[str]
    """A folder, a glob in quotes, or a data set."""
    out: tyro.conf.Positional[Path]
    """Folder of the index."""
    model: str = "openai/clip-vit-base-patch32"
    """CLIP model: a name of the hub, or a folder."""
    license: str | None = None
    """Of the pictures, to go with each that is found; those of a build keep their own."""

    def __call__(self) -> None:
        from rich.console import Console

        from controlnet.build.clip import Clip
        from controlnet.build.index import build_index

        with Console(stderr=True).status("embedding pictures") as status:
            clip = Clip(self.model, self.device, self.dtype)
            count, failed = build_index(
                self.pictures,
                self.out,
                clip,
                self.model,
                lambda seen: status.update(f"{seen:,} pictures"),
                self.license,
            )
        print(f"{count:,} pictures in {self.out}" + (f"; {failed:,} could not be read" if failed else ""))


@dataclass(frozen=True, kw_only=True)
class Search(Compute):
    """Show the pictures of an index that are nearest to words or to a picture, on one sheet."""

    index: tyro.conf.Positional[Path]
    """Folder that `controlnet build index` wrote."""
    out: tyro.conf.Positional[Path] = Path("found.png")
    """PNG to write."""
    text: str | None = None
    """What to search for, in words."""
    image: Path | None = None
    """Or the picture to search for what is like it."""
    count: int = 16
    """How many pictures."""
    model: str | None = None
    """CLIP model; by default the one that the index was built with."""

    def __call__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise UserError("give --text or --image, one of them")
        if self.count < 1:
            raise UserError(f"--count is {self.count}; expected at least 1")
        from controlnet.build.clip import Clip
        from controlnet.build.index import Index, contact_sheet
        from controlnet.images import decode, encode_png

        index = Index(self.index)
        clip = Clip(self.model or index.about["model"], self.device, self.dtype)
        query = clip.of_texts([self.text]) if self.text is not None else clip.of_pictures([decode(str(self.image))])
        [found] = index.search(query, self.count)
        encode_png(contact_sheet(found), self.out)
        for each in found:
            place = each.metadata.get("path") or each.metadata.get("url")
            print(f"{each.similarity:.3f}  {place}  {each.metadata.get('caption') or ''}")
        print(self.out)


def _read_encode(told: object, folder: Path, problems: list[str]) -> object:
    """The table [encode] of a recipe."""
    from controlnet.training.ahead import read_ahead

    return read_ahead(told, folder, problems)
