"""docs/checkpoints.md: its runs, repeated, print what it says."""

import re
from pathlib import Path

import pytest

from controlnet.cli.main import run

PAGE = Path(__file__).parent.parent.parent / "docs" / "checkpoints.md"


def runs() -> list[tuple[str, str]]:
    """Every command of the page and what it prints there."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    parts = re.split(r"^\$ controlnet ", "\n".join(blocks), flags=re.MULTILINE)[1:]
    return [(command, printed.strip()) for command, _, printed in (part.partition("\n") for part in parts)]


def words(command: str) -> list[str]:
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]


def lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.mark.slow
def test_every_run_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for command, said in runs():
        assert run(words(command)) == 0, command
        pattern = r"[^\0]*".join(map(re.escape, lines(said).split("...")))  # what the page leaves out
        assert re.fullmatch(pattern, lines(capsys.readouterr().out)), command


def test_the_page_has_runs():
    assert len(runs()) > 8
