"""`controlnet generate`: pictures from a prompt, by the base alone or under controls; one, or a whole list of jobs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from controlnet.cli.common import Compute, importing, value_of
from controlnet.errors import UserError
from controlnet.generation.memory import MemoryOptions
from controlnet.generation.recipe import PictureOptions, Recipe, UnitChoice, read_unit
from controlnet.generation.unit_text import parse, write
from controlnet.generation.values import read_fields

if TYPE_CHECKING:
    from controlnet.generation.jobs import Job
    from controlnet.generation.picture_file import Made
    from controlnet.generation.production import Outcome, Production

WAYS = ("storage", "vae", "attention")  # of saving memory, that may change a grey level


@dataclass(frozen=True, kw_only=True)
class Generate(PictureOptions, Compute, MemoryOptions):
    """Pictures from a prompt, written as PNG files that carry all their settings; prints the path of each.

    Run the same command again to go on after an interruption: pictures that are there are not made again, and none is
    ever overwritten.
    """

    out: Path
    """Folder for the pictures."""
    prompt: str | None = None
    """What to show."""
    control: str | None = None
    """A trained control: its file in any format, the folder of its training, or a name. Short for --unit control=..."""
    hint: str | None = None
    """The control image of the first unit: a picture, by default of the size to generate."""
    strength: float | None = None
    """How strongly the first unit acts: 1 as trained, 0 not at all."""
    unit: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A unit: control=FILE,hint=FILE or control=FILE,image=FILE,annotator=NAME,annotator.OPTION=...; and strength,
    start, end, schedule, layer_weights (numbers with colons between them), mask, mode (balanced, prompt, control),
    resize (crop, fill, stretch, original), channel_order. As often as there are controls."""
    config: Path | None = None
    """A TOML file with any of these options, with underscores in their names, and units as [[units]] tables."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A picture that was made by this command: make it again, bit for bit on the same machine, or with the options that
    are given besides."""
    preset: str | None = None
    """What the original's apps add to prompts: original or original-1.1."""
    jobs: str | None = None
    """Many pictures: a table (.csv, .jsonl) whose columns are options, a folder or glob of hints, or a data set."""
    count: int = 1
    """How many pictures, of each job; picture i has seed + i."""
    batch_size: int = 4
    """Pictures computed together: more are faster and need more memory."""
    compile: bool = False
    """Let torch compile the networks: minutes the first time, where there is a C++ compiler, then faster steps."""
    grid: Path | None = None
    """Write a sheet with all pictures beside their hints, too: a .png."""

    @staticmethod
    def for_arguments(arguments: Sequence[str]) -> type:
        """The options with the defaults that a preset, a file of options or a picture among the arguments gives."""
        origin, config, preset = (value_of(name, arguments) for name in ("from", "config", "preset"))
        of_file = _options_of_file(Path(config)) if config else {}
        preset = preset or of_file.get("preset")
        of_preset = _options_of_preset(preset) if preset else {}
        of_picture = _options_of_picture(Path(origin)) if origin else {}
        defaults = {**of_picture, **of_preset, **of_file}
        return _with_defaults(defaults) if defaults else Generate

    def __call__(self) -> None:
        with importing():
            from controlnet.generation.production import Production

        problems: list[str] = []
        jobs = self._jobs(problems)
        options = MemoryOptions(**{each.name: getattr(self, each.name) for each in fields(MemoryOptions)})
        problems += options.problems()
        if self.compile and options.is_saving:
            problems.append("--compile with models that move to save memory; choose one of them")
        production = Production(jobs, self.device, self.dtype, self._batch_size(jobs), options, self.compile)
        production.check(problems)
        outcomes: list[Outcome] = []
        try:
            self._produce(production, outcomes)
        finally:
            print(*(outcome.path for outcome in outcomes), sep="\n", end="\n" * bool(outcomes))  # under the bar
        if self.grid is not None:
            from controlnet.generation.sheet import write_sheet

            write_sheet([(outcome.path, outcome.made.recipe) for outcome in outcomes], self.grid)

    def _jobs(self, problems: list[str]) -> "list[Job]":
        from controlnet.generation.jobs import Job, find_jobs, single

        for option, value in (("--count", self.count), ("--batch-size", self.batch_size)):
            if value < 1:
                problems.append(f"{option} {value}; expected at least 1")
        if self.grid is not None and self.grid.suffix != ".png":
            problems.append(f"--grid {self.grid}; expected a name that ends in .png")
        recipe, jobs = self._recipe(problems), list[Job]()
        if self.jobs is None:
            problems += [] if self.prompt is not None else ["no prompt; give --prompt, or --jobs with one for each"]
            problems += recipe.problems()
            return self._again(recipe) or single(recipe, max(self.count, 1))
        try:
            jobs, wrong = find_jobs(self.jobs, recipe, self.prompt is not None, self.count, self.out)
            problems += wrong
        except UserError as error:
            problems.append(str(error))
        return jobs or [Job(None, replace(recipe, units=()))]

    def _recipe(self, problems: list[str]) -> Recipe:
        """What all jobs start from."""
        units = [unit for number, text in enumerate(self.unit, 1) if (unit := _unit(text, number, problems))]
        said: dict[str, Any] = {"hint": self.hint, "strength": self.strength}
        said = {name: value for name, value in said.items() if value is not None}
        if self.control is not None:
            units.insert(0, UnitChoice(control=self.control, **said))
        elif said and units:
            units[0] = replace(units[0], **said)
        elif said:
            problems += [f"--{name} is given without --control; a control and its hint go together" for name in said]
        shared = {each.name: getattr(self, each.name) for each in fields(PictureOptions)}
        return Recipe(**shared, prompt=self.prompt or "", units=tuple(units))

    def _again(self, recipe: Recipe) -> "list[Job]":
        """The batch of the picture that is to be made again, if nothing else is said; else none."""
        from controlnet.generation.production import companions

        made = self._origin()
        if self.from_ is None or made is None or made.recipe != recipe or self.count != 1:
            return []
        return companions(self.from_, made)

    def _origin(self) -> "Made | None":
        from controlnet.generation.picture_file import read_made

        return read_made(self.from_) if self.from_ is not None else None

    def _batch_size(self, jobs: "list[Job]") -> int:
        """That of the batch that is made again, all at once."""
        return len(jobs) if any(job.name is None for job in jobs) else self.batch_size

    def _produce(self, production: "Production", outcomes: "list[Outcome]") -> None:
        """With a progress bar, and a word on what is not as expected."""
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            say = partial(bar.console.print, style="yellow", markup=False, soft_wrap=True)
            if self.safety != "off":
                say(f"safety checker: {production.checker or 'none; the pictures are not checked'}")
            if production.needs is not None:
                say(f"memory: {production.memory}: {production.needs} of {self.memory_limit}")
            for warning in production.warnings:
                say(warning)
            wanted = sum(job.name is not None for job in production.jobs)
            task = bar.add_task(f"{wanted} picture(s)", total=len(production.jobs))
            for batch in production.produce(self.out, lambda done: bar.update(task, completed=done)):
                outcomes += batch
                for outcome in batch:
                    if outcome.made.safety.get("unsafe"):
                        say(f"{outcome.path}: found unsafe by the checker ({self.safety})")
        self._compare(outcomes, say)

    def _compare(self, outcomes: "list[Outcome]", say: "Callable[[str], None]") -> None:
        """Says what has changed since the picture was made that is made again."""
        from controlnet.generation.production import differences

        origin = self._origin()
        for outcome in outcomes:
            if origin is not None and outcome.made.recipe == origin.recipe:
                for difference in differences(origin, outcome.made):
                    say(f"{outcome.path} may differ from {self.from_}: {difference}")


