"""What is shown while a build goes on: of every stage its rows, and how many a second."""

import io

import pytest
from rich.console import Console

from build import made
from controlnet.build.counts import Counts
from controlnet.build.recipe import make_recipe
from controlnet.build.run import build
from controlnet.cli.build_progress import WINDOW, Pace, Progress, stage_table
from controlnet.cli.main import run


def shard(came: int, seconds: float, left: int | None = None) -> Counts:
    return Counts(came=came, left=came if left is None else left, seconds=seconds)


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def pace(clock: list[float]) -> Pace:
    return Pace(now=lambda: clock[0])


def test_each_stage_has_its_rows_its_rate_and_what_a_row_costs(pace: Pace, clock: list[float]) -> None:
    """Two workers: shards of ten rows end every second, each having taken two."""
    for time in (102.0, 103.0, 104.0, 105.0):
        clock[0] = time
        pace.note({"download": shard(10, 1.5, left=5), "annotate": shard(5, 0.5)})
    assert pace.rate("download") == pytest.approx(40 / 5)
    assert pace.rate("annotate") == pytest.approx(20 / 5)
    assert pace.cost("download") == pytest.approx(0.15)
    assert pace.cost("annotate") == pytest.approx(0.1)
    assert pace.line() == "download 20/40 (8/s), annotate 20/20 (4/s)"


def test_shards_of_an_earlier_run_are_rows_and_no_speed(pace: Pace, clock: list[float]) -> None:
    pace.note({"resize": shard(1000, 0.0)})
    assert (pace.counts["resize"].came, pace.rate("resize"), pace.cost("resize")) == (1000, None, None)
    clock[0] = 101.0
    pace.note({"resize": shard(10, 1.0)})
    assert pace.counts["resize"].came == 1010
    assert pace.rate("resize") == pytest.approx(10)


def test_a_rate_is_that_of_the_last_minute(pace: Pace, clock: list[float]) -> None:
    for second in range(200):
        clock[0] = 101.0 + second
        pace.note({"resize": shard(100 if second < 100 else 10, 1.0)})
    assert pace.rate("resize") == pytest.approx(10, rel=0.01)
    assert len(pace._steps["resize"]) <= WINDOW + 3, "memory stays"


def test_every_stage_of_a_build_is_timed_but_for_what_was_done_before(tmp_path) -> None:
    told = {
        "source": {"kind": "files", "path": str(made.folder(tmp_path / "pictures", 12))},
        "shard_size": 5,
        "stage": [{"kind": "sharpness"}, {"kind": "duplicates"}, {"kind": "resize", "size": 64}],
        "sink": {"kind": "webdataset"},
    }
    first, again = Pace(), Pace()
    build(make_recipe(told, tmp_path / "recipe.toml"), tmp_path / "out", report=first.note)
    assert list(first.counts) == ["source", "sharpness", "duplicates", "resize"]
    for stage in first.counts:
        assert first.rate(stage) > 0, stage
        assert first.cost(stage) > 0, stage
    build(make_recipe(told, tmp_path / "recipe.toml"), tmp_path / "out", report=again.note)
    assert not again.worked


def shown(pace: Pace, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(stage_table(pace.counts, pace, **options))
    return console.file.getvalue()


def test_the_table_has_a_line_for_every_stage_with_all_of_it(pace: Pace, clock: list[float]) -> None:
    clock[0] = 102.0
    download = Counts(came=1000, left=900, seconds=1.0)
    download.failed["http 404"] = 100
    pace.note({"download": download})
    [line] = [line for line in shown(pace, with_reasons=True).splitlines() if "download" in line]
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells == ["download", "1,000", "0", "900", "0", "100", "1,000", "1", "http 404: 100"]


def test_a_terminal_shows_the_stages_and_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlnet.cli.build_progress.REDRAWN", 0.0)
    monkeypatch.setattr("controlnet.cli.build_progress.TOLD", 0.0)
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=120, force_terminal=is_terminal)
        with Progress("building out", console) as progress:
            progress.report({"annotate": shard(10, 1.0)})
            progress.report({"annotate": shard(10, 1.0)})
        text = console.file.getvalue()
        assert ("rows/s" in text) == is_terminal
        assert ("annotate 20/20 (" in text) != is_terminal


def test_the_command_ends_with_the_rates(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    made.folder(tmp_path / "pictures", 6)
    recipe = '[source]\nkind = "files"\npath = "pictures"\n[[stage]]\nkind = "resize"\nsize = 64\n[sink]\nkind = "{}"\n'
    (tmp_path / "recipe.toml").write_text(recipe.format("webdataset"))
    assert run(["build", str(tmp_path / "recipe.toml"), str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "rows/s" in told.out
    assert "ms each" in told.out
