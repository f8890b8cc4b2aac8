"""A build that encodes its pairs: trainings find it all, whatever the sink, and lose nothing to a kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console

from build import made
from controlnet.base import Base, open_base
from controlnet.cli.main import run
from controlnet.data.pairs import Pairs
from controlnet.training import cache
from controlnet.training.run import train
from controlnet.training.stepwise import StepwiseModule
from tiny_runs import make_config, unvalidated

COUNT = 24
TOML = """
shard_size = 9
[source]
kind = "files"
path = "pictures"
[[stage]]
kind = "annotate"
condition = "canny"
options.detect_resolution = 128
[sink]
kind = "{sink}"
[encode]
base = "{base}"
{options}
"""
FLOAT = 'dtype = "float32"'


def recipe(folder: Path, base: Path, sink: str = "webdataset", options: str = FLOAT, size: int = 128) -> Path:
    if not (folder / "pictures").exists():
        made.folder(folder / "pictures", COUNT, size)
    (folder / "recipe.toml").write_text(TOML.format(sink=sink, base=base, options=options))
    return folder / "recipe.toml"


def build(path: Path, out: Path) -> int:
    return run(["build", str(path), str(out), "--device", "cpu"])


@contextmanager
def counted(base: Base) -> Iterator[dict[str, int]]:
    """How often the models of a base that encode are called from now on."""
    calls = {"vae": 0, "text": 0}
    handles = []
    for name, part in (("vae", base.vae.encoder), *(("text", encoder) for encoder in base.text_encoders)):

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        handles.append(part.register_forward_hook(count))
    yield calls
    for handle in handles:
        handle.remove()


@contextmanager
def losses() -> Iterator[list[float]]:
    """Of every step."""
    seen: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        original = StepwiseModule.training_step

        def watch(self, share, index):  # type: ignore[no-untyped-def]
            result = original(self, share, index)
            seen.append(result["loss"].item())
            return result

        patch.setattr(StepwiseModule, "training_step", watch)
        yield seen


@pytest.mark.parametrize("sink", ["folder", "huggingface", "webdataset"])
def test_a_training_on_a_build_that_encoded_calls_neither_vae_nor_text_encoder_and_learns_the_same(
    base_folder: Path, tmp_path: Path, sink: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "out", open_base(str(base_folder), device="cpu", dtype="float32")
    assert build(recipe(tmp_path, base_folder, sink), out) == 0
    told = capsys.readouterr().out
    assert f"{COUNT} pairs encoded" in told
    assert f"controlnet train --data {out} --base {base_folder} --dtype float32 --out RUN" in told
    with unvalidated(), counted(base) as calls, losses() as ready:
        train(make_config(out, tmp_path / "ready", 4), base=base)
    assert calls == {"vae": 0, "text": 0}
    told = capsys.readouterr().err
    assert f"{out / 'cache'}: {COUNT} of {COUNT} pictures are encoded there" in told
    assert "2 of 2 prompts are encoded there" in told, "its tokenizer knows none of the words: all are one, beside none"
    assert not (tmp_path / "ready/cache").exists()
    with unvalidated(), counted(base) as calls, losses() as anew:
        train(make_config(out, tmp_path / "anew", 4, cache="off"), base=base)
    assert min(calls.values()) >= 4, "that is what is counted"
    assert len(ready) == 4
    assert ready == pytest.approx(anew, rel=1e-3)


def test_views_that_are_drawn_are_encoded_in_all_their_versions(base_folder: Path, tmp_path: Path) -> None:
    options = FLOAT + "\nresolution = 64\nrandom_crop = true\nrandom_flip = true\ncrop_variants = 3"
    assert build(recipe(tmp_path, base_folder, options=options), tmp_path / "out") == 0
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    asked = {"resolution": 64, "random_crop": True, "random_flip": True, "crop_variants": 3}
    with unvalidated(), counted(base) as calls:
        train(make_config(tmp_path / "out", tmp_path / "run", 8, seed=5, **asked), base=base)
    assert calls == {"vae": 0, "text": 0}


def test_a_training_at_another_size_encodes_its_own_and_leaves_the_build_alone(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "out", open_base(str(base_folder), device="cpu", dtype="float32")
    assert build(recipe(tmp_path, base_folder), out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with unvalidated(), counted(base) as calls:
        train(make_config(out, tmp_path / "run", 2, resolution=64), base=base)
    assert calls["vae"] > 0
    assert calls["text"] == 0, "prompts are the same at every size"
    assert f"0 of {COUNT} pictures are encoded there; the others are not" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert list((tmp_path / "run/cache").glob("latents-*/*.safetensors"))


@pytest.mark.parametrize("place", ["shards", "shards/shard-{00000..00002}.tar"])
def test_what_a_build_encoded_is_found_from_its_shards_too_but_not_by_who_has_it_off(
    base_folder: Path, tmp_path: Path, place: str
) -> None:
    assert build(recipe(tmp_path, base_folder), tmp_path / "out") == 0
    base, pairs = open_base(str(base_folder), device="cpu", dtype="float32"), Pairs(tmp_path / "out" / place)
    for kind, is_called in (("disk", False), ("memory", False), ("off", True)):
        with counted(base) as calls:
            encoded = cache.encode(
                base, pairs, tmp_path / "cache", cache.fingerprint(pairs), Console(quiet=True), cache.Caching(kind)
            )
            encoded.batch([0, 23], torch.tensor([False, True]))
        assert bool(calls["vae"]) == bool(calls["text"]) == is_called


def test_a_broken_file_of_a_build_is_told_stays_and_is_made_up_for(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, base = tmp_path / "out", open_base(str(base_folder), device="cpu", dtype="float32")
    assert build(recipe(tmp_path, base_folder), out) == 0
    [shard] = (out / "cache").glob("latents-*/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:99])
    with unvalidated(), counted(base) as calls:
        train(make_config(out, tmp_path / "run", 2), base=base)
    assert f"{shard}: broken" in capsys.readouterr().err
    assert calls["vae"] > 0
    assert shard.exists(), "it is not the training's to remove"


SMALL_SHARDS = """
import sys, time
from controlnet.training import cache
cache.SHARD_SECONDS, cache.ENCODED_AT_ONCE = 0.0, 4
original = cache.encode_pictures
def slowly(*given):
    time.sleep(0.2)
    return original(*given)
