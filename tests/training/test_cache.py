import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from controlnet.annotators.inpaint import Inpaint
from controlnet.base import Base, open_base
from controlnet.data.circles import write_circles
from controlnet.data.formats.records import Columns
from controlnet.data.pairs import Pairs
from controlnet.data.transform import Transform
from controlnet.errors import UserError
from controlnet.images import decode, encode_png
from controlnet.training import cache, encoded, encoders
from controlnet.training.cache import Caching, Dataset, Encoded, encode, fingerprint, held_out_count
from controlnet.training.encoders import release_encoders
from controlnet.training.loss import Draw
from controlnet.training.module import ControlNetModule
from tiny_folders import save_tiny_base

DISK = Caching()
OFF = Caching("off")
PLAIN = torch.tensor([False, False])


def encoded_pairs(base: Base, dataset: Dataset, folder: Path, caching: Caching = DISK, seed: int = 0) -> Encoded:
    return encode(base, dataset, folder, fingerprint(dataset), Console(stderr=True, soft_wrap=True), caching, seed)


def item(size: int = 64, hint_size: int = 64, txt: str = "red", low: float = -1.0) -> dict[str, Any]:
    random = np.random.default_rng(0)
    picture = random.uniform(low, 1, (size, size, 3)).astype(np.float32)
    return {"jpg": picture, "txt": txt, "hint": random.uniform(0, 1, (hint_size, hint_size, 3)).astype(np.float32)}


def data_set(folder: Path, sizes: list[tuple[int, int]], low: int = 0) -> Path:
    """Random pictures and hints of these sizes (width, height)."""
    random, lines = np.random.default_rng(5), []
    for number, (width, height) in enumerate(sizes):
        for kind in ("source", "target"):
            encode_png(random.integers(low, 256, (height, width, 3), np.uint8), folder / kind / f"{number}.png")
        line = {"source": f"source/{number}.png", "target": f"target/{number}.png", "prompt": f"word {number % 3}"}
        lines.append(json.dumps(line))
    (folder / "prompt.json").write_text("\n".join(lines))
    return folder


@pytest.fixture
def no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the cache must have it all."""
    monkeypatch.setattr(cache, "encode_pictures", lambda *_: pytest.fail("a picture was encoded"))
    monkeypatch.setattr(cache, "encode_texts", lambda *_: pytest.fail("a prompt was encoded"))


@pytest.mark.parametrize("place", ["disk", "memory", "off"])
def test_a_row_holds_what_the_base_makes_of_its_pair(base: Base, circles: Path, tmp_path: Path, place: Any) -> None:
    pairs = Pairs(circles)
    batch = encoded_pairs(base, pairs, tmp_path, Caching(place)).batch([3, 17], PLAIN)
    for here, row in enumerate((3, 17)):
        pixels = torch.from_numpy(pairs[row]["jpg"]).permute(2, 0, 1)[None]
        mean, deviation = base.encode_moments(pixels)
        assert torch.allclose(batch.mean_bchw[here], mean[0], atol=1e-3)
        assert torch.allclose(batch.deviation_bchw[here], deviation[0], atol=1e-3)
        assert torch.equal(batch.hint_bchw[here], torch.from_numpy(pairs[row]["hint"]).permute(2, 0, 1))
        context = base.encode_prompts([pairs[row]["txt"]]).context_btd[0]
        assert torch.allclose(batch.prompt.context_btd[here], context, atol=1e-5)


@pytest.mark.parametrize("caching", [DISK, OFF])
def test_an_emptied_prompt_is_the_empty_prompt_and_others_keep_theirs(
    base: Base, circles: Path, tmp_path: Path, caching: Caching
) -> None:
    pairs = encoded_pairs(base, Pairs(circles), tmp_path, caching)
    full = pairs.batch([0, 1], PLAIN).prompt.context_btd
    half = pairs.batch([0, 1], torch.tensor([True, False])).prompt.context_btd
    assert torch.allclose(half[0], base.encode_prompts([""]).context_btd[0], atol=1e-5)
    assert torch.allclose(half[1], full[1], atol=1e-6)


@pytest.mark.parametrize("transform", [Transform(), Transform(64, random_crop=True, random_flip=True)])
def test_losses_without_a_cache_are_those_with_it(tmp_path: Path, transform: Transform) -> None:
    """On the embedded base, in float32; random views are cached as variants."""
    base = open_base("embedded", device="cpu", dtype="float32")
    data = data_set(tmp_path / "data", [(128, 128)] * 4)
    module = ControlNetModule(base, 1e-3)
    for parameter in module.control.parameters():  # no longer silent, so that hints count
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    losses = []
    for place in ("disk", "off"):
        pairs = encoded_pairs(base, Pairs(data, transform=transform), tmp_path / place, Caching(place, 3))
        keys = [(epoch, pairs.samples[row]) for row, epoch in ((0, 0), (2, 1), (3, 4))]
        draw = Draw.of(0, keys, pairs.latent_chw(0), 1000, 0.5)
        batch = pairs.read([0, 2, 3], draw.empties_prompt_b, [0, 1, 4]).on(base)
        with torch.no_grad():
            losses.append(module.loss((batch, draw)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_second_run_reads_the_cache(
    base: Base, circles: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = encoded_pairs(base, Pairs(circles), tmp_path)
    request.getfixturevalue("no_encoding")
    again = encoded_pairs(base, Pairs(circles), tmp_path)
    rows = range(len(first))
    empties = torch.zeros(len(first), dtype=torch.bool)
    assert torch.equal(first.batch(rows, empties).mean_bchw, again.batch(rows, empties).mean_bchw)
    assert first.captions == again.captions


def test_one_changed_picture_alone_is_encoded_anew(
    base: Base, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoded_pairs(base, Pairs(circles), tmp_path / "cache")
    changed = tmp_path / "changed"
    shutil.copytree(circles, changed)
    encode_png(255 - decode(changed / "target" / "5.png"), changed / "target" / "5.png")
    pictures = counted(monkeypatch)
    second = encoded_pairs(base, Pairs(changed), tmp_path / "cache")
    assert pictures == [1]
    means = [pairs.batch([4, 5], PLAIN).mean_bchw for pairs in (first, second)]
    assert torch.equal(means[0][0], means[1][0])
    assert not torch.equal(means[0][1], means[1][1])


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures are encoded from now on, by call."""
    counts: list[int] = []
    original = cache.encode_pictures

    def count(base: Base, pictures: torch.Tensor) -> Any:
        counts.append(len(pictures))
        return original(base, pictures)

    monkeypatch.setattr(cache, "encode_pictures", count)
    return counts


