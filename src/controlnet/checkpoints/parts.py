"""What a base consists of, however it is kept on disk; and how a model is built from a configuration and tensors."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from controlnet.checkpoints.contents import Family
from controlnet.choices import Prediction
from controlnet.errors import UserError

MOST_TIMESTEPS = 100_000
INPAINTING_CHANNELS = 5  # beside the latent: the mask, and the latent of the masked picture
TextModel = CLIPTextModel | CLIPTextModelWithProjection


@dataclass(eq=False, repr=False)
class BaseParts:
    """A base's models, on the CPU unless somebody moved them; SDXL has two text encoders, the others one."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: list[TextModel]
    tokenizers: list[CLIPTokenizer]
    scheduler_config: dict[str, Any]
    family: Family

    def check(self) -> None:
        """UserError if this is no base that we can use."""
        channels, latent_channels = self.unet.config.in_channels, self.vae.config.latent_channels
        if channels not in (latent_channels, latent_channels + INPAINTING_CHANNELS):
            raise UserError(
                f"its U-Net takes {channels} channels, expected the VAE's {latent_channels} or, for inpainting, "
                f"{INPAINTING_CHANNELS} more; bases for editing are not supported"
            )
        if self.prediction not in get_args(Prediction):
            raise UserError(f"it predicts {self.prediction!r}; expected one of: {', '.join(get_args(Prediction))}")
        steps = self.scheduler_config.get("num_train_timesteps", 1000)
        if not isinstance(steps, int) or not 1 <= steps <= MOST_TIMESTEPS:
            raise UserError(f"its noise schedule has {steps!r} timesteps; expected 1 to {MOST_TIMESTEPS}")
        with reading("its noise schedule", "DDPMScheduler"):
            DDPMScheduler.from_config(self.scheduler_config)

    @property
    def prediction(self) -> Prediction:
        prediction: Prediction = self.scheduler_config["prediction_type"]
        return prediction


@contextmanager
def reading(source: Path | str, what: str) -> Iterator[None]:
    """Every library's own errors as UserError; without transformers' progress bar, drawn however small the file is,
    and its report, which is told in our words."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: cannot be read as {what} ({error}); replace its files") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def structure(kind: Any, config: Mapping[str, Any], source: Path | str) -> Any:
    """A model without weights, on the meta device; UserError if the configuration makes none."""
    with reading(source, kind.__name__), torch.device("meta"):
        if kind in (CLIPTextModel, CLIPTextModelWithProjection):
            return kind(CLIPTextConfig(**config))
        return kind.from_config(dict(config))


def filled(model: Any, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> Any:
    """The model with these tensors for weights, in evaluation mode.

    Those that are in `dtype` already, and all if it is None, stay what they are: views of a file if they are that.
    """
    model.load_state_dict({name: _in_precision(tensor, dtype) for name, tensor in state.items()}, assign=True)
    for name, buffer in [*model.named_buffers()]:
        if buffer.is_meta:  # what no file holds: the numbers of a prompt's places
            owner, _, last = name.rpartition(".")
            assert last == "position_ids"
            setattr(model.get_submodule(owner), last, torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return model.eval()


def _in_precision(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype if tensor.is_floating_point() else None).contiguous()


def vae_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """In float16 SDXL's VAE overflows."""
    return torch.float32 if dtype == torch.float16 else dtype


def family_of(unet: UNet2DConditionModel) -> Family:
    """SDXL's time embedding also takes text and sizes; SD 2.x projects tokens by linear layers, SD 1.x by convolutions.

    So a narrow variant belongs to the family whose structure it has. UserError for any other U-Net.
    """
    match unet.config.addition_embed_type:
        case "text_time":
            return "sdxl"
        case None:
            return "sd2" if unet.config.use_linear_projection else "sd1"
        case other:
            raise UserError(f"a U-Net with added conditions {other!r}; expected one of SD 1.x, SD 2.x or SDXL")
