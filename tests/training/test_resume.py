"""A run that was stopped, however and however often, ends as one that was not: bit for bit."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controlnet.base import Base
from controlnet.errors import UserError
from controlnet.training.checkpoint import SafetensorsIO, checkpoint_path, checkpoints
from controlnet.training.run import train
from tiny_runs import differences, distance, make_config, seen_samples, train_until, unvalidated

TESTS = Path(__file__).parents[1]
PAIRS = 18  # of the 24 circles, the others held out


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_run_that_stops_after_every_step_of_two_epochs_equals_an_uninterrupted_one_bit_for_bit(
    base: Base, circles: Path, tmp_path: Path, accumulation: int, workers: int
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    steps = -(-2 * PAIRS // (4 * accumulation))
    options = {
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": workers,
        "lr_scheduler": "cosine",
        "ema_decay": 0.9,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 100,
    }
    configs = {out: make_config(circles, out, steps + 1, **options) for out in (whole, parted)}
    with unvalidated():
        with seen_samples() as undisturbed:
            train_until(steps, configs[whole], base)
        with seen_samples() as seen:
            for step in range(1, steps + 1):
                train_until(step, configs[parted], base)
    assert seen == undisturbed
    assert len({sample for step in seen for sample in step}) == 4 * accumulation * steps
    for step in range(1, steps + 1):
        assert not differences(whole, parted, step), f"step {step}"


def test_accumulated_steps_in_workers_go_on_after_a_stop_bit_for_bit(base: Base, circles: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    options = {"gradient_accumulation_steps": 2, "dataloader_num_workers": 2, "train_batch_size": 2}
    with unvalidated(), seen_samples() as seen:
        train_until(3, make_config(circles, whole, 4, **options), base)
        train_until(2, make_config(circles, parted, 4, **options), base)
        train_until(3, make_config(circles, parted, 4, **options), base)
    assert seen[:3] == seen[3:]
    assert not differences(whole, parted, 3)


def test_steps_in_parts_equal_whole_ones_up_to_rounding(base: Base, circles: Path, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": 9}
    with unvalidated():
        train_until(2, make_config(circles, whole, 3, **options), base)
        options |= {"train_batch_size": 1, "gradient_accumulation_steps": 4}
        train_until(2, make_config(circles, parted, 3, **options), base)
    assert 0 < distance(whole, parted, 1) < 1e-5
    assert distance(whole, parted, 2) < 1e-3  # Adam makes much of the smallest gradients


def test_a_damaged_checkpoint_is_told_set_aside_and_the_one_before_it_gone_on_from(
    base: Base, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(circles, tmp_path, 5, checkpointing_steps=1)
    with unvalidated():
        train_until(2, config, base)
        last = checkpoint_path(tmp_path, 2)
        content = bytearray(last.read_bytes())
        content[-1] ^= 1
        last.write_bytes(content)
        train_until(3, config, base)
    told = capsys.readouterr().err
    assert "its content does not fit its digest" in told
    assert "going on from step 1, the last whole checkpoint" in told
    assert last.with_name(last.name + ".damaged").read_bytes() == content
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 3]


def test_a_run_goes_back_to_the_checkpoint_it_is_told_and_keeps_the_later_ones_aside(
    base: Base, circles: Path, tmp_path: Path
) -> None:
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": 10}
    with unvalidated(), seen_samples() as seen:
        train_until(3, make_config(circles, tmp_path, 5, **options), base)
        with pytest.raises(UserError, match=r"expected latest or one of this run's: step-000001, step-000002"):
            train(make_config(circles, tmp_path, 5, resume_from_checkpoint="7", **options), base=base)
        train_until(2, make_config(circles, tmp_path, 5, resume_from_checkpoint="1", **options), base)
    assert seen[3] == seen[1]
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 2]
    assert len(list((tmp_path / "checkpoints").glob("*.left"))) == 2


def test_a_checkpoint_says_where_in_the_data_it_is_and_what_it_was_trained_on(
    base: Base, circles: Path, tmp_path: Path
) -> None:
    with unvalidated():
        train_until(6, make_config(circles, tmp_path, 7), base)
    run = SafetensorsIO().load_checkpoint(checkpoint_path(tmp_path, 6))["run"]
    assert run["position"] == {"step": 6, "epoch": 1, "place_in_epoch": 6}
    assert run["identity"]["base_hash"] == base.hash()
    assert run["identity"]["data_fingerprint"] == json.loads((tmp_path / "config.json").read_text())["data_fingerprint"]
    assert len(run["identity"]["config_hash"]) == 64
    assert {"python", "numpy", "torch"} <= run["random"].keys()


def test_other_data_is_refused_by_name_and_taken_when_told(base: Base, circles: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "run"
    shutil.copytree(circles, other)
    lines = (other / "prompt.json").read_text().splitlines()
    (other / "prompt.json").write_text("\n".join(lines[:-1]))
    with unvalidated():
        train_until(1, make_config(circles, out, 3), base)
        with pytest.raises(UserError, match=r"data_pairs: 24 in the run, 23 now(.|\n)*--allow-changes"):
            train(make_config(other, out, 3), base=base)
        train_until(2, make_config(other, out, 3, allow_changes=True), base)
    assert [step for step, _ in checkpoints(out)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("kills", ["boundaries", "times"])
def test_a_run_killed_anywhere_goes_on_and_loses_at_most_one_interval(
    base_folder: Path, circles: Path, tmp_path: Path, kills: str
) -> None:
    """See `killed.py`: it forks a process for each kill, for importing torch takes longer than all they do."""
    command = [sys.executable, str(TESTS / "killed.py"), kills, str(base_folder), str(circles), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    killed = int(done.stdout.split()[-1])
    assert killed >= {"boundaries": 60, "times": 100}[kills]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_code_and_a_whole_checkpoint_within_five_seconds(
    base_folder: Path, circles: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-m", "controlnet", "train", "--base", str(base_folder), "--data", str(circles)]
    command += ["--out", str(tmp_path), "--max-train-steps", "100000", "--train-batch-size", "1", "--device", "cpu"]
    command += ["--validation-steps", "100000", "--checkpointing-steps", "100000", "--num-validation-images", "1"]
    process = subprocess.Popen([*command, "--dataloader-num-workers", "2"], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.csv"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.1)
    process.send_signal(number)
    sent = time.time()
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == code, errors
    ((step, path),) = checkpoints(tmp_path)
    assert SafetensorsIO().load_checkpoint(path)["global_step"] == step
    assert path.stat().st_mtime - sent < 5, "a step takes a fraction of a second, and so does a tiny checkpoint"
