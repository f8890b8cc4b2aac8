"""A batch of a user's own `DataLoader` -> what the loss takes. What it holds is told in the original's tutorial."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from controlnet.base import Base
from controlnet.errors import UserError
from controlnet.training.loss import Batch, Draw

ROUNDING = 1e-3  # by which float pictures may leave their range
RANGES = {"jpg": (-1.0, 1.0), "hint": (0.0, 1.0)}


def encode_pictures(
    base: Base, batch: Mapping[str, Any], seed: int, number: int, first: int, emptied: float
) -> tuple[Batch, Draw]:
    """`jpg` (b, H, W, 3) in [-1, 1], `txt` and `hint` (b, H, W, c) in [0, 1], encoded, on the base's device.

    What is random about pair i of batch `number` is keyed by (seed, number, first + i). UserError for what cannot be
    trained on.
    """
    pixels, hint = (_in_range(name, batch) for name in ("jpg", "hint"))
    if pixels.shape[:3] != hint.shape[:3]:
        raise UserError(
            f"`jpg` is {tuple(pixels.shape)} and `hint` {tuple(hint.shape)}; expected (batch, height, width, channels) "
            "alike but for the channels"
        )
    mean_bchw, deviation_bchw = base.encode_moments(pixels.permute(0, 3, 1, 2).float())
    keys = [(number, first + i) for i in range(len(pixels))]
    draw = Draw.of(seed, keys, mean_bchw.shape[1:], len(base.schedule.alphas_cumprod), emptied)
    texts = ["" if empty else str(text) for text, empty in zip(batch["txt"], draw.empties_prompt_b, strict=True)]
    prompt = base.encode_prompts(texts, size_hw=(pixels.shape[1], pixels.shape[2]))
    hint_bchw = hint.permute(0, 3, 1, 2).float().contiguous()
    return Batch(mean_bchw, deviation_bchw, prompt, hint_bchw).to(base.device), draw.to(base.device)


def _in_range(name: str, batch: Mapping[str, Any]) -> Tensor:
    """Pictures that mistake the range would train, and never obey."""
    if missing := {"jpg", "txt", "hint"} - batch.keys():
        raise UserError(f"a batch has {', '.join(batch)}, and no {', '.join(sorted(missing))}; expected jpg, txt, hint")
    pixels, (low, high) = torch.as_tensor(batch[name]), RANGES[name]
    least, most = pixels.min().item(), pixels.max().item()
    if pixels.ndim != 4 or not (low - ROUNDING <= least and most <= high + ROUNDING):
        raise UserError(
            f"`{name}` has the shape {tuple(pixels.shape)} and values from {least:.3g} to {most:.3g}; expected "
            f"(batch, height, width, channels) in [{low:g}, {high:g}]"
        )
    return pixels
