"""`controlnet data circles` and `controlnet data check`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Report every defect of a data set at once, with line numbers; exit code 1 if there is one.

    Defects: a line that is no JSON, a missing file, an unreadable picture, sizes that differ, an empty prompt, a
    duplicated pair. Warnings, which may be meant: an empty hint, a picture far from the others in size.
    """

    folder: tyro.conf.Positional[Path]
    """Folder with prompt.json, as `controlnet data circles` writes it and as fill50k is."""

    def __call__(self) -> None:
        from controlnet.data.check import check

        report = check(self.folder)
        _print(report)
        if report.errors:
            raise DefectsFound(f"{self.folder}: {_counts(report)}")


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for kind, style, findings in (("", "bold red", report.errors), ("warning: ", "yellow", report.warnings)):
        for finding in findings:
            console.print(Text.assemble((f"line {finding.line}: {kind}", style), finding.message))
    console.print(Text(_counts(report)))


def _counts(report: "Report") -> str:
    return f"{report.pairs:,} pairs, {len(report.errors):,} defects, {len(report.warnings):,} warnings"
