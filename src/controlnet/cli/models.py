"""`controlnet models list` and `controlnet models fetch`: public bases, controls and annotators' weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from controlnet.cli.common import size
from controlnet.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

Kind = Literal["base", "control", "annotator"]
Family = Literal["sd1", "sd2", "sdxl"]

TITLES = {
    ("base", None): "Bases: --base NAME",
    ("control", "sd1"): "Controls for SD 1.x: --control NAME, or the condition",
    ("control", "sd2"): "Controls for SD 2.x",
    ("control", "sdxl"): "Controls for SDXL",
    ("annotator", None): "Annotators' weights",
}
WIDE = 120  # columns of a terminal, from which on the table also tells where a model is published


@dataclass(frozen=True)
class List:
    """Public models that are known by name: what for, licence, size, and which are in the hub's cache.

    In a terminal of 120 columns or more also sizes and by whom they are published; --json tells all that is known.
    """

    kind: Kind | None = None
    """Only bases, controls or annotators' weights."""
    json: bool = False
    """Print JSON for another program."""

    def __call__(self) -> None:
        rows = [row for row in _rows() if self.kind in (None, row["kind"])]
        if self.json:
            import json

            print(json.dumps(rows, indent=2))
        else:
            _print(rows)


@dataclass(frozen=True)
class Fetch:
    """Download models into the hub's cache, where --base and --control find them by name; prints where each is.

    What is there already is not downloaded again; SHA-256 are compared where they are known.
    """

    names: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]]
    """Names of `controlnet models list`, or conditions ("canny"): the first of its controls."""
    family: Family | None = None
    """Of the controls that are meant by a condition; by default the first in the list."""
    annotator: bool = False
    """Where a name means both a control's condition and an annotator's weights, take the latter."""

    def __call__(self) -> None:
        if not self.names:
            raise UserError("nothing to fetch; expected names, which `controlnet models list` tells")
        problems = []
        for name in self.names:
            try:
                print(self._fetch(name))
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("\n".join(problems))

    def _fetch(self, name: str) -> Path:
        from controlnet.annotators import weights
        from controlnet.checkpoints import models
        from controlnet.checkpoints.model_table import CONTROLS, MODELS

        is_model = name in MODELS or any(model.condition == name for model in CONTROLS.values())
        if name in weights.WEIGHTS and (self.annotator or not is_model):
            return weights.find(name) if weights.WEIGHTS[name].file else weights.find_model(name)
        return models.fetch(models.find_model(name, self.family))


def _rows() -> Iterator[dict[str, Any]]:
    """All that is known of each model, as JSON has it."""
    from dataclasses import asdict

    from controlnet.annotators.weights import WEIGHTS
    from controlnet.checkpoints.model_table import MODELS
    from controlnet.checkpoints.models import cached, in_cache

    for name, model in MODELS.items():
        yield {"name": name, **asdict(model), "cached": _text(cached(model))}
    for name, weights in WEIGHTS.items():
        place = in_cache(weights.repository, weights.file or "config.json", weights.revision)
        yield {"name": name, "kind": "annotator", **asdict(weights), "cached": _text(place)}


def _text(place: Path | None) -> str | None:
    return None if place is None else str(place)


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console

    console = Console()
    for (kind, family), title in TITLES.items():
        group = [row for row in rows if row["kind"] == kind and family in (None, row.get("family"))]
        if group:
            console.print(_table(title, group, console.width >= WIDE), "")
    console.print("* in the hub's cache; `controlnet models fetch NAME` puts others there")


def _table(title: str, rows: Sequence[Mapping[str, Any]], is_wide: bool) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for heading in ("", "name"):
        table.add_column(heading, no_wrap=True)
    for heading in ("what for", "licence"):
        table.add_column(heading)
    for heading in ("size", "published by") if is_wide else ():
        table.add_column(heading, no_wrap=True)
    for row in rows:
        what_for = ", ".join(filter(None, (row.get("condition"), row.get("about"))))
        cells = ["*" if row["cached"] else "", row["name"], what_for, row["licence"]]
        if is_wide:
            cells += [size(row["size"]) if row["size"] else "", row["repository"].removeprefix(row["name"])]
        table.add_row(*map(Text, cells))
    return table
