"""The embedded base's words: tokenizer and text encoder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from controlnet.data.colours import NAMES, RGB
from controlnet.data.shapes import SHAPES, draw_scene
from controlnet.training.embedded.fit import Stage, fast_numbers, fit

# CLIP's text model as Stable Diffusion 1.5 has it (12 layers of 768 there), heads of width 64 as there.
TEXT: dict[str, Any] = dict(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
)
WORDS = sorted({word for name in NAMES for word in name.split()} | set(SHAPES) | {"with", "background"})


def byte_letters() -> list[str]:
    """The 256 characters by which CLIP's tokenizer writes bytes: printable ones as they are, others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + i for i in range(256 - len(printable))]
    return [chr(code) for code in printable + others]


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the world is one token, and any other text falls into letters.

    Merges grow words from their ends (d</w>, ld</w>, old</w>, gold</w>): only the last pair of a word can then ever
    merge, so that "gold" cannot be disturbed by the merges of "golden" or "old".
    """
    letters = byte_letters()
    suffixes = [(word[i], word[i + 1 :] + "</w>") for word in WORDS for i in reversed(range(len(word) - 1))]
    merges = list(dict.fromkeys(suffixes))
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocabulary = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str], device: torch.device) -> Tensor:
    encoded = tokenizer(list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return cast(Tensor, encoded.input_ids).to(device)


TEXT_ALONE = Stage("text", steps=1_500, batch=48, learning_rate=2e-3, decay=0.5, ema=0.99)


def train_text(
    folder: Path, tokenizer: CLIPTokenizer, seed: int, device: torch.device, report: Callable[[str], None]
) -> CLIPTextModel:
    """The text encoder alone: every token from the end of the text on must tell both colours and the shape.

    This stands in for CLIP's own pretraining on pictures: the U-Net starts on words that already mean something.
    """
    torch.manual_seed(seed)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **special, **TEXT))
    parts = nn.ModuleDict({"text": text, "colours": nn.Linear(128, 6), "shape": nn.Linear(128, len(SHAPES))})
    parts.to(device)

    def loss(step: int, part: slice) -> Tensor:
        random = TEXT_ALONE.random(seed, step)
        scenes = [draw_scene(random) for _ in range(TEXT_ALONE.batch)][part]
        colours = np.array([[*RGB[s.colour], *RGB[s.background]] for s in scenes], np.float32) / 127.5 - 1
        shapes = torch.tensor([SHAPES.index(s.shape) for s in scenes], device=device)
        # a column after the end of the longest text, and random ones up to the last
        columns = [int(column) for column in random.integers(20, 77, size=4)]
        with fast_numbers(device):
            hidden = text(tokenize(tokenizer, [s.caption for s in scenes], device)).last_hidden_state
        hidden = hidden[:, columns].float()
        wrong_colours = (parts["colours"](hidden) - torch.from_numpy(colours).to(device)[:, None]).abs().mean()
        wrong_shapes = F.cross_entropy(parts["shape"](hidden).flatten(0, 1), shapes.repeat_interleave(len(columns)))
        return wrong_colours + 0.1 * wrong_shapes

    fit(TEXT_ALONE, parts, loss, folder, report)
    return text
