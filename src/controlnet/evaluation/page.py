"""A page to look at: one HTML file with its own style, for light and dark, with curves drawn as SVG.

Nothing in it comes from elsewhere and nothing runs: it can be mailed, archived, and opened in ten years.
"""

import base64
import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 720, 250  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 30  # around its plot
TICKS = 5
DRAWN = 400  # points of a line at most: more than pixels show nothing
TYPICAL = 0.98  # share of noisy points that must lie inside the chart
QUALITY = 86  # of pictures inside a page: a fifth of their PNG, and nobody sees it
ADVANCES = (1, 2, 5, 10)

Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]

STYLE = """
:root { color-scheme: light dark; --ground: #fbfaf8; --card: #ffffff; --ink: #22252b; --soft: #6a6f78; --line: #e6e3de;
  --a: #c2455a; --b: #0f7d8c; --c: #6b5bb3; --d: #a3a8b0; --mark: #c98a14; --warn: #fff4dc; --warn-ink: #6b4a05; }
@media (prefers-color-scheme: dark) { :root { --ground: #15171b; --card: #1d2025; --ink: #e6e7ea; --soft: #9aa0aa;
  --line: #2d3138; --a: #ef7f8f; --b: #4bb9c6; --c: #a699ea; --d: #6d737d; --mark: #e3b04b; --warn: #35290f;
  --warn-ink: #f3d9a0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .35rem; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.6rem 0 .8rem; font-weight: 650; }
p { margin: .3rem 0 .8rem; max-width: 46rem; } .soft { color: var(--soft); }
img { max-width: 100%; height: auto; border-radius: 6px; display: block; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem; overflow-x: auto;
  font-size: .86rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.figures div, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: .85rem; display: block; line-height: 1.35; }
.note { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: .7rem 1rem; margin: .5rem 0; }
.card { margin: 0 0 .9rem; padding: 1rem 1rem .6rem; } .card h3 { margin: 0 0 .4rem; font-size: 1rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: .8rem; height: .2rem; border-radius: 2px; vertical-align: middle;
  margin-right: .4rem; } .legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 11px; }
.strip { display: flex; gap: 1rem; overflow-x: auto; padding-bottom: .6rem; scroll-snap-type: x proximity; }
.strip figure { flex: 0 0 auto; width: min(30rem, 86vw); margin: 0; scroll-snap-align: start; }
figcaption { color: var(--soft); font-size: .85rem; margin: .35rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; } td { padding: .28rem .8rem .28rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); width: 16rem; overflow-wrap: normal; }
tr:last-child td { border-bottom: 0; } td.bar { width: 45%; } td + td { font-variant-numeric: tabular-nums; }
.bar i { display: block; height: .7rem; margin-top: .4rem; border-radius: 3px; background: var(--b); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
.samples figure { margin: 0; } .samples figure div { display: flex; gap: .3rem; }
.samples img { flex: 1 1 0; min-width: 0; object-fit: contain; }
details summary { cursor: pointer; color: var(--soft); }
"""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    points: Points
    colour: str
    """a, b, c or d of the page's palette."""
    style: str = "dots"
    """dots: each point is a measurement; noisy: a faint line with its running mean; dashed."""


