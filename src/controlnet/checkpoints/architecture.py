"""The configurations of a base's models, from its single file.

Shapes tell most. What they cannot tell is the family's, or stands in the file's header if we wrote it (`Told`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from controlnet.checkpoints.contents import FAMILIES, HEADER, Family
from controlnet.checkpoints.ldm import count
from controlnet.choices import Prediction
from controlnet.errors import UserError

Config = dict[str, Any]

BASE = "base"  # in the JSON under HEADER: `Told`
# of a model's configuration, what its tensors' shapes do not tell, in the words of diffusers and transformers
UNTOLD_OF_UNET = ("attention_head_dim", "norm_num_groups", "sample_size", "upcast_attention")
UNTOLD_OF_VAE = (
    *("norm_num_groups", "sample_size", "force_upcast"),
    *("scaling_factor", "shift_factor", "latents_mean", "latents_std"),
)
UNTOLD_OF_TEXT_ENCODER = (
    *("num_attention_heads", "hidden_act", "layer_norm_eps", "projection_dim"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)

HEADS = {"sd1": 8}  # of the other families, heads have a width:
HEAD_WIDTH = 64  # also in every text encoder
GROUPS = 32  # of channels, normalised together
SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}  # 1 / the latents' deviation, as the authors measured it
SIZES_HEARD = 6  # numbers that SDXL hears of a picture's size and crop (Podell et al. 2023, section 2.2)


@dataclass(frozen=True)
class Told:
    """What a file of ours says of its base because its tensors' shapes cannot; of other files, nothing."""

    unet: Config = field(default_factory=dict)
    vae: Config = field(default_factory=dict)
    text_encoders: Sequence[Config] = ()
    scheduler: Config = field(default_factory=dict)
    tokenizers: Sequence[Mapping[str, str]] = ()
    """Of each, its files' contents by name; none where they are CLIP's own."""

    @classmethod
    def by(cls, header: Mapping[str, str]) -> "Told":
        """What a file's header says. UserError if it is damaged."""
        try:
            base = json.loads(header.get(HEADER, "{}")).get(BASE, {})
            return cls(
                unet=_checked(_only(UNTOLD_OF_UNET, base.get("unet", {}))),
                vae=_checked(_only(UNTOLD_OF_VAE, base.get("vae", {}))),
                text_encoders=[_checked(_only(UNTOLD_OF_TEXT_ENCODER, it)) for it in base.get("text_encoders", ())],
                scheduler=dict(base.get("scheduler", {})),
                tokenizers=[dict(each) for each in base.get("tokenizers", ())],
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"its header is damaged ({error}); use another copy of the file") from error

    def to_header(self, prediction: Prediction) -> dict[str, str]:
        """As safetensors keeps it. A single entry: it writes several in no fixed order."""
        return {HEADER: json.dumps({"prediction_type": prediction, BASE: asdict(self)})}


def _only(names: Sequence[str], config: Mapping[str, Any]) -> Config:
    return {name: config[name] for name in names if config.get(name) is not None}


def _checked(config: Config) -> Config:
    """TypeError unless every value is a number, a list of numbers or, of an activation, a name."""
    for name, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        if name != "hidden_act" and not all(isinstance(number, int | float) for number in numbers):
            raise TypeError(f"{name} is {value!r}, expected a number")
    return config


def told_of(
    unet: Config,
    vae: Config,
    text_encoders: Sequence[Config],
    scheduler: Config,
    tokenizers: Sequence[Mapping[str, str]],
) -> Told:
    """What a file with these whole configurations has to say."""
    return Told(
        _only(UNTOLD_OF_UNET, unet),
        _only(UNTOLD_OF_VAE, vae),
        [_only(UNTOLD_OF_TEXT_ENCODER, each) for each in text_encoders],
        {name: value for name, value in scheduler.items() if name != "_diffusers_version"},
        tokenizers,
    )


SCHEDULER: Config = dict(  # as Stable Diffusion's folders have it
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    trained_betas=None,
    clip_sample=False,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
)


@dataclass(frozen=True)
class InFile:
    """One model's tensors in a single file, asked for by the original's names without the model's prefix."""

    prefix: str
    tensors: Mapping[str, Tensor]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def count(self, prefix: str) -> int:
        """How many different numbers follow `prefix`."""
        return count(self.tensors, self.prefix + prefix)

    def size(self, name: str, dimension: int) -> int:
        """UserError if there is no such tensor or dimension."""
        found = self.tensors.get(self.prefix + name)
        if found is None or found.ndim <= dimension:
            wrong = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise UserError(
                f"its tensor {self.prefix}{name} {wrong}; the file is damaged or no whole base: use another copy of it"
            )
        return found.shape[dimension]


def scheduler_config(family: Family) -> Config:
    if family == "sdxl":
        own = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "interpolation_type": "linear"}
    else:
        own = {"_class_name": "DDIMScheduler"}
    return {**own, **SCHEDULER}


