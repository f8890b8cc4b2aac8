"""Text encoders in single files: OpenCLIP's own formulas give what our models give."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTextConfig

import tiny
from controlnet.checkpoints.ldm import names
from controlnet.checkpoints.text_encoders import TEXT_ENCODERS, TextEncoder, from_ldm, heard, to_ldm, usual_names

ENCODERS = {
    "SD 1.x": TEXT_ENCODERS["sd1"][0],
    "SD 2.x": TEXT_ENCODERS["sd2"][0],
    "SDXL, first": TEXT_ENCODERS["sdxl"][0],
    "SDXL, second": TEXT_ENCODERS["sdxl"][1],
}
WIDTH, HEADS, LAYERS, WORDS, LENGTH = 32, 2, 3, 40, 9
every_encoder = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)


def model_of(encoder: TextEncoder):
    config = CLIPTextConfig(
        vocab_size=WORDS,
        max_position_embeddings=LENGTH,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        hidden_act="gelu" if encoder.is_openclip else "quick_gelu",
        bos_token_id=WORDS - 2,
        eos_token_id=WORDS - 1,
        pad_token_id=0,
    )
    return tiny.randomised(encoder.kind(config)).eval().requires_grad_(False)


@every_encoder
def test_there_and_back_again_every_tensor_is_bitwise_the_same(encoder: TextEncoder):
    model = model_of(encoder)
    file = {name: x for name, x in to_ldm(encoder, model).items() if not name.endswith(("position_ids", "logit_scale"))}
    back = from_ldm(encoder, heard(encoder, file), model)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


@every_encoder
def test_both_versions_of_our_models_names_have_the_same_names_in_files(encoder: TextEncoder):
    ours = model_of(encoder).state_dict().keys()
    bare = [name.removeprefix("text_model.") for name in ours]
    prefixed = [name if name == "text_projection.weight" else f"text_model.{name}" for name in bare]
    assert list(names(encoder.part, bare).values()) == list(names(encoder.part, prefixed).values())


def test_openclips_formulas_give_our_models_output_from_the_files_tensors():
    """Radford et al. 2021 as OpenCLIP writes it: stacked queries, keys and values, x @ text_projection."""
    encoder = ENCODERS["SDXL, second"]
    model, prefix = model_of(encoder), encoder.part.prefix
    file = {name.removeprefix(prefix): tensor for name, tensor in to_ldm(encoder, model).items()}
    ids = torch.tensor([[WORDS - 2, 5, 7, WORDS - 1, 0, 0, 0, 0, 0]])
    x = file["token_embedding.weight"][ids] + file["positional_embedding"]
    for layer in range(LAYERS):
        x = openclip_block(x, {name: file[f"transformer.resblocks.{layer}.{name}"] for name in BLOCK})
    x = F.layer_norm(x, (WIDTH,), file["ln_final.weight"], file["ln_final.bias"])
    pooled = x[0, 3] @ file["text_projection"]
    output = model(ids)
    torch.testing.assert_close(output.last_hidden_state, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.text_embeds[0], pooled, rtol=1e-4, atol=1e-4)


BLOCK = (
    *("ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias"),
    *("attn.out_proj.weight", "attn.out_proj.bias", "ln_2.weight", "ln_2.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)


def openclip_block(x: Tensor, of: dict[str, Tensor]) -> Tensor:
    attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    attention.load_state_dict({name.removeprefix("attn."): each for name, each in of.items() if "attn." in name})
    future = torch.full((LENGTH, LENGTH), float("-inf")).triu(1)
    normed = F.layer_norm(x, (WIDTH,), of["ln_1.weight"], of["ln_1.bias"])
    x = x + attention(normed, normed, normed, attn_mask=future, need_weights=False)[0]
    normed = F.layer_norm(x, (WIDTH,), of["ln_2.weight"], of["ln_2.bias"])
    inner = F.gelu(F.linear(normed, of["mlp.c_fc.weight"], of["mlp.c_fc.bias"]))
    return x + F.linear(inner, of["mlp.c_proj.weight"], of["mlp.c_proj.bias"])


def test_the_stand_in_of_sd2s_last_layer_adds_nothing():
    encoder = ENCODERS["SD 2.x"]
    file = {name.removeprefix(encoder.part.prefix): x for name, x in to_ldm(encoder, model_of(encoder)).items()}
    x = torch.randn(1, LENGTH, WIDTH)
    last = {name: file[f"transformer.resblocks.{LAYERS}.{name}"] for name in BLOCK}
    assert torch.equal(openclip_block(x, last), x)
    assert torch.equal(file["text_projection"], torch.eye(WIDTH))


def test_usual_names_are_left_as_they_are():
    for encoder in ENCODERS.values():
        file = to_ldm(encoder, model_of(encoder))
        assert usual_names(file).keys() == file.keys()
