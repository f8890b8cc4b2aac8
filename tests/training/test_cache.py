import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from controlnet.base import Base
from controlnet.data.circles import write_circles
from controlnet.data.order import order
from controlnet.data.pairs import Pairs
from controlnet.errors import UserError
from controlnet.training import cache
from controlnet.training.cache import Dataset, Encoded, encode, fingerprint, held_out_count
from controlnet.training.module import Steps


def encoded(base: Base, dataset: Dataset, folder: Path) -> Encoded:
    return encode(base, dataset, folder, fingerprint(dataset), Console(stderr=True, soft_wrap=True))


def item(size: int = 64, hint_size: int = 64, txt: str = "red", low: float = -1.0) -> dict[str, Any]:
    random = np.random.default_rng(0)
    picture = random.uniform(low, 1, (size, size, 3)).astype(np.float32)
    return {"jpg": picture, "txt": txt, "hint": random.uniform(0, 1, (hint_size, hint_size, 3)).astype(np.float32)}


def test_a_row_holds_what_the_base_makes_of_its_pair(base: Base, circles: Path, tmp_path: Path) -> None:
    pairs = Pairs(circles)
    batch = encoded(base, pairs, tmp_path).batch([3, 17], torch.tensor([False, False]))
    for place, row in enumerate((3, 17)):
        pixels = torch.from_numpy(pairs[row]["jpg"]).permute(2, 0, 1)[None]
        mean, deviation = base.encode_moments(pixels)
        assert torch.allclose(batch.mean_bchw[place], mean[0], atol=1e-3)
        assert torch.allclose(batch.deviation_bchw[place], deviation[0], atol=1e-3)
        assert torch.equal(batch.hint_bchw[place], torch.from_numpy(pairs[row]["hint"]).permute(2, 0, 1))
        context = base.encode_prompts([pairs[row]["txt"]]).context_btd[0]
        assert torch.allclose(batch.prompt.context_btd[place], context, atol=1e-5)


def test_an_emptied_prompt_is_the_empty_prompt_and_others_keep_theirs(
    base: Base, circles: Path, tmp_path: Path
) -> None:
    pairs = encoded(base, Pairs(circles), tmp_path)
    full = pairs.batch([0, 1], torch.tensor([False, False])).prompt.context_btd
    half = pairs.batch([0, 1], torch.tensor([True, False])).prompt.context_btd
    assert torch.allclose(half[0], base.encode_prompts([""]).context_btd[0], atol=1e-5)
    assert torch.equal(half[1], full[1])


