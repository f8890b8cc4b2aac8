"""Where models are while a call works: every machine's second device is torch's meta device, which computes nothing."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention, SlicedAttnProcessor
from torch import Tensor, nn

import tiny_folders
from controlnet.base import Base, open_base
from controlnet.control import ControlNet, Prompt, predict
from controlnet.errors import UserError
from controlnet.generation import placing
from controlnet.generation.memory import MODES, Memory
from controlnet.generation.needs import needs, weights
from controlnet.generation.pipeline import generate
from controlnet.generation.placing import at_work, groups, owned, settle, stages_of
from controlnet.generation.unit import Unit
from tiny_generation import grey_levels_apart, loud, request

HINT = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
META = torch.device("meta")


@pytest.fixture
def away(base: Base) -> Iterator[Base]:
    """The tiny base, whose models wait in main memory for a device that is another."""
    base.home = META
    yield base
    base.home = None


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(placing, "BLOCK", 300_000)
    return 300_000


def tensors(models: list[nn.Module]) -> list[Tensor]:
    return [tensor for model in models for module in model.modules() for _, tensor in owned(module)]


def work(base: Base, control: ControlNet) -> Iterator[str]:
    """A call's stages, one after another."""
    yield "prompts"
    prompt = base.encode_prompts(["red"])
    yield "sampling"
    latent, timestep = torch.empty(1, 4, 8, 8, device=META), torch.empty(1, dtype=torch.int64, device=META)
    said = control(latent, timestep, prompt, control.encode_hint(HINT[None]))  # the hint is in main memory
    assert predict(base.encoder, base.decoder, latent, timestep, Prompt(prompt.context_btd), said).is_meta
    yield "pictures"
    assert base.decode_latents(latent).is_meta


@pytest.mark.parametrize("offload", ["none", "models", "blocks"])
def test_what_works_is_on_the_device_and_what_is_there_is_what_the_stage_needs(
    away: Base, control: ControlNet, small_blocks: int, offload: str
):
    stages = {name: tensors(models) for name, models in stages_of(away, [control]).items()}
    most = dict.fromkeys(stages, 0)
    calls = []

    def look(module: nn.Module, _: object) -> None:
        stages = {name: tensors(models) for name, models in stages_of(away, [control]).items()}
        there = {name: sum(it.nbytes for it in its if it.is_meta) for name, its in stages.items()}
        assert all(tensor.is_meta for _, tensor in owned(module))
        assert offload == "none" or not any(there[name] for name in there if name != stage)
        most[stage] = max(most[stage], sum(there.values()))
        calls.append(module)

    before = {id(tensor) for tensor in chain(*stages.values())}
    with at_work(away, [control], Memory(offload)):
        modules = [it for models in stages_of(away, [control]).values() for model in models for it in model.modules()]
        hooks = [module.register_forward_pre_hook(look) for module in modules if owned(module)]
        for stage in work(away, control):  # noqa: B007  # looked at by `look`
            pass
        for hook in hooks:
            hook.remove()
    assert len(calls) > 300
    assert most == weights(away, [control], Memory(offload))
    after = list(chain(*(tensors(models) for models in stages_of(away, [control]).values())))
    assert {id(tensor) for tensor in after} == before
    assert not any(tensor.is_meta for tensor in after)


def test_blocks_are_small_whole_and_disjoint(base: Base, control: ControlNet, small_blocks: int):
    blocks = groups(base, [control], "blocks")
    modules = [module for block in blocks for module in block.modules]
    assert len(modules) == len({id(module) for module in modules})
    everything = groups(base, [control], "none")[0]
    assert {id(module) for module in modules} == {id(module) for module in everything.modules}
    assert all(block.size <= small_blocks or len(block.modules) == 1 for block in blocks)
    assert len(groups(base, [control], "models")) == 3 < len(blocks)