def _unit(text: str, number: int, problems: list[str]) -> UnitChoice | None:
    try:
        return read_unit(parse(text), f"unit {number}: ", problems)
    except ValueError as error:
        problems.append(f"unit {number}: {text!r}: {error}")
        return None


def _with_defaults(defaults: dict[str, Any]) -> type:
    types = get_type_hints(Generate, include_extras=True)
    changed = [(name, types[name], field(default=value)) for name, value in defaults.items()]
    kind = {"__doc__": Generate.__doc__}
    return make_dataclass("Generate", changed, bases=(Generate,), frozen=True, kw_only=True, namespace=kind)


def _options_of_picture(path: Path) -> dict[str, Any]:
    from controlnet.generation.picture_file import read_made
    from controlnet.images import header_size

    header_size(path)  # says what is wrong with it
    made = read_made(path)
    if made is None:
        raise UserError(f"{path}: no settings of ours inside; expected a PNG that `controlnet generate` has written")
    options = {each.name: getattr(made.recipe, each.name) for each in fields(PictureOptions)}
    where = {name: made.machine[name] for name in ("device", "dtype", *WAYS) if name in made.machine}
    return {**options, **where, "prompt": made.recipe.prompt, "unit": tuple(map(write, made.recipe.units))}


def _options_of_file(path: Path) -> dict[str, Any]:
    """Of TOML. Its files are looked for from its folder, but `out` from here. UserError for all that is wrong."""
    import tomllib

    from controlnet.generation.jobs import beside

    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}; expected a TOML file of options") from error
    problems: list[str] = []
    tables = values.pop("units", [])
    units = [read_unit(beside(path.parent, table), f"unit {i}: ", problems) for i, table in enumerate(tables, 1)]
    given = {"from_" if name == "from" else name: value for name, value in values.items()}
    options = read_fields(Generate, beside(path.parent, given), problems)
    problems += [f"{name} belongs on the command line" for name in ("config", "from_") if name in options]
    if problems:
        raise UserError("\n".join(f"{path}: {it}" for it in problems))
    return options | ({"unit": tuple(write(unit) for unit in units if unit)} if tables else {})


def _options_of_preset(name: str) -> dict[str, Any]:
    from controlnet.generation.prompts import PRESETS

    if name not in PRESETS:
        raise UserError(f"preset {name!r}; expected one of: {', '.join(PRESETS)}")
    return dict(PRESETS[name])
