"""Trainings as processes: what is asked, who runs, what is shown."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from controlnet.data.circles import write_circles
from controlnet.errors import UserError
from controlnet.studio.offer import Offer
from controlnet.studio.runs import Run, RunAsked, Trainings
from controlnet.studio.train_views import checked, curves, data_report, figures, planned, reported

HEAD = "step,loss,images_per_second,peak_memory,held_out_loss,base_loss,hint_gain,fidelity,text_accuracy\n"


def trainings(folder: Path) -> Trainings:
    (folder / "data" / "rings").mkdir(parents=True)
    return Trainings(Offer.of(["embedded"], [], [], None, folder / "data", folder / "studio", "cpu", "float32"))


def run_with(folder: Path, rows: str, steps: int = 200) -> Run:
    """A run of another's making."""
    place = folder / "studio" / "runs" / "first"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"max_train_steps": steps}))
    (place / "metrics.csv").write_text(HEAD + rows)
    return Run("first", place, place.with_suffix(".json"))


CONVERGED = "0,,,,0.5,,0.0,0.1,\n100,0.4,20,,0.4,,0.3,0.2,\n200,0.3,20,,0.3,,0.5,0.9,\n"


def test_the_command_says_all_that_was_asked(tmp_path):
    all_of_it = RunAsked(name="first", data="rings", steps=7, batch_size=3, learning_rate=0.001, condition="canny")
    command = all_of_it.command(trainings(tmp_path).offer)
    assert command[:4] == [sys.executable, "-m", "controlnet", "train"]
    said = dict(zip(command[4::2], command[5::2], strict=True))
    assert said["--data"] == str(tmp_path / "data" / "rings")
    assert said["--out"] == str(tmp_path / "studio" / "runs" / "first")
    wanted = {"--max-train-steps": "7", "--train-batch-size": "3", "--learning-rate": "0.001", "--condition": "canny"}
    assert said | wanted == said


def test_the_command_is_one_that_train_takes(tmp_path):
    command = RunAsked(name="first", data="rings").command(trainings(tmp_path).offer)
    ended = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    wrong = RunAsked(name="../x", data="rings", steps=0, batch_size=0, learning_rate=2, condition="--device")
    with pytest.raises(UserError) as told:
        trainings(tmp_path).start(wrong)
    for word in ("name '../x'", "0 steps", "batch size 0", "learning rate 2", "condition '--device'"):
        assert word in str(told.value)


@pytest.mark.parametrize("data", ["..", "../../etc", "/etc", "nothing"])
def test_data_are_chosen_among_those_offered(tmp_path, data):
    with pytest.raises(UserError, match="expected one of: rings"):
        trainings(tmp_path).start(RunAsked(name="first", data=data))


def test_a_process_is_known_by_its_number_and_its_birth(tmp_path):
    run = run_with(tmp_path, "")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = psutil.Process(child.pid).create_time()
    run.record.write_text(json.dumps({"pid": child.pid, "created": born}))
    assert run.state == "running"
    run.record.write_text(json.dumps({"pid": child.pid, "created": born - 60}))  # its number was another's then
    assert run.state == "stopped"
    run.record.write_text(json.dumps({"pid": child.pid, "created": born}))
    child.kill()
    while run.process is not None:  # ended, and not yet waited for
        time.sleep(0.01)
    assert run.state == "stopped"
    child.wait()


def test_one_training_at_a_time(tmp_path):
    started = trainings(tmp_path)
    run = run_with(tmp_path, "")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run.record.write_text(json.dumps({"pid": child.pid, "created": psutil.Process(child.pid).create_time()}))
    with pytest.raises(UserError, match="the run first is running; stop it first"):
        started.start(RunAsked(name="second", data="rings"))
    started.stop("first")
    assert child.wait(30) == -15  # by the signal that lets a training save


def test_what_was_not_started_here_is_not_continued_here(tmp_path):
    started = trainings(tmp_path)
    run_with(tmp_path, CONVERGED)
    with pytest.raises(UserError, match="was not started here"):
        started.resume("first", 300)
    with pytest.raises(UserError, match="is not running"):
        started.stop("first")
    with pytest.raises(UserError, match="there is a run first"):
        started.start(RunAsked(name="first", data="rings"))


def test_figures_and_curves_tell_the_convergence(tmp_path):
    run = run_with(tmp_path, CONVERGED)
    assert "200 of 200" in figures(run)
    assert "converged at step 100: fidelity 0.10 -&gt; 0.90" in figures(run)
    assert 'data-step="200"' in curves(run)
    assert curves(run).count("<svg") == 2
    assert "gradient-accumulation" in planned(run, 1000, 4)


def test_a_run_that_failed_before_its_first_figures_shows_its_last_words(tmp_path):
    run = run_with(tmp_path, "")
    run.record.with_suffix(".log").write_text("\x1b[31merror:\x1b[0m <no> data")
    assert "error: &lt;no&gt; data" in figures(run)
    assert "no report yet" in reported(run)


def test_a_report_cannot_run_anything(tmp_path):
    run = run_with(tmp_path, "")
    (run.folder / "report.html").write_text('<script>alert("x")</script>')
    assert "<script" not in reported(run)
    assert " sandbox " in reported(run)


def test_defects_are_shown_with_their_pictures(tmp_path):
    folder = tmp_path / "data" / "bad"
    write_circles(folder, count=4, size=64, processes=1)
    Image.fromarray(np.eye(32, 64, dtype=np.uint8) * 255).save(folder / "source" / "2.png")
    (folder / "source" / "3.png").write_bytes(b"no picture")
    offer = trainings(tmp_path).offer
    report = data_report("bad", offer)
    assert (report["pairs"], len(report["defects"])) == (4, 2)
    shown = checked("bad", offer)
    assert "4 pairs, 2 defects" in shown
    assert shown.count("<img") == 3  # both of the third pair, the target of the last