def test_an_interruption_leaves_everything_as_it_was(away: Base, control: ControlNet):
    processors = [it.processor for it in away.unet.modules() if isinstance(it, Attention)]

    def interrupted() -> None:
        with at_work(away, [control], Memory("blocks", "tiled", "sliced")):
            away.encode_prompts(["red"])
            assert any(tensor.is_meta for tensor in tensors(away.text_encoders))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not any(tensor.is_meta for tensor in tensors([away.unet, *away.text_encoders]))
    assert [it.processor for it in away.unet.modules() if isinstance(it, Attention)] == processors
    assert not away.vae.use_slicing
    assert not away.vae.use_tiling
    away.home = None
    assert not away.encode_prompts(["red"]).context_btd.is_meta  # no hook is left


def test_pictures_are_the_same_bit_for_bit_wherever_models_wait(base: Base, control: ControlNet, small_blocks: int):
    units = [Unit(control, HINT)]
    expected = generate(base, "red", units, steps=2, count=2)
    base.home = torch.device("cpu")
    try:
        for mode in MODES:
            result = generate(base, "red", units, steps=2, count=2, memory=mode)
            assert result.memory == mode
            limit = 0 if mode.vae == "whole" else 1  # one picture at a time may be rounded otherwise than two
            assert grey_levels_apart(result.pixels_nhwc, expected.pixels_nhwc) <= limit
    finally:
        base.home = None


def test_sliced_attention_runs_head_by_head_and_gives_the_same_picture(base: Base, control: ControlNet):
    units = [Unit(control, HINT)]
    expected = generate(base, "red", units, steps=2)
    with at_work(base, [control], Memory(attention="sliced")):
        processors = [it.processor for it in [*base.unet.modules(), *control.modules()] if isinstance(it, Attention)]
        assert {(type(it), it.slice_size) for it in processors} == {(SlicedAttnProcessor, 1)}
    for way in ("sliced", "sdpa"):
        result = generate(base, "red", units, steps=2, memory=Memory(attention=way))
        assert grey_levels_apart(result.pixels_nhwc, expected.pixels_nhwc) <= 1


def test_tiles_change_only_what_is_larger_than_one(base: Base, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placing, "TILE", 128)
    seen, decode = [], base.vae.decoder.forward
    monkeypatch.setattr(base.vae.decoder, "forward", lambda latent: (seen.append(latent.shape[-1]), decode(latent))[1])
    for width, widest in ((16, 16), (24, 16)):
        latent = torch.randn(1, 4, 16, width, generator=torch.Generator().manual_seed(0))
        whole = base.decode_latents(latent)
        seen.clear()
        with at_work(base, [], Memory(vae="tiled")):
            tiled = base.decode_latents(latent)
        assert max(seen) == widest
        assert tiled.shape == whole.shape
        assert torch.equal(tiled, whole) == (width == widest)


def test_xformers_is_refused_where_it_is_not(base: Base, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placing, "is_xformers_available", lambda: False)
    with pytest.raises(UserError, match="xformers, which is not installed"):
        generate(base, "red", steps=2, memory=Memory(attention="xformers"))


def test_models_that_are_on_a_device_to_stay_are_not_offloaded(base: Base, tmp_path: Path):
    parts = open_base(tiny_folders.save_tiny_base(tmp_path), "cpu")
    for part in (parts.unet, parts.vae, *parts.text_encoders):
        part.to(META)
    with pytest.raises(UserError, match="resident=False"), at_work(parts, [], Memory("models")):
        pass


def test_to_settle_is_to_stay(tmp_path: Path):
    base = open_base(tiny_folders.save_tiny_base(tmp_path), "cpu", resident=False)
    assert base.home == base.device == torch.device("cpu")
    base.home = META
    control = loud(base)
    settle(base, [control])
    assert base.home is None
    assert base.device == META
    assert all(tensor.is_meta for tensor in tensors([base.unet, base.vae, *base.text_encoders, control]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_every_mode_gives_the_picture_in_the_memory_that_it_says(tmp_path: Path):
    base = open_base(tiny_folders.save_tiny_base(tmp_path), "cuda", "float32", resident=False)
    control = loud(base)
    asked = request(base, [Unit(control, HINT)])
    expected = None
    for mode in MODES:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        result = generate(base, "red", asked.units, steps=4, seed=3, memory=mode)
        expected = result.pixels_nhwc if expected is None else expected
        assert grey_levels_apart(result.pixels_nhwc, expected) <= 1
        assert torch.cuda.max_memory_allocated() < needs(asked, mode).peak
