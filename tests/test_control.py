"""The theory of ControlNet, on bases in which every weight is random."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import tiny
from controlnet.control import ControlNet, Decoder, Encoder, Features, HintEncoder, Prompt, predict

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


def changed_from(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def without_gradient(module: nn.Module) -> set[str]:
    """Names of parameters whose gradient is absent or exactly zero."""
    return {name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()}


def backward(unet, control: ControlNet, family: tiny.Family) -> Tensor:
    latent, timestep, prompt, hint = tiny.inputs(family)
    added = control(latent, timestep, prompt, control.encode_hint(hint))
    prediction = predict(Encoder(unet), Decoder(unet), latent, timestep, prompt, added)
    loss = mse_loss(prediction, torch.randn(latent.shape, generator=torch.Generator().manual_seed(3)))
    loss.backward()
    return loss


# Encoder and decoder


@every_family
@pytest.mark.parametrize("size", [(8, 8), (9, 13)], ids=["even", "odd"])
def test_encoder_and_decoder_together_are_bitwise_the_unet(family, size):
    unet = tiny.unet(family)
    latent, timestep, prompt, _ = tiny.inputs(family, size=size)
    expected = unet(latent, timestep, prompt.context_btd, added_cond_kwargs=prompt.added).sample
    assert torch.equal(predict(Encoder(unet), Decoder(unet), latent, timestep, prompt, None), expected)


@every_family
def test_encoder_and_decoder_are_bitwise_the_unet_in_bfloat16(family):
    unet = tiny.unet(family).to(torch.bfloat16)
    latent, timestep, prompt, _ = tiny.inputs(family)
    latent, prompt = latent.bfloat16(), prompt.to(latent.device, torch.bfloat16)
    expected = unet(latent, timestep, prompt.context_btd, added_cond_kwargs=prompt.added).sample
    assert expected.dtype == torch.bfloat16
    assert torch.equal(predict(Encoder(unet), Decoder(unet), latent, timestep, prompt, None), expected)


@pytest.mark.parametrize(("family", "outputs"), [("sd1", 13), ("sd2", 13), ("sdxl", 10)])
def test_control_has_as_many_outputs_as_its_family_wants(family, outputs):
    control = ControlNet.from_base(tiny.unet(family))
    latent, timestep, prompt, hint = tiny.inputs(family)
    features = control(latent, timestep, prompt, control.encode_hint(hint))
    assert len([*features.skips, features.middle]) == outputs


# Silence at birth


@every_family
def test_a_new_controlnet_is_silent_bitwise(family):
    unet = tiny.unet(family)
    control = ControlNet.from_base(unet)
    latent, timestep, prompt, hint = tiny.inputs(family)
    added = control(latent, timestep, prompt, control.encode_hint(hint))
    assert not any(feature.any() for feature in (*added.skips, added.middle))
    base = unet(latent, timestep, prompt.context_btd, added_cond_kwargs=prompt.added).sample
    assert torch.equal(predict(Encoder(unet), Decoder(unet), latent, timestep, prompt, added), base)


def test_a_new_controlnet_is_a_copy_that_shares_nothing_with_the_base():
    unet = tiny.unet("sd1")
    control = ControlNet.from_base(unet)
    assert not changed_from(Encoder(unet).state_dict(), control.encoder)
    before = copy.deepcopy(unet.state_dict())
    tiny.randomised(control, seed=9)
    assert not changed_from(before, unet)
    assert all(parameter.requires_grad for parameter in control.parameters())


def test_a_new_controlnet_has_the_precision_of_its_base():
    control = ControlNet.from_base(tiny.unet("sd1").to(torch.bfloat16))
    assert {parameter.dtype for parameter in control.parameters()} == {torch.bfloat16}


# Why zero convolutions learn: the FAQ's derivation


@every_family
def test_gradients_awake_from_the_output_inwards(family):
    torch.manual_seed(0)
    unet = tiny.unet(family)
    control = ControlNet.from_base(unet)
    optimizer = torch.optim.SGD(control.parameters(), lr=0.1)
    names = {name for name, _ in control.named_parameters()}
    zero_convs = {name for name in names if name.startswith("zero_conv")}
    hint_encoder = {name for name in names if name.startswith("hint_encoder")}
    last_of_hint_encoder = {"hint_encoder.14.weight", "hint_encoder.14.bias"}

    backward(unet, control, family)
    assert without_gradient(control) == names - zero_convs, "first: only the output zero convolutions"
    optimizer.step()
    optimizer.zero_grad()

    backward(unet, control, family)
    assert without_gradient(control) == hint_encoder - last_of_hint_encoder, "second: the copied encoder too"
    optimizer.step()
    optimizer.zero_grad()

    backward(unet, control, family)
    assert not without_gradient(control), "third: all"


def test_control_learns():
    torch.manual_seed(0)
    unet = tiny.unet("sd1")
    control = ControlNet.from_base(unet)
    optimizer = torch.optim.AdamW(control.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        losses.append(backward(unet, control, "sd1").item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses == sorted(losses, reverse=True)


# The lock


@every_family
def test_the_locked_base_never_changes_and_gets_no_gradient(family):
    unet = tiny.unet(family)
    before = copy.deepcopy(unet.state_dict())
    control = ControlNet.from_base(unet)
    optimizer = torch.optim.AdamW(control.parameters(), lr=1e-2)
    for _ in range(3):
        backward(unet, control, family)
        optimizer.step()
    assert not changed_from(before, unet)
    assert all(parameter.grad is None for parameter in unet.parameters())


def kept_for_backward(compute: Callable[[], object]) -> Counter[torch.Size]:
    """Shapes of all that autograd keeps of a computation."""
    kept: Counter[torch.Size] = Counter()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.shape] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return kept


@pytest.mark.parametrize("trainable", ["nothing", "decoder", "everything"])
def test_no_activation_of_the_locked_encoder_is_kept_for_backward(trainable):
    unet, (latent, timestep, prompt, hint) = tiny.unet("sd1"), tiny.inputs("sd1")
    encoder, decoder, control = Encoder(unet), Decoder(unet), ControlNet.from_base(unet)
    for parameter in {"nothing": [], "decoder": decoder.trainable_parameters(), "everything": unet.parameters()}[
        trainable
    ]:
        parameter.requires_grad_(True)
    added = control(latent, timestep, prompt, control.encode_hint(hint))
    with torch.no_grad():
        features = encoder(latent, timestep, prompt)
    of_decoder_alone = kept_for_backward(lambda: decoder(features + added, timestep, prompt))
    assert of_decoder_alone.total() > 100
    assert kept_for_backward(lambda: predict(encoder, decoder, latent, timestep, prompt, added)) == of_decoder_alone


def test_unlocking_trains_all_of_the_decoder_but_the_time_embedding():
    unet = tiny.unet("sd1")
    decoder = Decoder(unet)
    chosen = {id(parameter) for parameter in decoder.trainable_parameters()}
    left = {name for name, parameter in decoder.named_parameters() if id(parameter) not in chosen}
    assert left
    assert all(name.startswith("embed_time.") for name in left)
    assert not chosen & {id(parameter) for parameter in Encoder(unet).parameters()}


# Control is arithmetic


@pytest.fixture
def features() -> Features:
    control = tiny.randomised(ControlNet.from_base(tiny.unet("sd1")), seed=4).requires_grad_(False)
    latent, timestep, prompt, hint = tiny.inputs("sd1")
    return control(latent, timestep, prompt, control.encode_hint(hint))


def test_only_middle_silences_every_skip_and_nothing_else(features):
    quiet = features.only_middle()
    assert not any(skip.any() for skip in quiet.skips)
    assert torch.equal(quiet.middle, features.middle)
    assert quiet.middle.any()


def test_only_middle_trains_only_what_leads_to_the_middle():
    unet = tiny.unet("sd1")
    control = tiny.randomised(ControlNet.from_base(unet), seed=4)
    latent, timestep, prompt, hint = tiny.inputs("sd1")
    added = control(latent, timestep, prompt, control.encode_hint(hint)).only_middle()
    predict(Encoder(unet), Decoder(unet), latent, timestep, prompt, added).square().mean().backward()
    assert without_gradient(control) == {name for name, _ in control.named_parameters() if "zero_convs" in name}
    assert control.zero_convs[0].weight.grad is None, "None, not zero: an optimizer's weight decay passes it over"


def test_several_controls_are_a_sum(features):
    twice = features + features
    doubled = features.scaled([2.0] * 13)
    assert all(torch.equal(*pair) for pair in zip(twice.skips, doubled.skips, strict=True))
    assert torch.equal(twice.middle, doubled.middle)


def test_each_weight_scales_its_own_feature(features):
    scaled = features.scaled([float(index) for index in range(13)])
    assert all(torch.equal(scaled.skips[index], features.skips[index] * index) for index in range(12))
    assert torch.equal(scaled.middle, features.middle * 12)


def test_too_few_weights_are_an_error(features):
    with pytest.raises(ValueError, match="shorter"):
        features.scaled([1.0] * 12)


def test_features_of_unlike_networks_do_not_add(features):
    with pytest.raises(ValueError, match="12 and 11 skips"):
        features + Features(features.skips[:-1], features.middle)


# Hints


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_hint_of_any_number_of_channels_becomes_features_of_an_eighth_its_size(channels):
    encoder = tiny.randomised(HintEncoder(channels, 32))
    assert encoder(torch.rand(2, channels, 64, 96)).shape == (2, 32, 8, 12)


def test_hint_features_of_one_picture_serve_a_whole_batch():
    control = tiny.randomised(ControlNet.from_base(tiny.unet("sd1")), seed=4).requires_grad_(False)
    latent, timestep, prompt, hint = tiny.inputs("sd1")
    one, both = control.encode_hint(hint[:1]), control.encode_hint(hint[:1].expand(2, -1, -1, -1))
    torch.testing.assert_close(
        control(latent, timestep, prompt, one).middle, control(latent, timestep, prompt, both).middle
    )


# Prompts


def test_prompts_join_and_part_again():
    first, second = tiny.prompt("sdxl", seed=1), tiny.prompt("sdxl", seed=2)
    joined = Prompt.cat([first, second])
    for part, whole in ((joined[:2], first), (joined[torch.tensor([2, 3])], second)):
        assert torch.equal(part.context_btd, whole.context_btd)
        assert all(torch.equal(part.added[name], whole.added[name]) for name in ("text_embeds", "time_ids"))


def test_a_prompt_without_added_conditions_stays_without():
    prompt = tiny.prompt("sd1", batch=1)
    assert Prompt.cat([prompt, prompt]).added is None
    assert prompt.expand(3).context_btd.shape[0] == 3
    assert prompt.expand(3).added is None


def test_whole_numbers_of_a_prompt_survive_a_change_of_precision():
    prompt = tiny.prompt("sdxl")
    half = prompt.to(torch.device("cpu"), torch.bfloat16)
    assert half.added["text_embeds"].dtype == torch.bfloat16
    assert torch.equal(half.added["time_ids"], prompt.added["time_ids"])


def test_a_new_hint_encoder_lets_hints_through_to_its_zero_convolution() -> None:
    torch.manual_seed(0)
    *layers, last = HintEncoder(3, 8)
    hints = torch.zeros(8, 3, 64, 64)
    for index, hint in enumerate(hints):
        hint[:, 4 * index + 8] = 1.0  # a white line, elsewhere in each
    with torch.no_grad():
        told = torch.nn.Sequential(*layers)(hints)
    assert 0.02 < told.std(dim=0).mean() < 2
    assert not last.weight.any()