def unet_config(unet: InFile, family: Family, prediction: Prediction, pooled_width: int | None, told: Config) -> Config:
    """Of a `UNet2DConditionModel`; `told` by the file's header; `pooled_width` of SDXL's second text encoder."""
    levels = _levels(unet)
    channels = [level[0][0] for level in levels]
    attended = [level[0][1] > 0 for level in levels]
    middle_depth = unet.count("middle_block.1.transformer_blocks.")
    depths = [level[0][1] or 1 for level in levels]
    if not attended[-1]:
        depths[-1] = middle_depth  # diffusers has the middle as deep as the last level
    config: Config = dict(
        in_channels=unet.size("input_blocks.0.0.weight", 1),
        out_channels=unet.size("out.2.weight", 0),
        block_out_channels=channels,
        layers_per_block=len(levels[0]),
        down_block_types=["CrossAttnDownBlock2D" if it else "DownBlock2D" for it in attended],
        up_block_types=["CrossAttnUpBlock2D" if it else "UpBlock2D" for it in reversed(attended)],
        transformer_layers_per_block=depths if len(set(depths)) > 1 else depths[0],
        cross_attention_dim=unet.size("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        use_linear_projection=family != "sd1",
        attention_head_dim=told.get("attention_head_dim") or _heads(channels, family),
        norm_num_groups=told.get("norm_num_groups") or _groups("U-Net", channels),
        sample_size=_latent_size(family, prediction),
        upcast_attention=family == "sd2",  # as 2.1 has it, whose attention overflows in float16
    )
    return {**config, **(_added_conditions(unet, pooled_width) if family == "sdxl" else {}), **told}


def _latent_size(family: Family, prediction: Prediction) -> int:
    """Side of the latents that it was trained on: pictures of 1024, 768 and 512."""
    match family, prediction:
        case "sdxl", _:
            return 128
        case "sd2", "v_prediction":
            return 96
    return 64


def _levels(unet: InFile) -> list[list[tuple[int, int]]]:
    """By level and layer of a U-Net's first half: channels, and transformer blocks (0: no attention)."""
    levels: list[list[tuple[int, int]]] = [[]]
    for block in range(1, unet.count("input_blocks.")):
        if f"input_blocks.{block}.0.op.weight" in unet:
            levels.append([])
        else:
            channels = unet.size(f"input_blocks.{block}.0.out_layers.3.weight", 0)
            levels[-1].append((channels, unet.count(f"input_blocks.{block}.1.transformer_blocks.")))
    if not all(levels):
        raise UserError("its U-Net has a level without layers; the file is damaged: use another copy of it")
    return levels


def _added_conditions(unet: InFile, pooled_width: int | None) -> Config:
    heard = unet.size("label_emb.0.0.weight", 1)
    return dict(
        addition_embed_type="text_time",
        addition_time_embed_dim=(heard - (pooled_width or 0)) // SIZES_HEARD,
        projection_class_embeddings_input_dim=heard,
    )


def vae_config(vae: InFile, family: Family, told: Config) -> Config:
    """Of an `AutoencoderKL`."""
    levels = vae.count("encoder.down.")
    channels = [vae.size(f"encoder.down.{level}.block.0.conv1.weight", 0) for level in range(levels)]
    config: Config = dict(
        in_channels=vae.size("encoder.conv_in.weight", 1),
        out_channels=vae.size("decoder.conv_out.weight", 0),
        latent_channels=vae.size("decoder.conv_in.weight", 1),
        block_out_channels=channels,
        layers_per_block=vae.count("encoder.down.0.block."),
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=told.get("norm_num_groups") or _groups("VAE", channels),
        scaling_factor=SCALES[family],
        sample_size=1024 if family == "sdxl" else 512,
    )
    return {**config, **told}


def clip_config(text: InFile, told: Config) -> Config:
    """Of the CLIP text model whose tensors begin with `transformer.text_model.`: SD 1.x's and the first of SDXL."""
    model = "transformer.text_model."
    return _text_config(
        text,
        told,
        tokens=f"{model}embeddings.token_embedding.weight",
        positions=f"{model}embeddings.position_embedding.weight",
        first_layer=f"{model}encoder.layers.0.mlp.fc1.weight",
        layers=text.count(f"{model}encoder.layers."),
        hidden_act="quick_gelu",
    )


def openclip_config(text: InFile, told: Config) -> Config:
    """Of a text model with OpenCLIP's names: SD 2.x's and the second of SDXL."""
    config = _text_config(
        text,
        told,
        tokens="token_embedding.weight",
        positions="positional_embedding",
        first_layer="transformer.resblocks.0.mlp.c_fc.weight",
        layers=text.count("transformer.resblocks."),
        hidden_act="gelu",
    )
    return {**config, "projection_dim": text.size("text_projection", 1)} if "text_projection" in text else config


def _text_config(
    text: InFile,
    told: Config,
    tokens: str,
    positions: str,
    first_layer: str,
    layers: int,
    hidden_act: str,
) -> Config:
    width = text.size(tokens, 1)
    config: Config = dict(
        vocab_size=text.size(tokens, 0),
        max_position_embeddings=text.size(positions, 0),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=text.size(first_layer, 0),
        num_hidden_layers=layers,
        num_attention_heads=told.get("num_attention_heads") or _heads_of_width(width, "text encoder"),
        hidden_act=hidden_act,
    )
    return {**config, **told}


def _heads(channels: list[int], family: Family) -> int | list[int]:
    """By level if their width is fixed; diffusers calls the number `attention_head_dim`."""
    if family not in HEADS:
        return [_heads_of_width(width, f"U-Net of {FAMILIES[family]}") for width in channels]
    if any(width % HEADS[family] for width in channels):
        raise _unlike(f"its U-Net has levels of {channels} channels, which {HEADS[family]} heads cannot share")
    return HEADS[family]


def _heads_of_width(width: int, whose: str) -> int:
    if width % HEAD_WIDTH:
        raise _unlike(f"its {whose} has {width} channels, no multiple of the {HEAD_WIDTH} that each head has there")
    return width // HEAD_WIDTH


def _groups(whose: str, channels: list[int]) -> int:
    if any(width % GROUPS for width in channels):
        raise _unlike(f"its {whose} has levels of {channels} channels, which are normalised in groups of {GROUPS}")
    return GROUPS


def _unlike(found: str) -> UserError:
    return UserError(
        f"{found}: a narrow base, whose single file cannot tell its heads and groups; give the folder in diffusers "
        "layout that it was made from, or a .safetensors that `controlnet convert` made of it, which says them"
    )
