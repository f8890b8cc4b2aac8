"""The command line: light help, documented exit codes, errors without tracebacks."""

import os
import signal
import subprocess
import sys
import time

import pytest

from controlnet import __version__
from controlnet.cli.main import COMMANDS, run
from controlnet.cli.process import LOOKS, OWN_CHOICES, OWN_THRESHOLDS

COMMAND = [sys.executable, "-m", "controlnet"]

# a command that says when it runs, and when it tidies up after a signal
WAITING = """
import time
from dataclasses import dataclass
from controlnet.cli import main
from controlnet.errors import DefectsFound, UserError

@dataclass(frozen=True)
class Wait:
    def __call__(self):
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("tidied", flush=True)

main.COMMANDS["wait"] = ("__main__:Wait", "waits")
main.main(["wait"])
"""

# a command that ends as its one option says
ENDING = """
import sys
from dataclasses import dataclass
from controlnet.cli import main
from controlnet.errors import DefectsFound, UserError

@dataclass(frozen=True)
class End:
    by: str

    def __call__(self):
        if self.by == "code":
            return 1
        raise {"user": UserError, "defects": DefectsFound, "bug": RuntimeError}[self.by]("found [b]that[/b]")

main.COMMANDS["end"] = ("__main__:End", "ends")
main.main(["end", *sys.argv[1:]])
"""


def end(by: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", ENDING, "--by", by], capture_output=True, text=True)


def test_help_answers_in_under_half_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_lists_every_command(capsys):
    assert run(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [name for name, (_, summary) in COMMANDS.items() if name not in printed or summary not in printed] == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_torch(command):
    source = (
        "import sys; from controlnet.cli.main import run\n"
        f"try: run({[*command.split(), '--help']})\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'lightning', 'cv2', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_group_help_lists_only_the_commands_of_the_group(capsys):
    assert run(["data", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "data circles" in printed
    assert "base train" not in printed


def test_version_is_the_packages(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"controlnet {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean `train`"),
        (["data", "circle"], "did you mean `data circles`"),
        (["data"], "data circles, data check"),
        (["--frobnicate"], "controlnet --help"),
        ([], "usage: controlnet"),
    ],
)
def test_unknown_command_is_exit_2_with_the_remedy(arguments, said, capsys):
    assert run(arguments) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_unknown_option_is_exit_2_and_named(capsys):
    with pytest.raises(SystemExit) as ended:
        run(["doctor", "--frobnicate"])
    assert ended.value.code == 2
    assert "--frobnicate" in capsys.readouterr().err


def test_a_user_error_is_exit_2_without_traceback_and_verbatim():
    ended = end(by="user")
    assert (ended.returncode, ended.stderr) == (2, "error: found [b]that[/b]\n")


def test_found_defects_are_exit_1():
    ended = end(by="defects")
    assert (ended.returncode, ended.stderr) == (1, "defects found: found [b]that[/b]\n")


def test_the_number_that_a_command_returns_is_the_exit_code():
    assert end(by="code").returncode == 1


def test_a_bug_shows_its_traceback():
    ended = end(by="bug")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")])
def test_a_signal_ends_a_command_tidily_with_its_documented_code(number, code, said):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "tidied\n")
    assert said in err
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error_message():
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([*COMMAND, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_doctor_tells_versions_devices_memory_caches_and_weights_without_a_gpu(capsys):
    assert run(["doctor"]) == 0
    printed = capsys.readouterr().out
    sections = ("Versions", "Devices", "Memory and disk", "Caches", "Weights found", "Would be downloaded")
    assert [section for section in sections if section not in printed] == []


SPIN_COUNT = """
import os
from dataclasses import dataclass
from controlnet.cli import main

@dataclass(frozen=True)
class Tell:
    def __call__(self):
        print(os.environ.get("GOMP_SPINCOUNT"))

main.COMMANDS["tell"] = ("__main__:Tell", "tells")
main.main(["tell"])
"""


@pytest.mark.parametrize(
    ("chosen", "told"),
    [({}, str(LOOKS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_that_wait_soon_sleep_unless_their_user_chose_otherwise(chosen: dict[str, str], told: str):
    environment = {name: value for name, value in os.environ.items() if name not in OWN_CHOICES} | chosen
    ended = subprocess.run([sys.executable, "-c", SPIN_COUNT], capture_output=True, text=True, env=environment)
    assert ended.stdout == f"{told}\n"


FAULTS = """
import resource
import numpy as np
from controlnet.cli.process import keep_freed_memory

print(keep_freed_memory())
for again in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**23)  # 64 MB, gone at once
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.parametrize(
    ("chosen", "is_kept"),
    [({}, True), ({"MALLOC_ARENA_MAX": "2"}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)],
)
def test_freed_memory_is_kept_unless_its_user_chose_otherwise(chosen: dict[str, str], is_kept: bool):
    environment = {name: value for name, value in os.environ.items() if name not in OWN_THRESHOLDS} | chosen
    ended = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, env=environment)
    told, faults = ended.stdout.split()
    assert told == str(is_kept)
    assert (int(faults) < 100) == is_kept  # each 64 MB are 16,384 pages, or 32 large ones
