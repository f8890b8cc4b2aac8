"""`controlnet annotate`: hints of pictures, for training and for generation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from controlnet.errors import DefectsFound, UserError

if TYPE_CHECKING:
    from controlnet.annotators.annotator import Annotator, Option
    from controlnet.data.annotate import Job, Outcome, Summary
    from controlnet.data.pictures import Picture, Pictures

PREVIEWED = 12  # pictures
PREVIEW_SIDE = 256  # pixels


@dataclass(frozen=True)
class Annotate:
    """Make hints of one condition, as PNG files that say what they mean.

    Run the same command again to go on after an interruption. Exit code 1 if some pictures could not be used.
    """

    condition: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="CONDITION")]]
    """The kind of hint: canny, depth, pose, ... `controlnet annotate --list` shows all, `controlnet annotate CONDITION
    --help` the options of one."""
    input: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="INPUT")]]
    """A picture, a folder, a glob in quotes, a data set (a folder with prompt.json, Parquet or tars; owner/name on the
    hub), or a video."""
    output: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUTPUT")]]
    """For one picture the PNG to write; else a folder, whose files are named as the pictures are."""
    size: Literal["picture", "detected"] = "picture"
    """Of the hints: their picture's, or that at which they were detected, whose sides are multiples of 64."""
    pairs: bool = False
    """Write a folder to train on: hints in source/, pictures in target/, and prompt.json."""
    prompt: str | None = None
    """For the pictures of pairs that have none of their own."""
    prompts: Path | None = None
    """Table with file_name and text (JSON lines or CSV); by default metadata.jsonl or metadata.csv in the folder, and
    text files beside the pictures."""
    split: str = "train"
    """Of a Hugging Face data set."""
    column: str | None = None
    """Of a Hugging Face data set, with the prompts; by default prompt, text or caption."""
    workers: int | None = None
    """Processes, for annotators without a network; by default as many as there are cores, fewer for few pictures."""
    batch_size: int = 8
    """Pictures that a network sees at once."""
    preview: bool = False
    """Write a contact sheet too, pictures beside their hints: preview.png in the folder, or beside the hint."""

    @staticmethod
    def for_arguments(arguments: Sequence[str]) -> type:
        """The options of the condition that the arguments name: these, and its annotator's."""
        from controlnet.annotators.table import ANNOTATORS, load

        if "--list" in arguments:
            return List
        condition = next((word for word in arguments if word in ANNOTATORS), None)
        if condition is None and arguments and not arguments[0].startswith("-"):
            load(arguments[0])  # says that there is none, and which there are
        return Annotate if condition is None else _with_options(load(condition))

    def __call__(self) -> None:
        self._refuse_nonsense()
        from controlnet.annotators.annotator import all_options
        from controlnet.annotators.table import load
        from controlnet.data.annotate import FAILED, Job
        from controlnet.data.pictures import find_pictures

        pictures = find_pictures(self.input, self.output, self.prompts, self.split, self.column)
        kind = load(self.condition)
        annotator = kind(**{option.name: getattr(self, option.name) for option in all_options(kind)})
        if pictures.is_one and not self.pairs:
            self._annotate_one(annotator, pictures)
            return
        job = Job(annotator, self.output, self.pairs, self.size, self.prompt)
        shown: list[Picture] = []
        summary = self._annotate_all(job, pictures, shown)
        if self.preview:
            _write_preview([(each.source, job.hint_path(each)) for each in shown], self.output / "preview.png")
        print(f"{summary} in {self.output}")
        if summary.failed:
            raise DefectsFound(f"{len(summary.failed):,} without a hint; {self.output / FAILED} tells why")

    def _refuse_nonsense(self) -> None:
        problems = []
        for option, value in (("--workers", self.workers), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                problems.append(f"{option} {value}; expected at least 1")
        if self.output.absolute() == Path(self.input).absolute():
            problems.append(f"the hints would be written over the pictures in {self.input}; choose another output")
        if problems:
            raise UserError("\n".join(problems))

    def _annotate_one(self, annotator: "Annotator", pictures: "Pictures") -> None:
        """Into the file that was asked for, even if it is there."""
        import json

        from controlnet.annotators.hint_file import description, encode, encode_detail
        from controlnet.annotators.resolution import to_size
        from controlnet.atomic import write_atomically

        [picture] = pictures.items
        path = self.output / f"{picture.name}.png" if self.output.is_dir() else self.output
        if path.suffix.lower() != ".png":
            raise UserError(f"{path}: hints are written as PNG, which loses nothing; give a name that ends in .png")
        rgb = annotator.read(picture.source)
        [(hint, detail)] = annotator.batch_detailed([rgb])
        if self.size == "picture":
            hint = to_size(hint, rgb.shape[1::-1], annotator.meaning.is_smooth)
        files = {path: encode(hint, json.dumps(description(annotator)))}
        if detail is not None:
            suffix, content = encode_detail(detail, hint.shape[1::-1])
            files[path.with_suffix(f".detail{suffix}")] = content
        for file, content in files.items():
            write_atomically(file, methodcaller("write_bytes", content))
        if self.preview:
            _write_preview([(picture.source, path)], path.with_suffix(".preview.png"))
        print(*files, sep="\n")

    def _annotate_all(self, job: "Job", pictures: "Pictures", shown: "list[Picture]") -> "Summary":
        """With a progress bar; `shown` gets the first few that have a hint."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from controlnet.data.annotate import annotate_all

        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn(self.condition), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=pictures.total, rate="")

            def report(picture: "Picture", outcome: "Outcome") -> None:
                speed = (bar.tasks[task].completed + 1) / max(bar.tasks[task].elapsed or 0, 1e-3)
                bar.update(task, advance=1, rate=f"{speed:.3g} pictures/s")
                if outcome.state == "failed":
                    bar.console.print(outcome.reason, style="yellow", markup=False, soft_wrap=True)
                elif len(shown) < PREVIEWED:
                    shown.append(picture)

            return annotate_all(job, pictures.items, pictures.total, self.workers, self.batch_size, report)


def _with_options(kind: "type[Annotator]") -> type:
    """`Annotate` with the options of an annotator beside its own."""
    from controlnet.annotators.annotator import all_options

    fields = [
        (option.name, Annotated[option.type, tyro.conf.arg(help=_help(option))], field(default=option.default))
        for option in all_options(kind)
    ]
    return make_dataclass("Annotate", fields, bases=(Annotate,), frozen=True, namespace={"__doc__": kind.__doc__})


def _help(option: "Option") -> str:
    return f"{option.help} From {option.range}." if option.range else option.help


@dataclass(frozen=True)
class List:
    """The table of annotators, with their options."""

    list: bool = False
    """Show it."""

    def __call__(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from controlnet.annotators.annotator import options
        from controlnet.annotators.table import ANNOTATORS, load
        from controlnet.annotators.weights import WEIGHTS

        table = Table("condition", "hint", "options", show_lines=True)
        for condition in ANNOTATORS:
            kind = load(condition)
            told = "\n".join(_told(option) for option in options(kind))
            table.add_row(condition, Text((kind.__doc__ or "").partition("\n")[0]), Text(told))
        sources = Table("weights", "licence", "size", title="Weights, downloaded when they are first used")
        sources.columns[0].overflow = "fold"
        for weights in WEIGHTS.values():
            size = f"{weights.size / 1e6:.0f} MB" if weights.size else ""
            sources.add_row(Text(str(weights)), Text(weights.licence, "" if weights.is_commercial else "yellow"), size)
        Console().print(table, sources)


def _told(option: "Option") -> str:
    flag, values = f"--{option.name.replace('_', '-')}", f" ({option.range})" if option.range else ""
    if option.type is bool:
        return flag
    choices = f" ({', '.join(map(str, option.choices))})" if option.choices else values
    return f"{flag} {option.default:.4g}{choices}" if option.type is float else f"{flag} {option.default}{choices}"


def _write_preview(pairs: "Sequence[tuple[Any, Path]]", path: Path) -> None:
    """Pictures beside their hints, one below the other, as one PNG."""
    import numpy as np
    from PIL import Image

    from controlnet.images import decode, encode_png, grid

    def small(rgb: Any) -> Any:
        image = Image.fromarray(rgb if isinstance(rgb, np.ndarray) else decode(rgb))
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        return np.array(image)

    if pairs:
        encode_png(grid([[small(picture), small(hint)] for picture, hint in pairs], headings=("picture", "hint")), path)
