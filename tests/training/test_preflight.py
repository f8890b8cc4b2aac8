"""What a dry run says is so, and nothing is left of it."""

import re
import tempfile
from pathlib import Path

import pytest

from controlnet.base import Base
from controlnet.errors import DefectsFound
from controlnet.training import preflight as module
from controlnet.training.checkpoint import checkpoint_path
from controlnet.training.preflight import Needs, preflight
from tiny_runs import make_config, train_until, unvalidated


def test_a_dry_run_tells_what_the_run_needs_and_leaves_nothing_behind(
    base: Base,
    base_folder: Path,
    circles: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "run"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    options = {"base": str(base_folder), "gradient_accumulation_steps": 2, "dry_run": True}
    preflight(make_config(circles, out, 40, **options))
    told = capsys.readouterr().out
    assert not out.exists()
    assert not list(scratch.iterdir())
    assert re.search(r"--gradient-accumulation-steps +│ 2 ", told)
    assert re.search(r"a step +│ [\d.]+ s for 8 pairs", told)
    assert re.search(r"passes over the data +│ 13\.3 of 24 pairs", told)
    assert re.search(r"the optimizer's state +│ [\d.]+ MiB", told)
    with unvalidated():
        train_until(1, make_config(circles, out, 40), base)
    size = checkpoint_path(out, 1).stat().st_size / 2**20
    (tells,) = re.findall(r"a checkpoint +│ ([\d.]+) MiB", told)
    assert float(tells) == pytest.approx(size, abs=0.2)


def test_a_disk_that_is_too_small_is_a_defect(
    base_folder: Path, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_free", lambda out: 2**20)
    with pytest.raises(DefectsFound, match=r"has 1\.0 MiB free, the run needs [\d.]+ MiB; make room for it"):
        preflight(make_config(circles, tmp_path / "run", 40, base=str(base_folder)))


def test_disk_counts_one_checkpoint_more_than_is_kept_and_the_cache_of_all_pairs() -> None:
    needs = Needs([9.0, 2.0, 1.0], {}, checkpoint=100, control=30, cached_pair=0.5)
    assert needs.disk(pairs=1000, checkpoints=2) == 30 + 3 * 100 + 500
    assert needs.step == 1.0