def page(title: str, *parts: str) -> str:
    """The whole file: a title and the parts under it."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n"
        f"<main>\n<h1>{escaped(title)}</h1>\n" + "\n".join(filter(None, parts)) + "\n</main>\n</html>\n"
    )


def escaped(text: object) -> str:
    return html.escape(str(text))


def figures(told: Mapping[str, str], explained: Mapping[str, str]) -> str:
    """The numbers that matter, large, each with a word of what it means."""
    cells = "".join(
        f"<div><span>{escaped(name)}</span><b>{escaped(value)}</b><span>{escaped(explained.get(name, ''))}</span></div>"
        for name, value in told.items()
    )
    return f'<div class="figures">{cells}</div>'


def table(rows: Mapping[str, object]) -> str:
    cells = "".join(f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def bars(title: str, counts: Mapping[str, int]) -> str:
    """How often each thing is there, in numbers and as bars; empty if nothing is."""
    most = max(counts.values(), default=0)
    rows = "".join(
        f"<tr><td>{escaped(name)}</td><td>{count:,}</td>"
        f'<td class="bar"><i style="width: {100 * count / most:.1f}%"></i></td></tr>'
        for name, count in counts.items()
    )
    return f'<div class="card"><h3>{escaped(title)}</h3><table>{rows}</table></div>' if most else ""


def samples(shown: Iterable[tuple[Sequence[str], str]]) -> str:
    """Cells of pictures side by side (as `data_uri` gives them) with the words under them."""
    cells = "".join(
        "<figure><div>"
        + "".join(f'<img src="{uri}" alt="">' for uri in uris)
        + f"</div><figcaption>{escaped(text)}</figcaption></figure>"
        for uris, text in shown
    )
    return f'<div class="samples">{cells}</div>'


def strip(pictures: Iterable[tuple[str, Path]]) -> str:
    """Pictures side by side, to be scrolled through, inside the page."""
    shown = "".join(
        f'<figure><img src="{data_uri(path)}" alt="{escaped(name)}"><figcaption>{escaped(name)}</figcaption></figure>'
        for name, path in pictures
    )
    return f'<div class="strip">{shown}</div>'


def data_uri(source: Path | bytes, side: int | None = None) -> str:
    """A picture's file as text that a page can hold, no side longer than `side` pixels."""
    buffer = BytesIO()
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
        shown = image.convert("RGB")
    if side is not None:
        shown.thumbnail((side, side))
    shown.save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def chart(title: str, series: Sequence[Series], mark: tuple[int, str] | None = None) -> str:
    """Lines over steps, with a legend that tells their last values; empty if there is nothing to draw."""
    drawn = [each for each in series if each.points]
    if not drawn:
        return ""
    low, high = _range([value for each in drawn for value in _typical(each)])
    last = max(step for each in drawn for step, _ in each.points) or 1

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - min(max(value, low), high)) / (high - low)

    parts = [_grid(x, y, low, high, last)]
    if mark:
        parts.append(_mark(x(mark[0]), mark[1]))
    parts += [_line(each, [(x(step), y(value)) for step, value in _thinned(each.points)]) for each in drawn]
    legend = "".join(
        f'<span><i style="background: var(--{each.colour})"></i>{escaped(each.name)} '
        f"<b>{_number(each.points[-1][1])}</b></span>"
        for each in drawn
    )
    return (
        f'<div class="card"><h3>{escaped(title)}</h3><div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)}">{"".join(parts)}</svg></div>'
    )


def _grid(x: Scale, y: Scale, low: float, high: float, last: float) -> str:
    rows = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--line)"/>'
        f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{_number(value)}</text>'
        for value in ticks(low, high)
    )
    columns = "".join(
        f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:,.0f}</text>' for step in ticks(0, last)
    )
    return rows + columns


def _mark(at: float, text: str) -> str:
    side, offset = ("end", -7) if at > WIDTH / 2 else ("start", 7)
    return (
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--mark)" stroke-width="1.5"/>'
        f'<text x="{at + offset:.1f}" y="{TOP + 11}" text-anchor="{side}" style="fill: var(--mark)">'
        f"{escaped(text)}</text>"
    )


def _line(series: Series, points: Points) -> str:
    colour = f"var(--{series.colour})"
    draw = f'fill="none" stroke="{colour}" stroke-linejoin="round"'
    if series.style == "noisy":
        faint = f'<path d="{_path(points)}" {draw} stroke-width="1" opacity=".35"/>'
        return faint + f'<path d="{_path(_running_mean(points))}" {draw} stroke-width="1.8"/>'
    if series.style == "dashed":
        return f'<path d="{_path(points)}" {draw} stroke-width="1.5" stroke-dasharray="5 5"/>'
    dots = "".join(
        f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.6" fill="{colour}">'
        f"<title>{escaped(series.name)} {_number(value)} at step {step:,.0f}</title></circle>"
        for (across, down), (step, value) in zip(points, _thinned(series.points), strict=True)
    )
    return f'<path d="{_path(points)}" {draw} stroke-width="1.8"/>{dots}'


def _path(points: Points) -> str:
    return "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in points)


def _thinned(points: Points) -> Points:
    """At most DRAWN of the points, each the mean of its neighbours."""
    width = math.ceil(len(points) / DRAWN)
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    return [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in parts]


def _running_mean(points: Points) -> Points:
    reach = max(1, len(points) // 40)
    means = []
    for place, (across, _) in enumerate(points):
        near = [down for _, down in points[max(0, place - reach) : place + reach + 1]]
        means.append((across, sum(near) / len(near)))
    return means


def _typical(series: Series) -> list[float]:
    """The values that must be seen: of a noisy line not its spikes."""
    values = sorted(value for _, value in series.points)
    if series.style != "noisy":
        return values
    cut = int((1 - TYPICAL) * len(values))
    return values[cut : len(values) - cut]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low >= 0 and high <= 1 and high > 0.3:  # shares: all of the scale tells how far it is
        return 0.0, 1.0
    room = 0.06 * (high - low) or abs(high) or 1.0
    return (low - room if low - room > 0 or low < 0 else 0.0), high + room


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about TICKS of them."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    advance = next(each * power for each in ADVANCES if each * power >= rough * 0.999)
    first = math.ceil(low / advance - 1e-9)
    return [number * advance for number in range(first, math.floor(high / advance + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