cache.encode_pictures = slowly
from controlnet.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_killed_while_it_encodes_the_same_command_goes_on(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = recipe(tmp_path, base_folder), tmp_path / "out"
    command = [sys.executable, "-c", SMALL_SHARDS, "build", str(path), str(out), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while len(list(out.glob("cache/latents-*/[!.]*.safetensors"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cache/latents-*/[!.]*.safetensors")}
    made_anew: list[int] = []
    original = cache.encode_pictures

    def count(base, pictures):  # type: ignore[no-untyped-def]
        made_anew.append(len(pictures))
        return original(base, pictures)

    monkeypatch.setattr(cache, "encode_pictures", count)
    assert build(path, out) == 0
    assert sum(made_anew) == COUNT - 4 * len(kept) < COUNT
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    made_anew.clear()
    assert build(path, out) == 0
    assert not made_anew


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("resolutoin = 64", "encode: there is no 'resolutoin'; expected one of: base, ema, tokenizer"),
        ('resolution = "large"', "encode: resolution is 'large'; expected a whole number"),
        ("resolution = 100", "encode: resolution is 100; expected a multiple of 64"),
        ("random_crop = true", "random_crop and aspect_buckets need a resolution"),
        ("resolution = 64\nrandom_crop = true", "a new view at each visit, which nobody can encode before"),
        ("crop_variants = 2", "crop_variants is given without random_crop or random_flip"),
        ('dtype = "float8"', "encode: dtype is 'float8'; expected auto or float32 or bfloat16 or float16"),
        ('pretrained_vae = "nowhere"', "nowhere: no config.json"),
    ],
)
def test_what_cannot_be_encoded_is_told_before_anything_is_done(
    base_folder: Path, tmp_path: Path, options: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(recipe(tmp_path, base_folder, options=options), tmp_path / "out") == 2
    assert problem in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_stages_and_encoding_is_told_together(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, base_folder, options="size = 64")
    path.write_text(path.read_text().replace("annotate", "anotate"))
    assert build(path, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "there is no stage 'anotate'" in told
    assert "encode: there is no 'size'" in told


def test_a_base_that_is_not_there_and_pairs_without_hints_are_refused_at_once(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(recipe(tmp_path, tmp_path / "no-such-base"), tmp_path / "out") == 2
    assert "no-such-base" in capsys.readouterr().err
    path = recipe(tmp_path, base_folder)
    path.write_text(path.read_text().replace('"annotate"\ncondition = "canny"\noptions.detect_', '"resolution"\n#'))
    assert build(path, tmp_path / "out") == 2
    assert "add a stage annotate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_encoding_may_be_added_and_changed_after_the_build(base_folder: Path, tmp_path: Path) -> None:
    path, out = recipe(tmp_path, base_folder), tmp_path / "out"
    path.write_text(path.read_text().partition("[encode]")[0])
    assert build(path, out) == 0
    assert not (out / "cache").exists()
    for options in (FLOAT, FLOAT + "\nresolution = 64"):
        assert build(recipe(tmp_path, base_folder, options=options), out) == 0
    [latents] = (out / "cache").glob("latents-*")
    assert len(list(latents.glob("*.safetensors"))) == 2