def test_another_vae_makes_its_own_latents_and_keeps_the_contexts(base: Base, circles: Path, tmp_path: Path) -> None:
    encoded_pairs(base, Pairs(circles), tmp_path / "cache")
    other = open_base(save_tiny_base(tmp_path / "base"), device="cpu")
    other.vae.encoder.conv_in.weight.data += 0.1
    encoded_pairs(other, Pairs(circles), tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 2
    assert len(list((tmp_path / "cache").glob("contexts-*"))) == 1


def test_a_cache_that_was_interrupted_goes_on_where_it_was(
    base: Base, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "ENCODED_AT_ONCE", 4)
    monkeypatch.setattr(cache, "SHARD_SECONDS", 0.0)
    original, calls = cache.encode_pictures, []

    def fail_at_third(base: Base, pictures: torch.Tensor) -> Any:
        calls.append(pictures)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(base, pictures)

    with monkeypatch.context() as patched:
        patched.setattr(cache, "encode_pictures", fail_at_third)
        with pytest.raises(KeyboardInterrupt):
            encoded_pairs(base, Pairs(circles), tmp_path)
    pictures = counted(monkeypatch)
    pairs = encoded_pairs(base, Pairs(circles), tmp_path)
    assert sum(pictures) == 24 - 8
    assert len(pairs.batch(range(24), torch.zeros(24, dtype=torch.bool)).mean_bchw) == 24


def test_a_broken_shard_is_named_and_made_anew(
    base: Base, circles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = encoded_pairs(base, Pairs(circles), tmp_path).batch([0, 1], PLAIN)
    for shard in tmp_path.glob("*/*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:50])
    again = encoded_pairs(base, Pairs(circles), tmp_path).batch([0, 1], PLAIN)
    assert torch.equal(whole.mean_bchw, again.mean_bchw)
    assert capsys.readouterr().err.count("made anew") == 2


def test_the_cache_lies_beside_other_data_sets_and_keeps_one_context_for_each_prompt(
    base: Base, tmp_path: Path
) -> None:
    data = data_set(tmp_path / "data", [(64, 64)] * 9)  # of three prompts
    encoded_pairs(base, Pairs(data), tmp_path / "cache")
    pairs = encoded_pairs(base, Pairs(data, Columns(length=3)), tmp_path / "cache")
    assert len(pairs) == 3
    (contexts,) = (tmp_path / "cache").glob("contexts-*")
    assert sum(len(keys_of(path)) for path in contexts.iterdir()) == 4  # and the empty one


def keys_of(shard: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(shard, "pt") as file:
        keys: list[str] = json.loads(file.metadata()["keys"])
    return keys


def test_hints_too_many_for_memory_are_decoded_when_asked_and_are_the_same(
    base: Base, circles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = encoded_pairs(base, Pairs(circles), tmp_path)
    kept = [pairs.hint_of(row) for row in range(24)]
    assert pairs.hint_of(7) is kept[7]
    monkeypatch.setattr(encoded, "HINT_BYTES", 2 * kept[0].nbytes)
    other = encoded_pairs(base, Pairs(circles), tmp_path)
    assert all(np.array_equal(hint, other.hint_of(row)) for row, hint in enumerate(kept))
    assert other.hint_of(1) is other.hint_of(1)
    assert other.hint_of(7) is not other.hint_of(7)


def test_what_a_loader_process_gets_reads_the_same(base: Base, circles: Path, tmp_path: Path) -> None:
    pairs = encoded_pairs(base, Pairs(circles), tmp_path)
    sent = pickle.dumps(pairs)
    assert len(sent) < 100_000, "neither base nor tensors travel"
    reading, again = (each.read([2, 9], PLAIN) for each in (pairs, pickle.loads(sent)))
    assert torch.equal(reading.on(base).mean_bchw, again.on(base).mean_bchw)
    assert torch.equal(reading.hint_bhwc, again.hint_bhwc)


def test_a_part_of_a_reading_is_the_reading_of_a_part(base: Base, circles: Path, tmp_path: Path) -> None:
    for caching in (DISK, OFF):
        pairs = encoded_pairs(base, Pairs(circles), tmp_path, caching)
        whole = pairs.read([2, 9, 4], torch.tensor([False, True, False]))
        part, alone = whole[1:].on(base), pairs.read([9, 4], torch.tensor([True, False])).on(base)
        assert torch.allclose(part.mean_bchw, alone.mean_bchw, atol=1e-5)
        assert torch.allclose(part.prompt.context_btd, alone.prompt.context_btd, atol=1e-5)
        assert torch.equal(part.hint_bchw, alone.hint_bchw)


@pytest.mark.parametrize("caching", [DISK, Caching("disk", 2), OFF])
def test_picture_and_hint_are_always_seen_alike_and_a_flip_depends_on_the_key_alone(
    base: Base, tmp_path: Path, caching: Caching
) -> None:
    data = data_set(tmp_path / "data", [(96, 80)] * 3)
    for number in range(3):  # the hint is the picture: so what is seen of one is what is seen of the other
        shutil.copy(data / "target" / f"{number}.png", data / "source" / f"{number}.png")
    transform = Transform(64, random_crop=True, random_flip=True)
    pairs = encoded_pairs(base, Pairs(data, transform=transform), tmp_path / "cache", caching, seed=4)
    views = set()
    for epoch in range(6):
        batch = pairs.batch([0, 2], PLAIN, [epoch, epoch])
        again = pairs.batch([2, 1], PLAIN, [epoch, epoch])
        assert torch.equal(batch.hint_bchw[1], again.hint_bchw[0]), "who else is in the batch changes nothing"
        mean, _ = base.encode_moments(batch.hint_bchw * 2 - 1)
        assert torch.allclose(batch.mean_bchw, mean, atol=1e-4)
        views.add(batch.hint_bchw.numpy().tobytes())
    assert len(views) == (2 if caching.variants else 6)


def test_pictures_of_many_aspects_keep_theirs_in_buckets(base: Base, tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", [(64, 64), (256, 100), (100, 250), (300, 120)])
    pairs = encoded_pairs(base, Pairs(data, transform=Transform(128, aspect_buckets=True)), tmp_path / "cache")
    sizes = [pairs.size_of(row) for row in range(4)]
    assert sizes == [(128, 128), (256, 64), (64, 256), (256, 64)]
    assert pairs.bucket_of(1) == pairs.bucket_of(3) != pairs.bucket_of(2)
    batch = pairs.batch([1, 3], PLAIN)
    assert batch.hint_bchw.shape == (2, 3, 64, 256)
    assert batch.mean_bchw.shape[1:] == pairs.latent_chw(1) == (4, 8, 32)
    _, held_out = pairs.split(2)
    assert held_out.samples == [1, 3], "held-out pairs are of one size"


def test_sdxl_hears_the_true_sizes_and_crops_also_from_the_cache(tmp_path: Path) -> None:
    base = open_base(save_tiny_base(tmp_path / "base", "sdxl"), device="cpu")
    data = data_set(tmp_path / "data", [(200, 128)] * 2)
    for caching in (DISK, OFF):
        pairs = encoded_pairs(base, Pairs(data, transform=Transform(64)), tmp_path / "cache", caching)
        prompt = pairs.batch([0, 1], PLAIN).prompt
        assert prompt.added is not None
        # resized to 100x64; cropped from the middle, at 18
        assert prompt.added["time_ids"].tolist() == [[128, 200, 0, 18, 64, 64]] * 2
        expected = base.encode_prompts([pairs.captions[1]]).added
        assert expected is not None
        assert torch.allclose(prompt.added["text_embeds"][1], expected["text_embeds"][0], atol=1e-5)


def test_hints_for_inpainting_are_marked_where_they_are_to_be_painted(base: Base, tmp_path: Path) -> None:
    from controlnet.annotators.hint_file import description
    from controlnet.annotators.hint_file import encode as encode_hint

    data, annotator = data_set(tmp_path / "data", [(64, 64)] * 2), Inpaint(share=0.3)
    for number in range(2):
        hint = annotator(data / "target" / f"{number}.png")
        (data / "source" / f"{number}.png").write_bytes(encode_hint(hint, json.dumps(description(annotator))))
    pairs = Pairs(data)
    batch = encoded_pairs(base, pairs, tmp_path / "cache").batch([0, 1], PLAIN)
    assert batch.hint_bchw.shape[1] == 3
    is_marked = (batch.hint_bchw == -1).all(dim=1)
    assert is_marked.float().mean() == pytest.approx(0.3, abs=0.05)
    assert (batch.hint_bchw[~is_marked[:, None].expand_as(batch.hint_bchw)] >= 0).all()
    assert np.array_equal(pairs[1]["hint"], batch.hint_bchw[1].permute(1, 2, 0).numpy())


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
    pairs = encoded_pairs(base, Pairs(folder), tmp_path / "cache", OFF)
    assert len(pairs) == 199
    assert 77 not in pairs.samples
    told = capsys.readouterr().err
    assert "77.png" in told
    assert "1 of 200 pairs cannot be used and are skipped" in told
    encoded_pairs(base, Pairs(folder), tmp_path / "cache", OFF)
    assert "77.png" in capsys.readouterr().err, "a run that goes on must tell it too"


def test_more_than_one_in_a_hundred_corrupt_pictures_stop_the_training(base: Base, many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(many, folder)
    for number in (5, 77, 120):
        (folder / "target" / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3 unusable pairs so far, of 200; at most 2") as caught:
        encoded_pairs(base, Pairs(folder), tmp_path / "cache")
    for number in (5, 77, 120):
        assert f"{number}.png" in str(caught.value)
    assert not list(tmp_path.glob("cache/*"))


def test_pictures_that_the_base_cannot_take_are_resized_to_its_own_size(base: Base, tmp_path: Path) -> None:
    data = data_set(tmp_path / "data", [(72, 72), (90, 140)])
    assert encoded_pairs(base, Pairs(data), tmp_path / "cache").size_of(1) == (128, 128)


def test_a_hint_of_another_size_is_told_with_both_sizes(base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pair 1: its hint has 32x32 pixels, the picture 64x64"):
        encoded_pairs(base, [item(), item(hint_size=32)], tmp_path)


def test_pictures_of_another_size_are_told_with_both_sizes(base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pair 1: 128x128, 3 hint channels; the pairs before it have 64x64"):
        encoded_pairs(base, [item(), item(128, 128)], tmp_path)


def test_a_size_that_the_base_cannot_take_is_refused_with_what_it_takes(base: Base, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"72x72.*multiples of 64"):
        encoded_pairs(base, [item(72, 72)] * 2, tmp_path)


@pytest.mark.parametrize(("name", "change"), [("hint", lambda x: x * 2 - 1), ("jpg", lambda x: x * 127.5 + 127.5)])
def test_a_wrong_range_is_refused_with_the_values_found(base: Base, tmp_path: Path, name: str, change: Any) -> None:
    wrong = item()
    wrong[name] = change(wrong[name])
    with pytest.raises(UserError, match=f"`{name}` has values from"):
        encoded_pairs(base, [wrong] * 2, tmp_path)


@pytest.mark.parametrize("caching", [DISK, OFF])
def test_long_prompts_make_all_contexts_equally_long(base: Base, tmp_path: Path, caching: Caching) -> None:
    items = [item(txt="red " * 90), *(item(txt=f"red {'a' * n}") for n in range(40))]
    pairs = encoded_pairs(base, items, tmp_path, caching)
    assert pairs.batch([3, 4], torch.tensor([False, True])).prompt.context_btd.shape[:2] == (2, 154)


def test_released_encoders_come_back_when_they_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "SMALL", 0)
    base = open_base(save_tiny_base(tmp_path / "base"), device="cpu")
    pixels = torch.zeros(1, 3, 64, 64)
    before = base.encode_moments(pixels)[0], base.encode_prompts(["red"]).context_btd, base.hash()
    release_encoders(base, tmp_path)
    assert len(list(tmp_path.glob("encoder-*.safetensors"))) == 2
    after = base.encode_moments(pixels)[0], base.encode_prompts(["red"]).context_btd
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert not any(parameter.requires_grad for parameter in base.vae.parameters())


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
