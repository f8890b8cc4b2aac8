"""`controlnet train`: attach a ControlNet to a base and train it; the same command again continues."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from controlnet.cli.common import importing, option_name, value_of
from controlnet.errors import UserError
from controlnet.training.config import TrainConfig
from controlnet.training.other_names import ALIASES, REFUSED


@dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train a ControlNet on pairs of picture, hint and prompt; the same command again continues where it stopped.

    Options of the original's and of diffusers' training scripts mean the same here, under their names.
    """

    config: Path | None = None
    """A TOML file with any of these options, with underscores in their names; what is said here prevails."""

    @staticmethod
    def for_arguments(arguments: Sequence[str]) -> type:
        """The options with the defaults of the file that --config names. UserError for what there is on purpose not."""
        given = [option_name(word) for word in arguments if word.startswith("--")]
        if refused := [name for name in dict.fromkeys(given) if name in REFUSED]:
            raise UserError("\n".join(f"there is no --{_dashed(name)}: {REFUSED[name]}" for name in refused))
        place = value_of("config", arguments)
        return _options({} if place is None else read_config(Path(place)))

    def __call__(self) -> None:
        with importing():
            from controlnet.training.plan import plan
            from controlnet.training.preflight import preflight
            from controlnet.training.run import train

        if self.plan:
            print(plan(self.out, self.max_train_steps, self.train_batch_size))
            return None
        if self.dry_run:
            return preflight(self)
        trained = train(self)
        if trained.rank == 0:
            print(trained.control)


def read_config(path: Path) -> dict[str, Any]:
    """The options in a TOML file; files are looked for from its folder, `out` from here. UserError for all problems."""
    import tomllib

    from controlnet.generation.values import read_fields

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}; expected a TOML file of options") from error
    problems = [f"there is no {name}: {REFUSED[name]}" for name in values if name in REFUSED]
    known = {ALIASES.get(name, name): value for name, value in values.items() if name not in REFUSED}
    options = read_fields(TrainConfig, known, problems)
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return {name: _from(path.parent, name, value) for name, value in options.items()}


def _options(defaults: dict[str, Any]) -> type:
    """`Train` with these defaults, and with the names that other scripts have for its options."""
    types = get_type_hints(Train, include_extras=True)
    theirs = {ours: [f"--{_dashed(name)}" for name, to in ALIASES.items() if to == ours] for ours in ALIASES.values()}
    annotated: Any = Annotated
    changed = []
    for each in fields(Train):
        if each.name in defaults or each.name in theirs:
            named = annotated[types[each.name], tyro.conf.arg(aliases=theirs.get(each.name, []))]
            default = defaults.get(each.name, each.default)
            changed.append((each.name, named, field() if default is MISSING else field(default=default)))
    told = {"__doc__": Train.__doc__}
    return make_dataclass("Train", changed, bases=(Train,), frozen=True, kw_only=True, namespace=told)


def _from(folder: Path, name: str, value: Any) -> Any:
    """A path of a file of options, as seen from here."""
    if name == "out":
        return value
    if isinstance(value, tuple):
        return tuple(_from(folder, name, each) for each in value)
    is_place = isinstance(value, Path) or name in ("data", "validation_data", "base", "control", "pretrained_vae")
    return type(value)(folder / value) if is_place and (folder / value).exists() else value


def _dashed(name: str) -> str:
    return name.replace("_", "-")
