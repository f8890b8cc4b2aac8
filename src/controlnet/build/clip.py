"""CLIP by transformers: pictures and words as directions of one space (Radford et al. 2021)."""

# n pictures or texts, d width of the common space
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from controlnet.devices import Device, DType, choose_device, choose_dtype
from controlnet.errors import UserError
from controlnet.images import Rgb

DEFAULT = "openai/clip-vit-base-patch32"

Embeddings = NDArray[np.float32]  # (n, d), each of length one


class Clip:
    """A CLIP model, from the hub or a folder, that looks at pictures and reads texts."""

    def __init__(self, model: str = DEFAULT, device: Device = "auto", dtype: DType = "auto") -> None:
        """UserError for what is no CLIP model or cannot be had."""
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        try:
            self.model: Any = CLIPModel.from_pretrained(model, dtype=self.dtype, use_safetensors=True)
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(model)
            self.processor: Any = CLIPImageProcessorPil.from_pretrained(model)
        except (OSError, ValueError) as error:
            told = str(error).partition("\n")[0]
            raise UserError(
                f"CLIP model {model}: cannot be opened ({told}); give a folder or a name of the hub"
            ) from error
        self.model.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def of_pictures(self, pictures: Sequence[Rgb]) -> Embeddings:
        inputs = self.processor(images=[Image.fromarray(rgb) for rgb in pictures], return_tensors="pt")
        pixels_nchw = inputs["pixel_values"].to(self.device, self.dtype)
        return _unit(self.model.visual_projection(self.model.vision_model(pixels_nchw).pooler_output))

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> Embeddings:
        """Of texts cut off after CLIP's 77 tokens."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return _unit(self.model.text_projection(self.model.text_model(**tokens).pooler_output))


def _unit(features_nd: torch.Tensor) -> Embeddings:
    unit: Embeddings = torch.nn.functional.normalize(features_nd.float(), dim=-1).cpu().numpy()
    return unit
