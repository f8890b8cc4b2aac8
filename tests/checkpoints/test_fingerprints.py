"""Digests of large files: computed once, and again when a file has changed."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from controlnet.checkpoints import fingerprints
from controlnet.checkpoints.fingerprints import fingerprint, remembered


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large enough to be remembered, in an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fingerprints, "WORTH", 3)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    return path


def counting(answers: list[str]) -> tuple[list[str], Callable[[], str]]:
    asked: list[str] = []

    def compute() -> str:
        asked.append(answers[len(asked)])
        return asked[-1]

    return asked, compute


def test_a_files_fingerprint_is_its_sha_256(weights: Path):
    assert fingerprint(weights) == hashlib.sha256(b"weights").hexdigest() == fingerprint(weights)


def test_it_is_computed_once_for_a_file_and_a_purpose_and_again_when_the_file_changes(weights: Path):
    asked, compute = counting(["a", "b", "c"])
    assert [remembered(compute, weights, "base") for _ in range(3)] == ["a"] * 3
    assert remembered(compute, weights, "other") == "b"
    weights.write_bytes(b"WEIGHTS, others")
    assert remembered(compute, weights, "base") == "c"
    assert asked == ["a", "b", "c"]


def test_a_folder_changes_with_each_of_its_files(weights: Path):
    (weights.parent / "unet").mkdir()
    (weights.parent / "unet" / "config.json").write_text("{}")
    before = fingerprint(weights.parent)
    (weights.parent / "unet" / "config.json").write_text("{ }")
    assert fingerprint(weights.parent) != before


def test_small_files_leave_nothing_behind(weights: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fingerprints, "WORTH", 1000)
    fingerprint(weights)
    assert not fingerprints._store().exists()


def test_a_damaged_memory_is_no_hindrance(weights: Path):
    fingerprint(weights)
    fingerprints._store().write_text("{")
    assert fingerprint(weights) == hashlib.sha256(b"weights").hexdigest()
