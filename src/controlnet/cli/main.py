"""The command `controlnet`: finds the command's options, parses them, runs them, turns errors into exit codes.

What a module of a command offers (see `doctor.py` for a whole one):

- A frozen dataclass per command. Its fields are the command's options, their docstrings are the help text, a field
  of type `tyro.conf.Positional[...]` is a positional argument; tyro derives the command line. Options of a command
  that computes inherit `controlnet.cli.common.Compute` (`--device`, `--dtype`).
- `__call__(self) -> int | None` runs the command; None means exit code 0.
- At its top it imports only what is light (dataclasses, pathlib, tyro, `errors`, `devices`, configurations): torch,
  diffusers, transformers, cv2, numpy and rich are imported inside `__call__`.
- Where the options depend on a positional argument, a static method `for_arguments(arguments) -> type` that gives the
  dataclass to parse them with (`annotate.py` is the example).
- A line in `COMMANDS` below. `"data circles"` makes `circles` a command of the group `data`.

Exit codes: 0 done, 1 a check found defects (`DefectsFound`), 2 the request cannot be done as asked (`UserError`, wrong
options), 130 Ctrl-C, 143 SIGTERM, 141 the reader of our output went away. Any other exception is a bug: traceback.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import NoReturn

from controlnet import __version__
from controlnet.cli.process import keep_freed_memory, let_threads_sleep
from controlnet.errors import DefectsFound, UserError

# name -> (where its options are, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("controlnet.cli.demo:Demo", "the whole main job in minutes: data, training, control, pictures"),
    "train": ("controlnet.cli.train:Train", "attach a ControlNet to a base and train it"),
    "generate": ("controlnet.cli.generate:Generate", "pictures from a prompt, with or without a control"),
    "studio": ("controlnet.cli.studio:Studio", "all of it in a browser: one web app for every control"),
    "data circles": ("controlnet.cli.data:Circles", "draw the fill-circle lesson"),
    "data check": ("controlnet.cli.data:Check", "report every defect of a data set at once"),
    "data report": ("controlnet.cli.data:DataReport", "a page about a data set: what it holds, what is wrong"),
    "base train": ("controlnet.cli.base:Train", "make the embedded base from nothing"),
    "base evaluate": ("controlnet.cli.base:Evaluate", "measure what a base knows from text alone"),
    "evaluate": ("controlnet.cli.evaluate:Evaluate", "fidelity, FID and CLIP score of a control on pairs"),
    "annotate": ("controlnet.cli.annotate:Annotate", "hints of pictures: edges, depth, poses, ..."),
    "build": ("controlnet.cli.build:Build", "a data set from prompts, addresses, an index or pictures"),
    "build index": ("controlnet.cli.build:BuildIndex", "an index of pictures that can be searched"),
    "build search": ("controlnet.cli.build:Search", "search an index by words or by a picture"),
    "attach": ("controlnet.cli.attach:Attach", "a new ControlNet beside a base, in a file"),
    "transfer": ("controlnet.cli.transfer:Transfer", "move a control to another base of its family"),
    "merge": ("controlnet.cli.merge:Merge", "weighted sums and differences of controls"),
    "convert": ("controlnet.cli.convert:Convert", "bases and controls from any format to any other"),
    "inspect": ("controlnet.cli.inspect:Inspect", "what a file or folder of weights is, and what it holds"),
    "models list": ("controlnet.cli.models:List", "public models that are known by name"),
    "models fetch": ("controlnet.cli.models:Fetch", "download public models"),
    "doctor": ("controlnet.cli.doctor:Doctor", "what this machine has: versions, devices, weights, caches"),
}

INTERRUPTED = "interrupted: every file already written is whole; the same command run again goes on from there"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `arguments` (default: the process's own) and exit with the documented code."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    let_threads_sleep()
    keep_freed_memory()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """The exit code of `controlnet` with `arguments`; errors for people are printed to stderr."""
    # where it is installed, diffusers imports it, and it warns of a kernel that nothing here asks for
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        code = _dispatch(list(arguments))
        sys.stdout.flush()
        return code
    except UserError as error:
        _complain("error", "bold red", str(error))
        return 2
    except DefectsFound as defects:
        _complain("defects found", "bold yellow", str(defects))
        return 1
    except KeyboardInterrupt:
        _complain("", "", INTERRUPTED)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # the interpreter flushes stdout once more at exit; give it somewhere to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # SIGPIPE, which Windows does not name


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case []:
            print(help_text(), file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(help_text())
            return 0
        case ["--version", *_]:
            print(f"controlnet {__version__}")
            return 0
        case [group, "-h" | "--help", *_] if _is_group(group):
            print(help_text(group))
            return 0
        case [group, name, *rest] if f"{group} {name}" in COMMANDS:
            return _run_command(f"{group} {name}", rest)
        case [name, *rest] if name in COMMANDS:
            return _run_command(name, rest)
    raise UserError(_unknown(arguments))


def _run_command(name: str, arguments: list[str]) -> int:
    import tyro

    home, summary = COMMANDS[name]
    module, kind = home.split(":")
    options = getattr(import_module(module), kind)
    if hasattr(options, "for_arguments"):
        options = options.for_arguments(arguments)
    command: Callable[[], int | None] = tyro.cli(
        options, prog=f"controlnet {name}", description=summary, args=arguments
    )
    return command() or 0


def help_text(group: str = "") -> str:
    """The table of commands, of all or of one group, as plain text."""
    commands = {name: summary for name, (_, summary) in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in commands.items()]
    usage = f"usage: controlnet {group or '[--version]'} COMMAND [OPTIONS]".replace("  ", " ")
    return "\n".join([usage, "", "commands:", *lines, "", "`controlnet COMMAND --help` tells the command's options."])


def _is_group(name: str) -> bool:
    return any(command.startswith(f"{name} ") for command in COMMANDS)


def _unknown(arguments: list[str]) -> str:
    group = arguments[0] if _is_group(arguments[0]) else ""
    asked = " ".join(arguments[: 2 if group else 1])
    near = get_close_matches(asked, COMMANDS, n=1)
    remedy = f"did you mean `{near[0]}`?" if near else "`controlnet --help` lists the commands"
    found = f"`{asked}` needs a command after it" if asked == group else f"there is no command `{asked}`"
    expected = ", ".join(name for name in COMMANDS if name.startswith(group))
    return f"{found}; expected one of: {expected}; {remedy}"


def _complain(title: str, style: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    prefix = (f"{title}: ", style) if title else ""
    Console(stderr=True, soft_wrap=True).print(Text.assemble(prefix, message))


def _exit_on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    # an exception, so that `finally` and temporary files are dealt with on the way out
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
