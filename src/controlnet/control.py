"""ControlNet, the whole idea (Zhang, Rao and Agrawala 2023, arXiv:2302.05543). Read this file first.

A diffusion U-Net is an encoder and a decoder; what passes between them is a value, `Features`. A ControlNet is a
trainable copy of the encoder that also sees a hint. It too speaks in features, through convolutions that start at
zero, and control is a sum: see `predict`. At birth it adds exactly nothing, so training starts from the base as it is
and never has to repair it. Several ControlNets, their strengths and "middle only" are arithmetic on features.
Shapes: b batch, c channels, h w latent size, t tokens, d token width, e time embedding width, n sizes and offsets.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


@dataclass(frozen=True)
class Prompt:
    """What the base hears: one context per picture and, for SDXL, its `text_embeds` (b, d) and `time_ids` (b, n)."""

    context_btd: Tensor
    added: Mapping[str, Tensor] | None = None

    @classmethod
    def cat(cls, prompts: Sequence["Prompt"]) -> "Prompt":
        """One batch after the other; all of one family and of equally many tokens."""
        added = [prompt.added for prompt in prompts if prompt.added]
        joined = {name: torch.cat([each[name] for each in added]) for name in added[0]} if added else None
        return cls(torch.cat([prompt.context_btd for prompt in prompts]), joined)

    def __getitem__(self, which: slice | Tensor) -> "Prompt":
        """The chosen pictures of the batch."""
        return self._map(lambda tensor: tensor[which])

    def expand(self, count: int) -> "Prompt":
        """A batch of one, heard by `count` pictures."""
        return self._map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Prompt":
        """On another device, in another precision; whole numbers stay whole."""
        return self._map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Prompt":
        return Prompt(change(self.context_btd), self.added and {name: change(x) for name, x in self.added.items()})


@dataclass(frozen=True)
class Features:
    """What an encoder tells a decoder: the skips, shallow to deep (12; SDXL 9), then the middle."""

    skips: tuple[Tensor, ...]
    middle: Tensor

    def __add__(self, other: "Features") -> "Features":
        if len(self.skips) != len(other.skips):
            raise ValueError(f"features of unlike networks do not add: {len(self.skips)} and {len(other.skips)} skips")
        skips = tuple(mine + theirs for mine, theirs in zip(self.skips, other.skips, strict=True))
        return Features(skips, self.middle + other.middle)

    def scaled(self, weights: Sequence[float]) -> "Features":
        """Each skip times its weight, the middle times the last one; ValueError if there are not as many of both."""
        *skips, middle = (tensor * weight for tensor, weight in zip((*self.skips, self.middle), weights, strict=True))
        return Features(tuple(skips), middle)

    def only_middle(self) -> "Features":
        """The skips silenced; the original's `only_mid_control`."""
        return Features(tuple(torch.zeros_like(skip) for skip in self.skips), self.middle)


class TimeEmbedding(nn.Module):
    """The base's embedding of the timestep and, for SDXL, of the prompt's added conditions."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        if unet.config.addition_embed_type == "text_time":
            self.add_time_proj, self.add_embedding = unet.add_time_proj, unet.add_embedding

    def forward(self, timestep_b: Tensor, prompt: Prompt, dtype: torch.dtype) -> Tensor:
        embedding_be = self.time_embedding(self.time_proj(timestep_b).to(dtype))
        if prompt.added is None:
            return embedding_be
        text_bd, sizes_bn = prompt.added["text_embeds"], prompt.added["time_ids"]
        sizes_bd = self.add_time_proj(sizes_bn.flatten()).reshape(len(sizes_bn), -1)
        return embedding_be + self.add_embedding(torch.cat([text_bd, sizes_bd], dim=-1).to(dtype))


class Encoder(nn.Module):
    """The first half of a U-Net, sharing its modules: noisy latent -> features. A hint joins after `conv_in`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.embed_time = TimeEmbedding(unet)
        self.conv_in, self.down_blocks, self.mid_block = unet.conv_in, unet.down_blocks, unet.mid_block

    def forward(
        self, latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, hint_features_bchw: Tensor | None = None
    ) -> Features:
        embedding_be = self.embed_time(timestep_b, prompt, latent_bchw.dtype)
        x_bchw = self.conv_in(latent_bchw)
        if hint_features_bchw is not None:
            x_bchw = x_bchw + hint_features_bchw
        skips = [x_bchw]
        for block in self.down_blocks:
            x_bchw, outputs = block(x_bchw, embedding_be, **_heard(block, prompt))
            skips.extend(outputs)
        return Features(tuple(skips), self.mid_block(x_bchw, embedding_be, **_heard(self.mid_block, prompt)))

    def skip_channels(self) -> list[int]:
        """Width of every skip, shallow to deep; the middle is as wide as the last."""
        layers = [layer for block in self.down_blocks for layer in (*block.resnets, *(block.downsamplers or ()))]
        return [layer.out_channels for layer in (self.conv_in, *layers)]


