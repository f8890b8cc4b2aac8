"""Eight-bit weights: how far off they may be, and that nothing else changes."""

import pytest
import torch
from torch import nn

import tiny
from controlnet.checkpoints.eight_bit import decoded, encoded, is_in_eight_bits, store_in_eight_bits
from controlnet.control import ControlNet, Decoder, Encoder, predict


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_is_off_by_at_most_half_a_step_of_its_channel(shape: tuple[int, ...], dtype: torch.dtype):
    torch.manual_seed(0)
    weight = (torch.randn(shape) * torch.tensor([1e-3, 0.1, 1, 10, 0]).reshape(-1, *[1] * (len(shape) - 1))).to(dtype)
    codes, scale = encoded(weight)
    assert codes.dtype == torch.int8
    assert codes.flatten(1).abs().amax(1).tolist() == [127] * 4 + [0]
    off = (decoded(codes, scale, torch.float32) - weight.float()).flatten(1).abs().amax(1)
    assert (off <= weight.float().flatten(1).abs().amax(1) / 254 * 1.0001).all()


def test_layers_compute_with_the_weights_that_their_codes_stand_for():
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(6, 4), nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.LayerNorm(6)])
    rows, pixels = torch.randn(3, 6), torch.randn(2, 6, 8, 8)
    expected = []
    for layer, x in zip(layers, (rows, pixels, rows), strict=True):
        if not isinstance(layer, nn.LayerNorm):
            layer.weight.data = decoded(*encoded(layer.weight), torch.float32)
        expected.append(layer(x))
    store_in_eight_bits(layers)
    assert [layer.weight.dtype for layer in layers] == [torch.int8, torch.int8, torch.float32]
    for layer, x, y in zip(layers, (rows, pixels, rows), expected, strict=True):
        torch.testing.assert_close(layer(x), y)


def test_a_prediction_under_control_differs_by_little_and_names_shapes_and_precision_stay():
    unet = tiny.unet("sd1")
    control = ControlNet.from_base(unet)
    tiny.randomised(control)
    latent, timestep, prompt, hint = tiny.inputs("sd1")
    encoder, decoder = Encoder(unet), Decoder(unet)

    def prediction() -> torch.Tensor:
        with torch.no_grad():
            said = control(latent, timestep, prompt, control.encode_hint(hint))
            return predict(encoder, decoder, latent, timestep, prompt, said)

    before, bytes_before = prediction(), sum(it.nbytes for it in unet.parameters())
    names = {name: it.shape for name, it in unet.state_dict().items()}
    store_in_eight_bits(unet)
    assert is_in_eight_bits(unet)
    assert not is_in_eight_bits(control)
    assert {name: it.shape for name, it in unet.state_dict().items()} == names
    assert unet.dtype == torch.float32
    assert sum(it.nbytes for it in unet.parameters()) < 0.27 * bytes_before
    assert 0 < (prediction() - before).norm() / before.norm() < 0.04  # 0.023
