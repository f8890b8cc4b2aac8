"""The VAE and the text encoders, which a training with a cache needs no more, but at validations."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from controlnet.atomic import write_atomically
from controlnet.base import Base, weights_hash

SMALL = 64 * 2**20  # bytes of weights that may stay


def release_encoders(base: Base, folder: Path) -> None:
    """Let the VAE and the text encoders leave the memory, unless they are small; they come back when they are called.

    From an accelerator they go to main memory; what is called again, such as the VAE's decoder at a validation, returns
    and stays until this is called again. On a CPU their weights become files in `folder` that are mapped: nothing of
    them is in memory until it is used, and the system may take it back.
    """
    parts: list[Any] = [*base.vae.children(), *base.text_encoders]
    if sum(tensor.nbytes for part in parts for tensor in part.state_dict().values()) <= SMALL:
        return
    if base.device.type == "cpu":
        for model in (base.vae, *base.text_encoders):
            _map(model, folder)
        return
    for part in parts:
        if next(part.parameters()).device == base.device:
            part.to("cpu")
            _return_when_called(part, base.device)
    if base.device.type == "cuda":
        torch.cuda.empty_cache()


def _return_when_called(part: nn.Module, device: torch.device) -> None:
    def hook(part: nn.Module, inputs: Any) -> None:
        handle.remove()
        part.to(device)

    handle = part.register_forward_pre_hook(hook)


def _map(model: Any, folder: Path) -> None:
    path = folder / f"encoder-{weights_hash([model])[:16]}.safetensors"
    if not path.exists():
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_atomically(path, lambda temporary: save_file(weights, temporary))
    model.load_state_dict(load_file(path), assign=True)
    model.requires_grad_(False)
