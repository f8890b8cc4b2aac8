import json
import subprocess
import sys
from pathlib import Path

import pytest

from controlnet.errors import UserError
from controlnet.training.config import TrainConfig, check_same_run


def test_every_wrong_value_is_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(
            data=Path("d"),
            out=Path("o"),
            max_train_steps=0,
            train_batch_size=-1,
            learning_rate=2.0,
            proportion_empty_prompts=1.5,
            seed=-1,
        )
    message = str(caught.value)
    for option in ("max-train-steps", "train-batch-size", "learning-rate", "proportion-empty-prompts", "seed"):
        assert f"--{option} is" in message


def test_a_change_that_changes_what_is_learned_is_refused_and_named(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    before = TrainConfig(data=Path("d"), out=tmp_path, learning_rate=1e-4, seed=1)
    record.write_text(json.dumps({**before.to_json(), "data_fingerprint": "a"}))
    after = TrainConfig(data=Path("d"), out=tmp_path, learning_rate=2e-4, seed=1)
    with pytest.raises(UserError, match=r"learning_rate: 0\.0001 in the run, 0\.0002 now") as caught:
        check_same_run(record, {**after.to_json(), "data_fingerprint": "b"})
    assert "data_fingerprint: a in the run, b now" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_a_run_may_go_on_for_more_steps_with_other_intervals(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    record.write_text(json.dumps(TrainConfig(data=Path("d"), out=tmp_path).to_json()))
    longer = TrainConfig(
        data=Path("d"), out=tmp_path, max_train_steps=9999, validation_steps=7, checkpointing_steps=9, device="cpu"
    )
    check_same_run(record, longer.to_json())


def test_the_config_imports_nothing_heavy() -> None:
    code = "import sys, controlnet.training.config; print(any(m in sys.modules for m in ('torch', 'numpy', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_unlocking_and_only_mid_may_be_switched_and_a_learning_rate_with_them(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    before = TrainConfig(data="d", out=tmp_path, learning_rate=1e-4, only_mid_control=True)
    record.write_text(json.dumps(before.to_json()))
    after = TrainConfig(data="d", out=tmp_path, learning_rate=2e-6, sd_unlocked=True)
    told = check_same_run(record, after.to_json())
    assert sorted(text.partition(":")[0] for text in told) == ["learning_rate", "only_mid_control", "sd_unlocked"]


def test_other_changes_are_taken_when_they_are_allowed(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    record.write_text(json.dumps(TrainConfig(data="d", out=tmp_path, seed=1).to_json()))
    after = TrainConfig(data="d", out=tmp_path, seed=2, allow_changes=True)
    assert check_same_run(record, after.to_json()) == ["seed: 1 in the run, 2 now"]


def test_a_record_of_an_older_version_means_the_defaults_for_what_it_does_not_know(tmp_path: Path) -> None:
    record = tmp_path / "config.json"
    now = TrainConfig(data="d", out=tmp_path).to_json()
    record.write_text(json.dumps({name: value for name, value in now.items() if name != "snr_gamma"}))
    assert check_same_run(record, now) == []
    with pytest.raises(UserError, match=r"snr_gamma: None in the run, 5\.0 now"):
        check_same_run(record, {**now, "snr_gamma": 5.0})
