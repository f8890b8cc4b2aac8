"""Layers that compute otherwise compute the same: against torch's own, in float64 or float32, and counted."""

import copy
import math

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import conv2d, scaled_dot_product_attention

import tiny
from controlnet import attention
from controlnet.attention import attend
from controlnet.control import ControlNet, Decoder, Encoder, predict
from controlnet.speed import QuickAttention, QuickConv2d, QuickGEGLU, once, quick, suit
from parity.reference import relative_error

# queries, keys: in one call, at once, torch's, at once with tiles
SHAPES = [(64, 64), (800, 77), (1030, 1030), (1030, 77)]
HEADS, WIDTH = 2, 40


@pytest.fixture(autouse=True, params=["tiles", "vectors"])
def fast_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor, the ways for those that are fast at bfloat16, in either manner."""
    monkeypatch.setattr("controlnet.attention.has_fast_bfloat16", lambda device: device.type == "cpu")
    monkeypatch.setattr("controlnet.attention.has_tiles", lambda: request.param == "tiles")


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed)).to(dtype)


def attention_inputs(
    queries: int, keys: int, dtype: torch.dtype, pictures: int = 1, width: int = WIDTH
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (
        drawn(pictures, count, HEADS, width, dtype=dtype, seed=seed).transpose(1, 2)
        for seed, count in enumerate((queries, keys, keys))
    )
    return query, key, value


@torch.no_grad()
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
@pytest.mark.parametrize("loudness", [1, 8])
def test_attention_in_bfloat16_is_as_near_to_the_truth_as_torchs_own(queries: int, keys: int, loudness: int):
    query, key, value = attention_inputs(queries, keys, torch.bfloat16)
    query = query * loudness
    truth = scaled_dot_product_attention(query.double(), key.double(), value.double())
    mine, stock = attend(query, key, value, WIDTH**-0.5), scaled_dot_product_attention(query, key, value)
    assert relative_error(mine.float(), truth.float()) < 1.3 * relative_error(stock.float(), truth.float())


@torch.no_grad()
@pytest.mark.parametrize("loudness", [(0.1, 0.1), (0.3, 0.3), (0.1, 0.8), (4, 4)])  # of heads; the loudest are torch's
@pytest.mark.parametrize("width", [40, 64, 80])
def test_attention_by_sigmoids_is_as_near_to_the_truth_as_torchs_own(loudness: tuple[float, float], width: int):
    dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32  # else oneDNN has none
    query, key, value = attention_inputs(1030, 1030, dtype, pictures=2, width=width)
    query = query * torch.tensor(loudness, dtype=dtype)[:, None, None]
    truth = scaled_dot_product_attention(query.double(), key.double(), value.double(), scale=1)
    stock = relative_error(scaled_dot_product_attention(query, key, value, scale=1).float(), truth.float())
    error = relative_error(attention._by_sigmoids(query, key, value), truth.float())
    assert error < (1.3 * stock if dtype == torch.bfloat16 else math.exp(-attention.BELOW))


@torch.no_grad()
def test_a_layer_of_attention_is_as_near_to_the_truth_as_diffusers_own():
    torch.manual_seed(0)
    layer = Attention(HEADS * WIDTH, heads=HEADS, dim_head=WIDTH)
    dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32  # else oneDNN has none
    layer, x = layer.to(dtype), drawn(2, 1030, HEADS * WIDTH, dtype=dtype)
    truth = copy.deepcopy(layer).double()(x.double())
    stock = relative_error(layer(x).double(), truth)
    layer.set_processor(QuickAttention())
    with quick([layer]):
        assert relative_error(layer(x).double(), truth) < 1.3 * stock


@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_attention_in_float32_is_torchs(queries: int, keys: int):
    query, key, value = attention_inputs(queries, keys, torch.float32)
    wanted = scaled_dot_product_attention(query, key, value)
    assert relative_error(attend(query, key, value, WIDTH**-0.5), wanted) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("pictures", [1, 3])
def test_a_gated_layer_that_ends_its_products_with_the_gate_is_as_near_to_the_truth_as_torchs_own(
    pictures: int, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    layer, x = GEGLU(64, 256), drawn(pictures, 77, 64)
    truth = layer.double()(x.double())
    dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32  # else oneDNN has none
    monkeypatch.setattr("controlnet.speed.is_quick", lambda x: True)
    layer, x = layer.to(dtype), x.to(dtype)
    stock = relative_error(layer(x).double(), truth)
    with quick([layer]):
        assert type(layer) is QuickGEGLU
        assert relative_error(layer(x).double(), truth) < (stock if dtype == torch.bfloat16 else 1.3 * stock)
    assert type(layer) is GEGLU


@torch.no_grad()
def test_float32_products_are_precise_again_after_attention():
    left, right = drawn(256, 256), drawn(256, 256)
    before = left @ right
    attend(*attention_inputs(800, 77, torch.bfloat16), WIDTH**-0.5)
    assert torch.equal(left @ right, before)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "size"), [(64, (4, 4)), (96, (3, 7)), (64, (16, 16))])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 0.003), (torch.float32, 1e-6)])  # bfloat16: 2 ** -9
def test_a_convolution_as_a_product_is_the_convolution(
    channels: int, size: tuple[int, int], layout: torch.memory_format, dtype: torch.dtype, rounding: float
):
    layer = QuickConv2d(channels, 128, 3, padding=1).to(dtype).to(memory_format=layout)
    x = drawn(3, channels, *size, dtype=dtype).contiguous(memory_format=layout)
    truth = conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    assert relative_error(layer(x).double(), truth) < rounding


def test_a_convolution_that_learns_has_torchs_gradients():
    layer = QuickConv2d(64, 128, 3, padding=1).to(torch.bfloat16)
    other = nn.Conv2d(64, 128, 3, padding=1).to(torch.bfloat16)
    other.load_state_dict(layer.state_dict())
    x = drawn(2, 64, 4, 4, dtype=torch.bfloat16)
    for each in (layer, other):
        each(x).float().square().sum().backward()
    assert torch.equal(layer.weight.grad, other.weight.grad)


@torch.no_grad()
def test_only_one_of_two_equal_halves_is_computed():
    seen: list[int] = []

    def compute(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x

    half = drawn(2, 3)
    for x in (torch.cat([half, half]), torch.cat([half, half + 1]), drawn(3, 3)):
        assert torch.equal(once(compute, x), 2 * x)
    assert seen == [2, 4, 3]


@torch.no_grad()
def test_a_prompt_is_read_once_while_it_is_quick_and_read_again_after():
    unet = tiny.unet("sd1")
    suit(unet)
    encoder, calls = Encoder(unet), []
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    layer.register_forward_hook(lambda *_: calls.append(1))
    latent, timestep, prompt, _ = tiny.inputs("sd1")
    with quick([unet]):
        first = encoder(latent, timestep, prompt).middle
        assert torch.equal(encoder(latent, timestep, prompt).middle, first)
        assert len(calls) == 1
    encoder(latent, timestep, prompt)
    assert len(calls) == 2


@torch.no_grad()
def test_another_prompt_is_not_taken_for_the_one_before():
    unet = tiny.unet("sd1")
    suit(unet)
    encoder = Encoder(unet)
    latent, timestep, _, _ = tiny.inputs("sd1")
    prompts = [tiny.prompt("sd1", seed=seed) for seed in (1, 2)]
    wanted = []
    for prompt in prompts:
        with quick([unet]):
            wanted.append(encoder(latent, timestep, prompt).middle)
    with quick([unet]):
        found = [encoder(latent, timestep, prompt).middle for prompt in prompts]
    assert all(map(torch.equal, found, wanted))
    assert not torch.allclose(*found)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("same_latent", [True, False])
def test_the_whole_network_predicts_the_same(family: tiny.Family, same_latent: bool):
    stock = tiny.unet(family)
    control = tiny.randomised(ControlNet.from_base(stock))
    quicker, quicker_control = copy.deepcopy(stock), copy.deepcopy(control)
    suit(quicker)
    for layer in quicker_control.encoder.modules():
        if hasattr(layer, "set_processor"):
            layer.set_processor(QuickAttention())
    latent, _, prompt, hint = tiny.inputs(family)
    latent, hint = (torch.cat([it[:1], it[:1]]) for it in (latent, hint)) if same_latent else (latent, hint)
    timestep = torch.tensor([500, 500])

    def predicted(unet: nn.Module, controlnet: ControlNet) -> Tensor:
        said = controlnet(latent, timestep, prompt, controlnet.encode_hint(hint))
        return predict(Encoder(unet), Decoder(unet), latent, timestep, prompt, said)

    wanted = predicted(stock, control)
    with quick([quicker, quicker_control]):
        assert relative_error(predicted(quicker, quicker_control), wanted) < 1e-5


def test_after_being_quick_the_modules_are_what_they_were():
    unet = tiny.unet("sd1")
    kinds = [type(module) for module in unet.modules()]
    with quick([unet]):
        assert type(unet.conv_in) is QuickConv2d
    assert [type(module) for module in unet.modules()] == kinds
