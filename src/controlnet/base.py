"""The base: a pretrained text-to-image model, opened from disk and locked.

It turns prompts into contexts, pictures into latents and latents into pictures, and knows its noise schedule. What it
predicts is said by its `encoder` and `decoder` (control.py); a ControlNet stands between them.

Shapes: b batch, c channels, h w latent size, H W picture size, k chunks of a prompt, t tokens, d token width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from transformers import CLIPTokenizer

from controlnet.checkpoints.base_file import load_base_file
from controlnet.checkpoints.folder import find_base, load_base_folder
from controlnet.checkpoints.models import resolve_base
from controlnet.checkpoints.parts import BaseParts
from controlnet.checkpoints.tokenizer import PROMPT_LENGTH
from controlnet.choices import Prediction
from controlnet.control import Decoder, Encoder, Prompt
from controlnet.devices import Device, DType, choose_device, choose_dtype
from controlnet.errors import UserError
from controlnet.speed import suit, suit_vae

EMBEDDED = "embedded"
NEW_CHUNK = "\f"  # in a prompt: what follows is heard in a chunk of its own
Token = TypeVar("Token")  # its id, or its weight


@dataclass(frozen=True)
class Schedule:
    """How noise is mixed in: alphas_cumprod (timesteps,) float32, falling; and what the base was taught to predict."""

    alphas_cumprod: Tensor
    prediction_type: Prediction

    def add_noise(self, latent_bchw: Tensor, noise_bchw: Tensor, timestep_b: Tensor) -> Tensor:
        """The latent at a timestep: sqrt(a) latent + sqrt(1 - a) noise (Ho et al. 2020, Eq. 4)."""
        signal, sigma = self._scales(timestep_b, latent_bchw)
        return signal * latent_bchw + sigma * noise_bchw

    def velocity(self, latent_bchw: Tensor, noise_bchw: Tensor, timestep_b: Tensor) -> Tensor:
        """What v-prediction predicts: sqrt(a) noise - sqrt(1 - a) latent (Salimans and Ho 2022, appendix D)."""
        signal, sigma = self._scales(timestep_b, latent_bchw)
        return signal * noise_bchw - sigma * latent_bchw

    def _scales(self, timestep_b: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod.to(like.device)[timestep_b.to(like.device)][:, None, None, None]
        return alpha.sqrt().to(like.dtype), (1 - alpha).sqrt().to(like.dtype)


@dataclass(eq=False, repr=False)
class Base(BaseParts):
    """A locked text-to-image model. Contexts are in its own precision; latents and pixels are float32 outside."""

    source: str
    encoder: Encoder = field(init=False)
    decoder: Decoder = field(init=False)
    schedule: Schedule = field(init=False)
    home: torch.device | None = field(init=False, default=None)
    """Where it computes, if it is not where its models are: they are brought there as `generation.placing` says."""
    _hash: str = field(init=False, default="")

    def __post_init__(self) -> None:
        for part in self._parts():
            part.eval().requires_grad_(False)
        self.encoder, self.decoder = Encoder(self.unet), Decoder(self.unet)
        scheduler = DDPMScheduler.from_config(self.scheduler_config)
        self.schedule = Schedule(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def device(self) -> torch.device:
        return self.home or self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def factor(self) -> int:
        """Pixels of a picture per cell of its latent, along each side: 8."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side of the pictures that the base was made for: 128 embedded, 512 SD 1.x, 768 or 512 SD 2.x, 1024 SDXL."""
        return self.unet.config.sample_size * self.factor

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[str], clip_skip: int = 1, size_hw: tuple[int, int] | None = None
    ) -> Prompt:
        """Prompts -> what the U-Net hears, context (b, 77 k, d).

        Prompts of more than 75 tokens are heard in chunks of 75, each encoded apart, and so is what a form feed parts;
        all prompts of a call get as many chunks as the longest. `clip_skip` counts text encoder layers from the end, 1
        is the last (SDXL: the penultimate, which it was trained with). `size_hw` is told to SDXL as the picture's size;
        default `resolution`.
        UserError if the text encoder has fewer layers than `clip_skip`.
        """
        self.check_clip_skip(clip_skip)
        contexts_btd, outputs = [], []
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids_bkt = tokenize(tokenizer, prompts).to(self.device)
            output = encoder(ids_bkt.flatten(0, 1), output_hidden_states=True)
            if self.family == "sdxl":
                hidden = output.hidden_states[-clip_skip - 1]
            else:
                # transformers 5 has the text model's parts in CLIPTextModel itself, earlier ones in .text_model
                text_model: Any = getattr(encoder, "text_model", encoder)
                hidden = text_model.final_layer_norm(output.hidden_states[-clip_skip])
            contexts_btd.append(hidden.reshape(len(prompts), -1, hidden.shape[-1]))
            outputs.append(output)
        context_btd = torch.cat(contexts_btd, dim=-1)
        if self.family != "sdxl":
            return Prompt(context_btd)
        height, width = size_hw or (self.resolution, self.resolution)
        # Podell et al. 2023, section 2.2: original size, top left corner of the crop, target size
        time_ids_bn = torch.tensor([[height, width, 0, 0, height, width]], device=self.device).expand(len(prompts), -1)
        chunks = ids_bkt.shape[1]
        pooled_bd = outputs[-1].text_embeds[::chunks]  # there is room for one chunk's: the first's
        return Prompt(context_btd, {"text_embeds": pooled_bd, "time_ids": time_ids_bn})

    def check_clip_skip(self, clip_skip: int) -> None:
        layers = min(encoder.config.num_hidden_layers for encoder in self.text_encoders)
        if not 1 <= clip_skip <= layers:
            raise UserError(f"clip skip {clip_skip}; expected 1 to {layers}, the layers of this base's text encoder")

    @torch.no_grad()
    def encode_moments(self, pixels_bchw: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (b, 3, H, W) in [-1, 1] -> mean and standard deviation (b, c, h, w) of the scaled latent, float32."""
        posterior = self.vae.encode(self._for_vae(pixels_bchw)).latent_dist
        scale, shift = self._latent_scale()
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def encode_pictures(self, pixels_bchw: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels (b, 3, H, W) in [-1, 1] -> a latent (b, c, h, w) drawn from their posterior, float32."""
        mean_bchw, deviation_bchw = self.encode_moments(pixels_bchw)
        noise_bchw = torch.randn(mean_bchw.shape, generator=generator, device=generator.device)
        return mean_bchw + deviation_bchw * noise_bchw.to(self.device)

    @torch.no_grad()
    def decode_latents(self, latent_bchw: Tensor) -> Tensor:
        """Latents (b, c, h, w) -> pixels (b, 3, H, W) float32, about in [-1, 1]: the VAE may overshoot."""
        scale, shift = self._latent_scale()
        pixels_bchw: Tensor = self.vae.decode(self._for_vae(latent_bchw / scale + shift)).sample
        return pixels_bchw.float()

    def hash(self) -> str:
        """SHA-256 over all weights, as they were when first asked; the same in float32 and bfloat16."""
        if not self._hash:
            self._hash = weights_hash(self._parts())
        return self._hash

    def _parts(self) -> list[nn.Module]:
        return [self.unet, self.vae, *self.text_encoders]

    def _for_vae(self, x_bchw: Tensor) -> Tensor:
        """Where and as precisely as the VAE computes; channels last on a CPU, and so then is all that follows."""
        layout = torch.channels_last if self.device.type == "cpu" else torch.preserve_format
        return x_bchw.to(self.device, self.vae.dtype, memory_format=layout)

    def _latent_scale(self) -> tuple[float, float]:
        return self.vae.config.scaling_factor, self.vae.config.shift_factor or 0.0


def weights_hash(parts: Sequence[nn.Module]) -> str:
    """SHA-256 over the weights of some models; the same in float32 and bfloat16."""
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Prompts -> token ids (b, k, 77): chunks of 75 between start and end, padded; k as the longest prompt needs."""
    length = min(tokenizer.model_max_length, PROMPT_LENGTH)  # some folders leave it unset, which means without end
    room = length - 2
    parted = [prompt.split(NEW_CHUNK) for prompt in prompts]
    ids = iter(
        tokenizer([part for parts in parted for part in parts], add_special_tokens=False, verbose=False).input_ids
    )
    every = [[chunk for _ in parts for chunk in chunked(next(ids), room)] for parts in parted]
    chunks = max(map(len, every))
    rows = []
    for own in every:
        for chunk in [*own, *[[]] * (chunks - len(own))]:
            row = [tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id]
            rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return torch.tensor(rows).reshape(len(prompts), chunks, length)


def chunked(tokens: Sequence[Token], room: int) -> list[Sequence[Token]]:
    """What is said of each token in pieces of `room`; of none, one empty piece."""
    return [tokens[start : start + room] for start in range(0, max(len(tokens), 1), room)]


def open_base(
    source: str | Path = EMBEDDED,
    device: Device = "auto",
    dtype: DType = "auto",
    ema: bool = False,
    tokenizer: str | Path | None = None,
    prediction: Prediction | None = None,
    resident: bool = True,
) -> Base:
    """The base called `source`: "embedded" (in this package), a folder in diffusers layout, a single file, a hub id, or
    the name of a public one in our table of models ("sd15").

    SD 1.x, SD 2.x and SDXL. A single file may be pickled: nothing in it is run. `ema` takes its averaged weights;
    `tokenizer` is a folder, for it carries none; `prediction` is what the base predicts, where its file does not say.
    Unless it is `resident` on the device, its models stay in main memory until `generate` brings them there in turn.
    UserError says what is missing and what to put where.
    """
    place = base_place(str(source))
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(dtype, torch_device)
    if place.is_file():
        parts = load_base_file(place, torch_dtype, ema, tokenizer, prediction)
    elif ema:
        raise UserError(f"base {source}: a folder holds one set of weights, mostly the averaged one; leave out --ema")
    else:
        parts = load_base_folder(place, torch_dtype, tokenizer, prediction)
    if resident:
        for part in (parts.unet, parts.vae, *parts.text_encoders):
            part.to(torch_device)
    suit(parts.unet)
    suit_vae(parts.vae)
    base = Base(**vars(parts), source=str(source))
    base.home = None if resident else torch_device
    return base


def base_place(source: str) -> Path:
    """The folder or file that is meant by what `open_base` takes; fetched if it is on the hub."""
    if source == EMBEDDED:
        return Path(str(files("controlnet") / "assets" / "embedded"))
    named = None if Path(source).expanduser().exists() else resolve_base(source)
    return find_base(named or source)
