"""What a call needs of a device: counted on the meta device, compared with what torch counts on the CPU."""

import copy
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextConfig, CLIPTextModel

from controlnet.base import Base, open_base
from controlnet.control import ControlNet, Prompt, predict
from controlnet.errors import UserError
from controlnet.generation.memory import MODES, PLENTY, Memory
from controlnet.generation.needs import choose, needs, peak, runs, settled, without_content
from controlnet.generation.placing import with_attention
from controlnet.generation.unit import Unit
from tiny_generation import request

HINT = torch.zeros(3, 128, 128)


def counted_by_torch(run: Callable[[], object]) -> int:
    """The most bytes that live at the same time, on the CPU."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def true_size(dtype: torch.dtype) -> tuple[Base, ControlNet]:
    """SD 1.5 and a control for it, without content, that compute on a GPU."""
    vae = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
    vae |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        parts = [
            UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(dtype),
            AutoencoderKL(**vae).to(torch.float32 if dtype == torch.float16 else dtype),
            [CLIPTextModel(CLIPTextConfig(vocab_size=49408, **text)).to(dtype)],
        ]
    small = open_base("embedded", "cpu")
    base = Base(*parts, small.tokenizers, small.scheduler_config, "sd1", "of SD 1.5's size")
    with torch.device("meta"):
        control = ControlNet(copy.deepcopy(base.encoder)).to(dtype)
    base.home = torch.device("cuda")
    return base, control


def test_what_lives_at_the_same_time_is_counted_once():
    def run() -> None:
        one = torch.empty(1000, device="meta")
        two = one + 1
        view = two[:10].reshape(2, 5)  # of the same storage
        two += 1
        del one
        three = two * 2
        del two, view
        four = three * 2
        del three, four

    assert peak(run) == 2 * 4000


def test_what_is_counted_is_what_torch_counts(base: Base, control: ControlNet):
    asked = request(base, [Unit(control, HINT)], size_hw=(128, 128))
    empty, (its_control,) = without_content(base, [control])
    with with_attention([empty.unet, its_control], "sdpa"):
        counted = {name: peak(run) for name, run in runs(asked, empty, [its_control])}
    latent, timestep = torch.randn(2, 4, 16, 16), torch.tensor([5, 5])

    def sample() -> None:
        prompt = Prompt(base.encode_prompts(["", "red"]).context_btd)
        said = control(latent, timestep, prompt, control.encode_hint(HINT[None]).repeat(2, 1, 1, 1))
        predict(base.encoder, base.decoder, latent, timestep, prompt, said)

    real = {
        "prompts": lambda: base.encode_prompts(["", "red"]),
        "sampling": sample,
        "pictures": lambda: base.decode_latents(latent[:1]),
    }
    with with_attention([base.unet, control], "sdpa"):
        for name, run in real.items():
            assert counted[name] == pytest.approx(counted_by_torch(run), rel=0.3), name


def test_sd15_under_control_at_512_fits_in_4_gb_and_in_half_of_it():
    base, control = true_size(torch.float16)
    asked = request(base, [Unit(control, torch.zeros(3, 512, 512))], size_hw=(512, 512))
    mode, need = choose([asked], MODES, 4 * 10**9)
    assert mode == Memory("models", "sliced")
    assert need.weights["sampling"] == sum(it.nbytes for it in [*base.unet.parameters(), *control.parameters()])
    smallest, need = choose([asked], MODES, 2 * 10**9)
    assert smallest == Memory("blocks", "sliced")
    assert max(need.weights.values()) <= 100 * 10**6


def test_a_limit_takes_the_fastest_mode_that_fits(base: Base, control: ControlNet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("controlnet.generation.placing.BLOCK", 300_000)
    monkeypatch.setattr("controlnet.generation.placing.TILE", 64)
    base.home = torch.device("meta")  # where models can be and not be
    try:
        count = {"prompts": ["red"] * 4, "seeds": [1, 2, 3, 4], "size_hw": (128, 128)}
        asked = request(base, [Unit(control, HINT)], **count)
        peaks = [needs(asked, mode).peak for mode in MODES]
        assert peaks == sorted(peaks, reverse=True)
        for mode, size in zip(MODES, peaks, strict=True):
            if size != peaks[MODES.index(mode) - 1]:
                assert choose([asked], MODES, size) == (mode, needs(asked, mode))
        with pytest.raises(UserError, match="too little(.|\n)*tiles: about"):
            choose([asked], MODES, peaks[-1] - 1)
    finally:
        base.home = None


def test_on_a_cpu_nothing_is_gained_by_moving(base: Base, control: ControlNet):
    asked = request(base, [Unit(control, HINT)], size_hw=(128, 128), memory="1GB")
    assert settled(asked) == PLENTY
    with pytest.raises(UserError) as error:
        choose([asked], MODES, 10**6)
    assert "in turn" not in str(error.value)