class Decoder(nn.Module):
    """The second half of a U-Net, sharing its modules: features -> prediction (b, c, h, w), noise or velocity."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.embed_time, self.up_blocks = TimeEmbedding(unet), unet.up_blocks
        self.out = nn.Sequential(unet.conv_norm_out, unet.conv_act, unet.conv_out)

    def forward(self, features: Features, timestep_b: Tensor, prompt: Prompt) -> Tensor:
        x_bchw, skips = features.middle, features.skips
        embedding_be = self.embed_time(timestep_b, prompt, x_bchw.dtype)
        for block in self.up_blocks:
            skips, mine = skips[: -len(block.resnets)], skips[-len(block.resnets) :]
            size = skips[-1].shape[2:] if skips else None  # the next level's: odd sizes were halved unevenly
            x_bchw = block(x_bchw, mine, embedding_be, upsample_size=size, **_heard(block, prompt))
        return self.out(x_bchw)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What the original trains when its base is unlocked: all but the time embedding, which the encoder shares."""
        return [*self.up_blocks.parameters(), *self.out.parameters()]


class HintEncoder(nn.Sequential):
    """Hint (b, c, 8h, 8w) in [0, 1] -> hint features (b, c, h, w), zero at birth; the original's `input_hint_block`."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        widths, strides = (channels_in, 16, 16, 32, 32, 96, 96, 256), (1, 1, 2, 1, 2, 1, 2)
        layers: list[nn.Module] = []
        for narrow, wide, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            conv = nn.Conv2d(narrow, wide, 3, stride, padding=1)
            nn.init.normal_(conv.weight, std=2 / (9 * narrow) ** 0.5)  # by torch's default, a 10,000th of a ring passes
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
            layers += [conv, nn.SiLU()]
        super().__init__(*layers, zero_conv(256, channels_out, kernel_size=3))


class ControlNet(nn.Module):
    """A trainable copy of the base's encoder, heard through zero convolutions."""

    def __init__(self, encoder: Encoder, hint_channels: int = 3) -> None:
        super().__init__()
        channels = encoder.skip_channels()
        self.encoder, self.hint_encoder = encoder, HintEncoder(hint_channels, channels[0])
        self.zero_convs, self.zero_conv_middle = nn.ModuleList(map(zero_conv, channels)), zero_conv(channels[-1])
        self.decoder: Decoder | None = None  # in place of the base's, once that is unlocked and trained with this

    @classmethod
    def from_base(cls, unet: UNet2DConditionModel, hint_channels: int = 3) -> "ControlNet":
        """A ControlNet that is silent still: the base's device and precision, every parameter trainable."""
        return cls(copy.deepcopy(Encoder(unet)), hint_channels).to(unet.device, unet.dtype).requires_grad_(True)

    def encode_hint(self, hint_bchw: Tensor) -> Tensor:
        """Hint in [0, 1], 8 times the latent's size -> hint features; needed once per picture, not once per step."""
        return self.hint_encoder(hint_bchw)

    def forward(self, latent_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, hint_features_bchw: Tensor) -> Features:
        features = self.encoder(latent_bchw, timestep_b, prompt, hint_features_bchw)
        skips = tuple(conv(skip) for conv, skip in zip(self.zero_convs, features.skips, strict=True))
        return Features(skips, self.zero_conv_middle(features.middle))


def zero_conv(channels: int, channels_out: int | None = None, kernel_size: int = 1) -> nn.Conv2d:
    """A convolution that starts at zero: it passes nothing, but its own gradient is not zero, so it learns."""
    conv = nn.Conv2d(channels, channels_out or channels, kernel_size, padding=kernel_size // 2)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def predict(
    encoder: Encoder, decoder: Decoder, x_bchw: Tensor, timestep_b: Tensor, prompt: Prompt, control: Features | None
) -> Tensor:
    """The base's prediction, under control if any. Its encoder is locked: nothing of it is kept for backward."""
    with torch.no_grad():
        features = encoder(x_bchw, timestep_b, prompt)
    if control is not None:
        features = features + control
    return decoder(features, timestep_b, prompt)


def _heard(block: nn.Module, prompt: Prompt) -> dict[str, Tensor]:
    """The context, for blocks that attend to it; the others take none."""
    return {"encoder_hidden_states": prompt.context_btd} if getattr(block, "has_cross_attention", False) else {}