def test_a_second_run_reads_the_cache_and_other_pictures_make_another(
    base: Base, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoded(base, Pairs(circles), tmp_path / "cache")
    monkeypatch.setattr(cache, "_encode", lambda *_: pytest.fail("encoded again"))
    again = encoded(base, Pairs(circles), tmp_path / "cache")
    assert torch.equal(first.mean_nchw, again.mean_nchw)
    assert first.captions == again.captions
    monkeypatch.undo()
    changed = tmp_path / "changed"
    shutil.copytree(circles, changed)
    shutil.copy(changed / "target" / "1.png", changed / "target" / "0.png")
    assert not torch.equal(encoded(base, Pairs(changed), tmp_path / "cache").mean_nchw, first.mean_nchw)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_hints_too_many_for_memory_are_decoded_when_asked_and_are_the_same(
    base: Base, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = encoded(base, Pairs(circles), tmp_path / "a")
    monkeypatch.setattr(cache, "HINT_BYTES", 1000)
    decoded = encoded(base, Pairs(circles), tmp_path / "b")
    assert (tmp_path / "b").stat().st_size <= (tmp_path / "a").stat().st_size
    assert all(np.array_equal(kept.hint_of(row), decoded.hint_of(row)) for row in range(len(kept)))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    write_circles(folder, count=200, size=64, seed=1)
    return folder


def test_a_corrupt_picture_in_the_middle_is_named_skipped_and_counted(
    base: Base, many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(many, folder)
    (folder / "target" / "77.png").write_bytes((folder / "target" / "77.png").read_bytes()[:60])
    pairs = encoded(base, Pairs(folder), tmp_path / "cache")
    assert len(pairs) == 199
    assert 77 not in pairs.samples
    told = capsys.readouterr().err
    assert "77.png" in told
    assert "1 of 200 pairs cannot be used and are skipped" in told
    encoded(base, Pairs(folder), tmp_path / "cache")
    assert "77.png" in capsys.readouterr().err, "a run that goes on must tell it too"


def test_more_than_one_in_a_hundred_corrupt_pictures_stop_the_training(base: Base, many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(many, folder)
    for number in (5, 77, 120):
        (folder / "target" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3 unusable pairs so far, of 200; at most 2") as caught:
        encoded(base, Pairs(folder), tmp_path / "cache")
    for number in (5, 77, 120):
        assert f"{number}.png" in str(caught.value)
    assert not list(tmp_path.glob("cache/*"))


def test_a_hint_of_another_size_is_told_with_both_sizes(base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pair 1: its hint has 32x32 pixels, the picture 64x64"):
        encoded(base, [item(), item(hint_size=32)], tmp_path)


def test_pictures_of_another_size_are_told_with_both_sizes(base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pair 1: 128x128, 3 hint channels; the pairs before it have 64x64"):
        encoded(base, [item(), item(128, 128)], tmp_path)


def test_a_size_that_the_base_cannot_take_is_refused_with_what_it_takes(base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"72x72.*multiples of 64"):
        encoded(base, [item(72, 72)] * 2, tmp_path)


@pytest.mark.parametrize(("name", "change"), [("hint", lambda x: x * 2 - 1), ("jpg", lambda x: x * 127.5 + 127.5)])
def test_a_wrong_range_is_refused_with_the_values_found(base: Base, tmp_path: Path, name: str, change: Any) -> None:
    wrong = item()
    wrong[name] = change(wrong[name])
    with pytest.raises(UserError, match=f"`{name}` has values from"):
        encoded(base, [wrong] * 2, tmp_path)


def test_long_prompts_make_all_contexts_equally_long(base: Base, tmp_path: Path) -> None:
    pairs = encoded(base, [item(txt="red " * 90), *(item(txt=f"red {'a' * n}") for n in range(40))], tmp_path)
    assert pairs.prompts.context_btd.shape[:2] == (42, 154)


def test_a_broken_cache_is_named_with_the_remedy(base: Base, circles: Path, tmp_path: Path) -> None:
    encoded(base, Pairs(circles), tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="broken cache.*remove the file"):
        encoded(base, Pairs(circles), tmp_path)


def test_the_fingerprint_of_a_folder_follows_its_files_and_its_lines(circles: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(circles, copy)
    assert fingerprint(Pairs(copy)) == fingerprint(Pairs(circles))
    lines = (copy / "prompt.json").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "prompt": "another"})
    (copy / "prompt.json").write_text("\n".join(lines))
    assert fingerprint(Pairs(copy)) != fingerprint(Pairs(circles))


@pytest.mark.parametrize(("pairs", "held"), [(2, 1), (8, 2), (64, 16), (500, 16), (2000, 40), (50_000, 64)])
def test_the_last_pairs_are_held_out_few_of_few_and_64_at_most(pairs: int, held: int) -> None:
    assert held_out_count(pairs) == held


def test_batches_follow_one_another_without_a_gap_across_epochs(base: Base, circles: Path, tmp_path: Path) -> None:
    pairs = encoded(base, Pairs(circles), tmp_path)
    steps = Steps(pairs, seed=3, batch_size=5, timesteps=1000, emptied=0.0, start=0)
    visits = [steps.visit(position) for position in range(72)]
    assert [epoch for epoch, _ in visits] == [0] * 24 + [1] * 24 + [2] * 24
    for epoch in range(3):
        assert [row for visited, row in visits if visited == epoch] == order(3, epoch, 24).tolist()
    batch, draw = steps[4]
    again, redraw = Steps(pairs, seed=3, batch_size=5, timesteps=1000, emptied=0.0, start=4)[4]
    assert torch.equal(batch.mean_bchw, again.mean_bchw)
    assert torch.equal(draw.noise_bchw, redraw.noise_bchw)
