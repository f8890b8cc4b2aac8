"""What CLIP (Radford et al. 2021) sees in pictures and reads in prompts, from a folder of transformers' weights.

Shapes: n pictures, d features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from controlnet.checkpoints.folder import read_json, weight_files
from controlnet.checkpoints.parts import filled, reading
from controlnet.checkpoints.strict import check_fit
from controlnet.checkpoints.tensor_file import open_tensors
from controlnet.checkpoints.tokenizer import load_tokenizer
from controlnet.errors import UserError
from controlnet.generation.safety import DEFAULTS, prepared
from controlnet.images import Rgb

Features = NDArray[np.float64]

NEEDED = ("config.json", "preprocessor_config.json")
COUNTED = "position_ids"  # 0, 1, 2, ...: older files hold them too
TOGETHER = 32  # pictures or prompts


@dataclass(frozen=True, eq=False)
class Clip:
    """The two networks, and how they want to see and read."""

    network: CLIPModel
    tokenizer: CLIPTokenizer
    preparation: Mapping[str, Any]

    @torch.inference_mode()
    def see(self, pictures: Sequence[Rgb]) -> Features:
        """Of pictures (H, W, 3), (n, d), not yet of length one."""
        parts = []
        for start in range(0, len(pictures), TOGETHER):
            seen = torch.stack([prepared(picture, self.preparation) for picture in pictures[start : start + TOGETHER]])
            vision = self.network.vision_model(pixel_values=seen.to(self.network.device, self.network.dtype))
            parts.append(self.network.visual_projection(vision.pooler_output).cpu().double().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def read(self, prompts: Sequence[str]) -> Features:
        """Of prompts, (n, d); beyond 77 tokens nothing is read."""
        parts = []
        for start in range(0, len(prompts), TOGETHER):
            tokens = self.tokenizer(
                list(prompts[start : start + TOGETHER]),
                padding=True,
                truncation=True,
                max_length=77,
                return_tensors="pt",
            ).to(self.network.device)
            text = self.network.text_model(**tokens)
            parts.append(self.network.text_projection(text.pooler_output).cpu().double().numpy())
        return np.concatenate(parts)


def open_clip(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Clip:
    """From a folder as transformers saves it. UserError if it is not there, damaged, or another model's."""
    if lacking := [name for name in NEEDED if not (folder / name).is_file()]:
        raise UserError(
            f"CLIP {folder}: no {' and no '.join(lacking)}; expected a folder of transformers with a CLIP model, its "
            "tokenizer and preprocessor, such as openai/clip-vit-large-patch14 downloaded whole"
        )
    with reading(folder, "a CLIP model"), torch.device("meta"):
        network = CLIPModel(CLIPConfig.from_dict(read_json(folder / "config.json")))
    tensors = {name: it for path in weight_files(folder) for name, it in open_tensors(path).tensors.items()}
    of_network = {name: it for name, it in tensors.items() if not name.endswith(COUNTED)}
    check_fit(str(folder), of_network, network.state_dict())
    preparation = DEFAULTS | read_json(folder / "preprocessor_config.json")
    return Clip(filled(network, of_network, dtype).to(device), load_tokenizer(folder), preparation)


def cosines(first_nd: Features, second_nd: Features) -> list[float]:
    """Of each row with its own: CLIP score (Hessel et al. 2021) without its factor of 2.5, as papers report it."""
    lengths = np.linalg.norm(first_nd, axis=1) * np.linalg.norm(second_nd, axis=1)
    return [float(each) for each in (first_nd * second_nd).sum(axis=1) / lengths]
