"""`controlnet train` from outside: exit codes and messages."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from controlnet.cli.main import run
from controlnet.training.checkpoint import checkpoints


def arguments(base_folder: Path, data: Path, out: Path, *others: str) -> list[str]:
    told = {"--base": base_folder, "--data": data, "--out": out, "--device": "cpu", "--train-batch-size": 4}
    return ["train", *(str(word) for pair in told.items() for word in pair), "--num-validation-images", "1", *others]


def test_a_training_prints_the_path_of_its_control(
    base_folder: Path, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(arguments(base_folder, circles, out, "--max-train-steps", "1")) == 0
    assert capsys.readouterr().out.strip() == str(out / "control.safetensors")
    assert (out / "control.safetensors").is_file()


def test_a_folder_that_is_no_data_set_ends_with_2_before_anything_is_written(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    assert run(arguments(base_folder, tmp_path / "photos", tmp_path / "run")) == 2
    assert "prompt.json" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_wrong_option_ends_with_2_and_is_named(
    base_folder: Path, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(base_folder, circles, tmp_path / "run", "--learning-rate", "7")) == 2
    assert "--learning-rate is 7.0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_with_its_code_and_a_checkpoint(
    base_folder: Path, circles: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    command = arguments(base_folder, circles, out, "--max-train-steps", "100000", "--validation-steps", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "controlnet", *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    metrics = out / "metrics.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 3):
        time.sleep(0.1)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    ((step, _),) = checkpoints(out)
    assert f"stopped at step {step}; run the same command to continue" in told
    assert "Traceback" not in told
