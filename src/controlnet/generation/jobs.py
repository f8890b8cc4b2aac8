"""Many pictures by one command: a folder of pictures, a data set of pairs, or a table with a line for each.

A line of a table (CSV with a heading, or JSON lines) says what is different from the command's own options: `prompt`,
`seed`, `steps`, ... under the options' names, `hint`, `strength`, ... of the first unit, `unit2.hint` of the second,
and `name`, that of the picture to write. In JSON lines `units` may be a list of whole units.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from controlnet.data.pairs import MANIFEST, Pairs
from controlnet.data.pictures import find_pictures
from controlnet.errors import UserError
from controlnet.generation.recipe import Recipe, UnitChoice, read_unit
from controlnet.generation.values import read_fields
from controlnet.images import header_size

NAMED = 20  # problems, at most; a wrong table has one on every line
# of all pictures alike: what is opened once, and what decides on showing them
FIXED = {"base", "ema", "tokenizer", "prediction", "lora", "safety", "safety_checker"}
COLUMNS = [each.name for each in fields(Recipe) if each.name not in FIXED | {"units"}]
OF_UNIT = [each.name for each in fields(UnitChoice)]
FILES = ("hint", "image", "mask", "jobs", "tokenizer", "safety_checker")
FILES_OR_NAMES = ("control", "base")
OF_A_UNIT = re.compile(r"unit([1-9])\.(.+)")


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    name: str | None
    """Of its file, without suffix, with forward slashes; None: it is made beside the others, but not written."""
    recipe: Recipe


Found = tuple[list[Job], list[str]]  # jobs, and what is wrong with them


def single(recipe: Recipe, count: int) -> list[Job]:
    """Pictures that differ in their seeds alone, and are named by them."""
    seeds = range(recipe.seed, recipe.seed + count)
    return [Job(str(seed), replace(recipe, seed=seed)) for seed in seeds]


def find_jobs(source: str, template: Recipe, has_prompt: bool, count: int, out: Path) -> Found:
    """`count` pictures, of seeds that follow one another, for each line or picture of `source`; and all that is wrong.

    A folder's or glob's pictures are the first unit's hints, or its images if it has an annotator; without units they
    are what is painted over. UserError where nothing can be read.
    """
    path = Path(source)
    if path.suffix.lower() in (".csv", ".jsonl"):
        made, problems = _of_table(path, template, has_prompt)
    elif (path / MANIFEST).is_file():
        pairs = Pairs(path)
        rows = [{"prompt": row.prompt, "hint": str(pairs.folder / row.source)} for row in pairs.rows]
        made, problems = _of_rows(enumerate(rows, 1), template, has_prompt=True, folder=Path())
    else:
        made, problems = _of_pictures(source, template, has_prompt, out)
    twice = [name for name, times in Counter(job.name for job in made).items() if times > 1]
    problems += [f"the name {name} belongs to several pictures; give each its own" for name in twice]
    if not made and not problems:
        problems = ["no line; expected one for each picture"]
    more = [f"and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    told = [f"{source}, {it}" for it in problems[:NAMED]] + more
    return [again for job in made for again in _with_seeds(job, count)], told


def unreadable(jobs: Sequence[Job]) -> list[str]:
    """Which of the pictures that the jobs read cannot be used, by their headers."""
    problems = []
    for place in dict.fromkeys(place for job in jobs for place in job.recipe.pictures()):
        try:
            header_size(place)
        except UserError as error:
            problems.append(str(error))
    return problems


def _with_seeds(job: Job, count: int) -> list[Job]:
    if count == 1:
        return [job]
    seeds = range(job.recipe.seed, job.recipe.seed + count)
    return [Job(f"{job.name}-{seed}", replace(job.recipe, seed=seed)) for seed in seeds]


def _of_pictures(source: str, template: Recipe, has_prompt: bool, out: Path) -> Found:
    jobs, problems = [], []
    for picture in find_pictures(source, out).items:
        if not isinstance(picture.source, Path):
            raise UserError(f"{source}: not a folder of pictures; expected one, a table (.csv, .jsonl), or a glob")
        if picture.prompt is None and not has_prompt:
            problems.append(f"{picture.source}: no prompt; give --prompt, or a text file beside it")
        recipe = _about(template, str(picture.source))
        jobs.append(Job(picture.name, replace(recipe, prompt=picture.prompt or template.prompt)))
    return jobs, problems + [f"{job.name}: {it}" for job in jobs for it in job.recipe.problems()]


def _about(template: Recipe, place: str) -> Recipe:
    """The template, to be about this picture."""
    if not template.units:
        return replace(template, image=place)
    first, *others = template.units
    about = replace(first, image=place) if first.annotator else replace(first, hint=place)
    return replace(template, units=(about, *others))


def _of_table(path: Path, template: Recipe, has_prompt: bool) -> Found:
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(_csv_rows(text) if path.suffix.lower() == ".csv" else _json_rows(text))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}; expected a table of jobs"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}, {error}") from error
    return _of_rows(rows, template, has_prompt, path.parent)


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num}: more cells than headings; put text with commas into quotes")
        yield reader.line_num, {name.strip(): cell for name, cell in row.items() if cell}


def _json_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f'line {number}: expected an object, such as {{"prompt": "red circle"}}')
            yield number, {name: value for name, value in row.items() if value is not None}


def _of_rows(rows: Iterable[tuple[int, Mapping[str, Any]]], template: Recipe, has_prompt: bool, folder: Path) -> Found:
    jobs, problems = list[Job](), list[str]()
    for number, row in rows:
        wrong: list[str] = []
        recipe = _of_row(row, template, folder, wrong)
        if "prompt" not in row and not has_prompt:
            wrong.append("no prompt; give a column prompt, or --prompt for all")
        name = str(row.get("name", f"{len(jobs) + 1:04d}"))
        if not _is_inside(name):
            wrong.append(f"the name {name!r}; expected one inside of the folder for the pictures")
        problems += [f"line {number}: {it}" for it in (wrong or recipe.problems())]
        jobs.append(Job(name, recipe))
    return jobs, problems


def _of_row(row: Mapping[str, Any], template: Recipe, folder: Path, problems: list[str]) -> Recipe:
    """The template with what a line says instead; files are looked for beside the table."""
    own, of_units = dict[str, Any](), [_values(unit) for unit in template.units]
    if isinstance(row.get("units"), list):
        of_units = [dict(beside(folder, unit)) for unit in row["units"]]
    for name, value in row.items():
        numbered = OF_A_UNIT.fullmatch(name)
        number, field = (int(numbered[1]), numbered[2]) if numbered else (1, name)
        is_of_unit = numbered or name in ("hint", "control", "strength")
        if is_of_unit and number <= len(of_units):
            of_units[number - 1] |= beside(folder, {field: value})
        elif is_of_unit and (number, field) == (1, "control"):
            of_units.append(beside(folder, {field: value}))
        elif is_of_unit:
            problems.append(f"{name} without a unit {number}; give it by --unit or --control")
        elif name in FIXED:
            problems.append(f"{name} is the same for all pictures; say it by --{name.replace('_', '-')}")
        elif name not in ("name", "units"):
            own |= beside(folder, {name: value})
    read = read_fields(Recipe, own, problems)
    units = [read_unit(unit, f"unit {number}: ", problems) for number, unit in enumerate(of_units, 1)]
    return replace(template, **read, units=tuple(unit for unit in units if unit))


def _values(unit: UnitChoice) -> dict[str, Any]:
    return {name: value for name, value in asdict(unit).items() if value is not None}


def beside(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """With the paths of files from `folder`; what may be a name, too, is one unless there is such a file."""

    def place(name: str, value: Any) -> Any:
        if name == "lora" and isinstance(value, list):
            return [str(folder / each) for each in value]
        is_file = name in FILES or (name in FILES_OR_NAMES and (folder / str(value)).exists())
        return str(folder / value) if is_file and isinstance(value, str) else value

    return {name: place(name, value) for name, value in values.items()}


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name.strip()) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
