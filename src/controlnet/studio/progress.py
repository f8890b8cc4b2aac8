"""What is told while a job runs, as HTML: a bar, figures, what the pictures begin to look like."""

import html
from time import monotonic

import numpy as np
from PIL import Image

from controlnet.generation.pipeline import Report
from controlnet.images import Rgb
from controlnet.studio.asked import data_url

SHOWN = 256  # pixels of a preview's side, at least: its cells are smoothed over


class Told:
    """The words for a job's reports."""

    def __init__(self, what: str) -> None:
        self.what, self.since = what, monotonic()

    def waiting(self) -> str:
        return _bar(0, f"{html.escape(self.what)}: opening the models", "")

    def stepped(self, report: Report, is_previewed: bool) -> str:
        """After a step; the time left is that of the steps so far."""
        elapsed = monotonic() - self.since
        left = elapsed / report.done * (report.total - report.done)
        pictures = "".join(map(_picture, report.preview())) if is_previewed else ""
        figures = f"{html.escape(self.what)}: step {report.done} of {report.total}"
        return _bar(report.done / report.total, figures, f"{left:.0f} s left", pictures)

    def done(self, seconds: float, seed: int, size: tuple[int, int]) -> str:
        return (
            f'<div class="progress quiet" role="status">Done in {seconds:.1f} s: {size[1]}x{size[0]}, seed {seed}</div>'
        )


def counted(done: int, total: int, what: str) -> str:
    """For jobs that are so many pieces."""
    return _bar(done / max(total, 1), html.escape(what), f"{done} of {total}")


def _bar(part: float, left: str, right: str, pictures: str = "") -> str:
    percent = round(100 * part)
    return (
        f'<div class="progress" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100">'
        f'<div class="told"><span>{left}</span><span>{right}</span></div>'
        f'<div class="bar"><i style="width: {percent}%"></i></div>'
        f'<div class="pictures" style="padding-top: 8px">{pictures}</div></div>'
    )


def _picture(rgb: Rgb) -> str:
    height, width = rgb.shape[:2]
    times = max(1, SHOWN // min(height, width))
    smooth = Image.fromarray(rgb).resize((width * times, height * times), Image.Resampling.BICUBIC)
    return f'<img alt="what the picture begins to look like" src="{data_url(np.asarray(smooth))}">'
