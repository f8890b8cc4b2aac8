"""`controlnet data circles`, `controlnet data check` and `controlnet data report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from controlnet.errors import DefectsFound

if TYPE_CHECKING:
    from controlnet.data.check import Report


@dataclass(frozen=True)
class Circles:
    """Draw the original's first lesson: rings, the discs that fill them, and prompts that name their colours.

    Run the same command again to go on after an interruption; with a larger count it adds pairs.
    """

    out: tyro.conf.Positional[Path]
    """Folder to write: prompt.json, source/N.png (rings), target/N.png (discs)."""
    count: int = 50_000
    """How many pairs."""
    size: int = 512
    """Side of the pictures in pixels."""
    seed: int = 0
    """The same seed draws the same pairs, whatever the number of processes."""
    processes: int | None = None
    """How many processes draw; by default as many as there are cores, fewer for a small count."""

    def __call__(self) -> None:
        from controlnet.data.circles import write_circles

        write_circles(self.out, self.count, self.size, self.seed, self.processes)
        print(f"{self.count:,} pairs of {self.size}x{self.size} pixels in {self.out}")


@dataclass(frozen=True)
class Check:
    """Report every defect of a data set at once, with line numbers or names; exit code 1 if there is one.

    Defects: a line that is no pair, a picture without its hint or prompt, a missing file, an unreadable picture, sizes
    that differ, an empty prompt, a duplicated pair. Warnings, which may be meant: an empty hint, a picture far from the
    others in size, pictures without hints.
    """

    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    """A folder with prompt.json (as fill50k is), one with images/ and conditioning_images/, two folders
    (PICTURES::HINTS), a table (.jsonl, .csv), tars, Parquet, or a data set of the hub (owner/name)."""
    image_column: str | None = None
    """Of a table or a Hugging Face data set; by default image, target, jpg or picture."""
    conditioning_image_column: str | None = None
    """By default conditioning_image, source, hint, conditioning, control or condition."""
    caption_column: str | None = None
    """By default text, prompt, txt or caption."""
    dataset_split: str = "train"
    """Of a Hugging Face data set."""
    dataset_config_name: str | None = None
    """Of a Hugging Face data set that has several configurations."""

    def __call__(self) -> None:
        from controlnet.data.check import check
        from controlnet.data.formats.records import Columns

        columns = Columns(
            self.image_column,
            self.conditioning_image_column,
            self.caption_column,
            self.dataset_split,
            self.dataset_config_name,
        )
        report = check(self.data, columns)
        _print(report)
        if report.errors:
            raise DefectsFound(f"{self.data}: {_counts(report)}")


@dataclass(frozen=True)
class DataReport:
    """Write a page about a data set: samples, sizes, captions, what looks alike, what a training would reject.

    Of a folder that `controlnet build` wrote also what became of every row, its licences and its hosts.
    """

    data: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATA")]]
    """As of `controlnet data check`."""
    out: tyro.conf.Positional[Path] = Path("report.html")
    """HTML file to write; nothing in it comes from elsewhere."""

    def __call__(self) -> None:
        from controlnet.build.report import write_report

        write_report(self.data, self.out)
        print(self.out)


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for kind, style, findings in (("", "bold red", report.errors), ("warning: ", "yellow", report.warnings)):
        for finding in findings:
            console.print(Text.assemble((f"{finding.label}: {kind}", style), finding.message))
    console.print(Text(_counts(report)))


def _counts(report: "Report") -> str:
    return f"{report.pairs:,} pairs, {len(report.errors):,} defects, {len(report.warnings):,} warnings"
