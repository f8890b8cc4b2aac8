import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from controlnet.errors import UserError
from controlnet.training import checkpoint as checkpointing
from controlnet.training.checkpoint import SafetensorsIO, checkpoint_path, checkpoints, last_good, like, prune, sweep

STATE: dict[str, Any] = {
    "state_dict": {"weight": torch.randn(3, 4), "wide": torch.randn(2, 8, 3, 3).to(memory_format=torch.channels_last)},
    "optimizer_states": [
        {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 4)}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "fused": True, "other": None}],
        }
    ],
    "loops": {"fit_loop": {"epoch": 0, "nested": {"done": False}}},
}


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


def test_a_checkpoint_comes_back_as_it_was_with_its_kinds(tmp_path: Path) -> None:
    SafetensorsIO().save_checkpoint(STATE, tmp_path / "a.safetensors")
    assert_same(SafetensorsIO().load_checkpoint(tmp_path / "a.safetensors"), STATE)


def test_what_json_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/callbacks/0: a checkpoint cannot hold set"):
        SafetensorsIO().save_checkpoint({"callbacks": [{1, 2}]}, tmp_path / "a.safetensors")


def test_a_full_disk_leaves_the_previous_checkpoint_whole_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 2)
    SafetensorsIO().save_checkpoint(STATE, first)
    save = checkpointing.save_file

    def torn(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        save(tensors, path, metadata)
        path.write_bytes(path.read_bytes()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing, "save_file", torn)
    with pytest.raises(UserError, match="no space left"):
        SafetensorsIO().save_checkpoint(STATE, second)
    assert [path for _, path in checkpoints(tmp_path)] == [first]
    assert list(first.parent.iterdir()) == [first]
    assert_same(SafetensorsIO().load_checkpoint(first), STATE)


def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    SafetensorsIO().save_checkpoint(STATE, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"a\.safetensors: cannot be read as a checkpoint.*remove it"):
        SafetensorsIO().load_checkpoint(path)


def test_every_one_of_500_flipped_bits_and_cuts_is_detected_and_the_one_before_taken(tmp_path: Path) -> None:
    good, last = checkpoint_path(tmp_path, 1), checkpoint_path(tmp_path, 2)
    for path in (good, last):
        SafetensorsIO().save_checkpoint(STATE, path)
    whole = last.read_bytes()
    chance = random.Random(0)
    for number in range(500):
        damaged = bytearray(whole)
        if number % 5:
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(whole)) :]
        last.write_bytes(damaged)
        told: list[str] = []
        assert last_good(tmp_path, told.append) == (1, good), f"damage {number}"
        assert str(last) in told[0]
        assert "going on from step 1, the last whole checkpoint" in told[1]
    last.write_bytes(whole)
    assert last_good(tmp_path, print) == (2, last)


def test_no_whole_checkpoint_at_all_is_an_error_and_none_yet_is_not(tmp_path: Path) -> None:
    assert last_good(tmp_path, print) is None
    path = checkpoint_path(tmp_path, 1)
    SafetensorsIO().save_checkpoint(STATE, path)
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="none of the 1 checkpoints .* is whole"):
        last_good(tmp_path, lambda told: None)
    assert path.with_name(path.name + ".damaged").read_bytes() == b"torn"


def test_a_checkpoint_of_another_format_is_not_taken_for_ours(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    path.parent.mkdir()
    save_file({"weight": torch.zeros(1)}, path, {"format": "controlnet-checkpoint-1", "state": "{}"})
    with pytest.raises(UserError, match="its format is controlnet-checkpoint-1, expected controlnet-checkpoint-2"):
        SafetensorsIO().load_checkpoint(path)


def test_the_order_of_a_save_is_write_flush_rename_flush_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    save, fsync, replace = checkpointing.save_file, os.fsync, os.replace

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **named: (calls.append(name), call(*arguments, **named))[1]

    def kind(handle: int) -> str:
        return "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"

    checkpoint_path(tmp_path, 1).parent.mkdir()
    monkeypatch.setattr(checkpointing, "save_file", noted("write", save))
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(f"flush {kind(handle)}"), fsync(handle)))
    monkeypatch.setattr(os, "replace", noted("rename", replace))
    SafetensorsIO().save_checkpoint(STATE, checkpoint_path(tmp_path, 1))
    assert calls == ["write", "flush file", "rename", "flush folder"]


def test_what_killed_processes_left_behind_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    SafetensorsIO().save_checkpoint(STATE, path)
    for left in (path.with_name(".step-000002.abcd.tmp.safetensors"), tmp_path / ".config.abcd.tmp.json"):
        left.write_bytes(b"torn")
    sweep(tmp_path)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]


def test_all_but_the_last_two_are_pruned_in_order_of_steps(tmp_path: Path) -> None:
    for step in (5, 100, 20, 1_000_000):
        SafetensorsIO().save_checkpoint({}, checkpoint_path(tmp_path, step))
    (tmp_path / "checkpoints" / ".step-000200.ab.tmp.safetensors").write_bytes(b"")
    prune(tmp_path)
    assert [step for step, _ in checkpoints(tmp_path)] == [100, 1_000_000]


def test_optimizer_state_takes_the_layout_of_its_parameter() -> None:
    parameter = torch.randn(4, 8, 3, 3).to(memory_format=torch.channels_last)
    state = torch.randn(4, 8, 3, 3)
    assert like(parameter, state).stride() == parameter.stride()
    assert torch.equal(like(parameter, state), state)
    assert like(parameter, torch.tensor(2.0)).item() == 2
