"""Our names and configurations <-> those of diffusers' ControlNetModel.

One table of modules in both directions. In both worlds the encoder's own tensors are called alike, as in the U-Net.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from controlnet.checkpoints.architecture import HEAD_WIDTH, HEADS
from controlnet.checkpoints.control_metadata import ControlMetadata, architecture_of
from controlnet.checkpoints.ldm import count
from controlnet.control import ControlNet
from controlnet.errors import UserError

CLASS = "ControlNetModel"
ENCODER = {
    "encoder.embed_time.time_embedding": "time_embedding",
    "encoder.embed_time.add_embedding": "add_embedding",
    "encoder.conv_in": "conv_in",
    "encoder.down_blocks": "down_blocks",
    "encoder.mid_block": "mid_block",
}
MODULES = {
    **ENCODER,
    "hint_encoder.0": "controlnet_cond_embedding.conv_in",
    # ours counts the activations too: 2, 4, ... 12 are blocks 0, 1, ... 5
    **{f"hint_encoder.{2 * block + 2}": f"controlnet_cond_embedding.blocks.{block}" for block in range(6)},
    "hint_encoder.14": "controlnet_cond_embedding.conv_out",
    "zero_convs": "controlnet_down_blocks",
    "zero_conv_middle": "controlnet_mid_block",
}
PUBLIC_CHANNELS = ((320, 640, 1280, 1280), (320, 640, 1280))  # of SD 1.x and 2.x, of SDXL
HINT_WIDTHS = [16, 32, 96, 256]
SIZE_WIDTH = 256  # of each of the six numbers that SDXL's time embedding hears beside the pooled text


def theirs_by_ours(ours: Collection[str]) -> dict[str, str]:
    """KeyError if diffusers has no such module."""
    return {name: _renamed(name, MODULES) for name in ours}


def ours_by_theirs(theirs: Collection[str], modules: Mapping[str, str] = MODULES) -> dict[str, str]:
    """Only of the tensors that `modules` knows; `ENCODER` picks a control's out of a whole U-Net."""
    backwards = {their: our for our, their in modules.items()}
    return {name: _renamed(name, backwards) for name in theirs if _module(name, backwards)}


def to_config(state: Mapping[str, Tensor], metadata: ControlMetadata) -> dict[str, Any]:
    """The config.json by which diffusers' ControlNetModel loads a control of ours.

    UserError if the widths are not those of the public bases and nothing tells how many heads share them.
    """
    if not metadata.architecture and metadata.block_channels not in PUBLIC_CHANNELS:
        raise UserError(
            f"a control with {metadata.block_channels} channels, whose file does not say how many heads share them, as "
            "diffusers must know; say --base with the base that it was made for"
        )
    return {
        "_class_name": CLASS,
        **encoder_config(state, metadata),
        "conditioning_channels": metadata.hint_channels,
        "conditioning_embedding_out_channels": HINT_WIDTHS,
        "controlnet_conditioning_channel_order": metadata.channel_order.lower(),
        "global_pool_conditions": metadata.averaged,
    }


def told_by_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `ControlMetadata` that a config.json of diffusers tells; its defaults tell nothing."""
    told: dict[str, Any] = {"architecture": architecture_of(config)}
    if config.get("controlnet_conditioning_channel_order") == "bgr":
        told["channel_order"] = "BGR"
    if config.get("global_pool_conditions"):
        told["averaged"] = True
    return told


def structure(state: Mapping[str, Tensor], metadata: ControlMetadata) -> ControlNet:
    """A ControlNet without weights, of the shape that the tensors of `state`, by our names, have."""
    config = encoder_config(state, metadata)
    kinds = [kind.replace("Down", "Up") for kind in reversed(config["down_block_types"])]
    with torch.device("meta"):
        return ControlNet.from_base(UNet2DConditionModel(**config, up_block_types=kinds), metadata.hint_channels)


def encoder_config(state: Mapping[str, Tensor], metadata: ControlMetadata) -> dict[str, Any]:
    """What diffusers' U-Net and control have in common, read off the shapes; their defaults are left out."""
    levels = range(len(metadata.block_channels))
    attended = [_heard(state, f"encoder.down_blocks.{level}.") for level in levels]
    config: dict[str, Any] = {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "block_out_channels": list(metadata.block_channels),
        "down_block_types": ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attended],
        "layers_per_block": count(state, "encoder.down_blocks.0.resnets."),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if _heard(state, "encoder.mid_block.") else "UNetMidBlock2D",
        "transformer_layers_per_block": [_depth(state, f"encoder.down_blocks.{level}.") for level in levels],
        "attention_head_dim": _usual_heads(metadata),
    }
    if any(attended) or _heard(state, "encoder.mid_block."):
        config["cross_attention_dim"] = _first(state, ".attn2.to_k.weight").shape[1]
        config["use_linear_projection"] = _first(state, ".proj_in.weight").ndim == 2
    config["transformer_layers_per_block"][-1] = _depth(state, "encoder.mid_block.")  # both have it from there
    if "encoder.embed_time.add_embedding.linear_1.weight" in state:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZE_WIDTH,
            "projection_class_embeddings_input_dim": state["encoder.embed_time.add_embedding.linear_1.weight"].shape[1],
        }
    return config | architecture_of(metadata.architecture)


def block_channels(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Width of the levels, shallow to deep, of a control by our names."""
    levels = range(count(state, "encoder.down_blocks."))
    return tuple(state[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels)


def _usual_heads(metadata: ControlMetadata) -> Any:
    """Their number, called `attention_head_dim` by diffusers: fixed in SD 1.x, else as many as have the usual width."""
    return HEADS.get(metadata.family) or [max(1, width // HEAD_WIDTH) for width in metadata.block_channels]


def _depth(state: Mapping[str, Tensor], block: str) -> int:
    """How many layers its transformers have; 1 where it has none, as diffusers writes it."""
    return count(state, f"{block}attentions.0.transformer_blocks.") or 1


def _heard(state: Mapping[str, Tensor], block: str) -> bool:
    """Whether the block attends to the prompt; in the small controls of SDXL none does."""
    return count(state, f"{block}attentions.") > 0


def _first(state: Mapping[str, Tensor], suffix: str) -> Tensor:
    return next(tensor for name, tensor in state.items() if name.endswith(suffix))


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    module = _module(name, modules)
    if not module:
        raise KeyError(f"{name} belongs to no module of the table")
    return modules[module] + name.removeprefix(module)


def _module(name: str, modules: Mapping[str, str]) -> str:
    return next((module for module in modules if name.startswith(f"{module}.")), "")
