"""What a data set is, on one page that can be mailed: its samples and sizes, what is twice, what a training rejects.

Of a build also what became of every row, its licences, and the hosts it came from.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from controlnet.atomic import write_atomically
from controlnet.build.counts import Counts
from controlnet.build.duplicates import Duplicates
from controlnet.build.pictures import perceptual_hash
from controlnet.build.rows import Row
from controlnet.build.shards import rows_in
from controlnet.data.check import Finding, Report, check
from controlnet.data.formats.recognise import open_records
from controlnet.data.formats.records import USUAL, Columns, Record, Records
from controlnet.errors import UserError
from controlnet.evaluation.page import bars, data_uri, escaped, figures, page, samples, table
from controlnet.images import decode

SAMPLES, SIDE = 24, 256  # shown, evenly over the data set; pixels of each
PAIRS = 8  # of near duplicates that are shown
MOST = 12  # lines of a table of kinds; the rest together
FINDINGS = 40
WORDS = (0, 5, 10, 20, 40, 77)  # a caption's length falls between two of these; CLIP reads some 77 tokens
REST = "others"


@dataclass
class _Seen:
    """What the pictures and captions of a data set come to."""

    sizes: Counter[str] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    captions: Counter[str] = field(default_factory=Counter)
    hashes: list[Row] = field(default_factory=list)
    """One for each picture that can be read: its index as id, its perceptual hash."""


def write_report(place: str, out: Path, columns: Columns = USUAL) -> None:
    """Write the page about the data set at `place`. UserError where there is none."""
    text = report(place, columns)
    write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))


def report(place: str, columns: Columns = USUAL) -> str:
    """The page as text."""
    records, checked = open_records(place, columns), check(place, columns)
    seen = _look(records)
    twins = list(Duplicates().decide(seen.hashes).items())
    build = Path(place) if (Path(place) / "counts.json").is_file() else None
    return page(
        f"Data set {Path(place).name or place}",
        f'<p class="soft">{escaped(place)}</p>',
        figures(_told(seen, checked, len(twins)), {"median caption": "words", "near duplicates": "look alike"}),
        *([_stages(build)] if build else []),
        "<h2>Samples</h2>",
        samples(_sample(records.record(index)) for index in _spread(len(records), SAMPLES)),
        "<h2>Pictures and captions</h2>",
        bars("Sizes", _largest(seen.sizes)),
        bars("Words in a caption", _lengths(seen.words)),
        bars("Captions that are there more than once", _largest(Counter(_repeated(seen.captions)))),
        _twins(records, twins),
        *([_origins(build)] if build else []),
        _findings("What a training rejects", checked.errors),
        _findings("What may be meant, or not", checked.warnings),
    )


def _look(records: Records) -> _Seen:
    seen = _Seen()
    for index in range(len(records)):
        record = records.record(index)
        seen.words.append(len(record.prompt.split()))
        seen.captions[record.prompt] += 1
        try:
            rgb = decode(record.target.source)
        except UserError:
            continue  # told by the check
        seen.sizes[f"{rgb.shape[1]} x {rgb.shape[0]}"] += 1
        seen.hashes.append(Row(str(index), {"phash": perceptual_hash(rgb)}))
    return seen


def _told(seen: _Seen, checked: Report, twins: int) -> dict[str, str]:
    return {
        "pairs": f"{checked.pairs:,}",
        "sizes": f"{len(seen.sizes):,}",
        "distinct captions": f"{len(seen.captions):,}",
        "median caption": f"{median(seen.words or [0]):g}",
        "near duplicates": f"{twins:,}",
        "defects": f"{len(checked.errors):,}",
    }


def _stages(build: Path) -> str:
    """What became of the rows of a build, and why they are not here."""
    counts = {name: Counts.from_json(told) for name, told in _json(build / "counts.json").items()}
    rows = {
        name: f"{it.came:,} in, {it.made:,} made, {it.left:,} out, {it.dropped.total():,} dropped, "
        f"{it.failed.total():,} failed"
        for name, it in counts.items()
    }
    reasons = Counter[str]()
    for name, count in counts.items():
        reasons.update({f"{name}: {reason}": times for reason, times in (count.dropped + count.failed).items()})
    return f"<h2>What became of the rows</h2>{table(rows)}" + bars("Why rows are not here", _largest(reasons))


def _origins(build: Path) -> str:
    licences, hosts = Counter[str](), Counter[str]()
    for row in rows_in(build / "shards"):
        if row.status == "ok":
            licences[row.get("license", "not known")] += 1
            hosts[urlsplit(row.get("url", "")).hostname or "this machine"] += 1
    return "<h2>Where it is from</h2>" + bars("Licences", _largest(licences)) + bars("Hosts", _largest(hosts))


def _sample(record: Record) -> tuple[list[str], str]:
    stored = [record.target, *([record.hint] if record.hint else [])]
    return [uri for each in stored if (uri := _shown(each.read()))], record.prompt


def _shown(data: bytes) -> str | None:
    try:
        return data_uri(data, SIDE)
    except (OSError, ValueError):
        return None


def _twins(records: Records, twins: Sequence[tuple[str, tuple[str, str]]]) -> str:
    """Pairs of pictures that look alike, the first few."""
    if not twins:
        return ""
    pairs = [(int(detail.removeprefix("of ")), int(later)) for later, (_, detail) in twins[:PAIRS]]
    shown = ((_targets(records, pair), " and ".join(records.where(index)[1] for index in pair)) for pair in pairs)
    return f"<h2>Near duplicates</h2><p>{len(twins):,} pictures look like one before them.</p>" + samples(shown)


def _targets(records: Records, indices: Sequence[int]) -> list[str]:
    return [uri for index in indices if (uri := _shown(records.record(index).target.read()))]


def _findings(title: str, findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rest = f"<p>and {len(findings) - FINDINGS:,} more; `controlnet data check` tells all</p>"
    told = "".join(f'<p class="note">{escaped(finding)}</p>' for finding in findings[:FINDINGS])
    return f"<h2>{escaped(title)}</h2>{told}{rest if len(findings) > FINDINGS else ''}"


def _largest(counts: Counter[str]) -> dict[str, int]:
    """The most frequent, the rest as one."""
    shown = dict(counts.most_common(MOST))
    rest = counts.total() - sum(shown.values())
    return {**shown, **({REST: rest} if rest else {})}


def _lengths(words: Sequence[int]) -> dict[str, int]:
    counts = {f"{low} to {high - 1}": sum(low <= it < high for it in words) for low, high in pairwise(WORDS)}
    counts[f"{WORDS[-1]} or more"] = sum(it >= WORDS[-1] for it in words)
    return {name: count for name, count in counts.items() if count}


def _repeated(captions: Mapping[str, int]) -> dict[str, int]:
    return {caption: count for caption, count in captions.items() if count > 1}


def _spread(count: int, wanted: int) -> Iterator[int]:
    """Indices evenly over `count`."""
    yield from (index * count // wanted for index in range(wanted)) if count > wanted else range(count)


def _json(path: Path) -> dict[str, dict[str, object]]:
    told: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return told
