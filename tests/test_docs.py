"""What README.md and docs/ mention exists: files, headings, commands, options, names; and README's Python runs."""

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import controlnet
from controlnet.cli.main import COMMANDS, run
from controlnet.evaluation.fidelity import mean_fidelity

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BY_NAME = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def links(page: Path) -> list[str]:
    """Targets of links and pictures, in Markdown and HTML, that lead to a file or a heading of ours."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of `page`."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        text
        for language, text in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
        if language in languages
    ]


def command_name(words: list[str]) -> str:
    """Of a call's words; empty if there is no such command."""
    return next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS), "")


def commands(page: Path) -> Iterator[list[str]]:
    """Every call of `controlnet` in the shell blocks of `page`, as words."""
    for block in blocks(page, "sh", "bash", "console", "powershell"):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True, posix=False)
            if words and re.split(r"[\\/]", words[0])[-1] == "controlnet":
                yield words[1:]


@BY_NAME
def test_every_link_and_picture_leads_somewhere(page):
    broken = []
    for link in links(page):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and target.suffix == ".md" and heading not in headings(target)):
            broken.append(link)
    assert broken == []


@BY_NAME
def test_every_command_exists_with_its_options(page, capsys):
    wrong = []
    for words in commands(page):
        name = command_name(words)
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        with suppress(SystemExit):
            run([*takewhile(lambda word: not word.startswith("-"), words), "--help"])
        known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        wrong += [" ".join(words)] if options - known or not (name or options) else []
    assert wrong == []


@BY_NAME
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = {target for block in blocks(page, "sh", "bash") for target in re.findall(r"^make ([\w-]+)", block, re.M)}
    assert asked - targets == set()


@BY_NAME
def test_every_python_block_parses_and_names_what_the_package_offers(page):
    for block in blocks(page, "python"):
        used = {
            node.attr
            for node in ast.walk(ast.parse(block))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "controlnet"
        }
        assert [name for name in used if not hasattr(controlnet, name)] == []


@BY_NAME
def test_no_figure_is_still_to_be_filled_in(page):
    assert re.findall(r"FIGURE_\w+", page.read_text()) == []


def test_the_readme_shows_every_command():
    assert set(COMMANDS) - {command_name(words) for words in commands(ROOT / "README.md")} == set()


def test_every_place_on_the_map_exists():
    [tree] = re.findall(r"```\n(src/controlnet/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    inner = "src/controlnet/"
    places = [inner * line.startswith("  ") + line.split()[0] for line in tree.splitlines()]
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_the_python_of_the_readme_paints_a_circle_in_its_ring(tmp_path, monkeypatch):
    [code] = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    with Image.open("circle.png") as picture:
        assert mean_fidelity([np.asarray(picture)], [np.asarray(names["hint"])]) > 0.8


def test_the_pages_say_something_that_these_tests_check():
    assert list(commands(ROOT / "README.md"))
    assert links(ROOT / "README.md")
