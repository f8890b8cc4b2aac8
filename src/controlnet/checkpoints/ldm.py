"""The original's names (LDM: latent diffusion models) for the tensors of a U-Net, a ControlNet and a VAE.

A table per part says which of the original's modules each of ours is. The model itself says which tensors there are,
so one table serves both directions, every width, SD 1.x, SD 2.x and SDXL, and nothing is ever missing or left over
unseen.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from controlnet.checkpoints.strict import check_fit

Names = dict[str, str]  # ours -> the original's

TIME_EMBEDDING = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",  # SDXL
    "add_embedding.linear_2": "label_emb.0.2",
}
MIDDLE = {
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


@dataclass(frozen=True)
class Part:
    """A model inside a single-file checkpoint: its prefix there, its modules, and what inside them has another name."""

    prefix: str
    modules: Callable[[Collection[str]], Names]
    inside: Mapping[str, Mapping[str, str]]  # by kind of module, as in `resnets.0`
    as_1x1_convolutions: Collection[str] = ()  # linear layers of ours whose matrices the original keeps as kernels
    transposed: Collection[str] = ()  # matrices of ours that the original multiplies from the other side


def names(part: Part, ours: Collection[str]) -> Names:
    """All of a model's tensors, by our name -> the original's without prefix. KeyError if it has no such module."""
    modules = part.modules(ours)
    return {name: _original(name, modules, part.inside) for name in ours}


def to_ldm(part: Part, model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors as the original would save them."""
    state = model.state_dict()
    table = names(part, state)
    return {part.prefix + table[name]: _as_original(part, name, tensor) for name, tensor in state.items()}


def from_ldm(part: Part, tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The model's state, taken from those of `tensors` that bear the part's prefix.

    UserError names every tensor that is missing, left over or of another shape than the model's.
    """
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(part.prefix)}
    check_fit(f"the checkpoint's {part.prefix}*", found, to_ldm(part, model))
    state = model.state_dict()
    return {
        ours: _as_ours(part, ours, found[part.prefix + original], state[ours])
        for ours, original in names(part, state).items()
    }


def _unet_modules(ours: Collection[str]) -> Names:
    return {
        **TIME_EMBEDDING,
        **_encoder_modules(ours),
        **_decoder_modules(ours),
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }


def _encoder_modules(ours: Collection[str], prefix: str = "") -> Names:
    """The original numbers all of a U-Net's first half through: `input_blocks.0` is the first convolution."""
    layers = count(ours, f"{prefix}down_blocks.0.resnets.")
    modules = {"conv_in": "input_blocks.0.0", **MIDDLE}
    for level in range(count(ours, f"{prefix}down_blocks.")):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{first + layer}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{first + layer}.1"
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
    return modules


def _decoder_modules(ours: Collection[str]) -> Names:
    """An upsampler comes last in the last block of its level: after the attention if there is one."""
    layers = count(ours, "up_blocks.0.resnets.")
    modules = {}
    for level in range(count(ours, "up_blocks.")):
        for layer in range(layers):
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{level * layers + layer}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{level * layers + layer}.1"
        place = 2 if count(ours, f"up_blocks.{level}.attentions.") else 1
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{(level + 1) * layers - 1}.{place}.conv"
    return modules


def _control_modules(ours: Collection[str]) -> Names:
    return {
        **{f"encoder.embed_time.{mine}": original for mine, original in TIME_EMBEDDING.items()},
        **{f"encoder.{mine}": original for mine, original in _encoder_modules(ours, "encoder.").items()},
        "hint_encoder": "input_hint_block",
        **{f"zero_convs.{skip}": f"zero_convs.{skip}.0" for skip in range(count(ours, "zero_convs."))},
        "zero_conv_middle": "middle_block_out.0",
    }


def _vae_modules(ours: Collection[str]) -> Names:
    """The original counts levels from the picture on both sides, we in the order in which they act."""
    levels = count(ours, "encoder.down_blocks.")
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        modules |= {
            f"{side}.conv_in": f"{side}.conv_in",
            f"{side}.mid_block.resnets.0": f"{side}.mid.block_1",
            f"{side}.mid_block.attentions.0": f"{side}.mid.attn_1",
            f"{side}.mid_block.resnets.1": f"{side}.mid.block_2",
            f"{side}.conv_norm_out": f"{side}.norm_out",
            f"{side}.conv_out": f"{side}.conv_out",
        }
    for level in range(levels):
        up = levels - 1 - level
        for layer in range(count(ours, "encoder.down_blocks.0.resnets.")):
            modules[f"encoder.down_blocks.{level}.resnets.{layer}"] = f"encoder.down.{level}.block.{layer}"
        for layer in range(count(ours, "decoder.up_blocks.0.resnets.")):
            modules[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"decoder.up.{up}.block.{layer}"
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{up}.upsample.conv"
    return modules


UNET = Part("model.diffusion_model.", _unet_modules, {"resnets": UNET_RESNET})
CONTROL = Part("control_model.", _control_modules, {"resnets": UNET_RESNET})
VAE = Part(
    "first_stage_model.",
    _vae_modules,
    {"resnets": VAE_RESNET, "attentions": VAE_ATTENTION},
    as_1x1_convolutions=("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"),
)


def _original(name: str, modules: Names, inside: Mapping[str, Mapping[str, str]]) -> str:
    """`down_blocks.0.resnets.1.conv1.weight` -> module `down_blocks.0.resnets.1`, layer `conv1`, tensor `weight`.

    A tensor that the original calls otherwise than `weight` stands in the table itself.
    """
    if name in modules:
        return modules[name]
    module = name
    while module not in modules:
        if not module:
            raise KeyError(f"{name} belongs to no module that the original has")
        module = module.rpartition(".")[0]
    layer, _, tensor = name.removeprefix(f"{module}.").rpartition(".")
    kind = module.split(".")[-2:][0]
    return ".".join(filter(None, (modules[module], inside.get(kind, {}).get(layer, layer), tensor)))


def _as_original(part: Part, name: str, tensor: Tensor) -> Tensor:
    if name.endswith(tuple(part.as_1x1_convolutions)):
        return tensor[:, :, None, None]
    return tensor.T if name in part.transposed else tensor


def _as_ours(part: Part, name: str, tensor: Tensor, wanted: Tensor) -> Tensor:
    return tensor.T if name in part.transposed else tensor.reshape(wanted.shape)


def count(ours: Collection[str], prefix: str) -> int:
    """How many different numbers follow `prefix`."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in ours if name.startswith(prefix)})
