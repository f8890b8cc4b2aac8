"""What the Train tab shows, as HTML: defects with their pictures, figures, curves, reports."""

import html
from typing import Any

import numpy as np
from PIL import Image

from controlnet.data.check import Finding, check
from controlnet.data.formats.recognise import open_records
from controlnet.data.formats.records import Records, Stored
from controlnet.errors import UserError
from controlnet.evaluation.page import Series, chart
from controlnet.images import PictureError, decode
from controlnet.studio.asked import data_url
from controlnet.studio.offer import Offer, chosen
from controlnet.studio.parts import alert
from controlnet.studio.runs import Run
from controlnet.training.plan import plan

SHOWN = 50  # findings; `controlnet data check` tells them all
SAMPLES = 6  # pairs of a data set without defects
THUMBNAIL = 96
STATES = {"running": "is running", "stopped": "stands still", "finished": "is finished"}


def data_report(name: str, offer: Offer) -> dict[str, Any]:
    """All defects of a data set, as JSON says them. UserError if it is none."""
    report = check(chosen("data set", name, offer.data_sets))
    return {
        "pairs": report.pairs,
        "defects": list(map(str, report.errors)),
        "warnings": list(map(str, report.warnings)),
    }


def checked(name: str, offer: Offer) -> str:
    """All defects of a data set, with thumbnails; without any, some of its pairs. UserError if it is none."""
    folder = chosen("data set", name, offer.data_sets)
    report, records = check(folder), open_records(folder)
    told = f"{report.pairs:,} pairs, {len(report.errors):,} defects, {len(report.warnings):,} warnings"
    kinds = [("defect", it) for it in report.errors] + [("warning", it) for it in report.warnings]
    rows = "".join(_finding(kind, finding, records) for kind, finding in kinds[:SHOWN])
    if not kinds:
        step = max(1, len(records) // SAMPLES)
        rows = "".join(_pair(records, index) for index in range(0, len(records), step)[:SAMPLES])
    more = f"<p>and {len(kinds) - SHOWN} more</p>" if len(kinds) > SHOWN else ""
    return f'<p role="status"><b>{html.escape(told)}</b></p><table class="findings">{rows}</table>{more}'


def figures(run: Run) -> str:
    """How a run stands."""
    history, state = run.history, run.state
    last = history[-1] if history else None
    asked = run.asked_steps
    told = {"step": f"{run.step:,}" + (f" of {asked:,}" if asked else "")}
    if run.losses:
        told["loss"] = f"{run.losses[-1][1]:.4f}"
    if last:
        told |= {"hint gain": f"{last.hint_gain:.2f}"}
    if last and last.fidelity is not None:
        told |= {"fidelity": f"{last.fidelity:.2f}"}
    cells = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in told.items())
    news = f'<div class="news" role="status">{html.escape(str(run.convergence))}</div>' if run.convergence else ""
    ended = "" if state == "running" or run.history else _last_words(run)
    words = f"{html.escape(run.name)} {STATES[state]}"
    return f'<div class="facts"><div><b data-state="{state}">{words}</b>state</div>{cells}</div>{news}{ended}'


def curves(run: Run) -> str:
    """Hint gain and fidelity, then the losses; empty before the first figures."""
    history = run.history
    found = run.convergence
    mark = (found.step, f"sudden convergence, step {found.step:,}") if found else None
    fidelity = [(it.step, it.fidelity) for it in history if it.fidelity is not None]
    obeys = [
        Series("hint gain", [(it.step, it.hint_gain) for it in history], "a"),
        Series("fidelity", fidelity, "b"),
    ]
    losses = [
        Series("training loss", run.losses, "d", "noisy"),
        Series("held-out loss", [(it.step, it.loss) for it in history], "a"),
    ]
    charts = chart("Does it obey?", obeys, mark) + chart("Loss", losses, mark)
    return f'<div class="curve" data-step="{run.step}">{charts}</div>'


def reported(run: Run) -> str:
    """The run's report.html in a frame where nothing of it can run."""
    path = run.folder / "report.html"
    if not path.is_file():
        return alert(f"the run {run.name} has no report yet")
    page = html.escape(path.read_text(encoding="utf-8"), quote=True)
    return f'<iframe title="report of the run" class="report" sandbox srcdoc="{page}"></iframe>'


def _last_words(run: Run) -> str:
    return alert(run.log) if run.log else ""


def _finding(kind: str, finding: Finding, records: Records) -> str:
    pictures = _pictures(records, finding.place - 1) if 0 < finding.place <= len(records) else ""
    cells = (kind, finding.label, finding.message)
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + f"<td>{pictures}</td></tr>"


def _pair(records: Records, index: int) -> str:
    prompt = html.escape(records.prompt(index))
    return f"<tr><td>pair {index + 1}</td><td>{prompt}</td><td>{_pictures(records, index)}</td></tr>"


def _pictures(records: Records, index: int) -> str:
    record = records.record(index)
    return "".join(_thumbnail(it) for it in (record.hint, record.target) if it is not None)


def _thumbnail(stored: Stored) -> str:
    """Nothing for one that cannot be read: that is what the row tells."""
    try:
        image = Image.fromarray(decode(stored.source))
    except PictureError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return f'<img alt="{html.escape(stored.name, quote=True)}" src="{data_url(np.asarray(image))}">'


def planned(run: Run, budget: int, batch_size: int) -> str:
    """How to spend a budget of batches on a run whose convergence is known. UserError while it is not."""
    if budget < 1 or batch_size < 1:
        raise UserError(f"a budget of {budget} batches of {batch_size}; expected 1 or more of each")
    return f"<pre>{html.escape(str(plan(run.folder, budget, batch_size)))}</pre>"
