"""Whether a picture is fit to be shown, by the checker that came with the base (Rando et al. 2022, arXiv:2210.04610).

It compares CLIP's embedding of a picture with those of concepts that its makers chose; it errs both ways.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from controlnet.base import EMBEDDED, base_place
from controlnet.checkpoints.folder import PASSED_OVER, fetch_part, read_json, weight_files
from controlnet.checkpoints.models import resolve_base
from controlnet.checkpoints.parts import filled, reading
from controlnet.checkpoints.strict import check_fit
from controlnet.checkpoints.tensor_file import open_tensors
from controlnet.errors import UserError
from controlnet.generation.recipe import SafetyMode
from controlnet.images import Rgb

WEIGHTS, PREPARATION = "safety_checker", Path("feature_extractor", "preprocessor_config.json")
BLUR = 10  # of the shorter side, the radius: nothing is recognised any more
# CLIP's mean and deviation of red, green and blue, for folders that don't say
DEFAULTS = {
    "size": 224,
    "crop_size": 224,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}


@dataclass(frozen=True, eq=False)
class Checker:
    """The network, and how it wants to see pictures."""

    folder: Path
    network: Any
    preparation: Mapping[str, Any]

    @torch.inference_mode()
    def finds_unsafe(self, pixels_nhwc: NDArray[np.uint8]) -> list[bool]:
        """For each picture (H, W, 3)."""
        seen_nchw = torch.stack([prepared(rgb, self.preparation) for rgb in pixels_nhwc]).to(self.network.device)
        unseen = [np.zeros(0)] * len(pixels_nhwc)  # it would blacken them itself
        return [bool(found) for found in self.network(seen_nchw, unseen)[1]]


def prepared(rgb: Rgb, preparation: Mapping[str, Any]) -> Tensor:
    """(3, crop, crop): the shorter side resized, the centre cut out, normalised; CLIP's rule."""
    size, crop = _edge(preparation["size"]), _edge(preparation["crop_size"])
    image = Image.fromarray(rgb)
    shorter = min(image.size)
    scaled = [size if side == shorter else int(size * side / shorter) for side in image.size]
    image = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
    left, top = ((side - crop) // 2 for side in image.size)
    cut = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32) / 255
    mean, deviation = (np.float32(preparation[name]) for name in ("image_mean", "image_std"))
    return torch.from_numpy((cut - mean) / deviation).movedim(-1, 0)


def find_checker(base: str, folder: str | None) -> Path | None:
    """The folder with the checker of the base, or the one that is said; None if the base has none.

    UserError if what is said, or half of what the base has, is missing.
    """
    place = _fetched(base) if folder is None else Path(folder).expanduser()
    has = {name: (place / name).exists() for name in (WEIGHTS, str(PREPARATION))}
    if folder is None and not has[WEIGHTS]:
        return None
    if lacking := [name for name, is_there in has.items() if not is_there]:
        raise UserError(
            f"safety checker {place}: no {' and no '.join(lacking)}; expected both, as diffusers saves them"
        )
    return place


def _fetched(base: str) -> Path:
    """The base's place, with its checker, of which a base on the hub is fetched without."""
    place = base_place(base)
    is_local = base == EMBEDDED or Path(base).expanduser().exists()
    if is_local or place.is_file() or all((place / name).exists() for name in (WEIGHTS, PREPARATION)):
        return place
    return fetch_part(resolve_base(base) or base, (WEIGHTS, str(PREPARATION.parent)), WEIGHTS)


def open_checker(folder: Path, device: torch.device) -> Checker:
    """The checker in a folder that `find_checker` found, in float32. UserError if it is damaged."""
    # half a second of imports, for those who ask for a checker alone
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    config = read_json(folder / WEIGHTS / "config.json")
    with reading(folder / WEIGHTS, "a safety checker"), torch.device("meta"):
        network = StableDiffusionSafetyChecker(CLIPConfig.from_dict(config))
    wanted, found = network.state_dict(), dict[str, Tensor]()
    for path in weight_files(folder / WEIGHTS):
        found |= _with_todays_names(open_tensors(path).tensors, wanted)
    check_fit(str(folder / WEIGHTS), found, wanted)
    preparation = DEFAULTS | read_json(folder / PREPARATION)
    return Checker(folder, filled(network, found, torch.float32).to(device), preparation)


def hidden(pixels_nhwc: NDArray[np.uint8], unsafe: Sequence[bool], mode: SafetyMode) -> NDArray[np.uint8]:
    """The pictures as they may be shown."""
    if mode not in ("blur", "block"):
        return pixels_nhwc
    change: Callable[[Rgb], Rgb] = _blurred if mode == "blur" else np.zeros_like
    return np.stack([change(rgb) if found else rgb for rgb, found in zip(pixels_nhwc, unsafe, strict=True)])


def _blurred(rgb: Rgb) -> Rgb:
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(min(rgb.shape[:2]) / BLUR)))


def _with_todays_names(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers 4 saved CLIP's vision model one level deeper than 5 has it."""
    renamed = {}
    for name, tensor in found.items():
        if not re.search(PASSED_OVER, name):
            shallower = name.replace("vision_model.vision_model.", "vision_model.", 1)
            renamed[name if name in wanted else shallower] = tensor
    return renamed


def _edge(size: Any) -> int:
    """Older files say a number, later ones a table."""
    return int(next(iter(size.values()))) if isinstance(size, Mapping) else int(size)
