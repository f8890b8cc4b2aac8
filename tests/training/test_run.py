import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import load_control, read_metadata
from controlnet.data.pairs import Pairs
from controlnet.errors import UserError
from controlnet.training import run as running
from controlnet.training.checkpoint import checkpoint_path, checkpoints
from controlnet.training.config import TrainConfig
from controlnet.training.ranks import Ranks
from controlnet.training.run import open_all, train
from tiny_runs import at_step, make_config


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_run_that_stopped_and_went_on_equals_an_uninterrupted_one_bit_for_bit(
    base: Base, circles: Path, tmp_path: Path, stop: int
) -> None:
    # 20 pairs in batches of 4: the epoch ends with step 5, and a run of 7 sees a second one
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(make_config(circles, whole, 7), base=base)
    train(make_config(circles, parted, stop), base=base)
    train(make_config(circles, parted, 7), base=base)
    expected, found = (load_file(checkpoint_path(out, 7)) for out in (whole, parted))
    assert expected.keys() == found.keys()
    assert any("exp_avg" in name for name in expected)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different
    started = load_file(checkpoint_path(parted, stop))
    assert any(not torch.equal(started[name], found[name]) for name in found)


def test_a_finished_run_is_not_trained_again(
    base: Base, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(circles, tmp_path / "run", 2)
    first = train(config, base=base)
    written = first.control.stat().st_mtime_ns
    assert train(config, base=base) == first
    assert first.control.stat().st_mtime_ns == written
    assert "is finished: 2 steps" in capsys.readouterr().err


def test_a_finished_run_that_is_asked_for_fewer_steps_keeps_what_it_has_measured(
    base: Base, circles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(make_config(circles, out, 2), base=base)
    measured = (out / "metrics.csv").read_text()
    assert train(make_config(circles, out, 1), base=base).step == 2
    assert (out / "metrics.csv").read_text() == measured


def test_a_run_writes_what_its_user_looks_for(base: Base, circles: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = train(make_config(circles, out, 4, validation_steps=2, checkpointing_steps=1), base=base)
    for name in ("config.json", "metrics.csv", "curve.png", "samples/step-000000.png", "samples/step-000004.png"):
        assert (out / name).is_file(), name
    assert [step for step, _ in checkpoints(out)] == [3, 4]
    assert [validation.step for validation in trained.history] == [0, 2, 4]
    assert trained.history[0].hint_gain == 0
    assert trained.history[0].fidelity is not None
    metadata = read_metadata(out)
    assert metadata.condition == "circle"
    assert metadata.family == "sd1"
    assert metadata.prediction_type == "epsilon"
    assert metadata.hint_channels == 3
    assert metadata.hint_range == "0..1"
    assert metadata.base_hash == base.hash()
    control, _ = load_control(out, base)
    last = load_file(checkpoint_path(out, 4))
    for name, tensor in control.state_dict().items():
        assert torch.equal(tensor, last[f"/state_dict/control.{name}"]), name


def test_epochs_are_of_the_pairs_that_are_trained_on(base: Base, circles: Path, tmp_path: Path) -> None:
    # 24 pairs, of which 6 are held out unless others are named
    for others, steps in (({}, 9), ({"validation_data": circles}, 12)):
        config = TrainConfig(data=circles, out=tmp_path, num_train_epochs=2, train_batch_size=4, device="cpu", **others)
        assert open_all(config, Ranks.find(1, 1), base=base)[0].max_train_steps == steps


def test_the_base_stays_as_it_was(base_folder: Path, circles: Path, tmp_path: Path) -> None:
    base = open_base(str(base_folder), device="cpu")
    before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
    train(make_config(circles, tmp_path / "run", 3), base=base)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.unet.state_dict().items())


def test_another_learning_rate_in_the_same_folder_is_refused(base: Base, circles: Path, tmp_path: Path) -> None:
    train(make_config(circles, tmp_path / "run", 1), base=base)
    with pytest.raises(UserError, match=r"learning_rate: 0\.001 in the run, 0\.5 now"):
        train(make_config(circles, tmp_path / "run", 2, learning_rate=0.5), base=base)


def test_changed_pictures_and_another_base_are_refused(
    base: Base, base_folder: Path, circles: Path, tmp_path: Path
) -> None:
    config = make_config(circles, tmp_path / "run", 1)
    train(config, base=base)
    other = open_base(str(base_folder), device="cpu")
    next(other.unet.parameters()).data += 0.1
    with pytest.raises(UserError, match="base_hash"):
        train(config, base=other)
    with pytest.raises(UserError, match="data_fingerprint"):
        train(config, dataset=Pairs(circles)[:20], base=base)


def test_a_folder_of_other_files_is_no_run(base: Base, circles: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no run"):
        train(make_config(circles, tmp_path, 1), base=base)


def test_shuffled_hints_never_converge(base: Base, circles: Path, tmp_path: Path) -> None:
    pairs = Pairs(circles)[:]
    shuffled = [{**pair, "hint": other["hint"]} for pair, other in zip(pairs, pairs[7:] + pairs[:7], strict=True)]
    trained = train(make_config(circles, tmp_path / "run", 40, validation_steps=5), dataset=shuffled, base=base)
    assert len(trained.history) == 9
    assert trained.convergence is None


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_goes_on_from_there(
    base: Base,
    circles: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    ending: type[BaseException],
) -> None:
    out = tmp_path / "run"
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)]
    with at_step(3, lambda: os.kill(os.getpid(), number)), pytest.raises(ending) as caught:
        train(make_config(circles, out, 6), base=base)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 143
    assert "stopped at step 3; run the same command to continue" in capsys.readouterr().err
    assert [step for step, _ in checkpoints(out)] == [3]
    assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)] == handlers
    train(make_config(circles, out, 6), base=base)
    train(make_config(circles, tmp_path / "whole", 6), base=base)
    expected, found = (load_file(checkpoint_path(folder, 6)) for folder in (tmp_path / "whole", out))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_interrupt_in_the_middle_of_a_step_is_a_keyboard_interrupt(
    base: Base, circles: Path, tmp_path: Path
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with at_step(2, twice), pytest.raises(KeyboardInterrupt):
        train(make_config(circles, tmp_path / "run", 6), base=base)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_full_disk_while_saving_leaves_the_previous_checkpoint_to_go_on_from(
    base: Base, circles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(make_config(circles, out, 2), base=base)
    saved = checkpoint_path(out, 2)
    before = saved.read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, unlimited[1]))
    try:
        with pytest.raises(UserError, match="step-000004"):
            train(make_config(circles, out, 4), base=base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert [path for _, path in checkpoints(out)] == [saved]
    assert saved.read_bytes() == before
    assert list((out / "checkpoints").iterdir()) == [saved]
    train(make_config(circles, out, 4), base=base)
    assert [step for step, _ in checkpoints(out)] == [2, 4]


def test_rings_are_recognised_and_other_hints_are_not(base: Base, circles: Path) -> None:
    class Hints:
        def __init__(self, hints: list[object]) -> None:
            self.hints, self.meaning = hints, {}

        def __len__(self) -> int:
            return len(self.hints)

        def hint_of(self, row: int) -> object:
            return self.hints[row]

    rings = [Pairs(circles).raw(index)[1] for index in range(8)]
    pictures = [Pairs(circles).raw(index)[0] for index in range(8)]
    assert running._condition(Hints(rings)) == "circle"  # type: ignore[arg-type]
    assert running._condition(Hints(pictures)) == "unknown"  # type: ignore[arg-type]
