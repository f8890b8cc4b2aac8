"""RUN/report.html: a whole training on one page, made of what lies in the run's folder.

    python -m controlnet.training.report RUN

writes it anew for a run of any age.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlnet.atomic import write_atomically
from controlnet.evaluation.convergence import Convergence, Validation, find_convergence
from controlnet.evaluation.health import signs
from controlnet.evaluation.page import Series, chart, escaped, figures, page, strip, table
from controlnet.training.encoded import Encoded
from controlnet.training.record import column_of, history_of, read_rows

NAME = "report.html"
DATA_CARD = "data.json"
GRIDS = 12  # shown, evenly over the training, the first and the last among them
GIGABYTE = 1e9
# of config.json: what is said of the data
OF_DATA = ("data", "validation_data", "resolution", "annotate", "streaming", "data_fingerprint")

EXPLAINED = {
    "held-out loss": "at fixed noise and timesteps",
    "hint gain": "drop of the loss by the true hint",
    "fidelity": "how far pictures obey, 0 to 1",
    "text accuracy": "of the base, under an empty hint",
}


def write_report(folder: Path) -> None:
    """Write the page of the run in `folder`, whole or not at all."""
    text = report(folder)
    write_atomically(folder / NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_data_card(folder: Path, pairs: Encoded, held_out: Encoded, condition: str) -> None:
    """RUN/data.json: what the training sees, in numbers."""
    prompts = sorted(set(pairs.captions))
    card = {
        "condition": condition,
        "pairs": len(pairs),
        "held out": len(held_out),
        "distinct prompts": len(prompts),
        "empty prompts": sum(not caption.strip() for caption in pairs.captions),
        "hint channels": pairs.hint_channels,
        "skipped": pairs.defects,
        "some prompts": prompts[:: max(1, len(prompts) // 3)][:3],
    }
    text = json.dumps(card, indent=2) + "\n"
    write_atomically(folder / DATA_CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def report(folder: Path) -> str:
    """The page as text; a run without figures yet has a page too."""
    rows = read_rows(folder / "metrics.csv")
    history, losses = history_of(rows), column_of(rows, "loss")
    speed, memory = column_of(rows, "images_per_second"), column_of(rows, "peak_memory")
    config, data = _json(folder / "config.json"), _json(folder / DATA_CARD)
    convergence = find_convergence(history)
    told = _told(history, speed, memory)
    return page(
        f"Control of condition {data.get('condition', 'unknown')}, in training",
        f'<p class="soft">{escaped(_subtitle(config, convergence, len(history)))}</p>',
        figures(told, EXPLAINED),
        "".join(f'<p class="note">{escaped(text)}</p>' for text in signs(history, losses).values()),
        _charts(history, losses, speed, convergence),
        _grids(folder),
        _cards(config, data),
    )


def _subtitle(config: Mapping[str, Any], convergence: Convergence | None, validations: int) -> str:
    base = f"base {config.get('base', 'unknown')}"
    told = str(convergence) if convergence else f"no sudden convergence yet, {validations} validations"
    return f"{base}; {told}"


def _told(history: list[Validation], speed: list[tuple[int, float]], memory: list[tuple[int, float]]) -> dict[str, str]:
    """The large figures, by name: those that there are."""
    last = history[-1] if history else None
    step = max([each.step for each in history] + [step for step, _ in speed], default=0)
    values = {
        "step": f"{step:,}",
        "held-out loss": f"{last.loss:.4f}" if last else None,
        "base alone": f"{last.base_loss:.4f}" if last and last.base_loss is not None else None,
        "hint gain": f"{last.hint_gain:.2f}" if last else None,
        "fidelity": f"{last.fidelity:.2f}" if last and last.fidelity is not None else None,
        "text accuracy": f"{last.text_accuracy:.0%}" if last and last.text_accuracy is not None else None,
        "images per second": f"{speed[-1][1]:.1f}" if speed else None,
        "peak memory": f"{max(value for _, value in memory) / GIGABYTE:.1f} GB" if memory else None,
    }
    return {name: value for name, value in values.items() if value}


def _charts(
    history: list[Validation],
    losses: list[tuple[int, float]],
    speed: list[tuple[int, float]],
    convergence: Convergence | None,
) -> str:
    def measured(name: str) -> list[tuple[float, float]]:
        return [(each.step, value) for each in history if (value := getattr(each, name)) is not None]

    mark = (convergence.step, f"sudden convergence, step {convergence.step:,}") if convergence else None
    obeys = [
        Series("hint gain", measured("hint_gain"), "a"),
        Series("fidelity", measured("fidelity"), "b"),
        Series("text accuracy", measured("text_accuracy"), "c", "dashed"),
    ]
    loss = [
        Series("training loss", losses, "d", "noisy"),
        Series("base alone", measured("base_loss"), "c", "dashed"),
        Series("held-out loss", measured("loss"), "a"),
    ]
    return "<h2>Curves</h2>" + "".join(
        (
            chart("Does it obey?", obeys, mark),
            chart("Loss", loss, mark),
            chart("Images per second", [Series("images/s", speed, "b", "noisy")]),
        )
    )


def _grids(folder: Path) -> str:
    paths = sorted((folder / "samples").glob("step-*.png"))
    if not paths:
        return ""
    places = sorted({round(number * (len(paths) - 1) / (GRIDS - 1)) for number in range(GRIDS)})
    shown = [(f"step {int(paths[place].stem.removeprefix('step-')):,}", paths[place]) for place in reversed(places)]
    told = "<h2>Pictures</h2><p>The same held-out hints, prompts and seeds each time; the last first.</p>"
    return told + strip(shown)


def _cards(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    environment = {**config.get("versions", {}), **config.get("machine", {})}
    of_data = {name: config[name] for name in OF_DATA if config.get(name) is not None}
    left_out = {*OF_DATA, "condition", "versions", "machine"}
    others = {name: value for name, value in config.items() if name not in left_out and value is not None}
    parts = [f'<h2>Data</h2><div class="card">{table({**data, **of_data})}</div>'] if data or of_data else []
    if others:
        parts.append(f'<h2>Configuration</h2><div class="card">{table(others)}</div>')
    if environment:
        parts.append(f'<h2>Environment</h2><div class="card">{table(environment)}</div>')
    return "".join(parts)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    write_report(Path(sys.argv[1]))
